"""Time physiofast against what a Python user has today: `python -m benchmarks.run windowing [--json FILE]`.

Every provider is checked first: one with a wrong result gets no time. Exits with 1 when a result is wrong or a
required ratio is missed. With `--json`, everything is written to FILE and drawn beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, environment, plot, table
from benchmarks.harness import Row, measure
from benchmarks.studies import Study
from benchmarks.workspace import Workspace
from physiofast import synthetic

_SHORTEST_HOURS = 0.01
"""Of recordings."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="groups, cases or studies; --list names them")
    parser.add_argument("--list", action="store_true", help="name groups, cases and studies, and exit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured, and draw it beside FILE")
    parser.add_argument("--repeats", type=_positive, default=5, help="rounds in which every provider has its turn")
    parser.add_argument("--hours", type=_hours, default=8.0, help="length of the recordings (default: 8)")
    parser.add_argument("--threads", type=_positive, nargs="+", default=[1, 2], help="numbers of threads of ours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the group `ops` (default: cpu)")
    parser.add_argument("--patch", type=int, choices=(100, 128), default=128, help="samples of a patch on a GPU")
    parser.add_argument(
        "--max-autotune",
        action="store_true",
        help=f"of the group `ops`, time alternatives by torch.compile in its mode {cases.AUTOTUNE} too, which takes "
        "tens of seconds to compile each",
    )
    options = parser.parse_args(arguments)
    if options.list or not options.names:
        _print_names()
        return 0
    try:
        names = cases.resolve(options.names)
    except ValueError as error:
        parser.error(str(error))
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device; leave it out, or see `physiofast doctor`")
    hours = synthetic.BOUNDS["hours"]  # what `prepare` is given is a synthetic cohort
    if "prepare" in names and options.hours not in hours:
        parser.error(f"--hours: of prepare it must be {hours}; found {options.hours:g}")
    if options.json and (problem := _refusal(options.json)):
        parser.error(f"--json: {problem}; nothing was timed yet")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # wfdb's and mne's, about pandas and numpy
    about = environment.describe()
    print(table.heading(about))
    with tempfile.TemporaryDirectory(prefix="physiofast-bench-") as folder:
        on = (tuple(options.threads), options.device, options.patch, options.max_autotune)
        space = Workspace(Path(folder), options.hours, *on)
        try:
            rows, studies = run(names, space, options.repeats, about["machine"]["copy_gb_per_s"])
        except ModuleNotFoundError as error:
            parser.exit(2, f"{error}; install what the peers need with: pip install 'physiofast[bench]'\n")
    if rows:
        print(table.summary(rows))
    if options.json:
        _write(options.json, about, options, rows, studies)
    return 0 if good(rows, studies) else 1


def run(names: Sequence[str], space: Workspace, repeats: int, copy_gb_per_s: float) -> tuple[list[Row], list[Study]]:
    """Run cases and studies one after the other, printing each as it ends."""
    rows, studies = [], []
    for name in names:
        if name in cases.CASES:
            with space.on.stream():
                found = measure(cases.CASES[name](space), repeats)
            print(table.details(found, copy_gb_per_s), flush=True)
            rows += found
        else:
            study = cases.STUDIES[name](space, repeats)
            print(table.study(study), flush=True)
            studies.append(study)
    return rows, studies


def good(rows: Sequence[Row], studies: Sequence[Study]) -> bool:
    """Whether every result is right and every requirement is reached."""
    claims = [claim.holds for study in studies for claim in study.claims]
    return all(row.checked and row.holds is not False for row in rows) and False not in claims


def _write(
    path: Path, about: dict[str, Any], options: argparse.Namespace, rows: Sequence[Row], studies: Sequence[Study]
) -> None:
    settings = {"names": options.names, "hours": options.hours, "repeats": options.repeats, "threads": options.threads}
    settings |= {"device": options.device, "patch": options.patch, "max_autotune": options.max_autotune}
    document = about | {
        "settings": settings,
        "rows": [dataclasses.asdict(row) for row in rows],
        "studies": {study.name: dataclasses.asdict(study) for study in studies},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print("wrote", ", ".join(map(str, [path, *plot.draw(path)])))


def _refusal(path: Path) -> str | None:
    """Why a file cannot be written, after minutes of timing; None where it can, and then its folder is there."""
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    if is_new:
        path.unlink()
    return None


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number") from None
    if not _SHORTEST_HOURS <= hours < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not {_SHORTEST_HOURS} or more: a window has 30 s")
    return hours


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _print_names() -> None:
    for title, names in (("groups", cases.GROUPS), ("cases", cases.CASES), ("studies", cases.STUDIES)):
        print(f"{title}: {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())
