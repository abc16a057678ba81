"""Builds the content of each section of the page from the files of a run folder, as values for the template."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from physiofast.labels import STAGES
from physiofast.preparation.inspection import ABSENT
from physiofast.probing.metrics import METRICS
from physiofast.probing.results import TaskResult
from physiofast.report import figures
from physiofast.report.density import spectra
from physiofast.report.numbers import in_order, interval, number, pretty
from physiofast.runfolder.files import (
    Stages,
    load_attention,
    load_metrics,
    load_probes,
    load_reconstruction,
    load_stages,
    load_summary,
)
from physiofast.support.messages import counted
from physiofast.support.strictjson import load_json

_MAX_ROWS = 100
_CHANNELS_PER_MODALITY = 2


def of_errors(run: Path) -> Mapping[str, Any]:
    """The hidden-patch error of each modality, and the share of it that could be predicted."""
    summary = load_summary(run)
    found = summary.get("errors")
    if found is None:
        last = {name: values[-1] for name, (_, values) in load_metrics(run / "metrics.jsonl").errors().items()}
        if not last:
            raise ValueError("no evaluation on held-out subjects has been logged")
        found = {name: {"error": value, "predictable_share": None} for name, value in last.items()}
    rows = [_error_row(name, found[name]) for name in in_order(found)]
    has_share = any(row["share"] for row in rows)
    missing = "" if has_share else summary.get("predictable_share_missing", "")
    return {"rows": rows, "has_share": has_share, "share_missing": missing}


def _error_row(modality: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    share = entry.get("predictable_share")
    error, total = _float(entry["error"]), _float(share["total"]) if share else math.nan
    found = (1.0 - error) / total if total >= 0.1 else math.nan
    return {"modality": modality, "error": error, "share": share, "found": found, "noise": total < 0.1}


def of_probes(run: Path) -> Mapping[str, Any]:
    """Scores of the probes, beside chance and each other."""
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
        Markup("{}: {} <b>{}</b> on {} (chance {}).").format(
            pretty(first).capitalize(),
            metric.label,
            interval(task.models[first].scores[task.headline]),
            counted(task.test_subjects, "held-out subject"),
            number(task.chance[task.headline], 2),
        )
    ]
    for other in others:
        found = task.differences[f"{first} - {other}"][task.headline]
        gain = found.value if metric.better == "higher" else -found.value
        if math.isnan(found.low):
            verdict = "no interval can be given"
        elif task.caution:
            verdict = "too few subjects to tell"
        elif not found.excludes_zero:
            verdict = "the interval includes 0, so no difference is shown"
        else:
            verdict = "better, the interval excludes 0" if gain > 0 else "worse, the interval excludes 0"
        parts.append(Markup("Against {}: {} ({}).").format(pretty(other), interval(found, signed=True), verdict))
    if task.caution:
        parts.append(escape(f"Only {task.caution}."))
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


def of_speed(run: Path) -> Mapping[str, Any]:
    """Windows per second, and how long each stage took."""
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


def of_curves(run: Path) -> Mapping[str, Any]:
    """Loss, error and learning rate over steps."""
    log = load_metrics(run / "metrics.jsonl")
    if "loss" not in log.steps:
        raise ValueError("no training step has been logged")
    by_modality = {name.removeprefix("loss."): name for name in log.steps if name.startswith("loss.")}
    loss = {"total": log.steps["loss"]} | {m: log.steps[by_modality[m]] for m in in_order(by_modality)}
    errors = log.errors()
    error = {m: errors[m] for m in in_order(errors)}
    lr = log.steps.get("lr", (np.zeros(0), np.zeros(0)))
    return {
        "figure": Markup(figures.training_curves(loss, error, lr)),
        "steps": int(log.steps["loss"][0][-1]),
        "evaluated": any(len(steps) > 1 for steps, _ in error.values()),
    }


def of_rebuilt(run: Path) -> Mapping[str, Any]:
    """One held-out window as recorded and as rebuilt."""
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


def of_spectra(run: Path) -> Mapping[str, Any]:
    """Spectra of hidden spans as recorded and as rebuilt."""
    found = load_reconstruction(run / "reconstruction.npz")
    density = spectra(found)
    if not density:
        raise ValueError("it has no hidden patch of a present channel")
    return {
        "other_step": _other_step(run, found.step),
        "figure": Markup(figures.spectra(density)),
        "windows": len(found.record),
    }


def of_attention(run: Path) -> Mapping[str, Any]:
    """How much of each modality the encoder attends to, and how far in time."""
    found, step = load_attention(run / "attention.json")
    shown = [m for m, name in enumerate(found.modalities) if np.isfinite(found.uniform_share[m]).all()]
    if not shown:
        raise ValueError("no window has a valid token")
    share, seconds = found.share.mean((0, 1)), found.seconds.mean(1)
    own = np.diagonal(found.share.mean(1), axis1=1, axis2=2)
    rows = [
        {
            "modality": found.modalities[m],
            "cells": [(float(share[m, k]), float(found.uniform_share[m, k])) for k in shown],
            "uniform_seconds": float(found.uniform_seconds[m]),
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


def of_hypnogram(run: Path) -> Mapping[str, Any]:
    """The stages of a held-out recording of middling agreement, scored and predicted."""
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


def of_recordings(run: Path) -> Mapping[str, Any]:
    """What was prepared, what of it was dropped and why, what was noted, and what failed.

    Channels that recordings lack are counted apart: there are many, and they would hide those that were dropped.
    """
    manifest = load_json(run / "prepare.json")
    records = [_recording(entry) for entry in manifest["records"]]
    reasons = Counter((channel, reason) for record in records for channel, reason in record["drops"].items())
    absent = Counter(channel for record in records for channel in record["absent"])
    notes = [(record["record"], note) for record in records for note in record["notes"]]
    failed = [(entry["record"], entry["reason"]) for entry in manifest["failed"]]
    dropped = [record for record in records if record["drops"]]
    return {
        "records": len(records),
        "subjects": len({record["subject"] for record in records}),
        "hours": sum(record["hours"] for record in records),
        "reasons": [(channel, reason, count) for (channel, reason), count in reasons.most_common(_MAX_ROWS)],
        "dropped": dropped[:_MAX_ROWS],
        "more_dropped": max(0, len(dropped) - _MAX_ROWS),
        "absent": absent.most_common(),
        "notes": notes[:_MAX_ROWS],
        "more_notes": max(0, len(notes) - _MAX_ROWS),
        "failed": failed[:_MAX_ROWS],
        "more_failed": max(0, len(failed) - _MAX_ROWS),
    }


def _recording(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A recording of the manifest, with its absent channels apart from those that were dropped."""
    absent = [channel for channel, reason in entry["drops"].items() if reason.startswith(ABSENT)]
    drops = {channel: reason for channel, reason in entry["drops"].items() if channel not in absent}
    return {**entry, "drops": drops, "absent": absent, "notes": entry.get("warnings", [])}


def of_rows(path: Path) -> Mapping[str, Any]:
    """A JSON file as rows, one for each key."""
    return {"rows": _flat(load_json(path))}


def _other_step(run: Path, step: int | None) -> str:
    """A sentence if the probed model is not that of the last logged step; "" if it is, or if that is unknown."""
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


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
