"""Recordings in: find records in a folder, open one, know its subject and its units.

WFDB records (PhysioNet) and EDF, EDF+ and BDF files without gaps. The Challenge 2018 layout is one folder per record
below a folder that holds `RECORDS` and `age-sex.csv` (https://physionet.org/content/challenge-2018/).
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import re
from collections.abc import Sequence
from pathlib import Path

from physiofast.io import edf, subjects, wfdb
from physiofast.io.recording import Annotation, Recording, Signal, to_physical
from physiofast.montage import MODALITIES, nearest

__all__ = [
    "Annotation",
    "RecordPath",
    "Recording",
    "Signal",
    "find_records",
    "open_recording",
    "to_physical",
    "unit_scale",
]

_EDF_SUFFIXES = (".edf", ".bdf")
_HYPNOGRAM = "-Hypnogram"
_SLEEP_EDFX = re.compile(r"S[CT]\d{4}[A-Z]\d")

_VOLTAGE = {"nv": 1e-3, "uv": 1.0, "mv": 1e3, "v": 1e6}
_SATURATION = {"%": 1.0, "percent": 1.0}
_BREATHING = (
    "",
    "nu",
    "adu",
    "au",
    "a.u.",
    "%",
    "l",
    "ml",
    "l/s",
    "l/min",
    "ohm",
    "mohm",
    "cmh2o",
    "mmhg",
    "pa",
    "kpa",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordPath:
    """A record that was found, or a reason why it cannot be had."""

    record_id: str
    path: Path
    """Header (WFDB) or file (EDF, BDF)."""
    problem: str | None = None
    """Why `open_recording` will refuse it, such as a record listed twice; None when it may try."""


def find_records(path: str | Path) -> list[RecordPath]:
    """Find every record below a folder, or the one that a file belongs to.

    A folder's `RECORDS` says what belongs to it; without one it is searched. Segments of multi-segment
    records and Sleep-EDFx hypnograms are no records of their own. A record that is listed but missing, or
    found a second time, comes with its `problem`, so that one bad record does not hide the others.

    Args:
        path: a folder, a `.hea`, `.edf` or `.bdf` file, or a WFDB record's path without suffix.

    Returns:
        Records in the order of `RECORDS`, else by path.

    Raises:
        FileNotFoundError: no such path; the message gives the nearest names.
        ValueError: a folder without any record.
    """
    path = Path(path)
    if not path.is_dir():
        header = _record_file(path)
        return [RecordPath(record_id=header.stem, path=header)]
    found = _listed(path) if (path / "RECORDS").is_file() else _searched(path)
    if not found:
        entries = sorted(entry.name for entry in path.iterdir())
        raise ValueError(
            f"{path}: no record in this folder: looked for RECORDS and, in all folders below, for .hea, .edf "
            f"and .bdf files; found {', '.join(entries[:5]) or 'nothing'}"
        )
    return _flag_duplicates(found)


def open_recording(
    path: str | Path | RecordPath,
    *,
    annotator: str | None = None,
    hypnogram: str | Path | None = None,
    require_annotations: bool = False,
    sentinels: bool | None = None,
) -> Recording:
    """Open one record: header, annotations and demographics; samples stay in their files.

    Args:
        path: what `find_records` gives, or anything it takes that holds exactly one record.
        annotator: suffix of the WFDB annotation file to read; `arousal`, `st` or `atr` is taken when absent.
        hypnogram: EDF+ file with the sleep stages of an EDF recording; found by itself for Sleep-EDFx names.
        require_annotations: refuse a record without annotations instead of noting it in `Recording.warnings`.
        sentinels: whether the value that a WFDB format sets apart for "no sample", such as -32768 in format 16,
            is invalid in every signal (True) or in none (False). When absent it is, except in signals of format
            16 whose baseline it is: the Challenge stores SaO2 so, with 0 % as -32768. `Signal.invalid` tells.
            What skew and gaps leave out is always NaN in physical values.

    Raises:
        FileNotFoundError: no such record, or required annotations that are missing.
        ValueError: a bad header (the message names file, signal or byte, and what to do), an EDF file that is truncated
            or has gaps, or contradictory demographics.
    """
    if isinstance(path, RecordPath):
        if path.problem is not None:
            raise ValueError(path.problem)
        path = path.path
    path = Path(path)
    if path.is_dir():
        records = find_records(path)
        if len(records) != 1:
            names = ", ".join(record.record_id for record in records[:5])
            raise ValueError(f"{path}: holds {len(records)} records ({names}, ...); name one of them")
        return open_recording(
            records[0],
            annotator=annotator,
            hypnogram=hypnogram,
            require_annotations=require_annotations,
            sentinels=sentinels,
        )
    file = _record_file(path)
    if file.suffix.lower() in _EDF_SUFFIXES:
        recording = _open_edf(file, hypnogram)
    elif hypnogram is not None:
        raise ValueError(f"{file}: a hypnogram file belongs to an EDF recording; WFDB records take annotator=")
    else:
        recording = _open_wfdb(file, annotator, sentinels)
    if require_annotations and not recording.annotator:
        raise FileNotFoundError(f"{file}: annotations are required, but {recording.warnings[-1]}")
    return recording


def unit_scale(unit: str, modality: str) -> tuple[float, str]:
    """What brings a signal to its modality's unit: uV for EEG, EOG, EMG and ECG, % for SPO2.

    Breathing is recorded in many arbitrary units, which only its own scale makes comparable: voltages become
    uV and every other known unit is kept.

    Args:
        unit: as the file spells it; case does not matter, and µ is u.
        modality: one of `MODALITIES`.

    Returns:
        Factor, and the unit it leads to.

    Raises:
        ValueError: an unknown modality, or a unit that is not one of its; the message names the nearest.
    """
    if modality not in MODALITIES:
        raise ValueError(f"unknown modality {modality!r}{nearest(modality, MODALITIES)}")
    spelling = unit.strip().replace("\u00b5", "u").replace("\u03bc", "u").lower()
    if modality == "SPO2" and spelling in _SATURATION:
        return _SATURATION[spelling], "%"
    if modality != "SPO2" and spelling in _VOLTAGE:
        return _VOLTAGE[spelling], "uV"
    if modality == "RESP" and spelling in _BREATHING:
        return 1.0, unit.strip() or "NU"
    allowed = {"SPO2": tuple(_SATURATION), "RESP": (*_VOLTAGE, *filter(None, _BREATHING))}.get(
        modality, ("nV", "uV", "mV", "V")
    )
    raise ValueError(f"unit {unit!r} is not known for {modality}{nearest(unit, allowed)}")


def _record_file(path: Path) -> Path:
    """The header or EDF file that a path means."""
    if path.suffix.lower() in (*_EDF_SUFFIXES, ".hea") and path.is_file():
        return path
    for header in (path.with_name(path.name + ".hea"), path.with_suffix(".hea")):
        if header.is_file():
            return header
    if path.is_file():
        raise ValueError(
            f"{path}: not a record: expected .hea, .edf, .bdf, or a file with a .hea of its name beside it"
        )
    raise FileNotFoundError(f"{path}: no such record or folder{_nearest_entries(path)}")


def _nearest_entries(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    names = {entry.name for entry in path.parent.iterdir()} | {e.stem for e in path.parent.glob("*.hea")}
    close = difflib.get_close_matches(path.name, sorted(names), n=3, cutoff=0.5)
    return (
        f"; nearest in {path.parent}: {', '.join(close)}" if close else f"; nothing in {path.parent} is named like it"
    )


def _listed(folder: Path) -> list[RecordPath]:
    found: list[RecordPath] = []
    seen: dict[Path, int] = {}
    for number, line in enumerate((folder / "RECORDS").read_text().splitlines(), 1):
        entry = line.strip()
        if not entry:
            continue
        path = folder / entry
        where = f"{folder / 'RECORDS'}, line {number}"
        if path in seen:
            problem = f"{where}: {entry} is listed a second time, after line {seen[path]}; remove one"
            found.append(RecordPath(record_id=path.name, path=path, problem=problem))
            continue
        seen[path] = number
        found.extend(_resolve_entry(path, where))
    return found


def _resolve_entry(path: Path, where: str) -> list[RecordPath]:
    """A RECORDS line: a record's path, or a folder of records as PhysioNet's top level lists them."""
    if path.is_dir():
        own = path / f"{path.name}.hea"
        if own.is_file():
            return [RecordPath(record_id=own.stem, path=own)]
        inside = _listed(path) if (path / "RECORDS").is_file() else _searched(path)
        problem = f"{where}: {path} holds no record"
        return inside or [RecordPath(record_id=path.name, path=path, problem=problem)]
    try:
        header = _record_file(path)
    except (FileNotFoundError, ValueError) as error:
        return [RecordPath(record_id=path.name, path=path, problem=f"{where}: {error}")]
    return [RecordPath(record_id=header.stem, path=header)]


def _searched(folder: Path) -> list[RecordPath]:
    suffixes = (".hea", *_EDF_SUFFIXES)
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in suffixes and f.is_file())
    inner: set[Path] = set()
    problems: dict[Path, str] = {}
    for file in files:
        if file.suffix.lower() != ".hea":
            continue
        try:
            inner.update(file.with_name(f"{name}.hea") for name in wfdb.segment_names(file))
        except ValueError as error:
            problems[file] = str(error)
    return [
        RecordPath(record_id=file.stem, path=file, problem=problems.get(file))
        for file in files
        if file not in inner and not file.stem.endswith(_HYPNOGRAM)
    ]


def _flag_duplicates(records: Sequence[RecordPath]) -> list[RecordPath]:
    """Two records of one name would overwrite each other and put one subject on both sides of a split."""
    first: dict[str, Path] = {}
    out = []
    for record in records:
        earlier = first.get(record.record_id)
        first.setdefault(record.record_id, record.path)
        if record.problem is None and earlier is not None:
            problem = f"{record.path}: record {record.record_id} was already found as {earlier}; keep one of them"
            record = dataclasses.replace(record, problem=problem)
        out.append(record)
    return out


def _open_wfdb(header: Path, annotator: str | None, sentinels: bool | None) -> Recording:
    described = wfdb.read_header(header, sentinels)
    warnings = list(described.warnings)
    wanted = (annotator,) if annotator else wfdb.ANNOTATORS
    present = [name for name in wanted if header.with_suffix(f".{name}").is_file()]
    annotations: tuple[Annotation, ...] = ()
    rate_hz, files = described.rate_hz, described.files
    if present:
        read = wfdb.read_annotations(header, rate_hz, present[0])
        annotations, rate_hz, files = read.annotations, read.rate_hz, (*files, read.path)
    else:
        names = " or ".join(f"{header.stem}.{name}" for name in wanted)
        warnings.append(f"no annotation file: looked for {names} in {header.parent}")
    subject, age, sex = subjects.demographics(header, subjects.from_comments(described.comments))
    return Recording(
        record_id=header.stem,
        subject_id=subject,
        path=header,
        signals=described.signals,
        annotations=annotations,
        annotation_rate_hz=rate_hz,
        annotator=present[0] if present else "",
        age_years=age,
        sex=sex,
        files=files,
        warnings=tuple(warnings),
        reader=described.reader,
    )


def _open_edf(path: Path, hypnogram: str | Path | None) -> Recording:
    header = edf.read_header(path)
    signals = edf.read_signals(header)
    lists = edf.read_annotations(header)
    begin = edf.first_sample(header, lists)
    annotations = edf.on_the_clock(lists, -begin.seconds, path)
    warnings, files = [*header.warnings, *begin.notes, *_unreadable(path, lists)], [path]
    scored = _hypnogram_of(path) if hypnogram is None else Path(hypnogram)
    if scored is not None:
        if not scored.is_file():
            raise FileNotFoundError(f"{scored}: no such hypnogram{_nearest_entries(scored)}")
        stages = edf.read_header(scored)
        scores = edf.read_annotations(stages)
        duration_s = header.num_records * header.record_duration_s
        shift = edf.begin_of_hypnogram(stages, header, duration_s)
        annotations.extend(edf.on_the_clock(scores, shift.seconds - begin.seconds, scored))
        annotations.sort(key=lambda annotation: annotation.sample)
        warnings.extend((*shift.notes, *_unreadable(scored, scores)))
        files.append(scored)
    if not annotations:
        pattern = _hypnogram_pattern(path)
        if scored is not None:
            missing = f"none in its hypnogram {scored.name}"
        elif pattern is not None:
            missing = f"no hypnogram named {pattern} beside it"
        else:
            missing = (
                "no hypnogram given; one beside it is found where the names are NAME-PSG.edf and NAME-Hypnogram.edf"
            )
        warnings.append(f"no annotations in {path.name}, and {missing}")
    subject, age, sex = subjects.demographics(path, edf.demographics(header), edf.patient_code(header))
    return Recording(
        record_id=path.stem,
        subject_id=subject,
        path=path,
        signals=signals,
        annotations=tuple(annotations),
        annotation_rate_hz=edf.ANNOTATION_RATE_HZ,
        annotator="edf+" if annotations else "",
        age_years=age,
        sex=sex,
        files=tuple(files),
        warnings=tuple(warnings),
        reader=edf.EdfReader(header=header, signals=signals),
    )


def _unreadable(path: Path, lists: edf.AnnotationLists) -> list[str]:
    count = len(lists.unreadable)
    said = f"{path.name}: annotations that cannot be read are left out, {count} in all; the first in "
    return [said + lists.unreadable[0]] if count else []


def _hypnogram_of(path: Path) -> Path | None:
    """The file with the stages of a PSG, if it lies beside that."""
    pattern = _hypnogram_pattern(path)
    return None if pattern is None else next(iter(sorted(path.parent.glob(pattern))), None)


def _hypnogram_pattern(path: Path) -> str | None:
    """`NAME-Hypnogram.edf` of `NAME-PSG.edf`; of Sleep-EDFx's SC4001E0-PSG.edf any scorer's, SC4001E?-Hypnogram.edf."""
    name = path.stem.removesuffix("-PSG")
    if name == path.stem:
        return None
    scored = f"{glob.escape(name[:7])}?" if _SLEEP_EDFX.fullmatch(name) else glob.escape(name)
    return f"{scored}{_HYPNOGRAM}.edf"
