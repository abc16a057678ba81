"""Resampling and zero-phase filters equal SciPy's in float64, on every instruction set and number of threads."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from physiofast import engine
from physiofast.engine import ChannelFilter, Resampler
from tests.settings import INSTRUCTIONS, on_engine_threads, with_instructions

pytestmark = pytest.mark.native
native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))

RATIOS = [(1, 2), (16, 25), (1, 1), (3, 7), (5, 1), (25, 64), (147, 160), (1, 25), (7, 3)]
FILTERS = [
    signal.butter(4, (0.3, 35), "bandpass", fs=200, output="sos"),
    signal.butter(2, 1.0, fs=200, output="sos"),
    signal.butter(1, 10.0, "highpass", fs=200, output="sos"),
    signal.butter(7, (5, 60), "bandpass", fs=200, output="sos"),  # more sections than one pass holds
    signal.tf2sos(*signal.iirnotch(50, 30, fs=200)),
    signal.cheby2(5, 40, 30, fs=200, output="sos"),
]


def make_samples(rng, channels, n, dtype, layout):
    """[channels, n] of any dtype, stored by channel, by sample, or with gaps between samples."""
    if np.issubdtype(dtype, np.integer):
        x = rng.integers(-30_000, 30_000, (channels, n)).astype(dtype)
    else:
        x = rng.normal(0, 100, (channels, n)).astype(dtype)
    if layout == "by sample":
        return np.ascontiguousarray(x.T).T
    if layout == "apart":
        wide = np.zeros((channels, 3 * n), dtype)
        wide[:, ::3] = x
        return wide[:, ::3]
    return x


def assert_close(found, expected, relative):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    limit = relative * max(np.abs(expected).max(initial=0), 1e-30)
    assert np.abs(found - expected).max(initial=0) <= limit


@st.composite
def sources(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([np.int16, np.int32, np.float32, np.float64]))
    layout = draw(st.sampled_from(["by channel", "by sample", "apart"]))
    channels, n = draw(st.integers(1, 19)), draw(st.integers(1, 3000))
    x = make_samples(rng, channels, n, dtype, layout)
    chosen = draw(st.lists(st.integers(0, channels - 1), min_size=1, max_size=20))
    return rng, x, chosen


@settings(max_examples=150, deadline=None)
@given(sources(), st.sampled_from(RATIOS), st.integers(0, 60), st.booleans(), st.sampled_from(["nearest", "zero"]))
def test_resample_equals_scipy(case, ratio, half, symmetric, edge):
    rng, x, chosen = case
    up, down = ratio
    taps = rng.normal(size=2 * half + 1)
    taps = taps + taps[::-1] if symmetric else taps
    scale, shift = rng.normal(size=len(chosen)), rng.normal(size=len(chosen))
    padding = {"padtype": "edge"} if edge == "nearest" else {"padtype": "constant"}
    values = x[chosen].astype(np.float64) * scale[:, None] + shift[:, None]
    expected = signal.resample_poly(values, up, down, axis=1, window=taps, **padding)
    found = engine.resample(x, Resampler(up, down, taps), channels=chosen, scale=scale, shift=shift, edge=edge)
    gain = 1.0 if up == down else np.abs(taps).sum() * up  # at the same rate neither SciPy nor the engine filters
    size = max(np.abs(values).max(), 1e-30) * gain
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6 * size


@pytest.mark.parametrize(("up", "down", "half"), [(1, 500, 21_800), (1, 1000, 43_602), (3, 1000, 43_600)])
def test_sums_of_long_filters_lose_no_digits(up, down, half):
    """Slow signals far from zero, whose products all have one sign."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 90_000)).cumsum(1) * 50 + 20_000
    taps = signal.firwin(2 * half + 1, 0.45 / max(up, down))
    expected = signal.resample_poly(x, up, down, axis=1, window=taps)
    found = engine.resample(x, Resampler(up, down, taps), edge="zero")
    assert np.abs(found - expected).max() <= 1e-7 * np.abs(x).max() * np.abs(taps).sum()
    part = engine.resample(x[:, :70_000], Resampler(up, down, taps), edge="zero")
    np.testing.assert_array_equal(part[:, :20], found[:, :20])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(RATIOS), st.integers(1, 400), st.integers(0, 4000))
def test_windows_are_the_whole_ones_of_the_resampled_signal(seed, ratio, window, n):
    rng = np.random.default_rng(seed)
    x = rng.integers(-100, 100, (3, n)).astype(np.int16)
    resampler = Resampler(*ratio, signal.firwin(31, 0.4))
    whole = engine.resample(x, resampler)
    count = whole.shape[1] // window
    out = np.full((count, 3, window), np.nan, np.float32)
    assert engine.resample(x, resampler, window=window, out=out) is out
    expected = whole[:, : count * window].reshape(3, count, window).transpose(1, 0, 2)
    np.testing.assert_array_equal(out, expected)


@settings(max_examples=150, deadline=None)
@given(sources(), st.sampled_from(FILTERS))
def test_zero_phase_equals_scipy(case, sos):
    _, x, chosen = case
    least = engine.padding(sos) + 1
    if x.shape[1] < least:
        with pytest.raises(ValueError, match=f"{x.shape[1]} samples are too few .* give it at least {least}"):
            engine.zero_phase(x, sos, channels=chosen)
        return
    expected = signal.sosfiltfilt(sos, x[chosen].astype(np.float64))
    assert_close(engine.zero_phase(x, sos, channels=chosen), expected, 1e-6)


@pytest.mark.parametrize("extra", [0, 1, 1023, 1024, 1025])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_long_signals_are_filtered_in_blocks_without_a_seam(blocks, extra):
    """The slow edge rings for 50 s; a block is 65,536 samples or more."""
    rng = np.random.default_rng(extra)
    n = blocks * 65_536 + extra
    walk = np.cumsum(rng.normal(size=(3, n)), axis=1)
    x = (walk * (20_000 / np.abs(walk).max())).astype(np.int16)
    slow = signal.butter(4, (0.3, 35), "bandpass", fs=200, output="sos")
    expected = signal.sosfiltfilt(slow, x.astype(np.float64))
    assert_close(engine.zero_phase(x, slow), expected, 1e-6)
    very_slow = signal.butter(4, (0.05, 5), "bandpass", fs=200, output="sos")
    assert_close(engine.zero_phase(x, very_slow), signal.sosfiltfilt(very_slow, x.astype(np.float64)), 1e-6)


def test_a_large_offset_costs_no_precision():
    """In int32 and float64, whose numbers float32 does not hold."""
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 1000, (2, 5000)).cumsum(axis=1)
    sos = signal.butter(4, (0.3, 35), "bandpass", fs=200, output="sos")
    for x in ((wave + 2e9).astype(np.int32), wave * 1e-3 + 1e9):
        expected = signal.sosfiltfilt(sos, x.astype(np.float64))
        # float64 itself resolves 1e-16 of the offset, which a filter this slow amplifies.
        limit = 1e-6 * np.abs(expected).max() + 1e-12 * np.abs(x).max()
        assert np.abs(engine.zero_phase(x, sos) - expected).max() <= limit < 0.1 * np.abs(expected).max()


def mixed_filters(rng, n):
    """Thirteen channels, each treated in its own way."""
    taps = signal.firwin(81, 0.4)
    filters = []
    for c in range(13):
        gaps = np.sort(rng.choice(n, 6, replace=False)).reshape(3, 2) if c % 3 == 0 else None
        if c == 6:
            gaps = np.array([[0, 5], [100, 101], [n - 40, n]])
        filters.append(
            ChannelFilter(
                channel=(c * 5) % 13,
                gaps=gaps,
                scale=float(rng.normal()),
                shift=float(rng.normal()),
                sos=None if c % 4 == 3 else FILTERS[c % len(FILTERS)],
                resampler=[None, Resampler(16, 25, signal.firwin(501, 1 / 25)), Resampler(1, 2, taps)][c % 3],
            )
        )
    return filters


@pytest.mark.parametrize("n", [1501, 70_001])
def test_every_channel_is_treated_in_its_own_way(n):
    rng = np.random.default_rng(n)
    frames = rng.integers(-3000, 3000, (n, 13)).astype(np.int16)
    for item in mixed_filters(rng, n):
        expected = engine.condition_reference(frames[:, item.channel], item)
        assert_close(engine.condition(frames.T, [item])[0], expected, 2e-6)
    same = [item for item in mixed_filters(rng, n) if item.resampler is not None and item.resampler.down == 25]
    expected = np.stack([engine.condition_reference(frames[:, item.channel], item) for item in same])
    assert_close(engine.condition(frames.T, same), expected, 2e-6)


def rounded(source, filters, n):
    planes = [np.full(n, -999, np.int16) for _ in filters]
    lsb, shift = np.linspace(0.05, 0.5, len(filters)), np.linspace(-1, 1, len(filters))
    patch = [100 + c for c in range(len(filters))]
    keep = [np.random.default_rng(c).random(n // 100) < 0.7 for c in range(len(filters))]
    ends = engine.condition_int16(
        source, filters, planes=planes, lsb=lsb, shift=shift, keep=keep, patch=patch, edge="zero"
    )
    return planes, ends, (lsb, shift, keep, patch)


def test_int16_planes_and_their_ranges():
    rng = np.random.default_rng(3)
    n = 20_003
    frames = rng.integers(-3000, 3000, (n, 13)).astype(np.int16)
    filters = mixed_filters(rng, n)
    planes, (low, high), (lsb, shift, keep, patch) = rounded(frames.T, filters, n)
    for c, item in enumerate(filters):
        values = engine.condition_reference(frames[:, item.channel], item, "zero")
        expected = np.clip(np.rint((values - shift[c]) / lsb[c]), -32767, 32767)
        off = np.abs(planes[c][: values.size] - expected)
        assert off.max() <= 1  # a value in float32 can fall on the other side of a half
        assert (off > 0).mean() < 0.01
        assert (planes[c][values.size :] == -999).all()
        whole = min(keep[c].size, values.size // patch[c])
        told = values[: keep[c].size * patch[c]]
        kept = told[np.repeat(keep[c], patch[c])[: told.size]]
        assert whole > 0
        assert low[c] == pytest.approx(kept.min(), rel=1e-5) and high[c] == pytest.approx(kept.max(), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
@pytest.mark.parametrize("gap", [(0, 150), (9_000, 9_203), (19_990, 20_000)])
def test_a_bridge_on_an_offset_leaves_no_noise_behind_a_high_pass(dtype, gap):
    """Rounded to float32, the line would step by 2e-3 at 20,000: 1e-5 of what is left of such a signal."""
    rng = np.random.default_rng(3)
    x = np.rint(20_000 + 20 * rng.standard_normal((2, 20_000))).astype(dtype)
    filters = [engine.ChannelFilter(channel=c, sos=FILTERS[0], gaps=np.array([gap])) for c in range(2)]
    found = engine.condition(x, filters)
    for c in range(2):
        expected = engine.condition_reference(x[c], filters[c])
        assert np.abs(found[c] - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("patch", [100, 101, 2**31, 2**62, 2**70])
def test_a_patch_longer_than_the_signal_holds_all_of_it(patch):
    x = np.arange(100, dtype=np.int16)[None]
    item, plane = ChannelFilter(channel=0), np.zeros(100, np.int16)
    options = {"planes": [plane], "lsb": [1.0], "shift": [0.0], "patch": [patch]}
    for keep, expected in ((np.ones(4, bool), (0, 99)), (np.array([False, True, True]), (np.inf, -np.inf))):
        found = engine.condition_int16(x, [item], keep=[keep], **options)
        assert (found[0][0], found[1][0]) == expected
        np.testing.assert_array_equal(plane, x[0])
    whole = engine.histograms([plane], [patch], [np.ones(4, bool)])
    assert whole.sum() == (100 if patch == 100 else 0)  # a part of a patch is not counted


@pytest.mark.parametrize("name", INSTRUCTIONS or [None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_becomes_the_largest_sample_and_is_not_in_the_range(name, dtype):
    x = np.tile(np.arange(-50, 51, dtype=dtype), 3)[None]
    x[0, 5::7] = np.nan
    x[0, 3] = np.inf
    plane = np.zeros(x.size, np.int16)
    options = {"planes": [plane], "lsb": [0.5], "shift": [0.0], "patch": [101]}
    with with_instructions(name) if name else contextlib.nullcontext():
        for keep in ([True, True, True], [False, True, False]):
            low, high = engine.condition_int16(x, [ChannelFilter(channel=0)], keep=[np.array(keep)], **options)
            counted = x[0, np.repeat(keep, 101)]
            assert (low[0], high[0]) == (np.nanmin(counted), np.nanmax(counted))
    np.testing.assert_array_equal(plane, np.where(np.isfinite(x[0]), 2 * np.nan_to_num(x[0], posinf=0), 32767))


@native_only
def test_bits_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(4)
    n = 90_001
    frames = rng.integers(-3000, 3000, (n, 13)).astype(np.int16)
    filters = mixed_filters(rng, n)
    with on_engine_threads(1):
        expected, ends, _ = rounded(frames.T, filters, n)
        windows = engine.resample(frames.T, Resampler(16, 25, signal.firwin(501, 1 / 25)), window=128)
    for threads in (2, 3, 5, 13):
        with on_engine_threads(threads):
            planes, found, _ = rounded(frames.T, filters, n)
            again = engine.resample(frames.T, Resampler(16, 25, signal.firwin(501, 1 / 25)), window=128)
        for a, b in zip(planes, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(found, ends)
        np.testing.assert_array_equal(again, windows)


@native_only
def test_bits_do_not_depend_on_the_instruction_set():
    """All forms agree, but the zero-phase filter of SSE2, which has no fused multiply-add."""
    rng = np.random.default_rng(5)
    n = 30_001
    frames = rng.integers(-3000, 3000, (n, 13)).astype(np.int16)
    filters = mixed_filters(rng, n)
    edges = np.arange(0, n, 37)
    plain, filtered = {}, {}
    for name in INSTRUCTIONS:
        with with_instructions(name):
            assert engine.instruction_set() == name
            extremes = engine.patch_extremes(frames.T, range(13), edges, [None, 5, -2999, *[None] * 10])
            resampled = engine.resample(frames.T, Resampler(16, 25, signal.firwin(501, 1 / 25)), window=128)
            plain[name] = [resampled, extremes.low, extremes.high, extremes.step, extremes.num_invalid]
            planes, ends, _ = rounded(frames.T, filters, n)
            filtered[name] = [*planes, *ends, engine.zero_phase(frames.T.astype(np.float64), FILTERS[0])]
    fused = [results for name, results in filtered.items() if name != "sse2"]
    for alike in (list(plain.values()), fused):
        for other in alike[1:]:
            for a, b in zip(other, alike[0], strict=True):
                np.testing.assert_array_equal(a, b)
    for a, b in zip(filtered.get("sse2", fused[0]), fused[0] if fused else filtered["sse2"], strict=True):
        step = 1.0 if a.dtype == np.int16 else float(np.finfo(np.float32).eps) * np.abs(b).max()
        assert np.abs(a.astype(np.float64) - b).max() <= step
    with (
        pytest.raises(ValueError, match="instruction set: expected one of .*, found neon9"),
        with_instructions("neon9"),
    ):
        pass


@pytest.mark.parametrize("file_format", [16, 212, 24, 32])
def test_a_signal_file_gives_what_its_samples_give(tmp_path, file_format):
    rng = np.random.default_rng(file_format)
    n = 12_001
    frames = rng.integers(-2000, 2000, (n, 7))
    path = tmp_path / "x.dat"
    if file_format == 212:
        flat = np.append(frames.reshape(-1), 0)[: -(-frames.size // 2) * 2].reshape(-1, 2) & 0xFFF
        low, high = flat.T
        packed = np.stack([low & 0xFF, (low >> 8) | (high >> 8) << 4, high & 0xFF], axis=1)
        path.write_bytes(packed.astype(np.uint8).tobytes())
    elif file_format == 24:
        path.write_bytes(frames.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes())
    else:
        path.write_bytes(frames.astype(f"<i{file_format // 8}").tobytes())
    file = engine.SignalFile(path, file_format, [1] * 7, n)
    resampler = Resampler(16, 25, signal.firwin(501, 1 / 25))
    filters = [ChannelFilter(channel=c, sos=FILTERS[0], resampler=resampler) for c in (6, 0, 3)]
    expected = engine.condition(frames.T.astype(np.int32), filters)
    np.testing.assert_allclose(engine.condition(file, filters), expected, atol=1e-4)
    found = engine.resample(file, resampler, channels=[5, 2])
    np.testing.assert_array_equal(found, engine.resample(frames.T.astype(np.int32), resampler, channels=[5, 2]))
    planes = tuple(np.ascontiguousarray(frames[:, c].astype(np.int16)) for c in range(7))
    np.testing.assert_array_equal(engine.resample(planes, resampler), engine.resample(file, resampler))


def test_alias_rejection_of_a_sweep():
    rate, up, down = 200, 16, 25
    t = np.arange(60 * rate) / rate
    sweep = signal.chirp(t, 66, 60, 99) * signal.windows.tukey(t.size, 0.2)
    count, beta = signal.kaiserord(60, 8 / (rate * up / 2))
    taps = signal.firwin(count | 1, 60, fs=rate * up, window=("kaiser", beta))
    y = engine.resample((30_000 * sweep).astype(np.int16)[None], Resampler(up, down, taps))
    assert np.abs(y).max() < 30_000 * 1.2e-3


def test_a_section_that_begins_with_a_delay_is_left_to_scipy():
    sos = FILTERS[1].copy()
    sos[0, :3] = [0.0, 1e-3, 2e-3]
    x = np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32)
    assert_close(engine.zero_phase(x, sos), signal.sosfiltfilt(sos, x.astype(np.float64)), 1e-6)


def test_no_samples_and_no_channels():
    resampler = Resampler(1, 2, np.ones(3))
    assert engine.resample(np.zeros((2, 0), np.int16), resampler).shape == (2, 0)
    assert engine.condition(np.zeros((2, 5), np.int16), []).shape == (0, 0)
    assert engine.resample(np.zeros((2, 1), np.int16), resampler).shape == (2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: engine.resample(x, Resampler(1, 2, np.ones(4))), "taps need an odd number"),
        (lambda x: engine.resample(x, Resampler(0, 2, np.ones(3))), "up and down must be 1 to 1000000; found 0 and 2"),
        (lambda x: engine.resample(x, Resampler(1, 2, np.ones(3)), channels=[0, 4]), "channels 1: expected 0 to 3"),
        (lambda x: engine.resample(x, Resampler(1, 2, np.ones(3)), edge="mirror"), "edge must be 'nearest' or 'zero'"),
        (lambda x: engine.resample(x, Resampler(1, 2, np.ones(3)), window=0), "window must be 1 sample or more"),
        (lambda x: engine.resample(x.astype(np.int64), Resampler(1, 2, np.ones(3))), "found int64"),
        (lambda x: engine.resample(x[0], Resampler(1, 2, np.ones(3))), r"\[C, n\]"),
        (
            lambda x: engine.resample(x, Resampler(1, 2, np.ones(3)), out=np.zeros((4, 7), np.float32)),
            r"float32 \[4, 500\], found float32 \[4, 7\]",
        ),
        (lambda x: engine.zero_phase(x, FILTERS[0], out=np.zeros((4, 1000))), "found float64"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((4, 1000), np.int16))


@pytest.mark.parametrize(
    ("sos", "message"),
    [
        ([[1.0, 0, 0, 1, -2.1, 1.05**2]], "unstable: a pole has radius 1.05"),
        ([[2.0, 0, 0, 2, 0, 0]], "fourth column"),
        ([[1.0, 0, np.nan, 1, 0, 0]], "finite"),
        ([[1.0, 0, 0, 1, 0]], r"shape \[S, 6\], found \[1, 5\]"),
        ([1.0, 0, 0, 1, 0, 0], r"shape \[S, 6\], found \[6\]"),
        (np.empty((0, 6)), r"shape \[S, 6\], found \[0, 6\]"),
    ],
)
def test_bad_sections_are_refused(sos, message):
    with pytest.raises(ValueError, match=message):
        engine.zero_phase(np.zeros((1, 1000), np.int16), np.array(sos))


@pytest.mark.parametrize(
    "gaps",
    [
        [[5, 5]],
        [[5, 9], [8, 12]],
        [[5, 9], [9, 12]],
        [[-1, 4]],
        [[990, 1001]],
        [5, 9, 12],
        [[0.5, 2.0]],
        np.array([[4, 2]], np.uint64),  # whose difference is not negative
    ],
)
def test_gaps_that_are_not_in_order_are_refused(gaps):
    """Those that touch too: each would be bridged to the other's invalid samples."""
    item = ChannelFilter(channel=0, gaps=np.array(gaps))
    with pytest.raises(ValueError, match="gaps of channel 0: expected integers .* within 0 to 1000"):
        engine.condition(np.zeros((1, 1000), np.int16), [item])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lsb": [0.0]}, "lsb 0 must be at least"),
        ({"lsb": [-1.0]}, "lsb 0 must be at least"),
        ({"lsb": [np.nan]}, "lsb 0 must be at least"),
        ({"lsb": [1e-40]}, "lsb 0 must be at least"),
        ({"lsb": [1e39]}, "lsb 0 must be at least .* finite"),  # infinite as a float32
        ({"shift": [np.inf]}, "its shift finite"),
        ({"shift": [-1e39]}, "its shift finite"),
        ({"patch": [0]}, "patch 0 must be 1 sample or more; found 0"),
        ({"patch": [2.5]}, r"patch 0 must be a whole number; found 2\.5"),
        ({"keep": [np.ones((2, 5), bool)]}, r"keep 0 needs bool \[P\], found shape \[2, 5\]"),
        ({"planes": [np.zeros(99, np.int16)]}, "planes 0 needs room for 100 samples, found 99"),
        ({"lsb": [1.0, 1.0]}, "lsb needs one entry for each of 1 channels, found 2"),
        ({"planes": [np.zeros(100)]}, "planes 0 needs writeable, C-contiguous int16"),
    ],
)
def test_bad_steps_and_planes_are_refused(change, message):
    options = {"planes": [None], "lsb": [1.0], "shift": [0.0], "keep": [np.ones(10, bool)], "patch": [10]} | change
    with pytest.raises(ValueError, match=message):
        engine.condition_int16(np.zeros((1, 100), np.int16), [ChannelFilter(channel=0)], **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([np.zeros(5, np.int16)], "a source is an array .* found list"),
        ((np.zeros(5, np.int16), np.zeros(5, np.int32)), r"plane 1 of a source needs int16 \[n\] like plane 0"),
        ((np.zeros(5, np.int16), np.zeros((5, 1), np.int16)), "plane 1 of a source"),
    ],
)
def test_what_is_no_source_is_refused(source, message):
    for channels in (None, [0]):
        with pytest.raises(ValueError, match=message):
            engine.resample(source, Resampler(1, 2, np.ones(3)), channels=channels)


@pytest.mark.parametrize(("dtype", "offset", "size"), [(np.int32, 1e8, 1000), (np.float64, 1e6, 1.0)])
def test_resampling_takes_a_large_offset_away_before_float32(dtype, offset, size):
    rng = np.random.default_rng(0)
    x = (offset + size * rng.normal(size=(2, 3000))).astype(dtype)
    resampler = Resampler(16, 25, signal.firwin(501, 1 / 25))
    expected = signal.resample_poly(x - offset, 16, 25, axis=1, window=resampler.taps, padtype="edge")
    assert_close(engine.resample(x, resampler, shift=-offset), expected, 1e-6)


@pytest.mark.parametrize(("up", "down", "taps"), [(1, 5000, 3), (1, 5000, 20_001), (3, 70_000, 5), (4001, 4000, 801)])
def test_extreme_ratios(up, down, taps):
    x = np.random.default_rng(1).integers(-100, 100, (2, 150_001)).astype(np.int16)
    resampler = Resampler(up, down, signal.firwin(taps, 0.5))
    chosen = x if up < 100 else x[:, :2000]
    expected = signal.resample_poly(chosen.astype(float), up, down, axis=1, window=resampler.taps, padtype="edge")
    size = 100 * np.abs(resampler.taps).sum() * up
    assert np.abs(engine.resample(chosen, resampler) - expected).max() <= 1e-6 * size
    # The same beside a filter, where samples arrive in pieces.
    item = ChannelFilter(channel=1, sos=FILTERS[1], resampler=resampler)
    filtered = engine.condition_reference(chosen[1], item)
    assert np.abs(engine.condition(chosen, [item])[0] - filtered).max() <= 1e-6 * size


def test_a_resampler_keeps_taps_of_its_own():
    taps = signal.firwin(31, 0.4)
    resampler = Resampler(1, 2, taps)
    x = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    before = engine.resample(x, resampler)
    taps[:] = 0
    np.testing.assert_array_equal(engine.resample(x, resampler), before)
    with pytest.raises(ValueError, match="read-only"):
        resampler.taps[0] = 1


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_filters_that_were_used_can_be_copied(copied):
    item = ChannelFilter(channel=1, sos=FILTERS[1], resampler=Resampler(3, 2, signal.firwin(31, 0.3)))
    x = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    before = engine.condition(x, [item])
    again = copied(item)
    np.testing.assert_array_equal(engine.condition(x, [again]), before)
    assert not again.resampler.taps.flags.writeable


def test_more_outputs_than_there_are_is_refused():
    with pytest.raises(ValueError, match="channel 0: expected 0 to 1000 outputs, found 1001"):
        engine.condition(np.zeros((1, 1000), np.int16), [ChannelFilter(channel=0, outputs=1001)])


def test_a_record_without_any_valid_sample_gives_its_shift():
    item = ChannelFilter(channel=0, gaps=np.array([[0, 300]]), scale=2.0, shift=3.0)
    np.testing.assert_array_equal(engine.condition(np.full((1, 300), -32768, np.int16), [item]), 3.0)
