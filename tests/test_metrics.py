"""Scores against scikit-learn, and the bootstrap against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from physiofast.probing.metrics import (
    METRICS,
    Estimate,
    confusion_scores,
    estimate,
    ranking_scores,
    regression_scores,
    subject_confusion,
    subject_draws,
)


def expand(values: np.ndarray, subject: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Repeat each row as often as its subject was drawn: the plain definition of a weighting."""
    return np.repeat(values, weight[subject].astype(int), axis=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 5])
def test_confusion_scores_equal_sklearn_under_every_draw(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, classes, (2, 300))
    predicted = np.where(rng.random(300) < 0.5, truth, predicted)
    subject = rng.integers(0, 7, 300)
    weights = subject_draws(7, 10, seed)
    each = subject_confusion(truth, predicted, subject, classes=classes, subjects=7)
    found = confusion_scores(np.tensordot(weights, each, 1))
    for d, weight in enumerate(weights):
        t, p = expand(truth, subject, weight), expand(predicted, subject, weight)
        assert found["balanced_accuracy"][d] == pytest.approx(oracle.balanced_accuracy_score(t, p), abs=1e-12)
        assert found["macro_f1"][d] == pytest.approx(oracle.f1_score(t, p, average="macro"), abs=1e-12)
        assert found["kappa"][d] == pytest.approx(oracle.cohen_kappa_score(t, p), abs=1e-12)


def test_classes_that_do_not_occur_are_left_out() -> None:
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    each = subject_confusion(truth, predicted, np.zeros(4, int), classes=5, subjects=1)
    found = confusion_scores(each[0])
    assert found["balanced_accuracy"] == pytest.approx(0.75)
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, predicted, average="macro"))


@pytest.mark.parametrize("levels", [3, 10_000], ids=["many ties", "no ties"])
@pytest.mark.parametrize("seed", range(3))
def test_ranking_scores_equal_sklearn_under_every_draw(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random(400) < 0.2).astype(int)
    score = np.round((truth + rng.normal(size=400)) * levels) / levels
    subject = rng.integers(0, 9, 400)
    weights = subject_draws(9, 12, seed)
    found = ranking_scores(truth, score, subject, weights)
    for d, weight in enumerate(weights):
        t, s = expand(truth, subject, weight), expand(score, subject, weight)
        assert found["auroc"][d] == pytest.approx(oracle.roc_auc_score(t, s), abs=1e-12)
        assert found["auprc"][d] == pytest.approx(oracle.average_precision_score(t, s), abs=1e-12)


def test_ranking_scores_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth, score, subject = rng.integers(0, 2, 50), rng.normal(size=50), rng.integers(0, 4, 50)
    weights = subject_draws(4, 30, 0)
    whole = ranking_scores(truth, score, subject, weights)
    monkeypatch.setattr("physiofast.probing.metrics._BLOCK_ELEMENTS", 100)
    parts = ranking_scores(truth, score, subject, weights)
    np.testing.assert_array_equal(whole["auroc"], parts["auroc"])
    np.testing.assert_allclose(whole["auprc"], parts["auprc"], rtol=1e-12)


def test_a_draw_with_one_class_has_no_ranking_score() -> None:
    truth, score, subject = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 0, 1, 1])
    found = ranking_scores(truth, score, subject, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(found["auroc"], [0.75, np.nan, np.nan])
    assert np.isfinite(found["auprc"]).tolist() == [True, False, False]


def test_regression_scores_equal_sklearn_under_every_draw() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 80, 60)
    predicted, subject = truth + rng.normal(0, 10, 60), np.arange(60) % 20
    weights = subject_draws(20, 10, 0)
    found = regression_scores(truth, predicted, subject, weights)
    for d, weight in enumerate(weights):
        t, p = expand(truth, subject, weight), expand(predicted, subject, weight)
        assert found["mae"][d] == pytest.approx(oracle.mean_absolute_error(t, p))
        assert found["r2"][d] == pytest.approx(oracle.r2_score(t, p))


def test_r2_without_variance_is_not_defined() -> None:
    found = regression_scores(np.full(4, 41.3), np.arange(4.0), np.arange(4), np.ones((1, 4)))
    assert np.isnan(found["r2"][0])
    assert found["mae"][0] == pytest.approx(np.abs(np.arange(4.0) - 41.3).mean())


def test_draws_are_resamplings_with_replacement() -> None:
    weights = subject_draws(12, 4000, 3)
    assert np.all(weights[0] == 1)
    assert np.all(weights.sum(1) == 12)
    assert weights[1:].mean() == pytest.approx(1.0)
    assert weights[1:].var() == pytest.approx(11 / 12, rel=0.03)
    np.testing.assert_array_equal(weights, subject_draws(12, 4000, 3))
    assert not np.array_equal(weights, subject_draws(12, 4000, 4))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # Subjects differ (random accuracy per subject), so an interval over windows would be far too narrow.
    rng = np.random.default_rng(1)
    subjects, windows, trials = 30, 40, 300
    subject = np.repeat(np.arange(subjects), windows)
    truth = np.tile(np.arange(windows) % 2, subjects)
    weights = subject_draws(subjects, 300, 0)
    covered = narrow = 0
    for _ in range(trials):
        skill = rng.beta(7, 3, subjects)[subject]
        predicted = np.where(rng.random(len(truth)) < skill, truth, 1 - truth)
        each = subject_confusion(truth, predicted, subject, classes=2, subjects=subjects)
        found = estimate(confusion_scores(np.tensordot(weights, each, 1))["balanced_accuracy"], 0.95)
        covered += found.low <= 0.7 <= found.high
        narrow += abs(found.value - 0.7) <= 1.96 * np.sqrt(0.7 * 0.3 / len(truth))
    assert 0.90 <= covered / trials <= 0.985
    assert narrow / trials < 0.80


def test_estimate_leaves_out_undefined_draws() -> None:
    draws = np.concatenate([[0.5], np.linspace(0, 1, 101), np.full(50, np.nan)])
    found = estimate(draws, 0.9)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.05, 0.95))
    mostly_undefined = estimate(np.concatenate([[0.5], np.full(60, np.nan), np.ones(40)]), 0.9)
    assert np.isnan([mostly_undefined.low, mostly_undefined.high]).all()


def test_estimate_goes_to_json_and_back() -> None:
    found = Estimate(0.25, float("nan"), float("nan"))
    assert found.to_dict() == {"value": 0.25, "low": None, "high": None}
    back = Estimate.from_dict(found.to_dict())
    assert back.value == 0.25
    assert np.isnan([back.low, back.high]).all()
    assert not back.excludes_zero
    assert Estimate(0.1, 0.02, 0.2).excludes_zero
    assert Estimate(-0.1, -0.2, -0.01).excludes_zero


def test_every_metric_says_which_direction_is_good() -> None:
    assert {metric.better for metric in METRICS.values()} == {"higher", "lower"}
    assert METRICS["mae"].better == "lower"
