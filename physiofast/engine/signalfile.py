"""Reads samples of WFDB signal files and of EDF and BDF data records by position."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.engine.arguments import invalid_values, whole
from physiofast.engine.formats import FORMATS
from physiofast.engine.memory import empty
from physiofast.engine.native import native, threads
from physiofast.engine.signalfile_twin import Checksums, Int64Array, Samples, Twin, check_run, checksum_reference

if native:
    from physiofast import _native

Path = str | os.PathLike[str]

_DTYPES = tuple(np.dtype(name) for name in ("int16", "int32", "float32", "float64"))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The conversion of each channel of a file to physical values: (stored - baseline) / gain, NaN where invalid."""

    gain: Sequence[float]
    """Digital steps per physical unit for each channel; not 0."""
    baseline: Sequence[float]
    """Stored value of physical 0, for each channel."""
    invalid: Sequence[int | None]
    """Stored value that marks a missing sample, for each channel, or None."""
    columns: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Int64Array] = dataclasses.field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        gain, baseline = np.array(self.gain, np.float64, ndmin=1), np.array(self.baseline, np.float64, ndmin=1)
        invalid = invalid_values("invalid {} of a calibration", self.invalid)
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
    """An open signal file: consecutive frames, each with one or more samples of every channel.

    A frame holds the samples of one channel after another, as WFDB's multi-rate frames and the data records of
    EDF (format 16) and BDF (format 24) do. Reads are by position, so any number of
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
            samples_per_frame: number of samples of each channel in a frame, 1 or more.
            num_frames: number of frames in the file.
            byte_offset: where the first frame begins.
            initial_values: for each channel the value to which format 8 adds its differences; 0 if None.

        Raises:
            OSError: the file cannot be opened.
            FileError: the file is shorter than that, or is no regular file.
            ValueError: an unknown format, or sizes out of range.
        """
        self.path = os.fspath(path)
        self.format = whole("format", format)
        self.samples_per_frame = tuple(whole("samples_per_frame", count) for count in samples_per_frame)
        self.num_frames = whole("num_frames", num_frames)
        self.byte_offset = whole("byte_offset", byte_offset)
        given = () if initial_values is None else initial_values
        self.initial_values = tuple(whole("initial_values", value) for value in given)
        if (b"\0" if isinstance(self.path, bytes) else "\0") in self.path:
            raise ValueError(f"{self.path!r}: expected the name of a file, found a null character in it")
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
            return Twin(*self._arguments())
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
        """The number of channels."""
        return len(self.samples_per_frame)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that represents every sample: int32 for formats 8, 24 and 32, else int16."""
        return np.dtype(FORMATS[self.format].dtype)

    def num_samples(self, channel: int) -> int:
        """The number of samples of a channel in the whole file.

        Raises:
            ValueError: no such channel.
        """
        if not 0 <= channel < self.num_channels:
            raise ValueError(f"{self.path}: expected channel 0 to {self.num_channels - 1}, found {channel}")
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
        """Read samples of channels, one plane each. The file is read once, in order.

        Args:
            channels: indices of the channels in the order wanted; repeats are allowed.
            first: first sample, at each channel's own rate.
            last: end sample (exclusive); the end of the file if None, for channels of one rate.
            calibration: calibration of all channels of the file, for physical values; None for the stored integers.
                float64 is (stored - baseline) / gain; float32 is (stored - baseline) * (1 / gain) in
                float64, rounded once.
            dtype: int16, int32, float32 or float64; if None, float32 with a calibration, else `self.dtype`.
            out: [len(channels), last - first] of one of these types to write to, each row contiguous.

        Returns:
            [len(channels), last - first]; `out` if given.

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
                check_run(self, i, channel, first, last - first)
            out = empty((chosen.size, last - first), self._output_type(dtype, calibration))
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
        """Read samples of channels that may differ in rate and range. The file is read once, in order.

        Args:
            channels: indices of the channels in the order wanted; repeats are allowed.
            first: first sample of each channel, at its own rate.
            last: end sample of each channel (exclusive).
            calibration: see `decode`.
            dtype: see `decode`.
            out: arrays [last - first] of one type to write to, contiguous.
            checksums: uint16 [len(channels)] to write to: the sum of each run's stored samples modulo 2^16.

        Returns:
            For each channel [last - first].

        Raises:
            OSError: the file cannot be read.
            ValueError: the errors of `decode`.
        """
        for i, (channel, begin, end) in enumerate(zip(channels, first, last, strict=True)):
            check_run(self, i, channel, begin, end - begin)
        if out is None:
            wanted = self._output_type(dtype, calibration)
            out = [empty(end - begin, wanted) for begin, end in zip(first, last, strict=True)]
        _check_outputs(out, [(end - begin,) for begin, end in zip(first, last, strict=True)])
        if checksums is not None:
            _check_sums(checksums, len(out))
            checksums[:] = 0
        columns = calibration and calibration.columns
        chosen, begins = np.array(channels, np.int64), np.array(first, np.int64)
        self._file.read_runs(chosen, begins, list(out), columns, checksums, threads())
        return list(out)

    def decode_windows(
        self,
        channels: Sequence[int],
        starts: Sequence[int] | Int64Array,
        length: int,
        *,
        calibration: Calibration | None = None,
        dtype: npt.DTypeLike | None = None,
        out: Samples | None = None,
    ) -> Samples:
        """Read many windows of one length with several threads.

        Args:
            channels: indices of channels of one rate, in the order wanted; repeats are allowed.
            starts: first sample of each window, at the channels' rate, in any order; windows may overlap.
            length: number of samples in a window.
            calibration: see `decode`.
            dtype: see `decode`.
            out: [len(starts), len(channels), length] of one of these types to write to, contiguous.

        Returns:
            [len(starts), len(channels), length]; `out` if given.

        Raises:
            OSError: the file cannot be read.
            ValueError: channels of different rates, or the errors of `decode`; ranges are checked before any write.
        """
        begins = self._check_windows(channels, starts, length)
        shape = (begins.size, len(channels), length)
        if out is None:
            out = empty(shape, self._output_type(dtype, calibration))
        usable = out.flags.writeable and out.flags.aligned and out.flags.c_contiguous
        if out.dtype not in _DTYPES or out.shape != shape or not usable:
            raise ValueError(
                f"out: expected writeable, contiguous int16, int32, float32 or float64 {list(shape)}, found "
                f"{out.dtype} {list(out.shape)}, writeable {out.flags.writeable}, contiguous {out.flags.c_contiguous}"
            )
        chosen = np.array(channels, np.int64, ndmin=1)
        self._file.read_windows(chosen, begins, length, out, calibration and calibration.columns, threads())
        return out

    def _check_windows(self, channels: Sequence[int], starts: Sequence[int] | Int64Array, length: int) -> Int64Array:
        given = np.asarray(starts)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ValueError(f"{self.path}: starts: expected whole numbers [W], found {given.dtype} {given.shape}")
        if length < 0:
            raise ValueError(f"{self.path}: length: expected 0 or more, found {length}")
        for start in (int(given.min()), int(given.max())) if given.size else ():
            for i, channel in enumerate(channels):
                check_run(self, i, channel, start, length)
        rates = {self.samples_per_frame[channel] for channel in channels if 0 <= channel < self.num_channels}
        if len(rates) > 1:
            raise ValueError(f"{self.path}: windows need channels of one rate; found {sorted(rates)} samples per frame")
        return np.ascontiguousarray(given, np.int64)

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


def _check_sums(checksums: Checksums, count: int) -> None:
    if checksums.dtype != np.uint16 or checksums.shape != (count,) or not checksums.flags.carray:
        raise ValueError(
            f"checksums: expected writeable, contiguous uint16 [{count}], found {checksums.dtype} "
            f"{list(checksums.shape)}, writeable {checksums.flags.writeable}, "
            f"contiguous {checksums.flags.c_contiguous}"
        )


class SignalFileReference(SignalFile):
    """The NumPy twin of `SignalFile`. It reads whole frames, at least 256 KB of them at a time."""

    def _open(self) -> Any:
        return Twin(*self._arguments())


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
