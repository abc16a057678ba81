"""The cohort: who is in it, what each night has and lacks, and the folder that it is written to."""

from __future__ import annotations

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from physiofast.labels import Event
from physiofast.stages import EPOCH_S
from physiofast.support.bounds import Bounds, check_fields
from physiofast.support.paths import given_path
from physiofast.synthetic import challenge2018
from physiofast.synthetic.sleep import SleepEvent, simulate_events, simulate_stages
from physiofast.synthetic.waveforms import RATE_HZ, Stream, blend_stages, draw_subject, render
from physiofast.workers import WHY_DIED, as_done

SIMPLIFICATIONS = (
    "A recording shorter than about four hours has its lead-in, NREM-REM cycle and stage bouts "
    "compressed, so that an hour still passes through W, N1, N2, N3 and R.",
    "Brain sources reach all electrodes at once through fixed gains: no travelling waves, no phase lags.",
    "EEG channels foretell each other better than real ones do (R^2 about 0.9), for there are few independent sources.",
    "Rhythms are stationary noise through a resonator with a graded envelope; spindles do not slow "
    "down, K-complexes and sawtooth waves have one shape each.",
    "Eye movements are blinks, saccades and slow rolling on one axis; the one EOG channel sees no vertical axis.",
    "Respiratory events follow a fixed script: fall of flow, effort, recovery breaths, one delayed dip "
    "of SaO2; they never change the scored stage.",
    "Only apneas, hypopneas, respiratory-effort and spontaneous arousals are annotated: no leg "
    "movements, snores, bruxism or Cheyne-Stokes breathing.",
    "Arousals after apneas and hypopneas are visible in the signals but not annotated apart, as in the Challenge.",
    "Belts and airflow share one slow wander of their baseline; real ones drift apart.",
    "The heart always beats in sinus rhythm: no ectopic beats, no conduction blocks.",
    "SaO2 is continuous and never loses contact; real oximeters report whole percents and drop out.",
    "Chin tone is white noise of graded level: nothing but its level can be predicted.",
    "Faults are electrode pops, mains hum and a whole absent channel: no movement artefact, sweat or clipping.",
    "One night per subject; a record's scorer never errs beyond blurred stage borders.",
)
"""Simplifications of the synthetic cohort; `physiofast synth` prints them."""

ABSENT_CANDIDATES = ("O2-M1", "E1-M2", "Chin1-Chin2", "ABD", "AIRFLOW", "SaO2", "ECG")
"""Channels that a record may lack."""

BOUNDS = {
    "subjects": Bounds(least=1, most=9999),
    "hours": Bounds(least=0.1, most=24.0),
    "seed": Bounds(least=0, below=2**63),
    "overlap": Bounds(least=0.0, most=0.45),
    "absent_share": Bounds(least=0.0, most=1.0),
    "pops_per_hour": Bounds(least=0.0, most=600.0),
    "mains_hz": Bounds(least=40.0, most=99.0),
}
"""Range of each number of a `CohortConfig`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortConfig:
    """A cohort as a pure function of these fields.

    Raises:
        ValueError: a field out of its range; the message names it.
    """

    subjects: int = 24
    """Recordings, one per subject."""
    hours: float = 1.0
    """Length of each recording, less than half a minute over: recordings seldom end on a scoring epoch."""
    seed: int = 0
    """Seed of everything."""
    overlap: float = 0.09
    """Mean share of a neighbouring stage within an epoch: how hard the stages are to tell apart."""
    absent_share: float = 0.15
    """Chance that a record lacks one channel."""
    pops_per_hour: float = 3.0
    """Electrode pops per hour of recording, over all electrodes."""
    mains_hz: float = 60.0
    """Frequency of the mains hum."""

    def __post_init__(self) -> None:
        check_fields(self, "CohortConfig", BOUNDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Night:
    """One simulated recording."""

    record: str
    """Record name: `tr90-` and the subject's number from 1; the Challenge has no centre 90."""
    digital: np.ndarray
    """int16 [n, C], sample-interleaved, C in the order of `names`."""
    names: tuple[str, ...]
    """Channels that the record has."""
    absent: str | None
    """The channel that it lacks, if any."""
    stages: np.ndarray
    """int8 [E] per whole 30 s epoch: W, N1, N2, N3, R as 0 to 4; -1 in the unscored lead-in."""
    events: tuple[SleepEvent, ...]
    """Respiratory events and arousals by onset."""
    age_years: int
    """Age in years."""
    sex: str
    """`F` or `M`."""

    @property
    def spans(self) -> tuple[Event, ...]:
        """The events as the annotation file has them, in samples."""
        return tuple(
            Event(name=e.name, start=round(e.start_s * RATE_HZ), stop=round(e.stop_s * RATE_HZ)) for e in self.events
        )


def record_name(subject: int) -> str:
    """Record name of subject number `subject`, from 0."""
    return f"tr90-{subject + 1:04d}"


def simulate_night(config: CohortConfig, subject: int) -> Night:
    """Simulate one recording: a pure function of the config without `subjects`, and of the subject's number.

    Args:
        config: the cohort.
        subject: number of the subject, from 0.
    """
    stream = _streams(config.seed, subject)
    person = draw_subject(stream("subject"))
    rng = stream("recording")
    seconds = round(config.hours * 3600) + int(rng.integers(0, EPOCH_S))
    absent = str(rng.choice(ABSENT_CANDIDATES)) if rng.random() < config.absent_share else None

    stages = simulate_stages(stream("stages"), seconds // EPOCH_S, person.age_years)
    events = simulate_events(stream("events"), stages, person.apneas_per_hour, person.arousals_per_hour)
    state = blend_stages(stream("blend"), stages, events, seconds, config.overlap)
    signals = render(person, state, stream)
    _add_faults(signals, config, seconds, stream("faults"))

    channels = [channel for channel in challenge2018.CHANNELS if channel.name != absent]
    digital = np.empty((seconds * RATE_HZ, len(channels)), np.int16)
    for column, channel in enumerate(channels):
        channel.digitise(signals.pop(channel.name), digital[:, column])
    return Night(
        record=record_name(subject),
        digital=digital,
        names=tuple(channel.name for channel in channels),
        absent=absent,
        stages=stages,
        events=events,
        age_years=person.age_years,
        sex=person.sex,
    )


def write_cohort(
    out: str | os.PathLike[str],
    config: CohortConfig,
    progress: Callable[[str, int, int], None] | None = None,
    workers: int = 1,
) -> list[str]:
    """Write a cohort in the Challenge 2018 layout; records of the same name are replaced.

    `RECORDS` and `age-sex.csv` come last, so a folder without them is an unfinished cohort.

    Args:
        out: folder; made if it is not there.
        config: the cohort.
        progress: called after each record with its name, the records done and their total.
        workers: processes; the files do not depend on it.

    Returns:
        Record names in order.

    Raises:
        ValueError: `workers` below 1.
        OSError: the folder cannot be written.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; allowed: 1 or more")
    out = given_path(out)
    out.mkdir(parents=True, exist_ok=True)
    people: dict[int, tuple[int, str]] = {}
    for subject, age_years, sex in _written(out, config, workers):
        people[subject] = (age_years, sex)
        if progress is not None:
            progress(record_name(subject), len(people), config.subjects)
    order = range(config.subjects)
    records = [record_name(subject) for subject in order]
    challenge2018.write_index(out, records, [people[i][0] for i in order], [people[i][1] for i in order])
    return records


def _written(out: Path, config: CohortConfig, workers: int) -> Iterator[tuple[int, int, str]]:
    write = functools.partial(_write_night, out, config)
    for _, written in as_done(write, range(config.subjects), workers):
        if written is None:
            reason = f"a worker process died; {WHY_DIED}, of which fewer workers need less"
            raise OSError(f"{out}: {reason}. Nights that are there are written again")
        yield written


def _write_night(out: Path, config: CohortConfig, subject: int) -> tuple[int, int, str]:
    night = simulate_night(config, subject)
    challenge2018.write_record(out / night.record, night.record, night.digital, night.names, night.stages, night.spans)
    return subject, night.age_years, night.sex


def _streams(seed: int, subject: int) -> Stream:
    def stream(component: str) -> np.random.Generator:
        key = (subject, zlib.crc32(component.encode()))
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))

    return stream


def _add_faults(signals: dict[str, np.ndarray], config: CohortConfig, seconds: int, rng: np.random.Generator) -> None:
    """Electrode pops and mains hum, in place; one record in six has an EEG electrode of poor contact."""
    electrodes = challenge2018.CHANNELS[:8]
    decay = np.exp(-np.arange(int(1.5 * RATE_HZ)) / RATE_HZ / 0.25)
    for at in rng.integers(0, seconds * RATE_HZ, rng.poisson(config.pops_per_hour * seconds / 3600)):
        out = signals[electrodes[int(rng.integers(len(electrodes)))].name][at : at + len(decay)]
        out += (rng.choice([-1.0, 1.0]) * rng.uniform(60, 250) * decay[: len(out)]).astype(np.float32)
    hum = _hum(config.mains_hz, seconds, rng)
    bad = int(rng.integers(6)) if rng.random() < 1 / 6 else None
    for index, electrode in enumerate(electrodes):
        level_uv = 8.0 if index == bad else 0.15 if electrode.name == "Chin1-Chin2" else 0.4
        signals[electrode.name] += np.float32(level_uv * rng.lognormal(0.0, 0.3)) * hum


def _hum(mains_hz: float, seconds: int, rng: np.random.Generator) -> np.ndarray:
    """Unit-amplitude mains hum whose frequency drifts by some hundredths of a hertz; float32 [n]."""
    drift_hz = np.repeat(0.03 * rng.standard_normal(seconds), RATE_HZ)
    return np.sin(2 * np.pi * np.cumsum(mains_hz + drift_hz) / RATE_HZ).astype(np.float32)
