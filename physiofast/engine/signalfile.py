"""Signal files: samples of WFDB files and of EDF and BDF data records, by position."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.engine.formats import FORMATS, unpack
from physiofast.engine.native import FileError, native, threads

if native:
    from physiofast import _native

Samples = npt.NDArray[Any]
Checksums = npt.NDArray[np.uint16]
Int64Array = npt.NDArray[np.int64]
Path = str | os.PathLike[str]

_DTYPES = tuple(np.dtype(name) for name in ("int16", "int32", "float32", "float64"))
_NO_VALUE = 2**62
_MAX_SAMPLES = 2**60
_BLOCK_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How each channel of a file becomes physical: (stored - baseline) / gain, NaN where invalid."""

    gain: Sequence[float]
    """Digital steps per unit, for each channel; not 0."""
    baseline: Sequence[float]
    """Stored value of physical 0, for each channel."""
    invalid: Sequence[int | None]
    """Stored value that means "no sample", for each channel, or None."""
    columns: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Int64Array] = dataclasses.field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        gain, baseline = np.array(self.gain, np.float64, ndmin=1), np.array(self.baseline, np.float64, ndmin=1)
        invalid = np.array([_NO_VALUE if value is None else value for value in self.invalid], np.int64)
        if not gain.size == baseline.size == invalid.size:
            raise ValueError(f"calibration of {gain.size} gains, {baseline.size} baselines, {invalid.size} invalids")
        for i in range(gain.size):
            if gain[i] == 0 or not np.isfinite(gain[i]) or not np.isfinite(baseline[i]):
                raise ValueError(
                    f"calibration of channel {i}: expected a finite gain other than 0 and a finite baseline, "
                    f"found gain {gain[i]}, baseline {baseline[i]}"
                )
        object.__setattr__(self, "columns", (gain, baseline, invalid))


class SignalFile:
    """A signal file that stays open: frames one after another, each with some samples of every channel.

    A frame has the samples of its channels one channel after another, as WFDB's multi-rate frames and the
    data records of EDF (format 16) and BDF (format 24) have them. Reads are by position, so any number of
    threads may share one object. The file is never memory-mapped: one that shrinks raises `FileError`.
    Memory beyond the output stays below 1 MB per thread. Objects pickle; the copy opens the file again.
    """

    def __init__(
        self,
        path: Path,
        format: int,
        samples_per_frame: Sequence[int],
        num_frames: int,
        *,
        byte_offset: int = 0,
        initial_values: Sequence[int] | None = None,
    ) -> None:
        """Open the file and check its size.

        Args:
            path: the file.
            format: 8, 16, 24, 32, 61, 80, 160, 212, 310 or 311.
            samples_per_frame: of each channel, 1 or more.
            num_frames: frames in the file.
            byte_offset: where the first frame begins.
            initial_values: of each channel, what format 8 counts from; 0 when absent.

        Raises:
            OSError: the file cannot be opened.
            FileError: the file is shorter than that, or is no regular file.
            ValueError: an unknown format, or sizes that cannot be.
        """
        self.path = os.fspath(path)
        self.format = int(format)
        self.samples_per_frame = tuple(int(count) for count in samples_per_frame)
        self.num_frames = int(num_frames)
        self.byte_offset = int(byte_offset)
        self.initial_values = tuple(int(value) for value in initial_values or ())
        if self.format not in FORMATS:
            names = ", ".join(map(str, FORMATS))
            raise ValueError(f"{self.path}: format: expected one of {names}, found {format}")
        for value in (*self.samples_per_frame, self.num_frames, self.byte_offset):
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"{self.path}: expected sizes of 64 bits, found {value}")
        for value in self.initial_values:
            if not -(2**31) <= value < 2**31:
                raise ValueError(f"{self.path}: expected initial values of 32 bits, found {value}")
        self._file = self._open()

    def _open(self) -> Any:
        if not native:
            return _Twin(*self._arguments())
        path, *rest = self._arguments()
        return _native.SignalFile(os.fsencode(path), *rest)

    def _arguments(self) -> tuple[Any, ...]:
        counts, values = list(self.samples_per_frame), list(self.initial_values)
        return self.path, self.format, counts, self.num_frames, self.byte_offset, values

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), *self._arguments())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.path!r}, format {self.format}, {self.num_frames} frames of "
            f"{sum(self.samples_per_frame)} samples of {self.num_channels} channels from byte {self.byte_offset})"
        )

    @property
    def num_channels(self) -> int:
        """Channels of a frame."""
        return len(self.samples_per_frame)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest type that holds every sample: int32 for formats 8, 24 and 32, else int16."""
        return np.dtype(FORMATS[self.format].dtype)

    def num_samples(self, channel: int) -> int:
        """Samples of a channel in the whole file."""
        return self.samples_per_frame[channel] * self.num_frames

    def decode(
        self,
        channels: Sequence[int],
        first: int = 0,
        last: int | None = None,
        *,
        calibration: Calibration | None = None,
        dtype: npt.DTypeLike | None = None,
        out: Samples | None = None,
    ) -> Samples:
        """Samples of some channels, as one plane each. The file is read once, in order.

        Args:
            channels: which, in the order wanted; repeats are allowed.
            first: first sample, at each channel's own rate.
            last: end sample (exclusive); the end of the file when absent, for channels of one rate.
            calibration: of all channels of the file; values are physical then, else the stored integers.
                float64 is (stored - baseline) / gain; float32 is (stored - baseline) * (1 / gain) in
                float64, rounded once.
            dtype: int16, int32, float32 or float64; `self.dtype` when absent, float32 with a calibration.
            out: [len(channels), last - first] of one of these types to write into, each row contiguous.

        Returns:
            [len(channels), last - first]; `out` where it was given.

        Raises:
            OSError: the file cannot be read.
            FileError: the file has become too short, or a sample of format 8 does not fit into int16.
            ValueError: a channel or range that does not exist, int16 for formats 24 and 32, an integer type
                with a calibration, an `out` of another shape or type.
        """
        if last is None:
            last = self._common_end(channels)
        chosen = np.array(channels, np.int64, ndmin=1)
        if out is None:
            for i, channel in enumerate(channels):
                _check_run(self, i, channel, first, last - first)
            out = np.empty((chosen.size, last - first), self._output_type(dtype, calibration))
        elif out.dtype not in _DTYPES or not out.flags.writeable or not out.flags.aligned:
            raise ValueError(f"out needs writeable int16, int32, float32 or float64, found {out.dtype}")
        columns = calibration and calibration.columns
        self._file.read_planes(chosen, first, last - first, out, columns, threads())
        return out

    def decode_runs(
        self,
        channels: Sequence[int],
        first: Sequence[int],
        last: Sequence[int],
        *,
        calibration: Calibration | None = None,
        dtype: npt.DTypeLike | None = None,
        out: Sequence[Samples] | None = None,
        checksums: Checksums | None = None,
    ) -> list[Samples]:
        """Samples of channels that may differ in rate and range. The file is read once, in order.

        Args:
            channels: which, in the order wanted; repeats are allowed.
            first: first sample of each, at its own rate.
            last: end sample of each (exclusive).
            calibration: as for `decode`.
            dtype: as for `decode`.
            out: arrays [last - first] of one type to write into, contiguous.
            checksums: uint16 [len(channels)], set to the sum of each run's samples, as stored, modulo 2^16.

        Returns:
            For each channel [last - first].

        Raises:
            OSError: as `decode`.
            ValueError: as `decode`.
        """
        for i, (channel, begin, end) in enumerate(zip(channels, first, last, strict=True)):
            _check_run(self, i, channel, begin, end - begin)
        if out is None:
            wanted = self._output_type(dtype, calibration)
            out = [np.empty(end - begin, wanted) for begin, end in zip(first, last, strict=True)]
        _check_outputs(out, [(end - begin,) for begin, end in zip(first, last, strict=True)])
        if checksums is not None:
            checksums[:] = 0
        columns = calibration and calibration.columns
        chosen, begins = np.array(channels, np.int64), np.array(first, np.int64)
        self._file.read_runs(chosen, begins, list(out), columns, checksums, threads())
        return list(out)

    def _output_type(self, dtype: npt.DTypeLike | None, calibration: Calibration | None) -> np.dtype[Any]:
        if dtype is None:
            return self.dtype if calibration is None else np.dtype(np.float32)
        chosen = np.dtype(dtype)
        if chosen not in _DTYPES:
            raise ValueError(f"dtype: expected int16, int32, float32 or float64, found {chosen}")
        return chosen

    def _common_end(self, channels: Sequence[int]) -> int:
        ends = {self.num_samples(channel) for channel in channels if 0 <= channel < self.num_channels}
        if len(ends) > 1:
            raise ValueError(f"{self.path}: channels of different rates have no common end; give last")
        return next(iter(ends), 0)


def _check_outputs(out: Sequence[Samples], shapes: Sequence[tuple[int, ...]]) -> None:
    if len(out) != len(shapes):
        raise ValueError(f"out: expected {len(shapes)} arrays, found {len(out)}")
    for i, (array, shape) in enumerate(zip(out, shapes, strict=True)):
        usable = array.flags.writeable and array.flags.aligned and array.flags.c_contiguous
        if array.dtype not in _DTYPES or array.dtype != out[0].dtype or array.shape != shape or not usable:
            raise ValueError(
                f"out {i}: expected writeable, contiguous int16, int32, float32 or float64 {list(shape)}, all of one "
                f"type, found {array.dtype} {list(array.shape)}, writeable {array.flags.writeable}, "
                f"contiguous {array.flags.c_contiguous}"
            )


class SignalFileReference(SignalFile):
    """The NumPy twin of `SignalFile`. It reads whole frames, at least 256 KB of them at a time."""

    def _open(self) -> Any:
        return _Twin(*self._arguments())


def checksum(samples: npt.NDArray[np.int16] | npt.NDArray[np.int32]) -> int:
    """The checksum of a WFDB header: the sum of int16 or int32 samples [n] modulo 2^16.

    Raises:
        ValueError: another type or shape.
    """
    if samples.dtype not in _DTYPES[:2] or samples.ndim != 1:
        raise ValueError(f"samples: expected int16 or int32 [n], found {samples.dtype} {list(samples.shape)}")
    if native:
        return _native.checksum(np.ascontiguousarray(samples))
    return checksum_reference(samples)


def checksum_reference(samples: npt.NDArray[np.int16] | npt.NDArray[np.int32]) -> int:
    """The NumPy twin of `checksum`."""
    return int(samples.sum(dtype=np.int64)) & 0xFFFF


def _reopen(
    kind: type[SignalFile],
    path: Path,
    format: int,
    counts: Sequence[int],
    num_frames: int,
    byte_offset: int,
    initial_values: Sequence[int],
) -> SignalFile:
    return kind(path, format, counts, num_frames, byte_offset=byte_offset, initial_values=initial_values)


def _check_run(file: SignalFile | _Twin, index: int, channel: int, first: int, count: int) -> None:
    """What SignalFile::check_run of csrc/wfdb.cpp refuses, in its words."""
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


class _Twin:
    """What `_native.SignalFile` does, in NumPy."""

    def __init__(
        self,
        path: Path,
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
        if out.shape != (channels.size, count) or (out.size > 1 and count > 1 and out.strides[1] != out.itemsize):
            raise ValueError("out needs one contiguous row of count samples per channel")
        self.read_runs(channels, np.full(channels.size, first), list(out), columns, None)

    def read_runs(
        self,
        channels: Int64Array,
        first: Int64Array,
        out: Sequence[Samples],
        columns: Any,
        checksums: Checksums | None,
        num_threads: int = 1,
    ) -> None:
        for i, (channel, begin) in enumerate(zip(channels.tolist(), first.tolist(), strict=True)):
            _check_run(self, i, channel, begin, out[i].size)
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
        for frame, block in self._blocks(begin, end):
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
        per_frame = self.samples_per_frame[channel]
        base = frame * per_frame
        low, high = max(start, base), min(start + target.size, base + block.shape[0] * per_frame)
        if low >= high:
            return
        place = self._starts[channel]
        stored = block[:, place : place + per_frame].reshape(-1)[low - base : high - base]
        if target.dtype == np.int16 and stored.dtype != np.int16:
            self._check_fit(stored, channel, low)
        if checksum is not None:
            checksum += np.uint16(checksum_reference(stored))
        part = target[low - start : high - start]
        if columns is None:
            part[:] = stored
            return
        gain, baseline, invalid = (column[channel] for column in columns)
        distance = stored - baseline
        with np.errstate(over="ignore"):
            part[:] = distance / gain if target.dtype == np.float64 else distance * (1 / gain)
        part[stored == invalid] = np.nan

    def _check_fit(self, stored: Samples, channel: int, first: int) -> None:
        wrong = np.flatnonzero((stored < -(2**15)) | (stored >= 2**15))
        if wrong.size:
            frame, inside = divmod(first + int(wrong[0]), self.samples_per_frame[channel])
            at = self.byte_offset + frame * self.width + self._starts[channel] + inside
            expected = "a sample that int16 holds (read int32 instead)"
            raise FileError(self.path, at, expected, str(stored[wrong[0]]))


def _open_regular(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise FileError(path, 0, "a regular file", "a device, pipe or socket")
