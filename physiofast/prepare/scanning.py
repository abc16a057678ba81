"""Raw samples looked at patch by patch: where they are missing, clipped, flat, outside of a range, or jump."""

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
"""int64 [R, 2]: starts and stops (exclusive) of stretches of samples, in order, apart from each other."""

MIN_CLIPPED_RUN = 3
"""Equal consecutive samples at an extreme that count as clipping."""
RAILS = frozenset(rail for bits in range(10, 33) for top in [1 << (bits - 1)] for rail in (-top, 1 - top, top - 1))
"""Digital values at which converters of 10 to 32 bits stop; the format sentinels are handled before."""
MIN_PILE = 8
"""How many times as many samples as one step inside lie at a limit that a header states, where the signal is clipped.

The peaks of an unclipped sine have 1.4 times as many there when its range was made the header's, and 2.4 times when
they are rounded down to the limit.
"""


def num_whole(duration_s: float, part_s: float) -> int:
    """How many whole parts fit; a part that is short by less than a microsecond counts."""
    return math.floor(duration_s / part_s + 1e-6 / part_s)


def patch_edges(num_patches: int, patch_s: float, rate_hz: float) -> npt.NDArray[np.int64]:
    """int64 [P + 1]: patch p holds samples edges[p] up to edges[p + 1], those inside its seconds."""
    return np.ceil(np.arange(num_patches + 1) * (patch_s * rate_hz) - 1e-6).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Scan:
    """One raw channel, looked at patch by patch; P patches, the last of which may be a part of one."""

    source: engine.Source
    channel: int
    invalid: int | None
    """The raw value that is no sample."""
    edges: Runs
    """int64 [P + 1], samples; from 0 to the end of the signal."""
    low: npt.NDArray[np.int32]
    """int32 [P], smallest valid sample; above `high` where a patch has none."""
    high: npt.NDArray[np.int32]
    step: npt.NDArray[np.int32]
    """int32 [P], largest change between valid neighbours."""
    num_invalid: npt.NDArray[np.int32]

    @property
    def range(self) -> tuple[int, int] | None:
        """Smallest and largest valid sample, or None when there is none."""
        there = self.low <= self.high
        return (int(self.low[there].min()), int(self.high[there].max())) if there.any() else None

    @property
    def span(self) -> Floats:
        """float64 [P], by how much samples of a patch differ, the step at its start counted; 0 where there is none."""
        return np.maximum(self.high.astype(np.float64) - self.low, self.step).clip(min=0.0)

    def stretches(self, patches: Bools) -> Runs:
        """The samples of some patches, bool [P]; neighbours are one stretch."""
        starts, stops = engine.runs(patches)
        return np.stack([self.edges[starts], self.edges[stops]], axis=1)

    def runs_of(self, value: int, patches: Bools, min_length: int) -> npt.NDArray[np.int64]:
        """`engine.equal_runs` within some patches, bool [P]."""
        starts, stops = self.stretches(patches).T
        return engine.equal_runs(self.source, self.channel, value, min_length=min_length, within=(starts, stops))


def scan(source: engine.Source, invalid: Sequence[int | None], edges: npt.NDArray[np.int64]) -> list[Scan]:
    """Look at every patch of the raw channels of a source.

    Args:
        source: integers.
        invalid: for each channel, the raw value that is no sample, or None.
        edges: from `patch_edges`; what lies behind the last one is taken as one more patch.
    """
    channels = range(len(invalid))
    size = engine.num_samples(source, channels)
    ends = np.concatenate([[0], edges[(edges > 0) & (edges < size)], [size]])
    whole = ends[np.append(True, ends[1:] > ends[:-1])]
    found = engine.patch_extremes(source, channels, whole, invalid)
    return [
        Scan(source, c, invalid[c], whole, found.low[c], found.high[c], found.step[c], found.num_invalid[c])
        for c in channels
    ]


def missing_runs(channel: Scan) -> Runs:
    """Where samples have the invalid value."""
    if channel.invalid is None:
        return np.empty((0, 2), np.int64)
    return channel.runs_of(channel.invalid, channel.num_invalid > 0, 1)[:, :2]


def clipped_runs(channel: Scan, limits: Collection[int] = ()) -> Runs:
    """Where a raw signal stands still at its own minimum or maximum.

    A run of at least `MIN_CLIPPED_RUN` equal samples at the extreme counts when the extreme is a converter
    rail (`RAILS`), when it is one of the limits and samples pile up there (`MIN_PILE`), or when the signal jumps by 2
    or more at both ends of the run (a smooth peak of a coarse, slow signal changes by 1 there).

    Args:
        channel: from `scan`.
        limits: raw values that may be rails; an exporter may have made them of what a signal without clipping reached.
    """
    if channel.range is None:
        return np.empty((0, 2), np.int64)
    found = []
    for extreme in sorted(set(channel.range)):
        runs = channel.runs_of(extreme, (channel.low == extreme) | (channel.high == extreme), MIN_CLIPPED_RUN)
        if extreme not in RAILS and not (extreme in limits and _piles_up(channel, extreme)):
            runs = runs[_abrupt(runs, extreme, int(channel.edges[-1]))]
        found.append(runs[:, :2])
    return merge_runs(*found)


def merge_runs(*parts: Runs) -> Runs:
    """The union of stretches, int64 [R, 2]; those that touch become one."""
    every = np.concatenate(parts)
    every = every[np.argsort(every[:, 0], kind="stable")]
    if not len(every):
        return every
    reach = np.maximum.accumulate(every[:, 1])
    first = np.append(True, every[1:, 0] > reach[:-1])
    last = np.append(first[1:], True)
    return np.stack([every[first, 0], reach[last]], axis=1)


def flat_patches(channel: Scan, flat_lsb: int, min_patches: int = 1) -> Bools:
    """Patches in which a raw signal does not move.

    Args:
        channel: from `scan`; a patch without any valid sample counts as flat.
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


def outside_runs(channel: Scan, least: float, most: float) -> Runs:
    """Patches with a valid sample below `least` or above `most`, raw values."""
    there = channel.low <= channel.high
    return channel.stretches(there & ((channel.low < least) | (channel.high > most)))


def popped_patches(channel: Scan, digital: npt.NDArray[np.integer], most_step: float, gaps: Runs) -> Bools:
    """Patches within which, or at whose start, the raw signal jumps by more than `most_step` between neighbours.

    Samples in `gaps` are not looked at, so that their ends are no jumps.

    Args:
        channel: from `scan`.
        digital: the raw samples that were scanned.
        most_step: in raw steps.
        gaps: int64 [G, 2], in order, apart from each other.

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
    found: Runs, rate_hz: float, num_patches: int, patch_s: float, support_s: float | npt.NDArray[np.float64]
) -> Bools:
    """bool [P]: patches that come within `support_s`, one number or one for each, of one of these stretches."""
    starts, stops = found[:, 0], found[:, 1]
    first = np.floor((starts / rate_hz - support_s) / patch_s).astype(np.int64).clip(0, num_patches)
    last = np.floor(((stops - 1) / rate_hz + support_s) / patch_s).astype(np.int64).clip(-1, num_patches - 1)
    change = np.zeros(num_patches + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    return np.cumsum(change[:-1]) > 0


def _piles_up(channel: Scan, extreme: int) -> bool:
    """Whether far more samples lie at an extreme of the signal than one step inside."""
    assert channel.range is not None
    inside = extreme + 1 if extreme == channel.range[0] else extreme - 1
    return _count(channel, extreme) > MIN_PILE * max(_count(channel, inside), 1)


def _count(channel: Scan, value: int) -> int:
    """Samples of one value."""
    runs = channel.runs_of(value, (channel.low <= value) & (value <= channel.high), 1)
    return int((runs[:, 1] - runs[:, 0]).sum())


def _abrupt(runs: npt.NDArray[np.int64], extreme: int, size: int) -> Bools:
    """Which rows of `engine.equal_runs` begin and end with a jump, or with the signal."""
    start, stop, before, after = runs.T
    return ((start == 0) | (np.abs(before - extreme) >= 2)) & ((stop == size) | (np.abs(after - extreme) >= 2))
