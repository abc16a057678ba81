"""Renders the page of a report from the sections of a run folder."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from physiofast.probing.metrics import METRICS
from physiofast.report import sections
from physiofast.report.numbers import interval, number, pretty, signed_number
from physiofast.runfolder.initial import describe_initial
from physiofast.support.atomic import atomic_path
from physiofast.support.messages import command, counted
from physiofast.support.paths import given_path

_FROM_PROBE = ("probe.json", "attention.json", "predictions.npz", "reconstruction.npz")
"""Files of a run folder that `physiofast probe` writes; `physiofast train` writes the others."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: its content, or the reason why there is none."""

    content: Mapping[str, Any] | None = None
    """Values for the template; None if the section cannot be shown."""
    problem: str = ""
    """Why the section cannot be shown."""
    command: str = ""
    """The command line that makes the missing or broken file."""


def write_report(run: str | os.PathLike[str]) -> Path:
    """Write `RUN/report.html` from the files in a run folder.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: `run` is not a folder.
    """
    run = given_path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is not a run folder; `physiofast train RECIPE` makes one")
    page = render_report(run)
    target = run / "report.html"
    with atomic_path(target) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8
    return target


def render_report(run: Path) -> str:
    """Render the report of a run folder as HTML text."""
    shown = {
        "errors": _section(run, "metrics.jsonl", sections.of_errors),
        "probes": _section(run, "probe.json", sections.of_probes),
        "speed": _section(run, "metrics.jsonl", sections.of_speed),
        "curves": _section(run, "metrics.jsonl", sections.of_curves),
        "rebuilt": _section(run, "reconstruction.npz", sections.of_rebuilt),
        "spectra": _section(run, "reconstruction.npz", sections.of_spectra),
        "attention": _section(run, "attention.json", sections.of_attention),
        "hypnogram": _section(run, "predictions.npz", sections.of_hypnogram),
        "recordings": _section(run, "prepare.json", sections.of_recordings),
        "config": _section(run, "config.json", lambda run: sections.of_rows(run / "config.json")),
        "environment": _section(run, "environment.json", lambda run: sections.of_rows(run / "environment.json")),
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "num": number,
        "signed": signed_number,
        "interval": interval,
        "pretty": pretty,
        "counted": counted,
    }
    source = resources.files("physiofast.report").joinpath("templates/report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        run=run.resolve().name, began=_began(run), sections=shown, tiles=_tiles(shown), metrics=METRICS
    )


def _began(run: Path) -> str:
    try:
        return describe_initial(run)
    except (ValueError, OSError) as error:
        return f"What it began with could not be shown: {error}"


def _section(run: Path, file: str, build: Callable[[Path], Mapping[str, Any]]) -> Section:
    """Build a section from a file of the run folder, or say why that fails and which command makes the file."""
    try:
        return Section(content=build(run))
    except FileNotFoundError:
        problem = f"{file} is not in this run folder."
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        problem = f"{file} could not be shown: {f'no entry {error}' if isinstance(error, KeyError) else error}"
    maker = command("probe", run) if file in _FROM_PROBE else command("train", "RECIPE")
    return Section(problem=problem, command=maker)


def _tiles(shown: Mapping[str, Section]) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = []
    probes, errors, speed = (shown[name].content for name in ("probes", "errors", "speed"))
    stage = probes["report"].tasks.get("stage") if probes else None
    if probes and stage and stage.status == "ok":
        when = f", after step {probes['report'].step}" if probes["other_step"] else ""
        on = counted(stage.test_subjects, "held-out subject") + (", too few for an interval" if stage.caution else "")
        label = f"sleep stage, {METRICS[stage.headline].label} on {on}{when}"
        first = next(iter(stage.models.values())).scores[stage.headline]
        tiles.append({"label": label, "score": first, "signed": False, "interval": not stage.caution})
        for pair, scores in list(stage.differences.items())[:1]:
            gain = {"label": f"{pretty(pair)}, paired", "score": scores[stage.headline], "signed": True}
            tiles.append(gain | {"interval": not stage.caution})
    if errors:
        rows = [row for row in errors["rows"] if math.isfinite(row["error"])]
        for row in sorted(rows, key=lambda row: row["error"])[:1]:
            label = f"hidden-patch error over predicting the mean, {row['modality']} (the best; lower is better)"
            tiles.append({"label": label, "value": row["error"], "digits": 2})
    if speed and speed["windows_per_s"]:
        tiles.append({"label": "windows per second in training", "value": speed["windows_per_s"], "digits": 0})
    return tiles
