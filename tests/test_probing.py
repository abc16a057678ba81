from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as oracle

from physiofast.probing import TASKS, ProbeConfig, ProbeReport, compare_probes, hypnogram_arrays, linear

FAST = ProbeConfig(tasks=("stage", "arousal", "apnea"), bootstrap_draws=200, c_grid=(1e-3, 1e-2, 1e-1))


@dataclasses.dataclass
class Cohort:
    features: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    subject: np.ndarray
    train: np.ndarray
    test: np.ndarray

    def compare(self, config: ProbeConfig = FAST) -> ProbeReport:
        return compare_probes(self.features, self.labels, self.subject, self.train, self.test, config)


def make_cohort(*, subjects: int = 15, windows: int = 40, seed: int = 0) -> Cohort:
    """`pretrained` shows the stage clearly, `untrained` hardly; age and sex are in every window."""
    rng = np.random.default_rng(seed)
    n = subjects * windows
    index = np.repeat(np.arange(subjects), windows)
    stage = rng.integers(0, 5, n)
    apnea = (rng.random(n) < 0.3).astype(int)
    age, sex = rng.uniform(20, 80, subjects), rng.integers(0, 2, subjects)
    centre = rng.normal(size=(5, 8))

    def embedding(signal: float) -> np.ndarray:
        mixed = signal * centre[stage] + rng.normal(size=(n, 8)) + 0.3 * rng.normal(size=(subjects, 8))[index]
        more = np.stack([apnea + rng.normal(0, 0.7, n), age[index] / 20, 2.0 * sex[index]], 1)
        return np.concatenate([mixed, more + 0.1 * rng.normal(size=more.shape)], 1).astype(np.float32)

    return Cohort(
        features={"pretrained": embedding(1.5), "untrained": embedding(0.4), "band_power": embedding(1.0)},
        labels={
            "stage": stage.astype(np.int8),
            "arousal": (rng.random(n) < 0.2).astype(np.int8),
            "apnea": apnea.astype(np.int8),
            "age": age[index],
            "sex": sex[index].astype(np.int8),
        },
        subject=np.array([f"s{i:03d}" for i in index]),
        train=index % 3 != 0,
        test=index % 3 == 0,
    )


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort()


@pytest.fixture(scope="module")
def report(cohort: Cohort) -> ProbeReport:
    return cohort.compare()


def test_scores_are_those_of_the_returned_predictions(cohort: Cohort, report: ProbeReport) -> None:
    for name in cohort.features:
        predicted, truth = report.predictions["stage"][name], cohort.labels["stage"]
        assert np.all(predicted[~cohort.test] == -1)
        t, p = truth[cohort.test], predicted[cohort.test]
        model = report.tasks["stage"].models[name]
        assert model.scores["balanced_accuracy"].value == pytest.approx(oracle.balanced_accuracy_score(t, p))
        assert model.scores["kappa"].value == pytest.approx(oracle.cohen_kappa_score(t, p))
        assert model.confusion == oracle.confusion_matrix(t, p, labels=range(5)).tolist()
        assert model.note == ""


def test_result_counts_and_chance(cohort: Cohort, report: ProbeReport) -> None:
    stage, apnea = report.tasks["stage"], report.tasks["apnea"]
    assert (stage.train_windows, stage.test_windows) == (400, 200)
    assert (stage.train_subjects, stage.test_subjects) == (10, 5)
    assert report.test_subjects == tuple(f"s{i:03d}" for i in range(0, 15, 3))
    assert stage.chance["balanced_accuracy"] == 0.2
    assert apnea.chance["auroc"] == 0.5
    assert apnea.chance["auprc"] == pytest.approx(cohort.labels["apnea"][cohort.test].mean())
    assert set(stage.models["pretrained"].scores) == {"balanced_accuracy", "macro_f1", "kappa"}
    assert set(apnea.models["pretrained"].scores) == {
        "balanced_accuracy",
        "macro_f1",
        "kappa",
        "auroc",
        "auprc",
    }


def test_chance_is_what_uniform_guessing_scores() -> None:
    rng = np.random.default_rng(0)
    cohort = make_cohort(subjects=6, windows=20)
    cohort.labels = {"stage": rng.choice(5, 120, p=[0.5, 0.05, 0.2, 0.15, 0.1])}
    chance = cohort.compare().tasks["stage"].chance
    truth = np.repeat(cohort.labels["stage"][cohort.test], 5000)
    guess = rng.integers(0, 5, len(truth))
    assert chance["macro_f1"] == pytest.approx(oracle.f1_score(truth, guess, average="macro"), abs=0.003)
    assert chance["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(truth, guess), abs=0.003)


def test_paired_difference_excludes_zero_where_one_is_better(report: ProbeReport) -> None:
    stage = report.tasks["stage"]
    found = stage.differences["pretrained - untrained"]["balanced_accuracy"]
    values = [stage.models[name].scores["balanced_accuracy"].value for name in ("pretrained", "untrained")]
    assert found.value == pytest.approx(values[0] - values[1])
    assert found.low > 0
    assert found.excludes_zero
    assert set(stage.differences) == {"pretrained - untrained", "pretrained - band_power"}


def test_paired_difference_of_equal_features_is_zero_in_every_draw(cohort: Cohort) -> None:
    same = dataclasses.replace(
        cohort, features={"a": cohort.features["pretrained"], "b": cohort.features["pretrained"]}
    )
    for task in same.compare().tasks.values():
        for found in task.differences["a - b"].values():
            assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
            assert not found.excludes_zero


def test_paired_difference_of_equally_good_features_includes_zero() -> None:
    included = 0
    for seed in range(6):
        cohort = make_cohort(seed=seed, windows=20)
        rng = np.random.default_rng(seed)
        clear = cohort.features["pretrained"]
        cohort.features = {name: clear + rng.normal(size=clear.shape) for name in ("a", "b")}
        cohort.labels = {"stage": cohort.labels["stage"]}
        included += not cohort.compare().tasks["stage"].differences["a - b"]["balanced_accuracy"].excludes_zero
    assert included >= 4


def test_pairing_is_narrower_than_two_independent_intervals(report: ProbeReport) -> None:
    stage = report.tasks["stage"]
    widths = [e.high - e.low for e in (m.scores["balanced_accuracy"] for m in stage.models.values())]
    paired = stage.differences["pretrained - untrained"]["balanced_accuracy"]
    assert paired.high - paired.low < widths[0] + widths[1]


def test_json_round_trip(report: ProbeReport) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    back = ProbeReport.from_dict(json.loads(text))
    assert back.to_dict() == report.to_dict()
    assert back.tasks["stage"].models["pretrained"] == report.tasks["stage"].models["pretrained"]


@pytest.mark.parametrize("change", [{"version": 9}, {"format": "other"}])
def test_result_of_another_version_is_refused(report: ProbeReport, change: dict) -> None:
    with pytest.raises(ValueError, match="run `physiofast probe RUN` again"):
        ProbeReport.from_dict(report.to_dict() | change)


def test_same_input_gives_the_same_result(cohort: Cohort, report: ProbeReport) -> None:
    assert cohort.compare().to_dict() == report.to_dict()


def test_window_order_does_not_matter_for_the_scores(cohort: Cohort, report: ProbeReport) -> None:
    order = np.random.default_rng(0).permutation(len(cohort.subject))
    shuffled = Cohort(
        {name: values[order] for name, values in cohort.features.items()},
        {name: values[order] for name, values in cohort.labels.items()},
        cohort.subject[order],
        cohort.train[order],
        cohort.test[order],
    )
    for name, task in shuffled.compare().tasks.items():
        for key, model in task.models.items():
            for score, found in model.scores.items():
                expected = report.tasks[name].models[key].scores[score]
                assert found.value == pytest.approx(expected.value, abs=0.02)


def test_missing_features_become_the_training_mean(cohort: Cohort, report: ProbeReport) -> None:
    rng = np.random.default_rng(0)
    holes = cohort.features["pretrained"].copy()
    holes[rng.random(holes.shape) < 0.05] = np.nan
    empty_column = np.full((len(holes), 1), np.nan, np.float32)
    constant = np.full((len(holes), 1), 3.0, np.float32)
    widened = {
        "pretrained": np.concatenate([cohort.features["pretrained"], empty_column, constant], 1),
        "holes": holes,
    }
    stage = dataclasses.replace(cohort, features=widened).compare().tasks["stage"]
    plain = report.tasks["stage"].models["pretrained"].scores["balanced_accuracy"].value
    # A column that is never known, or never varies, changes nothing at all.
    assert stage.models["pretrained"].scores["balanced_accuracy"].value == plain
    assert plain - 0.15 < stage.models["holes"].scores["balanced_accuracy"].value <= plain + 0.02


def test_scale_and_offset_of_features_do_not_matter(cohort: Cohort, report: ProbeReport) -> None:
    scaled = cohort.features["pretrained"].astype(np.float64) * 1000 + 50
    stage = dataclasses.replace(cohort, features={"pretrained": scaled}).compare().tasks["stage"]
    assert stage.models["pretrained"].confusion == report.tasks["stage"].models["pretrained"].confusion


def test_nothing_of_the_test_subjects_reaches_the_fit(cohort: Cohort, report: ProbeReport) -> None:
    poisoned = {name: values.copy() for name, values in cohort.labels.items()}
    poisoned["stage"][cohort.test] = np.random.default_rng(5).permutation(poisoned["stage"][cohort.test])
    other = dataclasses.replace(cohort, labels=poisoned).compare()
    for name in cohort.features:
        np.testing.assert_array_equal(other.predictions["stage"][name], report.predictions["stage"][name])


def test_unknown_labels_are_left_out_but_predicted(cohort: Cohort) -> None:
    labels = {"stage": cohort.labels["stage"].copy()}
    labels["stage"][::4] = -1
    found = dataclasses.replace(cohort, labels=labels).compare()
    stage = found.tasks["stage"]
    assert (stage.train_windows, stage.test_windows) == (300, 150)
    assert np.all(found.predictions["stage"]["pretrained"][cohort.test] >= 0)


@pytest.mark.parametrize(
    ("side", "value", "status"),
    [
        ("train", 0, "all training windows are of one class (none)"),
        ("test", 1, "all test windows are of one class (arousal)"),
        ("train", -1, "no training windows with a label for arousal"),
        ("test", -1, "no test windows with a label for arousal"),
    ],
)
def test_labels_that_cannot_be_probed_give_a_status(cohort: Cohort, side: str, value: int, status: str) -> None:
    labels = {"arousal": cohort.labels["arousal"].copy()}
    labels["arousal"][getattr(cohort, side)] = value
    found = dataclasses.replace(cohort, labels=labels).compare()
    assert found.tasks["arousal"].status == status
    assert found.tasks["arousal"].models == {}
    assert found.tasks["stage"].status == "no labels for stage"
    assert found.predictions == {}


def test_a_class_that_training_never_saw_is_scored_as_missed(cohort: Cohort) -> None:
    labels = {"stage": cohort.labels["stage"].copy()}
    labels["stage"][cohort.train & (labels["stage"] == 4)] = -1
    stage = dataclasses.replace(cohort, labels=labels).compare().tasks["stage"]
    confusion = np.array(stage.models["pretrained"].confusion)
    assert confusion[4].sum() > 0
    assert confusion[:, 4].sum() == 0


def test_age_and_sex_need_enough_subjects(cohort: Cohort) -> None:
    found = cohort.compare(ProbeConfig(tasks=("age", "sex"), bootstrap_draws=50))
    for name in ("age", "sex"):
        assert found.tasks[name].status == "not enough subjects (found 15, need 50)"
        assert found.tasks[name].models == {}


def test_age_and_sex_on_windows_pooled_per_subject() -> None:
    cohort = make_cohort(subjects=60, windows=5)
    cohort.labels["age"][cohort.subject == "s003"] = np.nan
    found = cohort.compare(ProbeConfig(tasks=("age", "sex"), bootstrap_draws=200))
    age, sex = found.tasks["age"], found.tasks["sex"]
    assert (age.train_windows, age.test_windows, sex.test_windows) == (40, 19, 20)
    score = age.models["pretrained"].scores
    assert score["mae"].value < 0.3 * age.chance["mae"]
    assert score["r2"].value > 0.9
    assert score["mae"].low < score["mae"].value < score["mae"].high
    assert sex.models["pretrained"].scores["auroc"].value > 0.95
    assert age.models["pretrained"].confusion == []


def test_one_test_subject_has_no_interval(cohort: Cohort) -> None:
    alone = dataclasses.replace(cohort, test=cohort.subject == "s000")
    stage = alone.compare().tasks["stage"]
    score = stage.models["pretrained"].scores["balanced_accuracy"]
    assert np.isfinite(score.value)
    assert np.isnan([score.low, score.high]).all()
    assert not stage.differences["pretrained - untrained"]["balanced_accuracy"].excludes_zero


def test_one_training_subject_takes_the_middle_of_the_grid(cohort: Cohort) -> None:
    alone = dataclasses.replace(cohort, train=cohort.subject == "s001")
    assert alone.compare().tasks["stage"].models["pretrained"].regularisation == 1e-2


def test_solver_that_does_not_converge_is_recorded(cohort: Cohort) -> None:
    found = cohort.compare(dataclasses.replace(FAST, max_iterations=2, tasks=("stage",)))
    assert "before it converged" in found.tasks["stage"].models["pretrained"].note


def test_training_windows_are_thinned_to_the_limit(cohort: Cohort) -> None:
    found = cohort.compare(dataclasses.replace(FAST, max_train_windows=100))
    assert found.tasks["stage"].train_windows == 100
    assert found.tasks["stage"].test_windows == 200


def test_subject_on_both_sides_is_refused(cohort: Cohort) -> None:
    leaky = dataclasses.replace(cohort, train=np.ones_like(cohort.train))
    with pytest.raises(ValueError, match="both in training and test: s000"):
        leaky.compare()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("spoilt", ["pretrained", "untrained"])
def test_features_without_a_finite_value_are_no_chance_level(cohort: Cohort, spoilt: str, value: float) -> None:
    features = cohort.features | {spoilt: np.full_like(cohort.features[spoilt], value)}
    with pytest.raises(ValueError, match=rf"features\['{spoilt}'\] have no finite value in any training window"):
        dataclasses.replace(cohort, features=features).compare()


def test_bad_input_is_refused_by_name(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="did you mean 'stage'"):
        dataclasses.replace(cohort, labels={"stages": cohort.labels["stage"]}).compare()
    with pytest.raises(ValueError, match=r"features\['x'\] has 3 rows, but there are 600 windows"):
        dataclasses.replace(cohort, features={"x": np.zeros((3, 2))}).compare()
    with pytest.raises(ValueError, match="has a class 7; allowed are -1"):
        dataclasses.replace(cohort, labels={"stage": np.full(600, 7)}).compare()
    with pytest.raises(ValueError, match="no test windows"):
        dataclasses.replace(cohort, test=np.zeros(600, bool)).compare()
    with pytest.raises(ValueError, match="no feature set"):
        dataclasses.replace(cohort, features={}).compare()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("stge",)}, "probe.tasks: no probe is named 'stge'; did you mean 'stage'"),
        ({"c_grid": ()}, "probe.c_grid must hold one or more values above 0; found none"),
        ({"ridge_grid": (0.0,)}, "probe.ridge_grid must be above 0; found 0.0"),
        ({"folds": 1}, "probe.folds must be at least 2; found 1"),
        ({"bootstrap_draws": 3}, "probe.bootstrap_draws must be at least 20; found 3"),
        ({"confidence": 95.0}, "probe.confidence must be above 0 and below 1; found 95.0"),
        ({"tolerance": 0.0}, "probe.tolerance must be above 0 and below 1; found 0.0"),
    ],
)
def test_config_is_validated(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**change)


def test_hypnogram_arrays_are_in_order_of_record_and_epoch() -> None:
    arrays = hypnogram_arrays(
        ["b", "a", "a", "c"],
        np.array([0, 9, 3, 1]),
        np.array([0, 1, 2, 3]),
        np.array([4, 3, 2, 1]),
        np.array([True, True, True, False]),
    )
    assert arrays["record"].tolist() == ["a", "a", "b"]
    assert arrays["epoch"].tolist() == [3, 9, 0]
    assert arrays["stage_true"].tolist() == [2, 1, 0]
    assert arrays["stage_pred"].tolist() == [2, 3, 4]


def test_importing_does_not_load_scikit_learn() -> None:
    code = "import sys, physiofast.probing, physiofast.splits; raise SystemExit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tasks_name_their_headline_score() -> None:
    assert {task.headline for task in TASKS.values()} == {"balanced_accuracy", "auroc", "mae"}


def test_the_solver_stops_where_probabilities_do_not_change_any_more():
    """Stopped early, fits to left-out subjects would look better with too weak a regularisation than they are."""
    rng, n, width = np.random.default_rng(1), 180, 60
    subject, y = np.repeat(np.arange(6), n // 6), rng.integers(0, 3, n)
    few = rng.normal(size=(n, 5)) + np.eye(3)[y] @ rng.normal(size=(3, 5)) * 0.7
    x = few @ rng.normal(size=(5, width)) + 0.2 * rng.normal(size=(n, width))  # alike, as band powers are
    x = (x - x.mean(0)) / x.std(0)

    def probability(tolerance):
        search = linear.Search(grid=(10.0,), folds=3, seed=0)
        options = {"search": search, "max_iterations": 9000, "tolerance": tolerance}
        return linear.fit_logistic(x, y, subject, classes=3, **options).predict(x)

    assert np.abs(probability(ProbeConfig().tolerance) - probability(1e-7)).max() < 0.01
