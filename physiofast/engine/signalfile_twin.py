"""The NumPy twin of the C++ reader of signal files, which defines its results."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from physiofast.engine.formats import FORMATS, unpack
from physiofast.engine.native import FileError

Samples = npt.NDArray[Any]
Checksums = npt.NDArray[np.uint16]
Int64Array = npt.NDArray[np.int64]

_MAX_SAMPLES = 2**60
_BLOCK_BYTES = 1 << 18


class _Layout(Protocol):
    """What a range is checked against."""

    path: Any
    samples_per_frame: tuple[int, ...]
    num_frames: int


def checksum_reference(samples: npt.NDArray[np.int16] | npt.NDArray[np.int32]) -> int:
    """The NumPy twin of `checksum`."""
    return int(samples.sum(dtype=np.int64)) & 0xFFFF


def check_run(file: _Layout, index: int, channel: int, first: int, count: int) -> None:
    """Check a range with the rules and error messages of SignalFile::check_run in csrc/signalfile_layout.cpp."""
    channels = len(file.samples_per_frame)
    if not 0 <= channel < channels:
        raise ValueError(f"{file.path}: channels {index}: expected 0 to {channels - 1}, found {channel}")
    total = file.samples_per_frame[channel] * file.num_frames
    if not 0 <= first <= total:
        raise ValueError(f"{file.path}: first sample of channels {index}: expected 0 to {total}, found {first}")
    if not 0 <= count <= total - first:
        raise ValueError(
            f"{file.path}: number of samples of channels {index}: expected 0 to {total - first} "
            f"from sample {first}, found {count}"
        )


class Twin:
    """The NumPy twin of `_native.SignalFile`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: int,
        samples_per_frame: Sequence[int],
        num_frames: int,
        byte_offset: int,
        initial_values: Sequence[int],
    ) -> None:
        self.path = os.fspath(path)
        self.samples_per_frame = tuple(samples_per_frame)
        self.num_frames, self.byte_offset = num_frames, byte_offset
        self.initial_values = tuple(initial_values) or (0,) * len(self.samples_per_frame)
        self.format = FORMATS[format]
        self._fd = _open_regular(self.path)
        weakref.finalize(self, os.close, self._fd)
        self._check_layout()
        self.width = sum(self.samples_per_frame)
        self._starts = np.cumsum((0, *self.samples_per_frame)).tolist()
        self._check_size()

    def _check_layout(self) -> None:
        counts = self.samples_per_frame
        if not counts:
            raise ValueError(f"{self.path}: samples_per_frame: expected 1 channel or more, found none")
        if len(self.initial_values) != len(counts):
            raise ValueError(
                f"{self.path}: initial_values: expected one for each of {len(counts)} channels, "
                f"found {len(self.initial_values)}"
            )
        width = 0
        for i, count in enumerate(counts):
            if not 1 <= count <= _MAX_SAMPLES - width:
                where = f"{self.path}: samples_per_frame of channel {i}"
                raise ValueError(f"{where}: expected 1 to {_MAX_SAMPLES - width}, found {count}")
            width += count
        limit = _MAX_SAMPLES // width
        if not 0 <= self.num_frames <= limit:
            raise ValueError(
                f"{self.path}: num_frames for a width of {width}: expected 0 to {limit}, found {self.num_frames}"
            )
        if not 0 <= self.byte_offset <= _MAX_SAMPLES:
            raise ValueError(
                f"{self.path}: byte_offset of format {self.format.number}: expected 0 to {_MAX_SAMPLES}, "
                f"found {self.byte_offset}"
            )

    def _check_size(self) -> None:
        needed = self.byte_offset + self.format.num_bytes(self.num_frames * self.width)
        found = os.fstat(self._fd).st_size
        if found < needed:
            expected = (
                f"{needed} bytes ({self.num_frames} frames of {self.width} samples in format "
                f"{self.format.number} from byte {self.byte_offset})"
            )
            raise FileError(self.path, found, expected, f"{found} bytes")

    def read_planes(
        self, channels: Int64Array, first: int, count: int, out: Samples, columns: Any, num_threads: int = 1
    ) -> None:
        """Samples of channels over one range, into [C, count] whose rows are contiguous."""
        if out.shape != (channels.size, count) or (out.size > 1 and count > 1 and out.strides[1] != out.itemsize):
            raise ValueError("out needs one contiguous row of count samples per channel")
        self.read_runs(channels, np.full(channels.size, first), list(out), columns, None)

    def read_windows(
        self, channels: Int64Array, starts: Int64Array, length: int, out: Samples, columns: Any, num_threads: int = 1
    ) -> None:
        """Windows of channels, into [W, C, length]."""
        for start, planes in zip(starts.tolist(), out, strict=True):
            self.read_planes(channels, start, length, planes, columns)

    def read_runs(
        self,
        channels: Int64Array,
        first: Int64Array,
        out: Sequence[Samples],
        columns: Any,
        checksums: Checksums | None,
        num_threads: int = 1,
    ) -> None:
        """Samples of channels over ranges of their own, and their sums."""
        for i, (channel, begin) in enumerate(zip(channels.tolist(), first.tolist(), strict=True)):
            check_run(self, i, channel, begin, out[i].size)
        places = [None] * len(out) if checksums is None else [checksums[i : i + 1] for i in range(len(out))]
        runs = [run for run in zip(channels.tolist(), first.tolist(), out, places, strict=True) if run[2].size]
        if out and out[0].dtype == np.int16 and self.format.number in (24, 32):
            raise ValueError(f"int16 does not hold format {self.format.number}; read int32, float32 or float64")
        if columns is not None:
            self._check_calibration(columns, out)
        if not runs:
            return
        counts = self.samples_per_frame
        begin = min(start // counts[channel] for channel, start, _, _ in runs)
        end = max(-(-(start + target.size) // counts[channel]) for channel, start, target, _ in runs)
        narrows = out[0].dtype == np.int16 and self.format.dtype != np.int16
        for frame, block in self._blocks(begin, end):
            if narrows:
                self._check_fit(block, frame, runs)
            for run in runs:
                self._emit(block, frame, *run, columns)

    def _check_calibration(self, columns: Any, out: Sequence[Samples]) -> None:
        if columns[0].size != len(self.samples_per_frame):
            raise ValueError(
                f"calibrations: expected one for each of {len(self.samples_per_frame)} channels, "
                f"found {columns[0].size}"
            )
        if out and out[0].dtype.kind != "f":
            raise ValueError("physical values need float32 or float64")

    def _blocks(self, begin: int, end: int) -> Iterator[tuple[int, Samples]]:
        """Blocks of whole frames [n, width] from frame `begin` on; format 8 starts at the beginning."""
        step = max(_BLOCK_BYTES // self.width, 1)
        sums = np.array(self.initial_values, np.int32)
        differences = self.format.number == 8
        for frame in range(0 if differences else begin, end, step):
            last = min(frame + step, end)
            block = self._samples(frame * self.width, last * self.width).reshape(last - frame, self.width)
            if differences:
                block, sums = self._accumulate(block, sums)
            yield frame, block

    def _samples(self, first: int, end: int) -> Samples:
        group = first // self.format.group_samples
        base = group * self.format.group_samples
        size = self.format.num_bytes(end) - group * self.format.group_bytes
        raw = self._read(self.byte_offset + group * self.format.group_bytes, size)
        return unpack(self.format, np.frombuffer(raw, np.uint8), end - base)[first - base :]

    def _read(self, offset: int, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            part = os.pread(self._fd, size - len(found), offset + len(found))
            if not part:
                missing = size - len(found)
                raise FileError(self.path, offset + len(found), f"{missing} more bytes", "the end of the file")
            found += part
        return bytes(found)

    def _accumulate(self, block: Samples, sums: Samples) -> tuple[Samples, Samples]:
        out, last = np.empty_like(block), sums.copy()
        for channel, start in enumerate(self._starts[:-1]):
            columns = slice(start, start + self.samples_per_frame[channel])
            values = block[:, columns].reshape(-1).cumsum(dtype=np.int32) + sums[channel : channel + 1]
            out[:, columns] = values.reshape(block.shape[0], -1)
            last[channel] = values[-1]
        return out, last

    def _emit(
        self,
        block: Samples,
        frame: int,
        channel: int,
        start: int,
        target: Samples,
        checksum: Checksums | None,
        columns: Any,
    ) -> None:
        """Convert what a block of frames from `frame` on has of one run, and store it."""
        low, stored = self._stretch(block, frame, channel, start, target.size)
        if not stored.size:
            return
        if checksum is not None:
            checksum += np.uint16(checksum_reference(stored))
        part = target[low - start : low - start + stored.size]
        if columns is None:
            part[:] = stored
            return
        gain, baseline, invalid = (column[channel] for column in columns)
        distance = stored - baseline
        with np.errstate(over="ignore"):
            part[:] = distance / gain if target.dtype == np.float64 else distance * (1 / gain)
        part[stored == invalid] = np.nan

    def _stretch(self, block: Samples, frame: int, channel: int, start: int, count: int) -> tuple[int, Samples]:
        """(first, samples) that a block of frames from `frame` on has of `count` of a channel from `start` on."""
        per_frame, place = self.samples_per_frame[channel], self._starts[channel]
        base = frame * per_frame
        low, high = max(start, base), min(start + count, base + block.shape[0] * per_frame)
        return low, block[:, place : place + per_frame].reshape(-1)[low - base : max(high, low) - base]

    def _check_fit(self, block: Samples, frame: int, runs: Sequence[Any]) -> None:
        """Refuse what int16 does not hold: of all runs, the sample that comes first in the file."""
        wrong = []
        for channel, start, target, _ in runs:
            low, stored = self._stretch(block, frame, channel, start, target.size)
            for place in np.flatnonzero((stored < -(2**15)) | (stored >= 2**15))[:1].tolist():
                at, inside = divmod(low + place, self.samples_per_frame[channel])
                at = self.byte_offset + at * self.width + self._starts[channel] + inside
                wrong.append((at, str(stored[place])))
        if wrong:
            at, found = min(wrong)
            raise FileError(self.path, at, "a sample that int16 holds (read int32 instead)", found)


def _open_regular(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise FileError(path, 0, "a regular file", "a device, pipe or socket")
