"""EDF, EDF+C and BDF files through edfio. Format: https://www.edfplus.info/specs/edfplus.html."""

from __future__ import annotations

import dataclasses
import datetime
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.io.recording import Annotation, Digital, Physical, Signal, Span, to_physical

ANNOTATION_RATE_HZ = 1000.0
"""EDF+ states onsets in seconds; they are kept in whole milliseconds."""

_ENCODING = "latin-1"  # the standard says ASCII, real headers have `µV`
_PATIENT = re.compile(r"\S+ (?P<sex>[FMX]) (?P<birth>X|\d{2}-[A-Za-z]{3}-\d{4})(?: (?P<name>\S+))?")
_AGE_IN_NAME = re.compile(r"_(\d{1,3})yr")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdfHeader:
    """The fixed part of an EDF or BDF header."""

    path: Path
    patient: str
    recording: str
    start: datetime.datetime | None
    """Start of the recording to the second; None when the header's date or time is not one."""
    is_bdf: bool
    record_duration_s: float
    num_records: int
    labels: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdfReader:
    """Samples of an EDF or BDF file. EDF is memory-mapped; a BDF file is read whole (24-bit samples)."""

    header: EdfHeader
    signals: tuple[Signal, ...]

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span: int16 for EDF, int32 for BDF."""
        edf = open_edf(self.header)
        stored = edf.signals
        return [_slice(stored[i], self.signals[i], start, stop) for i, start, stop in spans]

    def physical(self, spans: Sequence[Span], dtype: npt.DTypeLike) -> list[Physical]:
        """The physical values of each span."""
        digital = self.digital(spans)
        return [
            to_physical(self.signals[span[0]], x).astype(dtype, copy=False)
            for span, x in zip(spans, digital, strict=True)
        ]

    def source(self, signal: int) -> None:
        """None."""


def read_header(path: Path) -> EdfHeader:
    """Read and check the fixed header.

    Raises:
        ValueError: not EDF or BDF, discontinuous (EDF+D), truncated, or a damaged field (at which byte).
    """
    with path.open("rb") as file:
        fixed = file.read(256)
        if len(fixed) < 256 or fixed[:8] not in (b"0       ", b"\xffBIOSEMI"):
            raise ValueError(f"{path}: not an EDF or BDF file: it begins with {fixed[:8]!r}")
        count = _number(path, fixed, 252, 4)
        rest = file.read(count * 256)
    reserved = fixed[192:236].decode(_ENCODING).strip()
    if reserved.startswith(("EDF+D", "BDF+D")):
        raise ValueError(
            f"{path}: a discontinuous file ({reserved[:5]}), whose gaps have no samples; only EDF, EDF+C and "
            "BDF are read. Convert it to EDF+C, with the gaps filled or as one file per part"
        )
    if len(rest) < count * 256:
        raise ValueError(f"{path}: truncated: {count} signal headers end at byte {256 + count * 256}, the file before")
    labels = tuple(rest[16 * i : 16 * i + 16].decode(_ENCODING).strip() for i in range(count))
    duration_s = _float(path, fixed, 244, 8)
    if duration_s <= 0 and not set(labels) <= {"EDF Annotations", "BDF Annotations"}:
        raise ValueError(f"{path}: byte 244: data records last {duration_s} s, so signals have no rate")
    is_bdf = fixed[:1] == b"\xff"
    per_record = sum(_number(path, rest, count * 216 + 8 * i, 8, 256) for i in range(count))
    records = _number(path, fixed, 236, 8)
    record_bytes = per_record * (3 if is_bdf else 2)
    notes = _check_size(path, 256 + count * 256, record_bytes, records)
    return EdfHeader(
        path=path,
        patient=fixed[8:88].decode(_ENCODING).strip(),
        recording=fixed[88:168].decode(_ENCODING).strip(),
        start=_start(fixed[168:184].decode(_ENCODING)),
        is_bdf=is_bdf,
        record_duration_s=duration_s,
        num_records=records,
        labels=labels,
        warnings=tuple(notes),
    )


def open_edf(header: EdfHeader) -> Any:
    """The file as edfio reads it, samples not yet loaded where the format allows."""
    import edfio

    with warnings.catch_warnings():
        # What it warns of, bytes after the last record, is in the recording's own warnings.
        warnings.simplefilter("ignore")
        try:
            if header.is_bdf:
                return edfio.read_bdf(header.path, header_encoding=_ENCODING)
            return edfio.read_edf(header.path, lazy_load_data=True, header_encoding=_ENCODING)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{header.path}: edfio cannot read it: {error}") from error


def read_signals(header: EdfHeader, edf: Any) -> tuple[Signal, ...]:
    """Describe every ordinary signal.

    Raises:
        ValueError: an empty digital or physical range.
    """
    return tuple(_signal(header, i, signal, edf.num_data_records) for i, signal in enumerate(edf.signals))


def read_annotations(header: EdfHeader, edf: Any, shift_s: float = 0.0) -> tuple[Annotation, ...]:
    """EDF+ annotations in time order, at `ANNOTATION_RATE_HZ`.

    Args:
        header: the file's header.
        edf: the file as `open_edf` gave it.
        shift_s: added to every onset, for annotations of another file than the signals'.

    Raises:
        ValueError: damaged annotations.
    """
    try:
        found = edf.annotations
    except ValueError as error:
        raise ValueError(f"{header.path}: damaged EDF+ annotations: {error}") from error
    return tuple(
        Annotation(
            sample=round((a.onset + shift_s) * ANNOTATION_RATE_HZ),
            symbol='"',
            aux=a.text.strip(),
            duration=None if a.duration is None else round(a.duration * ANNOTATION_RATE_HZ),
        )
        for a in found
    )


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


def _number(path: Path, raw: bytes, offset: int, length: int, base: int = 0) -> int:
    text = raw[offset : offset + length]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{path}: byte {base + offset}: expected a whole number, found {text!r}") from None


def _float(path: Path, raw: bytes, offset: int, length: int) -> float:
    text = raw[offset : offset + length]
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: byte {offset}: expected a number, found {text!r}") from None


def _check_size(path: Path, header_bytes: int, record_bytes: int, records: int) -> list[str]:
    found = path.stat().st_size
    if records < 0:
        return ["the header states no number of data records; those in the file are counted"]
    expected = header_bytes + records * record_bytes
    if found < expected:
        raise ValueError(
            f"{path}: truncated: the header promises {records} data records of {record_bytes} bytes, so "
            f"{expected} bytes; found {found}. Fetch the file again"
        )
    if found > expected:
        return [f"{found - expected} bytes after the last data record are ignored"]
    return []


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


def _signal(header: EdfHeader, i: int, signal: Any, records: int) -> Signal:
    digital, physical = signal.digital_range, signal.physical_range
    if digital.max == digital.min or physical.max == physical.min:
        raise ValueError(
            f"{header.path}: signal {i} ({signal.label}) has no gain: physical range {tuple(physical)}, "
            f"digital range {tuple(digital)}; both must span something"
        )
    gain = (digital.max - digital.min) / (physical.max - physical.min)
    return Signal(
        name=signal.label.strip(),
        rate_hz=float(signal.sampling_frequency),
        unit=signal.physical_dimension.strip(),
        gain=gain,
        baseline=digital.max - physical.max * gain,
        num_samples=signal.samples_per_data_record * records,
    )


def _slice(stored: Any, signal: Signal, start: int, stop: int) -> Digital:
    if start == stop:
        return np.empty(0, np.int16)
    if stop - start == signal.num_samples:
        return np.asarray(stored.digital)
    return np.asarray(stored.get_digital_slice(start / signal.rate_hz, stop / signal.rate_hz))
