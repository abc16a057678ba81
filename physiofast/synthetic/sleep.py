"""Sleep architecture of a synthetic night: stages, respiratory events and arousals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from physiofast.stages import EPOCH_S

WAKE, N1, N2, N3, REM = range(5)

DWELL_MEDIAN_EPOCHS = (2.0, 1.9, 4.3, 2.6, 9.5)
"""Median bout length of W, N1, N2, N3, R in epochs: fits to 497 hypnograms of the 2018 Challenge."""
DWELL_SPREAD = (1.5, 0.95, 1.35, 1.55, 1.2)
"""Standard deviation of the log bout length, same order and source."""
TRANSITION = np.array(
    [
        [0.0, 0.956, 0.037, 0.0, 0.007],
        [0.334, 0.0, 0.602, 0.001, 0.063],
        [0.170, 0.437, 0.0, 0.307, 0.086],
        [0.050, 0.043, 0.898, 0.0, 0.009],
        [0.233, 0.607, 0.155, 0.005, 0.0],
    ]
)
"""Probability that a bout of the row's stage is followed by the column's, same order and source."""

CYCLE_S = 90 * 60
LEAD_IN_S = 510
RESPIRATORY_NAMES = ("resp_hypopnea", "resp_obstructiveapnea", "resp_centralapnea", "resp_mixedapnea")
RESPIRATORY_SHARE = (0.55, 0.30, 0.10, 0.05)
STAGE_EVENT_RATE = np.array([0.0, 1.1, 1.0, 0.4, 1.5])
"""Rate of events in each stage, relative to N2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SleepEvent:
    """A respiratory event or arousal with what the waveforms need to know about it."""

    name: str
    """Name in the Challenge's annotations, such as `resp_hypopnea` or `arousal_spontaneous`."""
    start_s: float
    """Onset in seconds from the recording's start."""
    stop_s: float
    """End in seconds."""
    depth: float = 0.0
    """Share of airflow that is lost, 0 to 1."""
    arousal_s: float = 0.0
    """Length of the cortical arousal in seconds: at the event's end, or the event itself if spontaneous."""

    @property
    def arousal_start_s(self) -> float:
        """Onset of the cortical arousal."""
        return self.start_s if self.name == "arousal_spontaneous" else self.stop_s - 1.0


def simulate_stages(rng: np.random.Generator, epochs: int, age_years: float) -> np.ndarray:
    """A semi-Markov hypnogram with an unscored lead-in.

    Bout lengths are log-normal and transitions first order, both fitted to the Challenge's hypnograms; the
    position in the NREM-REM cycle and in the night shifts the odds of N3 and R. Recordings shorter than
    about four hours have their cycle, bouts and lead-in compressed, so that an hour still passes through
    all stages.

    Args:
        rng: the night's generator.
        epochs: E, whole epochs of the recording.
        age_years: with age, wake bouts grow and N3 bouts shrink.

    Returns:
        int8 [E], codes 0 to 4 for W, N1, N2, N3, R; -1 in the lead-in.
    """
    cycle = min(CYCLE_S, 0.4 * epochs * EPOCH_S) / EPOCH_S
    shrink = np.sqrt(cycle * EPOCH_S / CYCLE_S)
    median = np.array(DWELL_MEDIAN_EPOCHS) * shrink
    median[WAKE] *= 1 + 0.008 * (age_years - 50)
    median[N3] *= 1.8 - 0.012 * age_years
    lead_in = min(LEAD_IN_S / EPOCH_S, 0.03 * epochs) * rng.lognormal(0.0, 0.35)

    stages = np.full(epochs, -1, np.int8)
    at, stage, cycle_start = max(1, round(lead_in)), WAKE, 0.0
    sleep_onset: int | None = None
    while at < epochs:
        typical = median[stage] * ((1.4 - 0.8 * at / epochs) if stage == N3 else 1.0)
        length = round(rng.lognormal(np.log(typical), DWELL_SPREAD[stage]))
        length = int(np.clip(length, 1, max(2, 0.35 * cycle)))
        stages[at : at + length] = stage
        at += length
        if sleep_onset is None and stage == WAKE:
            cycle_start = at
        elif sleep_onset is None:
            sleep_onset = at
        if stage == REM and rng.random() < 0.6:
            cycle_start = at
        odds = _transition_odds(stage, (at - cycle_start) / cycle, at / epochs)
        stage = int(rng.choice(5, p=odds))
    return stages


def _transition_odds(stage: int, phase: float, night: float) -> np.ndarray:
    odds = TRANSITION[stage].copy()
    deep = 2.5 * max(1.15 - night, 0.15) if 0.08 < phase < 0.7 else 0.25
    dream = 0.05 if phase < 0.5 else min(4.5 * (0.7 + 0.6 * night), 12 * (phase - 0.4))
    odds[N3] *= deep
    odds[REM] *= dream
    return odds / odds.sum()


def simulate_events(
    rng: np.random.Generator, stages: np.ndarray, apneas_per_hour: float, arousals_per_hour: float
) -> tuple[SleepEvent, ...]:
    """Respiratory events, effort-related and spontaneous arousals during sleep, apart by at least 15 s.

    Args:
        rng: the night's generator.
        stages: int8 [E] as `simulate_stages` gives.
        apneas_per_hour: apneas and hypopneas per hour of N2.
        arousals_per_hour: spontaneous arousals, and half as many again effort-related ones, per hour of N2.

    Returns:
        The events by onset.
    """
    weight = np.where(stages >= 0, STAGE_EVENT_RATE[stages], 0.0)
    rates = np.array([apneas_per_hour, 0.5 * arousals_per_hour, arousals_per_hour])
    expected = weight.sum() * EPOCH_S / 3600 * rates.sum()
    if expected == 0:
        return ()
    count = rng.poisson(expected)
    epoch = rng.choice(len(stages), size=count, p=weight / weight.sum())
    onsets = np.sort((epoch + rng.random(count)) * EPOCH_S)
    kinds = rng.choice(3, size=count, p=rates / rates.sum())
    return _keep_apart(
        [_draw_event(rng, int(kind), float(onset)) for kind, onset in zip(kinds, onsets, strict=True)],
        len(stages) * EPOCH_S,
    )


def _draw_event(rng: np.random.Generator, kind: int, start_s: float) -> SleepEvent:
    arousal_s = float(rng.uniform(3.5, 11.0))
    if kind == 2:
        return SleepEvent(name="arousal_spontaneous", start_s=start_s, stop_s=start_s + arousal_s, arousal_s=arousal_s)
    stop_s = start_s + float(np.clip(10 * rng.lognormal(0.5, 0.4), 10, 50))
    if kind == 1:
        depth = float(rng.uniform(0.1, 0.3))
        return SleepEvent(name="arousal_rera", start_s=start_s, stop_s=stop_s, depth=depth, arousal_s=arousal_s)
    name = RESPIRATORY_NAMES[int(rng.choice(4, p=RESPIRATORY_SHARE))]
    depth = float(rng.uniform(0.35, 0.75)) if name == "resp_hypopnea" else 0.97
    arousal_s *= float(rng.random() < 0.7)
    return SleepEvent(name=name, start_s=start_s, stop_s=stop_s, depth=depth, arousal_s=arousal_s)


def _keep_apart(events: Sequence[SleepEvent], end_s: float) -> tuple[SleepEvent, ...]:
    kept: list[SleepEvent] = []
    free_s = 0.0
    for event in events:
        if event.start_s >= free_s and event.stop_s + 12 < end_s:
            kept.append(event)
            free_s = event.stop_s + 15.0
    return tuple(kept)
