"""Log band powers per channel: the baseline that a learned representation has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft

from physiofast import engine

BANDS_HZ: dict[str, tuple[float, float]] = {
    "slow": (0.1, 0.5),
    "delta": (0.5, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 12.0),
    "sigma": (12.0, 16.0),
    "beta": (16.0, 30.0),
}
"""Lower and upper edge of each band in Hz. A channel has those whose upper edge is at most half its rate."""

LEAST_STRETCH_S = 4.0
"""Shortest stretch of valid patches that powers are taken of: its bins are 0.25 Hz apart."""
_BLOCK_ROWS = 256


def band_power_names(names: Sequence[str], rates_hz: Sequence[float]) -> tuple[str, ...]:
    """Names of the columns of `band_power`: `C3-M2 delta`, ..."""
    return tuple(f"{name} {band}" for name, rate in zip(names, rates_hz, strict=True) for band in _channel_bands(rate))


def band_power(
    channels: Sequence[np.ndarray], rates_hz: Sequence[float], valid: np.ndarray | None = None
) -> np.ndarray:
    """Compute the natural logarithm of the power in each band of each channel.

    The power of a band is the sum over the bins of one Hann-tapered periodogram of the window, in the squared unit of
    the input. If some patches are invalid, it is the mean over the runs of valid patches that last at least
    `LEAST_STRETCH_S`, weighted by their lengths. Rows are independent, so results of several calls can be concatenated.

    Args:
        channels: For each channel float [n, T_c], one row per window; lengths differ with the rates.
        rates_hz: For each channel its rate in Hz.
        valid: bool [n, C, S], whether each of the S patches of a row is; all of them when left out.

    Returns:
        float32 [n, F], columns as `band_power_names` says. NaN for a channel that is absent from a window:
        a row that is constant or not finite, or that has no stretch of valid patches.

    Raises:
        ValueError: a channel whose rate is too low for every band, or channels that differ in windows.
    """
    if len({len(channel) for channel in channels}) > 1:
        raise ValueError(f"channels differ in windows: {[len(channel) for channel in channels]}")
    columns = []
    for c, (channel, rate) in enumerate(zip(channels, rates_hz, strict=True)):
        rows, bands = np.asarray(channel), _channel_bands(rate)
        there = np.ones((len(rows), 1), np.bool_) if valid is None else valid[:, c]
        whole = there.all(1)
        power = np.full((len(rows), len(bands)), np.nan, np.float32)
        power[whole] = _channel_power(rows[whole], rate, bands)
        part = np.flatnonzero(there.any(1) & ~whole)
        power[part] = _power_of_stretches(rows[part], there[part], rate, bands)
        columns.append(power)
    return np.concatenate(columns, axis=1)


def _power_of_stretches(
    rows: np.ndarray, valid: np.ndarray, rate_hz: float, bands: dict[str, tuple[float, float]]
) -> np.ndarray:
    """Band powers of rows with some invalid patches (valid: bool [n, S]); a constant run of patches has zero power."""
    patch = rows.shape[1] // max(valid.shape[1], 1)
    by_length: dict[int, list[tuple[int, int]]] = {}
    for row, mask in enumerate(valid):
        for start, stop in zip(*engine.runs(mask), strict=True):
            by_length.setdefault(int(stop - start) * patch, []).append((row, int(start) * patch))
    total, samples, moves = np.zeros((len(rows), len(bands))), np.zeros(len(rows)), np.zeros(len(rows), np.bool_)
    for length, places in sorted(by_length.items()):
        if length < LEAST_STRETCH_S * rate_hz:
            continue
        row, start = np.array(places).T
        powers = np.exp(_channel_power(rows[row[:, None], start[:, None] + np.arange(length)], rate_hz, bands))
        moving = np.isfinite(powers[:, 0])
        np.add.at(total, row[moving], length * powers[moving])
        np.add.at(samples, row, length)
        moves[row[moving]] = True
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(moves[:, None], np.log(np.maximum(total / samples[:, None], 1e-12)), np.nan)


def _channel_bands(rate_hz: float) -> dict[str, tuple[float, float]]:
    bands = {name: edges for name, edges in BANDS_HZ.items() if edges[1] <= rate_hz / 2}
    if not bands:
        raise ValueError(f"a channel at {rate_hz} Hz reaches no band; band powers need a rate of at least 1 Hz")
    return bands


def _channel_power(rows: np.ndarray, rate_hz: float, bands: dict[str, tuple[float, float]]) -> np.ndarray:
    length = rows.shape[1]
    taper = np.hanning(length).astype(np.float32)
    scale = 2.0 / float(np.sum(np.square(taper, dtype=np.float64))) / length
    frequency = scipy.fft.rfftfreq(length, 1.0 / rate_hz)
    bins = [slice(*np.searchsorted(frequency, edges)) for edges in bands.values()]
    power = np.full((len(rows), len(bands)), np.nan, np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS].astype(np.float32)
        present = np.flatnonzero(np.isfinite(block).all(1))
        present = present[np.ptp(block[present], axis=1) > 0]
        block = block[present]
        spectrum = scipy.fft.rfft((block - block.mean(1, keepdims=True)) * taper, axis=1)
        energy = np.square(spectrum.real) + np.square(spectrum.imag)
        # Sums and no matrix product, whose last bit depends on how many rows a processor's BLAS takes at a time.
        total = scale * np.stack([energy[:, band].sum(1) for band in bins], axis=1)
        power[start + present] = np.log(np.maximum(total, 1e-12))
    return power
