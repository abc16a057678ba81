"""What the commands print about recordings, stores and probes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from physiofast.io import find_records, open_recording
from physiofast.labels import events
from physiofast.prepare import PrepareConfig, PrepareReport, Survey, refusals, survey
from physiofast.probing.results import ProbeReport


def inspect_path(path: Path, config: PrepareConfig) -> list[Survey]:
    """The survey of every record below a path; one that cannot be read comes with its error."""
    surveys = []
    records = find_records(path)
    for found, refusal in zip(records, refusals(records, config), strict=True):
        try:
            recording = open_recording(found)
            looked = survey(recording, config)
        except (ValueError, OSError) as error:
            surveys.append(_unreadable(found.record_id, str(error)))
            continue
        notes = (*looked.warnings, *events(recording)[1])
        errors = looked.errors if refusal is None or refusal in looked.errors else (refusal, *looked.errors)
        surveys.append(dataclasses.replace(looked, warnings=notes, errors=errors))
    return surveys


def _unreadable(record: str, reason: str) -> Survey:
    return Survey(
        record=record,
        subject=record,
        age_years=None,
        sex=None,
        hours=0.0,
        windows=0,
        channels=(),
        ignored=(),
        stage_hours={},
        warnings=(),
        errors=(reason,),
    )


def print_surveys(surveys: Sequence[Survey], console: Console) -> None:
    """One table per record, then what would be dropped or refused, and why."""
    for found in surveys:
        person = f"{_or_unknown(found.age_years, ' years')}, sex {found.sex or 'unknown'}"
        console.print(f"[bold]{found.record}[/bold]  {found.hours:.2f} h, {found.windows} windows, age {person}")
        if found.channels:
            console.print(_channel_table(found))
        if found.stage_hours:
            hours = "  ".join(f"{stage} {value:.2f}" for stage, value in found.stage_hours.items())
            console.print(f"hours per stage: {hours}")
        for name, rate, unit in found.ignored:
            console.print(f"ignored: {name} ({rate:g} Hz, {unit or 'no unit'}): not in the montage")
        for name, reason in found.drops.items():
            console.print(f"[yellow]dropped[/yellow] {name}: {reason}")
        for warning in found.warnings:
            console.print(f"[yellow]note[/yellow] {warning}")
        for error in found.errors:
            console.print(f"[red]refused[/red] {error}")
        console.print()


def _channel_table(found: Survey) -> Table:
    table = Table("channel", "in the file", "modality", box=None)
    for title in ("Hz", "to Hz", "unit", "flat %", "clipped %", "NaN %", "valid %"):
        table.add_column(title, justify="right")
    for channel in found.channels:
        shares = (channel.flat_share, channel.clipped_share, channel.missing_share, channel.valid_share)
        table.add_row(
            channel.name,
            channel.source or "absent",
            channel.modality,
            "" if channel.rate_hz is None else f"{channel.rate_hz:g}",
            f"{channel.target_hz:g}",
            channel.unit or "",
            *("" if share is None else f"{100 * share:.1f}" for share in shares),
        )
    return table


def _or_unknown(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:g}{unit}"


def print_prepared(report: PrepareReport, console: Console) -> None:
    """What `prepare` did, with every failure and its reason."""
    console.print(
        f"{len(report.processed)} records prepared, {len(report.skipped)} were there already, "
        f"{len(report.failed)} failed: {report.hours:.1f} h in {report.out}, {report.seconds:.1f} s"
    )
    for record, reason in report.failed:
        console.print(f"[red]failed[/red] {record}: {reason}", soft_wrap=True)
    if report.unlisted:
        console.print(f"not of this run, left alone: {', '.join(report.unlisted)}")
    if report.processed or report.skipped:
        console.print(f"Next: physiofast train RECIPE --store {report.out}")


def print_probes(report: ProbeReport, console: Console) -> None:
    """One line per task: the headline score of each feature set and the paired differences."""
    table = Table("task", "score", box=None)
    names = list(dict.fromkeys(name for task in report.tasks.values() for name in task.models))
    for name in names:
        table.add_column(name, justify="right")
    pairs = list(dict.fromkeys(pair for task in report.tasks.values() for pair in task.differences))
    for pair in pairs:
        table.add_column(pair, justify="right")
    for task in report.tasks.values():
        if task.status != "ok":
            table.add_row(task.task, task.status)
            continue
        cells = [task.models[name].scores[task.headline] for name in names]
        cells += [task.differences[pair][task.headline] for pair in pairs]
        table.add_row(task.task, task.headline, *(_interval(dataclasses.asdict(cell)) for cell in cells))
    console.print(table)
    console.print(
        f"{len(report.test_subjects)} held-out subjects; in brackets the interval over resampled subjects. "
        "A difference whose interval excludes 0 is real."
    )


def _interval(cell: dict) -> str:
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
