"""The tasks and results of probes, as plain data that converts to JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from physiofast.labels import STAGES
from physiofast.probing.metrics import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to be predicted."""

    name: str
    """Key in the labels."""
    classes: tuple[str, ...]
    """Class names, in label order; empty for a regression."""
    headline: str
    """The score to look at first; a key of `physiofast.probing.metrics.METRICS`."""
    per_subject: bool = False
    """Whether windows are pooled to one row per subject."""


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="stage", classes=STAGES, headline="balanced_accuracy"),
        Task(name="arousal", classes=("none", "arousal"), headline="auroc"),
        Task(name="apnea", classes=("none", "apnea"), headline="auroc"),
        Task(name="age", classes=(), headline="mae", per_subject=True),
        Task(name="sex", classes=("F", "M"), headline="auroc", per_subject=True),
    )
}
"""Every probe, by the key of its labels."""
FEW_SUBJECTS = 5
"""Intervals over fewer subjects than this mean little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One feature set on one task."""

    scores: dict[str, Estimate]
    """By key of `METRICS`."""
    confusion: list[list[int]]
    """Test windows by [true class][predicted class]; empty for a regression."""
    regularisation: float
    """The C (or the ridge penalty) that was chosen on training subjects."""
    note: str = ""
    """What the solver reported, if it did not converge."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "confusion": self.confusion,
            "regularisation": self.regularisation,
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelResult:
        """Read what `to_dict` wrote."""
        scores = {name: Estimate.from_dict(score) for name, score in data["scores"].items()}
        return cls(**{**data, "scores": scores})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task for all feature sets, or why there is no result."""

    task: str
    """Key of `TASKS`."""
    status: str = "ok"
    """`ok`, or a sentence that says why there are no numbers."""
    classes: tuple[str, ...] = ()
    """Class names; empty for a regression."""
    headline: str = ""
    """The score to look at first."""
    train_subjects: int = 0
    """Training subjects with a label."""
    test_subjects: int = 0
    """Test subjects with a label."""
    train_windows: int = 0
    """Labelled training windows (subjects, if windows are pooled)."""
    test_windows: int = 0
    """Labelled test windows (subjects, if windows are pooled)."""
    chance: dict[str, float] = dataclasses.field(default_factory=dict)
    """What guessing every class equally often, or predicting the training mean, would score."""
    models: dict[str, ModelResult] = dataclasses.field(default_factory=dict)
    """By name of the feature set."""
    differences: dict[str, dict[str, Estimate]] = dataclasses.field(default_factory=dict)
    """`first - other` for every other feature set: score -> paired difference."""

    @property
    def caution(self) -> str:
        """Why the intervals say little or are not there: too few test subjects have a label; empty if enough have."""
        if self.test_subjects >= FEW_SUBJECTS:
            return ""
        if self.test_subjects == 1:
            return "1 held-out subject with a label, so no interval can be given"
        return (
            f"{self.test_subjects} held-out subjects with a label; intervals over fewer than {FEW_SUBJECTS} subjects "
            "mean little"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {
            "classes": list(self.classes),
            "models": {name: model.to_dict() for name, model in self.models.items()},
            "differences": {
                pair: {name: score.to_dict() for name, score in scores.items()}
                for pair, scores in self.differences.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskResult:
        """Read what `to_dict` wrote."""
        models = {name: ModelResult.from_dict(model) for name, model in data["models"].items()}
        differences = {
            pair: {name: Estimate.from_dict(score) for name, score in scores.items()}
            for pair, scores in data["differences"].items()
        }
        return cls(**{**data, "classes": tuple(data["classes"]), "models": models, "differences": differences})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """All probes of one run."""

    tasks: dict[str, TaskResult]
    """By key of `TASKS`."""
    train_subjects: tuple[str, ...]
    """Subjects that the probes were fitted on."""
    test_subjects: tuple[str, ...]
    """Held-out subjects that all scores are from."""
    config: dict[str, Any]
    """The `ProbeConfig`, as plain data."""
    step: int | None = None
    """Optimiser steps that the probed encoder was trained for; None when that is not known."""
    predictions: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict, compare=False)
    """Task -> feature set -> int8 [n], the predicted class of every test window and -1 elsewhere. Only for
    tasks per window; not part of `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the predictions."""
        return {
            "format": "physiofast-probe",
            "version": 1,
            "train_subjects": list(self.train_subjects),
            "test_subjects": list(self.test_subjects),
            "config": self.config,
            "step": self.step,
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProbeReport:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: not a probe result, or one of another version.
        """
        if data.get("format") != "physiofast-probe" or data.get("version") != 1:
            raise ValueError(
                f"expected a physiofast-probe result of version 1, found format {data.get('format')!r} "
                f"version {data.get('version')!r}; run `physiofast probe RUN` again"
            )
        return cls(
            tasks={name: TaskResult.from_dict(task) for name, task in data["tasks"].items()},
            train_subjects=tuple(data["train_subjects"]),
            test_subjects=tuple(data["test_subjects"]),
            config=dict(data["config"]),
            step=data.get("step"),
        )


def hypnogram_arrays(
    record: Sequence[str] | np.ndarray,
    epoch: np.ndarray,
    stage_true: np.ndarray,
    stage_pred: np.ndarray,
    keep: np.ndarray,
) -> dict[str, np.ndarray]:
    """The kept windows ordered by record and epoch, for `np.savez(RUN/predictions.npz, **arrays)`.

    Returns:
        `record` str [k], `epoch` int64 [k], `stage_true` and `stage_pred` int8 [k] (-1 unscored).
    """
    record = np.asarray(record, dtype=str)
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((epoch[rows], record[rows]))]
    return {
        "record": record[rows],
        "epoch": np.asarray(epoch[rows], np.int64),
        "stage_true": np.asarray(stage_true[rows], np.int8),
        "stage_pred": np.asarray(stage_pred[rows], np.int8),
    }
