"""WFDB headers and annotations. Format: https://physionet.org/physiotools/wag/header-5.htm."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from physiofast.engine import FORMATS
from physiofast.io.recording import (
    MAX_BASELINE,
    MAX_DURATION_S,
    MAX_GAIN,
    MAX_GAP_SAMPLES,
    MAX_RATE_HZ,
    MIN_GAIN,
    MIN_RATE_HZ,
    Annotation,
    SampleReader,
    Signal,
    check_annotation_clock,
)
from physiofast.io.wfdb_samples import (
    INVALID,
    NO_SAMPLE,
    Check,
    MemberFile,
    Segment,
    SegmentReader,
    WfdbReader,
    read_by_wfdb,
)

ANNOTATORS = ("arousal", "st", "atr")
"""Annotators looked for, in this order, when none is named."""

_LINE_ENDS = re.compile(rb"[\n\r\x0b\x0c\x1c-\x1e]")
_CALIBRATION = re.compile(r"(?P<gain>[^(/]*)(?:\([^)]*\))?(?:/(?P<unit>.*))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WfdbHeader:
    """A record as its header describes it."""

    signals: tuple[Signal, ...]
    reader: SampleReader
    rate_hz: float
    """Frames per second, which is also the default clock of annotations."""
    comments: tuple[str, ...]
    files: tuple[Path, ...]
    """Headers and signal files that exist."""
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WfdbAnnotations:
    """An annotation file as read."""

    annotations: tuple[Annotation, ...]
    rate_hz: float
    path: Path


def read_header(header: Path, sentinels: bool | None = None) -> WfdbHeader:
    """Read a header and, of a multi-segment record, those of its segments.

    Args:
        header: the `.hea` file.
        sentinels: as `open_recording` has it.

    Raises:
        FileNotFoundError: no such file.
        FileError: a signal file that is shorter than the header says.
        ValueError: not a WFDB header, a signal line missing, or a rate, length, gain or baseline that cannot be.
    """
    lines = _header_lines(header)
    record = read_by_wfdb(f"{header}: not a WFDB header that can be read", "rdheader", str(header.with_suffix("")))
    _check_clock(header, record)
    if hasattr(record, "seg_name"):
        return _read_segments(header, record, sentinels)
    if len(lines) - 1 < record.n_sig:
        raise ValueError(f"{header}: promises {record.n_sig} signals, but has {len(lines) - 1} signal lines")
    for i, count in enumerate(record.samps_per_frame or ()):
        if not 1 <= count <= MAX_RATE_HZ / record.fs:
            raise ValueError(
                f"{header}: signal {i} has {count} samples in each of {record.fs} frames per second; "
                f"expected 1 or more, and at most {MAX_RATE_HZ:g} samples per second"
            )
    return _read_signals(header, record, lines[1:], sentinels)


def read_annotations(header: Path, rate_hz: float, annotator: str) -> WfdbAnnotations:
    """Read one annotation file.

    Args:
        header: the record's `.hea` file.
        rate_hz: clock to assume when the annotation file states none.
        annotator: suffix of the annotation file, such as `arousal`.

    Raises:
        FileNotFoundError: the record has no such annotator.
        ValueError: a damaged annotation file.
    """
    path = header.with_suffix(f".{annotator}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    name = str(header.with_suffix(""))
    found = read_by_wfdb(f"{path}: not a WFDB annotation file that can be read", "rdann", name, annotator)
    clock_hz = float(found.fs or rate_hz)
    check_annotation_clock(clock_hz, found.sample.tolist(), str(path))
    annotations = tuple(
        Annotation(sample=int(sample), symbol=symbol, aux=aux.rstrip("\x00").strip())
        for sample, symbol, aux in zip(found.sample, found.symbol, found.aux_note, strict=True)
    )
    return WfdbAnnotations(annotations=annotations, rate_hz=clock_hz, path=path)


def segment_names(header: Path) -> tuple[str, ...]:
    """Names of the records that a multi-segment header joins; empty for an ordinary header."""
    lines = _header_lines(header)
    if "/" not in lines[0].split()[0]:
        return ()
    return tuple(line.split()[0] for line in lines[1:])


def _check_clock(header: Path, record: Any) -> None:
    """Refuse rates and lengths that cannot be, before anything is reckoned with them."""
    if not MIN_RATE_HZ <= record.fs <= MAX_RATE_HZ:
        raise ValueError(
            f"{header}: sampling rate: expected {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz, found {record.fs} Hz"
        )
    most = int(MAX_DURATION_S * record.fs)
    lengths = {"number of samples per signal": record.sig_len or 0}
    if hasattr(record, "seg_name"):
        lengths |= {f"length of segment {i}": int(length) for i, length in enumerate(record.seg_len)}
        lengths["length of all segments"] = sum(map(int, record.seg_len))
    for i, skew in enumerate(getattr(record, "skew", None) or ()):
        lengths[f"skew of signal {i}"] = skew or 0
    for name, found in lengths.items():
        if not 0 <= found <= most:
            raise ValueError(
                f"{header}: {name}: expected 0 to {most}, which is {MAX_DURATION_S:g} s at {record.fs:g} Hz, "
                f"found {found}"
            )


def _header_lines(header: Path) -> list[str]:
    """Lines that are neither comments nor empty; those that wfdb sees, which leaves out all that is not ASCII."""
    raw = header.read_bytes()
    try:
        encoding = "utf-8" if raw.decode("utf-8") else "ascii"
    except UnicodeDecodeError:
        encoding = "latin-1"
    plain = [(line, line.decode("ascii", "ignore").strip()) for line in _LINE_ENDS.split(raw)]
    lines = [line.decode(encoding).strip() for line, seen in plain if seen and not seen.startswith("#")]
    if not lines:
        raise ValueError(f"{header}: an empty WFDB header")
    return lines


def _read_signals(header: Path, record: Any, lines: Sequence[str], sentinels: bool | None) -> WfdbHeader:
    warnings: list[str] = []
    frames, states_length = _frames(header, record, warnings)
    signals = tuple(
        dataclasses.replace(
            _signal(header, record, i, lines[i], frames, warnings), invalid=_invalid(record, i, sentinels)
        )
        for i in range(record.n_sig)
    )
    checks = tuple(
        Check(initial_value=record.init_value[i], checksum=record.checksum[i], skew=record.skew[i] or 0)
        for i in range(record.n_sig)
    )
    files = _signal_files(header, record, frames, states_length)
    for file in files:
        if not file.path.is_file():
            warnings.append(f"signal file {file.path.name} is missing, so no sample can be read")
        else:
            file.check_size()
    _check_duration(header, float(record.fs), frames)
    return WfdbHeader(
        signals=signals,
        reader=WfdbReader(header=header, signals=signals, checks=checks, files=files),
        rate_hz=float(record.fs),
        comments=tuple(record.comments),
        files=(header, *(file.path for file in files if file.path.is_file())),
        warnings=tuple(warnings),
    )


def _frames(header: Path, record: Any, warnings: list[str]) -> tuple[int, bool]:
    """Frames in the record, and whether the header states them (absent or 0 means it does not)."""
    if record.sig_len or not record.n_sig or record.file_name[0] == "~":
        return record.sig_len or 0, True
    path = header.parent / record.file_name[0]
    known = int(record.fmt[0]) if record.fmt[0].isdigit() else 0
    if not path.is_file() or known not in FORMATS:
        warnings.append(f"length unknown: {header.name} states none and {path.name} cannot tell")
        return 0, True
    width = sum(k for name, k in zip(record.file_name, record.samps_per_frame, strict=True) if name == path.name)
    data_bytes = path.stat().st_size - (record.byte_offset[0] or 0)
    return FORMATS[known].num_samples(max(data_bytes, 0)) // width, False


def _check_duration(header: Path, rate_hz: float, frames: int) -> None:
    """What a header that states no length leaves to the size of its first file."""
    most = int(MAX_DURATION_S * rate_hz)
    if frames > most:
        raise ValueError(
            f"{header}: signal file: expected at most {most} samples per signal, which is {MAX_DURATION_S:g} s at "
            f"{rate_hz:g} Hz, found {frames}"
        )


def _signal(header: Path, record: Any, i: int, line: str, frames: int, warnings: list[str]) -> Signal:
    name = (record.sig_name[i] or f"signal {i}").strip()
    fields = re.split(r"[ \t]+", line)
    # wfdb reads a gain of 0 as 200, and drops the µ of µV, so these two are read here.
    parts = _CALIBRATION.fullmatch(fields[2]) if len(fields) > 2 else None
    gain, unit = (parts["gain"], parts["unit"]) if parts else ("", None)
    if not gain:
        warnings.append(f"signal {i} ({name}) states no gain; WFDB's default of 200 per mV is assumed")
    elif float(gain) == 0:
        raise ValueError(
            f"{header}: signal {i} ({name}) has gain 0, so its samples have no unit; "
            "write its digital steps per unit into the third field of its line"
        )
    if record.fmt[i] not in INVALID:
        raise ValueError(f"{header}: signal {i} ({name}) has format {record.fmt[i]}; allowed: {', '.join(INVALID)}")
    _check_calibration(f"{header}: signal {i} ({name})", record.adc_gain[i], record.baseline[i])
    return Signal(
        name=name,
        rate_hz=float(record.fs) * record.samps_per_frame[i],
        unit=unit or record.units[i],
        gain=float(record.adc_gain[i]),
        baseline=float(record.baseline[i]),
        num_samples=frames * record.samps_per_frame[i],
    )


def _check_calibration(where: str, gain: float, baseline: float) -> None:
    """Not-a-number fails every comparison."""
    if not MIN_GAIN <= abs(gain) <= MAX_GAIN:
        raise ValueError(
            f"{where}: gain: expected a finite number of magnitude {MIN_GAIN:g} to {MAX_GAIN:g}, found {gain}"
        )
    if not abs(baseline) <= MAX_BASELINE:
        raise ValueError(f"{where}: baseline: expected a magnitude up to {MAX_BASELINE:g}, found {float(baseline):g}")


def _invalid(record: Any, i: int, sentinels: bool | None) -> int | None:
    """The digital value of signal i that means "no sample"."""
    value = INVALID[record.fmt[i]]
    if sentinels is None:
        # The Challenge stores SaO2 with -32768 as a valid 0 %. What skew leaves out needs a value, though.
        sentinels = record.fmt[i] != "16" or record.baseline[i] != value or bool(record.skew[i])
    return value if sentinels else None


def _signal_files(header: Path, record: Any, frames: int, states_length: bool) -> tuple[MemberFile, ...]:
    members: dict[str, list[int]] = {}
    for i in range(record.n_sig):
        members.setdefault(record.file_name[i], []).append(i)
    return tuple(
        MemberFile(
            header=header,
            path=header.parent / name,
            format=record.fmt[signals[0]],
            byte_offset=record.byte_offset[signals[0]] or 0,
            members=tuple(signals),
            samples_per_frame=tuple(record.samps_per_frame[i] for i in signals),
            initial_values=tuple(record.init_value[i] or 0 for i in signals),
            frames=frames,
            states_length=states_length,
        )
        for name, signals in members.items()
    )


def _read_segments(header: Path, record: Any, sentinels: bool | None) -> WfdbHeader:
    warnings: list[str] = []
    segments: dict[str, WfdbHeader] = {}
    missing = []
    if not record.seg_name:
        raise ValueError(f"{header}: a multi-segment record without a segment; expected 1 or more")
    for name in dict.fromkeys(record.seg_name):
        path = header.parent / f"{name}.hea"
        if name != "~" and path.is_file():
            if segment_names(path):
                raise ValueError(f"{header}: segment {name} has segments itself; expected a record without")
            segments[name] = read_header(path, sentinels)
        elif name != "~":
            missing.append(name)
    if missing:
        warnings.append(f"{len(missing)} segment headers are missing: {', '.join(missing[:3])}, ...")
    if record.seg_name[0] in missing or not segments:
        raise FileNotFoundError(f"{header.parent / record.seg_name[0]}.hea: no such segment header, named by {header}")
    variable = int(record.seg_len[0]) == 0
    if variable and record.seg_name[0] not in segments:
        raise ValueError(f"{header}: the first segment, of length 0: expected a layout header, found a gap (~)")
    layout = segments[record.seg_name[0]] if variable else next(iter(segments.values()))
    if variable:
        del segments[record.seg_name[0]]
    joined = _join(header, record, layout, segments, variable)
    for name, segment in segments.items():
        warnings.extend(f"segment {name}: {text}" for text in segment.warnings)
    files = (header, *layout.files, *(file for segment in segments.values() for file in segment.files))
    return WfdbHeader(
        signals=joined.signals,
        reader=joined,
        rate_hz=layout.rate_hz,
        comments=tuple(record.comments),
        files=tuple(dict.fromkeys(files)),
        warnings=tuple(warnings),
    )


def _join(header: Path, record: Any, layout: WfdbHeader, found: dict[str, WfdbHeader], variable: bool) -> SegmentReader:
    """Lay segments out on the record's clock; signals match by place, in a variable layout by name."""
    start = 0
    segments = []
    for name, text in zip(record.seg_name, record.seg_len, strict=True):
        frames, segment = int(text), found.get(name)
        names = [signal.name for signal in segment.signals] if segment else []
        if variable:
            source = tuple(names.index(s.name) if s.name in names else None for s in layout.signals)
        else:
            source = tuple(i if i < len(names) else None for i in range(len(layout.signals)))
        reader = segment.reader if segment else None
        if segment and frames > _length(segment):
            raise ValueError(f"{header}: promises {frames} frames of segment {name}, which has {_length(segment)}")
        _check_rates(header, name, layout, segment, source)
        segments.append(
            Segment(
                start=start,
                frames=frames,
                header=None if name == "~" or frames == 0 else header.parent / f"{name}.hea",
                reader=reader if isinstance(reader, WfdbReader) else None,
                source=source,
            )
        )
        start += frames
    if record.sig_len is not None and record.sig_len != start:
        raise ValueError(f"{header}: promises {record.sig_len} frames, but its segments have {start}")
    _check_gaps(header, layout, segments)
    per_frame = tuple(round(signal.rate_hz / layout.rate_hz) for signal in layout.signals)
    signals = tuple(
        _joined_signal(signal, i, start * per_frame[i], segments) for i, signal in enumerate(layout.signals)
    )
    return SegmentReader(signals=signals, samples_per_frame=per_frame, segments=tuple(segments))


def _check_rates(
    header: Path, name: str, layout: WfdbHeader, segment: WfdbHeader | None, source: Sequence[int | None]
) -> None:
    """One clock for the whole record; without, samples would land at the wrong seconds."""
    for signal, place in zip(layout.signals, source, strict=True):
        found = None if segment is None or place is None else segment.signals[place].rate_hz
        if found is not None and found != signal.rate_hz:
            raise ValueError(
                f"{header}: segment {name}: expected {signal.rate_hz:g} Hz of signal {signal.name}, found {found:g} Hz"
            )


def _check_gaps(header: Path, layout: WfdbHeader, segments: Sequence[Segment]) -> None:
    """Gaps cost memory that no file pays for."""
    for i, signal in enumerate(layout.signals):
        frames = sum(s.frames for s in segments if s.reader is None or s.source[i] is None)
        found = round(frames * signal.rate_hz / layout.rate_hz)
        if found > MAX_GAP_SAMPLES:
            raise ValueError(
                f"{header}: gaps of signal {i} ({signal.name}): expected at most {MAX_GAP_SAMPLES} samples, found "
                f"{found}; split the record at its gaps"
            )


def _length(segment: WfdbHeader) -> int:
    """Frames of a segment."""
    return max((round(s.num_samples * segment.rate_hz / s.rate_hz) for s in segment.signals), default=0)


def _joined_signal(layout: Signal, i: int, num_samples: int, segments: Sequence[Segment]) -> Signal:
    """A signal of the whole record; its calibration is that of its first segment."""
    parts = []
    for segment in segments:
        source = segment.source[i]
        if segment.reader is not None and source is not None:
            parts.append(segment.reader.signals[source])
    first = parts[0] if parts else layout
    return dataclasses.replace(
        layout,
        unit=first.unit,
        gain=first.gain,
        baseline=first.baseline,
        num_samples=num_samples,
        invalid=NO_SAMPLE,
        uniform=all((p.gain, p.baseline, p.unit) == (first.gain, first.baseline, first.unit) for p in parts),
    )
