"""Samples of WFDB records: signal files, skew, verification, segments.

Formats whose samples are whole little integers are memory-mapped here; bit-packed and compressed ones
(8, 24, 212, 310, 311, FLAC) are decoded by wfdb. Formats: https://physionet.org/physiotools/wag/signal-5.htm
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from physiofast.engine import decode_interleaved
from physiofast.io.recording import Digital, Physical, Signal, Span, to_physical

_MAPPED = {"16": ("<i2", 0), "61": (">i2", 0), "160": ("<u2", 32768), "80": ("u1", 128), "32": ("<i4", 0)}
"""Format -> stored type, and what to subtract."""
BYTES_PER_SAMPLE = dict.fromkeys(("8", "80"), (1, 1)) | dict.fromkeys(("16", "61", "160"), (2, 1))
BYTES_PER_SAMPLE |= {"24": (3, 1), "32": (4, 1), "212": (3, 2), "310": (4, 3), "311": (4, 3)}
"""Format -> bytes per sample as a fraction; compressed formats have none."""
NO_SAMPLE = -(2**31)
"""Invalid value where a format defines none, and in gaps between segments."""
INVALID = dict.fromkeys(("16", "61", "160", "516"), -(2**15)) | dict.fromkeys(("80", "508"), -(2**7))
INVALID |= {"0": NO_SAMPLE, "8": NO_SAMPLE, "32": NO_SAMPLE, "24": -(2**23), "524": -(2**23)}
INVALID |= {"212": -(2**11), "310": -(2**9), "311": -(2**9)}
"""Format -> the value that means "no sample". Format 0 is a signal without a file, as in layout headers."""


def call_wfdb(function: str, *args: Any, **options: Any) -> Any:
    """Call a function of wfdb, imported on first use because that takes a second.

    Some pairs of wfdb and pandas warn of deprecations, at import and in every annotation read, that are no
    user's of ours to act on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        return getattr(wfdb, function)(*args, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignalFile:
    """One signal file: frames of `sum(samples_per_frame)` samples, from `byte_offset` on."""

    header: Path
    path: Path
    format: str
    byte_offset: int
    members: tuple[int, ...]
    """The record's signal numbers, in the order they have in a frame."""
    samples_per_frame: tuple[int, ...]
    frames: int
    states_length: bool

    @property
    def width(self) -> int:
        """Samples in a frame."""
        return sum(self.samples_per_frame)

    def check_size(self) -> None:
        """Refuse a missing file, and one that holds less than the header promises.

        Raises:
            FileNotFoundError: no such file.
            ValueError: too short; the message gives bytes expected and found.
        """
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such signal file, which {self.header} names")
        if self.format not in BYTES_PER_SAMPLE:
            return
        numerator, denominator = BYTES_PER_SAMPLE[self.format]
        expected = self.byte_offset + -(-self.frames * self.width * numerator // denominator)
        found = self.path.stat().st_size
        if found < expected:
            raise ValueError(
                f"{self.path}: truncated: {self.header.name} promises {self.frames} frames of {self.width} "
                f"samples in format {self.format} from byte {self.byte_offset}, so {expected} bytes; "
                f"found {found}. Fetch the file again, or correct the length in the header"
            )

    def read(self, signals: Sequence[int], start: int, stop: int) -> list[Digital]:
        """Samples of some members, frames `start` to `stop`: int16 or int32 [frames * per frame] each."""
        self.check_size()
        if start == stop:
            return [np.empty(0, np.int16) for _ in signals]
        if self.format in _MAPPED:
            return self._read_mapped(signals, start, stop)
        return self._read_wfdb(signals, start, stop)

    def _read_mapped(self, signals: Sequence[int], start: int, stop: int) -> list[Digital]:
        stored, offset = _MAPPED[self.format]
        shape = (self.frames, self.width)
        frames = np.memmap(self.path, stored, "r", offset=self.byte_offset, shape=shape)[start:stop]
        columns = [self.members.index(signal) for signal in signals]
        if self.format == "16" and self.width == len(self.members):
            return list(decode_interleaved(frames, columns))
        first = np.cumsum((0, *self.samples_per_frame))
        blocks = (np.asarray(frames[:, first[c] : first[c + 1]], np.int64).reshape(-1) - offset for c in columns)
        if self.format == "32":
            return [block.astype(np.int32) for block in blocks]
        return [block.astype(np.int16) for block in blocks]

    def _read_wfdb(self, signals: Sequence[int], start: int, stop: int) -> list[Digital]:
        # Format 8 stores differences, so it decodes from the beginning only; without a stated length wfdb
        # reads everything or nothing.
        whole = self.format == "8" or not self.states_length
        first, last = (0, None if not self.states_length else stop) if whole else (start, stop)
        try:
            record = call_wfdb(
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
        except (ValueError, IndexError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self.path}: wfdb cannot decode format {self.format}: {error}") from error
        per_frame = [self.samples_per_frame[self.members.index(signal)] for signal in signals]
        return [
            np.asarray(x[(start - first) * k : (stop - first) * k], np.int32)
            for x, k in zip(record.e_d_signal, per_frame, strict=True)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """What the header says about a signal's samples; None where it says nothing."""

    initial_value: int | None
    checksum: int | None
    skew: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WfdbReader:
    """Samples of a record without segments."""

    header: Path
    signals: tuple[Signal, ...]
    checks: tuple[Check, ...]
    files: tuple[SignalFile, ...]

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span, skew undone; whole signals are verified."""
        out: dict[int, Digital] = {}
        for file in self.files:
            mine = [i for i, (signal, _, _) in enumerate(spans) if signal in file.members]
            if mine:
                out.update(zip(mine, self._read_file(file, [spans[i] for i in mine]), strict=True))
        return [out[i] for i in range(len(spans))]

    def physical(self, span: Span) -> Physical:
        """The physical values of one span."""
        return to_physical(self.signals[span[0]], self.digital([span])[0])

    def _read_file(self, file: SignalFile, spans: Sequence[Span]) -> list[Digital]:
        wanted = [self._frames(file, span) for span in spans]
        first = min(start for start, _ in wanted)
        last = max(stop for _, stop in wanted)
        raw = file.read([signal for signal, _, _ in spans], first, last)
        return [self._cut(file, span, x, first) for span, x in zip(spans, raw, strict=True)]

    def _frames(self, file: SignalFile, span: Span) -> tuple[int, int]:
        """The frames that hold a span; all of them for a whole signal, which is to be verified."""
        signal, start, stop = span
        per_frame = file.samples_per_frame[file.members.index(signal)]
        if stop - start == self.signals[signal].num_samples:
            return 0, file.frames
        skew = self.checks[signal].skew
        first, last = start // per_frame + skew, -(-stop // per_frame) + skew
        return min(first, file.frames), min(last, file.frames)

    def _cut(self, file: SignalFile, span: Span, raw: Digital, first_frame: int) -> Digital:
        signal, start, stop = span
        per_frame = file.samples_per_frame[file.members.index(signal)]
        if stop - start == self.signals[signal].num_samples:
            self._verify(signal, file, raw)
        shift = (self.checks[signal].skew - first_frame) * per_frame
        if shift == -start and raw.size == stop - start:
            return raw
        cut = raw[start + shift : stop + shift]
        if cut.size == stop - start:
            return cut
        # A skewed signal ends before the recording does.
        out = np.full(stop - start, INVALID[file.format], raw.dtype)
        out[: cut.size] = cut
        return out

    def _verify(self, signal: int, file: SignalFile, raw: Digital) -> None:
        check = self.checks[signal]
        where = f"{file.path}: signal {signal} ({self.signals[signal].name})"
        advice = f"The file is damaged or belongs to another header than {self.header.name}; fetch it again"
        if raw.size and check.checksum is not None:
            expected, found = check.checksum & 0xFFFF, int(raw.sum(dtype=np.int64)) & 0xFFFF
            if found != expected:
                raise ValueError(
                    f"{where}: checksum mismatch: the header says {expected}, the samples give {found} "
                    f"(initial value: the header says {check.initial_value}, found {raw[0]}). {advice}"
                )
        elif raw.size and check.initial_value is not None and int(raw[0]) != check.initial_value:
            # With a matching checksum a stale initial value is the header's fault: real records have it.
            raise ValueError(
                f"{where}: initial value mismatch: the header says {check.initial_value}, found {raw[0]}. {advice}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a multi-segment record, in frames; without a reader where its header is missing."""

    start: int
    frames: int
    header: Path | None
    """None for a gap."""
    reader: WfdbReader | None
    source: tuple[int | None, ...]
    """For each signal of the whole record, the segment's signal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentReader:
    """Samples of a multi-segment record: NaN, or the invalid value, in gaps."""

    signals: tuple[Signal, ...]
    samples_per_frame: tuple[int, ...]
    segments: tuple[Segment, ...]

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span as int32; -2^31 in gaps and at invalid samples."""
        return [self._digital(span) for span in spans]

    def _digital(self, span: Span) -> Digital:
        parts = self._parts(span)
        out = np.full(span[2] - span[1], NO_SAMPLE, np.int32)
        for reader, part, at in parts:
            block = reader.digital([part])[0].astype(np.int32)
            invalid = reader.signals[part[0]].invalid
            if invalid is not None:
                block[block == invalid] = NO_SAMPLE
            out[at : at + block.size] = block
        return out

    def physical(self, span: Span) -> Physical:
        """The physical values of one span; every segment is converted by its own calibration."""
        parts = self._parts(span)
        out = np.full(span[2] - span[1], np.nan)
        for reader, part, at in parts:
            block = reader.physical(part)
            out[at : at + block.size] = block
        return out

    def _parts(self, span: Span) -> list[tuple[WfdbReader, Span, int]]:
        signal, start, stop = span
        per_frame = self.samples_per_frame[signal]
        parts = []
        for segment in self.segments:
            begin, end = segment.start * per_frame, (segment.start + segment.frames) * per_frame
            low, high = max(start, begin), min(stop, end)
            if low >= high or segment.header is None:
                continue
            if segment.reader is None:
                raise FileNotFoundError(f"{segment.header}: no such segment header, needed for samples {low} to {high}")
            source = segment.source[signal]
            if source is not None:
                parts.append((segment.reader, (source, low - begin, high - begin), low - start))
        return parts
