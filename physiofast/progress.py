"""Display of progress: one live line on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from physiofast.support.strictjson import strict


class Bar(Protocol):
    """A running task, whose finished steps are counted."""

    def advance(self, steps: int) -> None:
        """Count `steps` more as finished."""


class Progress:
    """Progress that shows nothing; the base class of the two visible kinds, and the default of library functions."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Open a task of `total` steps, of which `done` are finished."""
        yield _Silent()

    def note(self, line: dict[str, Any]) -> None:
        """Show the newest numbers of the running task."""

    def say(self, text: str) -> None:
        """Show a sentence, unless it is empty."""


class _Silent:
    def advance(self, steps: int) -> None:
        pass


class TerminalProgress(Progress):
    """Shows one live line: name, bar, count, remaining time and newest numbers, which a narrow terminal cuts off."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: RichProgress | None = None
        self._task: Any = None

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Open a task of `total` steps, of which `done` are finished."""
        columns = (
            TextColumn("{task.description:<7}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("eta", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
        )
        # What is printed meanwhile goes above the line, but never from a pipe or file to the terminal.
        redirect = sys.stdout.isatty()
        with RichProgress(*columns, console=self._console, expand=True, redirect_stdout=redirect) as live:
            self._live, self._task = live, live.add_task(name, total=total, completed=done, note="")
            try:
                yield _RichBar(live, self._task)
            finally:
                self._live = None

    def note(self, line: dict[str, Any]) -> None:
        """Show the newest numbers of the running task."""
        if self._live is not None:
            self._live.update(self._task, note=summarise(line))

    def say(self, text: str) -> None:
        """Show a sentence, unless it is empty."""
        if text:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _RichBar:
    def __init__(self, live: RichProgress, task: Any) -> None:
        self._live, self._task = live, task

    def advance(self, steps: int) -> None:
        self._live.advance(self._task, steps)


class JsonProgress(Progress):
    """Prints one JSON object per line: a task's newest numbers, its end, and sentences for the user."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._name, self._left = "", _Countdown(0)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Open a task of `total` steps, of which `done` are finished."""
        self._name, self._left = name, _Countdown(total - done)
        yield self._left
        self._print({"task": name, "total": total, "seconds": round(self._left.elapsed_s, 2)})

    def note(self, line: dict[str, Any]) -> None:
        """Print the newest numbers of the running task, and the estimated seconds until its end."""
        self._print({"task": self._name, **line, "eta_s": self._left.eta_s})

    def say(self, text: str) -> None:
        """Print a sentence, unless it is empty."""
        if text:
            self._print({"note": text})

    def _print(self, line: dict[str, Any]) -> None:
        print(json.dumps(strict(line, digits=4), allow_nan=False), file=self._stream, flush=True)


class _Countdown:
    def __init__(self, steps: int) -> None:
        self._steps, self._done, self._began = steps, 0, time.perf_counter()

    def advance(self, steps: int) -> None:
        self._done += steps

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    @property
    def eta_s(self) -> float | None:
        return self.elapsed_s / self._done * (self._steps - self._done) if self._done else None


def summarise(line: dict[str, Any]) -> str:
    """Shorten the numbers of a training step to one line: windows/s and the loss of each modality, `EEG .61`."""
    parts = [f"{line['windows_per_s']:.0f} windows/s"] if "windows_per_s" in line else []
    parts += [f"{key.removeprefix('loss.')} {_short(value)}" for key, value in line.items() if key.startswith("loss.")]
    return " ".join(parts)


def _short(value: float) -> str:
    """Write a loss in three characters, as long as it is below 1000."""
    if value < 0.995:
        return f"{value:.2f}".removeprefix("0")
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def make_progress(console: Console | None = None) -> Progress:
    """Make progress for standard error: a live line on a terminal, JSON lines elsewhere."""
    console = console or Console(stderr=True)
    return TerminalProgress(console) if console.is_terminal else JsonProgress()
