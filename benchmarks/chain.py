"""The full chain from a raw record to scaled windows: what it is, and how scipy's and mne's users do it.

Decode -> band-pass (zero phase) -> notch (zero phase) -> resample -> robust scale over valid seconds -> windows,
and one bit per channel and second: it moves, and no clipped sample reaches it through the filters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import signal

from benchmarks.peers import (
    RATE_HZ,
    WINDOW_S,
    digital_planes,
    each,
    put_windows,
    read_frames,
    read_planes,
    window_buffer,
)
from benchmarks.recordings import WfdbNight
from physiofast import conditioning
from physiofast.preparation import scanning

LOW_HZ, HIGH_HZ, ORDER, NOTCH_HZ, NOTCH_QUALITY = 0.3, 35.0, 4, 50.0, 30.0
UP, DOWN = 1, 2
TARGET_HZ = RATE_HZ * UP // DOWN
SOS = signal.butter(ORDER, [LOW_HZ, HIGH_HZ], "bandpass", fs=RATE_HZ, output="sos")
NOTCH = signal.iirnotch(NOTCH_HZ, NOTCH_QUALITY, fs=RATE_HZ)
NOTCH_SOS = signal.tf2sos(*NOTCH)
ENDS_S = 60
"""Seconds after which another padding of the ends no longer shows."""
SUPPORT_S = conditioning.filter_support_s(RATE_HZ, LOW_HZ, HIGH_HZ, ORDER, NOTCH_HZ, NOTCH_QUALITY)

Job = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Truth:
    """The chain in float64, a step at a time over whole arrays."""

    filtered: np.ndarray
    """float64 [13, m] at 100 Hz, in the channels' units."""
    spread: np.ndarray
    """float64 [13], IQR / 1.349 over valid seconds."""
    median: np.ndarray
    """float64 [13]."""
    valid: np.ndarray
    """bool [13, seconds]."""
    lsb: np.ndarray
    """float64 [13], units per raw step."""


def truth(night: WfdbNight) -> Truth:
    """The definition: both filters as one cascade, ends continued by their values, as in `prepare`."""
    digital = np.stack(digital_planes(night))
    physical = (digital - night.baseline[:, None]) / night.gain[:, None]
    filtered = signal.sosfiltfilt(np.vstack([SOS, NOTCH_SOS]), physical)
    filtered = signal.resample_poly(filtered, UP, DOWN, axis=1, padtype="edge")
    valid = np.stack([flags(plane.astype(np.float64), 1.0, 0.0) for plane in digital])
    quartiles = [np.quantile(y[_kept(v, y.size)], (0.25, 0.5, 0.75)) for y, v in zip(filtered, valid, strict=True)]
    low, median, high = np.transpose(quartiles)
    return Truth(filtered, (high - low) / 1.349, median, valid, 1 / night.gain)


def _kept(valid: np.ndarray, samples: int) -> np.ndarray:
    kept = np.repeat(valid, TARGET_HZ)
    return np.pad(kept, (0, max(0, samples - kept.size)))[:samples]


def check_scaled(expected: Truth, steps: float, ends_s: int = 0) -> Callable[[Any], str | None]:
    """Compare windows float32 [W, 13, 3000] and valid bool [13, seconds] with the definition.

    A provider that rounds samples to a step of q moves each by at most q / 2, and so each quantile of them: a sample
    less the median is off by at most q, and the IQR as well. With s = IQR / 1.349 the scale is then wrong by the share
    q / (1.349 s) at most, which is less than q / s. So (x - median) / s may be off by q / s, and by q / s of its value.

    Args:
        expected: the definition's result.
        steps: q in raw steps, for a provider that rounds; bits are compared exactly.
        ends_s: seconds at either end of the record in which samples are not compared.
    """

    def check(found: tuple[np.ndarray, np.ndarray]) -> str | None:
        windows, valid = found
        if not np.array_equal(valid, expected.valid):
            return f"{np.count_nonzero(valid != expected.valid)} of {valid.size} flags differ"
        for c in range(len(expected.spread)):
            want = (expected.filtered[c] - expected.median[c]) / expected.spread[c]
            off = steps * expected.lsb[c] / expected.spread[c]
            problem = _compare(windows[:, c], want, _inner(expected.valid[c], ends_s), off, 1e-4 + off)
            if problem:
                return f"channel {c}: {problem}"
        return None

    return check


def check_unscaled(expected: Truth, factor: float, relative: float) -> Callable[[Any], str | None]:
    """Compare windows [W, 13, 3000] in units with the definition, away from faults and the record's ends."""

    def check(windows: np.ndarray) -> str | None:
        for c, spread in enumerate(expected.spread):
            inner = _inner(expected.valid[c], ENDS_S)
            problem = _compare(windows[:, c] * factor, expected.filtered[c], inner, relative * spread, 0.0)
            if problem:
                return f"channel {c}: {problem}"
        return None

    return check


def check_alike(expected: Truth, least: float = 0.9) -> Callable[[Any], str | None]:
    """For another filter of the same band: correlation of the slopes, which its other lower edge does not move."""

    def check(windows: np.ndarray) -> str | None:
        for c in range(len(expected.spread)):
            found, want, kept = _aligned(windows[:, c], expected.filtered[c], expected.valid[c])
            alike = np.corrcoef(np.diff(found)[kept[1:]], np.diff(want)[kept[1:]])[0, 1]
            if not alike >= least:
                return f"channel {c}: correlation {alike:.3f} with the definition, at least {least} needed"
        return None

    return check


def _inner(valid: np.ndarray, ends_s: int) -> np.ndarray:
    inner = valid.copy()
    inner[:ends_s] = inner[len(inner) - ends_s :] = False
    return inner


def _aligned(windows: np.ndarray, want: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = windows.reshape(-1).astype(np.float64)
    return flat, want[: flat.size], _kept(valid, flat.size)


def _compare(windows: np.ndarray, want: np.ndarray, valid: np.ndarray, absolute: float, relative: float) -> str | None:
    found, want, kept = _aligned(windows, want, valid)
    error = np.abs(found - want)[kept] - relative * np.abs(want[kept])
    worst = float(error.max())
    return None if worst <= absolute else f"error {worst:.3g}, allowed {absolute:.3g} (and {relative:g} of the value)"


def scipy_frames(night: WfdbNight) -> Job:
    """The textbook form: whole arrays, time first, a step at a time."""
    out = window_buffer(night, UP, DOWN)
    windows, channels, length = out.shape

    def run() -> tuple[np.ndarray, np.ndarray]:
        frames = read_frames(night)
        valid = np.stack(
            [flags(np.ascontiguousarray(x), night.gain[c], night.baseline[c]) for c, x in enumerate(frames.T)]
        )
        frames = signal.sosfiltfilt(SOS, frames, axis=0)
        frames = signal.filtfilt(*NOTCH, frames, axis=0)
        frames = signal.resample_poly(frames, UP, DOWN, axis=0)
        for c in range(channels):
            kept = frames[_kept(valid[c], len(frames)), c]
            low, median, high = np.percentile(kept, (25, 50, 75))
            frames[:, c] = (frames[:, c] - median) / ((high - low) / 1.349)
        out[:] = frames[: windows * length].reshape(windows, length, channels).transpose(0, 2, 1)
        return out, valid

    return run


def scipy_planes(night: WfdbNight, cascade: bool = False, threads: int = 1) -> Job:
    """Channel by channel, each step in its fastest form.

    Args:
        night: the record.
        cascade: band-pass and notch as sections of one filter; one after the other differs at the ends only.
        threads: Python threads that share the channels.
    """
    out = window_buffer(night, UP, DOWN)
    valid = np.empty((len(night.gain), night.samples // RATE_HZ), np.bool_)
    sections = np.vstack([SOS, NOTCH_SOS])

    def run() -> tuple[np.ndarray, np.ndarray]:
        planes = read_planes(night)

        def channel(c: int) -> None:
            x = np.ascontiguousarray(planes[c])
            valid[c] = flags(x, night.gain[c], night.baseline[c])
            y = signal.sosfiltfilt(sections if cascade else SOS, x)
            y = y if cascade else signal.filtfilt(*NOTCH, y)
            y = signal.resample_poly(y, UP, DOWN).astype(np.float32)
            median, spread = _sorted_scale(y[_kept(valid[c], y.size)])
            y -= np.float32(median)
            y /= np.float32(spread)
            put_windows(out, c, y)

        each(channel, len(planes), threads)
        return out, valid

    return run


def flags(x: np.ndarray, gain: float, baseline: float) -> np.ndarray:
    """bool [seconds] from values float64 [n]: moves by more than a step, out of reach of runs at a rail."""
    seconds = x[: x.size // RATE_HZ * RATE_HZ].reshape(-1, RATE_HZ)
    low, high = seconds.min(1), seconds.max(1)
    valid = high - low > 1.5 / gain
    for extreme in (low.min(), high.max()):
        if round(extreme * gain + baseline) in scanning.RAILS:
            for start, stop in _runs(x == extreme):
                first = math.floor(start / RATE_HZ - SUPPORT_S)
                valid[max(first, 0) : math.floor((stop - 1) / RATE_HZ + SUPPORT_S) + 1] = False
    return valid


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Starts and stops of runs that are long enough to be clipping."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    return [(start, stop) for start, stop in edges.tolist() if stop - start >= scanning.MIN_CLIPPED_RUN]


def _sorted_scale(values: np.ndarray) -> tuple[float, float]:
    """Median and IQR / 1.349; sorting float32 is faster than numpy's percentiles."""
    ranked = np.sort(values)
    positions = np.array([0.25, 0.5, 0.75]) * (ranked.size - 1)
    low = ranked[positions.astype(np.int64)].astype(np.float64)
    high = ranked[np.ceil(positions).astype(np.int64)].astype(np.float64)
    first, median, third = low + (positions % 1) * (high - low)
    return median, (third - first) / 1.349


def mne_epochs(night: WfdbNight, method: str) -> Job:
    """Read, filter, notch, resample, epochs, in volts.

    Args:
        night: the record.
        method: "iir", the same filters one after the other; "cascade", as sections of one; "fir", mne's own.
    """
    import mne

    mne.set_log_level("ERROR")
    out = window_buffer(night, UP, DOWN)
    band: dict[str, Any] = {"picks": "all", "n_jobs": 1}
    notch = dict(band)
    if method == "iir":
        band |= {"method": "iir", "iir_params": {"sos": SOS, "output": "sos"}}
        notch |= {"method": "iir", "iir_params": {"b": NOTCH[0], "a": NOTCH[1], "output": "ba"}}
    if method == "cascade":
        band |= {"method": "iir", "iir_params": {"sos": np.vstack([SOS, NOTCH_SOS]), "output": "sos"}}

    def run() -> np.ndarray:
        planes: Sequence[np.ndarray] = read_planes(night)
        data = np.empty((len(planes), planes[0].size))
        for row, plane in zip(data, planes, strict=True):
            np.multiply(plane, 1e-6, out=row)
        raw = mne.io.RawArray(data, mne.create_info(len(data), float(RATE_HZ), "eeg"), copy=None)
        raw.filter(LOW_HZ, HIGH_HZ, **band)
        if method != "cascade":
            raw.notch_filter(NOTCH_HZ, **notch)
        raw.resample(TARGET_HZ, method="polyphase", n_jobs=1)
        out[:] = mne.make_fixed_length_epochs(raw, WINDOW_S, preload=True).get_data(copy=False)
        return out

    return run
