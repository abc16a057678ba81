"""Runs sections: in processes of their own with a time each, or one after the other in this one."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gate import verdicts
from benchmarks.gate.verdicts import DeviceLostError, Notebook

UNFINISHED = 4
"""Exit status of a section's process that has said itself why it did not come to its end."""
Command = Callable[[str], list[str]]
"""Name of a section -> what to execute for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Part of the gate."""

    name: str
    run: Callable[..., None]
    """Takes a `Context` and a `Notebook`."""
    seconds: float
    """It is stopped when it takes longer."""
    phase: int
    """Sections of one phase run side by side; what is timed has a phase to itself."""
    rows: tuple[str, ...]
    """What it tells, for when there is no GPU to tell it."""


def in_processes(
    sections: Sequence[Section],
    command: Command,
    folder: Path,
    deadline: float,
    finished: Callable[[Section], None],
) -> None:
    """Phase after phase, every section in a process.

    Args:
        sections: in any order.
        command: of each.
        folder: of notebooks and logs.
        deadline: on `time.monotonic`; no section runs on beyond it.
        finished: called whenever one has ended, so that what is known is written down.
    """
    for phase in sorted({section.phase for section in sections}):
        running: dict[str, tuple[Section, subprocess.Popen, float]] = {}
        if time.monotonic() >= deadline:
            for section in (section for section in sections if section.phase == phase):
                _not_begun(section, folder)
                finished(section)
            continue
        try:
            for section in (section for section in sections if section.phase == phase):
                log = (folder / f"{section.name}.log").open("w")
                process = subprocess.Popen(command(section.name), stdout=log, stderr=log, start_new_session=True)
                ends = min(time.monotonic() + section.seconds, deadline)
                running[section.name] = (section, process, ends)
                log.close()
            while running:
                for name, (section, process, ends) in list(running.items()):
                    if process.poll() is None and time.monotonic() < ends:
                        continue
                    _close(section, process, folder, "no more time was left" if ends == deadline else "")
                    del running[name]
                    finished(section)
                time.sleep(0.05)
        finally:  # whoever stops this also stops what it has started
            for _, process, _ in running.values():
                _kill(process)


def _not_begun(section: Section, folder: Path) -> None:
    notebook = Notebook(section.name, folder / f"{section.name}.jsonl", True)
    for row in section.rows:
        notebook.skip(row, "no time was left")


def _close(section: Section, process: subprocess.Popen, folder: Path, reason: str) -> None:
    """End a section and what it has started, and say how it ended, unless it ended well.

    Args:
        section: its name, rows and seconds.
        process: of the section, which may have ended.
        folder: of notebooks and logs.
        reason: why it may run no longer; empty for its own seconds.
    """
    path = folder / f"{section.name}.jsonl"
    notebook, log = Notebook(section.name, path, True), folder / f"{section.name}.log"
    runs = process.poll() is None
    _kill(process)
    if runs:
        notebook.judge("ends within its time", False, f"cut off; {reason or f'{section.seconds:g} s are allowed'}")
    elif process.returncode not in (0, UNFINISHED):
        notebook.judge("ends well", False, f"status {process.returncode}: {_last_lines(log)}")
    elif not process.returncode:
        return
    told = verdicts.read(path)[1].get(verdicts.TOLD, [])
    for row in section.rows:
        if row not in told:
            notebook.skip(row, "the section ended before all of it was told")


def _kill(process: subprocess.Popen) -> None:
    """A section's process, which may have ended, and all that it started: they are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # what hangs in a driver cannot be killed
        process.wait(10)


def _last_lines(log: Path, characters: int = 600) -> str:
    return " | ".join(log.read_text(errors="replace").strip()[-characters:].splitlines())


def in_this_process(sections: Sequence[Section], context: object, folder: Path, measures: bool) -> None:
    """One section after the other; an exception is a red line."""
    for section in sorted(sections, key=lambda section: section.phase):
        gc.freeze()  # what earlier ones compiled stays, and no collection of garbage between times looks at it again
        attempt(section, context, Notebook(section.name, folder / f"{section.name}.jsonl", measures))


def attempt(section: Section, context: object, notebook: Notebook) -> bool:
    """Run a section; whether it ended without an exception."""
    began = time.monotonic()
    try:
        section.run(context, notebook)
    except DeviceLostError as lost:
        notebook.skip(f"what comes after {lost}", "the device context is lost")
        return False
    except Exception:
        trace = io.StringIO()
        traceback.print_exc(file=trace)
        print(trace.getvalue())
        notebook.judge("ends well", False, " | ".join(trace.getvalue().strip().splitlines()[-3:]))
        return False
    finally:
        notebook.keep("seconds", [{"section": section.name, "seconds": round(time.monotonic() - began, 2)}])
    return True
