"""Filters, rounding and scaling: what `prepare` does to a recording.

The order in a record is: find invalid samples -> bridge them by straight lines -> band-pass and notch ->
resample -> round to int16 -> robust scale. Invalid samples therefore poison nothing; the patches that they
can reach through the filter (`filter_support_s`; for jumps of the signal `step_reach_s`) are marked instead.
The work on samples is the engine's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import signal

from physiofast import engine, filter_design
from physiofast.engine import ChannelFilter, Resampler
from physiofast.engine.filters import padding
from physiofast.support.messages import format_distinct

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SUPPORT_ENERGY = 0.01
"""Share of an impulse response's energy that may lie outside its stated support."""


def filter_sos(
    rate_hz: float,
    low_hz: float | None,
    high_hz: float | None,
    order: int = 4,
    notch_hz: float | None = None,
    quality: float = 30.0,
) -> Floats:
    """The sections of `band_pass`, and of `notch` when there is one, as one cascade: float64 [S, 6].

    Raises:
        ValueError: as `band_pass` and `notch`.
    """
    sos = filter_design.butterworth(rate_hz, low_hz, high_hz, order)
    return sos if notch_hz is None else np.concatenate([sos, filter_design.notch(rate_hz, notch_hz, quality)])


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
    sos = filter_design.butterworth(rate_hz, low_hz, high_hz, order)
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
    return signal.sosfiltfilt(filter_design.notch(rate_hz, notch_hz, quality), np.asarray(x, np.float64))


def resample(
    source: engine.Source,
    rate_hz: float,
    target_hz: float,
    *,
    pass_hz: float,
    stop_hz: float | None = None,
    attenuation_db: float = 60.0,
) -> npt.NDArray[np.float32]:
    """Lower the sampling rate by a rational ratio, without aliases.

    Output sample t lies at time t / target_hz. The ends are extended by their edge values.

    Args:
        source: C channels, finite.
        rate_hz: sampling rate.
        target_hz: new rate, at most `rate_hz`; when equal, samples stay as they are.
        pass_hz: what lies below passes unchanged to within the attenuation.
        stop_hz: what lies above is attenuated; half the target rate when absent.
        attenuation_db: by how much, 8 to 200; beyond about 140, float32 results show no difference.

    Returns:
        float32 [C, ceil(n * target_hz / rate_hz)].

    Raises:
        ValueError: a target above the rate, edges out of order, another attenuation, or a filter that would be too
            long.
    """
    return engine.resample(source, design_resampler(rate_hz, target_hz, pass_hz, stop_hz, attenuation_db))


@functools.lru_cache(maxsize=64)
def design_resampler(
    rate_hz: float,
    target_hz: float,
    pass_hz: float,
    stop_hz: float | None = None,
    attenuation_db: float = 60.0,
) -> Resampler:
    """A Kaiser-window low-pass with the stated pass edge, stop edge and attenuation; of one tap at equal rates.

    Raises:
        ValueError: as `resample`.
    """
    if target_hz > rate_hz:
        target, native = format_distinct(target_hz, rate_hz)
        raise ValueError(f"target {target} Hz is above the native rate {native} Hz; never upsampled")
    if target_hz == rate_hz:
        return Resampler(1, 1, np.ones(1))
    stop_hz = target_hz / 2 if stop_hz is None else stop_hz
    if not 0 < pass_hz < stop_hz <= rate_hz / 2:
        raise ValueError(
            f"pass edge {pass_hz:g} Hz and stop edge {stop_hz:g} Hz need 0 < pass < stop <= "
            f"{rate_hz / 2:g} Hz, half the native rate"
        )
    ratio = filter_design.rational(rate_hz, target_hz)
    nyquist = rate_hz * ratio.numerator / 2
    try:
        taps = filter_design.low_pass(pass_hz / nyquist, stop_hz / nyquist, attenuation_db)
    except ValueError as error:
        raise ValueError(
            f"resampling {rate_hz:g} to {target_hz:g} Hz with edges {pass_hz:g} and {stop_hz:g} Hz: {error}"
        ) from None
    return Resampler(up=ratio.numerator, down=ratio.denominator, taps=taps)


@functools.lru_cache(maxsize=64)
def filter_support_s(
    rate_hz: float,
    low_hz: float | None,
    high_hz: float | None,
    order: int = 4,
    notch_hz: float | None = None,
    quality: float = 30.0,
) -> float:
    """How far a sample reaches through `filter_sos`, forward and backward, in seconds to either side.

    It is the half-width outside which the zero-phase impulse response holds at most 1 % of its energy
    (`SUPPORT_ENERGY`). The resampler is flat over the band and adds nothing that counts.
    """
    slowest = min(edge for edge in (low_hz, high_hz) if edge is not None)
    sos = filter_sos(rate_hz, low_hz, high_hz, order, notch_hz, quality)
    reach = max(math.ceil(4 * rate_hz / slowest), padding(sos))
    impulse = np.zeros(2 * reach + 1)
    impulse[reach] = 1.0
    response = signal.sosfiltfilt(sos, impulse)
    energy = response**2
    pairs = energy[reach + 1 :] + energy[:reach][::-1]
    outside = np.cumsum(pairs[::-1])[::-1] / energy.sum()
    return int(np.count_nonzero(outside > SUPPORT_ENERGY)) / rate_hz


def step_reach_s(
    shares: npt.ArrayLike,
    rate_hz: float,
    low_hz: float | None,
    high_hz: float | None,
    order: int = 4,
    notch_hz: float | None = None,
    quality: float = 30.0,
) -> Floats:
    """How far a jump of the signal reaches through `filter_sos`, forward and backward, in seconds to either side.

    A sample reaches less far than a jump: the slow tail of a high-pass holds little of an impulse's energy and much of
    a step. Without a lower edge the jump itself stays, and what reaches is the difference to it.

    Args:
        shares: float [R], of the jump, above 0; beyond the reach no more than that is left.
        rate_hz: sampling rate.
        low_hz: lower edge, or None.
        high_hz: upper edge, or None.
        order: as for `filter_sos`, like the rest.
        notch_hz: or None.
        quality: of the notch.

    Returns:
        float64 [R].
    """
    left = _left_of_a_step(rate_hz, low_hz, high_hz, order, notch_hz, quality)
    return np.searchsorted(-left, -np.asarray(shares, np.float64)) / rate_hz


@functools.lru_cache(maxsize=64)
def _left_of_a_step(rate_hz: float, low_hz: float | None, high_hz: float | None, *design: Any) -> Floats:
    """float64 [n], largest share of a unit step that is left n samples away from it or farther, at most 1."""
    slowest = min(edge for edge in (low_hz, high_hz) if edge is not None)
    sos = filter_sos(rate_hz, low_hz, high_hz, *design)
    reach = max(math.ceil(8 * rate_hz / slowest), padding(sos))
    step = np.repeat([0.0, 1.0], reach)
    response = signal.sosfiltfilt(sos, step)
    error = np.abs(response - (step if low_hz is None else 0.0))
    sides = np.maximum(error[reach:], error[reach - 1 :: -1])
    return np.maximum.accumulate(sides[::-1])[::-1].clip(max=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ToQuantise:
    """One channel of a source on its way to int16."""

    filter: ChannelFilter
    raw_lsb: float
    """Step of the raw signal in the unit of the filtered one, > 0."""
    centred: bool
    """True after a high-pass, when 0 is the middle; else the middle of the range becomes the shift."""
    keep: Bools
    """bool [P], valid patches."""
    mostly_constant: bool = False
    """Whether half of its kept samples or more have one and the same value before the filter."""
    patch: int
    """Samples of a patch after filtering."""
    out: npt.NDArray[np.int16]
    """int16 [n], C-contiguous; filled as far as the filter gives samples."""


@dataclasses.dataclass(frozen=True)
class Quantised:
    """What int16 samples mean: `value = samples * unit_scale + unit_shift`, and robust z `samples * scale + shift`."""

    unit_scale: float
    unit_shift: float
    scale: float
    shift: float


def quantise(source: engine.Source, channels: Sequence[ToQuantise]) -> list[Quantised]:
    """Filter channels and round them to int16 at a stated step: `raw_lsb / 8`, doubled until the kept samples fit.

    Samples outside kept patches do not choose the step and saturate; kept ones err by at most half of it.
    A channel whose step or shift is not known beforehand is filtered twice.

    Raises:
        ValueError: as `engine.condition`; a channel without any kept patch.
    """
    steps = [(item.raw_lsb / 8, 0.0) for item in channels]
    low, high = _filter(source, channels, steps, [item.out if item.centred else None for item in channels])
    exact = [_step(item, *ends) for item, *ends in zip(channels, low.tolist(), high.tolist(), strict=True)]
    again = [c for c, item in enumerate(channels) if not item.centred or exact[c] != steps[c]]
    if again:
        chosen = [channels[c] for c in again]
        _filter(source, chosen, [exact[c] for c in again], [item.out for item in chosen])
    counts = engine.histograms(
        [item.out for item in channels], [item.patch for item in channels], [item.keep for item in channels]
    )
    scales = [robust_scale(found, item.mostly_constant) for found, item in zip(counts, channels, strict=True)]
    return [Quantised(*meaning, *scale) for meaning, scale in zip(exact, scales, strict=True)]


def _filter(
    source: engine.Source,
    channels: Sequence[ToQuantise],
    steps: Sequence[tuple[float, float]],
    planes: Sequence[npt.NDArray[np.int16] | None],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    return engine.condition_int16(
        source,
        [item.filter for item in channels],
        planes=planes,
        lsb=[lsb for lsb, _ in steps],
        shift=[shift for _, shift in steps],
        keep=[item.keep for item in channels],
        patch=[item.patch for item in channels],
    )


def _step(item: ToQuantise, low: float, high: float) -> tuple[float, float]:
    """lsb and shift that hold values from low to high."""
    low, high = (low, high) if low <= high else (0.0, 0.0)
    shift = 0.0 if item.centred else item.raw_lsb * round((low + high) / 2 / item.raw_lsb)
    peak = max(abs(low - shift), abs(high - shift))
    lsb = item.raw_lsb / 8
    while peak > 32767 * lsb:
        lsb *= 2
    return lsb, shift


def quantiles(counts: npt.NDArray[np.int64], fractions: tuple[float, ...]) -> tuple[float, ...]:
    """Exact quantiles of int16 samples from their histogram, as `numpy.quantile`'s linear method.

    Args:
        counts: int64 [65536], of sample + 32768.
        fractions: from 0 to 1.

    Raises:
        ValueError: no samples, or another fraction.
    """
    ranks = np.cumsum(counts)
    size = int(ranks[-1])
    if not size:
        raise ValueError("quantiles need at least one sample")
    result = []
    for fraction in fractions:
        if not 0 <= fraction <= 1:
            raise ValueError(f"quantiles need fractions from 0 to 1; found {fraction:g}")
        position = fraction * (size - 1)
        share = position - math.floor(position)
        places = np.searchsorted(ranks, [math.floor(position), math.ceil(position)], side="right")
        below, above = (places - 32768).tolist()
        # From the nearer end, as numpy rounds.
        step = float(above - below)
        result.append(below + share * step if share < 0.5 else above - (1 - share) * step)
    return tuple(result)


def robust_scale(counts: npt.NDArray[np.int64], mostly_constant: bool = False) -> tuple[float, float]:
    """Scale and shift of the robust z: `z = samples * scale + shift` has median 0 and IQR 1.349.

    A signal that rests on one value for most of the time (saturation in whole percents) has no IQR: its standard
    deviation serves then. The spread is never taken below one step.

    Args:
        counts: int64 [65536], the histogram of the samples in valid patches.
        mostly_constant: it rested before it was filtered, so that an IQR is of the filter's ripple alone.

    Returns:
        (scale, shift).

    Raises:
        ValueError: no samples.
    """
    low, median, high = quantiles(counts, (0.25, 0.5, 0.75))
    spread = max((high - low) / 1.349 if high > low and not mostly_constant else _deviation(counts), 1.0)
    return 1.0 / spread, -median / spread


def _deviation(counts: npt.NDArray[np.int64]) -> float:
    values = np.arange(-32768, 32768)
    mean = np.average(values, weights=counts)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
