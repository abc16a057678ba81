"""Reads EDF, EDF+ and BDF files. Format: https://www.edfplus.info/specs/edfplus.html."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from physiofast.engine import Calibration, FileError
from physiofast.engine.edf_header import EdfFields, MemberFields, edf_header_bytes, parse_edf_header
from physiofast.engine.header_text import decoded
from physiofast.io.edf_annotations import MOST_DRIFT_S, AnnotationLists, drift_s, first_break, read_lists
from physiofast.io.handles import Handle
from physiofast.io.recording import (
    Annotation,
    Digital,
    Physical,
    Signal,
    Source,
    Span,
    check_annotation_clock,
)

ANNOTATION_RATE_HZ = 1000.0
"""Annotation clock of EDF+ files, whose onsets are decimal seconds: they are rounded to milliseconds."""

_PATIENT = re.compile(r"(?P<code>\S+) (?P<sex>[FMX]) (?P<birth>X|\d{2}-[A-Za-z]{3}-\d{4})(?: (?P<name>\S+))?")
_THREE_NUMBERS = re.compile(r"(\d{1,2})[.:/-](\d{1,2})[.:/-](\d{2})")
_FIRST_YEAR = 85
"""Two-digit years from this one on are of the 20th century, by the specification."""
_DAY_S = 86_400.0
_AGE_IN_NAME = re.compile(r"_(\d{1,3})yr")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdfHeader:
    """An EDF or BDF header, checked against the size of its file."""

    path: Path
    patient: str
    recording: str
    start_date: datetime.date | None
    """Start date; None if the header's date is invalid, as in de-identified files."""
    start_time: datetime.timedelta | None
    """Start time since midnight, to the second; None if the header's time is invalid."""
    is_bdf: bool
    is_discontinuous: bool
    """Whether the header declares the file discontinuous (EDF+D); it may have no gaps all the same."""
    record_duration_s: float
    num_records: int
    """Number of whole data records in the file."""
    data_offset: int
    """Byte offset of the first data record."""
    members: tuple[MemberFields, ...]
    """Every signal of a data record, in order, including annotation signals."""
    warnings: tuple[str, ...]
    handle: Handle = dataclasses.field(init=False, repr=False, compare=False)
    """Handle of the file, for reading samples."""

    def __post_init__(self) -> None:
        counts = tuple(member.samples_per_record for member in self.members)
        handle = Handle(self.path, 8 * self.sample_bytes, counts, self.num_records, self.data_offset)
        object.__setattr__(self, "handle", handle)

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample: 3 in BDF, 2 in EDF."""
        return 3 if self.is_bdf else 2

    @property
    def ordinary(self) -> tuple[int, ...]:
        """Indices of the members that are signals with physical values, and not annotations."""
        return tuple(i for i, member in enumerate(self.members) if not member.is_annotation and not member.unusable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdfReader:
    """Reads samples of an EDF or BDF file by position."""

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
        """The location of a signal's samples."""
        return Source(file=self.header.handle.open(), channel=self.header.ordinary[signal], skew=0)

    def _read(self, spans: Sequence[Span], **options: Any) -> list[Any]:
        members = self.header.ordinary
        first, last = [start for _, start, _ in spans], [stop for _, _, stop in spans]
        return self.header.handle.open().decode_runs([members[i] for i, _, _ in spans], first, last, **options)


def read_header(path: Path) -> EdfHeader:
    """Read and check a header.

    Raises:
        OSError: no such file.
        FileError: not EDF or BDF, truncated, longer than `MAX_DURATION_S`, or a damaged field; the message has its
            byte offset.
    """
    with open(path, "rb") as file:
        raw = file.read(256)
        raw += file.read(edf_header_bytes(raw) - 256)
        fields = parse_edf_header(raw, os.fstat(file.fileno()).st_size, path)
    start_date, start_time = _start(fields.start)
    return EdfHeader(
        path=path,
        patient=_text(fields.patient),
        recording=_text(fields.recording),
        start_date=start_date,
        start_time=start_time,
        is_bdf=fields.is_bdf,
        is_discontinuous=fields.is_discontinuous,
        record_duration_s=fields.record_duration_s,
        num_records=fields.num_records,
        data_offset=fields.data_offset,
        members=tuple(m._replace(label=_text(m.label), unit=_text(m.unit)) for m in fields.members),
        warnings=tuple(_notes(fields)),
    )


def _text(latin: str) -> str:
    """Decode a text field as UTF-8 or Latin-1, which writers use although the format is ASCII."""
    return decoded(latin.encode("latin-1"))


def read_signals(header: EdfHeader) -> tuple[Signal, ...]:
    """Describe the signals whose indices are `EdfHeader.ordinary`."""
    return tuple(
        Signal(
            name=member.label,
            rate_hz=_rate_hz(member.samples_per_record, header.record_duration_s),
            unit=member.unit,
            gain=member.gain,
            baseline=member.baseline,
            num_samples=member.samples_per_record * header.num_records,
            limits=(member.digital_min, member.digital_max),
        )
        for member in (header.members[i] for i in header.ordinary)
    )


def _rate_hz(samples: int, seconds: float) -> float:
    """The sampling rate from a decimal duration, without rounding errors: 110 samples in 1.1 s are exactly 100 Hz."""
    return float(samples / Fraction(repr(seconds)))


def read_annotations(header: EdfHeader) -> AnnotationLists:
    """Read EDF+ annotations and the time stamps of data records; other signals are not read."""
    kept = [i for i, member in enumerate(header.members) if member.is_annotation]
    if header.num_records == 0 or not kept:
        return AnnotationLists([], [], [])
    file = header.handle.open()
    blocks = [_stored_bytes(file.decode([i])[0], header) for i in kept]
    return read_lists([row.tobytes() for row in rows] for rows in zip(*blocks, strict=True))


def _stored_bytes(samples: npt.NDArray[Any], header: EdfHeader) -> npt.NDArray[np.uint8]:
    """Convert decoded samples of a signal back to bytes, uint8 [records, bytes per record]."""
    stored = samples.view(np.uint8).reshape(samples.size, -1)[:, : header.sample_bytes]
    return np.ascontiguousarray(stored).reshape(header.num_records, -1)


def on_the_clock(lists: AnnotationLists, shift_s: float, path: Path) -> list[Annotation]:
    """Convert annotations to the clock of `ANNOTATION_RATE_HZ`.

    Args:
        lists: the annotations of a file, in time order.
        shift_s: time in that file's header minus time of the signals' first sample.
        path: the file, for error messages.

    Raises:
        ValueError: annotations at times out of range.
    """
    onsets = [text.onset_s + shift_s for text in lists.texts]
    check_annotation_clock(1.0, onsets, f"{path}: onsets of EDF+ annotations")
    return [
        Annotation(
            sample=round((text.onset_s + shift_s) * ANNOTATION_RATE_HZ),
            symbol='"',
            aux=text.text,
            duration=None if text.duration_s is None else round(text.duration_s * ANNOTATION_RATE_HZ),
        )
        for text in lists.texts
    ]


class Begin(NamedTuple):
    """The start of a file's data, relative to a time in a header."""

    seconds: float
    """Seconds from that time to the start of the data."""
    notes: tuple[str, ...]
    """Warnings to show the user."""


def first_sample(header: EdfHeader, lists: AnnotationLists) -> Begin:
    """The start of the first sample after the time in the header, from the first data record's time stamp.

    Raises:
        FileError: time stamps show gaps between data records, or are missing in a file that may have gaps (EDF+D).
    """
    stamps = lists.starts_s
    if not header.ordinary or not (stamps or header.is_discontinuous):
        return Begin(0.0, ())
    if header.is_discontinuous and header.num_records > 1:
        _need_stamps(header, stamps)
    notes = _breaks(header, stamps)
    seconds = 0.0 if not stamps or math.isnan(stamps[0]) else stamps[0]
    if abs(seconds) >= 1:
        side = "after" if seconds > 0 else "before"
        notes.append(
            f"the first data record begins {abs(seconds):g} s {side} the time in the header, by its time stamp"
        )
    return Begin(seconds, tuple(notes))


def _need_stamps(header: EdfHeader, stamps: Sequence[float]) -> None:
    """Refuse a file that may have gaps if a data record has no time stamp."""
    unstated = next((i for i, stamp in enumerate(stamps) if math.isnan(stamp)), None if stamps else 0)
    if unstated is not None:
        raise _discontinuous(header, unstated, "has no time stamp")


def _breaks(header: EdfHeader, stamps: Sequence[float]) -> list[str]:
    """Warn about time stamps that do not fit the data records' durations but may be ignored; refuse others."""
    found = first_break(stamps, header.record_duration_s)
    if found is not None:
        side = "after" if found.gap_s > 0 else "before"
        what = f"begins {abs(found.gap_s):g} s {side} the end of the one before it, by its time stamp"
        if header.is_discontinuous or found.gap_s > 0:
            raise _discontinuous(header, found.record, what)
        return [f"data record {found.record} {what}; taken to follow it"]
    drift = drift_s(stamps, header.record_duration_s)
    if abs(drift) <= MOST_DRIFT_S:
        return []
    if header.is_discontinuous:
        last = f"begins {drift:g} s off where records without gaps before it would end, by its time stamp"
        raise _discontinuous(header, len(stamps) - 1, last)
    return [
        f"time stamps of data records run {drift:g} s away from what these last in all; signals have their rates, "
        "annotations their times"
    ]


def _discontinuous(header: EdfHeader, record: int, what: str) -> FileError:
    samples = record * sum(member.samples_per_record for member in header.members)
    return FileError(
        str(header.path),
        header.data_offset + samples * header.sample_bytes,
        "data records that follow each other without gaps",
        f"data record {record}, which {what}: a discontinuous file. Fill its gaps, or make it one file per part",
    )


def begin_of_hypnogram(header: EdfHeader, signals: EdfHeader, end_s: float) -> Begin:
    """The start of a hypnogram after the time in the header of the signals.

    Dates and times of both headers are used if the hypnogram then begins within half a day of the signals' start, or
    before their end. If a date is invalid or implausible, only the times of day are used, and the hypnogram begins at
    most half a day before or after the signals.

    Args:
        header: header of the hypnogram.
        signals: header of the signals.
        end_s: end of the signals in seconds after the time in their header.
    """
    name, of = header.path.name, signals.path.name
    if header.start_time is None or signals.start_time is None:
        which = name if header.start_time is None else of
        return Begin(0.0, (f"the header of {which} states no time of day; {name} is taken to begin with the signals",))
    by_clock = header.start_time - signals.start_time
    nearest_s = (by_clock.total_seconds() + _DAY_S / 2) % _DAY_S - _DAY_S / 2
    if header.start_date is None or signals.start_date is None:
        which = name if header.start_date is None else of
        reason = f"the header of {which} states no date"
    else:
        by_date_s = (header.start_date - signals.start_date + by_clock).total_seconds()
        if -_DAY_S / 2 < by_date_s <= max(end_s, _DAY_S / 2):
            return Begin(by_date_s, ())
        side = "before" if by_date_s < 0 else "after"
        reason = f"{name} begins {abs(by_date_s) / 3600:.1f} h {side} the signals by the dates in both headers"
    side = "before" if nearest_s < 0 else "after"
    return Begin(
        nearest_s,
        (f"{reason}; taken to begin {abs(nearest_s) / 3600:.1f} h {side} them, by the times of day",),
    )


def patient_code(header: EdfHeader) -> str | None:
    """The patient code from a patient field of EDF+ form, `MCH-0234567 F 02-MAY-1951 X`; None for other forms."""
    parts = _PATIENT.match(header.patient)
    return parts["code"] if parts else None


def demographics(header: EdfHeader) -> tuple[float | None, str | None]:
    """Age in years and sex from the patient field, such as `X F X Female_33yr`; None for what it does not state."""
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
    if fields.rest_bytes:
        yield f"{fields.rest_bytes} bytes after the last data record are ignored"
    for i, member in enumerate(fields.members):
        if member.unusable:
            yield f"signal {i} ({member.label}) is left out: no physical values follow from its {member.unusable}"


def _start(text: str) -> tuple[datetime.date | None, datetime.timedelta | None]:
    """Parse date and time from `dd.mm.yyhh.mm.ss`; each is None if invalid."""
    date, time = (_THREE_NUMBERS.fullmatch(part.strip("\0 ")) for part in (text[:8], text[8:]))
    start_date = start_time = None
    if date is not None:
        day, month, year = map(int, date.groups())
        with contextlib.suppress(ValueError):
            start_date = datetime.date(year + (1900 if year >= _FIRST_YEAR else 2000), month, day)
    if time is not None:
        hours, minutes, seconds = map(int, time.groups())
        if hours < 24 and minutes < 60 and seconds < 60:
            start_time = datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return start_date, start_time


def _years_between(birth: str, start: str) -> float | None:
    try:
        first, last = (datetime.datetime.strptime(text.title(), "%d-%b-%Y") for text in (birth, start))
    except ValueError:
        return None
    return (last - first).days / 365.2425 if last >= first else None
