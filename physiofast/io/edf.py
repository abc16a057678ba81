"""EDF, EDF+C and BDF files; annotations through edfio. Format: https://www.edfplus.info/specs/edfplus.html."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.engine import Calibration
from physiofast.engine.edf_header import (
    ENCODING,
    FIELD_WIDTHS,
    EdfFields,
    MemberFields,
    edf_header_bytes,
    parse_edf_header,
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

_PATIENT = re.compile(r"(?P<code>\S+) (?P<sex>[FMX]) (?P<birth>X|\d{2}-[A-Za-z]{3}-\d{4})(?: (?P<name>\S+))?")
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
    members: tuple[MemberFields, ...]
    """Every signal of a data record, in order, those of annotations too."""
    raw: bytes
    """The header itself."""
    warnings: tuple[str, ...]
    handle: Handle = dataclasses.field(init=False, repr=False, compare=False)
    """The file for the engine."""

    def __post_init__(self) -> None:
        counts = tuple(member.samples_per_record for member in self.members)
        handle = Handle(self.path, 24 if self.is_bdf else 16, counts, self.num_records, self.data_offset)
        object.__setattr__(self, "handle", handle)

    @property
    def ordinary(self) -> tuple[int, ...]:
        """Which members are signals and not annotations."""
        return tuple(i for i, member in enumerate(self.members) if not member.is_annotation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdfReader:
    """Samples of an EDF or BDF file, read by position."""

    header: EdfHeader
    signals: tuple[Signal, ...]
    _calibration: Calibration = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        gain, baseline = [1.0] * len(self.header.members), [0.0] * len(self.header.members)
        for member, signal in zip(self.header.ordinary, self.signals, strict=True):
            gain[member], baseline[member] = signal.gain, signal.baseline
        object.__setattr__(self, "_calibration", Calibration(gain, baseline, [None] * len(gain)))

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


def read_header(path: Path) -> EdfHeader:
    """Read and check a header.

    Raises:
        OSError: no such file.
        FileError: not EDF or BDF, discontinuous (EDF+D), truncated, longer than `MAX_DURATION_S`, or at which byte a
            field is damaged.
    """
    with open(path, "rb") as file:
        raw = file.read(256)
        raw += file.read(edf_header_bytes(raw) - 256)
        fields = parse_edf_header(raw, os.fstat(file.fileno()).st_size, path)
    return EdfHeader(
        path=path,
        patient=fields.patient,
        recording=fields.recording,
        start=_start(fields.start),
        is_bdf=fields.is_bdf,
        record_duration_s=fields.record_duration_s,
        num_records=fields.num_records,
        data_offset=fields.data_offset,
        members=fields.members,
        raw=raw,
        warnings=tuple(_notes(fields)),
    )


def read_signals(header: EdfHeader) -> tuple[Signal, ...]:
    """Describe every ordinary signal."""
    return tuple(
        Signal(
            name=member.label,
            rate_hz=member.samples_per_record / header.record_duration_s,
            unit=member.unit,
            gain=member.gain,
            baseline=member.baseline,
            num_samples=member.samples_per_record * header.num_records,
        )
        for member in header.members
        if not member.is_annotation
    )


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
        found = read(raw, header_encoding=ENCODING).annotations
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
    for width in FIELD_WIDTHS:
        fields += b"".join(raw[place + width * i : place + width * (i + 1)] for i in kept)
        place += width * len(header.members)
    file = header.handle.open()
    blocks = [file.decode([i])[0].reshape(header.num_records, -1) for i in kept]
    data = np.ascontiguousarray(np.concatenate(blocks, axis=1))
    if header.is_bdf:
        data = data.view(np.uint8).reshape(-1, 4)[:, :3]
    return fixed + fields + data.tobytes()


def patient_code(header: EdfHeader) -> str | None:
    """The hospital's code of the patient, where the patient field is as EDF+ has it: `MCH-0234567 F 02-MAY-1951 X`."""
    parts = _PATIENT.match(header.patient)
    return parts["code"] if parts else None


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


def _notes(fields: EdfFields) -> Iterator[str]:
    stated = fields.stated_records
    if stated < 0:
        yield "the header states no number of data records; those in the file are counted"
    elif fields.num_records > stated:
        yield f"the header states {stated} data records; all {fields.num_records} in the file are read"
    if fields.rest_bytes and stated >= 0:
        yield f"{fields.rest_bytes} bytes after the last data record are ignored"


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
