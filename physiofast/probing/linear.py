"""Linear models whose regularisation is chosen on training subjects alone."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_BLOCK_ROWS = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearFit:
    """A fitted model and how it came about."""

    predict: Callable[[np.ndarray], np.ndarray]
    """float [n, F] -> class probabilities float64 [n, K], or values float64 [n] of a regression."""
    regularisation: float
    """The value of the grid that was chosen."""
    note: str
    """What the solver reported, if it did not converge."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How a regularisation strength is chosen."""

    grid: Sequence[float]
    """Values, from strong to weak regularisation."""
    folds: int
    """Folds of training subjects."""
    seed: int
    """For the folds."""


def fit_logistic(
    x: np.ndarray,
    y: np.ndarray,
    subject: np.ndarray,
    *,
    classes: int,
    search: Search,
    max_iterations: int,
    tolerance: float,
) -> LinearFit:
    """Multinomial logistic regression in which every class has the same total weight.

    Args:
        x: float [n, F], standardised features.
        y: int [n], classes; some of the K may be missing.
        subject: int [n], for folds by subject.
        classes: K.
        search: `grid` holds inverse strengths C, ascending. Each step starts at the last one's solution.
        max_iterations: Limit for L-BFGS.
        tolerance: Largest gradient entry at which it stops.
    """
    from sklearn.linear_model import LogisticRegression

    x = np.asarray(x, np.float64)

    def new_model() -> Any:
        return LogisticRegression(
            class_weight="balanced", solver="lbfgs", max_iter=max_iterations, tol=tolerance, warm_start=True
        )

    folds = [fold for fold in _folds(subject, search) if len(np.unique(y[~fold])) > 1]
    models = [new_model() for _ in folds]

    def loss(c: float) -> float:
        probability = np.full((len(x), classes), np.nan)
        for fold, model in zip(folds, models, strict=True):
            _fit_quietly(model.set_params(C=c), x[~fold], y[~fold])
            probability[fold] = _probability(model, x[fold], classes)
        seen = np.isfinite(probability[:, 0])
        return _balanced_log_loss(probability[seen], y[seen])

    chosen = _walk(search.grid, loss if folds else None)
    model = new_model().set_params(C=chosen)
    note = _fit_quietly(model, x, y)
    return LinearFit(
        predict=lambda rows: _in_blocks(lambda block: _probability(model, block, classes), rows),
        regularisation=chosen,
        note=note,
    )


def fit_ridge(x: np.ndarray, y: np.ndarray, subject: np.ndarray, *, search: Search) -> LinearFit:
    """Ridge regression with an unpenalised intercept.

    Args:
        x: float [n, F], standardised features.
        y: float [n], values.
        subject: int [n], for folds by subject.
        search: `grid` holds penalties, descending.
    """
    from sklearn.linear_model import Ridge

    x = np.asarray(x, np.float64)
    folds = _folds(subject, search)

    def loss(penalty: float) -> float:
        errors = [Ridge(penalty).fit(x[~fold], y[~fold]).predict(x[fold]) - y[fold] for fold in folds]
        return float(np.mean(np.square(np.concatenate(errors))))

    chosen = _walk(search.grid, loss if folds else None)
    model = Ridge(chosen).fit(x, y)
    return LinearFit(predict=lambda rows: _in_blocks(model.predict, rows), regularisation=chosen, note="")


def _folds(subject: np.ndarray, search: Search) -> list[np.ndarray]:
    # Masks of the left-out rows; none when there is only one subject.
    subjects = np.random.default_rng(search.seed).permutation(np.unique(subject))
    parts = [subjects[i :: search.folds] for i in range(min(search.folds, len(subjects)))]
    return [np.isin(subject, part) for part in parts] if len(parts) > 1 else []


def _walk(grid: Sequence[float], loss: Callable[[float], float] | None) -> float:
    # The loss falls and then rises along the grid: stopping at the first rise saves the slowest fits.
    if loss is None or len(grid) == 1:
        return float(grid[len(grid) // 2])
    best, lowest = float(grid[0]), math.inf
    for value in grid:
        found = loss(value)
        if found >= lowest:
            break
        best, lowest = float(value), found
    return best


def _fit_quietly(model: Any, x: np.ndarray, y: np.ndarray) -> str:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    note = ""
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            note = f"the solver stopped after {int(np.max(model.n_iter_))} iterations before it converged"
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return note


def _probability(model: Any, x: np.ndarray, classes: int) -> np.ndarray:
    probability = np.zeros((len(x), classes))
    probability[:, model.classes_.astype(np.int64)] = model.predict_proba(x)
    return probability


def _balanced_log_loss(probability: np.ndarray, truth: np.ndarray) -> float:
    count = np.bincount(truth, minlength=probability.shape[1])
    weight = 1.0 / count[truth]
    likelihood = np.maximum(probability[np.arange(len(truth)), truth], 1e-6)
    return float(-(weight * np.log(likelihood)).sum() / np.count_nonzero(count))


def _in_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    starts = range(0, len(rows), _BLOCK_ROWS)
    return np.concatenate([function(rows[start : start + _BLOCK_ROWS].astype(np.float64)) for start in starts])
