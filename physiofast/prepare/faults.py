"""What is wrong with a raw channel, by the treatment of its modality: what is bridged, and which patches are valid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from physiofast.io.recording import Digital, Signal
from physiofast.prepare import scanning
from physiofast.prepare.scanning import Bools, Runs, Scan
from physiofast.prepare.treatment import FilterPlan, Treatment, unit_factor

POP_LEFT = 0.02
"""Share of `Treatment.pop_step` that an electrode pop may still add to a valid patch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """Where something is wrong in the P patches of one channel that were scanned; stretches are int64 [R, 2]."""

    missing: Runs
    """What the file marks as no sample."""
    clipped: Runs
    outside: Runs
    """Patches with a value that the modality cannot have."""
    flat: Bools
    """bool [P], patches in which nothing moves for long enough."""
    gaps: Runs
    """All of these, to be bridged; flat ones from the sample on at which they begin, often with a jump."""
    popped: Runs
    """Patches with electrode pops, and gaps behind which the signal goes on at another level; in no order."""
    pop_shares: npt.NDArray[np.float64]
    """float64 [R], share of each pop's jump that may be left in a valid patch."""

    def and_of(self, parts: Sequence[Faults]) -> Faults:
        """These of a difference, and those of the signals that it is made of, whose pops it shows itself."""
        merge, every = scanning.merge_runs, (self, *parts)
        return dataclasses.replace(
            self,
            missing=merge(*(faults.missing for faults in every)),
            clipped=merge(*(faults.clipped for faults in every)),
            outside=merge(*(faults.outside for faults in every)),
            flat=np.logical_or.reduce([faults.flat for faults in every]),
            gaps=merge(*(faults.gaps for faults in every)),
        )

    def valid_patches(self, plan: FilterPlan, rate_hz: float, patches: int, patch_s: float) -> Bools:
        """bool [patches]: those that no fault reaches through the filters of a plan."""
        reach_s = plan.step_reach_s(rate_hz, self.pop_shares)
        reached = scanning.touched_patches(self.gaps, rate_hz, patches, patch_s, plan.support_s(rate_hz))
        return ~(reached | scanning.touched_patches(self.popped, rate_hz, patches, patch_s, reach_s))


def find_faults(
    scan: Scan, digital: Digital, signal: Signal, modality: str, treatment: Treatment, patch_s: float
) -> Faults:
    """Look at what `scanning.scan` found of the raw samples of one channel.

    Where its unit is none of the modality, values are not judged: neither pops nor what is outside.
    """
    raw_per_unit = _raw_per_unit(signal, modality)
    missing = scanning.missing_runs(scan)
    clipped = scanning.clipped_runs(scan, signal.limits) if treatment.clipping else missing[:0]
    outside = missing[:0] if raw_per_unit is None else _outside(scan, signal, treatment, raw_per_unit)
    flat = _flat_patches(scan, signal.rate_hz, treatment, patch_s)
    gaps = scanning.merge_runs(missing, clipped, outside, _flat_runs(scan, digital, flat))
    popped, pop_shares = missing[:0], np.empty(0)
    if treatment.pop_step is not None and raw_per_unit is not None:
        most_step = treatment.pop_step * abs(raw_per_unit)
        popped, jumps = _pops(scan, digital, most_step, gaps)
        pop_shares = POP_LEFT * most_step / jumps
    return Faults(
        missing=missing,
        clipped=clipped,
        outside=outside,
        flat=flat,
        gaps=gaps,
        popped=popped,
        pop_shares=pop_shares,
    )


def _raw_per_unit(signal: Signal, modality: str) -> float | None:
    """Raw steps in one unit of the store, negative where the signal is upside down."""
    try:
        return signal.gain / unit_factor(modality, signal.unit)[0]
    except ValueError:
        return None


def _outside(scan: Scan, signal: Signal, treatment: Treatment, raw_per_unit: float) -> Runs:
    least = -math.inf if treatment.least is None else treatment.least
    most = math.inf if treatment.most is None else treatment.most
    low, high = sorted((least * raw_per_unit + signal.baseline, most * raw_per_unit + signal.baseline))
    return scanning.outside_runs(scan, low, high)


def _flat_patches(scan: Scan, rate_hz: float, treatment: Treatment, patch_s: float) -> Bools:
    """bool [patches of the scan]; a part of a patch at the end is not looked at."""
    flat = np.zeros(scan.low.size, np.bool_)
    inside = scanning.num_whole(int(scan.edges[-1]) / rate_hz, patch_s)
    # Below two samples per patch nothing can be said; such a channel is dropped for its rate.
    if treatment.flat_lsb is not None and inside and rate_hz * patch_s >= 2:
        least = max(1, math.ceil(treatment.flat_s / patch_s))
        whole = dataclasses.replace(scan, low=scan.low[:inside], high=scan.high[:inside])
        flat[:inside] = scanning.flat_patches(whole, treatment.flat_lsb, least)
    return flat


def _pops(scan: Scan, digital: Digital, most_step: float, gaps: Runs) -> tuple[Runs, npt.NDArray[np.float64]]:
    """Where the signal jumps by more than `most_step`, and by how much."""
    patches = np.flatnonzero(scanning.popped_patches(scan, digital, most_step, gaps))
    inner = gaps[(gaps[:, 0] > 0) & (gaps[:, 1] < digital.size)]
    change = np.abs(digital[inner[:, 1]].astype(np.float64) - digital[inner[:, 0] - 1])
    runs = np.stack([scan.edges[patches], scan.edges[patches + 1]], axis=1)
    far = change > most_step
    return np.concatenate([runs, inner[far]]), np.concatenate([scan.span[patches], change[far]])


def rests(scan: Scan, digital: Digital, valid: Bools, rate_hz: float) -> bool:
    """Whether half of the samples of valid patches, looked at four times a second, have one and the same value."""
    places = np.arange(0, digital.size, max(1, int(rate_hz / 4)))
    patch = np.searchsorted(scan.edges, places, side="right") - 1
    values = digital[places[patch < valid.size][valid[patch[patch < valid.size]]]]
    if not values.size:
        return False
    low, high = np.quantile(values, (0.25, 0.75))
    return bool(low == high)


def _flat_runs(scan: Scan, digital: Digital, flat: Bools) -> Runs:
    """Flat patches, and what goes on at their level in the patches beside."""
    runs = scan.stretches(flat)
    for number, (start, stop) in enumerate(runs.tolist()):
        first, last = np.searchsorted(scan.edges, (start, stop)).tolist()
        before = digital[scan.edges[max(first - 1, 0)] : start][::-1]
        after = digital[stop : scan.edges[min(last + 1, flat.size)]]
        runs[number] = start - _goes_on(before, scan, first), stop + _goes_on(after, scan, last - 1)
    return runs


def _goes_on(beside: Digital, scan: Scan, patch: int) -> int:
    """How many of these samples, the nearest first, are of values of a flat patch."""
    left = (beside < scan.low[patch]) | (beside > scan.high[patch])
    return int(left.argmax()) if left.any() else beside.size
