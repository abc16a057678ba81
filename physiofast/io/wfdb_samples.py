"""Reads samples of WFDB records: signal files, skew, verification, segments.

The engine decodes every format except the compressed ones (508, 516, 524), which the wfdb package decodes. Formats:
https://physionet.org/physiotools/wag/signal-5.htm
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from physiofast.engine import FORMATS, Calibration, FileError, SignalFile, checksum
from physiofast.io.handles import Handle
from physiofast.io.recording import Digital, Physical, Signal, Source, Span, to_physical

NO_SAMPLE = -(2**31)
"""Value of a missing sample in gaps between segments, and in formats that define none."""
INVALID = dict.fromkeys(("16", "61", "160", "516"), -(2**15)) | dict.fromkeys(("80", "508"), -(2**7))
INVALID |= {"0": NO_SAMPLE, "8": NO_SAMPLE, "32": NO_SAMPLE, "24": -(2**23), "524": -(2**23)}
INVALID |= {"212": -(2**11), "310": -(2**9), "311": -(2**9)}
"""Format -> value of a missing sample. Format 0 is a signal without a file, as in layout headers."""
_MAX_COMPRESSION = 2**16
"""Most samples per byte of a compressed file: a FLAC frame holds fewer."""
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions that the wfdb package may raise for a damaged file."""
_T = TypeVar("_T")


def call_wfdb(function: str, *args: Any, **options: Any) -> Any:
    """Call a function of the wfdb package, which is imported on first use because that takes a second.

    Deprecation warnings that some versions of wfdb and pandas raise together are suppressed: users cannot act on them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        return getattr(wfdb, function)(*args, **options)


def read_by_wfdb(what: str, function: str, *args: Any, **options: Any) -> Any:
    """Call a function of the wfdb package that parses a file, and turn its errors on damaged files into ValueError.

    Args:
        what: beginning of the error message: the file, and what it is not.
        function: name of the function.
        *args: its arguments.
        **options: its keyword arguments.

    Raises:
        OSError: raised by wfdb.
        ValueError: the file is damaged.
    """
    try:
        return call_wfdb(function, *args, **options)
    except _DAMAGE as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberFile:
    """One signal file of a record; from `byte_offset` on it holds frames with some samples of each member signal."""

    header: Path
    path: Path
    format: str
    byte_offset: int
    members: tuple[int, ...]
    """Indices of the record's signals in this file, in their order within a frame."""
    samples_per_frame: tuple[int, ...]
    initial_values: tuple[int, ...]
    """Initial value of each member, to which the differences of format 8 are added."""
    frames: int
    states_length: bool
    handle: Handle = dataclasses.field(init=False, repr=False, compare=False)
    """Handle of the file, for reading samples."""

    def __post_init__(self) -> None:
        values = self.initial_values if self.format == "8" else None
        handle = Handle(self.path, int(self.format), self.samples_per_frame, self.frames, self.byte_offset, values)
        object.__setattr__(self, "handle", handle)

    @property
    def is_compressed(self) -> bool:
        """Whether the format is compressed, so that the wfdb package decodes it."""
        return int(self.format) not in FORMATS

    def open(self) -> SignalFile:
        """Return the open file.

        Raises:
            FileNotFoundError: no such file.
            FileError: it is shorter than the header says.
            ValueError: the header is inconsistent.
        """
        return self._named(self.handle.open)

    def check_size(self) -> None:
        """Check that the file is as long as the header says, without keeping it open.

        Raises:
            OSError: no such file.
            FileError: it is too short.
            ValueError: the header is inconsistent.
        """
        if not self.is_compressed:
            self._named(self.handle.check)
            return
        size, most = self.path.stat().st_size, _MAX_COMPRESSION
        expected = -(-self.frames * sum(self.samples_per_frame) // most)
        if size < expected:
            promised = f"{self.frames} frames of {sum(self.samples_per_frame)} samples in format {self.format}"
            raise FileError(
                str(self.path),
                size,
                f"{expected} bytes or more ({promised}, at most {most} samples in a byte), as {self.header.name} "
                "promises",
                f"{size} bytes: truncated. Fetch the file again, or correct the length in the header",
            )

    def _named(self, function: Callable[[], _T]) -> _T:
        """Call a function, and add the header's name to its errors."""
        try:
            return function()
        except FileNotFoundError:
            raise self.missing() from None
        except FileError as error:
            cure = ": truncated. Fetch the file again, or correct the length in the header"
            raise FileError(
                error.path,
                error.byte_offset,
                f"{error.expected}, as {self.header.name} promises",
                error.found + cure * error.found.endswith(" bytes"),
            ) from None

    def missing(self) -> FileNotFoundError:
        """The error to raise if the file does not exist."""
        return FileNotFoundError(f"{self.path}: no such signal file, which {self.header} names")

    def decompress(self, signals: Sequence[int], start: int, stop: int) -> list[Digital]:
        """Decode frames `start` to `stop` (exclusive) of members of a compressed file, int32 [n] each."""
        if not self.path.is_file():
            raise self.missing()
        if start == stop:
            return [np.empty(0, np.int32) for _ in signals]
        # If the header states no length, wfdb can only read whole files.
        first, last = (start, stop) if self.states_length else (0, None)
        record = read_by_wfdb(
            f"{self.path}: wfdb cannot decode format {self.format}",
            "rdrecord",
            str(self.header.with_suffix("")),
            sampfrom=first,
            sampto=last,
            channels=list(signals),
            physical=False,
            smooth_frames=False,
            ignore_skew=True,
            return_res=32,
        )
        per_frame = [self.samples_per_frame[self.members.index(signal)] for signal in signals]
        return [
            np.asarray(x[(start - first) * k : (stop - first) * k], np.int32)
            for x, k in zip(record.e_d_signal, per_frame, strict=True)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """The values of a signal's header that verify its samples; None if not stated."""

    initial_value: int | None
    checksum: int | None
    skew: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WfdbReader:
    """Reads samples of a record without segments."""

    header: Path
    signals: tuple[Signal, ...]
    checks: tuple[Check, ...]
    files: tuple[MemberFile, ...]
    _calibrations: dict[Path, Calibration] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Calibrations of files that were read. Not a `cached_property`: a fork may inherit its lock held (Python 3.11)."""

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span, skew undone; whole signals are verified."""
        return self._read(spans, None, None)

    def physical(
        self, spans: Sequence[Span], dtype: npt.DTypeLike, out: Sequence[Physical] | None = None
    ) -> list[Physical]:
        """The physical values of each span; whole signals are verified."""
        return self._read(spans, np.dtype(dtype), out)

    def source(self, signal: int) -> Source | None:
        """The location of a signal's samples; None for compressed formats."""
        file = self._file_of(signal)
        if file.is_compressed:
            return None
        channel = file.members.index(signal)
        skew = self.checks[signal].skew * file.samples_per_frame[channel]
        return Source(file=file.open(), channel=channel, skew=skew)

    def check_present(self, signal: int) -> None:
        """Refuse a signal whose file is missing, before memory is allocated for it."""
        file = self._file_of(signal)
        if not file.path.is_file():
            raise file.missing()

    def _file_of(self, signal: int) -> MemberFile:
        return next(file for file in self.files if signal in file.members)

    def _read(self, spans: Sequence[Span], physical: np.dtype[Any] | None, out: Sequence[Physical] | None) -> list[Any]:
        read: dict[int, Any] = {}
        for file in self.files:
            mine = [i for i, (signal, _, _) in enumerate(spans) if signal in file.members]
            wanted = [spans[i] for i in mine]
            if mine and file.is_compressed:
                read.update(zip(mine, self._decompress(file, wanted, physical), strict=True))
            elif mine:
                direct = out is not None and not any(self._skew(file, signal) for signal, _, _ in wanted)
                given = [out[i] for i in mine] if direct and out is not None else None
                read.update(zip(mine, self._decode(file, wanted, physical, given), strict=True))
        return [read[i] for i in range(len(spans))]

    def _decode(
        self,
        file: MemberFile,
        spans: Sequence[Span],
        physical: np.dtype[Any] | None,
        out: Sequence[Physical] | None,
    ) -> list[Any]:
        opened = file.open()
        channels = [file.members.index(signal) for signal, _, _ in spans]
        runs = [self._run(file, span) for span in spans]
        sums = np.empty(len(spans), np.uint16) if any(self._is_whole(span) for span in spans) else None
        read = opened.decode_runs(
            channels,
            [first for first, _ in runs],
            [last for _, last in runs],
            calibration=None if physical is None else self._calibration(file),
            dtype=physical,
            out=out,
            checksums=sums,
        )
        for i, span in enumerate(spans):
            if sums is not None and self._is_whole(span) and span[2]:
                first = opened.decode([channels[i]], 0, 1)[0, 0]
                self._verify(span[0], file, int(first), int(sums[i]))
        fill = INVALID[file.format] if physical is None else np.nan
        return [self._cut(file, span, x, fill) for span, x in zip(spans, read, strict=True)]

    def _decompress(self, file: MemberFile, spans: Sequence[Span], physical: np.dtype[Any] | None) -> list[Any]:
        runs = [self._run(file, span) for span in spans]
        per_frame = [file.samples_per_frame[file.members.index(signal)] for signal, _, _ in spans]
        frames = [(first // k, -(-last // k)) for (first, last), k in zip(runs, per_frame, strict=True)]
        together: dict[tuple[int, int], list[int]] = {}
        for i, pair in enumerate(frames):
            together.setdefault(pair, []).append(i)
        raw: dict[int, Digital] = {}
        for (start, stop), numbers in together.items():
            signals = sorted({spans[i][0] for i in numbers})
            blocks = dict(zip(signals, file.decompress(signals, start, stop), strict=True))
            for i in numbers:
                first, last = (end - start * per_frame[i] for end in runs[i])
                raw[i] = blocks[spans[i][0]][first:last]
        out: list[Any] = []
        for i, span in enumerate(spans):
            if self._is_whole(span) and raw[i].size:
                self._verify(span[0], file, int(raw[i][0]), checksum(raw[i]))
            digital = self._cut(file, span, raw[i], INVALID[file.format])
            signal = self.signals[span[0]]
            out.append(digital if physical is None else to_physical(signal, digital).astype(physical, copy=False))
        return out

    def _calibration(self, file: MemberFile) -> Calibration:
        found = self._calibrations.get(file.path)
        if found is None:
            members = [self.signals[signal] for signal in file.members]
            found = Calibration(
                [signal.gain for signal in members],
                [signal.baseline for signal in members],
                [signal.invalid for signal in members],
            )
            self._calibrations[file.path] = found
        return found

    def _is_whole(self, span: Span) -> bool:
        return span[2] - span[1] == self.signals[span[0]].num_samples

    def _run(self, file: MemberFile, span: Span) -> tuple[int, int]:
        """The file's samples (first, end) that a span needs; all of them for a whole signal, which is verified."""
        signal, start, stop = span
        total = self.signals[signal].num_samples
        if self._is_whole(span):
            return 0, total
        skew = self._skew(file, signal)
        return min(start + skew, total), min(stop + skew, total)

    def _skew(self, file: MemberFile, signal: int) -> int:
        """The skew of a signal in its own samples."""
        return self.checks[signal].skew * file.samples_per_frame[file.members.index(signal)]

    def _cut(self, file: MemberFile, span: Span, read: Any, fill: float) -> Any:
        """Cut a span out of the samples that were read, and fill what skew leaves missing at the end."""
        skew = self._skew(file, span[0])
        cut = read[skew:] if skew and self._is_whole(span) else read
        if cut.size == span[2] - span[1]:
            return cut
        out = np.full(span[2] - span[1], fill, read.dtype)
        out[: cut.size] = cut
        return out

    def _verify(self, signal: int, file: MemberFile, initial_value: int, found: int) -> None:
        check = self.checks[signal]
        who = f"of signal {signal} ({self.signals[signal].name}), as {self.header.name} says"
        advice = f"The file is damaged or belongs to another header than {self.header.name}; fetch it again"
        if check.checksum is not None:
            expected = check.checksum & 0xFFFF
            if found != expected:
                values = f"initial value: the header says {check.initial_value}, found {initial_value}"
                wanted = f"samples with the checksum {expected} {who}"
                raise FileError(str(file.path), file.byte_offset, wanted, f"{found} ({values}). {advice}")
        elif check.initial_value is not None and initial_value != check.initial_value:
            # Checked only without a checksum: real headers have wrong initial values beside matching checksums.
            wanted = f"the initial value {check.initial_value} {who}"
            raise FileError(str(file.path), file.byte_offset, wanted, f"{initial_value}. {advice}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a multi-segment record; times are in frames."""

    start: int
    """First frame in the whole record."""
    frames: int
    header: Path | None
    """The segment's header; None for a gap."""
    reader: WfdbReader | None
    """Reader of its samples; None for a gap, or if the header is missing."""
    source: tuple[int | None, ...]
    """For each signal of the whole record, the index of the segment's signal, or None if it has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentReader:
    """Reads samples of a multi-segment record; gaps are NaN in physical and `NO_SAMPLE` in digital values."""

    signals: tuple[Signal, ...]
    samples_per_frame: tuple[int, ...]
    segments: tuple[Segment, ...]

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span as int32; -2^31 in gaps and at invalid samples."""
        needed = self._parts(spans)
        out: list[Digital] = [np.full(stop - start, NO_SAMPLE, np.int32) for _, start, stop in spans]
        for reader, parts in needed:
            blocks = reader.digital([part.span for part in parts])
            for part, block in zip(parts, blocks, strict=True):
                place = out[part.number][part.at : part.at + block.size]
                place[:] = block
                invalid = reader.signals[part.span[0]].invalid
                if invalid is not None:
                    place[block == invalid] = NO_SAMPLE
        return out

    def physical(self, spans: Sequence[Span], dtype: npt.DTypeLike, out: Sequence[Physical] | None) -> list[Physical]:
        """The physical values of each span; every segment is converted by its own calibration."""
        needed = self._parts(spans)
        values = [np.empty(stop - start, dtype) for _, start, stop in spans] if out is None else list(out)
        for array in values:
            array.fill(np.nan)
        for reader, parts in needed:
            places = [values[part.number][part.at :][: part.span[2] - part.span[1]] for part in parts]
            blocks = reader.physical([part.span for part in parts], dtype, places)
            for place, block in zip(places, blocks, strict=True):
                if block is not place:
                    place[:] = block
        return values

    def source(self, signal: int) -> None:
        """Return None, as the samples lie in several files."""

    def _parts(self, spans: Sequence[Span]) -> list[tuple[WfdbReader, list[_Part]]]:
        """The parts of the spans that each segment holds, so that its files are read once."""
        needed = []
        for segment in self.segments:
            parts = []
            for number, (signal, start, stop) in enumerate(spans):
                per_frame = self.samples_per_frame[signal]
                begin, end = segment.start * per_frame, (segment.start + segment.frames) * per_frame
                low, high = max(start, begin), min(stop, end)
                if low >= high or segment.header is None:
                    continue
                if segment.reader is None:
                    raise FileNotFoundError(
                        f"{segment.header}: no such segment header, needed for samples {low} to {high}"
                    )
                source = segment.source[signal]
                if source is not None:
                    segment.reader.check_present(source)
                    parts.append(_Part(number, (source, low - begin, high - begin), low - start))
            if parts and segment.reader is not None:
                needed.append((segment.reader, parts))
        return needed


class _Part(NamedTuple):
    """The part of a span that lies in one segment."""

    number: int
    """Index of the span."""
    span: Span
    """The part, as a span of the segment's reader."""
    at: int
    """Offset of the part within the span, in samples."""
