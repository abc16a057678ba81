from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from physiofast.probing.bandpower import BANDS_HZ, band_power, band_power_names


def test_a_sine_shows_in_its_band_with_its_power() -> None:
    time = np.arange(0, 30, 1 / 128)
    wave = 3.0 * np.sin(2 * np.pi * 10.0 * time)[None]
    found = dict(zip(band_power_names(["C3"], [128.0]), band_power([wave], [128.0])[0], strict=True))
    assert np.exp(found["C3 alpha"]) == pytest.approx(4.5, rel=1e-3)
    assert max(np.exp(value) for name, value in found.items() if name != "C3 alpha") < 1e-4


def test_equals_a_scipy_periodogram() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3840)).astype(np.float32)
    found = band_power([rows], [128.0])
    frequency, density = signal.periodogram(rows.astype(np.float64), 128.0, window=np.hanning(3840), detrend="constant")
    for column, (low, high) in enumerate(BANDS_HZ.values()):
        inside = (frequency >= low) & (frequency < high)
        expected = np.log(density[:, inside].sum(1) * (frequency[1] - frequency[0]))
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-4, atol=1e-4)


def test_bands_follow_each_channels_rate() -> None:
    names = band_power_names(["C3", "CHEST", "SaO2"], [128.0, 32.0, 8.0])
    assert names[:6] == tuple(f"C3 {band}" for band in BANDS_HZ)
    assert names[6:] == (
        *(f"CHEST {band}" for band in ("slow", "delta", "theta", "alpha", "sigma")),
        "SaO2 slow",
        "SaO2 delta",
    )
    rng = np.random.default_rng(0)
    channels = [rng.normal(size=(3, round(30 * rate))) for rate in (128.0, 32.0, 8.0)]
    assert band_power(channels, [128.0, 32.0, 8.0]).shape == (3, len(names))
    with pytest.raises(ValueError, match="at least 1 Hz"):
        band_power_names(["slow"], [0.5])
    with pytest.raises(ValueError, match="differ in windows"):
        band_power([channels[0], channels[1][:2]], [128.0, 32.0])


def test_absent_constant_and_broken_rows_are_nan_and_touch_no_other_row() -> None:
    rows = np.random.default_rng(0).normal(size=(600, 960)).astype(np.float32)
    clean = band_power([rows], [32.0])
    broken = rows.copy()
    broken[3], broken[300], broken[599, 5] = 0.0, 7.5, np.nan
    found = band_power([broken], [32.0])
    bad = np.isin(np.arange(600), [3, 300, 599])
    assert np.isnan(found[bad]).all()
    np.testing.assert_array_equal(found[~bad], clean[~bad])


def test_parts_can_be_concatenated() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 960)).astype(np.float32)
    parts = np.concatenate([band_power([rows[:7]], [32.0]), band_power([rows[7:]], [32.0])])
    np.testing.assert_allclose(parts, band_power([rows], [32.0]), rtol=1e-5)


def test_patches_that_are_not_valid_do_not_count() -> None:
    """The encoder does not see them either."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(6, 3840)).astype(np.float32)
    valid = np.ones((6, 1, 30), bool)
    valid[1, 0, 4:7] = valid[2, 0, [0, 10, 11, 29]] = False
    valid[3, 0, 3::4] = False  # stretches of 3 s at most
    valid[4] = False
    broken = np.where(np.repeat(valid[:, 0], 128, axis=1), rows, 1000.0)
    found = band_power([broken], [128.0], valid)
    np.testing.assert_array_equal(found[[0, 5]], band_power([rows[[0, 5]]], [128.0]))
    assert np.isnan(found[[3, 4]]).all()

    def powers(row: int, *seconds: tuple[int, int]) -> np.ndarray:
        parts = [np.exp(band_power([rows[row : row + 1, 128 * a : 128 * b]], [128.0])[0]) for a, b in seconds]
        return np.log(np.average(parts, axis=0, weights=[b - a for a, b in seconds]))

    np.testing.assert_allclose(found[1], powers(1, (0, 4), (7, 30)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2], powers(2, (1, 10), (12, 29)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[:3, 2:], band_power([rows], [128.0])[:3, 2:], atol=0.7)  # of the same noise


def test_a_stretch_that_does_not_move_has_no_power() -> None:
    rows = np.random.default_rng(1).normal(size=(2, 3840)).astype(np.float32)
    valid = np.ones((2, 1, 30), bool)
    valid[:, 0, 5] = False
    rows[0, : 128 * 5] = 3.0
    rows[1] = 3.0
    found = band_power([rows], [128.0], valid)
    alone = band_power([rows[:1, 128 * 6 :]], [128.0])[0] + np.log(24 / 29)
    np.testing.assert_allclose(found[0], alone, rtol=1e-5, atol=1e-5)
    assert np.isnan(found[1]).all()
