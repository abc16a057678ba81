"""The whole pipeline on a synthetic cohort, from nothing to a report."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from physiofast import runs, synthetic
from physiofast.config import Config, get_recipe
from physiofast.preparation import PrepareConfig, prepare
from physiofast.printing import print_probes, say
from physiofast.probing import ProbeReport
from physiofast.progress import make_progress
from physiofast.runfolder.summary import timed
from physiofast.store import Store
from physiofast.support.messages import command
from physiofast.support.paths import given_path


def run_demo(
    out: str | os.PathLike[str], subjects: int, hours: float, steps: int | None, seed: int, console: Console
) -> Path | None:
    """Synthesise a cohort, prepare it, pretrain, probe and write a report, all in one folder.

    Args:
        out: the folder, which must not hold a demo run.
        subjects: number of subjects, at least 3.
        hours: duration of each recording in hours.
        steps: optimiser steps; those of the demo recipe if None.
        seed: seed of the cohort and of the run.
        console: where messages to the user are printed.

    Returns:
        The path of the report; None if training was stopped.

    Raises:
        ValueError: too few subjects, or the folder already holds a demo run.
    """
    if subjects < 3:
        raise ValueError(f"the demo needs at least 3 subjects, to train and to hold some out; found {subjects}")
    out = given_path(out)
    began, progress, workers = time.perf_counter(), make_progress(), len(os.sched_getaffinity(0))
    run_path, cohort, store_path = out / "run", out / "recordings", out / "store"
    if (run_path / "config.json").exists():
        raise ValueError(f"{out} already holds a demo; choose another folder with --out, or remove it")
    config = demo_config(steps, seed)
    with timed(run_path, "synth"), progress.task("synth", subjects) as bar:
        settings = synthetic.CohortConfig(subjects=subjects, hours=hours, seed=seed)
        synthetic.write_cohort(cohort, settings, lambda *_: bar.advance(1), workers)
    with timed(run_path, "prepare"), progress.task("prepare", subjects) as bar:
        done = prepare(cohort, store_path, PrepareConfig(), workers=workers, progress=lambda _: bar.advance(1))
    for record, reason in done.failed:
        say(console, f"{record}: {reason}", "failed", "red")
    run = runs.start_run(run_path, Store.open(store_path), config, "demo")
    if not runs.train_run(run, progress).finished:
        say(console, f"stopped; go on with: {command('train', '--resume', run_path)}")
        return None
    probes = runs.probe_run(run, progress)
    report = runs.report_run(run_path)
    (out / "report.html").write_bytes(report.read_bytes())
    (out / "summary.json").write_bytes((run_path / "summary.json").read_bytes())
    _explain(out, json.loads((out / "summary.json").read_text()), probes, time.perf_counter() - began, console)
    return out / "report.html"


def demo_config(steps: int | None, seed: int) -> Config:
    """The demo recipe with a seed and, unless it is None, a number of steps."""
    config = dataclasses.replace(get_recipe("demo"), seed=seed)
    if steps is None:
        return config
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def _explain(out: Path, summary: dict, probes: ProbeReport, seconds: float, console: Console) -> None:
    table = Table("modality", box=None)
    for title in ("hidden-patch error / predicting the mean", "predictable share"):
        table.add_column(title, justify="right")
    for name, entry in summary["errors"].items():
        table.add_row(name, _number(entry["error"]), _number((entry["predictable_share"] or {}).get("total")))
    console.print(
        "\nHow well hidden patches of held-out subjects are rebuilt; 1 knows no more than the mean, 0 is perfect."
    )
    console.print("The predictable share is what a linear map from all other patches nearby can explain of them.")
    console.print(table)
    console.print("\nWhat linear probes read from the frozen encoder, beside an untrained one and plain band powers:")
    print_probes(probes, console)
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in summary["seconds"].items())
    console.print(
        f"\n{summary['throughput']['windows_per_s']:.0f} windows/s in training; {spent}; {seconds:.0f} s in all."
    )
    say(console, f"Look at {out / 'report.html'}; the same numbers are in {out / 'summary.json'}.")


def _number(value: float | None) -> str:
    """Format a number; "" for None, the predictable share of a modality that held-out recordings lack."""
    return "" if value is None else f"{value:.3f}"
