"""One self-contained HTML page about a run: no network, no scripts, figures inline.

The files it reads and their schemas are described in `physiofast.runfolder`. A section whose file is missing
or broken says so and names the command that makes it; the other sections are written all the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from physiofast.labels import STAGES
from physiofast.montage import MODALITIES
from physiofast.probing.metrics import METRICS, Estimate
from physiofast.probing.results import TaskResult
from physiofast.report import figures
from physiofast.runfolder.files import (
    Reconstruction,
    Stages,
    load_attention,
    load_metrics,
    load_probes,
    load_reconstruction,
    load_stages,
    load_summary,
)
from physiofast.runfolder.initial import describe_initial
from physiofast.support.atomic import atomic_path
from physiofast.support.strictjson import load_json

_MADE_BY = {
    "metrics.jsonl": "physiofast train RECIPE",
    "summary.json": "physiofast train RECIPE",
    "probe.json": "physiofast probe RUN",
    "attention.json": "physiofast probe RUN",
    "predictions.npz": "physiofast probe RUN",
    "reconstruction.npz": "physiofast probe RUN",
    "prepare.json": "physiofast train RECIPE",
    "config.json": "physiofast train RECIPE",
    "environment.json": "physiofast train RECIPE",
}
_MAX_ROWS = 100
_CHANNELS_PER_MODALITY = 2
_SEGMENT_S = 4.0
_MIN_SEGMENTS = 8
_SPECTRUM_TOP_HZ = {"RESP": 4.0, "SPO2": 2.0}


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: its content, or why there is none."""

    content: Mapping[str, Any] | None = None
    """What the template shows."""
    problem: str = ""
    """Why there is no content."""
    command: str = ""
    """What makes the missing file."""


def write_report(run: Path) -> Path:
    """Write `RUN/report.html` from the files in a run folder.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: `run` is not a folder.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is not a run folder; `physiofast train RECIPE` makes one")
    page = render_report(run)
    target = run / "report.html"
    with atomic_path(target) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8
    return target


def render_report(run: Path) -> str:
    """The page as text."""
    sections = {
        "errors": _section(run, "metrics.jsonl", _errors),
        "probes": _section(run, "probe.json", _probes),
        "speed": _section(run, "metrics.jsonl", _speed),
        "curves": _section(run, "metrics.jsonl", _curves),
        "rebuilt": _section(run, "reconstruction.npz", _rebuilt),
        "spectra": _section(run, "reconstruction.npz", _spectra),
        "attention": _section(run, "attention.json", _attention),
        "hypnogram": _section(run, "predictions.npz", _hypnogram),
        "recordings": _section(run, "prepare.json", _recordings),
        "config": _section(run, "config.json", lambda run: _rows(run / "config.json")),
        "environment": _section(run, "environment.json", lambda run: _rows(run / "environment.json")),
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"num": _number, "signed": _signed, "interval": _interval, "pretty": _pretty}
    source = resources.files("physiofast.report").joinpath("templates/report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        run=run.resolve().name, began=_began(run), sections=sections, tiles=_tiles(sections), metrics=METRICS
    )


def _began(run: Path) -> str:
    try:
        return describe_initial(run)
    except (ValueError, OSError) as error:
        return f"What it began with could not be shown: {error}"


def _section(run: Path, file: str, build: Callable[[Path], Mapping[str, Any]]) -> Section:
    try:
        return Section(content=build(run))
    except FileNotFoundError:
        return Section(problem=f"{file} is not in this run folder.", command=_MADE_BY[file].replace("RUN", str(run)))
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        return Section(problem=f"{file} could not be shown: {reason}", command=_MADE_BY[file].replace("RUN", str(run)))


def _errors(run: Path) -> Mapping[str, Any]:
    summary = load_summary(run)
    found = summary.get("errors")
    if found is None:
        last = {name: values[-1] for name, (_, values) in load_metrics(run / "metrics.jsonl").errors().items()}
        if not last:
            raise ValueError("no evaluation on held-out subjects has been logged")
        found = {name: {"error": value, "predictable_share": None} for name, value in last.items()}
    rows = [_error_row(name, found[name]) for name in _in_order(found)]
    has_share = any(row["share"] for row in rows)
    missing = "" if has_share else summary.get("predictable_share_missing", "")
    return {"rows": rows, "has_share": has_share, "share_missing": missing}


def _error_row(modality: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    share = entry.get("predictable_share")
    error, total = _float(entry["error"]), _float(share["total"]) if share else math.nan
    found = (1.0 - error) / total if total >= 0.1 else math.nan
    return {"modality": modality, "error": error, "share": share, "found": found, "noise": total < 0.1}


def _probes(run: Path) -> Mapping[str, Any]:
    report = load_probes(run)
    shown = [task for task in report.tasks.values() if task.status == "ok"]
    plotted = [task for task in shown if task.classes]
    return {
        "other_step": _other_step(run, report.step),
        "report": report,
        "tasks": list(report.tasks.values()),
        "sentences": {task.task: _sentence(task) for task in shown},
        "figure": Markup(figures.probe_scores(plotted)) if plotted else None,
        "confusions": [_confusion(task) for task in plotted],
        "used": [name for name in METRICS if any(name in task.chance for task in shown)],
    }


def _sentence(task: TaskResult) -> Markup:
    metric = METRICS[task.headline]
    first, *others = task.models
    parts = [
        Markup("{}: {} <b>{}</b> on {} held-out subjects (chance {}).").format(
            _pretty(first).capitalize(),
            metric.label,
            _interval(task.models[first].scores[task.headline]),
            task.test_subjects,
            _number(task.chance[task.headline], 2),
        )
    ]
    for other in others:
        found = task.differences[f"{first} - {other}"][task.headline]
        gain = found.value if metric.better == "higher" else -found.value
        if math.isnan(found.low):
            verdict = "no interval can be given"
        elif not found.excludes_zero:
            verdict = "the interval includes 0, so no difference is shown"
        else:
            verdict = "better, the interval excludes 0" if gain > 0 else "worse, the interval excludes 0"
        parts.append(Markup("Against {}: {} ({}).").format(_pretty(other), _interval(found, signed=True), verdict))
    return Markup(" ").join(parts)


def _confusion(task: TaskResult) -> dict[str, Any]:
    name, model = next(iter(task.models.items()))
    counts = np.array(model.confusion)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [
        {
            "name": label,
            "total": int(line.sum()),
            "cells": list(zip(line.tolist(), shares.tolist(), strict=True)),
        }
        for label, line, shares in zip(task.classes, counts, share, strict=True)
    ]
    return {"task": task.task, "model": name, "classes": task.classes, "rows": rows}


def _speed(run: Path) -> Mapping[str, Any]:
    summary = load_summary(run)
    rate = summary.get("throughput", {}).get("windows_per_s")
    if rate is None:
        logged = load_metrics(run / "metrics.jsonl").steps.get("windows_per_s")
        rate = float(np.median(logged[1])) if logged else None
    seconds = summary.get("seconds", {})
    longest = max(seconds.values(), default=1.0) or 1.0
    return {
        "windows_per_s": rate,
        "seconds": [(name, value, value / longest) for name, value in seconds.items()],
        "total": sum(seconds.values()),
    }


def _curves(run: Path) -> Mapping[str, Any]:
    log = load_metrics(run / "metrics.jsonl")
    if "loss" not in log.steps:
        raise ValueError("no training step has been logged")
    by_modality = {name.removeprefix("loss."): name for name in log.steps if name.startswith("loss.")}
    loss = {"total": log.steps["loss"]} | {m: log.steps[by_modality[m]] for m in _in_order(by_modality)}
    errors = log.errors()
    error = {m: errors[m] for m in _in_order(errors)}
    lr = log.steps.get("lr", (np.zeros(0), np.zeros(0)))
    return {
        "figure": Markup(figures.training_curves(loss, error, lr)),
        "steps": int(log.steps["loss"][0][-1]),
        "evaluated": any(len(steps) > 1 for steps, _ in error.values()),
    }


def _rebuilt(run: Path) -> Mapping[str, Any]:
    found = load_reconstruction(run / "reconstruction.npz")
    if not len(found.record):
        raise ValueError("it holds no window")
    chosen, taken = [], Counter[str]()
    for trace in found.traces:
        if np.isfinite(trace.true[0]).any() and taken[trace.modality] < _CHANNELS_PER_MODALITY:
            chosen.append(trace)
            taken[trace.modality] += 1
    if not chosen:
        raise ValueError("its first window has no channel")
    figure = figures.reconstruction(
        [trace.name for trace in chosen],
        [trace.unit for trace in chosen],
        [trace.rate_hz for trace in chosen],
        [trace.true[0] for trace in chosen],
        [trace.rebuilt[0] for trace in chosen],
        [trace.hidden[0] for trace in chosen],
        found.patch_s,
    )
    return {
        "other_step": _other_step(run, found.step),
        "figure": Markup(figure),
        "record": str(found.record[0]),
        "epoch": int(found.epoch[0]),
        "windows": len(found.record),
        "left_out": len(found.traces) - len(chosen),
    }


def _spectra(run: Path) -> Mapping[str, Any]:
    found = load_reconstruction(run / "reconstruction.npz")
    density = spectra(found)
    if not density:
        raise ValueError("it has no hidden patch of a present channel")
    return {
        "other_step": _other_step(run, found.step),
        "figure": Markup(figures.spectra(density)),
        "windows": len(found.record),
    }


def spectra(found: Reconstruction) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """Power spectral density of hidden spans, averaged over the channels of a modality and all windows.

    Spans are runs of hidden patches up to 4 s long (shorter where runs of that length are rare), with the
    mean removed and a Hann taper.

    Returns:
        Modality -> (frequency in Hz, true, rebuilt, unit); densities in the squared unit per Hz.
    """
    density = {}
    for modality in _in_order({trace.modality: None for trace in found.traces}):
        traces = [trace for trace in found.traces if trace.modality == modality]
        unit, rate = traces[0].unit, traces[0].rate_hz
        traces = [trace for trace in traces if (trace.unit, trace.rate_hz) == (unit, rate)]
        pairs = _hidden_spans(traces, found.patch_s)
        length = pairs.shape[-1]
        if not len(pairs) or length < 4:
            continue
        taper = np.hanning(length)
        spectrum = np.fft.rfft((pairs - pairs.mean(-1, keepdims=True)) * taper)
        power = 2.0 * np.mean(np.abs(spectrum) ** 2, axis=0) / (rate * np.sum(taper**2))
        frequency = np.fft.rfftfreq(length, 1.0 / rate)
        shown = (frequency > 0) & (frequency <= _SPECTRUM_TOP_HZ.get(modality, 45.0))
        if np.count_nonzero(shown) > 1:
            density[modality] = (frequency[shown], power[0][shown], power[1][shown], unit)
    return density


def _hidden_spans(traces: list[Any], patch_s: float) -> np.ndarray:
    # float64 [spans, 2 (true, rebuilt), T]: the longest spans of which there are enough.
    best: list[np.ndarray] = []
    for patches in sorted({max(1, round(_SEGMENT_S / patch_s / part)) for part in (1, 2, 4, 8)}, reverse=True):
        spans = [span for trace in traces for span in _spans_of(trace, patches, patch_s)]
        if len(spans) >= _MIN_SEGMENTS:
            return np.stack(spans)
        best = best or spans
    return np.stack(best) if best else np.zeros((0, 2, 1))


def _spans_of(trace: Any, patches: int, patch_s: float) -> list[np.ndarray]:
    samples = round(trace.rate_hz * patch_s)
    spans = []
    for true, rebuilt, hidden in zip(trace.true, trace.rebuilt, trace.hidden, strict=True):
        start = 0
        while start + patches <= len(hidden):
            if not hidden[start : start + patches].all():
                start += 1
                continue
            span = slice(start * samples, (start + patches) * samples)
            both = np.stack([true[span], rebuilt[span]]).astype(np.float64)
            if np.isfinite(both).all():
                spans.append(both)
            start += patches
    return spans


def _attention(run: Path) -> Mapping[str, Any]:
    found, step = load_attention(run / "attention.json")
    shown = [m for m, name in enumerate(found.modalities) if np.isfinite(found.even_share[m]).all()]
    if not shown:
        raise ValueError("no window has a valid token")
    share, seconds = found.share.mean((0, 1)), found.seconds.mean(1)
    own = np.diagonal(found.share.mean(1), axis1=1, axis2=2)
    rows = [
        {
            "modality": found.modalities[m],
            "cells": [(float(share[m, k]), float(found.even_share[m, k])) for k in shown],
            "even_seconds": float(found.even_seconds[m]),
            "seconds": [float(value) for value in seconds[:, m]],
            "own": [float(value) for value in own[:, m]],
        }
        for m in shown
    ]
    return {
        "other_step": _other_step(run, step),
        "names": [found.modalities[m] for m in shown],
        "rows": rows,
        "blocks": len(found.share),
        "heads": found.share.shape[1],
        "windows": found.windows,
    }


def _hypnogram(run: Path) -> Mapping[str, Any]:
    found = load_stages(run / "predictions.npz")
    agreement = {str(record): _agreement(found, str(record)) for record in np.unique(found.record)}
    scored = sorted((share, record) for record, share in agreement.items() if share is not None)
    if not scored:
        raise ValueError("no held-out recording has a scored epoch")
    share, record = scored[(len(scored) - 1) // 2]
    rows = np.flatnonzero(found.record == record)
    rows = rows[np.argsort(found.epoch[rows])]
    figure = figures.hypnogram(found.epoch[rows], found.true[rows], found.predicted[rows], STAGES, found.epoch_s)
    return {
        "other_step": _other_step(run, found.step),
        "figure": Markup(figure),
        "record": record,
        "share": share,
        "recordings": len(scored),
        "range": scored,
    }


def _agreement(found: Stages, record: str) -> float | None:
    scored = (found.record == record) & (found.true >= 0)
    return float(np.mean(found.true[scored] == found.predicted[scored])) if scored.any() else None


def _recordings(run: Path) -> Mapping[str, Any]:
    manifest = load_json(run / "prepare.json")
    records = manifest["records"]
    reasons = Counter((channel, reason) for record in records for channel, reason in record["drops"].items())
    failed = [(entry["record"], entry["reason"]) for entry in manifest["failed"]]
    dropped = [record for record in records if record["drops"]]
    return {
        "records": len(records),
        "subjects": len({record["subject"] for record in records}),
        "hours": sum(record["hours"] for record in records),
        "reasons": [(channel, reason, count) for (channel, reason), count in reasons.most_common(_MAX_ROWS)],
        "dropped": dropped[:_MAX_ROWS],
        "more_dropped": max(0, len(dropped) - _MAX_ROWS),
        "failed": failed[:_MAX_ROWS],
        "more_failed": max(0, len(failed) - _MAX_ROWS),
    }


def _rows(path: Path) -> Mapping[str, Any]:
    return {"rows": _flat(load_json(path))}


def _other_step(run: Path, step: int | None) -> str:
    """A sentence where the probed model is not that of the last logged step; empty where it is, or nobody knows."""
    try:
        last = load_metrics(run / "metrics.jsonl").last_step
    except (ValueError, OSError):  # the sections of that file say so
        return ""
    return "" if step in (None, last) else f"This is the model after step {step}; the last logged step is {last}."


def _flat(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(data, Mapping) and data:
        return [row for key, value in data.items() for row in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(data, list):
        simple = not any(isinstance(item, Mapping | list) for item in data)
        text = ", ".join(str(item) for item in data) if simple else f"{len(data)} entries"
        return [(prefix, text or "none")]
    return [(prefix, "none" if data is None or data == {} else str(data))]


def _tiles(sections: Mapping[str, Section]) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = []
    probes, errors, speed = (sections[name].content for name in ("probes", "errors", "speed"))
    stage = probes["report"].tasks.get("stage") if probes else None
    if probes and stage and stage.status == "ok":
        when = f", after step {probes['report'].step}" if probes["other_step"] else ""
        label = f"sleep stage, {METRICS[stage.headline].label} on held-out subjects{when}"
        first = next(iter(stage.models.values()))
        tiles.append({"label": label, "score": first.scores[stage.headline], "signed": False})
        for pair, scores in list(stage.differences.items())[:1]:
            tiles.append({"label": f"{_pretty(pair)}, paired", "score": scores[stage.headline], "signed": True})
    if errors:
        rows = [row for row in errors["rows"] if math.isfinite(row["error"])]
        for row in sorted(rows, key=lambda row: row["error"])[:1]:
            label = f"hidden-patch error over predicting the mean, {row['modality']} (the best; lower is better)"
            tiles.append({"label": label, "value": row["error"], "digits": 2})
    if speed and speed["windows_per_s"]:
        tiles.append({"label": "windows per second in training", "value": speed["windows_per_s"], "digits": 0})
    return tiles


def _in_order(names: Mapping[str, Any]) -> list[str]:
    return sorted(names, key=lambda name: (MODALITIES.index(name) if name in MODALITIES else len(MODALITIES), name))


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _number(value: float | None, digits: int = 3) -> Markup:
    """The value rounded for people; the exact one is kept in the `value` attribute."""
    if value is None or not math.isfinite(value):
        return Markup('<span class="none" title="not defined">–</span>')
    text = f"{value:,.{digits}f}".replace("-", "−").replace(",", "\u202f")
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), text)


def _signed(value: float | None, digits: int = 3) -> Markup:
    shown = _number(value, digits)
    positive = value is not None and math.isfinite(value) and value >= 0
    return Markup(str(shown).replace('">', '">+', 1)) if positive else shown


def _interval(found: Estimate, digits: int = 3, signed: bool = False) -> Markup:
    show = _signed if signed else _number
    if math.isnan(found.low):
        return show(found.value, digits)
    return Markup('{} <span class="ci">[{}, {}]</span>').format(
        show(found.value, digits), show(found.low, digits), show(found.high, digits)
    )


def _pretty(name: str) -> Markup:
    return escape(name.replace("_", " ").replace(" - ", " minus "))
