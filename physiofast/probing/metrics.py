"""Scores of predictions on held-out subjects, and their intervals by a bootstrap over subjects.

Every score is computed for many weightings of the subjects at once. A weighting is a row of
`weights [D, S]`: how often each of the S test subjects counts. `subject_draws` makes row 0 all ones (the
plain score) and the others bootstrap draws, so a score and its interval come from the same lines, and two
models scored with the same draws are paired exactly. All windows of a subject go together: windows of one
night are not independent.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

_BLOCK_ELEMENTS = 4_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """The name of a score and how to read it."""

    label: str
    """Short name for tables."""
    better: str
    """`higher` or `lower`."""
    meaning: str
    """Explanation in one sentence."""


METRICS: dict[str, Metric] = {
    "balanced_accuracy": Metric(
        label="balanced accuracy",
        better="higher",
        meaning="share of each class that is recognised, averaged over classes",
    ),
    "macro_f1": Metric(label="macro-F1", better="higher", meaning="F1 of each class, averaged over classes"),
    "kappa": Metric(
        label="Cohen's kappa",
        better="higher",
        meaning="agreement beyond what the class frequencies give by chance",
    ),
    "auroc": Metric(
        label="AUROC", better="higher", meaning="chance that a positive window is ranked above a negative one"
    ),
    "auprc": Metric(
        label="AUPRC",
        better="higher",
        meaning="precision averaged over recall; chance is the share of positives",
    ),
    "mae": Metric(
        label="mean absolute error", better="lower", meaning="mean distance from the true value, in its unit"
    ),
    "r2": Metric(label="R²", better="higher", meaning="share of the variance explained; 0 is predicting the mean"),
}
"""Every score that a probe reports."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score with its bootstrap interval; NaN where it is not defined."""

    value: float
    """The score on all test subjects."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly above or wholly below 0."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float | None]:
        """Plain data for JSON, with None where a value is not defined."""
        return {key: value if math.isfinite(value) else None for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, float | None]) -> Estimate:
        """Read what `to_dict` wrote."""
        low, value, high = (data[key] for key in ("low", "value", "high"))
        return cls(*(math.nan if x is None else float(x) for x in (value, low, high)))


def subject_draws(subjects: int, draws: int, seed: int) -> np.ndarray:
    """Weights of the subjects: all ones, then `draws` resamplings with replacement.

    Returns:
        float64 [draws + 1, subjects].
    """
    counts = np.random.default_rng(seed).multinomial(subjects, np.full(subjects, 1.0 / subjects), size=draws)
    return np.concatenate([np.ones((1, subjects)), counts.astype(np.float64)])


def estimate(scores: np.ndarray, confidence: float) -> Estimate:
    """The score in `scores[0]` with the percentile interval of `scores[1:]`.

    Draws in which the score is not defined (a class without a window) are left out; when they are more
    than half, the interval is not defined either. With few subjects percentile intervals are somewhat
    too narrow.
    """
    value, draws = float(scores[0]), scores[1:][np.isfinite(scores[1:])]
    if 2 * len(draws) < len(scores) - 1 or not len(draws) or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def subject_confusion(
    truth: np.ndarray, predicted: np.ndarray, subject: np.ndarray, *, classes: int, subjects: int
) -> np.ndarray:
    """Confusion matrix of each subject: float64 [subjects, true class, predicted class].

    Args:
        truth: int [n], true classes.
        predicted: int [n], predicted classes.
        subject: int [n], subject index of each window.
        classes: K, number of classes.
        subjects: S, number of subjects.
    """
    cell = (subject.astype(np.int64) * classes + truth) * classes + predicted
    counts = np.bincount(cell, minlength=subjects * classes * classes)
    return counts.reshape(subjects, classes, classes).astype(np.float64)


def confusion_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Balanced accuracy, macro-F1 and Cohen's kappa of confusion matrices [..., true, predicted].

    Classes without a true window are left out of balanced accuracy; classes that neither occur nor are
    predicted are left out of macro-F1 (both as scikit-learn does).
    """
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(-1), confusion.sum(-2)
    total = support.sum(-1)
    observed = _ratio(hit.sum(-1), total)
    expected = _ratio((support * predicted).sum(-1), total**2)
    return {
        "balanced_accuracy": _mean_defined(_ratio(hit, support)),
        "macro_f1": _mean_defined(_ratio(2 * hit, support + predicted)),
        "kappa": _ratio(observed - expected, 1 - expected),
    }


def ranking_scores(
    truth: np.ndarray, score: np.ndarray, subject: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """AUROC and average precision (AUPRC) under each weighting of the subjects.

    Args:
        truth: int [n] in {0, 1}.
        score: float [n], finite; higher means more likely 1; ties count half.
        subject: int [n], column of `weights`.
        weights: float64 [D, S].

    Returns:
        `auroc` and `auprc`, float64 [D]; NaN where a draw has a single class.
    """
    subjects, positive = weights.shape[1], truth == 1
    levels = np.unique(score[positive])[::-1]
    level = np.searchsorted(-levels, -score)  # the first level that is not above the window's score
    tied = ~positive & (level < len(levels))
    tied[tied] = score[tied] == levels[level[tied]]
    negatives = np.bincount(subject[~positive], minlength=subjects)
    above = np.zeros((2, subjects))  # negative and positive windows of each subject in the blocks so far
    pairs, precision_sum = np.zeros((subjects, subjects)), np.zeros(len(weights))
    size = max(1, _BLOCK_ELEMENTS // max(weights.shape))
    for start in range(0, len(levels), size):
        count = min(size, len(levels) - start)
        inside = (level >= start) & (level < start + count)
        down, up, tie = (
            _counts(level[inside & kind] - start, subject[inside & kind], count, subjects)
            for kind in (~positive, positive, tied)
        )
        downs_above, ups_above = above[0] + np.cumsum(down, axis=0), above[1] + np.cumsum(up, axis=0)
        above = np.stack([downs_above[-1], ups_above[-1]])
        pairs += up.T @ (negatives - downs_above + tie / 2)
        precision_sum += _weighted_precision(weights, up, ups_above, ups_above + downs_above)
    ups, downs = weights @ above[1], weights @ negatives
    auroc = _ratio(((weights @ pairs) * weights).sum(1), ups * downs)
    return {"auroc": auroc, "auprc": np.where(downs > 0, _ratio(precision_sum, ups), np.nan)}


def _counts(row: np.ndarray, column: np.ndarray, rows: int, columns: int) -> np.ndarray:
    counts = np.bincount(row * columns + column, minlength=rows * columns)
    return counts.reshape(rows, columns).astype(np.float64)


def _weighted_precision(
    weights: np.ndarray, up: np.ndarray, ups_above: np.ndarray, all_above: np.ndarray
) -> np.ndarray:
    # Counts are [level, S]; the sum over levels of the positive weight times the precision down to there.
    weighted, over, under = (weights @ counts.T for counts in (up, ups_above, all_above))
    return (weighted * np.divide(over, under, out=np.zeros_like(over), where=under > 0)).sum(1)


def regression_scores(
    truth: np.ndarray, predicted: np.ndarray, subject: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Mean absolute error and R² under each weighting of the subjects.

    Args:
        truth: float [n], true values.
        predicted: float [n], predicted values.
        subject: int [n], column of `weights`.
        weights: float64 [D, S].

    Returns:
        `mae` (in the unit of `truth`) and `r2`, float64 [D]; R² is NaN where a draw has no variance.
    """
    weight = weights[:, subject]
    total = weight.sum(1)
    error = predicted - truth
    centred = truth - truth.mean()
    mean = _ratio(weight @ centred, total)
    variance = _ratio(weight @ centred**2, total) - mean**2
    variance[variance < 1e-12 * max(float(centred @ centred), 1e-300)] = 0.0
    return {
        "mae": _ratio(weight @ np.abs(error), total),
        "r2": 1.0 - _ratio(_ratio(weight @ error**2, total), variance),
    }


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(np.shape(over), np.shape(under))
    return np.divide(over, under, out=np.full(shape, np.nan), where=np.asarray(under) != 0)


def _mean_defined(values: np.ndarray) -> np.ndarray:
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(-1), defined.sum(-1))
