"""Command line of the gate, `python -m benchmarks.gate`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, gate
from benchmarks.gate import runner, verdicts
from benchmarks.gate.verdicts import Verdict

SECONDS = 530.0
"""That the whole gate may take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all holds, 1 something fails, 3 nothing fails and something was not measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=gate.__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was found, also when cut off")
    parser.add_argument("--rehearse", action="store_true", help="run every section on a CPU in small, timing nothing")
    parser.add_argument("--processes", action="store_true", help="rehearse in processes, as sections run on a GPU")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="some sections")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all of it (default {SECONDS:g})")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # one, for its own process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rehearse:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports kernels
        from benchmarks.interpreter import patch_once

        patch_once()
    from benchmarks.gate.sections import SECTIONS

    unknown = sorted(set(options.only or ()) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    chosen = [section for name, section in SECTIONS.items() if not options.only or name in options.only]
    if options.section:
        return _one(SECTIONS[options.section], options.folder, options.rehearse)
    if not options.rehearse and not torch.cuda.is_available():
        return _nothing_measured(chosen, options.json)
    with tempfile.TemporaryDirectory(prefix="physiofast-gate-") as name:
        return _all(chosen, options, Path(name))


def _all(chosen: Sequence[runner.Section], options: argparse.Namespace, folder: Path) -> int:
    report = Report(options.json, chosen, folder)
    if options.rehearse and not options.processes:
        from benchmarks.gate.context import Context

        torch.set_num_threads(1)  # of tiny work; more would wait for each other
        runner.in_this_process(chosen, Context.rehearsal(folder), folder, measures=False)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # an exception, so that sections are stopped too
        deadline = time.monotonic() + options.seconds
        command = functools.partial(_command, folder, options.rehearse)
        runner.in_processes(chosen, command, folder, deadline, report.show)
    return report.finish()


class Report:
    """Shows what sections found, and writes all of it into one JSON file whenever one ends.

    Args:
        path: of the file, if there is to be one.
        sections: whose notebooks are read.
        folder: of the notebooks.
    """

    def __init__(self, path: Path | None, sections: Sequence[runner.Section], folder: Path) -> None:
        self._path, self._sections, self._folder = path, sections, folder
        self._about = environment.describe()
        self._began = time.monotonic()
        print(", ".join(f"{key} {value}" for key, value in self._about["machine"].items()), flush=True)

    def show(self, section: runner.Section) -> None:
        """Print a section that has ended; renew the file."""
        print(f"-- {section.name}, {time.monotonic() - self._began:.0f} s", flush=True)
        for verdict in verdicts.read(self._folder / f"{section.name}.jsonl")[0]:
            print(verdict.line(), flush=True)
        self._collect()

    def finish(self) -> int:
        """Print the sum of it; the exit status."""
        found = self._collect()
        counts = {outcome: sum(v.outcome == outcome for v in found) for outcome in ("holds", "FAILS", "not measured")}
        print(f"\n{', '.join(f'{count} {outcome}' for outcome, count in counts.items())}; {self._seconds()} s")
        for verdict in found:
            if verdict.outcome == "FAILS":
                print(verdict.line())
        return verdicts.status(found)

    def _seconds(self) -> int:
        return round(time.monotonic() - self._began)

    def _collect(self) -> list[Verdict]:
        found: list[Verdict] = []
        document: dict[str, Any] = dict(self._about)
        for section in self._sections:
            lines, data = verdicts.read(self._folder / f"{section.name}.jsonl")
            found += lines
            for key, value in data.items():
                document[key] = document.get(key, []) + value if isinstance(value, list) else value
        if self._path:
            document |= {"elapsed_s": self._seconds(), "verdicts": [dataclasses.asdict(v) for v in found]}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(document, indent=1, default=str) + "\n")
        return found


def _one(section: runner.Section, folder: Path, rehearses: bool) -> int:
    """A section in this process, which was started for it."""
    from benchmarks.gate.context import Context

    notebook = verdicts.Notebook(section.name, folder / f"{section.name}.jsonl", measures=not rehearses)
    ended = runner.attempt(section, Context.rehearsal(folder) if rehearses else Context.on_gpu(folder), notebook)
    return 0 if ended else runner.UNFINISHED  # what failed is in the notebook


def _command(folder: Path, rehearses: bool, section: str) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gate", "--section", section, "--folder", str(folder)]
    return command + ["--rehearse"] * rehearses


def _nothing_measured(sections: Sequence[runner.Section], path: Path | None) -> int:
    """Say which rows a GPU would give."""
    found = [
        Verdict(section=section.name, text=row, outcome="not measured", found="PyTorch sees no CUDA device")
        for section in sections
        for row in section.rows
    ]
    for verdict in found:
        print(verdict.line())
    if path:
        document = environment.describe() | {"verdicts": [dataclasses.asdict(verdict) for verdict in found]}
        path.write_text(json.dumps(document, indent=1) + "\n")
    return verdicts.status(found)


if __name__ == "__main__":
    sys.exit(main())
