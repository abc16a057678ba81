import dataclasses

import numpy as np
import pytest
from scipy import signal

from physiofast.synthetic import waveforms
from physiofast.synthetic.cohort import _streams
from physiofast.synthetic.sleep import N1, N2, N3, REM, WAKE, SleepEvent
from physiofast.synthetic.waveforms import HEAD, RATE_HZ, blend_stages, draw_subject, render

BLOCK_EPOCHS = 12
BLOCK = BLOCK_EPOCHS * 30 * RATE_HZ
SUBJECT = dataclasses.replace(
    draw_subject(np.random.default_rng(3)),
    band_gain=dict.fromkeys(draw_subject(np.random.default_rng(3)).band_gain, 1.0),
    spindle_hz=13.2,
    alpha_hz=10.0,
    breath_hz=0.25,
    heart_bpm=62.0,
    rsa_bpm=4.0,
)


STAGES = np.repeat(np.array([WAKE, N1, N2, N3, REM], np.int8), BLOCK_EPOCHS)


def pure(events=()) -> waveforms.State:
    """Equal blocks of the five stages without overlap."""
    return blend_stages(np.random.default_rng(0), STAGES, tuple(events), len(STAGES) * 30, 0.0)


def scene(events=(), subject=SUBJECT) -> dict[str, np.ndarray]:
    return render(subject, pure(events), _streams(0, 0))


@pytest.fixture(scope="module")
def night():
    return scene()


def power(x: np.ndarray, low_hz: float, high_hz: float) -> float:
    frequency, density = signal.welch(x, RATE_HZ, nperseg=4 * RATE_HZ)
    return float(density[(frequency >= low_hz) & (frequency < high_hz)].sum() * 0.25)


def block(x: np.ndarray, stage: int) -> np.ndarray:
    """One stage's block without its borders."""
    return x[stage * BLOCK + 30 * RATE_HZ : (stage + 1) * BLOCK - 30 * RATE_HZ]


def in_stage(night: dict, name: str, stage: int, low_hz: float, high_hz: float) -> float:
    return power(block(night[name], stage), low_hz, high_hz)


def band(x: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    sos = signal.butter(3, [low_hz, high_hz], "bandpass", fs=RATE_HZ, output="sos")
    return signal.sosfiltfilt(sos, x.astype(np.float64))


def test_alpha_is_occipital_and_goes_with_sleep(night):
    alpha = [in_stage(night, "O1-M2", stage, 8, 12) for stage in range(5)]
    assert alpha[WAKE] > 2 * alpha[N1] and alpha[N1] > 1.3 * alpha[N2]
    assert in_stage(night, "O1-M2", WAKE, 9, 11) > 2 * in_stage(night, "F3-M2", WAKE, 9, 11)


def test_spindles_are_central_and_belong_to_n2(night):
    sigma = [in_stage(night, "C3-M2", stage, 12, 14.5) for stage in range(5)]
    assert sigma[N2] > 1.8 * max(sigma[WAKE], sigma[N1], sigma[REM])
    assert sigma[N2] > 1.2 * sigma[N3]
    assert sigma[N2] > 1.15 * in_stage(night, "O1-M2", N2, 12, 14.5)


def test_delta_is_frontal_and_rises_with_depth(night):
    delta = [in_stage(night, "F3-M2", stage, 0.5, 2) for stage in range(5)]
    assert delta[N3] > 2.5 * delta[N2] and delta[N2] > 1.2 * delta[N1]
    assert delta[N3] > 6 * delta[REM]
    assert delta[N3] > 1.5 * in_stage(night, "O1-M2", N3, 0.5, 2)
    assert 30 < block(night["F3-M2"], N3).std() < 80


def test_theta_marks_n1_and_rem(night):
    relative = [
        in_stage(night, "C3-M2", s, 4, 7.5) / in_stage(night, "C3-M2", s, 0.5, 4) for s in (WAKE, N1, N2, N3, REM)
    ]
    assert relative[REM] > 1.3 * relative[N2] and relative[N2] > 1.3 * relative[N3]
    assert relative[N1] > 1.3 * relative[N2]


def test_k_complexes_and_sawteeth_are_large_and_in_their_stage():
    state = pure()
    nights = [waveforms.transients(np.random.default_rng(i), state, 1.0) for i in range(12)]
    energy = [np.mean([np.mean(block(waves, stage) ** 2) for waves in nights]) for stage in range(5)]
    waves = nights[0]
    assert -120 < block(waves, N2).min() < -60
    assert energy[WAKE] == energy[N1] == 0
    assert energy[N2] > 2 * energy[N3]
    assert power(block(waves, REM), 1.75, 3.25) > 0.6 * power(block(waves, REM), 0.25, 30)


def test_eyes_move_in_rem_and_roll_in_n1():
    state = pure()
    trace = waveforms.eyes(np.random.default_rng(0), state)
    fast = [np.mean(np.diff(block(trace, stage)) ** 2) for stage in range(5)]
    assert fast[REM] > 20 * max(fast[N2], fast[N3])
    assert fast[WAKE] > 20 * max(fast[N2], fast[N3])
    slow = [power(block(trace, stage), 0.2, 0.6) for stage in range(5)]
    assert slow[N1] > 10 * slow[N2]
    assert np.abs(block(trace, REM)).max() > 70


def test_eyes_leak_into_frontal_eeg(night):
    without = dataclasses.replace(SUBJECT, band_gain=SUBJECT.band_gain | {"eyes": 1e-6})
    still = scene(subject=without)
    eye = block(night["E1-M2"] - still["E1-M2"], REM)
    for name, low, high in (("F3-M2", 0.15, 0.6), ("F4-M1", 0.1, 0.55), ("O1-M2", 0.0, 0.08)):
        leak = block(night[name] - still[name], REM)
        assert low < leak @ eye / (eye @ eye) < high


def test_chin_tone_falls_to_rem(night):
    tone = [np.std(block(night["Chin1-Chin2"], stage)) for stage in range(5)]
    assert tone[WAKE] > 1.2 * tone[N1] and tone[N1] > tone[N3]
    assert tone[WAKE] > 2.5 * tone[REM]


def beats(ecg: np.ndarray) -> np.ndarray:
    """R peaks in seconds."""
    found, _ = signal.find_peaks(band(ecg, 5, 30), height=0.35, distance=int(0.35 * RATE_HZ))
    return found / RATE_HZ


def test_the_heart_beats_at_its_rate_and_with_the_breath(night):
    ecg, chest = block(night["ECG"], N2), block(night["CHEST"], N2)
    at = beats(ecg)
    assert 60 * (len(at) - 1) / (at[-1] - at[0]) == pytest.approx(62, abs=2)
    grid = np.arange(0, len(ecg) / RATE_HZ - 1, 0.25)
    rate = np.interp(grid, at[1:], 60 / np.diff(at))
    frequency, coherence = signal.coherence(rate, chest[:: RATE_HZ // 4][: len(grid)], 4.0, nperseg=128)
    assert coherence[np.argmin(abs(frequency - 0.25))] > 0.6
    assert coherence[(frequency > 0.5) & (frequency < 1.2)].mean() < 0.35
    # Inspiration (rising chest) speeds the heart: the swing is about 2 * 4 beats per minute.
    assert 3 < 2 * np.sqrt(2) * band(np.repeat(rate, 50), 0.18, 0.34).std() < 14


def test_the_heart_leaks_weakly_into_head_and_chin(night):
    at = (beats(block(night["ECG"], N3)) * RATE_HZ).astype(int)[2:-2]
    for name, low, high in (("C3-M2", 0.8, 5), ("Chin1-Chin2", 0.2, 2)):
        fast = band(block(night[name], N3), 10, 60)
        peak = np.mean([fast[i - 3 : i + 4].max() - np.median(fast) for i in at])
        chance = np.mean([fast[i + 67 : i + 74].max() - np.median(fast) for i in at])
        average = np.mean([fast[i - 10 : i + 11] for i in at], axis=0)
        assert low * 0.3 < np.ptp(average) < high, name
        assert peak > chance - 0.5


def test_an_obstruction_stops_flow_but_not_effort():
    events = [
        SleepEvent(name="resp_obstructiveapnea", start_s=t, stop_s=t + 25, depth=0.97, arousal_s=6.0)
        for t in range(740, 1020, 90)
    ]
    central = [dataclasses.replace(e, name="resp_centralapnea") for e in events]
    for chosen, effort_low, effort_high in ((events, 0.6, 1.6), (central, 0.0, 0.35)):
        signals = scene(chosen)
        flow, belly = band(signals["AIRFLOW"], 0.15, 1), band(signals["ABD"], 0.15, 1)
        during = np.concatenate([np.arange(int((e.start_s + 4) * 200), int((e.stop_s - 4) * 200)) for e in chosen])
        before = np.concatenate([np.arange(int((e.start_s - 30) * 200), int((e.start_s - 3) * 200)) for e in chosen])
        assert flow[during].std() < 0.35 * flow[before].std()
        assert effort_low < belly[during].std() / belly[before].std() < effort_high
    signals = scene(events)
    belly, chest = (band(signals[name], 0.15, 1) for name in ("ABD", "CHEST"))
    assert np.corrcoef(belly[during], chest[during])[0, 1] < 0.5 < np.corrcoef(belly[before], chest[before])[0, 1]


def test_saturation_dips_after_the_apnea(night):
    starts = range(500, 1000, 100)
    events = [SleepEvent(name="resp_obstructiveapnea", start_s=t, stop_s=t + 30, depth=0.97) for t in starts]
    dips = scene(events)
    trace = (dips["SaO2"] - night["SaO2"])[:: RATE_HZ // 5]
    for t in starts:
        part = trace[t * 5 : (t + 100) * 5]
        nadir_s = np.argmin(part) / 5
        assert 5 < nadir_s - 30 < 30, "the nadir comes after the apnea's end"
        assert -9 < part.min() < -2
        assert abs(part[: 10 * 5]).max() < 0.5 and part[-1] > -1


def test_arousals_show_in_eeg_chin_and_heart(night):
    events = [
        SleepEvent(name="arousal_spontaneous", start_s=t, stop_s=t + 10.0, arousal_s=10.0) for t in range(740, 1060, 40)
    ]
    signals = scene(events)
    during = np.concatenate([np.arange(int(e.start_s * 200) + 200, int(e.stop_s * 200) - 200) for e in events])
    for name, low, high, factor in (("C3-M2", 16, 30, 1.8), ("O1-M2", 8, 12, 1.8), ("Chin1-Chin2", 10, 60, 2.0)):
        ratio = np.var(band(signals[name], low, high)[during]) / np.var(band(night[name], low, high)[during])
        assert ratio > factor, name
    assert np.var(band(signals["F3-M2"], 0.5, 2)[during]) < 0.8 * np.var(band(night["F3-M2"], 0.5, 2)[during])
    at = beats(signals["ECG"])
    rate, when = 60 / np.diff(at), at[1:]
    after = np.concatenate([rate[(when > e.start_s + 2) & (when < e.start_s + 12)] for e in events])
    before = np.concatenate([rate[(when > e.start_s - 15) & (when < e.start_s)] for e in events])
    assert after.mean() > before.mean() + 3


def test_electrodes_share_their_sources(night):
    head = np.stack([band(night[name], 0.3, 35)[:: RATE_HZ // 100] for name in HEAD])
    r = np.corrcoef(head)
    assert r[:6, :6].min() > 0.5
    assert r[0, 2] > r[0, 4] and r[0, 1] > r[0, 5]
    assert r[6, 0] > r[6, 4] > 0.2


def test_age_and_sex_shape_the_subject():
    people = [draw_subject(np.random.default_rng(i)) for i in range(1500)]
    age = np.array([p.age_years for p in people])

    def r(values):
        return np.corrcoef(age, values)[0, 1]

    assert r([np.log(p.band_gain["delta"]) for p in people]) < -0.5
    assert r([np.log(p.band_gain["sigma"]) for p in people]) < -0.3
    assert r([np.log(p.rsa_bpm) for p in people]) < -0.6
    assert r([np.log(p.apneas_per_hour) for p in people]) > 0.1
    assert r([p.alpha_hz for p in people]) < -0.2
    women = np.array([p.sex == "F" for p in people])
    assert 0.3 < women.mean() < 0.4
    heart = np.array([p.heart_bpm for p in people])
    assert 2 < heart[women].mean() - heart[~women].mean() < 6
    assert age.min() >= 18 and age.max() <= 90 and 50 < np.median(age) < 60


def test_age_is_seen_in_the_signals():
    young, old = (
        scene(subject=dataclasses.replace(SUBJECT, band_gain=SUBJECT.band_gain | {"delta": gain}))
        for gain in (np.exp(0.25), np.exp(-0.25))
    )
    ratio = in_stage(young, "F3-M2", N3, 0.5, 2) / in_stage(old, "F3-M2", N3, 0.5, 2)
    assert 1.8 < ratio < 2.8


def test_overlap_blends_neighbouring_stages():
    codes = np.full(400, N2, np.int8)
    for overlap in (0.1, 0.3):
        state = blend_stages(np.random.default_rng(0), codes, (), 12_000, overlap)
        np.testing.assert_allclose(state.weight.sum(axis=0), 1.0, rtol=1e-5)
        assert 1 - state.weight[N2].mean() == pytest.approx(overlap, rel=0.2)
        assert state.weight[N1].mean() > state.weight[WAKE].mean()
