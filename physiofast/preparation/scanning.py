"""Scans raw samples patch by patch for samples that are missing, clipped, flat or out of range, and for jumps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from physiofast import engine

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Runs = npt.NDArray[np.int64]
"""int64 [R, 2]: start and stop (exclusive) of runs of samples, sorted and disjoint."""

MIN_CLIPPED_RUN = 3
"""Shortest run of equal samples at an extreme that counts as clipping."""
RAILS = frozenset(rail for bits in range(10, 33) for top in [1 << (bits - 1)] for rail in (-top, 1 - top, top - 1))
"""Raw values at which converters of 10 to 32 bits saturate; a format's sentinel for missing is handled separately."""
MIN_PILE = 8
"""Ratio of samples at a limit that the header states to samples one step inside it, above which they are clipped.

An unclipped sine whose range equals the header's has a ratio of 1.4, and of 2.4 if its peaks are rounded down to the
limit.
"""


def num_whole(duration_s: float, part_s: float) -> int:
    """How many whole parts fit into a duration; a part that is short by less than a microsecond counts as whole."""
    return math.floor(duration_s / part_s + 1e-6 / part_s)


def patch_edges(num_patches: int, patch_s: float, rate_hz: float) -> npt.NDArray[np.int64]:
    """Patch edges in samples, int64 [P + 1]: patch p holds samples edges[p] up to edges[p + 1] (exclusive)."""
    return np.ceil(np.arange(num_patches + 1) * (patch_s * rate_hz) - 1e-6).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Scan:
    """Statistics of one raw channel in each of P patches, the last of which may be incomplete."""

    source: engine.Source
    channel: int
    """The channel's index in `source`."""
    invalid: int | None
    """The raw value that marks a missing sample; None if there is no such value."""
    edges: npt.NDArray[np.int64]
    """int64 [P + 1], patch edges in samples, from 0 to the end of the signal."""
    low: npt.NDArray[np.int32]
    """int32 [P], smallest valid sample; greater than `high` if a patch has no valid sample."""
    high: npt.NDArray[np.int32]
    """int32 [P], largest valid sample."""
    step: npt.NDArray[np.int32]
    """int32 [P], largest absolute difference between adjacent valid samples."""
    num_invalid: npt.NDArray[np.int32]
    """int32 [P], number of missing samples."""

    @property
    def range(self) -> tuple[int, int] | None:
        """Smallest and largest valid sample of the channel; None if it has none."""
        there = self.low <= self.high
        return (int(self.low[there].min()), int(self.high[there].max())) if there.any() else None

    @property
    def span(self) -> Floats:
        """Peak-to-peak value of each patch, or its largest step if greater, float64 [P]; 0 without a valid sample."""
        return np.maximum(self.high.astype(np.float64) - self.low, self.step).clip(min=0.0)

    def stretches(self, patches: Bools) -> Runs:
        """The runs of samples that selected patches (bool [P]) cover; adjacent patches form one run."""
        starts, stops = engine.runs(patches)
        return np.stack([self.edges[starts], self.edges[stops]], axis=1)

    def runs_of(self, value: int, patches: Bools, min_length: int) -> npt.NDArray[np.int64]:
        """Runs equal to `value` within selected patches (bool [P]), int64 [R, 4], see `engine.equal_runs`."""
        starts, stops = self.stretches(patches).T
        return engine.equal_runs(self.source, self.channel, value, min_length=min_length, within=(starts, stops))


def scan(source: engine.Source, invalid: Sequence[int | None], edges: npt.NDArray[np.int64]) -> list[Scan]:
    """Scan every patch of a source's raw channels.

    Args:
        source: integer samples of channels with one rate, length and type.
        invalid: for each channel, the raw value that marks a missing sample, or None.
        edges: from `patch_edges`; samples after the last edge form one more patch.
    """
    channels = range(len(invalid))
    size = engine.num_samples(source, channels)
    ends = np.concatenate([[0], edges[(edges > 0) & (edges < size)], [size]])
    whole = ends[np.append(True, ends[1:] > ends[:-1])]
    extremes = engine.patch_extremes(source, channels, whole, invalid)
    low, high, step, num_invalid = extremes.low, extremes.high, extremes.step, extremes.num_invalid
    return [Scan(source, c, invalid[c], whole, low[c], high[c], step[c], num_invalid[c]) for c in channels]


def missing_runs(channel: Scan) -> Runs:
    """Runs of samples that the file marks as missing."""
    if channel.invalid is None:
        return np.empty((0, 2), np.int64)
    return channel.runs_of(channel.invalid, channel.num_invalid > 0, 1)[:, :2]


def clipped_runs(channel: Scan, limits: Collection[int] = ()) -> Runs:
    """Runs in which a raw signal is clipped: constant at its own minimum or maximum.

    A run of at least `MIN_CLIPPED_RUN` equal samples at the extreme counts if the extreme is a converter
    rail (`RAILS`), if it is one of `limits` and samples pile up there (`MIN_PILE`), or if the signal jumps by 2
    or more raw steps at both ends of the run (at a smooth peak of a coarse, slow signal it changes by 1).

    Args:
        channel: from `scan`.
        limits: raw limits that the header states. They need not be rails: some exporters write the range that an
            unclipped signal reached.
    """
    if channel.range is None:
        return np.empty((0, 2), np.int64)
    clipped = []
    for extreme in sorted(set(channel.range)):
        runs = channel.runs_of(extreme, (channel.low == extreme) | (channel.high == extreme), MIN_CLIPPED_RUN)
        if extreme not in RAILS and not (extreme in limits and _piles_up(channel, extreme)):
            runs = runs[_abrupt(runs, extreme, int(channel.edges[-1]))]
        clipped.append(runs[:, :2])
    return merge_runs(*clipped)


def merge_runs(*parts: Runs) -> Runs:
    """The union of runs, int64 [R, 2]; runs that overlap or touch become one."""
    every = np.concatenate(parts)
    every = every[np.argsort(every[:, 0], kind="stable")]
    if not len(every):
        return every
    reach = np.maximum.accumulate(every[:, 1])
    first = np.append(True, every[1:, 0] > reach[:-1])
    last = np.append(first[1:], True)
    return np.stack([every[first, 0], reach[last]], axis=1)


def flat_patches(channel: Scan, flat_lsb: int, min_patches: int = 1) -> Bools:
    """Which patches are flat.

    Args:
        channel: from `scan`; a patch without a valid sample counts as flat.
        flat_lsb: largest peak-to-peak value, in raw steps, that counts as flat.
        min_patches: shortest run of such patches that counts (breathing may pause).

    Returns:
        bool [P].
    """
    flat = channel.high.astype(np.int64) - channel.low <= flat_lsb
    for start, stop in zip(*engine.runs(flat), strict=True):
        if stop - start < min_patches:
            flat[start:stop] = False
    return flat


def out_of_range_runs(channel: Scan, least: float, most: float) -> Runs:
    """Runs of patches with a valid sample below `least` or above `most`, both raw values."""
    there = channel.low <= channel.high
    return channel.stretches(there & ((channel.low < least) | (channel.high > most)))


def popped_patches(channel: Scan, digital: npt.NDArray[np.integer], most_step: float, gaps: Runs) -> Bools:
    """Which patches hold a jump: a difference above `most_step` between adjacent samples, within or at their start.

    Args:
        channel: from `scan`.
        digital: the raw samples that were scanned.
        most_step: largest difference, in raw steps, that is no jump.
        gaps: int64 [G, 2], sorted and disjoint runs of samples to skip, whose ends are not jumps.

    Returns:
        bool [P].
    """
    popped = channel.step > most_step
    for patch in np.flatnonzero(popped):
        begin, end = max(int(channel.edges[patch]) - 1, 0), int(channel.edges[patch + 1])
        known = np.ones(end - begin, np.bool_)
        for start, stop in gaps[(gaps[:, 0] < end) & (gaps[:, 1] > begin)]:
            known[max(start - begin, 0) : stop - begin] = False
        steps = np.abs(np.diff(digital[begin:end].astype(np.float64)))
        popped[patch] = (steps[known[1:] & known[:-1]] > most_step).any()
    return popped


def touched_patches(
    runs: Runs, rate_hz: float, num_patches: int, patch_s: float, support_s: float | npt.NDArray[np.float64]
) -> Bools:
    """Which patches lie within `support_s` (one value, or one per run) of a run of samples, bool [P]."""
    starts, stops = runs[:, 0], runs[:, 1]
    first = np.floor((starts / rate_hz - support_s) / patch_s).astype(np.int64).clip(0, num_patches)
    last = np.floor(((stops - 1) / rate_hz + support_s) / patch_s).astype(np.int64).clip(-1, num_patches - 1)
    change = np.zeros(num_patches + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    return np.cumsum(change[:-1]) > 0


def _piles_up(channel: Scan, extreme: int) -> bool:
    """Whether far more samples lie at an extreme of the signal than one raw step inside it; see `MIN_PILE`."""
    assert channel.range is not None
    inside = extreme + 1 if extreme == channel.range[0] else extreme - 1
    return _count(channel, extreme) > MIN_PILE * max(_count(channel, inside), 1)


def _count(channel: Scan, value: int) -> int:
    """The number of samples equal to a value."""
    runs = channel.runs_of(value, (channel.low <= value) & (value <= channel.high), 1)
    return int((runs[:, 1] - runs[:, 0]).sum())


def _abrupt(runs: npt.NDArray[np.int64], extreme: int, size: int) -> Bools:
    """Which rows of `engine.equal_runs` begin and end with a jump, or at the signal's start or end."""
    start, stop, before, after = runs.T
    return ((start == 0) | (np.abs(before - extreme) >= 2)) & ((stop == size) | (np.abs(after - extreme) >= 2))
