"""Signal conditioning: the filters, the quantisation to int16 and the robust scale that `prepare` applies.

A record passes these steps: find invalid samples -> bridge them by straight lines -> band-pass and notch -> resample ->
quantise to int16 -> robust scale. Invalid samples therefore spoil no others; the patches that they influence through
the filter (`filter_support_s`; `step_reach_s` for jumps of the signal) are marked invalid. The engine processes the
samples; this module designs the filters and chooses the scales.
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
"""Largest share of an impulse response's energy outside the support that `filter_support_s` returns."""


def filter_sos(
    rate_hz: float,
    low_hz: float | None,
    high_hz: float | None,
    order: int = 4,
    notch_hz: float | None = None,
    quality: float = 30.0,
) -> Floats:
    """Design band-pass and notch as one cascade of second-order sections, to be applied forward and backward.

    Args:
        rate_hz: sampling rate.
        low_hz: lower band edge (-6 dB after both passes), or None for a low-pass.
        high_hz: upper band edge, or None for a high-pass.
        order: order of the Butterworth filter in one pass.
        notch_hz: frequency to remove, such as mains at 50 or 60 Hz; None for no notch.
        quality: centre frequency of the notch over its bandwidth.

    Returns:
        float64 [S, 6], as `scipy.signal.sosfiltfilt` takes them.

    Raises:
        ValueError: band edges out of order, or edges or notch not between 0 and half the rate.
    """
    sos = filter_design.butterworth(rate_hz, low_hz, high_hz, order)
    return sos if notch_hz is None else np.concatenate([sos, filter_design.notch(rate_hz, notch_hz, quality)])


@functools.lru_cache(maxsize=64)
def design_resampler(
    rate_hz: float,
    target_hz: float,
    pass_hz: float,
    stop_hz: float | None = None,
    attenuation_db: float = 60.0,
) -> Resampler:
    """Design the filter that lowers the sampling rate by a rational ratio without aliasing, for `engine.resample`.

    It is a Kaiser-window low-pass, or a single tap of 1 if the rates are equal.

    Args:
        rate_hz: sampling rate.
        target_hz: new rate, at most `rate_hz`.
        pass_hz: upper edge of the pass band, which is unchanged to within the attenuation.
        stop_hz: lower edge of the stop band; half the target rate if None.
        attenuation_db: attenuation of the stop band, 8 to 200 dB; above about 140 float32 results do not differ.

    Raises:
        ValueError: a target above the rate, edges out of order, an attenuation out of range, or a filter that would be
            too long.
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
    """How far one sample influences the output of `filter_sos`, applied forward and backward, in seconds each way.

    This is the half-width outside which the zero-phase impulse response has at most 1 % of its energy
    (`SUPPORT_ENERGY`). The resampler is flat over the band and its contribution is negligible.

    Args:
        rate_hz: sampling rate; this and the other arguments are those of `filter_sos`.
        low_hz: lower band edge, or None.
        high_hz: upper band edge, or None.
        order: order of the band-pass.
        notch_hz: frequency of the notch, or None.
        quality: quality factor of the notch.
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
    """How far a jump of the signal influences the output of `filter_sos`, applied forward and backward.

    A jump reaches farther than a single sample: the slow tail of a high-pass has little of an impulse's energy but much
    of a step's height. Without a lower edge the output keeps the jump, and the difference to an ideal step counts.

    Args:
        shares: float [R], above 0: shares of the jump's height that may remain beyond the reach.
        rate_hz: sampling rate; this and the following arguments are those of `filter_sos`.
        low_hz: lower band edge, or None.
        high_hz: upper band edge, or None.
        order: order of the band-pass.
        notch_hz: frequency of the notch, or None.
        quality: quality factor of the notch.

    Returns:
        float64 [R], the reach to either side for each share, in seconds.
    """
    left = _left_of_a_step(rate_hz, low_hz, high_hz, order, notch_hz, quality)
    return np.searchsorted(-left, -np.asarray(shares, np.float64)) / rate_hz


@functools.lru_cache(maxsize=64)
def _left_of_a_step(rate_hz: float, low_hz: float | None, high_hz: float | None, *design: Any) -> Floats:
    """Largest remainder of a unit step at n samples from it or farther, float64 [N], at most 1."""
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
    """The filter of one channel and how its output is quantised to int16."""

    filter: ChannelFilter
    raw_lsb: float
    """Step of the raw signal in the unit of the filtered one, > 0."""
    centred: bool
    """Whether the filtered signal is centred on 0, as after a high-pass; if not, the middle of its range is the shift.
    """
    keep: Bools
    """bool [P], which patches are valid."""
    mostly_constant: bool = False
    """Whether at least half of the samples in valid patches have the same value before filtering."""
    patch: int
    """Number of samples in a patch after filtering."""
    out: npt.NDArray[np.int16]
    """int16 [n], C-contiguous; receives the samples that the filter produces."""


@dataclasses.dataclass(frozen=True)
class Quantised:
    """The calibration of a channel's int16 samples.

    The value in the store's unit is `samples * unit_scale + unit_shift`, the robust z-score `samples * scale + shift`.
    """

    unit_scale: float
    unit_shift: float
    scale: float
    shift: float


def quantise(source: engine.Source, channels: Sequence[ToQuantise]) -> list[Quantised]:
    """Filter channels and quantise them to int16 with a step of `raw_lsb / 8`, doubled until the valid samples fit.

    Samples in valid patches are off by at most half a step. Others have no influence on the step and may saturate. A
    channel whose step or shift only its filtered samples tell is filtered twice.

    Args:
        source: the channels' raw samples.
        channels: how each channel is filtered and quantised, and the arrays to write to.

    Raises:
        ValueError: a channel without a valid patch, or arguments that `engine.condition` refuses.
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
    """The quantisation step and shift with which values from low to high fit into int16."""
    low, high = (low, high) if low <= high else (0.0, 0.0)
    shift = 0.0 if item.centred else item.raw_lsb * round((low + high) / 2 / item.raw_lsb)
    peak = max(abs(low - shift), abs(high - shift))
    lsb = item.raw_lsb / 8
    while peak > 32767 * lsb:
        lsb *= 2
    return lsb, shift


def quantiles(counts: npt.NDArray[np.int64], fractions: tuple[float, ...]) -> tuple[float, ...]:
    """Exact quantiles of int16 samples from their histogram, equal to `numpy.quantile` with its linear method.

    Args:
        counts: int64 [65536], number of samples of each value + 32768.
        fractions: the quantiles' fractions, from 0 to 1.

    Raises:
        ValueError: no samples, or a fraction out of range.
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
        # Interpolate from the nearer end, as numpy does, so that rounding agrees.
        step = float(above - below)
        result.append(below + share * step if share < 0.5 else above - (1 - share) * step)
    return tuple(result)


def robust_scale(counts: npt.NDArray[np.int64], mostly_constant: bool = False) -> tuple[float, float]:
    """Scale and shift of the robust z-score: `z = samples * scale + shift` has median 0 and IQR 1.349.

    The IQR of a signal that is mostly constant (oxygen saturation in whole percent) is zero, or reflects only the
    filter's ripple; its standard deviation is used instead. The spread is at least one quantisation step.

    Args:
        counts: int64 [65536], the histogram of the samples in valid patches.
        mostly_constant: whether the signal was mostly constant before it was filtered.

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
