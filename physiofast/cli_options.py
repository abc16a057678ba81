"""The arguments of each command: a dataclass, whose docstrings are what `physiofast COMMAND --help` says of them."""

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
    """Make a synthetic cohort, prepare it, pretrain, probe, and write a report; a minute and a half on two cores."""

    out: Path = Path("physiofast-demo")
    """Folder for everything."""
    subjects: int = 24
    """Synthetic subjects."""
    hours: float = 1.0
    """Hours of sleep of each."""
    steps: int | None = None
    """Optimiser steps; the demo recipe's when left out."""
    seed: int = 0
    """Of the cohort and the run."""


@dataclasses.dataclass(frozen=True)
class SynthOptions:
    """Write a synthetic cohort as real WFDB records in the Challenge 2018 layout."""

    dir: Positional[Path]
    """Folder to write to."""
    subjects: int = 24
    """Records, one per subject."""
    hours: float = 1.0
    """Hours of each record."""
    seed: int = 0
    """The same seed writes the same bytes."""
    workers: int = dataclasses.field(default_factory=_cpus)
    """Processes."""


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Show what recordings hold, and exactly what `prepare` would drop and why."""

    path: Positional[Path]
    """A record, or a folder that is searched."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Filter, resample, scale and check recordings, and write them as a store."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="in")]
    """A record, or a folder that is searched."""
    out: Positional[Path]
    """The store's folder; a second run with the same settings goes on where the first stopped."""
    workers: int = dataclasses.field(default_factory=_cpus)
    """Processes; each holds one record in memory."""
    allow_failures: bool = False
    """Exit with 0 although some records failed, as long as one is in the store."""
    replace: bool = False
    """Take a store that holds records which are not in this source, and forget those, or that was prepared with other
    settings, and make all of it anew."""


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Read a whole store, and name the files that are not what `prepare` wrote; its recordings are not needed."""

    store: Positional[Path]
    """Folder that `physiofast prepare` wrote."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Pretrain a masked autoencoder: `physiofast train RECIPE [file.toml] [--section.field value]`."""

    store: Path | None = None
    """Folder that `physiofast prepare` wrote."""
    out: Path | None = None
    """Run folder; runs/RECIPE when left out."""
    init: Path | None = None
    """Begin with the weights of this run's newest checkpoint instead of random ones, matched by the names of modalities
    and channels; of the same sizes of model."""
    resume: Path | None = None
    """Go on with this run from its newest checkpoint. Only --store may accompany it: where its store is now."""


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """Probe a run's frozen encoder for stage, arousal, apnea, age and sex.

    Flags of probes change the run's config.json; what they leave out is as it is there, whatever default stands below.
    """

    run: Positional[Path]
    """Folder that `physiofast train` wrote."""
    store: Path | None = None
    """Where the run's store is now, when it has moved or `push` sent the run; the run records it."""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write a run's report as one HTML file, from the files in the run folder alone: its store is not needed."""

    run: Positional[Path]
    """Folder that `physiofast train` wrote."""


@dataclasses.dataclass(frozen=True)
class PushOptions:
    """Upload a run to a model repository of the Hugging Face Hub (extra `hub`).

    Sent are the newest checkpoint, which knows the store by a SHA-256, metrics.jsonl, environment.json, config.json
    without the store's path, how recordings were prepared (of prepare.json), the scores (of summary.json) and, of a run
    that began with another's weights, how many held-out subjects these have seen (of init.json). Not sent
    are the names, ages and sexes of subjects (prepare.json, probe.json), their stages and signals (predictions.npz,
    reconstruction.npz), report.html, which shows them, older checkpoints, and what else lies in the folder.
    """

    run: Positional[Path]
    """Folder that `physiofast train` wrote."""
    repository: Positional[str]
    """Name of the repository, such as someone/sleep-mae; made when it is not there."""
    public: bool = False
    """A new repository is public; left out, it is private, and one that is public already is refused."""
    everything: bool = False
    """Send all files of the run folder as they are, also those that name subjects or show their signals."""


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """Say which versions, processor, engine and threads serve here, run a self-test, and name what is broken."""

    json: bool = False
    """Print JSON instead of lines."""
