"""Reads WFDB headers and annotations. Format: https://physionet.org/physiotools/wag/header-5.htm."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from physiofast.engine import FORMATS
from physiofast.engine.header_text import decoded
from physiofast.engine.limits import MAX_DURATION_S
from physiofast.engine.wfdb_header import HeaderFields, SignalFields, parse_wfdb_header
from physiofast.io.recording import MAX_GAP_SAMPLES, Annotation, SampleReader, Signal, check_annotation_clock
from physiofast.io.units import unit_ratio
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
from physiofast.support.messages import first_names

ANNOTATORS = ("arousal", "st", "atr")
"""Annotators that are looked for, in this order, if none is named."""

_DEFAULT_GAIN, _DEFAULT_UNIT = 200.0, "mV"
_LIMITS_OF_8_BITS = (-128, -127, 127)
"""Raw limits of 8-bit formats: a converter that avoids the invalid value -128 saturates at -127."""
_NOTE, _SKIP, _AUX = 22, 59, 63
_OF_AN_ANNOTATION = (60, 61, 62)
"""Codes of an annotation file: a note, a long interval, a text, and the other modifiers (NUM, SUB, CHN)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WfdbHeader:
    """The content of a record's header, and a reader of its samples."""

    signals: tuple[Signal, ...]
    reader: SampleReader
    rate_hz: float
    """Frames per second, which is also the default clock of annotations."""
    comments: tuple[str, ...]
    files: tuple[Path, ...]
    """The existing headers and signal files."""
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WfdbAnnotations:
    """The content of an annotation file."""

    annotator: str
    """Suffix of the file."""
    annotations: tuple[Annotation, ...]
    rate_hz: float
    path: Path


def read_header(header: Path, sentinels: bool | None = None) -> WfdbHeader:
    """Read a header and, of a multi-segment record, those of its segments.

    Args:
        header: the `.hea` file.
        sentinels: see `open_recording`.

    Raises:
        FileNotFoundError: no such file.
        FileError: not a WFDB header, or a rate, length, gain or baseline out of range (the message has the byte
            offset); or a signal file that is shorter than the header says.
        ValueError: signals of one file with different byte offsets, or segments that do not fit together.
    """
    fields = _parse(header)
    if fields.has_segments:
        return _read_segments(header, fields, sentinels)
    return _read_signals(header, fields, sentinels)


def read_annotations(header: Path, rate_hz: float, annotator: str) -> WfdbAnnotations:
    """Read one annotation file.

    Args:
        header: the record's `.hea` file.
        rate_hz: rate of the annotation clock if the annotation file states none.
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
    first = tuple(Annotation(sample=0, symbol='"', aux=text) for text in _notes_at_start(path))
    return WfdbAnnotations(annotator=annotator, annotations=first + annotations, rate_hz=clock_hz, path=path)


def _notes_at_start(path: Path) -> list[str]:
    """Read the notes at sample 0, which the wfdb package drops as definitions of the file's clock or symbols.

    Format: https://physionet.org/physiotools/wag/annot-5.htm
    """
    found: list[str] = []
    is_note = defines = False
    with path.open("rb") as file:
        while len(word := file.read(2)) == 2:
            code, value = divmod(int.from_bytes(word, "little"), 1 << 10)
            if code == _AUX:
                text = decoded(file.read(value)).rstrip("\x00").strip()
                file.read(value % 2)
                defines = text == "## annotation type definitions" or (defines and text != "## end of definitions")
                if is_note and not defines and not text.startswith("## "):
                    found.append(text)
            elif code == 0 or (code == _SKIP and any(file.read(4))):  # the end, or a later sample
                break
            elif code not in (_SKIP, *_OF_AN_ANNOTATION):
                if value:
                    break
                is_note = code == _NOTE
    return found


def segment_names(header: Path) -> tuple[str, ...]:
    """The names of the segments of a multi-segment header; empty for an ordinary header.

    Raises:
        OSError: no such file.
        FileError: not a WFDB header.
    """
    return tuple(segment.name for segment in _parse(header).segments)


def _parse(header: Path) -> HeaderFields:
    with open(header, "rb") as file:
        return parse_wfdb_header(file.read(), header)


def _read_signals(header: Path, fields: HeaderFields, sentinels: bool | None) -> WfdbHeader:
    warnings: list[str] = []
    frames, states_length = _frames(header, fields, warnings)
    signals = tuple(_signal(fields, i, frames, sentinels, warnings) for i in range(fields.num_signals))
    checks = tuple(Check(initial_value=s.initial_value, checksum=s.checksum, skew=s.skew) for s in fields.signals)
    files = _signal_files(header, fields, frames, states_length)
    present = [header]
    for file in files:
        if os.path.isfile(file.path):
            present.append(file.path)
            file.check_size()
        else:
            warnings.append(f"signal file {file.path.name} is missing, so no sample can be read")
    _check_duration(header, fields.rate_hz, frames)
    return WfdbHeader(
        signals=signals,
        reader=WfdbReader(header=header, signals=signals, checks=checks, files=files),
        rate_hz=fields.rate_hz,
        comments=fields.comments,
        files=tuple(present),
        warnings=tuple(warnings),
    )


def _frames(header: Path, fields: HeaderFields, warnings: list[str]) -> tuple[int, bool]:
    """The number of frames in the record, and whether the header states it (0 or absent: it is not stated)."""
    if fields.num_frames or not fields.signals or fields.signals[0].file == "~":
        return fields.num_frames or 0, True
    first = fields.signals[0]
    path = header.parent / first.file
    if not path.is_file() or first.format not in FORMATS:
        warnings.append(f"length unknown: {header.name} states none and {path.name} cannot tell")
        return 0, True
    width = sum(signal.samples_per_frame for signal in fields.signals if signal.file == first.file)
    data_bytes = path.stat().st_size - first.byte_offset
    return FORMATS[first.format].num_samples(max(data_bytes, 0)) // width, False


def _check_duration(header: Path, rate_hz: float, frames: int) -> None:
    """Refuse a record longer than `MAX_DURATION_S`, as the size of a signal file may imply."""
    most = int(MAX_DURATION_S * rate_hz)
    if frames > most:
        raise ValueError(
            f"{header}: signal file: expected at most {most} samples per signal, which is {MAX_DURATION_S:g} s at "
            f"{rate_hz:g} Hz, found {frames}"
        )


def _signal(fields: HeaderFields, i: int, frames: int, sentinels: bool | None, warnings: list[str]) -> Signal:
    signal = fields.signals[i]
    name = signal.description or f"signal {i}"
    if signal.gain is None:
        unit = signal.unit or _DEFAULT_UNIT
        warnings.append(f"signal {i} ({name}) states no gain; WFDB's default of 200 per {unit} is assumed")
    return Signal(
        name=name,
        rate_hz=fields.rate_hz * signal.samples_per_frame,
        unit=signal.unit or _DEFAULT_UNIT,
        gain=_DEFAULT_GAIN if signal.gain is None else signal.gain,
        baseline=signal.baseline,
        num_samples=frames * signal.samples_per_frame,
        invalid=_invalid(signal, sentinels),
        limits=_LIMITS_OF_8_BITS if signal.format in (80, 508) else (),
    )


def _invalid(signal: SignalFields, sentinels: bool | None) -> int | None:
    """The digital value that marks a missing sample of a signal; None if every value is a sample."""
    value = INVALID[str(signal.format)]
    if sentinels is None:
        # The Challenge stores SaO2 with -32768 as a valid 0 %. Samples that skew leaves out need a value, though.
        sentinels = signal.format != 16 or signal.baseline != value or signal.skew > 0
    return value if sentinels else None


def _signal_files(header: Path, fields: HeaderFields, frames: int, states_length: bool) -> tuple[MemberFile, ...]:
    members: dict[str, list[int]] = {}
    for i, signal in enumerate(fields.signals):
        numbers = members.setdefault(signal.file, [])
        numbers.append(i)
        first = fields.signals[numbers[0]]
        if signal.byte_offset != first.byte_offset:
            raise ValueError(
                f"{header}: signal {i} ({signal.description or 'unnamed'}): expected byte offset {first.byte_offset} "
                f"in {signal.file}, as signal {numbers[0]} has it, found {signal.byte_offset}; a file has one"
            )
    return tuple(
        MemberFile(
            header=header,
            path=header.parent / name,
            format=str(fields.signals[numbers[0]].format),
            byte_offset=fields.signals[numbers[0]].byte_offset,
            members=tuple(numbers),
            samples_per_frame=tuple(fields.signals[i].samples_per_frame for i in numbers),
            initial_values=tuple(fields.signals[i].initial_value or 0 for i in numbers),
            frames=frames,
            states_length=states_length,
        )
        for name, numbers in members.items()
    )


def _read_segments(header: Path, fields: HeaderFields, sentinels: bool | None) -> WfdbHeader:
    warnings: list[str] = []
    segments: dict[str, WfdbHeader] = {}
    missing = []
    first = fields.segments[0].name
    for name in dict.fromkeys(segment.name for segment in fields.segments):
        path = header.parent / f"{name}.hea"
        if name != "~" and path.is_file():
            described = _parse(path)
            if described.has_segments:
                raise ValueError(f"{header}: segment {name} has segments itself; expected a record without")
            segments[name] = _read_signals(path, described, sentinels)
        elif name != "~":
            missing.append(name)
    if missing:
        warnings.append(f"{len(missing)} segment headers are missing: {first_names(missing)}")
    if first in missing or not segments:
        raise FileNotFoundError(f"{header.parent / first}.hea: no such segment header, named by {header}")
    variable = fields.segments[0].num_frames == 0
    if variable and first not in segments:
        raise ValueError(f"{header}: the first segment, of length 0: expected a layout header, found a gap (~)")
    layout = segments[first] if variable else next(iter(segments.values()))
    if variable:
        del segments[first]
    joined = _join(header, fields, layout, segments, variable, warnings)
    for name, segment in segments.items():
        warnings.extend(f"segment {name}: {text}" for text in segment.warnings)
    files = (header, *layout.files, *(file for segment in segments.values() for file in segment.files))
    return WfdbHeader(
        signals=joined.signals,
        reader=joined,
        rate_hz=layout.rate_hz,
        comments=fields.comments,
        files=tuple(dict.fromkeys(files)),
        warnings=tuple(warnings),
    )


def _join(
    header: Path,
    fields: HeaderFields,
    layout: WfdbHeader,
    found: dict[str, WfdbHeader],
    variable: bool,
    warnings: list[str],
) -> SegmentReader:
    """Place segments on the record's time axis; signals match by index, or by name in a variable layout."""
    start = 0
    segments: list[Segment] = []
    units: dict[int, str] = {}
    for name, frames in fields.segments:
        segment = found.get(name)
        names = [signal.name for signal in segment.signals] if segment else []
        if variable:
            source = _places([signal.name for signal in layout.signals], names)
        else:
            source = tuple(i if i < len(names) else None for i in range(len(layout.signals)))
        if segment and frames > _length(segment):
            raise ValueError(f"{header}: promises {frames} frames of segment {name}, which has {_length(segment)}")
        _check_rates(header, name, layout, segment, source)
        reader = segment.reader if segment else None
        if isinstance(reader, WfdbReader) and frames > 0:
            reader, source = _in_units(reader, units, source, name, warnings)
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
    _check_gaps(header, layout, segments)
    per_frame = tuple(round(signal.rate_hz / layout.rate_hz) for signal in layout.signals)
    signals = tuple(
        _joined_signal(signal, i, start * per_frame[i], segments) for i, signal in enumerate(layout.signals)
    )
    return SegmentReader(signals=signals, samples_per_frame=per_frame, segments=tuple(segments))


def _check_rates(
    header: Path, name: str, layout: WfdbHeader, segment: WfdbHeader | None, source: Sequence[int | None]
) -> None:
    """Refuse a segment in which a signal has another sampling rate than in the layout."""
    for signal, place in zip(layout.signals, source, strict=True):
        found = None if segment is None or place is None else segment.signals[place].rate_hz
        if found is not None and found != signal.rate_hz:
            raise ValueError(
                f"{header}: segment {name}: expected {signal.rate_hz:g} Hz of signal {signal.name}, found {found:g} Hz"
            )


def _in_units(
    reader: WfdbReader, units: dict[int, str], source: tuple[int | None, ...], name: str, warnings: list[str]
) -> tuple[WfdbReader, tuple[int | None, ...]]:
    """Convert a segment's signals to the units of earlier segments; units of new signals are added to `units`.

    A signal whose unit cannot be converted becomes a gap, with a warning.
    """
    signals, kept = list(reader.signals), list(source)
    for i, place in enumerate(source):
        if place is None:
            continue
        signal = signals[place]
        unit = units.setdefault(i, signal.unit)
        ratio = unit_ratio(signal.unit, unit)
        if ratio is None:
            kept[i] = None
            warnings.append(
                f"segment {name}: signal {signal.name} is in {signal.unit!r}, before it in {unit!r}, which it does not "
                "convert to; its samples are left out"
            )
        elif signal.unit != unit:
            signals[place] = dataclasses.replace(signal, unit=unit, gain=signal.gain / ratio)
    if signals != list(reader.signals):
        reader = dataclasses.replace(reader, signals=tuple(signals))
    return reader, tuple(kept)


def _check_gaps(header: Path, layout: WfdbHeader, segments: Sequence[Segment]) -> None:
    """Refuse gaps longer than `MAX_GAP_SAMPLES`: a small header could otherwise claim any amount of memory."""
    for i, signal in enumerate(layout.signals):
        frames = sum(s.frames for s in segments if s.reader is None or s.source[i] is None)
        found = round(frames * signal.rate_hz / layout.rate_hz)
        if found > MAX_GAP_SAMPLES:
            raise ValueError(
                f"{header}: gaps of signal {i} ({signal.name}): expected at most {MAX_GAP_SAMPLES} samples, found "
                f"{found}; split the record at its gaps"
            )


def _length(segment: WfdbHeader) -> int:
    """The number of frames in a segment."""
    return max((round(s.num_samples * segment.rate_hz / s.rate_hz) for s in segment.signals), default=0)


def _places(wanted: Sequence[str], names: Sequence[str]) -> tuple[int | None, ...]:
    """The index of each wanted name in `names`; if a name occurs twice in both, the second maps to the second."""
    places: dict[str, list[int]] = {}
    for place in reversed(range(len(names))):
        places.setdefault(names[place], []).append(place)
    return tuple(places[name].pop() if places.get(name) else None for name in wanted)


def _joined_signal(layout: Signal, i: int, num_samples: int, segments: Sequence[Segment]) -> Signal:
    """Describe a signal of the whole record, with the calibration of the first segment that has it."""
    parts = []
    for segment in segments:
        source = segment.source[i]
        if segment.reader is not None and source is not None:
            parts.append(segment.reader.signals[source])
    first = parts[0] if parts else layout
    uniform = all((p.gain, p.baseline, p.unit) == (first.gain, first.baseline, first.unit) for p in parts)
    return dataclasses.replace(
        layout,
        unit=first.unit,
        gain=first.gain,
        baseline=first.baseline,
        num_samples=num_samples,
        invalid=NO_SAMPLE,
        limits=first.limits if uniform and all(p.limits == first.limits for p in parts) else (),
        uniform=uniform,
    )
