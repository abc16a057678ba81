"""Waveforms of a synthetic night: brain, eyes, chin, heart, breathing and oxygen, at 200 Hz.

Slow quantities (stage weights, envelopes, rates) live on a 5 Hz control grid and are interpolated. Every
component draws from its own stream, so changing one leaves the others' noise as it was. No matrix product is
used: the samples do not depend on a BLAS library or its threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage, signal

from physiofast.stages import EPOCH_S
from physiofast.synthetic.sleep import REM, WAKE, SleepEvent

RATE_HZ = 200
"""Sampling rate of all channels, that of the Challenge 2018."""
CONTROL_HZ = 5
BREATH_HZ = 20
HEAD = ("F3-M2", "F4-M1", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2")
"""Channels that see the brain and the eyes, in the order of the gain tables."""

Stream = Callable[[str], np.random.Generator]
"""Gives the generator of a named component."""
Control = np.ndarray
"""float array [5 * seconds + 1] on the control grid."""

# Amplitude in uV at the strongest site in W, N1, N2, N3, R.
BACKGROUND_UV = np.array([13.0, 12.5, 14.5, 17.0, 11.5])
DELTA_UV = np.array([9.0, 11.0, 17.0, 38.0, 10.5])
THETA_UV = np.array([4.2, 6.2, 5.6, 5.2, 6.2])
ALPHA_UV = np.array([12.0, 5.2, 3.2, 2.6, 4.0])
SIGMA_UV = np.array([2.0, 2.0, 2.4, 2.2, 2.0])
BETA_UV = np.array([3.7, 2.7, 2.2, 1.9, 2.6])
CHIN_UV = np.array([12.0, 7.5, 6.2, 5.2, 3.2])
SPINDLES_PER_MIN = np.array([0.0, 0.2, 4.5, 1.5, 0.0])
K_COMPLEXES_PER_MIN = np.array([0.0, 0.0, 1.6, 0.5, 0.0])
SAWTOOTH_PER_MIN = np.array([0.0, 0.0, 0.0, 0.0, 1.2])
BLINKS_PER_MIN = np.array([9.0, 0.8, 0.0, 0.0, 0.0])
SACCADES_PER_MIN = np.array([6.0, 0.4, 0.0, 0.0, 14.0])
ROLLING_UV = np.array([7.0, 32.0, 4.0, 2.0, 4.0])

# Gains at F3 F4 C3 C4 O1 O2 E1.
FRONTAL = np.array([1.0, 1.0, 0.78, 0.78, 0.5, 0.5, 0.85])
CENTRAL = np.array([0.8, 0.8, 1.0, 1.0, 0.55, 0.55, 0.45])
OCCIPITAL = np.array([0.4, 0.4, 0.62, 0.62, 1.0, 1.0, 0.25])
UNIFORM = np.array([1.0, 1.0, 1.0, 1.0, 0.95, 0.95, 0.85])
LEFT = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.8])
RIGHT = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
EYES = np.array([0.4, 0.34, 0.14, 0.12, 0.04, 0.04, 1.0])

OVERLAP = np.array(
    [
        [0.0, 0.85, 0.05, 0.0, 0.10],
        [0.35, 0.0, 0.40, 0.0, 0.25],
        [0.05, 0.50, 0.0, 0.35, 0.10],
        [0.0, 0.0, 1.0, 0.0, 0.0],
        [0.15, 0.60, 0.25, 0.0, 0.0],
    ]
)
"""Which stage an epoch of the row's stage leans towards."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Who sleeps: what differs between recordings and stays within one."""

    age_years: int
    """Age in years."""
    sex: str
    """`F` or `M`."""
    apneas_per_hour: float
    """Apneas and hypopneas per hour of N2."""
    arousals_per_hour: float
    """Spontaneous arousals per hour of N2."""
    heart_bpm: float
    """Mean heart rate in N2."""
    rsa_bpm: float
    """Half the swing of the heart rate over a breath in N2."""
    breath_hz: float
    """Mean breathing rate."""
    saturation: float
    """Resting oxygen saturation in percent."""
    spindle_hz: float
    """Centre frequency of the spindles."""
    alpha_hz: float
    """Centre frequency of the alpha rhythm."""
    band_gain: dict[str, float]
    """Factor on each amplitude table, by the name of its component."""


def draw_subject(rng: np.random.Generator) -> Subject:
    """Age, sex and everything that depends on them.

    With age, delta amplitude, spindles, alpha frequency and respiratory sinus arrhythmia fall, apneas rise;
    women have more delta, a faster heart and fewer apneas.
    """
    age = int(np.clip(round(rng.normal(55, 15)), 18, 90))
    female = bool(rng.random() < 0.35)
    spread = {"alpha": 0.22, "chin": 0.25, "eyes": 0.2, "sigma": 0.18, "ecg": 0.25}
    names = ("background", "delta", "theta", "alpha", "sigma", "beta", "chin", "eyes", "ecg", "leak", "head")
    gain = {name: float(rng.lognormal(0.0, spread.get(name, 0.12))) for name in names}
    gain["delta"] *= float(np.exp(-0.009 * (age - 50))) * (1.12 if female else 1.0)
    gain["sigma"] *= float(np.exp(-0.008 * (age - 50))) * (1.08 if female else 1.0)
    severity = rng.lognormal(np.log(9.0), 0.8) * np.exp(0.012 * (age - 55)) * (0.7 if female else 1.0)
    return Subject(
        age_years=age,
        sex="F" if female else "M",
        apneas_per_hour=float(min(severity, 60.0)),
        arousals_per_hour=float(rng.lognormal(np.log(8.0), 0.35)),
        heart_bpm=float(np.clip(rng.normal(63, 7) + 4 * female, 45, 95)),
        rsa_bpm=float(3.5 * np.exp(-0.022 * (age - 45)) * rng.lognormal(0.0, 0.25)),
        breath_hz=float(np.clip(rng.normal(0.22, 0.025), 0.16, 0.3)),
        saturation=float(np.clip(rng.normal(96.0, 0.9) - 0.02 * (age - 50), 92, 98.5)),
        spindle_hz=float(np.clip(rng.normal(13.2, 0.5), 12, 14.5)),
        alpha_hz=float(np.clip(rng.normal(10.2, 0.7) - 0.015 * (age - 50), 8.3, 11.8)),
        band_gain=gain,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What the waveforms share: the blended stage and the arousals on the control grid."""

    seconds: int
    """Length of the recording."""
    weight: np.ndarray
    """float32 [5, 5 * seconds + 1]: how much of each stage; sums to 1."""
    arousal: np.ndarray
    """float32 [5 * seconds + 1]: 1 in a cortical arousal, 0 outside."""
    events: tuple[SleepEvent, ...]
    """All events by onset."""

    @property
    def samples(self) -> int:
        """n, samples of a signal."""
        return self.seconds * RATE_HZ

    def level(self, table: np.ndarray) -> Control:
        """An amplitude table blended geometrically over the stages."""
        return np.exp(sum(w * np.log(a) for w, a in zip(self.weight, table, strict=True)))

    def rate(self, per_min: np.ndarray) -> Control:
        """A rate table blended over the stages, in events per control step."""
        return sum(w * r for w, r in zip(self.weight, per_min, strict=True)) / (60 * CONTROL_HZ)


def blend_stages(
    rng: np.random.Generator, stages: np.ndarray, events: tuple[SleepEvent, ...], seconds: int, overlap: float
) -> State:
    """The graded state behind a scored hypnogram.

    Stage borders are gradual, and each epoch leans towards a neighbouring stage by a Beta-distributed share
    of mean `overlap`: the scored stage is the dominant one only, as in real sleep.

    Args:
        rng: generator of this component.
        stages: int8 [E], -1 in the lead-in, which is rendered as wake.
        events: respiratory events and arousals.
        seconds: length of the recording; beyond the last epoch its stage goes on.
        overlap: mean share of another stage within an epoch, in [0, 0.5).
    """
    shown = np.where(stages < 0, WAKE, stages)
    share = rng.beta(1.2, 1.2 * (1 / overlap - 1), len(shown)) if overlap else np.zeros(len(shown))
    weight = np.zeros((5, len(shown)))
    weight[shown, np.arange(len(shown))] = 1 - share
    leaning = (rng.random(len(shown))[:, None] > OVERLAP[shown].cumsum(axis=1)).sum(axis=1)
    weight[leaning, np.arange(len(shown))] += share
    epoch = np.minimum(np.arange(seconds * CONTROL_HZ + 1) // (EPOCH_S * CONTROL_HZ), len(shown) - 1)
    smooth = ndimage.uniform_filter1d(weight[:, epoch], 12 * CONTROL_HZ, axis=1, mode="nearest")
    arousal = np.zeros(len(epoch))
    for event in events:
        _ramp(arousal, CONTROL_HZ, event.arousal_start_s, event.arousal_s, 1.0)
    return State(
        seconds=seconds,
        weight=smooth.astype(np.float32),
        arousal=arousal.astype(np.float32),
        events=events,
    )


def render(subject: Subject, state: State, stream: Stream) -> dict[str, np.ndarray]:
    """All thirteen signals before sensor faults.

    Returns:
        float32 [n] by channel name; uV, except SaO2 in percent and ECG in mV.
    """
    breath = breathing(subject, state, stream("breathing"))
    ecg = heart(subject, state, breath.phase, stream("heart"))
    signals = head(subject, state, stream)
    leak_uv = 2.5 * subject.band_gain["leak"]
    for name, gain in zip(HEAD, (1.0, 0.8, 1.0, 0.8, 0.9, 0.7, 0.9), strict=True):
        signals[name] += np.float32(leak_uv * gain) * ecg
    signals["Chin1-Chin2"] = chin(subject, state, stream("chin")) + np.float32(0.25 * leak_uv) * ecg
    signals |= {"ABD": breath.abdomen, "CHEST": breath.chest, "AIRFLOW": breath.airflow}
    signals["SaO2"] = oxygen(subject, state, stream("oxygen"))
    signals["ECG"] = ecg
    return signals


def head(subject: Subject, state: State, stream: Stream) -> dict[str, np.ndarray]:
    """EEG and EOG: shared sources through a topography, plus local activity of each electrode.

    Returns:
        float32 [n] in uV for each name in `HEAD`.
    """
    gain = subject.band_gain
    rng = stream("head")
    calm = 1 - 0.55 * state.arousal
    lively = 1 + 1.2 * state.arousal
    background = gain["background"] * state.level(BACKGROUND_UV) * _wander(rng, state, 0.12)
    delta = gain["delta"] * state.level(DELTA_UV) * calm * _wander(rng, state, 0.22)
    theta = gain["theta"] * state.level(THETA_UV) * _wander(rng, state, 0.2)
    alpha = gain["alpha"] * state.level(ALPHA_UV) * lively * _wander(rng, state, 0.35)
    sigma = gain["sigma"] * state.level(SIGMA_UV) * _wander(rng, state, 0.15)
    sigma = sigma + gain["sigma"] * 18.0 * spindle_envelope(rng, state)
    beta = gain["beta"] * state.level(BETA_UV) * lively * _wander(rng, state, 0.2)
    sources = [
        (_red_noise(rng, state.samples), background, UNIFORM),
        (_red_noise(rng, state.samples), 0.35 * background, LEFT),
        (_red_noise(rng, state.samples), 0.35 * background, RIGHT),
        (_rhythm(rng, state.samples, 0.9, 0.8), delta, FRONTAL),
        (_rhythm(rng, state.samples, 5.5, 2.5), theta, CENTRAL),
        (_rhythm(rng, state.samples, subject.alpha_hz, 1.2), alpha, OCCIPITAL),
        (_rhythm(rng, state.samples, subject.spindle_hz, 1.0), sigma, CENTRAL),
        (_rhythm(rng, state.samples, 20.0, 8.0), beta, CENTRAL),
        (transients(rng, state, gain["delta"]), None, FRONTAL),
        (eyes(stream("eyes"), state) * np.float32(gain["eyes"]), None, EYES),
    ]
    out = {name: np.zeros(state.samples, np.float32) for name in HEAD}
    overall = gain["head"]
    for source, envelope, topography in sources:
        if envelope is not None:
            source *= _upsample(envelope, state.samples)
        for name, site in zip(HEAD, topography * rng.lognormal(0.0, 0.12, len(HEAD)), strict=True):
            if site:
                out[name] += np.float32(overall * site) * source
    local = _upsample(0.3 * background, state.samples)
    for name in HEAD:
        noise = _red_noise(rng, state.samples) * local
        noise += np.float32(1.0) * rng.standard_normal(state.samples, dtype=np.float32)
        out[name] += np.float32(overall * rng.lognormal(0.0, 0.15)) * noise
    return out


def spindle_envelope(rng: np.random.Generator, state: State) -> Control:
    """Amplitude of the spindle rhythm, 0 to about 1.5: bursts of 0.5 to 1.6 s, most in N2."""
    envelope = np.zeros(len(state.arousal))
    for at in _poisson_onsets(rng, state.rate(SPINDLES_PER_MIN) * (1 - state.arousal)):
        _ramp(envelope, CONTROL_HZ, at, rng.uniform(0.5, 1.6), rng.uniform(0.7, 1.5))
    return envelope


def transients(rng: np.random.Generator, state: State, delta_gain: float) -> np.ndarray:
    """K-complexes of N2 and sawtooth bursts of REM; float32 [n] in uV."""
    out = np.zeros(state.samples, np.float32)
    t = np.arange(int(1.3 * RATE_HZ)) / RATE_HZ
    shape = -np.exp(-0.5 * ((t - 0.3) / 0.09) ** 2) + 0.75 * np.exp(-0.5 * ((t - 0.75) / 0.19) ** 2)
    for at in _poisson_onsets(rng, state.rate(K_COMPLEXES_PER_MIN)):
        _add(out, at, shape * 75.0 * delta_gain * rng.lognormal(0.0, 0.2))
    for at in _poisson_onsets(rng, state.rate(SAWTOOTH_PER_MIN)):
        t = np.arange(int(rng.uniform(2.5, 5.0) * RATE_HZ)) / RATE_HZ
        wave = signal.sawtooth(2 * np.pi * rng.uniform(2.0, 3.0) * t, 0.8)
        _add(out, at, 16.0 * wave * np.hanning(len(t)))
    return out


def eyes(rng: np.random.Generator, state: State) -> np.ndarray:
    """Blinks of W, saccades of W and REM, slow rolling of drowsiness; float32 [n] in uV at E1."""
    out = _rhythm(rng, state.samples, 0.35, 0.15) * _upsample(state.level(ROLLING_UV), state.samples)
    blink = np.hanning(int(0.35 * RATE_HZ))
    for at in _poisson_onsets(rng, state.rate(BLINKS_PER_MIN)):
        _add(out, at, blink * rng.uniform(55, 125))
    t = np.arange(int(3.0 * RATE_HZ)) / RATE_HZ
    jump = (1 - np.exp(-t / 0.03)) * np.exp(-t / 0.7)
    # REMs come in clusters: the rate itself bursts.
    burst = np.clip(_wander(rng, state, 1.0), 0, 4)
    for at in _poisson_onsets(rng, state.rate(SACCADES_PER_MIN) * burst):
        _add(out, at, jump * rng.choice([-1.0, 1.0]) * rng.uniform(30, 100))
    return out


def chin(subject: Subject, state: State, rng: np.random.Generator) -> np.ndarray:
    """Muscle tone by stage with bursts in arousals and twitches in REM; float32 [n] in uV."""
    level = subject.band_gain["chin"] * state.level(CHIN_UV) * _wander(rng, state, 0.3)
    burst = 1 + 1.6 * state.arousal
    twitch = np.zeros(len(level))
    for at in _poisson_onsets(rng, state.weight[REM] * 3.0 / (60 * CONTROL_HZ)):
        _ramp(twitch, CONTROL_HZ, at, rng.uniform(0.4, 1.2), rng.uniform(1.0, 3.0))
    noise = rng.standard_normal(state.samples, dtype=np.float32)
    noise[1:] -= np.float32(0.4) * noise[:-1]
    return noise * _upsample(level * (burst + twitch), state.samples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Breath:
    """Breathing: the phase that drives the heart and the three belts and flow."""

    phase: np.ndarray
    """float64 [20 * seconds + 1], radians; inspiration begins at 0."""
    abdomen: np.ndarray
    """float32 [n] in uV."""
    chest: np.ndarray
    """float32 [n] in uV."""
    airflow: np.ndarray
    """float32 [n] in uV."""


def breathing(subject: Subject, state: State, rng: np.random.Generator) -> Breath:
    """Belts and airflow; an obstruction stops flow but not effort, a central apnea stops both."""
    m = state.seconds * BREATH_HZ + 1
    grid = np.arange(m) / BREATH_HZ
    control = np.arange(len(state.arousal)) / CONTROL_HZ
    irregular = state.level(np.array([0.16, 0.11, 0.07, 0.05, 0.17]))
    rate = subject.breath_hz * np.exp(irregular * _ou_process(rng, len(control), 4.0)) * (1 + 0.15 * state.arousal)
    phase = 2 * np.pi * np.cumsum(np.interp(grid, control, rate)) / BREATH_HZ
    depth = np.interp(grid, control, np.exp(1.4 * irregular * _ou_process(rng, len(control), 6.0)))
    effort, flow, paradox = (np.ones(m) for _ in range(3))
    for event in state.events:
        _obstruct(event, effort, flow, paradox)
    paradox = 0.1 + 2.0 * (1 - paradox)
    tail = 0.22 * np.sin(2 * phase + 0.6)
    abdomen = depth * effort * (np.sin(phase) + tail)
    chest = depth * effort * (np.sin(phase - paradox) + 0.22 * np.sin(2 * (phase - paradox) + 0.6))
    airflow = depth * effort * flow * (np.sin(phase + 0.1) + 0.22 * np.sin(2 * phase + 0.8))
    drift = np.interp(grid, control, _rhythm(rng, len(control), 0.08, 0.04, CONTROL_HZ))
    signals = []
    # The belts' rest position wanders with posture and sighs, just below the breathing rate.
    for wave, scale, share in ((abdomen, 160.0, 1.0), (chest, 140.0, 1.0), (airflow, 120.0, 0.65)):
        wave = wave + share * drift + 0.2 * rng.standard_normal(m)
        wave = scale * rng.lognormal(0.0, 0.3) * wave
        signals.append(_upsample(wave, state.samples))
    return Breath(phase=phase, abdomen=signals[0], chest=signals[1], airflow=signals[2])


def _obstruct(event: SleepEvent, effort: np.ndarray, flow: np.ndarray, paradox: np.ndarray) -> None:
    if event.depth == 0:
        return
    length = event.stop_s - event.start_s
    central = event.name == "resp_centralapnea"
    _ramp(effort if central else flow, BREATH_HZ, event.start_s, length, -event.depth)
    if not central:
        _ramp(paradox, BREATH_HZ, event.start_s, length, -0.8 * event.depth)
        _ramp(effort, BREATH_HZ, event.start_s + 0.4 * length, 0.6 * length, 0.35)
    _ramp(effort, BREATH_HZ, event.stop_s + 0.5, 9.0, 0.7)


def heart(subject: Subject, state: State, breath_phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """ECG with stage-dependent rate, respiratory sinus arrhythmia, slow variability and arousal tachycardia.

    Returns:
        float32 [n] in mV.
    """
    rsa = subject.rsa_bpm * state.level(np.array([0.6, 0.9, 1.0, 1.1, 0.6]))
    slow = state.level(np.array([2.6, 1.8, 1.5, 1.1, 2.6]))
    rate = subject.heart_bpm + sum(w * b for w, b in zip(state.weight, (5, 1, 0, -1.5, 3.5), strict=True))
    rate = rate + rsa * np.sin(breath_phase[:: BREATH_HZ // CONTROL_HZ]) + slow * _ou_process(rng, len(rsa), 8.0)
    surge = ndimage.shift(ndimage.uniform_filter1d(state.arousal, 6 * CONTROL_HZ), 2 * CONTROL_HZ, order=0)
    rate = np.clip(rate + 12.0 * surge, 38, 150)
    beats = np.concatenate([[0.0], np.cumsum(rate[:-1] / (60 * CONTROL_HZ))])
    grid = np.arange(len(beats)) / CONTROL_HZ
    beat_s = np.interp(np.arange(1, int(beats[-1])), beats, grid)
    beat_s = beat_s + rng.normal(0.0, 0.012, len(beat_s))
    size = 1 + 0.06 * np.sin(np.interp(beat_s, np.arange(len(breath_phase)) / BREATH_HZ, breath_phase))
    out = _beats(state.samples, beat_s, size * subject.band_gain["ecg"])
    out += np.float32(0.1) * rng.standard_normal(state.samples, dtype=np.float32)
    return out


def _beats(samples: int, beat_s: np.ndarray, size: np.ndarray) -> np.ndarray:
    before, after = int(0.25 * RATE_HZ), int(0.5 * RATE_HZ)
    first = np.rint(beat_s * RATE_HZ).astype(np.int64)
    t = (first[:, None] + np.arange(-before, after)) / RATE_HZ - beat_s[:, None]
    stretch = np.sqrt(np.clip(np.gradient(beat_s), 0.4, 1.6))[:, None]
    waves = ((0.11, -0.17, 0.022), (-0.09, -0.022, 0.008), (1.0, 0.0, 0.010), (-0.2, 0.024, 0.009))
    wave = sum(a * np.exp(-0.5 * ((t - mu) / width) ** 2) for a, mu, width in waves)
    wave = (wave + 0.26 * np.exp(-0.5 * ((t / stretch - 0.27) / 0.045) ** 2)) * size[:, None]
    index = first[:, None] + np.arange(-before, after)
    inside = (index >= 0) & (index < samples)
    return np.bincount(index[inside], wave[inside], minlength=samples).astype(np.float32)


def oxygen(subject: Subject, state: State, rng: np.random.Generator) -> np.ndarray:
    """Saturation: a slowly wandering level less a delayed dip after each event; float32 [n] in %."""
    m = len(state.arousal)
    delay_s = rng.uniform(12, 20)
    dip = np.zeros(m)
    for event in state.events:
        if event.name.startswith("resp"):
            length = event.stop_s - event.start_s
            low = min(event.depth * length * 0.16 * rng.lognormal(0.0, 0.25), 14.0)
            _desaturate(dip, event.start_s + delay_s, length, low)
    level = subject.saturation + 0.7 * _ou_process(rng, m, 240.0) + 0.1 * _ou_process(rng, m, 8.0)
    return _upsample(np.clip(level - dip, 60, 100), state.samples)


def _desaturate(dip: np.ndarray, start_s: float, fall_s: float, low: float) -> None:
    first = int(start_s * CONTROL_HZ)
    t = np.arange(int((fall_s + 45) * CONTROL_HZ)) / CONTROL_HZ
    shape = low * np.where(t < fall_s, t / fall_s, np.exp(-((np.maximum(t - fall_s, 0) / 10.0) ** 1.5)))
    part = shape[: max(0, len(dip) - first)]
    np.maximum(dip[first : first + len(part)], part, out=dip[first : first + len(part)])


def _poisson_onsets(rng: np.random.Generator, rate: Control) -> np.ndarray:
    """Onset seconds of an inhomogeneous Poisson process with `rate` events per control step."""
    counts = rng.poisson(np.maximum(rate, 0.0))
    onset = np.repeat(np.arange(len(counts)), counts) / CONTROL_HZ
    return onset + rng.random(len(onset)) / CONTROL_HZ


def _ramp(out: np.ndarray, rate_hz: int, start_s: float, length_s: float, height: float) -> None:
    """Add a plateau of `height` with half-second cosine flanks, in place."""
    if length_s <= 0:
        return
    first, count = int(max(start_s, 0) * rate_hz), max(2, round(length_s * rate_hz))
    flank = min(0.5 * rate_hz, count / 2)
    edge = np.minimum(np.arange(count) + 0.5, count - 0.5 - np.arange(count)) / flank
    part = out[first : first + count]
    part += (height * np.sin(0.5 * np.pi * np.minimum(edge, 1.0)) ** 2)[: len(part)]


def _add(out: np.ndarray, start_s: float, shape: np.ndarray) -> None:
    first = int(start_s * RATE_HZ)
    part = out[first : first + len(shape)]
    part += shape[: len(part)].astype(np.float32)


def _upsample(slow: np.ndarray, samples: int) -> np.ndarray:
    """Linear interpolation of [k * seconds + 1] points to float32 [n] at the signal rate."""
    slow = slow.astype(np.float32)
    factor = samples // (len(slow) - 1)
    ramp = np.arange(factor, dtype=np.float32) / np.float32(factor)
    return (slow[:-1, None] + np.diff(slow)[:, None] * ramp).reshape(-1)


def _ou_process(rng: np.random.Generator, count: int, tau_s: float) -> Control:
    """A unit-variance Ornstein-Uhlenbeck path on the control grid with correlation time `tau_s`."""
    keep = np.exp(-1 / (tau_s * CONTROL_HZ))
    start = rng.standard_normal()
    return signal.lfilter([np.sqrt(1 - keep**2)], [1, -keep], rng.standard_normal(count), zi=[keep * start])[0]


def _wander(rng: np.random.Generator, state: State, spread: float) -> Control:
    """Log-normal amplitude modulation over about 40 s, of median 1."""
    return np.exp(spread * _ou_process(rng, len(state.arousal), 40.0))


def _red_noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Unit-variance background whose power falls as 1/f^2 above 1 Hz; float32 [n]."""
    keep = np.exp(-2 * np.pi * 1.0 / RATE_HZ)
    noise = rng.standard_normal(samples, dtype=np.float32)
    return signal.lfilter(np.array([np.sqrt(1 - keep**2)], np.float32), np.array([1, -keep], np.float32), noise)


def _rhythm(
    rng: np.random.Generator, samples: int, centre_hz: float, width_hz: float, rate_hz: float = RATE_HZ
) -> np.ndarray:
    """Unit-variance noise through a two-pole resonator; float32 [n]."""
    r = np.exp(-np.pi * width_hz / rate_hz)
    a1, a2 = -2 * r * np.cos(2 * np.pi * centre_hz / rate_hz), r * r
    gain = np.sqrt((1 - a2) * ((1 + a2) ** 2 - a1**2) / (1 + a2))
    noise = rng.standard_normal(samples, dtype=np.float32)
    return signal.lfilter(np.array([gain], np.float32), np.array([1, a1, a2], np.float32), noise)
