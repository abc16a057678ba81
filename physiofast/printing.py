"""Prints what the commands report about recordings, stores and probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from physiofast.preparation import ChannelInspection, Inspection, PrepareReport
from physiofast.probing.metrics import Estimate
from physiofast.probing.results import ProbeReport, TaskResult
from physiofast.support.messages import command, counted, first_names

_PIPE_COLUMNS = 240
"""Width for output that is not a terminal, for which rich assumes 80 columns and cuts tables."""
_SHOWN_NOTES = 5
"""Largest number of records whose notes `prepare` prints."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # as print does; rich would end the process with status 1, which means an error


def make_console() -> Console:
    """A console for standard output, as wide as the terminal; in a pipe or file wide enough for every table."""
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=_PIPE_COLUMNS)


def say(console: Console, text: str, label: str = "", style: str = "") -> None:
    """Print a text verbatim, after a styled label.

    Brackets, which names of files may contain, are not interpreted as markup, and the terminal wraps long lines.
    """
    console.print(Text.assemble((label, style), " " if label and text else "", text), soft_wrap=True)


def print_inspection(found: Inspection, console: Console) -> None:
    """Print a table of a record's channels, then what would be dropped or refused, and why."""
    age = "unknown" if found.age_years is None else f"{found.age_years:g} years"
    subject = "" if found.subject == found.record else f"subject {found.subject}, "
    person = f"{subject}age {age}, sex {found.sex or 'unknown'}"
    say(console, f" {found.hours:.2f} h, {found.windows} windows, {person}", found.record, "bold")
    present = [channel for channel in found.channels if channel.source is not None]
    if present:
        console.print(_channel_table(found, console.width))
    absent = [channel.name for channel in found.channels if channel.source is None]
    if absent:
        say(console, ", ".join(absent), "absent:")
    if found.stage_hours:
        hours = "  ".join(f"{stage} {value:.2f}" for stage, value in found.stage_hours.items())
        say(console, hours, "hours per stage:")
    for name, rate, unit in found.ignored:
        say(console, f"{name} ({rate:g} Hz, {unit or 'no unit'}): {_why_ignored(found, name)}", "ignored:")
    for channel in present:
        if channel.drop is not None:
            say(console, f"{channel.name}: {channel.drop}", "dropped", "yellow")
    for warning in found.warnings:
        say(console, warning, "note", "yellow")
    for error in found.errors:
        say(console, error, "refused", "red")
    say(console, "")


def _why_ignored(found: Inspection, name: str) -> str:
    if name in found.duplicates:
        return _second(next(channel for channel in found.channels if channel.name == found.duplicates[name]))
    near = next((channel for channel in found.channels if channel.name == found.near.get(name)), None)
    if near is None:
        return "not in the montage"
    return f"not in the montage; nearest is {near.name}{f', which is {near.source} here' if near.source else ''}"


def _second(used: ChannelInspection) -> str:
    """Why a duplicate is not used: the channel that is used instead."""
    assert used.rate_hz is not None
    which = f"{used.source} ({used.rate_hz:g} Hz, {used.unit or 'no unit'})"
    if used.drop is None:
        return f"a second {used.name}; the first whose rate and unit fit is used, {which}"
    return f"a second {used.name}, beside {which}, which is dropped; to use this one, leave that out of the file"


def _channel_table(found: Inspection, width: int) -> Table:
    """A table of the channels that the file has; in a narrow terminal without pops and values out of range."""
    wide = width > 90
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False)
    for title in ("channel", "in the file", "modality"):
        table.add_column(title, no_wrap=True)
    for title in ("Hz", "to Hz", "unit", "flat %", "clip %", "NaN %", *("pop %", "out %") * wide, "valid %"):
        table.add_column(title, justify="right")
    for channel in found.channels:
        if channel.source is None:
            continue
        more = (channel.popped_share, channel.out_of_range_share) * wide
        shares = (channel.flat_share, channel.clipped_share, channel.missing_share, *more, channel.valid_share)
        cells = (
            channel.name,
            channel.source,
            channel.modality,
            "" if channel.rate_hz is None else f"{channel.rate_hz:g}",
            f"{channel.target_hz:g}",
            channel.unit or "",
            *("" if share is None else f"{100 * share:.1f}" for share in shares),
        )
        table.add_row(*map(Text, cells))
    return table


def print_prepared(report: PrepareReport, console: Console) -> None:
    """Print what `prepare` did, with the reason of every failure."""
    say(
        console,
        f"{len(report.processed)} records prepared, {len(report.skipped)} were there already, "
        f"{len(report.failed)} failed: {report.hours:.1f} h in {report.out}, {report.seconds:.1f} s",
    )
    for record, reason in report.failed:
        say(console, f"{record}: {reason}", "failed", "red")
    noted = list(dict.fromkeys(record for record, _ in report.notes))
    for record, note in report.notes:
        if record in noted[:_SHOWN_NOTES]:
            say(console, f"{record}: {note}", "note", "yellow")
    if len(noted) > _SHOWN_NOTES:
        say(console, f"on {len(noted)} records in all; see {report.out / 'manifest.json'}", "notes", "yellow")
    for line in _dropped(report):
        say(console, line, "dropped", "yellow")
    if report.unlisted:
        say(console, first_names(report.unlisted), "not of this run, left alone:")
    if report.processed or report.skipped:
        say(console, f"Next: {command('train', 'RECIPE', '--store', report.out)}")


def _dropped(report: PrepareReport) -> Iterator[str]:
    """Yield a line for each channel that was dropped from some recordings."""
    count = len(report.processed) + len(report.skipped)
    for name in dict.fromkeys(channel for _, channel, _ in report.dropped):
        reasons = [reason for _, channel, reason in report.dropped if channel == name]
        others = len(set(reasons)) - 1
        more = f"; other reasons ({others}) are in {report.out / 'manifest.json'}" if others else ""
        yield f"{name} in {len(reasons)} of {count} records: {reasons[0]}{more}"


def print_probes(report: ProbeReport, console: Console) -> None:
    """Print the headline score of each task and feature set, then the paired differences and how to read them."""
    table = Table(box=None)
    table.add_column("task", no_wrap=True)
    table.add_column("subjects", justify="right", no_wrap=True)
    for title in ("score", "features"):
        table.add_column(title, no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    scored = [task for task in report.tasks.values() if task.status == "ok"]
    for task in scored:
        for number, (name, model) in enumerate(task.models.items()):
            task_cells = (task.task, str(task.test_subjects), task.headline) if number == 0 else ("", "", "")
            table.add_row(*map(Text, (*task_cells, name, _interval(model.scores[task.headline]))))
    if scored:
        console.print(table)
    for task in report.tasks.values():
        if task.status != "ok":
            say(console, f"{task.task}: {task.status}")
    pairs = [(task, pair) for task in scored for pair in task.differences]
    if pairs:
        say(console, "Paired differences:")
    for task, pair in pairs:
        say(console, f"  {task.task} {task.headline}, {pair}: {_interval(task.differences[pair][task.headline])}")
    for line in _how_to_read(len(report.test_subjects), scored):
        say(console, line)


def _how_to_read(subjects: int, scored: Sequence[TaskResult]) -> Iterator[str]:
    """Yield what the numbers of the table are, and a caution for each task that has labels of few subjects."""
    held_out = counted(subjects, "held-out subject")
    yield f"{held_out}; each score is over those with a label. In brackets the interval over resampled subjects."
    yield from (f"{task.task}: {task.caution}." for task in scored if task.caution)
    if not all(task.caution for task in scored):
        yield "A paired difference whose interval excludes 0 is unlikely to be chance."


def _interval(score: Estimate) -> str:
    if math.isnan(score.low):
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
