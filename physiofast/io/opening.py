"""Opens a record: its header, its annotations, and the files with demographics or sleep stages beside it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from physiofast.io import eannot, edf, nsrr, subjects, wfdb
from physiofast.io.finding import EDF_SUFFIXES, HYPNOGRAM, RecordPath, find_records, nearest_entries, record_file
from physiofast.io.recording import Annotation, Recording
from physiofast.stages import has_stage
from physiofast.support.messages import first_names
from physiofast.support.paths import given_path

_SLEEP_EDFX = re.compile(r"S[CT]\d{4}[A-Z]\d")


def open_recording(
    path: str | os.PathLike[str] | RecordPath,
    *,
    annotator: str | None = None,
    hypnogram: str | os.PathLike[str] | None = None,
    require_annotations: bool = False,
    sentinels: bool | None = None,
) -> Recording:
    """Open one record: header, annotations and demographics; samples stay in their files.

    Args:
        path: what `find_records` gives, or anything it takes that holds exactly one record.
        annotator: suffix of the WFDB annotation file to read. When absent it is the first of `arousal`, `st` and `atr`
            that lies beside the header, but `st` where that has sleep stages and `arousal` has none, which is noted.
        hypnogram: file with the sleep stages of an EDF recording: EDF+, XML of the National Sleep Research Resource, or
            `.eannot`, a line for each 30 s. Found by itself where the names are `NAME-PSG.edf` and
            `NAME-Hypnogram.edf`, or `NAME.edf` and `NAME-nsrr.xml` or `NAME.eannot`, beside it, the XML also in a
            dataset's folders `edfs` and `annotations-events-nsrr`.
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
    path = _header_of(path) if isinstance(path, RecordPath) else given_path(path)
    if path.is_dir():
        records = find_records(path)
        if len(records) != 1:
            names = first_names([record.record_id for record in records])
            raise ValueError(f"{path}: holds {len(records)} records ({names}); name one of them")
        return open_recording(
            records[0],
            annotator=annotator,
            hypnogram=hypnogram,
            require_annotations=require_annotations,
            sentinels=sentinels,
        )
    file = record_file(path)
    if file.suffix.lower() in EDF_SUFFIXES:
        recording = _open_edf(file, hypnogram)
    elif hypnogram is not None:
        raise ValueError(f"{file}: a hypnogram file belongs to an EDF recording; WFDB records take annotator=")
    else:
        recording = _open_wfdb(file, annotator, sentinels)
    if require_annotations and not recording.annotator:
        missing = next(said for said in recording.warnings if said.startswith("no annotation"))
        raise FileNotFoundError(f"{file}: annotations are required, but {missing}")
    return recording


def _header_of(found: RecordPath) -> Path:
    """The header (WFDB) or file (EDF, BDF) of a record that `find_records` found.

    Raises:
        ValueError: the record has a `problem`, or a name other than its file's.
    """
    if found.problem is not None:
        raise ValueError(found.problem)
    if found.record_id != found.path.stem:
        raise ValueError(
            f"{found.path}: a record has the name of its file, {found.path.stem}; found {found.record_id!r}. Link or "
            "copy it under the name that it is to have"
        )
    return found.path


def _open_wfdb(header: Path, annotator: str | None, sentinels: bool | None) -> Recording:
    described = wfdb.read_header(header, sentinels)
    warnings = list(described.warnings)
    wanted = (annotator,) if annotator else wfdb.ANNOTATORS
    present = [name for name in wanted if header.with_suffix(f".{name}").is_file()]
    annotations: tuple[Annotation, ...] = ()
    rate_hz, files, found = described.rate_hz, described.files, ""
    if present:
        *others, read = _read_annotators(header, rate_hz, present)
        annotations, rate_hz, found = read.annotations, read.rate_hz, read.annotator
        files = (*files, *(other.path for other in others), read.path)
        if others and read.annotator != present[0]:
            warnings.append(
                f"none of the {len(others[0].annotations)} annotations in {others[0].path.name} is a sleep stage, so "
                f"those in {read.path.name} are read in their place, and its events are not"
            )
    else:
        names = " or ".join(f"{header.stem}.{name}" for name in wanted)
        warnings.append(f"no annotation file: looked for {names} in {header.parent}")
    person = subjects.demographics(header, subjects.from_comments(described.comments))
    return Recording(
        record_id=header.stem,
        subject_id=person.subject,
        path=header,
        signals=described.signals,
        annotations=annotations,
        annotation_rate_hz=rate_hz,
        annotator=found,
        age_years=person.age_years,
        sex=person.sex,
        files=files,
        warnings=(*warnings, *person.notes),
        reader=described.reader,
    )


def _read_annotators(header: Path, rate_hz: float, present: Sequence[str]) -> list[wfdb.WfdbAnnotations]:
    """Read annotation files until one has sleep stages; the last one is used, those before it have no stages."""
    first = wfdb.read_annotations(header, rate_hz, present[0])
    if tuple(present[:2]) != ("arousal", "st") or _has_stage(first):
        return [first]
    second = wfdb.read_annotations(header, rate_hz, "st")
    return [first, second] if _has_stage(second) else [second, first]


def _has_stage(read: wfdb.WfdbAnnotations) -> bool:
    return has_stage([annotation.aux for annotation in read.annotations], read.annotator)


def _open_edf(path: Path, hypnogram: str | os.PathLike[str] | None) -> Recording:
    header = edf.read_header(path)
    signals = edf.read_signals(header)
    lists = edf.read_annotations(header)
    begin = edf.first_sample(header, lists)
    annotations, annotator = edf.on_the_clock(lists, -begin.seconds, path), "edf+"
    warnings, files = [*header.warnings, *begin.notes, *_unreadable(path, lists)], [path]
    scored = _scoring_of(path) if hypnogram is None else given_path(hypnogram)
    if scored is not None:
        if not scored.is_file():
            raise FileNotFoundError(f"{scored}: no such hypnogram{nearest_entries(scored)}")
        files.append(scored)
        found = _read_scoring(scored, header, begin)
        if found.annotator != annotator:
            if annotations:
                said = f"annotations within it, {len(annotations)} in all, are left out for those in {scored.name}"
                warnings.append(said)
            annotations, annotator = [], found.annotator
        annotations.extend(edf.on_the_clock(found.scores, found.begin.seconds - begin.seconds, scored))
        annotations.sort(key=lambda annotation: annotation.sample)
        warnings.extend((*found.begin.notes, *_unreadable(scored, found.scores)))
    if not annotations:
        warnings.append(f"no annotations in {path.name}, and {_no_hypnogram(path, scored)}")
    person = subjects.demographics(path, edf.demographics(header), edf.patient_code(header))
    return Recording(
        record_id=path.stem,
        subject_id=person.subject,
        path=path,
        signals=signals,
        annotations=tuple(annotations),
        annotation_rate_hz=edf.ANNOTATION_RATE_HZ,
        annotator=annotator if annotations else "",
        age_years=person.age_years,
        sex=person.sex,
        files=tuple(files),
        warnings=(*warnings, *person.notes),
        reader=edf.EdfReader(header=header, signals=signals),
    )


class _Scoring(NamedTuple):
    """Sleep stages and events of an EDF recording, from another file."""

    annotator: str
    scores: edf.AnnotationLists
    begin: edf.Begin
    """Start of the scoring after the time in the header of the signals."""


def _read_scoring(path: Path, header: edf.EdfHeader, begin: edf.Begin) -> _Scoring:
    """Read a scoring file in the format that its suffix names; any other suffix means EDF+."""
    duration_s = header.num_records * header.record_duration_s
    suffix = path.suffix.lower()
    if suffix == ".xml":
        scoring = nsrr.read_scoring(path)
        return _Scoring("nsrr", scoring.events, edf.Begin(0.0, scoring.notes(path, duration_s)))
    if suffix == eannot.SUFFIX:
        stages = eannot.read_stages(path)
        return _Scoring("eannot", stages, edf.Begin(begin.seconds, eannot.notes(path, stages, duration_s)))
    hypnogram = edf.read_header(path)
    begins = edf.begin_of_hypnogram(hypnogram, header, begin.seconds + duration_s)
    return _Scoring("edf+", edf.read_annotations(hypnogram), begins)


def _no_hypnogram(path: Path, scored: Path | None) -> str:
    """The end of the warning that an EDF recording has no annotations: which hypnogram was looked for."""
    pattern = _hypnogram_pattern(path)
    if scored is not None:
        return f"none in its hypnogram {scored.name}"
    if pattern is not None:
        return f"no hypnogram named {pattern} beside it"
    return (
        "no hypnogram given; one beside it is found where the names are NAME-PSG.edf and NAME-Hypnogram.edf, or "
        f"NAME.edf and NAME{eannot.SUFFIX} or NAME{nsrr.SUFFIX}, or in a dataset's folders {nsrr.SIGNALS} and "
        f"{nsrr.SCORING}"
    )


def _unreadable(path: Path, lists: edf.AnnotationLists) -> list[str]:
    count = len(lists.unreadable)
    said = f"{path.name}: annotations that cannot be read are left out, {count} in all; the first in "
    return [said + lists.unreadable[0]] if count else []


def _scoring_of(path: Path) -> Path | None:
    """The file with an EDF file's sleep stages, in any of the formats that are looked for; None if there is none."""
    return _hypnogram_of(path) or nsrr.scoring_of(path) or eannot.stages_of(path)


def _hypnogram_of(path: Path) -> Path | None:
    """The EDF+ hypnogram beside a file `NAME-PSG.edf`; None if there is none."""
    pattern = _hypnogram_pattern(path)
    if pattern is None:
        return None
    stem = pattern.removesuffix(".edf")
    return next(iter(sorted(path.parent.glob(f"{stem}.[eE][dD][fF]"))), None)


def _hypnogram_pattern(path: Path) -> str | None:
    """The file name pattern of an EDF file's hypnogram; None if the file's name does not end in `-PSG`.

    That of `NAME-PSG.edf` is `NAME-Hypnogram.edf`; that of Sleep-EDFx's SC4001E0-PSG.edf admits any scorer,
    SC4001E?-Hypnogram.edf.
    """
    name = path.stem.removesuffix("-PSG")
    if name == path.stem:
        return None
    scored = f"{glob.escape(name[:7])}?" if _SLEEP_EDFX.fullmatch(name) else glob.escape(name)
    return f"{scored}{HYPNOGRAM}.edf"
