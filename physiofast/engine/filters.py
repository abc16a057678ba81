"""Scaling, bridging, zero-phase filters and resampling of many channels at once.

The definitions (`*_reference`) are those of SciPy in float64. The C++ form reads its source in blocks, keeps
float64 in recursive filters, and gives the same bits for any number of threads and any instruction set except SSE2,
which has no fused multiply-add: there the last bit of a filtered float32 may differ. A channel may change by 1e-12 of
its values with the other channels of a call, whose slowest filter decides where blocks are cut. Samples must be finite:
through a recursive filter a NaN reaches every later sample, in both forms.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy

from physiofast.engine.arguments import kept_patches, patch_lengths
from physiofast.engine.memory import empty
from physiofast.engine.native import native, threads
from physiofast.engine.sources import Samples, Source, native_source, num_channels, num_samples, read

if native:
    from physiofast import _native

Floats = npt.NDArray[np.float64]
Edge = Literal["nearest", "zero"]

MAX_RATIO = 1_000_000
"""Largest `up` and `down` of a resampler, after removal of common factors."""

_DECAY = 1e-12
_BLOCK, _MOST_ROWS = 1 << 16, 1 << 19  # rows of 16 float64 lanes: 8 MB, and 64 MB that a slow filter may take
_SMALLEST_RADIUS = 1e-30
_SMALLEST_STEP, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, eq=False)
class Resampler:
    """A polyphase filter: insert `up - 1` zeros between samples, filter, keep every `down`-th."""

    up: int
    down: int
    taps: Floats
    """float64 [odd], centred, at `up` times the input rate; they sum to 1 to preserve the signal's level. A read-only
    copy."""
    native: Any = dataclasses.field(init=False, repr=False)
    """The C++ object; None without the extension, or if the rate stays the same, where SciPy applies no taps either."""

    def __post_init__(self) -> None:
        common = math.gcd(self.up, self.down) or 1
        if min(self.up, self.down) < 1 or max(self.up, self.down) // common > MAX_RATIO:
            raise ValueError(f"up and down must be 1 to {MAX_RATIO}; found {self.up} and {self.down}")
        if np.ndim(self.taps) != 1 or np.size(self.taps) % 2 == 0:
            raise ValueError(f"taps need an odd number in one dimension; found shape {list(np.shape(self.taps))}")
        if not np.isfinite(self.taps).all():
            raise ValueError("taps must be finite")
        taps = np.array(self.taps, np.float64)
        taps.flags.writeable = False
        object.__setattr__(self, "taps", taps)
        up, down = self.up // common, self.down // common
        object.__setattr__(self, "native", _native.Polyphase(up, down, taps * up) if native and up != down else None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Resampler, (self.up, self.down, self.taps)

    def num_outputs(self, num_inputs: int) -> int:
        """The number of output samples for a number of input samples, ceil(num_inputs * up / down)."""
        return -(-num_inputs * self.up // self.down)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ChannelFilter:
    """The processing of one channel of a source, in this order: bridge gaps, scale, filter, resample."""

    channel: int
    """Index of the channel in the source."""
    gaps: npt.NDArray[np.int64] | None = None
    """int64 [G, 2], start and stop (exclusive) of runs of invalid samples, sorted and disjoint. Each is replaced by a
    straight line between its neighbours; at an end of the signal by the value of its one neighbour."""
    scale: float = 1.0
    """Factor of the conversion value = sample * scale + shift."""
    shift: float = 0.0
    sos: Floats | None = None
    """float64 [S, 6], second-order sections, applied forward and backward as by `scipy.signal.sosfiltfilt`; None for no
    filter."""
    resampler: Resampler | None = None
    """Changes the sampling rate; None keeps it."""
    outputs: int | None = None
    """Number of output samples to compute, from the first on; all of them if None."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.shift)):
            raise ValueError(
                f"channel {self.channel}: scale and shift must be finite; found {self.scale}, {self.shift}"
            )
        if self.sos is not None:
            _check_sos(self.sos)


def resample(
    source: Source,
    resampler: Resampler,
    *,
    channels: Sequence[int] | None = None,
    scale: npt.ArrayLike = 1.0,
    shift: npt.ArrayLike = 0.0,
    edge: Edge = "nearest",
    window: int | None = None,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Change the sampling rate of several channels, as `scipy.signal.resample_poly(x, up, down, window=taps)` does.

    Args:
        source: an array [C, n], a tuple of arrays [n], or a signal file (`engine.Source`); finite.
        resampler: ratio and taps.
        channels: indices of channels of one length; all channels if None.
        scale: number or [C']; values are `sample * scale + shift`.
        shift: number or [C'].
        edge: whether the signal is extended by its end values or by zeros.
        window: samples per window; if given, the result is cut into whole windows.
        out: C-contiguous float32 array to write to; a new array if None.

    Returns:
        float32 [C', ceil(n * up / down)], or [W, C', window] in windows.

    Raises:
        ValueError: wrong types or shapes, channels that do not exist or differ in length.
        physiofast.engine.FileError: the file holds less than it promises.
    """
    chosen = range(num_channels(source)) if channels is None else channels
    scales, shifts = (np.broadcast_to(np.asarray(x, np.float64), len(chosen)) for x in (scale, shift))
    filters = [
        ChannelFilter(channel=c, scale=float(a), shift=float(b), resampler=resampler)
        for c, a, b in zip(chosen, scales, shifts, strict=True)
    ]
    return condition(source, filters, edge=edge, window=window, out=out)


def zero_phase(
    source: Source,
    sos: Floats,
    *,
    channels: Sequence[int] | None = None,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Filter several channels forward and backward, as `scipy.signal.sosfiltfilt` with its default padding does.

    The backward pass over a block begins after the block, at a distance within which the initial state decays by
    1e-12. Memory therefore grows not with the signal but with the duration of the filter's response: for each thread, a
    band-pass of order 4 at 200 Hz takes 10 MB with a lower edge of 0.3 Hz, 64 MB with 0.01 Hz, 112 with 0.005, 204 with
    0.002 and 345 with 0.001. A thread processes 16 channels at a time, so 16 channels or fewer use one thread.

    Args:
        source: an array [C, n], a tuple of arrays [n], or a signal file (`engine.Source`); finite.
        sos: float64 [S, 6], a stable cascade.
        channels: indices of channels of one length; all channels if None.
        out: C-contiguous float32 [C', n] to write to; a new array if None.

    Returns:
        float32 [C', n].

    Raises:
        ValueError: arguments that `resample` refuses, an unstable cascade, or a signal not longer than the padding.
    """
    chosen = range(num_channels(source)) if channels is None else channels
    return condition(source, [ChannelFilter(channel=c, sos=sos) for c in chosen], out=out)


def condition(
    source: Source,
    filters: Sequence[ChannelFilter],
    *,
    edge: Edge = "nearest",
    window: int | None = None,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Bridge gaps of channels, scale, filter and resample them, each with its own settings.

    Args:
        source: an array [C, n], a tuple of arrays [n], or a signal file (`engine.Source`); finite.
        filters: one for each channel to process; the channels have one length.
        edge: whether the signal is extended by its end values or by zeros when it is resampled.
        window: samples per window; if given, the result is cut into whole windows.
        out: C-contiguous float32 array to write to; a new array if None.

    Returns:
        float32 [C', m], or [W, C', window] in windows; all channels must have the same number of outputs m.

    Raises:
        ValueError: arguments that `resample` or `zero_phase` refuses.
    """
    size = _check(source, filters, edge)
    outputs = {_outputs(item, size) for item in filters}
    if len(outputs) > 1:
        raise ValueError(f"channels give {sorted(outputs)} samples; one array needs one number")
    total = outputs.pop() if outputs else 0
    if window is not None and window < 1:
        raise ValueError(f"window must be 1 sample or more; found {window}")
    length = max(total, 1) if window is None else window
    shape = (len(filters), total) if window is None else (total // window, len(filters), window)
    out = _output(out, shape)
    wanted = total if window is None else shape[0] * window
    if not out.size:
        return out
    filters = [dataclasses.replace(item, outputs=wanted) for item in filters]
    if native and _has_gains(filters):
        job = _native_job(size, filters, edge)
        job.run_float32(native_source(source), out, length, len(filters) * length, threads())
        return out
    for c, item in enumerate(filters):
        values = condition_reference(read(source, item.channel), item, edge)
        out[..., c, :] = values.reshape(out[..., c, :].shape)
    return out


def condition_int16(
    source: Source,
    filters: Sequence[ChannelFilter],
    *,
    planes: Sequence[npt.NDArray[np.int16] | None],
    lsb: Sequence[float],
    shift: Sequence[float],
    keep: Sequence[npt.NDArray[np.bool_]],
    patch: Sequence[int],
    edge: Edge = "nearest",
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Process channels as `condition` does, and quantise them to int16: `value = sample * lsb + shift`.

    Args:
        source: an array [C, n], a tuple of arrays [n], or a signal file (`engine.Source`); finite.
        filters: one for each of the C channels to process; their numbers of outputs may differ.
        planes: for each channel a C-contiguous int16 array to write to, at least as long as its outputs, or None to
            find its range only. Samples are clipped to +-32767.
        lsb: for each channel the quantisation step, > 0.
        shift: for each channel the value of sample 0.
        keep: bool [P_c] for each channel: which patches count for the range.
        patch: samples per patch for each channel; a patch longer than the channel covers all of it.
        edge: whether the signal is extended by its end values or by zeros when it is resampled.

    Returns:
        low and high, float32 [C]: the range of the values in kept patches before rounding; +inf and -inf
        if there are none. Values are float32 before they are rounded, so a sample may differ by one step from
        that of the float64 definition. A NaN becomes 32767 and does not count for the range.

    Raises:
        ValueError: arguments that `condition` refuses.
    """
    size = _check(source, filters, edge)
    outputs = [_outputs(item, size) for item in filters]
    _check_steps(outputs, planes, lsb, shift, keep, patch)
    lengths = patch_lengths(patch, outputs)
    kept = kept_patches(keep, lengths, outputs)
    steps, shifts = np.asarray(lsb, np.float32), np.asarray(shift, np.float32)
    if native and _has_gains(filters):
        job = _native_job(size, filters, edge)
        bits, counts = [item.view(np.uint8) for item in kept], np.array(lengths, np.int64)
        return job.run_int16(native_source(source), list(planes), steps, shifts, bits, counts, threads())
    ranges = np.empty((2, len(filters)), np.float32)
    for c, item in enumerate(filters):
        values = condition_reference(read(source, item.channel), item, edge)
        chosen = values[: len(kept[c]) * lengths[c]]
        chosen = chosen[np.repeat(kept[c], lengths[c])[: chosen.size] & ~np.isnan(chosen)]
        ranges[:, c] = (chosen.min(), chosen.max()) if chosen.size else (np.inf, -np.inf)
        plane = planes[c]
        if plane is not None:
            rounded = np.rint((values - shifts[c]) / steps[c])
            plane[: values.size] = np.maximum(np.fmin(rounded, 32767), -32767)  # fmin(NaN, x) is x
    return ranges[0], ranges[1]


def condition_reference(samples: Samples, item: ChannelFilter, edge: Edge = "nearest") -> Floats:
    """The SciPy twin of `condition` for the samples [n] of one channel, in float64."""
    x = samples.astype(np.float64)
    if item.gaps is not None and len(item.gaps):
        invalid = np.zeros(x.size, np.bool_)
        for start, stop in item.gaps:
            invalid[start:stop] = True
        known = np.flatnonzero(~invalid)
        # Without any valid sample there is nothing to draw lines between.
        x[invalid] = np.interp(np.flatnonzero(invalid), known, x[known]) if known.size else 0.0
    x = x * item.scale + item.shift
    if item.sos is not None:
        x = scipy.signal.sosfiltfilt(item.sos, x)
    if item.resampler is not None:
        x = _resample_reference(x, item.resampler, edge)
    return x[: item.outputs]


def _resample_reference(x: Floats, resampler: Resampler, edge: Edge) -> Floats:
    if not x.size:
        return np.empty(0)
    options: dict[str, Any] = {"padtype": "edge"} if edge == "nearest" else {"padtype": "constant", "cval": 0.0}
    return scipy.signal.resample_poly(x, resampler.up, resampler.down, window=resampler.taps, **options)


def _check(source: Source, filters: Sequence[ChannelFilter], edge: Edge) -> int:
    """Check filters and their channels; returns the channels' common number of samples."""
    if edge not in ("nearest", "zero"):
        raise ValueError(f"edge must be 'nearest' or 'zero'; found {edge!r}")
    size = num_samples(source, [item.channel for item in filters])
    for item in filters:
        if item.sos is not None and padding(item.sos) >= size:
            raise ValueError(
                f"channel {item.channel}: {size} samples are too few for a zero-phase filter that continues "
                f"both ends by {padding(item.sos)}; give it at least {padding(item.sos) + 1}"
            )
        if item.gaps is not None:
            _check_gaps(item.channel, np.asarray(item.gaps), size)
    return size


def _check_gaps(channel: int, gaps: npt.NDArray[np.int64], size: int) -> None:
    fits = gaps.ndim == 2 and gaps.shape[1] == 2 and np.issubdtype(gaps.dtype, np.integer)
    ends = gaps.astype(np.int64).reshape(-1) if fits else gaps  # unsigned differences are never negative
    # start < stop < next start: runs that touch have to be given as one.
    if not fits or (np.diff(ends) <= 0).any() or (ends.size and (ends[0] < 0 or ends[-1] > size)):
        raise ValueError(
            f"gaps of channel {channel}: expected integers [G, 2], starts and stops of stretches in order, apart from "
            f"each other, within 0 to {size}; found {gaps.dtype} {list(gaps.shape)}: {gaps.tolist()[:4]}"
        )


def _check_steps(
    outputs: Sequence[int],
    planes: Sequence[npt.NDArray[np.int16] | None],
    lsb: Sequence[float],
    shift: Sequence[float],
    keep: Sequence[npt.NDArray[np.bool_]],
    patch: Sequence[int],
) -> None:
    for name, values in {"planes": planes, "lsb": lsb, "shift": shift, "keep": keep, "patch": patch}.items():
        if len(values) != len(outputs):
            raise ValueError(f"{name} needs one entry for each of {len(outputs)} channels, found {len(values)}")
    for c, plane in enumerate(planes):
        if plane is not None and (plane.dtype != np.int16 or plane.ndim != 1 or not plane.flags.carray):
            raise ValueError(f"planes {c} needs writeable, C-contiguous int16 [n], found {plane.dtype} {plane.shape}")
        if plane is not None and plane.size < outputs[c]:
            raise ValueError(f"planes {c} needs room for {outputs[c]} samples, found {plane.size}")
        if not _SMALLEST_STEP <= lsb[c] <= _LARGEST or not abs(shift[c]) <= _LARGEST:
            raise ValueError(
                f"lsb {c} must be at least {_SMALLEST_STEP:.3g} and finite, and its shift finite; found {lsb[c]} and "
                f"{shift[c]}. Scale the channel to a unit in which its values are neither huge nor tiny"
            )


def _check_sos(sos: Floats) -> None:
    """Check that sections have shape [S, 6], a fourth coefficient of 1, and poles inside the unit circle."""
    if np.ndim(sos) != 2 or np.shape(sos)[1] != 6 or not len(sos):
        raise ValueError(f"sos needs shape [S, 6], found {list(np.shape(sos))}")
    if not np.isfinite(sos).all() or (np.asarray(sos)[:, 3] != 1).any():
        raise ValueError("sos must be finite, and 1 in its fourth column (a0)")
    radius = _pole_radius(np.ascontiguousarray(sos, np.float64).tobytes())
    if radius >= 1:
        raise ValueError(f"the filter is unstable: a pole has radius {radius:.9g}, which must be below 1")


@functools.lru_cache(maxsize=256)
def _pole_radius(raw: bytes) -> float:
    sections = np.frombuffer(raw).reshape(-1, 6)
    return max((abs(root) for section in sections for root in np.roots(section[3:])), default=0.0)


def _outputs(item: ChannelFilter, size: int) -> int:
    total = size if item.resampler is None else item.resampler.num_outputs(size)
    if item.outputs is None:
        return total
    if not 0 <= item.outputs <= total:
        raise ValueError(f"channel {item.channel}: expected 0 to {total} outputs, found {item.outputs}")
    return item.outputs


def _output(out: npt.NDArray[np.float32] | None, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if out is None:
        return empty(shape, np.float32)
    if out.dtype != np.float32 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"out needs writeable, C-contiguous float32 {list(shape)}, found {out.dtype} {list(out.shape)}, "
            f"contiguous {out.flags.c_contiguous}, writeable {out.flags.writeable}"
        )
    return out


def padding(sos: Floats) -> int:
    """The number of samples by which `scipy.signal.sosfiltfilt` extends both ends of a signal."""
    sos = np.asarray(sos)
    taps = 2 * len(sos) + 1 - min((sos[:, 2] == 0).sum(), (sos[:, 5] == 0).sum())
    return int(3 * taps)


@functools.lru_cache(maxsize=256)
def _cascade(raw: bytes) -> tuple[Any, int]:
    """The C++ object of a cascade, and the number of samples in which its state decays by `_DECAY`."""
    sos = np.frombuffer(raw).reshape(-1, 6)
    edge, sos = padding(sos), _with_paired_zeros(sos)
    decay = math.ceil(math.log(_DECAY) / math.log(max(_pole_radius(raw), _SMALLEST_RADIUS)))
    return _native.Cascade(sos, scipy.signal.sosfilt_zi(sos), edge), decay


def _with_paired_zeros(sos: Floats) -> Floats:
    """Regroup a cascade's zeros so that as many sections as possible have one at 1 and one at -1; those come first.

    SciPy gives sections of a band-pass two zeros at -1, or two at 1. Which zeros share a section does not matter for
    the cascade. With one at 1 and one at -1 the C++ form needs 3 operations per section instead of 5, and the first
    section already removes an offset. In float64 the error of a filter of 0.1 to 35 Hz at 512 Hz is then 1e-10 of the
    largest value, for noise and for noise on an offset of 10,000; with SciPy's grouping it is 3e-11 and 4e-8.
    """
    sos = sos.copy()
    zeros = sos[:, 1:3] / sos[:, :1]
    at_minus_one = np.flatnonzero((zeros == (2, 1)).all(1))
    at_one = np.flatnonzero((zeros == (-2, 1)).all(1))
    for pair in zip(at_minus_one, at_one, strict=False):
        for section in pair:
            sos[section, 1:3] = 0, -sos[section, 0]
    light = (sos[:, 1] == 0) & (sos[:, 2] == -sos[:, 0])
    return np.concatenate([_alternated(sos[light]), sos[~light]])


def _alternated(sos: Floats) -> Floats:
    """Order sections with a zero at 1 and one at -1 so that fast and slow poles alternate.

    A section with slow poles amplifies its band by 1 / (distance of the poles from 1), which a section with fast poles
    reverses; several slow ones in a row would exhaust the precision of float64.
    """
    slow_first = np.argsort([np.abs(np.roots(section[3:]) - 1).min(initial=1) for section in sos])
    turns = np.empty(len(sos), np.intp)
    turns[0::2], turns[1::2] = slow_first[::-1][: (len(sos) + 1) // 2], slow_first[: len(sos) // 2]
    return sos[turns]


def _has_gains(filters: Sequence[ChannelFilter]) -> bool:
    """Whether every section has a first coefficient to divide by, as the C++ form does; SciPy serves the others."""
    return all(item.sos is None or (np.abs(np.asarray(item.sos)[:, 0]) > 1e-30).all() for item in filters)


def _native_job(size: int, filters: Sequence[ChannelFilter], edge: Edge) -> Any:
    nothing = _native.Cascade(np.empty((0, 6)), np.empty((0, 2)), 0), 1
    cascades = [
        nothing if item.sos is None else _cascade(np.ascontiguousarray(item.sos, np.float64).tobytes())
        for item in filters
    ]
    run_in = max((decay for _, decay in cascades), default=1)
    # Long blocks make the way to them cheap; of a very slow filter they are as long as that way.
    block = max(_BLOCK, min(4 * run_in, _MOST_ROWS - run_in), min(run_in, _MOST_ROWS))
    job = _native.ConditionJob(size, block, run_in, edge == "nearest")
    for item, (cascade, _) in zip(filters, cascades, strict=True):
        gaps = np.empty(0, np.int64) if item.gaps is None else np.ascontiguousarray(item.gaps, np.int64)
        resampler = None if item.resampler is None else item.resampler.native
        job.add(item.channel, item.scale, item.shift, cascade, resampler, _outputs(item, size), gaps.reshape(-1))
    return job
