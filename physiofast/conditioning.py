"""Filters, resampling, scaling and sample flags: the definitions in NumPy and SciPy, in float64.

The order in a record is: mark invalid samples -> bridge them by straight lines -> band-pass -> notch ->
resample -> round to int16 -> robust scale. Invalid samples therefore poison nothing; the patches that they
can reach through the filter (`filter_support_s`) are marked instead.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy import signal

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_TAPS = 1 << 18
"""Longest resampling filter; a rate pair or transition that needs more is refused."""
SUPPORT_ENERGY = 0.01
"""Share of an impulse response's energy that may lie outside its stated support."""
MIN_CLIPPED_RUN = 3
"""Equal consecutive samples at an extreme that count as clipping."""
RAILS = frozenset(rail for bits in range(10, 33) for top in [1 << (bits - 1)] for rail in (-top, 1 - top, top - 1))
"""Digital values at which converters of 10 to 32 bits stop; the format sentinels are handled before."""


@dataclasses.dataclass(frozen=True)
class Resampler:
    """A polyphase filter: insert `up - 1` zeros between samples, filter, keep every `down`-th."""

    up: int
    down: int
    taps: Floats
    """float64 [odd], symmetric, at `up` times the input rate; they sum to 1."""


@dataclasses.dataclass(frozen=True)
class Quantised:
    """int16 samples with their unit: `value = samples * lsb + shift`."""

    samples: npt.NDArray[np.int16]
    lsb: float
    shift: float


def band_pass(x: npt.ArrayLike, rate_hz: float, low_hz: float | None, high_hz: float | None, order: int = 4) -> Floats:
    """Zero-phase Butterworth filter, as `scipy.signal.sosfiltfilt` with its default padding.

    Args:
        x: [..., n], finite.
        rate_hz: sampling rate.
        low_hz: lower edge (-6 dB after both passes), or None for a low-pass.
        high_hz: upper edge, or None for a high-pass.
        order: order of each edge in one pass.

    Returns:
        float64 [..., n].

    Raises:
        ValueError: edges out of order or not inside 0 to half the rate.
    """
    sos = _butterworth(rate_hz, low_hz, high_hz, order)
    return signal.sosfiltfilt(sos, np.asarray(x, np.float64))


def notch(x: npt.ArrayLike, rate_hz: float, notch_hz: float, quality: float = 30.0) -> Floats:
    """Zero-phase second-order notch; its width at -6 dB is `notch_hz / quality`.

    Args:
        x: [..., n], finite.
        rate_hz: sampling rate.
        notch_hz: frequency to remove, such as the mains' 50 or 60 Hz.
        quality: centre frequency over width.

    Returns:
        float64 [..., n].

    Raises:
        ValueError: the frequency is not inside 0 to half the rate.
    """
    return signal.sosfiltfilt(_notch(rate_hz, notch_hz, quality), np.asarray(x, np.float64))


def resample(
    x: npt.ArrayLike,
    rate_hz: float,
    target_hz: float,
    *,
    pass_hz: float,
    stop_hz: float | None = None,
    attenuation_db: float = 60.0,
) -> Floats:
    """Lower the sampling rate by a rational ratio, without aliases.

    Output sample t lies at time t / target_hz. The ends are extended by their edge values.

    Args:
        x: [..., n], finite.
        rate_hz: sampling rate.
        target_hz: new rate, at most `rate_hz`; when equal, x is returned as it is.
        pass_hz: what lies below passes unchanged to within the attenuation.
        stop_hz: what lies above is attenuated; half the target rate when absent.
        attenuation_db: by how much.

    Returns:
        float64 [..., ceil(n * target_hz / rate_hz)].

    Raises:
        ValueError: a target above the rate, edges out of order, or a filter that would be too long.
    """
    x = np.asarray(x, np.float64)
    if rate_hz == target_hz:
        return x
    design = design_resampler(rate_hz, target_hz, pass_hz, stop_hz, attenuation_db)
    # scipy scales taps by `up` itself, and aligns odd symmetric taps to zero delay.
    return signal.resample_poly(x, design.up, design.down, axis=-1, window=design.taps, padtype="edge")


@functools.lru_cache(maxsize=64)
def design_resampler(
    rate_hz: float,
    target_hz: float,
    pass_hz: float,
    stop_hz: float | None = None,
    attenuation_db: float = 60.0,
) -> Resampler:
    """Taps of a Kaiser-window low-pass with the stated pass edge, stop edge and attenuation.

    Raises:
        ValueError: as `resample`.
    """
    if target_hz > rate_hz:
        raise ValueError(f"target {target_hz:g} Hz is above the native rate {rate_hz:g} Hz; never upsampled")
    stop_hz = target_hz / 2 if stop_hz is None else stop_hz
    if not 0 < pass_hz < stop_hz <= rate_hz / 2:
        raise ValueError(
            f"pass edge {pass_hz:g} Hz and stop edge {stop_hz:g} Hz need 0 < pass < stop <= "
            f"{rate_hz / 2:g} Hz, half the native rate"
        )
    ratio = _ratio(rate_hz, target_hz)
    nyquist = rate_hz * ratio.numerator / 2
    count, beta = signal.kaiserord(attenuation_db, (stop_hz - pass_hz) / nyquist)
    if count > MAX_TAPS:
        raise ValueError(
            f"resampling {rate_hz:g} to {target_hz:g} Hz with edges {pass_hz:g} and {stop_hz:g} Hz needs "
            f"{count} taps, more than {MAX_TAPS}; widen the gap between the edges"
        )
    taps = _kaiser_taps(count | 1, beta, pass_hz / nyquist, stop_hz / nyquist, 10 ** (-attenuation_db / 20))
    return Resampler(up=ratio.numerator, down=ratio.denominator, taps=taps)


def _kaiser_taps(count: int, beta: float, pass_edge: float, stop_edge: float, ripple: float) -> Floats:
    """Kaiser's length formula can miss by a decibel or two, so taps are added until both bands hold."""
    while True:
        taps = signal.firwin(count, (pass_edge + stop_edge) / 2, window=("kaiser", beta), scale=True)
        grid = 1 << (32 * count).bit_length()
        gain = np.abs(np.fft.rfft(taps, grid))
        place = np.linspace(0, 1, gain.size)
        # The edges themselves lie between grid points.
        at_edges = np.abs(signal.freqz(taps, worN=np.pi * np.array([pass_edge, stop_edge]))[1])
        passed = np.append(gain[place < pass_edge], at_edges[0])
        stopped = np.append(gain[place > stop_edge], at_edges[1])
        if max(np.abs(passed - 1).max(), stopped.max()) <= ripple:
            return taps
        count += 2 * max(1, count // 64)


@functools.lru_cache(maxsize=64)
def filter_support_s(
    rate_hz: float,
    low_hz: float | None,
    high_hz: float | None,
    order: int = 4,
    notch_hz: float | None = None,
    quality: float = 30.0,
) -> float:
    """How far a sample reaches through `band_pass` and `notch`, in seconds to either side.

    It is the half-width outside which the zero-phase impulse response holds at most 1 % of its energy
    (`SUPPORT_ENERGY`). The resampler is flat over the band and adds nothing that counts.
    """
    slowest = min(edge for edge in (low_hz, high_hz) if edge is not None)
    reach = math.ceil(4 * rate_hz / slowest)
    impulse = np.zeros(2 * reach + 1)
    impulse[reach] = 1.0
    response = band_pass(impulse, rate_hz, low_hz, high_hz, order)
    if notch_hz is not None:
        response = notch(response, rate_hz, notch_hz, quality)
    energy = response**2
    pairs = energy[reach + 1 :] + energy[:reach][::-1]
    outside = np.cumsum(pairs[::-1])[::-1] / energy.sum()
    return int(np.count_nonzero(outside > SUPPORT_ENERGY)) / rate_hz


def bridge_invalid(x: Floats, invalid: Bools) -> Floats:
    """Replace invalid samples by straight lines between their valid neighbours; ends take the nearest.

    Args:
        x: float64 [n].
        invalid: bool [n]; not all of them.

    Raises:
        ValueError: no sample is valid.
    """
    if not invalid.any():
        return x
    known = np.flatnonzero(~invalid)
    if not known.size:
        raise ValueError("no sample is valid, so nothing can be interpolated")
    bridged = x.copy()
    missing = np.flatnonzero(invalid)
    bridged[missing] = np.interp(missing, known, x[known])
    return bridged


def clipped_samples(digital: npt.NDArray[np.integer], invalid: Bools, rails: frozenset[int] = RAILS) -> Bools:
    """Where a raw signal stands still at its own minimum or maximum.

    A run of at least `MIN_CLIPPED_RUN` equal samples at the extreme counts when the extreme is a converter
    rail, or when the signal jumps by 2 or more at both ends of the run (a smooth peak of a coarse, slow
    signal changes by 1 there).

    Args:
        digital: int [n], raw values.
        invalid: bool [n], samples that are sentinels and not looked at.
        rails: digital values that are known to be rails.

    Returns:
        bool [n].
    """
    clipped = np.zeros(digital.size, np.bool_)
    valid = digital[~invalid] if invalid.any() else digital
    if not valid.size:
        return clipped
    for extreme in {int(valid.min()), int(valid.max())}:
        starts, stops = runs((digital == extreme) & ~invalid)
        for start, stop in zip(starts, stops, strict=True):
            if stop - start >= MIN_CLIPPED_RUN and (extreme in rails or _abrupt(digital, start, stop)):
                clipped[start:stop] = True
    return clipped


def patch_edges(num_patches: int, patch_s: float, rate_hz: float) -> npt.NDArray[np.int64]:
    """int64 [P + 1]: patch p holds samples edges[p] up to edges[p + 1], those inside its seconds."""
    return np.ceil(np.arange(num_patches + 1) * (patch_s * rate_hz) - 1e-6).astype(np.int64)


def flat_patches(
    digital: npt.NDArray[np.integer], edges: npt.NDArray[np.int64], flat_lsb: int, min_patches: int = 1
) -> Bools:
    """Patches in which a raw signal does not move.

    Args:
        digital: int [n], raw values, n >= edges[-1].
        edges: from `patch_edges`; every patch holds a sample.
        flat_lsb: largest peak-to-peak value, in raw steps, that counts as flat.
        min_patches: shortest run of such patches that counts (breathing may pause).

    Returns:
        bool [P].
    """
    starts = edges[:-1]
    inside = digital[: edges[-1]]
    low = np.minimum.reduceat(inside, starts).astype(np.int64)
    high = np.maximum.reduceat(inside, starts).astype(np.int64)
    flat = high - low <= flat_lsb
    for start, stop in zip(*runs(flat), strict=True):
        if stop - start < min_patches:
            flat[start:stop] = False
    return flat


def touched_patches(mask: Bools, rate_hz: float, num_patches: int, patch_s: float, support_s: float) -> Bools:
    """bool [P]: patches that come within `support_s` of a marked sample."""
    starts, stops = runs(mask)
    first = np.floor((starts / rate_hz - support_s) / patch_s).astype(np.int64).clip(0, num_patches)
    last = np.floor(((stops - 1) / rate_hz + support_s) / patch_s).astype(np.int64).clip(-1, num_patches - 1)
    change = np.zeros(num_patches + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    return np.cumsum(change[:-1]) > 0


def quantise(x: Floats, raw_lsb: float, keep: Bools, centred: bool) -> Quantised:
    """Round to int16 at a stated step: `raw_lsb / 8`, doubled until the kept samples fit.

    Samples outside `keep` do not choose the step and saturate; kept ones err by at most half of it.

    Args:
        x: float64 [n] in physical units.
        raw_lsb: step of the raw signal in the same units, > 0.
        keep: bool [n], samples in valid patches.
        centred: True after a high-pass, when 0 is the middle; else the middle of the range becomes `shift`.
    """
    kept = x[keep]
    low, high = (float(kept.min()), float(kept.max())) if kept.size else (0.0, 0.0)
    shift = 0.0 if centred else raw_lsb * round((low + high) / 2 / raw_lsb)
    peak = max(abs(low - shift), abs(high - shift))
    lsb = raw_lsb / 8
    while peak > 32767 * lsb:
        lsb *= 2
    samples = np.clip(np.rint((x - shift) / lsb), -32767, 32767).astype(np.int16)
    return Quantised(samples=samples, lsb=lsb, shift=shift)


def quantiles(samples: npt.NDArray[np.int16], fractions: tuple[float, ...]) -> tuple[float, ...]:
    """Exact quantiles of int16 samples from their histogram, as `numpy.quantile`'s linear method.

    Raises:
        ValueError: no samples.
    """
    if not samples.size:
        raise ValueError("quantiles need at least one sample")
    counts = np.bincount(samples.astype(np.int32) + 32768, minlength=65536)
    ranks = np.cumsum(counts)
    result = []
    for fraction in fractions:
        position = fraction * (samples.size - 1)
        below = int(np.searchsorted(ranks, math.floor(position), side="right"))
        above = int(np.searchsorted(ranks, math.ceil(position), side="right"))
        result.append(below - 32768 + (position - math.floor(position)) * (above - below))
    return tuple(result)


def robust_scale(samples: npt.NDArray[np.int16]) -> tuple[float, float]:
    """Scale and shift of the robust z: `z = samples * scale + shift` has median 0 and IQR 1.349.

    A signal that rests on one value for most of the time (saturation) has no IQR: its standard deviation
    serves then. The spread is never taken below one step.

    Args:
        samples: int16 [n], those of valid patches.

    Returns:
        (scale, shift).

    Raises:
        ValueError: no samples.
    """
    low, median, high = quantiles(samples, (0.25, 0.5, 0.75))
    spread = (high - low) / 1.349 if high > low else float(np.std(samples, dtype=np.float64))
    spread = max(spread, 1.0)
    return 1.0 / spread, -median / spread


def runs(mask: Bools) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Starts and stops (exclusive) of the runs of True in bool [n]."""
    padded = np.zeros(mask.size + 2, np.int8)
    padded[1:-1] = mask
    change = np.diff(padded)
    return np.flatnonzero(change == 1), np.flatnonzero(change == -1)


def _abrupt(digital: npt.NDArray[np.integer], start: int, stop: int) -> bool:
    before = start == 0 or abs(int(digital[start - 1]) - int(digital[start])) >= 2
    after = stop == digital.size or abs(int(digital[stop]) - int(digital[stop - 1])) >= 2
    return before and after


def _ratio(rate_hz: float, target_hz: float) -> Fraction:
    # Rates are decimal numbers in headers (12.8), so decimal is the exact reading of the float.
    exact = Fraction(repr(float(target_hz))) / Fraction(repr(float(rate_hz)))
    ratio = exact.limit_denominator(100_000)
    if abs(float(ratio / exact) - 1) > 1e-9:
        raise ValueError(
            f"{target_hz!r} / {rate_hz!r} Hz is not a ratio of whole numbers up to 100000; "
            "state the rates as the device has them"
        )
    return ratio


@functools.lru_cache(maxsize=64)
def _butterworth(rate_hz: float, low_hz: float | None, high_hz: float | None, order: int) -> Floats:
    edges = [edge for edge in (low_hz, high_hz) if edge is not None]
    if not edges or any(not 0 < edge < rate_hz / 2 for edge in edges) or edges != sorted(set(edges)):
        raise ValueError(
            f"band edges {low_hz} and {high_hz} Hz need 0 < low < high < {rate_hz / 2:g} Hz, half the rate; "
            "None leaves one of them out"
        )
    kind = "bandpass" if len(edges) == 2 else "highpass" if high_hz is None else "lowpass"
    return signal.butter(order, edges if len(edges) == 2 else edges[0], kind, fs=rate_hz, output="sos")


@functools.lru_cache(maxsize=64)
def _notch(rate_hz: float, notch_hz: float, quality: float) -> Floats:
    if not 0 < notch_hz < rate_hz / 2:
        raise ValueError(f"notch {notch_hz:g} Hz needs 0 < notch < {rate_hz / 2:g} Hz, half the rate")
    return signal.tf2sos(*signal.iirnotch(notch_hz, quality, fs=rate_hz))
