"""Probes of several feature sets, compared on the same windows, subjects and bootstrap draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from physiofast.montage import nearest
from physiofast.probing.linear import LinearFit, Search, fit_logistic, fit_ridge
from physiofast.probing.metrics import (
    Estimate,
    confusion_scores,
    estimate,
    ranking_scores,
    regression_scores,
    subject_confusion,
    subject_draws,
)
from physiofast.probing.results import TASKS, ModelResult, ProbeReport, Task, TaskResult
from physiofast.probing.table import Table, check_inputs, pool, pool_target, standardise, target_of
from physiofast.support.bounds import Bounds, check_fields

_BOUNDS = {
    "c_grid": Bounds(above=0),
    "ridge_grid": Bounds(above=0),
    "folds": Bounds(least=2),
    "max_iterations": Bounds(least=1),
    "tolerance": Bounds(above=0, below=1),
    "max_train_windows": Bounds(least=10),
    "min_subjects": Bounds(least=4),
    "bootstrap_draws": Bounds(least=20),
    "confidence": Bounds(above=0, below=1),
    "seed": Bounds(least=0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How probes are fitted and scored. All defaults are ours."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Which of `TASKS` to run."""
    c_grid: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
    """Inverse regularisation strengths of the logistic regression, tried from strong to weak until the
    loss on left-out training subjects rises. A single value is used as it is."""
    ridge_grid: tuple[float, ...] = (1e5, 1e4, 1e3, 1e2, 10.0, 1.0)
    """Penalties of the ridge regression, tried in the same way."""
    folds: int = 3
    """Folds of training subjects for that choice."""
    max_iterations: int = 300
    """Limit for the solver; reaching it is recorded in the result."""
    tolerance: float = 1e-4
    """Largest gradient entry at which the solver stops. Where it is coarser, such as 1e-3, too weak a regularisation
    may be chosen: fits that stop early look better on left-out subjects than they are."""
    max_train_windows: int = 50_000
    """More training windows than this are thinned at random; held-out ones never are."""
    min_subjects: int = 50
    """Age and sex are not reported below this many subjects with a known label."""
    bootstrap_draws: int = 1000
    """Resamplings of the test subjects."""
    confidence: float = 0.95
    """Coverage that the intervals aim at."""
    seed: int = 0
    """For folds, thinning and bootstrap."""

    def __post_init__(self) -> None:
        check_fields(self, "probe", _BOUNDS)
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(f"probe.tasks: no probe is named {name!r}{nearest(name, TASKS)}")
        for field in ("c_grid", "ridge_grid"):
            if not getattr(self, field):
                raise ValueError(f"probe.{field} must hold one or more values above 0; found none")


def compare_probes(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    subject: Sequence[str] | np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    config: ProbeConfig | None = None,
) -> ProbeReport:
    """Probe every feature set on every task, and the first feature set minus each other one.

    Features are standardised by the training windows; a missing value (NaN) becomes the training mean.

    Args:
        features: Name -> float [n, F]; the first is the one that the others are compared with.
        labels: Key of `TASKS` -> [n]. Classes are ints with -1 for unknown (sex: 0 = F, 1 = M); age is in
            years with NaN for unknown. A task without an entry gets a status instead of numbers.
        subject: str [n], the subject of each window.
        train: bool [n], windows to fit on.
        test: bool [n], windows to score on; their subjects must not occur in `train`.
        config: How to fit and score.

    Raises:
        ValueError: lengths that differ, unknown label keys or values, a subject on both sides, or features without
            any finite value.
    """
    config = config or ProbeConfig()
    names, index = np.unique(np.asarray(subject, dtype=str), return_inverse=True)
    train, test = np.asarray(train, bool), np.asarray(test, bool)
    check_inputs(features, labels, names, index, train, test)
    windows = Table(
        {name: standardise(np.asarray(values), train) for name, values in features.items()},
        index,
        train,
        test,
    )
    pooled: Table | None = None
    weights = np.zeros((config.bootstrap_draws + 1, len(names)))
    held_out = np.unique(index[test])
    weights[:, held_out] = subject_draws(len(held_out), config.bootstrap_draws, config.seed)
    tasks, predictions = {}, {}
    for task in (TASKS[name] for name in config.tasks):
        target = target_of(task, labels, len(index))
        if not task.per_subject:
            tasks[task.name], predictions[task.name] = _probe(task, windows, target, weights, config)
            continue
        pooled = pooled or pool(features, windows, len(names))
        tasks[task.name], _ = _probe(task, pooled, pool_target(target, index, len(names)), weights, config)
    return ProbeReport(
        tasks=tasks,
        train_subjects=tuple(names[np.unique(index[train])].tolist()),
        test_subjects=tuple(names[held_out].tolist()),
        config={key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items()},
        predictions={name: found for name, found in predictions.items() if found},
    )


def _probe(
    task: Task, table: Table, target: np.ndarray, weights: np.ndarray, config: ProbeConfig
) -> tuple[TaskResult, dict[str, np.ndarray]]:
    """Probe every feature set on one task; the predictions are int8 [n] by feature set, -1 for windows not tested."""
    train, test = _labelled_rows(task, table, target, config)
    result = TaskResult(
        task=task.name,
        status=_status(task, target, train, test, config),
        classes=task.classes,
        headline=task.headline,
        train_subjects=len(np.unique(table.subject[train])),
        test_subjects=len(np.unique(table.subject[test])),
        train_windows=len(train),
        test_windows=len(test),
    )
    if result.status != "ok":
        return result, {}
    models, draws, predictions = {}, {}, {}
    for name, x in table.features.items():
        fit = _fit(task, x[train], target[train], table.subject[train], config)
        predicted = fit.predict(x[table.test])
        everything = np.full((len(target), *predicted.shape[1:]), np.nan)
        everything[table.test] = predicted
        draws[name], confusion = _score(task, target[test], everything[test], table.subject[test], weights)
        scores = {key: _interval(values, result, config) for key, values in draws[name].items()}
        models[name] = ModelResult(scores=scores, confusion=confusion, regularisation=fit.regularisation, note=fit.note)
        if task.classes:
            predictions[name] = np.full(len(target), -1, np.int8)
            predictions[name][table.test] = predicted.argmax(1)
    first, *others = draws
    differences = {
        f"{first} - {other}": {
            key: _interval(values - draws[other][key], result, config) for key, values in draws[first].items()
        }
        for other in others
    }
    chance = _chance(task, target[train], target[test])
    return dataclasses.replace(result, chance=chance, models=models, differences=differences), predictions


def _labelled_rows(task: Task, table: Table, target: np.ndarray, config: ProbeConfig) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(target)
    if task.classes:
        known &= target == np.round(target)  # nights of one subject that disagree about the sex
    train = np.flatnonzero(table.train & known)
    if len(train) > config.max_train_windows:
        rng = np.random.default_rng(config.seed)
        train = np.sort(rng.choice(train, config.max_train_windows, replace=False))
    return train, np.flatnonzero(table.test & known)


def _status(task: Task, target: np.ndarray, train: np.ndarray, test: np.ndarray, config: ProbeConfig) -> str:
    if not len(train) + len(test):
        return f"no labels for {task.name}"
    if task.per_subject and len(train) + len(test) < config.min_subjects:
        return f"not enough subjects (found {len(train) + len(test)}, need {config.min_subjects})"
    for side, rows in (("training", train), ("test", test)):
        what = "subjects" if task.per_subject else "windows"
        if not len(rows):
            return f"no {side} {what} with a label for {task.name}"
        found = np.unique(target[rows])
        if task.classes and len(found) == 1:
            return f"all {side} {what} are of one class ({task.classes[int(found[0])]})"
    return "ok"


def _fit(task: Task, x: np.ndarray, y: np.ndarray, subject: np.ndarray, config: ProbeConfig) -> LinearFit:
    if not task.classes:
        grid = sorted(config.ridge_grid, reverse=True)
        return fit_ridge(x, y, subject, search=Search(grid=grid, folds=config.folds, seed=config.seed))
    return fit_logistic(
        x,
        y.astype(np.int64),
        subject,
        classes=len(task.classes),
        search=Search(grid=sorted(config.c_grid), folds=config.folds, seed=config.seed),
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
    )


def _score(
    task: Task, truth: np.ndarray, predicted: np.ndarray, subject: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    # Every score under every draw [D + 1], and the plain confusion matrix.
    if not task.classes:
        return regression_scores(truth, predicted, subject, weights), []
    truth = truth.astype(np.int64)
    each = subject_confusion(truth, predicted.argmax(1), subject, classes=len(task.classes), subjects=weights.shape[1])
    scores = confusion_scores(np.tensordot(weights, each, 1))
    if len(task.classes) == 2:
        scores |= ranking_scores(truth, predicted[:, 1], subject, weights)
    return scores, each.sum(0).astype(np.int64).tolist()


def _interval(draws: np.ndarray, result: TaskResult, config: ProbeConfig) -> Estimate:
    # One subject resampled is always the same subject: that is no interval.
    found = estimate(draws, config.confidence)
    return found if result.test_subjects > 1 else Estimate(found.value, np.nan, np.nan)


def _chance(task: Task, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    if not task.classes:
        return {"mae": float(np.abs(test - train.mean()).mean()), "r2": 0.0}
    classes = len(task.classes)
    share = np.bincount(test.astype(np.int64), minlength=classes) / len(test)
    chance = {
        "balanced_accuracy": 1.0 / classes,
        "macro_f1": float(np.mean(2 * share / (classes * share + 1))),
        "kappa": 0.0,
    }
    return chance | ({"auroc": 0.5, "auprc": float(share[1])} if classes == 2 else {})
