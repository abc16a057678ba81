"""Filters, resampling, scaling and flags by their numbers."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from physiofast import conditioning as cond
from physiofast import engine, filter_design
from physiofast.engine import ChannelFilter
from physiofast.preparation import scanning
from tests.filters import band_pass

RATE = 200.0


def resample(x, *arguments, **options):
    """One channel."""
    return engine.resample(np.atleast_2d(x), cond.design_resampler(*arguments, **options))[0]


def sine(hz, rate_hz=RATE, seconds=60.0, phase=0.3):
    return np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz + phase)


def middle(x):
    return x[x.size // 4 : -x.size // 4]


@pytest.mark.parametrize(
    ("low", "high", "hz"), [(0.3, 35, 1), (0.3, 35, 20), (10, 60, 25), (None, 5, 1), (2, None, 40)]
)
def test_band_pass_keeps_its_band_without_delay(low, high, hz):
    x = sine(hz)
    y = band_pass(x, RATE, low, high)
    assert np.abs(middle(y - x)).max() < 0.01


@pytest.mark.parametrize(
    ("low", "high", "hz", "gain"),
    [(0.3, 35, 0.05, 1e-4), (0.3, 35, 80, 1e-4), (10, 60, 3, 1e-3), (None, 5, 20, 1e-4)],
)
def test_band_pass_rejects_what_lies_outside(low, high, hz, gain):
    x = sine(hz, seconds=400)
    assert np.abs(middle(band_pass(x, RATE, low, high))).max() < gain


def test_band_pass_has_half_amplitude_at_its_edges():
    for hz in (2.0, 30.0):
        y = middle(band_pass(sine(hz), RATE, 2.0, 30.0))
        assert np.sqrt(2 * np.mean(y**2)) == pytest.approx(0.5, abs=0.01)


def test_band_pass_is_scipys_zero_phase_filter():
    x = np.random.default_rng(0).normal(size=(3, 20_000))
    sos = signal.butter(4, (0.3, 35), "bandpass", fs=RATE, output="sos")
    np.testing.assert_array_equal(band_pass(x, RATE, 0.3, 35), signal.sosfiltfilt(sos, x))
    # Without phase, filtering the reversed signal gives the reversed result.
    backwards = band_pass(x[:, ::-1], RATE, 0.3, 35)[:, ::-1]
    middle_part = slice(6000, -6000)
    np.testing.assert_allclose(backwards[:, middle_part], band_pass(x, RATE, 0.3, 35)[:, middle_part], atol=1e-3)


@pytest.mark.parametrize(("low", "high"), [(35, 0.3), (0.3, 100), (0, 35), (None, None), (5, 5)])
def test_band_pass_refuses(low, high):
    with pytest.raises(ValueError, match="need 0 < low < high < 100 Hz"):
        band_pass(np.zeros(1000), RATE, low, high)


def notch(x, rate_hz, notch_hz, quality=30.0):
    return signal.sosfiltfilt(filter_design.notch(rate_hz, notch_hz, quality), np.asarray(x, np.float64))


def test_notch():
    assert np.abs(middle(notch(sine(50), RATE, 50.0))).max() < 1e-4
    for hz in (40, 60):
        assert np.abs(middle(notch(sine(hz), RATE, 50.0) - sine(hz))).max() < 0.02
    with pytest.raises(ValueError, match="notch 100 Hz needs 0 < notch < 100 Hz"):
        notch(np.zeros(1000), RATE, 100.0)
    for quality in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="quality needs to be above 0 and finite"):
            notch(np.zeros(1000), RATE, 50.0, quality)


RATES = [
    (200, 128, 35),
    (200, 128, 60),
    (200, 100, 35),
    (200, 32, 5),
    (200, 8, 1),
    (256, 100, 40),
    (512, 128, 40),
    (250, 128, 40),
]


@pytest.mark.parametrize(("rate", "target", "edge"), RATES)
def test_resample_keeps_the_band_and_the_time_axis(rate, target, edge):
    for hz in (0.2 * edge, edge):
        y = resample(sine(hz, rate), rate, target, pass_hz=edge)
        assert y.size == np.ceil(60 * target)
        assert np.abs(middle(y - sine(hz, target))).max() < 2e-3


@pytest.mark.parametrize(("rate", "target", "edge"), RATES)
@pytest.mark.parametrize("attenuation_db", [60.0, 80.0])
def test_resample_attenuates_a_sweep_that_would_alias(rate, target, edge, attenuation_db):
    seconds = 60
    t = np.arange(rate * seconds) / rate
    sweep = signal.chirp(t, target / 2, seconds, rate / 2)
    # Switched on softly, so that the sweep has no energy below its first frequency.
    sweep *= signal.windows.tukey(sweep.size, 0.2)
    instant_hz = target / 2 + (rate / 2 - target / 2) * t / seconds
    assert instant_hz.min() >= target / 2
    y = resample(sweep, rate, target, pass_hz=edge, attenuation_db=attenuation_db)
    assert np.abs(y).max() <= 1.1 * 10 ** (-attenuation_db / 20)


@pytest.mark.parametrize(("rate", "target", "edge"), RATES)
def test_taps_meet_their_stated_edges(rate, target, edge):
    design = cond.design_resampler(rate, target, edge, attenuation_db=70.0)
    assert design.up / design.down == pytest.approx(target / rate)
    assert design.taps.size % 2 == 1
    np.testing.assert_allclose(design.taps, design.taps[::-1], atol=1e-15)
    assert design.taps.sum() == pytest.approx(1.0)
    hz, response = signal.freqz(design.taps, worN=1 << 16, fs=rate * design.up)
    gain = np.abs(response)
    assert gain[hz >= target / 2].max() <= 10 ** (-70 / 20)
    assert np.abs(gain[hz <= edge] - 1).max() <= 10 ** (-70 / 20)


def test_resample_holds_its_edges_and_stays_put_at_the_same_rate():
    level = np.full(4000, 97.0)
    np.testing.assert_allclose(resample(level, 200, 8, pass_hz=1.0), 97.0, rtol=1e-3)
    x = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    np.testing.assert_array_equal(engine.resample(x, cond.design_resampler(100, 100, pass_hz=40)), x)


def test_resample_refuses():
    with pytest.raises(ValueError, match="target 128 Hz is above the native rate 127.9999 Hz; never upsampled"):
        resample(np.zeros(1000), 127.99987, 128, pass_hz=35)
    with pytest.raises(ValueError, match="target 128 Hz is above the native rate 100 Hz; never upsampled"):
        resample(np.zeros(1000), 100, 128, pass_hz=35)
    with pytest.raises(ValueError, match="need 0 < pass < stop <= 100 Hz"):
        resample(np.zeros(1000), 200, 128, pass_hz=70)
    with pytest.raises(ValueError, match="taps, more than"):
        resample(np.zeros(1000), 249.89, 128, pass_hz=63)
    with pytest.raises(ValueError, match="not a ratio of whole numbers"):
        resample(np.zeros(1000), 200.0000123457, 128, pass_hz=60)


@pytest.mark.parametrize("attenuation_db", [7.9, 201.0, 290.0, np.nan, np.inf])
def test_attenuations_that_no_taps_reach_are_refused(attenuation_db):
    with pytest.raises(ValueError, match=r"200 to 100 Hz .*: attenuation_db must be 8 to 200; found"):
        cond.design_resampler(200, 100, pass_hz=35, attenuation_db=attenuation_db)
    assert cond.design_resampler(200, 100, pass_hz=35, attenuation_db=200.0).taps.size == 229


def test_taps_that_are_added_count_too(monkeypatch):
    """Kaiser's formula gives 2783 taps less than there may be, which do not hold in both bands."""
    monkeypatch.setattr(filter_design, "MAX_TAPS", 1 << 21)
    with pytest.raises(ValueError, match=r"1000\.1 to 333\.7 Hz .*: it needs \d+ taps, more than 2097152, for 60 dB"):
        cond.design_resampler(1000.1, 333.7, pass_hz=161.0)


@pytest.mark.parametrize("rate", [200.01, 249.89])
def test_clocks_some_hundredths_off_are_resampled(rate):
    """As devices have them: a long filter, of which an output takes forty taps."""
    resampler = cond.design_resampler(rate, 128.0, 35.0)
    assert resampler.up == 12800
    x = sine(11.0, rate, 20.0)
    y = engine.resample(x[None].astype(np.float32), resampler)[0]
    inside = slice(128, -128)
    np.testing.assert_allclose(y[inside], sine(11.0, 128.0, y.size / 128)[inside], atol=2e-3)


def test_a_long_design_looks_at_its_whole_response_once(monkeypatch):
    sizes = []
    rfft = np.fft.rfft
    monkeypatch.setattr(np.fft, "rfft", lambda x, *options: sizes.append(x.size) or rfft(x, *options))
    taps = cond.design_resampler(100, 1.024, pass_hz=0.31).taps
    assert taps.size > 30_000
    assert sizes == [taps.size]
    monkeypatch.undo()
    # Finely beside the transition, coarsely elsewhere.
    for hz in (np.linspace(0.31 - 0.02, 0.31, 300), np.linspace(0.512, 0.532, 300)):
        gain = np.abs(signal.freqz(taps, worN=hz, fs=100 * 32)[1])
        assert np.abs(gain - (hz.max() < 0.4)).max() <= 1e-3


def test_a_filter_of_millions_of_taps_is_designed_once_and_in_little_memory(monkeypatch):
    """Of 512.03 to 100 Hz it took eight such designs and 900 MB."""
    sizes = []
    firwin = signal.firwin
    monkeypatch.setattr(
        signal, "firwin", lambda count, *args, **rest: sizes.append(count) or firwin(count, *args, **rest)
    )
    tracemalloc.start()
    try:
        taps = cond.design_resampler.__wrapped__(512.03, 100, pass_hz=35).taps
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()
    assert [size for size in sizes if size > 1 << 17] == [taps.size]
    assert taps.size == pytest.approx(1_534_987, rel=1e-3)
    for low, high, wanted in ((0, 35, 1), (50, 500, 0)):
        gain = np.abs(signal.zoom_fft(taps, [low, high], 20_000, fs=512.03 * 10_000, endpoint=True))
        assert np.abs(gain - wanted).max() <= 1e-3


@pytest.mark.parametrize("count", [1001, 4097])
def test_a_response_in_parts_is_the_response(count):
    taps = signal.firwin(count, 0.1, window=("kaiser", 5.65))
    steps = 2 << count.bit_length()
    gain = np.abs(np.fft.rfft(taps, 2 * steps))
    places = np.arange(steps + 1) / steps
    for low, high in ((0.08, 0.15), (0.09, 0.101), (0.0, 1.0)):
        expected = max(np.abs(gain[places < low] - 1).max(initial=0), gain[places > high].max(initial=0))
        assert filter_design._error_within_parts(taps, low, high) == pytest.approx(expected, rel=1e-9)


def test_a_narrow_band_at_a_rate_slightly_off_is_resampled():
    """A chin EMG up to 60 Hz, which was refused for its 2.7 million taps."""
    resampler = cond.design_resampler(199.99, 128.0, 60.0)
    x = sine(57.0, 199.99, 20.0)
    y = engine.resample(x[None].astype(np.float32), resampler)[0]
    inside = slice(256, -256)
    np.testing.assert_allclose(y[inside], sine(57.0, 128.0, y.size / 128)[inside], atol=2e-3)


def test_a_stop_edge_at_half_the_rate():
    taps = cond.design_resampler(200, 100, pass_hz=90, stop_hz=100).taps
    assert abs(taps @ (-1.0) ** np.arange(taps.size)) <= 1e-3


def test_what_a_caller_edits_is_no_later_design():
    for notch_hz in (None, 50.0):
        sos = cond.filter_sos(RATE, 0.3, 35, notch_hz=notch_hz)
        kept = sos.copy()
        sos[:] = 0
        np.testing.assert_array_equal(cond.filter_sos(RATE, 0.3, 35, notch_hz=notch_hz), kept)
    with pytest.raises(ValueError, match="read-only"):
        cond.design_resampler(RATE, 128, pass_hz=35).taps[0] = 1


def test_decimal_rates_are_read_as_decimals():
    design = cond.design_resampler(12.8, 8.0, 1.0)
    assert (design.up, design.down) == (5, 8)


@pytest.mark.parametrize(("low", "high"), [(0.3, 35), (10, 60), (0.05, 5), (None, 1)])
def test_support_holds_99_percent_of_the_response(low, high):
    support = cond.filter_support_s(RATE, low, high)
    n = 50_000
    impulse = np.zeros(2 * n + 1)
    impulse[n] = 1
    energy = band_pass(impulse, RATE, low, high) ** 2
    far = np.abs(np.arange(-n, n + 1)) / RATE
    assert energy[far > support + 1e-9].sum() <= 0.0101 * energy.sum()
    assert energy[far > support - 0.011].sum() > 0.0099 * energy.sum()
    assert cond.filter_support_s(RATE, low, high, notch_hz=0.9 * high) > 0


def test_an_invalid_burst_reaches_only_nearby_samples():
    rng = np.random.default_rng(1)
    x = band_pass(rng.normal(0, 20, 24_000), RATE, 0.5, 30)
    invalid = np.zeros(x.size, bool)
    invalid[12_000:12_050] = True
    broken = np.where(invalid, 32767.0, x)
    clean = band_pass(x, RATE, 0.3, 35)
    item = ChannelFilter(channel=0, gaps=np.array([[12_000, 12_050]]), sos=cond.filter_sos(RATE, 0.3, 35))
    y = engine.condition(broken[None], [item])[0]
    error = np.abs(y - clean)
    assert error.max() > 5
    support = round(cond.filter_support_s(RATE, 0.3, 35) * RATE)
    outside = np.ones(x.size, bool)
    outside[12_000 - support : 12_050 + support] = False
    # What leaks further is the slow high-pass tail, a few percent of the signal.
    assert error[outside].max() < 0.05 * np.std(x) * 3
    touched = scanning.touched_patches(item.gaps, RATE, 120, 1.0, support / RATE)
    assert np.flatnonzero(touched).tolist() == [59, 60]


def to_int16(x, raw_lsb, keep, centred, scale=1.0):
    """One unfiltered channel through `quantise`; patches of one sample."""
    out = np.zeros(x.size, np.int16)
    item = cond.ToQuantise(
        filter=ChannelFilter(channel=0, scale=scale), raw_lsb=raw_lsb, centred=centred, keep=keep, patch=1, out=out
    )
    return out, cond.quantise(np.asarray(x, np.float64)[None], [item])[0]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(1e-6, 1e3),
    st.floats(1e-3, 1e6),
    st.booleans(),
    st.floats(-100, 100),
)
def test_quantise_errs_by_half_a_step_at_most(seed, raw_lsb, size, centred, level):
    x = np.random.default_rng(seed).normal(0, size * raw_lsb, 400) + (0 if centred else level)
    keep = np.arange(400) < 300
    samples, found = to_int16(x, raw_lsb, keep, centred)
    error = np.abs(samples * found.unit_scale + found.unit_shift - x)
    # Values are float32 before they are rounded.
    assert error[keep].max() <= found.unit_scale / 2 * (1 + 1e-6) + 1e-6 * np.abs(x).max()
    doublings = np.log2(found.unit_scale / (raw_lsb / 8))
    assert doublings == round(doublings) >= 0
    if doublings:  # half the step would not have held the kept samples
        assert np.abs(x[keep] - found.unit_shift).max() * (1 + 1e-6) > 32767 * found.unit_scale / 2
    assert found.unit_shift == 0 or not centred


def test_quantise_saturates_only_what_is_not_kept():
    x = np.array([0.0, 10.0, -10.0, 1e9])
    samples, found = to_int16(x, 1.0, np.array([True, True, True, False]), centred=True)
    assert found.unit_scale == 0.125
    np.testing.assert_array_equal(samples, [0, 80, -80, 32767])


def test_quantise_gives_the_robust_scale_of_kept_samples():
    x = np.random.default_rng(8).normal(0, 50, 5000)
    keep = np.arange(5000) < 4000
    samples, found = to_int16(x, 1.0, keep, centred=True)
    low, median, high = np.quantile(samples[keep] * found.scale + found.shift, (0.25, 0.5, 0.75))
    assert median == pytest.approx(0, abs=1e-9)
    assert high - low == pytest.approx(1.349)


def histogram(samples):
    return np.bincount(samples.astype(np.int32) + 32768, minlength=65536)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=60))
def test_quantiles_are_exact(values):
    samples = np.array(values, np.int16)
    fractions = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    expected = np.quantile(samples.astype(np.float64), fractions)
    assert cond.quantiles(histogram(samples), fractions) == tuple(expected)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, np.nan])
def test_quantiles_refuse(fraction):
    with pytest.raises(ValueError, match="quantiles need fractions from 0 to 1; found"):
        cond.quantiles(histogram(np.zeros(3, np.int16)), (0.5, fraction))


def test_robust_scale():
    samples = np.random.default_rng(5).normal(500, 200, 100_001).astype(np.int16)
    scale, shift = cond.robust_scale(histogram(samples))
    z = samples * scale + shift
    low, median, high = np.quantile(z, (0.25, 0.5, 0.75))
    assert median == pytest.approx(0, abs=1e-12)
    assert high - low == pytest.approx(1.349)
    assert np.std(z) == pytest.approx(1, abs=0.02)


def test_robust_scale_of_a_signal_at_rest():
    samples = np.full(1000, 97, np.int16)
    samples[:100] = 80
    scale, shift = cond.robust_scale(histogram(samples))
    assert 1 / scale == pytest.approx(samples.std())
    assert shift == pytest.approx(-97 * scale)
    assert cond.robust_scale(histogram(np.full(1000, 97, np.int16))) == (1.0, -97.0)
    with pytest.raises(ValueError, match="at least one sample"):
        cond.robust_scale(histogram(np.empty(0, np.int16)))
