"""What raw samples look like: extremes of patches, runs of one value, exact histograms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from physiofast.engine.native import native, threads
from physiofast.engine.sources import Samples, Source, check_integers, native_source, num_samples, read

if native:
    from physiofast import _native

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_NO_VALUE = 2**62
_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True)
class PatchExtremes:
    """Extremes of the valid samples of every patch, int32 [C, P] each; low > high where there is none."""

    low: Int32s
    high: Int32s
    step: Int32s
    """Largest change between neighbouring valid samples; the first sample of a patch has the last one of the patch
    before as its neighbour. Held at 2^31 - 1."""
    num_invalid: Int32s


def patch_extremes(
    source: Source, channels: Sequence[int], edges: Int64s, invalid: Sequence[int | None]
) -> PatchExtremes:
    """Minimum, maximum, largest step and invalid samples of every patch of some channels.

    Args:
        source: `engine.Source` of integers.
        channels: C' channels of one length.
        edges: int64 [P + 1], ascending: patch p is samples edges[p] up to edges[p + 1].
        invalid: for each channel, the value that is no sample, or None.

    Raises:
        ValueError: channels that do not exist, or edges that do not ascend within the signal.
    """
    size = num_samples(source, channels)
    check_integers(source)
    if len(invalid) != len(channels):
        raise ValueError(f"invalid needs one entry for each of {len(channels)} channels, found {len(invalid)}")
    edges = np.ascontiguousarray(edges, np.int64)
    if edges.ndim != 1 or not edges.size or edges[0] < 0 or edges[-1] > size or (np.diff(edges) <= 0).any():
        raise ValueError(f"edges need int64 [P + 1], ascending within 0 to {size}; found {edges[:3]} to {edges[-1:]}")
    out = np.zeros((4, len(channels), edges.size - 1), np.int32)
    if native:
        values = np.array([_NO_VALUE if value is None else value for value in invalid], np.int64)
        chosen = np.array(channels, np.int64)
        _native.patch_extremes(native_source(source), chosen, edges, values, out, threads())
    else:
        for c, channel in enumerate(channels):
            out[:, c] = _extremes_reference(read(source, channel), edges, invalid[c])
    return PatchExtremes(*out)


def _extremes_reference(samples: Samples, edges: Int64s, invalid: int | None) -> Int32s:
    """The twin, for one channel: int32 [4, P]."""
    if edges.size < 2:
        return np.zeros((4, 0), np.int32)
    x = samples[: edges[-1]].astype(np.int64)
    bad = np.zeros(x.size, np.bool_) if invalid is None else x == invalid
    steps = np.zeros(x.size, np.int64)
    steps[1:] = np.where(bad[1:] | bad[:-1], 0, np.abs(np.diff(x)))
    starts = edges[:-1]
    low = np.minimum.reduceat(np.where(bad, _INT32.max, x), starts)
    high = np.maximum.reduceat(np.where(bad, _INT32.min, x), starts)
    step = np.maximum.reduceat(steps, starts).clip(max=_INT32.max)
    return np.stack([low, high, step, np.add.reduceat(bad.astype(np.int64), starts)]).astype(np.int32)


def equal_runs(
    source: Source,
    channel: int,
    value: int,
    *,
    min_length: int = 1,
    within: tuple[Int64s, Int64s] | None = None,
) -> Int64s:
    """Runs of samples that equal one value.

    Args:
        source: `engine.Source` of integers.
        channel: which channel.
        value: the value looked for.
        min_length: shortest run that counts, in samples.
        within: int64 [S] starts and [S] stops of the stretches to look at, in order; every run is taken to end
            with its stretch. The whole signal when absent.

    Returns:
        int64 [R, 4]: start, stop, and the values before and after the run; the value itself at the signal's ends.

    Raises:
        ValueError: no such channel, or stretches that leave the signal.
    """
    size = num_samples(source, [channel])
    check_integers(source)
    if not _INT32.min <= value <= _INT32.max:
        return np.empty((0, 4), np.int64)
    first, last = (np.array([0]), np.array([size])) if within is None else within
    first, last = np.ascontiguousarray(first, np.int64), np.ascontiguousarray(last, np.int64)
    if first.shape != last.shape or (first.size and (first.min() < 0 or last.max() > size)):
        raise ValueError(f"within needs starts and stops from 0 to {size}; found {first[:3]} and {last[-3:]}")
    if native:
        return _native.equal_runs(native_source(source), channel, value, first, last, min_length)
    return _equal_runs_reference(read(source, channel), value, first, last, min_length)


def _equal_runs_reference(samples: Samples, value: int, first: Int64s, last: Int64s, min_length: int) -> Int64s:
    found = []
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        starts, stops = runs(samples[begin:end] == value)
        for start, stop in zip((starts + begin).tolist(), (stops + begin).tolist(), strict=True):
            before = value if start == 0 else int(samples[start - 1])
            after = value if stop == samples.size else int(samples[stop])
            if stop - start >= min_length:
                found.append((start, stop, before, after))
    return np.array(found, np.int64).reshape(-1, 4)


def runs(mask: Bools) -> tuple[Int64s, Int64s]:
    """Starts and stops (exclusive) of the runs of True in bool [n]."""
    padded = np.zeros(mask.size + 2, np.int8)
    padded[1:-1] = mask
    change = np.diff(padded)
    return np.flatnonzero(change == 1), np.flatnonzero(change == -1)


def histograms(planes: Sequence[npt.NDArray[np.int16]], patch: Sequence[int], keep: Sequence[Bools]) -> Int64s:
    """Exact histograms of int16 planes over their kept patches.

    Args:
        planes: C-contiguous int16 [n_c] for each channel.
        patch: samples of a patch, for each channel.
        keep: bool [P_c] for each channel; samples behind the last whole patch are left out.

    Returns:
        int64 [C, 65536]: `counts[c, sample + 32768]`.

    Raises:
        ValueError: lists of different lengths, planes of another type, or a patch of no sample.
    """
    if not len(planes) == len(patch) == len(keep):
        raise ValueError(
            f"found {len(planes)} planes, {len(patch)} patches and {len(keep)} keep; one of each a channel"
        )
    for c, plane in enumerate(planes):
        if plane.dtype != np.int16 or plane.ndim != 1 or not plane.flags.c_contiguous or patch[c] < 1:
            raise ValueError(
                f"planes {c} needs C-contiguous int16 [n] and a patch of 1 sample or more, found {plane.dtype} "
                f"{list(plane.shape)} and {patch[c]}"
            )
    counts = np.zeros((len(planes), 65536), np.int64)
    kept = [np.ascontiguousarray(item, np.bool_) for item in keep]
    if native:
        bits = [item.view(np.uint8) for item in kept]
        _native.histograms(list(planes), np.asarray(patch, np.int64), bits, counts, threads())
        return counts
    for c, plane in enumerate(planes):
        whole = min(kept[c].size, plane.size // patch[c])
        chosen = plane[: whole * patch[c]].reshape(whole, patch[c])[kept[c][:whole]]
        counts[c] = np.bincount(chosen.reshape(-1).astype(np.int32) + 32768, minlength=65536)
    return counts
