"""What is found of raw samples, patch by patch."""

import numpy as np
import pytest

from physiofast import engine
from physiofast.preparation import scanning
from tests.test_conditioning import sine


def scan(digital, invalid=None, patch=200):
    return scanning.scan((digital,), [invalid], np.arange(0, digital.size, patch))[0]


def marked(runs, size):
    mask = np.zeros(size, bool)
    for start, stop in runs:
        mask[start:stop] = True
    return mask


def test_touched_patches_by_definition():
    rng = np.random.default_rng(2)
    for rate, support in ((200.0, 0.0), (200.0, 0.31), (12.8, 1.7)):
        n = round(rate * 40)
        mask = rng.random(n) < 0.004
        expected = np.zeros(40, bool)
        for i in np.flatnonzero(mask):
            first, last = np.floor(i / rate - support), np.floor(i / rate + support)
            expected[max(0, int(first)) : int(last) + 1] = True
        found = np.stack(engine.runs(mask), axis=1)
        np.testing.assert_array_equal(scanning.touched_patches(found, rate, 40, 1.0, support), expected)
    assert not scanning.touched_patches(np.empty((0, 2), np.int64), 10.0, 10, 1.0, 1.0).any()


def test_flat_patches():
    rng = np.random.default_rng(3)
    digital = rng.integers(-100, 100, 2000).astype(np.int16)
    digital[400:600] = 7
    digital[800:1000] = rng.integers(5, 7, 200)
    digital[1400:1599] = 3
    digital[1599] = 9
    assert np.flatnonzero(scanning.flat_patches(scan(digital), 0)).tolist() == [2]
    assert np.flatnonzero(scanning.flat_patches(scan(digital), 1)).tolist() == [2, 4]
    digital[1000:1400] = 0
    assert np.flatnonzero(scanning.flat_patches(scan(digital), 1, min_patches=3)).tolist() == [4, 5, 6]
    extremes = np.array([-32768, 32767] * 5, np.int16)
    assert not scanning.flat_patches(scan(extremes, patch=2), 1).any()
    missing = np.array([5, 9, -32768, -32768, 3, 8], np.int16)
    assert scanning.flat_patches(scan(missing, -32768, patch=2), 0).tolist() == [False, True, False]


def test_patch_edges_at_a_fractional_rate():
    np.testing.assert_array_equal(scanning.patch_edges(5, 1.0, 12.8), [0, 13, 26, 39, 52, 64])
    np.testing.assert_array_equal(scanning.patch_edges(3, 1.0, 200.0), [0, 200, 400, 600])


def test_clipping_at_a_rail_and_at_another_limit():
    x = np.rint(300 * sine(3.0, seconds=10)).astype(np.int16)
    assert not len(scanning.clipped_runs(scan(x)))
    limited = np.clip(x, -200, 2047)
    np.testing.assert_array_equal(marked(scanning.clipped_runs(scan(limited)), limited.size), limited == -200)
    railed = np.clip(x * 10, -2048, 2047)
    np.testing.assert_array_equal(
        marked(scanning.clipped_runs(scan(railed)), railed.size), (railed == -2048) | (railed == 2047)
    )
    railed32 = np.clip(x.astype(np.int32) * 10_000_000, -(2**31) + 1, 2**31 - 1).astype(np.int32)
    assert not len(scanning.clipped_runs(scan(railed32 // 2)))


def coarse(values, steps=255):
    """What a converter of this many steps makes of -1 to 1."""
    return np.rint((np.clip(values, -1, 1) + 1) / 2 * steps).astype(np.int16)


@pytest.mark.parametrize("overdrive", [1.05, 1.6, 20.0])
@pytest.mark.parametrize("steps", [200, 255, 27232])
def test_clipping_at_limits_of_the_header(overdrive, steps):
    """A breathing belt, saturated for 20 % of the time and more, as fine or coarse as it may be."""
    x = overdrive * sine(0.25, seconds=60)
    digital = coarse(x, steps)
    found = marked(scanning.clipped_runs(scan(digital), (0, steps)), digital.size)
    np.testing.assert_array_equal(found, (digital == 0) | (digital == steps))
    assert found.mean() == pytest.approx(1 - 2 * np.arcsin(1 / overdrive) / np.pi, abs=0.02)
    one_side = coarse(np.where(x > 0, x, x / (1.2 * overdrive)), steps)
    found = marked(scanning.clipped_runs(scan(one_side), (0, steps)), one_side.size)
    np.testing.assert_array_equal(found, one_side == steps)


@pytest.mark.parametrize("steps", [100, 255, 1000, 27232])
@pytest.mark.parametrize("hz", [0.05, 0.25, 1.0])
def test_limits_made_of_what_a_signal_reached_mark_no_more(steps, hz):
    """Whatever peaks are rounded to, of one height or many, however flat."""
    t = np.arange(60 * 200) / 200
    x = np.sin(2 * np.pi * hz * t)
    for peaks in (x, x * (1 + np.sin(2 * np.pi * 0.013 * t)) / 2, x**3, 1.5 * x - 0.5 * x**3):
        peaks = peaks / np.abs(peaks).max()
        for share in (1, 1 + 0.3 / steps, 1 + 0.98 / steps):  # rounded to the limit from either side
            digital = coarse(peaks * share, steps)
            assert {0, steps} & set(scan(digital).range)
            found = scanning.clipped_runs(scan(digital), (0, steps))
            np.testing.assert_array_equal(found, scanning.clipped_runs(scan(digital)))


def test_limits_that_a_signal_does_not_reach_are_none_of_its_own():
    x = coarse(sine(0.25, seconds=60).clip(-0.5, 0.5))
    for limits in ((), (0, 255), (-128, 127)):
        assert not len(scanning.clipped_runs(scan(x), limits))


def test_slow_smooth_peaks_and_lone_extremes_are_no_clipping():
    slow = np.rint(40 * sine(0.25, seconds=60)).astype(np.int16)
    assert not len(scanning.clipped_runs(scan(slow)))
    noise = np.random.default_rng(4).normal(0, 30, 50_000).astype(np.int16)
    assert not len(scanning.clipped_runs(scan(noise)))


def test_clipping_does_not_look_at_missing_samples():
    x = np.rint(300 * sine(3.0, seconds=10)).astype(np.int16)
    x[100:150] = -32768
    assert not len(scanning.clipped_runs(scan(x, -32768)))
    np.testing.assert_array_equal(scanning.missing_runs(scan(x, -32768)), [[100, 150]])
    assert not len(scanning.clipped_runs(scan(np.full(10, -32768, np.int16), -32768)))
    assert scan(np.full(10, -32768, np.int16), -32768).range is None


def test_merge_runs_by_definition():
    rng = np.random.default_rng(9)
    for _ in range(200):
        parts = []
        for _ in range(2):
            start = np.sort(rng.integers(0, 60, rng.integers(0, 6)))
            parts.append(np.stack([start, start + rng.integers(1, 9, start.size)], axis=1))
        mask = marked(np.concatenate(parts), 80)
        np.testing.assert_array_equal(scanning.merge_runs(*parts), np.stack(engine.runs(mask), axis=1))


def test_pops_are_jumps_away_from_what_is_invalid_anyway():
    x = np.rint(50 * sine(1.0, seconds=20)).astype(np.int16)
    x[1030:] += 900  # a pop in patch 5
    x[2200:2230] = -32768  # missing, in patch 11
    x[3000] += 2000  # at the first sample of patch 15, and back
    found = scan(x, -32768)
    gaps = scanning.missing_runs(found)
    assert np.flatnonzero(scanning.popped_patches(found, x, 500, gaps)).tolist() == [5, 15]
    assert not scanning.popped_patches(found, x, 2100, gaps).any()
    x[2210:2225] = 4000  # within what is missing, for who says so
    found = scan(x)
    assert np.flatnonzero(scanning.popped_patches(found, x, 500, gaps)).tolist() == [5, 15]
    x[2330:] -= 700  # beside it in the same patch
    assert np.flatnonzero(scanning.popped_patches(scan(x), x, 500, gaps)).tolist() == [5, 11, 15]
    x[2400:] += 1400  # at the start of the next one
    assert np.flatnonzero(scanning.popped_patches(scan(x), x, 500, gaps)).tolist() == [5, 11, 12, 15]
    touching = np.array([[2200, 2400]])
    assert np.flatnonzero(scanning.popped_patches(scan(x), x, 500, touching)).tolist() == [5, 15]
