"""EDF, EDF+C and BDF files; annotations through edfio. Format: https://www.edfplus.info/specs/edfplus.html."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.engine import Calibration, FileError
from physiofast.engine.limits import (
    MAX_BASELINE,
    MAX_DURATION_S,
    MAX_GAIN,
    MAX_RATE_HZ,
    MIN_GAIN,
    MIN_RATE_HZ,
)
from physiofast.io.handles import Handle
from physiofast.io.recording import (
    DAMAGE,
    Annotation,
    Digital,
    Physical,
    Signal,
    Source,
    Span,
    check_annotation_clock,
)

ANNOTATION_RATE_HZ = 1000.0
"""EDF+ states onsets in seconds; they are kept in whole milliseconds."""

_ENCODING = "latin-1"  # the standard says ASCII, real headers have `µV`
_FIELD_WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
"""Bytes of each field of a signal header; a field stands for all signals before the next one does."""
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?")
_PATIENT = re.compile(r"\S+ (?P<sex>[FMX]) (?P<birth>X|\d{2}-[A-Za-z]{3}-\d{4})(?: (?P<name>\S+))?")
_AGE_IN_NAME = re.compile(r"_(\d{1,3})yr")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdfHeader:
    """An EDF or BDF header that has been checked against the size of its file."""

    path: Path
    patient: str
    recording: str
    start: datetime.datetime | None
    """Start of the recording to the second; None when the header's date or time is not one."""
    is_bdf: bool
    record_duration_s: float
    num_records: int
    """Whole data records in the file."""
    data_offset: int
    """Byte of the first data record."""
    members: tuple[_Member, ...]
    """Every signal of a data record, in order, those of annotations too."""
    raw: bytes
    """The header itself."""
    warnings: tuple[str, ...]

    @property
    def ordinary(self) -> tuple[int, ...]:
        """Which members are signals and not annotations."""
        return tuple(i for i, member in enumerate(self.members) if not member.is_annotation)

    @functools.cached_property
    def handle(self) -> Handle:
        """The file for the engine."""
        counts = tuple(member.samples_per_record for member in self.members)
        return Handle(self.path, 24 if self.is_bdf else 16, counts, self.num_records, self.data_offset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Member:
    """The signal header of one member of a data record."""

    label: str
    unit: str
    physical_range: tuple[float, float]
    """At the ends of the digital range. Not looked at for annotations."""
    digital_range: tuple[int, int]
    samples_per_record: int
    is_annotation: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdfReader:
    """Samples of an EDF or BDF file, read by position."""

    header: EdfHeader
    signals: tuple[Signal, ...]

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span: int16 for EDF, int32 for BDF."""
        return self._read(spans)

    def physical(self, spans: Sequence[Span], dtype: npt.DTypeLike, out: Sequence[Physical] | None) -> list[Physical]:
        """The physical values of each span."""
        return self._read(spans, calibration=self._calibration, dtype=dtype, out=out)

    def source(self, signal: int) -> Source:
        """Where the samples of a signal lie."""
        return Source(file=self.header.handle.open(), channel=self.header.ordinary[signal], skew=0)

    def _read(self, spans: Sequence[Span], **options: Any) -> list[Any]:
        members = self.header.ordinary
        first, last = [start for _, start, _ in spans], [stop for _, _, stop in spans]
        return self.header.handle.open().decode_runs([members[i] for i, _, _ in spans], first, last, **options)

    @functools.cached_property
    def _calibration(self) -> Calibration:
        gain, baseline = [1.0] * len(self.header.members), [0.0] * len(self.header.members)
        for member, signal in zip(self.header.ordinary, self.signals, strict=True):
            gain[member], baseline[member] = signal.gain, signal.baseline
        return Calibration(gain, baseline, [None] * len(gain))


def read_header(path: Path) -> EdfHeader:
    """Read and check a header.

    Raises:
        OSError: no such file.
        FileError: not EDF or BDF, truncated, longer than `MAX_DURATION_S`, or a damaged field (at which byte).
        ValueError: a discontinuous file (EDF+D).
    """
    with path.open("rb") as file:
        fixed = file.read(256)
        if len(fixed) < 256 or fixed[:8] not in (b"0       ", b"\xffBIOSEMI"):
            raise FileError(str(path), 0, "an EDF or BDF file", f"one that begins with {fixed[:8]!r}")
        fields = _Fields(path, fixed)
        count = fields.whole(252, 4, least=0)
        rest = file.read(count * 256)
    reserved = fixed[192:236].decode(_ENCODING).strip()
    if reserved.startswith(("EDF+D", "BDF+D")):
        raise ValueError(
            f"{path}: a discontinuous file ({reserved[:5]}), whose gaps have no samples; only EDF, EDF+C and "
            "BDF are read. Convert it to EDF+C, with the gaps filled or as one file per part"
        )
    end = 256 + count * 256
    if len(rest) < count * 256:
        found = f"the end of the file at byte {256 + len(rest)}"
        raise FileError(str(path), 256 + len(rest), f"{count} signal headers, which end at byte {end}", found)
    fields = _Fields(path, fixed + rest)
    is_bdf = fixed[:1] == b"\xff"
    members = tuple(_member(fields, i, count, is_bdf) for i in range(count))
    duration_s = fields.number(244, 8)
    if duration_s <= 0 and not all(member.is_annotation for member in members):
        raise FileError(str(path), 244, "the seconds that a data record lasts, more than 0", f"{duration_s}")
    data_offset = fields.whole(184, 8, least=end)
    record_bytes = sum(member.samples_per_record for member in members) * (3 if is_bdf else 2)
    records, notes = _count_records(path, data_offset, record_bytes, fields.whole(236, 8, least=-1))
    if not 0 <= duration_s * records <= MAX_DURATION_S:
        expected = f"0 to {MAX_DURATION_S / max(records, 1):g} seconds for each of {records} data records"
        raise fields.error(244, f"{expected}, {MAX_DURATION_S:g} in all", 8)
    return EdfHeader(
        path=path,
        patient=fixed[8:88].decode(_ENCODING).strip(),
        recording=fixed[88:168].decode(_ENCODING).strip(),
        start=_start(fixed[168:184].decode(_ENCODING)),
        is_bdf=is_bdf,
        record_duration_s=duration_s,
        num_records=records,
        data_offset=data_offset,
        members=members,
        raw=fixed + rest,
        warnings=tuple(notes),
    )


def read_signals(header: EdfHeader) -> tuple[Signal, ...]:
    """Describe every ordinary signal.

    Raises:
        FileError: an empty digital or physical range, or a rate that cannot be.
    """
    return tuple(_signal(header, member) for member in header.ordinary)


def read_annotations(header: EdfHeader, shift_s: float = 0.0) -> tuple[Annotation, ...]:
    """EDF+ annotations in time order, at `ANNOTATION_RATE_HZ`. Of the file, only annotations are read.

    Args:
        header: the file's header.
        shift_s: added to every onset, for annotations of another file than the signals'.

    Raises:
        ValueError: damaged annotations.
    """
    if header.num_records == 0 or all(not member.is_annotation for member in header.members):
        return ()
    import edfio

    raw = _only_annotations(header)
    try:
        read = edfio.read_bdf if header.is_bdf else edfio.read_edf
        found = read(raw, header_encoding=_ENCODING).annotations
    except DAMAGE as error:
        raise ValueError(f"{header.path}: damaged EDF+ annotations: {type(error).__name__}: {error}") from error
    times = [second for a in found for second in (a.onset + shift_s, a.duration or 0.0)]
    check_annotation_clock(1.0, times, f"{header.path}: times of EDF+ annotations")
    return tuple(
        Annotation(
            sample=round((a.onset + shift_s) * ANNOTATION_RATE_HZ),
            symbol='"',
            aux=a.text.strip(),
            duration=None if a.duration is None else round(a.duration * ANNOTATION_RATE_HZ),
        )
        for a in found
    )


def _only_annotations(header: EdfHeader) -> bytes:
    """The file without its ordinary signals, as EDF+ files of annotations alone are."""
    kept = [i for i, member in enumerate(header.members) if member.is_annotation]
    raw, end = header.raw, 256 * (1 + len(kept))
    fixed = raw[:184] + b"%-8d" % end + raw[192:236] + b"%-8d%-8d%-4d" % (header.num_records, 0, len(kept))
    fields, place = b"", 256
    for width in _FIELD_WIDTHS:
        fields += b"".join(raw[place + width * i : place + width * (i + 1)] for i in kept)
        place += width * len(header.members)
    file = header.handle.open()
    blocks = [file.decode([i])[0].reshape(header.num_records, -1) for i in kept]
    data = np.ascontiguousarray(np.concatenate(blocks, axis=1))
    if header.is_bdf:
        data = data.view(np.uint8).reshape(-1, 4)[:, :3]
    return fixed + fields + data.tobytes()


def demographics(header: EdfHeader) -> tuple[float | None, str | None]:
    """Age in years and sex from the patient field, such as `X F X Female_33yr`."""
    parts = _PATIENT.match(header.patient)
    if parts is None:
        return None, None
    age = None
    in_name = _AGE_IN_NAME.search(parts["name"] or "")
    started = re.match(r"Startdate (\d{2}-[A-Za-z]{3}-\d{4})", header.recording)
    if in_name:
        age = float(in_name[1])
    elif started and parts["birth"] != "X":
        age = _years_between(parts["birth"], started[1])
    return age, parts["sex"] if parts["sex"] != "X" else None


@dataclasses.dataclass(frozen=True)
class _Fields:
    """The text fields of a header, by their bytes."""

    path: Path
    raw: bytes

    def text(self, offset: int, length: int) -> str:
        return self.raw[offset : offset + length].decode(_ENCODING).strip()

    def whole(self, offset: int, length: int, *, least: int | None = None) -> int:
        """A whole number of at least `least`."""
        text = self.text(offset, length)
        if _WHOLE.fullmatch(text) is None or (least is not None and int(text) < least):
            limit = "" if least is None else f" of {least} or more"
            raise self.error(offset, f"a whole number{limit}", length)
        return int(text)

    def number(self, offset: int, length: int) -> float:
        """A finite number."""
        text = self.text(offset, length)
        if _NUMBER.fullmatch(text) is None or not math.isfinite(float(text)):
            raise self.error(offset, "a number", length)
        return float(text)

    def error(self, offset: int, expected: str, length: int) -> FileError:
        return FileError(str(self.path), offset, expected, repr(self.raw[offset : offset + length]))


def _member(fields: _Fields, i: int, count: int, is_bdf: bool) -> _Member:
    label = fields.text(256 + 16 * i, 16)
    annotation = label == ("BDF Annotations" if is_bdf else "EDF Annotations")
    samples = fields.whole(256 + count * 216 + 8 * i, 8, least=1)
    # From the physical minimum on, four fields of 8 bytes for every signal.
    at = [256 + count * (104 + 8 * k) + 8 * i for k in range(4)]
    return _Member(
        label=label,
        unit=fields.text(256 + count * 96 + 8 * i, 8),
        physical_range=(0.0, 0.0) if annotation else (fields.number(at[0], 8), fields.number(at[1], 8)),
        digital_range=(0, 0) if annotation else (fields.whole(at[2], 8), fields.whole(at[3], 8)),
        samples_per_record=samples,
        is_annotation=annotation,
    )


def _count_records(path: Path, data_offset: int, record_bytes: int, stated: int) -> tuple[int, list[str]]:
    """The whole data records in the file, which must be as many as the header states or more."""
    size = path.stat().st_size
    expected = data_offset + max(stated, 0) * record_bytes
    if size < expected:
        raise FileError(
            str(path),
            size,
            f"{expected} bytes ({stated} data records of {record_bytes} bytes from byte {data_offset}), "
            "as the header promises",
            f"{size} bytes: truncated. Fetch the file again",
        )
    records = (size - data_offset) // record_bytes if record_bytes else 0
    notes = []
    if stated < 0:
        notes.append("the header states no number of data records; those in the file are counted")
    elif records > stated:
        notes.append(f"the header states {stated} data records; all {records} in the file are read")
    rest = size - data_offset - records * record_bytes
    if rest and stated >= 0:
        notes.append(f"{rest} bytes after the last data record are ignored")
    return records, notes


def _start(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(text, "%d.%m.%y%H.%M.%S")
    except ValueError:
        return None


def _years_between(birth: str, start: str) -> float | None:
    try:
        first, last = (datetime.datetime.strptime(text.title(), "%d-%b-%Y") for text in (birth, start))
    except ValueError:
        return None
    return (last - first).days / 365.2425 if last >= first else None


def _signal(header: EdfHeader, index: int) -> Signal:
    member, count = header.members[index], len(header.members)
    (low, high), (least, most) = member.physical_range, member.digital_range
    gain = (most - least) / (high - low) if high != low else 0.0
    baseline = most - high * gain
    if not MIN_GAIN <= abs(gain) <= MAX_GAIN or not abs(baseline) <= MAX_BASELINE:
        raise FileError(
            str(header.path),
            256 + count * 104 + 8 * index,
            f"physical and digital ranges of signal {index} ({member.label}) that both span something, "
            f"with {MIN_GAIN:g} to {MAX_GAIN:g} digital steps per unit and a baseline up to {MAX_BASELINE:g}",
            f"physical range {member.physical_range}, digital range {member.digital_range}",
        )
    rate_hz = member.samples_per_record / header.record_duration_s
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise FileError(
            str(header.path),
            256 + count * 216 + 8 * index,
            f"{MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} samples per second of signal {index} ({member.label})",
            f"{member.samples_per_record} in {header.record_duration_s:g} s",
        )
    return Signal(
        name=member.label,
        rate_hz=rate_hz,
        unit=member.unit,
        gain=gain,
        baseline=baseline,
        num_samples=member.samples_per_record * header.num_records,
    )
