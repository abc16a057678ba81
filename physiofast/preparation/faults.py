"""Finds the faults of a raw channel by its modality's settings: which samples to bridge, which patches are valid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from physiofast.io.recording import Digital, Signal
from physiofast.preparation import scanning
from physiofast.preparation.config import FilterPlan, ModalitySettings, unit_factor
from physiofast.preparation.scanning import Bools, Runs, Scan

POP_LEFT = 0.02
"""Largest remainder of an electrode pop in a valid patch, as a share of `ModalitySettings.pop_step`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults in the P scanned patches of one channel; runs of samples are int64 [R, 2]."""

    missing: Runs
    """Samples that the file marks as missing."""
    clipped: Runs
    """Samples at which the signal is clipped."""
    out_of_range: Runs
    """Patches with a value that the modality cannot have."""
    flat: Bools
    """bool [P], patches in which the signal is flat for at least `ModalitySettings.flat_s`."""
    gaps: Runs
    """Samples to bridge: the union of the four above, where a flat run includes the equal samples just beside it."""
    popped: Runs
    """Patches with electrode pops, and gaps after which the signal continues at another level; unordered."""
    pop_shares: npt.NDArray[np.float64]
    """float64 [R], for each run of `popped` the share of its jump that may remain in a valid patch."""

    def with_parts(self, parts: Sequence[Faults]) -> Faults:
        """Add to a difference's faults those of the two signals it was computed from.

        Their pops are not added: the difference shows them itself.
        """
        merge, every = scanning.merge_runs, (self, *parts)
        return dataclasses.replace(
            self,
            missing=merge(*(faults.missing for faults in every)),
            clipped=merge(*(faults.clipped for faults in every)),
            out_of_range=merge(*(faults.out_of_range for faults in every)),
            flat=np.logical_or.reduce([faults.flat for faults in every]),
            gaps=merge(*(faults.gaps for faults in every)),
        )

    def valid_patches(self, plan: FilterPlan, rate_hz: float, patches: int, patch_s: float) -> Bools:
        """Which patches no fault reaches through a plan's filters, bool [patches].

        Args:
            plan: the channel's filters.
            rate_hz: sampling rate of the recording.
            patches: number of patches.
            patch_s: duration of a patch.
        """
        reach_s = plan.step_reach_s(rate_hz, self.pop_shares)
        reached = scanning.touched_patches(self.gaps, rate_hz, patches, patch_s, plan.support_s(rate_hz))
        return ~(reached | scanning.touched_patches(self.popped, rate_hz, patches, patch_s, reach_s))


def find_faults(
    scan: Scan, digital: Digital, signal: Signal, modality: str, settings: ModalitySettings, patch_s: float
) -> Faults:
    """Find the faults of one channel from the scan of its raw samples.

    Pops and values out of range are found only if the channel's unit belongs to the modality.

    Args:
        scan: from `scanning.scan`.
        digital: the raw samples that were scanned.
        signal: the channel's header.
        modality: the channel's modality in the montage.
        settings: the modality's settings.
        patch_s: duration of a patch.
    """
    raw_per_unit = _raw_per_unit(signal, modality)
    missing = scanning.missing_runs(scan)
    clipped = scanning.clipped_runs(scan, signal.limits) if settings.clipping else missing[:0]
    out_of_range = missing[:0] if raw_per_unit is None else _out_of_range(scan, signal, settings, raw_per_unit)
    flat = _flat_patches(scan, signal.rate_hz, settings, patch_s)
    gaps = scanning.merge_runs(missing, clipped, out_of_range, _flat_runs(scan, digital, flat))
    popped, pop_shares = missing[:0], np.empty(0)
    if settings.pop_step is not None and raw_per_unit is not None:
        most_step = settings.pop_step * abs(raw_per_unit)
        popped, jumps = _pops(scan, digital, most_step, gaps)
        pop_shares = POP_LEFT * most_step / jumps
    return Faults(
        missing=missing,
        clipped=clipped,
        out_of_range=out_of_range,
        flat=flat,
        gaps=gaps,
        popped=popped,
        pop_shares=pop_shares,
    )


def _raw_per_unit(signal: Signal, modality: str) -> float | None:
    """Raw steps per unit of the store, negative for an inverted signal; None if the modality cannot have this unit."""
    try:
        return signal.gain / unit_factor(modality, signal.unit)[0]
    except ValueError:
        return None


def _out_of_range(scan: Scan, signal: Signal, settings: ModalitySettings, raw_per_unit: float) -> Runs:
    least = -math.inf if settings.least is None else settings.least
    most = math.inf if settings.most is None else settings.most
    low, high = sorted((least * raw_per_unit + signal.baseline, most * raw_per_unit + signal.baseline))
    return scanning.out_of_range_runs(scan, low, high)


def _flat_patches(scan: Scan, rate_hz: float, settings: ModalitySettings, patch_s: float) -> Bools:
    """Which patches of the scan are flat, bool [P]; an incomplete patch at the end never is."""
    flat = np.zeros(scan.low.size, np.bool_)
    inside = scanning.num_whole(int(scan.edges[-1]) / rate_hz, patch_s)
    # A single sample per patch is always flat; a channel of such a low rate is dropped for its rate.
    if settings.flat_lsb is not None and inside and rate_hz * patch_s >= 2:
        least = max(1, math.ceil(settings.flat_s / patch_s))
        whole = dataclasses.replace(scan, low=scan.low[:inside], high=scan.high[:inside])
        flat[:inside] = scanning.flat_patches(whole, settings.flat_lsb, least)
    return flat


def _pops(scan: Scan, digital: Digital, most_step: float, gaps: Runs) -> tuple[Runs, npt.NDArray[np.float64]]:
    """Runs in which the signal jumps by more than `most_step`, int64 [R, 2], and the size of each jump, float64 [R]."""
    patches = np.flatnonzero(scanning.popped_patches(scan, digital, most_step, gaps))
    inner = gaps[(gaps[:, 0] > 0) & (gaps[:, 1] < digital.size)]
    change = np.abs(digital[inner[:, 1]].astype(np.float64) - digital[inner[:, 0] - 1])
    runs = np.stack([scan.edges[patches], scan.edges[patches + 1]], axis=1)
    far = change > most_step
    return np.concatenate([runs, inner[far]]), np.concatenate([scan.span[patches], change[far]])


def mostly_constant(scan: Scan, digital: Digital, valid: Bools, rate_hz: float) -> bool:
    """Whether at least half of the samples in valid patches, at four samples a second, have the same value."""
    places = np.arange(0, digital.size, max(1, int(rate_hz / 4)))
    patch = np.searchsorted(scan.edges, places, side="right") - 1
    values = digital[places[patch < valid.size][valid[patch[patch < valid.size]]]]
    if not values.size:
        return False
    low, high = np.quantile(values, (0.25, 0.75))
    return bool(low == high)


def _flat_runs(scan: Scan, digital: Digital, flat: Bools) -> Runs:
    """Runs of flat patches, extended into the patches before and after for as long as samples stay at their level."""
    runs = scan.stretches(flat)
    for number, (start, stop) in enumerate(runs.tolist()):
        first, last = np.searchsorted(scan.edges, (start, stop)).tolist()
        before = digital[scan.edges[max(first - 1, 0)] : start][::-1]
        after = digital[stop : scan.edges[min(last + 1, flat.size)]]
        runs[number] = start - _num_at_level(before, scan, first), stop + _num_at_level(after, scan, last - 1)
    return runs


def _num_at_level(beside: Digital, scan: Scan, patch: int) -> int:
    """How many samples next to a flat patch, nearest first, stay within that patch's values."""
    left = (beside < scan.low[patch]) | (beside > scan.high[patch])
    return int(left.argmax()) if left.any() else beside.size
