"""Designs filters: second-order sections of band-passes and notches, taps of resampling filters."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy import fft, signal

Floats = npt.NDArray[np.float64]

MAX_TAPS = 1 << 23
"""Most taps of a resampling filter; rates or a transition that need more are refused."""
_LONG, _SHORT = 1 << 17, 1 << 14
"""The length of a filter with more taps than `_LONG` is found with about `_SHORT` taps, and its gain is checked in
parts."""
MIN_ATTENUATION_DB, MAX_ATTENUATION_DB = 8.0, 200.0
"""Range of attenuations. Kaiser's formula is valid from 8 dB; rounding of float64 is noticeable from 230 dB."""
_RIPPLES = 8  # looked at on either side of a transition; at ordinary attenuations the largest is among them


def butterworth(rate_hz: float, low_hz: float | None, high_hz: float | None, order: int) -> Floats:
    """Design a Butterworth band-pass, low-pass or high-pass: second-order sections, float64 [S, 6].

    Raises:
        ValueError: band edges out of order, or not between 0 and half the rate.
    """
    # A copy, because the cached sections must not change, and SciPy does not accept read-only sections.
    return _butterworth(rate_hz, low_hz, high_hz, order).copy()


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


def notch(rate_hz: float, notch_hz: float, quality: float) -> Floats:
    """Design a notch: one second-order section, float64 [1, 6].

    Raises:
        ValueError: a frequency not between 0 and half the rate, or a quality that is not positive and finite.
    """
    if not 0 < quality < math.inf:
        raise ValueError(f"quality needs to be above 0 and finite (centre frequency over width); found {quality:g}")
    if not 0 < notch_hz < rate_hz / 2:
        raise ValueError(f"notch {notch_hz:g} Hz needs 0 < notch < {rate_hz / 2:g} Hz, half the rate")
    return signal.tf2sos(*signal.iirnotch(notch_hz, quality, fs=rate_hz))


def rational(rate_hz: float, target_hz: float) -> Fraction:
    """The exact ratio target_hz / rate_hz.

    Raises:
        ValueError: it is not a ratio of whole numbers up to 100000.
    """
    # Rates are decimal numbers in headers (12.8), so decimal is the exact reading of the float.
    exact = Fraction(repr(float(target_hz))) / Fraction(repr(float(rate_hz)))
    ratio = exact.limit_denominator(100_000)
    if abs(float(ratio / exact) - 1) > 1e-9:
        raise ValueError(
            f"{target_hz!r} / {rate_hz!r} Hz is not a ratio of whole numbers up to 100000; "
            "state the rates as the device has them"
        )
    return ratio


def low_pass(pass_edge: float, stop_edge: float, attenuation_db: float) -> Floats:
    """Design the taps of a Kaiser-window low-pass that meets its specification in both bands, float64 [odd].

    Kaiser's length formula can miss the attenuation by a few decibels, so taps are added until both bands meet it. A
    rate slightly off a round one, such as 512.03 Hz, needs millions of closely spaced taps; their number is found with
    fewer taps at a wider spacing, which cover the same time and have nearly the same response.

    Args:
        pass_edge: end of the pass band, as a share of half the rate of the taps.
        stop_edge: start of the stop band, as a share of half the rate of the taps; above `pass_edge`.
        attenuation_db: attenuation in the stop band; the error in the pass band is as small.

    Raises:
        ValueError: an attenuation out of range, or more taps than `MAX_TAPS`.
    """
    if not MIN_ATTENUATION_DB <= attenuation_db <= MAX_ATTENUATION_DB:
        raise ValueError(
            f"attenuation_db must be {MIN_ATTENUATION_DB:g} to {MAX_ATTENUATION_DB:g}; found {attenuation_db:g}"
        )
    ripple = 10 ** (-attenuation_db / 20)
    count, beta = signal.kaiserord(attenuation_db, stop_edge - pass_edge)
    count |= 1
    closer = min(count // _SHORT, int(0.5 / stop_edge)) if _LONG < count <= MAX_TAPS else 1
    if closer > 1:
        count = closer * (low_pass(closer * pass_edge, closer * stop_edge, attenuation_db).size - 1) + 1
    while count <= MAX_TAPS:
        taps = signal.firwin(count, (pass_edge + stop_edge) / 2, window=("kaiser", beta), scale=True)
        # Cheapest check first, because most lengths fail.
        if all(error(taps, pass_edge, stop_edge) <= ripple for error in (_error_at, _error_beside, _error_within)):
            return taps
        count += 2 * max(1, count // 64)
    raise ValueError(
        f"it needs {count} taps, more than {MAX_TAPS}, for {attenuation_db:g} dB; widen the gap between the edges"
    )


def _error_at(taps: Floats, pass_edge: float, stop_edge: float) -> float:
    """The error of the gain at both edges."""
    half, from_centre = _half(taps), np.arange(taps.size // 2 + 1)
    passed, stopped = (abs(half @ np.cos(np.pi * edge * from_centre)) for edge in (pass_edge, stop_edge))
    return float(max(abs(passed - 1), stopped))


def _error_beside(taps: Floats, pass_edge: float, stop_edge: float) -> float:
    """The largest error of the gain among the ripples beside the transition, where it is largest of all."""
    half, steps = _half(taps), _power_of_two(32 * taps.size)
    width = _RIPPLES * steps // taps.size
    last, first = math.ceil(pass_edge * steps) - 1, math.floor(stop_edge * steps) + 1
    begin, end = max(last - width, 0), min(first + width, steps)

    def gain(low: int, high: int) -> Floats:
        if low > high:  # a stop band of one point, half the rate
            return np.empty(0)
        ends = [low / steps, high / steps]
        return np.abs(signal.zoom_fft(half, ends, high - low + 1, endpoint=True).real)

    return float(max(gain(first, end).max(initial=0), np.abs(gain(begin, last) - 1).max(initial=0)))


def _error_within(taps: Floats, pass_edge: float, stop_edge: float) -> float:
    """The largest error of the gain in both bands, away from the transition."""
    if taps.size > _LONG:
        return _error_within_parts(taps, pass_edge, stop_edge)
    steps = _power_of_two(8 * taps.size)
    gain = np.abs(np.fft.rfft(taps, 2 * steps))
    passed, stopped = gain[: math.ceil(pass_edge * steps)], gain[math.floor(stop_edge * steps) + 1 :]
    return float(max(np.abs(passed - 1).max(initial=0), stopped.max(initial=0)))


def _error_within_parts(taps: Floats, pass_edge: float, stop_edge: float) -> float:
    """The largest error of the gain in both bands, at a quarter of the frequencies that `_error_within` checks.

    Each ripple is still checked at four frequencies or more, and the transforms are as short as the taps.
    """
    length = _power_of_two(taps.size)
    steps = 2 * length
    places, numbers, worst = 4 * np.arange(length), np.arange(taps.size), 0.0
    for shift in range(3):  # the fourth quarter, of shift 3, mirrors that of shift 1
        gain = np.abs(fft.fft(taps * np.exp(-1j * np.pi * shift / steps * numbers), length, overwrite_x=True))
        at = np.minimum(places + shift, 2 * steps - places - shift)
        passed, stopped = gain[at < pass_edge * steps], gain[at > stop_edge * steps]
        worst = max(worst, np.abs(passed - 1).max(initial=0), stopped.max(initial=0))
    return float(worst)


def _half(taps: Floats) -> Floats:
    """Taps are symmetric, so the gain is the sum of these times cosines, of n from the centre on."""
    half = 2 * taps[taps.size // 2 :]
    half[0] /= 2
    return half


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
