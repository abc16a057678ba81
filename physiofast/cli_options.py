"""The options of each command: a dataclass whose docstrings are the texts of `physiofast COMMAND --help`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Synthesise a cohort, prepare it, pretrain, probe, and write a report; a minute and a half on two cores."""

    out: Path = Path("physiofast-demo")
    """Folder for all results."""
    subjects: int = 24
    """Number of synthetic subjects."""
    hours: float = 1.0
    """Duration of each recording in hours."""
    steps: int | None = None
    """Optimiser steps; those of the demo recipe by default."""
    seed: int = 0
    """Seed of the cohort and of the run."""


@dataclasses.dataclass(frozen=True)
class SynthOptions:
    """Write a synthetic cohort as WFDB records in the Challenge 2018 layout."""

    dir: Positional[Path]
    """Folder to write to."""
    subjects: int = 24
    """Number of subjects, with one record each."""
    hours: float = 1.0
    """Duration of each record in hours."""
    seed: int = 0
    """Seed of the cohort; the same seed gives the same files, byte for byte."""
    workers: int = dataclasses.field(default_factory=_cpus)
    """Number of processes."""


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Show what recordings hold, and what `prepare` would drop or refuse and why."""

    path: Positional[Path]
    """A record, or a folder to search for records."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Filter, resample, scale and check recordings, and write them to a store."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="in")]
    """A record, or a folder to search for records."""
    out: Positional[Path]
    """Folder of the store; running the command again with the same settings resumes."""
    workers: int = dataclasses.field(default_factory=_cpus)
    """Number of processes; each holds one record in memory."""
    allow_failures: bool = False
    """Exit with status 0 even if some records failed, provided that the store has at least one."""
    replace: bool = False
    """Rewrite an existing store: drop records not in this source, and redo records prepared with other settings."""


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Read a whole store and report damaged files; the recordings it was prepared from are not needed."""

    store: Positional[Path]
    """Folder of the store, written by `physiofast prepare`."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Pretrain a masked autoencoder: `physiofast train RECIPE [file.toml] [--section.field value]`."""

    store: Path | None = None
    """Folder of the store, written by `physiofast prepare`."""
    out: Path | None = None
    """Run folder; runs/RECIPE by default."""
    init: Path | None = None
    """Initialise the weights from this run's newest checkpoint, matched by names of modalities and channels, instead of
    randomly; both models must have the same sizes."""
    resume: Path | None = None
    """Resume this run from its newest checkpoint. The only other flag allowed is --store, if the store has moved."""


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """Probe a run's frozen encoder for stage, arousal, apnea, age and sex.

    Values given by --probe flags are saved in the run's config.json; other values are taken from there, not from the
    defaults shown below.
    """

    run: Positional[Path]
    """Run folder, written by `physiofast train`."""
    store: Path | None = None
    """New location of the store, if it has moved or the run was downloaded after `push`; the run records it."""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write a run's report as one HTML file, using only the files in the run folder; the store is not needed."""

    run: Positional[Path]
    """Run folder, written by `physiofast train`."""


@dataclasses.dataclass(frozen=True)
class PushOptions:
    """Upload a run to a model repository of the Hugging Face Hub (extra `hub`).

    Uploaded are the newest checkpoint (which identifies the store by a SHA-256), metrics.jsonl, environment.json,
    config.json without the store's path, the preparation settings from prepare.json, the scores from summary.json and,
    if the run was initialised from another one, the number of held-out subjects that one has seen, from init.json. Not
    uploaded are the names, ages and sexes of subjects (prepare.json, probe.json), their stages and signals
    (predictions.npz, reconstruction.npz), report.html, which shows them, older checkpoints, and all other files.
    """

    run: Positional[Path]
    """Run folder, written by `physiofast train`."""
    repository: Positional[str]
    """Name of the repository, such as someone/sleep-mae; created if it does not exist."""
    public: bool = False
    """Create a public repository, or allow an existing public one. By default a new repository is private and an
    existing public one is refused."""
    everything: bool = False
    """Upload all files of the run folder unchanged, including those that name subjects or show their signals."""


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """Report versions, processor, engine and threads, run a self-test, and list problems."""

    json: bool = False
    """Print JSON instead of lines."""
