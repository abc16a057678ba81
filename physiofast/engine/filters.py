"""Scaling, bridging, zero-phase filters and resampling of many channels at once.

The definitions (`*_reference`) are those of SciPy in float64. The C++ form reads its source in blocks, keeps
float64 where a filter feeds back, and gives the same bits for any number of threads and any instruction set; but
SSE2, which has no fused multiply-add, may give the last bit of a filtered float32 another value. What other channels
a call filters may change a channel by 1e-12 of its values: the slowest filter among them sets where blocks are cut.
Samples are taken to be finite: a NaN reaches every sample behind it through a filter that feeds
back, in both forms.
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
"""Largest `up` and `down` of a resampler, after common factors are taken out."""

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
    """float64 [odd], at `up` times the input rate, centred; they sum to 1 where the level is to stay. A copy that
    cannot be written to."""
    native: Any = dataclasses.field(init=False, repr=False)
    """The C++ side; None when the rate stays, for then SciPy applies no taps either, and without the extension."""

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
        """ceil(num_inputs * up / down)."""
        return -(-num_inputs * self.up // self.down)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ChannelFilter:
    """What one channel of a source goes through, in this order: bridge, scale, filter, resample."""

    channel: int
    """Its number in the source."""
    gaps: npt.NDArray[np.int64] | None = None
    """int64 [G, 2]: stretches of invalid samples (start, stop), in order, apart from each other. They are replaced
    by straight lines between their neighbours; at the ends of the signal by the one neighbour."""
    scale: float = 1.0
    """value = sample * scale + shift."""
    shift: float = 0.0
    sos: Floats | None = None
    """float64 [S, 6], second-order sections that are run forward and backward, as `scipy.signal.sosfiltfilt`."""
    resampler: Resampler | None = None
    """None keeps the rate."""
    outputs: int | None = None
    """How many samples are wanted, from the first on; all of them when None."""

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
    """Change the rate of several channels, as `scipy.signal.resample_poly(x, up, down, window=taps)`.

    Args:
        source: an array [C, n], a tuple of arrays [n], or a signal file (`engine.Source`); finite.
        resampler: ratio and taps.
        channels: which channels; all of them when absent. They have one length.
        scale: number or [C']; values are `sample * scale + shift`.
        shift: number or [C'].
        edge: the signal continues by its end values, or by zeros.
        window: samples of a window; whole windows only are given then.
        out: C-contiguous float32 to write into; a new array when absent.

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
    """Filter several channels forward and backward, as `scipy.signal.sosfiltfilt` with its default padding.

    The backward pass over a block begins behind it, where what it was started with decays by 1e-12 within the
    way to the block, so memory does not grow with the signal, but with the time the filter rings for: a band-pass of
    order 4 at 200 Hz takes 10 MB from 0.3 Hz up, 64 MB from 0.01 Hz, 112 from 0.005, 204 from 0.002 and 345 from 0.001,
    for each thread. A thread takes 16 channels at a time, so that 16 channels or fewer are the work of one.

    Args:
        source: an array [C, n], a tuple of arrays [n], or a signal file (`engine.Source`); finite.
        sos: float64 [S, 6], a stable cascade.
        channels: which channels; all of them when absent. They have one length.
        out: C-contiguous float32 [C', n] to write into; a new array when absent.

    Returns:
        float32 [C', n].

    Raises:
        ValueError: as `resample`; an unstable cascade; a signal that is not longer than the padding.
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
    """Bridge, scale, filter and resample channels, each in its own way.

    Args:
        source: an array [C, n], a tuple of arrays [n], or a signal file (`engine.Source`); finite.
        filters: one for each channel that is wanted; the channels have one length.
        edge: the signal continues by its end values, or by zeros, where it is resampled.
        window: samples of a window; whole windows only are given then.
        out: C-contiguous float32 to write into; a new array when absent.

    Returns:
        float32 [C', m], which need one number of outputs m, or [W, C', window] in windows.

    Raises:
        ValueError: as `resample` and `zero_phase`.
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
    """As `condition`, rounded to int16 at a stated step: `value = sample * lsb + shift`.

    Args:
        source: as `condition`.
        filters: C of them; the numbers of outputs may differ.
        planes: C-contiguous int16 to write into, as long as the outputs or longer, held within +-32767; None finds the
            range only.
        lsb: C steps, > 0.
        shift: C values of sample 0.
        keep: bool [P_c] for each channel: patches that count for the range.
        patch: samples of a patch, for each channel; one of more samples than there are holds all of them.
        edge: as `condition`.

    Returns:
        low and high, float32 [C]: the range of the values in kept patches, before rounding; +inf and -inf
        where there are none. Values are float32 before they are rounded, so a sample may differ by one step from
        that of the float64 definition. A NaN becomes 32767 and does not count for the range.

    Raises:
        ValueError: as `condition`.
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
    """The definition of `condition` for the samples [n] of one channel, in float64."""
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
    """The number of samples of every channel."""
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
    # start < stop < next start: stretches that touch are one.
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
    """Sections of shape [S, 6] whose fourth coefficient is 1 and whose poles lie inside the unit circle."""
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
    """Samples by which `sosfiltfilt` continues both ends of a signal."""
    sos = np.asarray(sos)
    taps = 2 * len(sos) + 1 - min((sos[:, 2] == 0).sum(), (sos[:, 5] == 0).sum())
    return int(3 * taps)


@functools.lru_cache(maxsize=256)
def _cascade(raw: bytes) -> tuple[Any, int]:
    """The C++ side of a cascade, and the samples in which its state decays by `_DECAY`."""
    sos = np.frombuffer(raw).reshape(-1, 6)
    edge, sos = padding(sos), _with_paired_zeros(sos)
    decay = math.ceil(math.log(_DECAY) / math.log(max(_pole_radius(raw), _SMALLEST_RADIUS)))
    return _native.Cascade(sos, scipy.signal.sosfilt_zi(sos), edge), decay


def _with_paired_zeros(sos: Floats) -> Floats:
    """The same filter, of sections with a zero at 1 and one at -1 as far as there are such, which come first.

    SciPy gives sections of a band-pass two zeros at -1, or two at 1. The zeros of all sections are one set, so they may
    be shared out as one at 1 and one at -1 each: the C++ form then needs 3 operations for a section in place of 5,
    and the first section already takes an offset away. In float64 the filter of 0.1 to 35 Hz at 512 Hz errs by
    1e-10 of the largest value so, of noise as of noise on an offset of 10,000; SciPy's by 3e-11 and 4e-8.
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
    """Sections with a zero at 1 and one at -1, fast poles and slow ones in turn.

    By itself a section of slow poles amplifies its band by 1 / (distance of the poles from 1), which a fast one takes
    back: several slow ones in a row would leave nothing of float64.
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
