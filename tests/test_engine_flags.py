"""Extremes, runs and histograms of raw samples by their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine

pytestmark = pytest.mark.native


@st.composite
def raw_cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([np.int16, np.int32]))
    n, channels = draw(st.integers(2, 900)), draw(st.integers(1, 14))
    limits = np.iinfo(dtype)
    spread = draw(st.sampled_from([3, 1000, limits.max]))
    x = rng.integers(-spread, spread, (n, channels)).astype(dtype)
    invalid = [draw(st.sampled_from([None, int(x[0, 0]), limits.min, 2**40])) for _ in range(channels)]
    x[rng.random(x.shape) < draw(st.sampled_from([0.0, 0.1, 0.9]))] = x[0, 0]
    edges = np.unique(rng.integers(0, n + 1, draw(st.integers(1, 30))))
    source = x.T if draw(st.booleans()) else tuple(np.ascontiguousarray(x[:, c]) for c in range(channels))
    return x, source, invalid, edges


@settings(max_examples=150, deadline=None)
@given(raw_cases())
def test_extremes_by_definition(case):
    x, source, invalid, edges = case
    found = engine.patch_extremes(source, range(x.shape[1]), edges, invalid)
    assert found.low.shape == (x.shape[1], edges.size - 1)
    for c in range(x.shape[1]):
        column = x[:, c].astype(np.int64)
        bad = np.zeros(column.size, bool) if invalid[c] is None else column == invalid[c]
        for p, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            good = column[start:stop][~bad[start:stop]]
            assert found.num_invalid[c, p] == bad[start:stop].sum()
            if good.size:
                assert (found.low[c, p], found.high[c, p]) == (good.min(), good.max())
            else:
                assert found.low[c, p] > found.high[c, p]
            pairs = [t for t in range(max(start, 1), stop) if not bad[t] and not bad[t - 1]]
            steps = [abs(column[t] - column[t - 1]) for t in pairs]
            assert found.step[c, p] == min(max(steps, default=0), 2**31 - 1)


@settings(max_examples=150, deadline=None)
@given(raw_cases(), st.integers(1, 4), st.data())
def test_runs_by_definition(case, least, data):
    x, source, _, edges = case
    channel = data.draw(st.integers(0, x.shape[1] - 1))
    column = x[:, channel].astype(np.int64)
    value = int(data.draw(st.sampled_from(sorted({int(v) for v in column[:5]}))))
    within = None
    if edges.size > 1:
        within = edges[:-1:2], edges[1::2][: edges[:-1:2].size]
    stretches = [(0, column.size)] if within is None else list(zip(*within, strict=True))
    expected = []
    for first, last in stretches:
        t = int(first)
        while t < last:
            stop = t
            while stop < last and column[stop] == value:
                stop += 1
            if stop - t >= least:
                before = value if t == 0 else column[t - 1]
                expected.append((t, stop, before, value if stop == column.size else column[stop]))
            t = max(stop, t + 1)
    found = engine.equal_runs(source, channel, value, min_length=least, within=within)
    np.testing.assert_array_equal(found, np.array(expected, np.int64).reshape(-1, 4))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(0, 3000), st.integers(0, 80))
def test_histograms_by_definition(seed, patch, n, patches):
    rng = np.random.default_rng(seed)
    planes = [rng.integers(-32768, 32768, n).astype(np.int16) for _ in range(3)]
    keep = [rng.random(patches) < share for share in (0.0, 0.5, 1.0)]
    found = engine.histograms(planes, [patch] * 3, keep)
    for c in range(3):
        whole = min(patches, n // patch)
        chosen = np.concatenate(
            [planes[c][p * patch : (p + 1) * patch] for p in range(whole) if keep[c][p]] or [np.empty(0, np.int16)]
        )
        np.testing.assert_array_equal(found[c], np.bincount(chosen.astype(np.int64) + 32768, minlength=65536))


def test_a_run_that_is_longer_than_what_is_read_at_once():
    x = np.zeros(200_000, np.int16)
    x[:10] = x[150_000:] = 4
    found = engine.equal_runs((x,), 0, 0, min_length=3)
    np.testing.assert_array_equal(found, [[10, 150_000, 4, 4]])


def test_a_value_that_no_sample_can_have_has_no_run():
    for value in (2**40, 2**70, -(2**70)):
        assert engine.equal_runs(np.zeros((1, 5), np.int16), 0, value).shape == (0, 4)
        found = engine.patch_extremes(np.arange(5, dtype=np.int16)[None], [0], np.array([0, 5]), [value])
        assert (found.low, found.high, found.num_invalid) == (0, 4, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: engine.patch_extremes(x, [2], np.array([0, 5]), [None]), "channels 0: expected 0 to 1, found 2"),
        (lambda x: engine.patch_extremes(x, [0], np.array([0, 11]), [None]), "ascending within 0 to 10"),
        (lambda x: engine.patch_extremes(x, [0], np.array([5, 5]), [None]), "ascending within 0 to 10"),
        (lambda x: engine.equal_runs(x, 3, 0), "channels 0: expected 0 to 1, found 3"),
        (
            lambda x: engine.equal_runs(x, 0, 0, within=(np.array([0]), np.array([11]))),
            "within needs starts and stops from 0 to 10",
        ),
        (
            lambda x: engine.patch_extremes((x[0], x[1, :5]), [0, 1], np.array([0, 5]), [None, None]),
            "channels have different lengths",
        ),
        (
            lambda x: engine.patch_extremes(x.astype(np.float32), [0], np.array([0, 5]), [None]),
            "raw samples need int16 or int32, found float32",
        ),
        (lambda x: engine.patch_extremes(x, [0], np.array([0, 5]), []), "invalid needs one entry for each of 1"),
        (lambda x: engine.patch_extremes(x, [0], np.array([0.0, 5.5]), [None]), "edges: expected whole numbers"),
        (lambda x: engine.patch_extremes(x, [0], np.array([0, 5]), [3.5]), r"invalid 0 must be a whole .* found 3\.5"),
        (lambda x: engine.equal_runs(x, 0, 3.5), r"value must be a whole number; found 3\.5"),
        (lambda x: engine.equal_runs(x, 0, 3, min_length=1.5), r"min_length must be a whole number; found 1\.5"),
        (
            lambda x: engine.equal_runs(x, 0, 0, within=(np.array([[0]]), np.array([[5]]))),
            r"starts within: expected whole numbers \[n\], found int64 \[1, 1\]",
        ),
        (
            lambda x: engine.equal_runs(x, 0, 0, within=(np.array([0]), np.array([4.5]))),
            r"stops within: expected whole numbers \[n\], found float64 \[1\]",
        ),
        (lambda x: engine.histograms([x[0]], [0], [np.ones(3, bool)]), "patch 0 must be 1 sample or more; found 0"),
        (lambda x: engine.histograms([x[0]], [2.5], [np.ones(3, bool)]), r"patch 0 must be a whole .* found 2\.5"),
        (lambda x: engine.histograms([x[0].astype(float)], [1], [np.ones(3, bool)]), "found float64"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 10), np.int16))
