"""Statistics of raw samples: extremes of patches, runs of equal samples, exact histograms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from physiofast.engine.arguments import invalid_values, kept_patches, patch_lengths, whole, whole_numbers
from physiofast.engine.native import native, threads
from physiofast.engine.sources import Samples, Source, check_integers, native_source, num_samples, read

if native:
    from physiofast import _native

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True)
class PatchExtremes:
    """Extremes of the valid samples in every patch, int32 [C, P] each."""

    low: Int32s
    """Smallest valid sample; greater than `high` if the patch has no valid sample."""
    high: Int32s
    """Largest valid sample."""
    step: Int32s
    """Largest absolute difference between adjacent valid samples, at most 2^31 - 1; the difference across the border of
    two patches belongs to the later one."""
    num_invalid: Int32s
    """Number of invalid samples."""


def patch_extremes(
    source: Source, channels: Sequence[int], edges: Int64s, invalid: Sequence[int | None]
) -> PatchExtremes:
    """Find the minimum, the maximum, the largest step and the number of invalid samples of every patch.

    Args:
        source: `engine.Source` of integers.
        channels: C' channels of one length.
        edges: int64 [P + 1], ascending: patch p is samples edges[p] up to edges[p + 1] (exclusive).
        invalid: for each channel, the value that marks a missing sample, or None.

    Raises:
        ValueError: channels that do not exist, edges that do not ascend within the signal, or an invalid value that is
            no whole number.
    """
    size = num_samples(source, channels)
    check_integers(source)
    if len(invalid) != len(channels):
        raise ValueError(f"invalid needs one entry for each of {len(channels)} channels, found {len(invalid)}")
    values = invalid_values("invalid {}", invalid)
    edges = whole_numbers("edges", edges)
    if not edges.size or edges[0] < 0 or edges[-1] > size or (np.diff(edges) <= 0).any():
        raise ValueError(f"edges need int64 [P + 1], ascending within 0 to {size}; found {edges[:3]} to {edges[-1:]}")
    out = np.zeros((4, len(channels), edges.size - 1), np.int32)
    if native:
        columns = np.array(channels, np.int64), edges, values
        _native.patch_extremes(native_source(source), *columns, out, threads())
    else:
        for c, channel in enumerate(channels):
            out[:, c] = _extremes_reference(read(source, channel), edges, values[c])
    return PatchExtremes(*out)


def _extremes_reference(samples: Samples, edges: Int64s, invalid: np.int64) -> Int32s:
    """The NumPy twin of `patch_extremes` for one channel, int32 [4, P]."""
    if edges.size < 2:
        return np.zeros((4, 0), np.int32)
    x = samples[: edges[-1]].astype(np.int64)
    bad = x == invalid
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
    """Find the runs of samples that equal one value.

    Args:
        source: `engine.Source` of integers.
        channel: index of the channel.
        value: the value.
        min_length: shortest run that counts, in samples.
        within: int64 [S] starts and int64 [S] stops (exclusive) of the parts of the signal to search, sorted; a run
            ends where its part ends. The whole signal if None.

    Returns:
        int64 [R, 4]: start, stop (exclusive), and the samples before and after the run; at the signal's ends these are
        `value` itself.

    Raises:
        ValueError: no such channel, parts outside the signal, or numbers that are not whole.
    """
    size = num_samples(source, [channel])
    check_integers(source)
    value, min_length = whole("value", value), max(whole("min_length", min_length), 1)
    first, last = ([0], [size]) if within is None else within
    first, last = whole_numbers("starts within", first), whole_numbers("stops within", last)
    if first.shape != last.shape or (first.size and (first.min() < 0 or last.max() > size)):
        raise ValueError(f"within needs starts and stops from 0 to {size}; found {first[:3]} and {last[-3:]}")
    if not _INT32.min <= value <= _INT32.max or min_length > size:
        return np.empty((0, 4), np.int64)
    if native:
        return _native.equal_runs(native_source(source), channel, value, first, last, min_length)
    return _equal_runs_reference(read(source, channel), value, first, last, min_length)


def _equal_runs_reference(samples: Samples, value: int, first: Int64s, last: Int64s, min_length: int) -> Int64s:
    rows = []
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        starts, stops = runs(samples[begin:end] == value)
        for start, stop in zip((starts + begin).tolist(), (stops + begin).tolist(), strict=True):
            before = value if start == 0 else int(samples[start - 1])
            after = value if stop == samples.size else int(samples[stop])
            if stop - start >= min_length:
                rows.append((start, stop, before, after))
    return np.array(rows, np.int64).reshape(-1, 4)


def runs(mask: Bools) -> tuple[Int64s, Int64s]:
    """Find the starts and stops (exclusive) of the runs of True in a mask, bool [n]."""
    padded = np.zeros(mask.size + 2, np.int8)
    padded[1:-1] = mask
    change = np.diff(padded)
    return np.flatnonzero(change == 1), np.flatnonzero(change == -1)


def histograms(planes: Sequence[npt.NDArray[np.int16]], patch: Sequence[int], keep: Sequence[Bools]) -> Int64s:
    """Compute exact histograms of int16 planes over their kept patches.

    Args:
        planes: C-contiguous int16 [n_c] for each channel.
        patch: samples per patch for each channel.
        keep: bool [P_c] for each channel: which patches count. Samples after the last whole patch never do.

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
        if plane.dtype != np.int16 or plane.ndim != 1 or not plane.flags.c_contiguous:
            raise ValueError(f"planes {c} needs C-contiguous int16 [n], found {plane.dtype} {list(plane.shape)}")
    # One sample more than there are: a patch that is longer than its plane is no whole one.
    lengths = patch_lengths(patch, [plane.size + 1 for plane in planes])
    kept = kept_patches(keep, lengths, [plane.size for plane in planes])
    counts = np.zeros((len(planes), 65536), np.int64)
    if native:
        bits = [item.view(np.uint8) for item in kept]
        _native.histograms(list(planes), np.array(lengths, np.int64), bits, counts, threads())
        return counts
    for c, plane in enumerate(planes):
        patches = min(kept[c].size, plane.size // lengths[c])
        chosen = plane[: patches * lengths[c]].reshape(patches, lengths[c])[kept[c][:patches]]
        counts[c] = np.bincount(chosen.reshape(-1).astype(np.int32) + 32768, minlength=65536)
    return counts
