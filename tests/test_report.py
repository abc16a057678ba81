from __future__ import annotations

import dataclasses
import html
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

from physiofast.analysis import AttentionShares
from physiofast.probing.metrics import Estimate
from physiofast.probing.results import ModelResult, ProbeReport, TaskResult
from physiofast.report import spectra, write_report
from physiofast.runfolder.files import Reconstruction, Trace, load_metrics, load_reconstruction, load_stages

NASTY = "<b>tr03-0005</b> & $x_1$"
FILES = (
    "attention.json",
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "predictions.npz",
    "prepare.json",
    "probe.json",
    "reconstruction.npz",
    "summary.json",
)


class Page(HTMLParser):
    """The numbers of a page by the key of their cell, its text, and whether its tags are balanced."""

    VOID = frozenset({"meta", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: dict[str, list[float]] = {}
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._cell = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "td":
            self._cell = found.get("data-score") or found.get("data-error") or ""
        if tag == "data":
            self.numbers.setdefault(self._cell, []).append(float(found["value"] or "nan"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._cell = "" if tag == "td" else self._cell

    def handle_data(self, data: str) -> None:
        self.text += " " + data


def make_probes() -> ProbeReport:
    def estimate(value: float) -> Estimate:
        return Estimate(value, value - 0.05123, value + 0.06234)

    def task(name: str, classes: tuple[str, ...], headline: str, scores: tuple[str, ...], base: float) -> TaskResult:
        models = {
            model: ModelResult(
                scores={key: estimate(base + 0.1 * i) for key in scores},
                confusion=(np.eye(len(classes), dtype=int) * 30 + 2).tolist() if classes else [],
                regularisation=0.1,
                note="the solver stopped after 300 iterations before it converged" if i == 0 else "",
            )
            for i, model in enumerate(("pretrained", "untrained", "band_power"))
        }
        differences = {
            f"pretrained - {other}": {key: estimate(-0.123456) for key in scores}
            for other in ("untrained", "band_power")
        }
        return TaskResult(
            task=name,
            classes=classes,
            headline=headline,
            train_subjects=16,
            test_subjects=8,
            train_windows=1920,
            test_windows=960,
            chance=dict.fromkeys(scores, 0.2),
            models=models,
            differences=differences,
        )

    common = ("balanced_accuracy", "macro_f1", "kappa")
    return ProbeReport(
        tasks={
            "stage": task("stage", ("W", "N1", "N2", "N3", "R"), "balanced_accuracy", common, 0.6123456),
            "apnea": task("apnea", ("none", "apnea"), "auroc", (*common, "auroc", "auprc"), 0.7),
            "age": task("age", (), "mae", ("mae", "r2"), 9.5),
            "sex": TaskResult(task="sex", status="not enough subjects (found 24, need 50)"),
        },
        train_subjects=tuple(f"s{i}" for i in range(16)),
        test_subjects=tuple(f"t{i}" for i in range(8)),
        config={"confidence": 0.95, "bootstrap_draws": 1000},
    )


def with_test_subjects(report: ProbeReport, count: int) -> ProbeReport:
    tasks = {name: dataclasses.replace(task, test_subjects=count) for name, task in report.tasks.items()}
    return dataclasses.replace(report, tasks=tasks)


def make_reconstruction() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    channels = [
        ("C3-M2", "uV", "EEG", 64.0),
        ("ECG", "mV", "ECG", 64.0),
        ("SaO2", "%", "SPO2", 8.0),
        (NASTY, "$", "RESP", 8.0),
    ]
    names, units, modalities, rates = (np.array(column) for column in zip(*channels, strict=True))
    arrays = {
        "names": names,
        "unit": units,
        "modality": modalities,
        "rate_hz": rates,
        "patch_s": np.float64(1.0),
        "step": np.int64(20),
    }
    arrays |= {"record": np.array([NASTY] * 4), "epoch": np.arange(4) + 20}
    for i, rate in enumerate(rates):
        true = rng.normal(size=(4, round(30 * rate)))
        hidden = rng.random((4, 30)) < 0.6
        rebuilt = np.where(np.repeat(hidden, round(rate), axis=1), 0.5 * true, np.nan)
        if i == 1:
            true[0] = rebuilt[0] = np.nan
        arrays |= {f"true_{i}": true, f"rebuilt_{i}": rebuilt, f"hidden_{i}": hidden}
    return arrays


def make_run(run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    probes = make_probes()
    share = {"from_channels": 0.3, "from_neighbours": 0.2, "total": 0.4}
    summary = {
        "errors": {
            "EEG": {"error": 0.712345678, "predictable_share": share},
            "EMG": {"error": 1.001, "predictable_share": share | {"total": 0.01}},
            "SPO2": {"error": None, "predictable_share": None},
        },
        "probes": probes.to_dict(),
        "throughput": {"windows_per_s": 151.37},
        "seconds": {"prepare": 21.25, "pretrain": 120.5},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "probe.json").write_text(json.dumps(probes.to_dict()))
    lines: list[dict] = [
        {
            "step": s,
            "loss": 1 / s,
            "lr": 1e-3 / s,
            "windows_per_s": 100.0 + s,
            "loss.EEG": 1 / s,
            "loss.SPO2": 2 / s,
        }
        for s in range(1, 21)
    ]
    lines += [{"step": s, "eval": {"error.EEG": 1 - s / 50, "error.SPO2": 0.9}} for s in (10, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez(run / "reconstruction.npz", **make_reconstruction())
    rng = np.random.default_rng(0)
    true = rng.integers(-1, 5, 180)
    wrong = np.repeat([0.1, 0.3, 0.5], 60)
    predicted = np.where(rng.random(180) < wrong, rng.integers(0, 5, 180), np.maximum(true, 0))
    np.savez(
        run / "predictions.npz",
        record=np.repeat(["a", NASTY, "c"], 60),
        epoch=np.tile(np.r_[0:40, 50:70], 3),
        stage_true=true.astype(np.int8),
        stage_pred=predicted.astype(np.int8),
        epoch_s=30.0,
        step=20,
    )
    shares = AttentionShares(
        modalities=("EEG", NASTY, "SPO2"),
        windows=24,
        share=np.full((2, 4, 3, 3), [[0.5, 0, 0.5], [np.nan] * 3, [0.25, 0, 0.75]]),
        uniform_share=np.asarray([[0.9, 0, 0.1], [np.nan] * 3, [0.9, 0, 0.1]]),
        seconds=np.full((2, 4, 3), [2.5, np.nan, 7.25]),
        uniform_seconds=np.asarray([10.0, np.nan, 10.0]),
    )
    (run / "attention.json").write_text(json.dumps(shares.to_dict() | {"step": 20}))
    records = [
        {
            "record": f"r{i}",
            "subject": NASTY,
            "hours": 1.5,
            "drops": {"E1-M2": "absent: no channel of it"} | ({"O1-M2": "<i>flat</i>"} if i % 2 else {}),
            "warnings": ["no <i>age</i> is known"] if i < 105 else [],
        }
        for i in range(240)
    ]
    failed = [{"record": "bad1", "reason": "zero gain"}, {"record": "bad2", "reason": "truncated"}]
    (run / "prepare.json").write_text(json.dumps({"records": records, "failed": failed}))
    (run / "config.json").write_text(json.dumps({"model": {"width": 96, "ids": [1, 2]}, "note": NASTY, "none": None}))
    (run / "environment.json").write_text(json.dumps({"torch": "2.13.0"}))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "night")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text())


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing, which takes most of a page's time, where a test looks at the text."""
    for name in ("training_curves", "probe_scores", "reconstruction", "spectra", "hypnogram"):
        monkeypatch.setattr(f"physiofast.report.figures.{name}", lambda *args: "<svg></svg>")


def copy_of(run: Path, target: Path, *, without: str = "") -> Path:
    target.mkdir()
    for name in FILES:
        if name != without:
            (target / name).write_bytes((run / name).read_bytes())
    return target


def test_numbers_equal_those_of_the_summary(run: Path, page: Page) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for modality in ("EEG", "EMG"):
        assert page.numbers[modality] == [summary["errors"][modality]["error"]]
    checked = 0
    for name, task in summary["probes"]["tasks"].items():
        for model, result in task["models"].items():
            for key, score in result["scores"].items():
                assert page.numbers[f"{name}/{model}/{key}"] == [score["value"], score["low"], score["high"]]
                checked += 1
        for pair, scores in task["differences"].items():
            for key, score in scores.items():
                assert page.numbers[f"{name}/{pair}/{key}"] == [score["value"], score["low"], score["high"]]
                checked += 1
    assert checked == 50


def test_rounded_text_is_shown(page: Page) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "0.712" in text
    assert "0.612 [ 0.561 , 0.675 ]" in text
    assert "−0.123" in text
    assert "worse, the interval excludes 0" in text
    assert "better, the interval excludes 0" in text  # a lower error of age is better
    assert "not enough subjects (found 24, need 50)" in text
    assert "nothing to find" in text
    assert "151.4 windows per second" in text
    assert "All stages together took 141.8 s" in text
    assert "240 recordings of 1 subject, 360.0 h" in text
    assert "120 lost one or more channels; 2 failed" in text
    assert "and 20 more in prepare.json" in text
    assert "Absent, of 240 recordings: E1-M2 in 240." in text and "no channel of it" not in text
    assert text.count("no <i>age</i> is known") == 100 and "and 5 more in prepare.json" in text
    assert "µV" in text


def test_few_labelled_subjects_are_said_to_tell_little(run: Path, tmp_path: Path, plain_figures: None) -> None:
    """The subjects that a score rests on count, and not those that are held out, some of them unscored."""
    few = copy_of(run, tmp_path / "few")
    (few / "probe.json").write_text(json.dumps(with_test_subjects(make_probes(), 2).to_dict()))
    text = re.sub(r"\s+", " ", Page(write_report(few).read_text()).text)
    assert "Only 2 held-out subjects with a label; intervals over fewer than 5 subjects mean little." in text
    assert "balanced accuracy on 2 held-out subjects, too few for an interval" in text
    assert "interval 0." not in text and "excludes 0)" not in text
    (few / "probe.json").write_text(json.dumps(with_test_subjects(make_probes(), 1).to_dict()))
    text = re.sub(r"\s+", " ", Page(write_report(few).read_text()).text)
    assert "on 1 held-out subject (chance" in text
    assert "Only 1 held-out subject with a label, so no interval can be given." in text


def test_what_the_encoder_attends_to_is_shown(run: Path) -> None:
    """Of a modality that no window had, nothing."""
    text = (run / "report.html").read_text()
    for cell in ('data-attention="EEG/SPO2">50<small>10<', 'data-attention="SPO2/SPO2">75<small>10<'):
        assert cell in text
    section = text.split("What the encoder attends to")[1].split("A held-out night")[0]
    assert "in 24 held-out windows" in section and "2 encoder blocks of 4 heads" in section
    assert "tr03" not in section and "nan" not in section
    shown = re.sub(r"<[^>]*>|&nbsp;|\s+", " ", section.split("tokens of")[2])
    assert "EEG 50 %, 50 % 2.5 , 2.5 s 10.0 s" in " ".join(shown.split())
    assert "SPO2 75 %, 75 % 7.2 , 7.2 s 10.0 s" in " ".join(shown.split())


def test_page_is_whole_self_contained_and_valid(run: Path, page: Page) -> None:
    text = (run / "report.html").read_text()
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert text.count("<svg ") == 5
    assert "#0100" not in text
    assert "<script" not in text
    links = re.findall(r'(?:href|src)\s*=\s*"([^"]*)"|url\(([^)]*)\)', text)
    targets = {a or b for a, b in links}
    assert all(target.startswith("#") for target in targets)
    assert {target[1:] for target in targets} <= set(page.ids)
    assert not list(run.glob(".report-*"))


def test_names_are_escaped_everywhere(run: Path) -> None:
    text = (run / "report.html").read_text()
    assert "<b>tr03" not in text
    assert "<i>flat" not in text
    assert text.count("&lt;b&gt;tr03-0005&lt;/b&gt; &amp; $x_1$") >= 4


def test_same_files_give_the_same_page(run: Path, tmp_path: Path) -> None:
    other = copy_of(run, tmp_path / "night")
    assert write_report(other).read_text() == (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("metrics.jsonl", "physiofast train RECIPE"),
        ("reconstruction.npz", "physiofast probe RUN"),
        ("attention.json", "physiofast probe RUN"),
        ("predictions.npz", "physiofast probe RUN"),
        ("prepare.json", "physiofast train RECIPE"),
        ("config.json", "physiofast train RECIPE"),
        ("environment.json", "physiofast train RECIPE"),
    ],
)
@pytest.mark.usefixtures("plain_figures")
def test_a_missing_file_names_the_command_that_makes_it(run: Path, tmp_path: Path, name: str, command: str) -> None:
    other = copy_of(run, tmp_path / "my other", without=name)
    text = write_report(other).read_text()
    assert f"{name} is not in this run folder." in text
    assert f"<code>{command.replace('RUN', shlex.quote(str(other)))}</code>" in html.unescape(text)
    assert Page(text).open == []


@pytest.mark.usefixtures("plain_figures")
def test_summary_and_probe_file_stand_in_for_each_other(run: Path, page: Page, tmp_path: Path) -> None:
    without_probe = Page(write_report(copy_of(run, tmp_path / "a", without="probe.json")).read_text())
    assert without_probe.numbers == page.numbers
    without_summary = Page(write_report(copy_of(run, tmp_path / "b", without="summary.json")).read_text())
    assert without_summary.numbers["stage/pretrained/kappa"] == page.numbers["stage/pretrained/kappa"]
    assert without_summary.numbers["EEG"] == [0.6]  # the last evaluation in metrics.jsonl
    assert "110.5 windows per second" in re.sub(r"\s+", " ", without_summary.text)


@pytest.mark.usefixtures("plain_figures")
def test_why_there_is_no_predictable_share_is_shown(run: Path, tmp_path: Path) -> None:
    other = copy_of(run, tmp_path / "other")
    summary = json.loads((other / "summary.json").read_text()) | {"predictable_share_missing": "2 records; <3> are few"}
    (other / "summary.json").write_text(json.dumps(summary))
    assert "No predictable share" not in write_report(other).read_text()  # an earlier start may have said so
    for entry in summary["errors"].values():
        entry["predictable_share"] = None
    (other / "summary.json").write_text(json.dumps(summary))
    assert "No predictable share: 2 records; &lt;3&gt; are few." in write_report(other).read_text()


def test_an_empty_run_folder_gives_a_page_of_hints(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text())
    assert page.text.count("is not in this run folder") == 11
    assert f"physiofast probe {tmp_path}" in page.text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("plain_figures")
def test_a_broken_file_is_reported_and_the_rest_is_shown(run: Path, tmp_path: Path, name: str) -> None:
    other = copy_of(run, tmp_path / "other")
    content = (other / name).read_bytes()
    (other / name).write_bytes(b"{]\n" + content[: len(content) // 2])
    text = write_report(other).read_text()
    assert "could not be shown:" in text
    assert name in text
    assert text.count('class="missing"') <= 5
    assert Page(text).open == []


def test_scores_without_an_interval_are_shown(run: Path, tmp_path: Path) -> None:
    def bare(scores: dict[str, Estimate]) -> dict[str, Estimate]:
        return {key: Estimate(score.value, float("nan"), float("nan")) for key, score in scores.items()}

    probes = make_probes()
    stage = probes.tasks["stage"]
    models = {name: dataclasses.replace(model, scores=bare(model.scores)) for name, model in stage.models.items()}
    differences = {pair: bare(scores) for pair, scores in stage.differences.items()}
    alone = dataclasses.replace(
        probes, tasks={"stage": dataclasses.replace(stage, models=models, differences=differences)}
    )
    other = copy_of(run, tmp_path / "other", without="probe.json")
    (other / "probe.json").write_text(json.dumps(alone.to_dict(), allow_nan=False))
    page = Page(write_report(other).read_text())
    assert page.numbers["stage/pretrained/kappa"] == [stage.models["pretrained"].scores["kappa"].value]
    assert "no interval can be given" in page.text


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`physiofast train RECIPE` makes one"):
        write_report(tmp_path / "nowhere")


def test_metrics_survive_a_kill_and_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 9.0},
        {"step": 20, "loss": 2.0},
        {"step": 30, "loss": 1.0},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo')
    steps, values = load_metrics(path).steps["loss"]
    assert steps.tolist() == [10, 20, 30]
    assert values.tolist() == [3.0, 2.0, 1.0]
    path.write_text('{"step": 1, "loss": 1.0}\nbroken\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"line 2: not a JSON object with a step"):
        load_metrics(path)


def test_arrays_that_are_missing_are_named(run: Path, tmp_path: Path) -> None:
    arrays = make_reconstruction()
    del arrays["rebuilt_2"]
    np.savez(tmp_path / "reconstruction.npz", **arrays)
    with pytest.raises(ValueError, match="has no array 'rebuilt_2', though it names 4 channels"):
        load_reconstruction(tmp_path / "reconstruction.npz")
    np.savez(tmp_path / "predictions.npz", record=np.array(["a"]), epoch=np.array([0]), stage_true=np.array([0]))
    with pytest.raises(ValueError, match="has no array 'stage_pred'"):
        load_stages(tmp_path / "predictions.npz")


def test_spectra_are_those_of_the_hidden_spans() -> None:
    rng = np.random.default_rng(0)
    true, rate = rng.normal(size=(6, 960)), 32.0
    hidden = np.zeros((6, 30), bool)
    hidden[:, 4:12] = True  # two spans of 4 s in each window
    rebuilt = np.where(np.repeat(hidden, 32, axis=1), 0.5 * true, np.nan)
    trace = Trace("C3-M2", "uV", "EEG", rate, true, rebuilt, hidden)
    found = Reconstruction(np.array(["a"] * 6), np.arange(6), 1.0, (trace,), 20)
    frequency, of_true, of_rebuilt, unit = spectra(found)["EEG"]
    spans = true[:, 4 * 32 : 12 * 32].reshape(12, 128)
    expected_f, expected = signal.periodogram(spans, rate, window=np.hanning(128), detrend="constant")
    np.testing.assert_allclose(frequency, expected_f[1:])
    np.testing.assert_allclose(of_true[:-1], expected.mean(0)[1:-1], rtol=1e-9)
    np.testing.assert_allclose(of_rebuilt, 0.25 * of_true, rtol=1e-9)
    assert unit == "uV"


def test_spectra_take_shorter_spans_where_long_ones_are_rare() -> None:
    hidden = np.tile(np.arange(30) % 2 == 0, (2, 1))
    true = np.random.default_rng(0).normal(size=(2, 960))
    rebuilt = np.where(np.repeat(hidden, 32, axis=1), true, np.nan)
    trace = Trace("C3-M2", "uV", "EEG", 32.0, true, rebuilt, hidden)
    found = Reconstruction(np.array(["a"] * 2), np.arange(2), 1.0, (trace,), 20)
    frequency, *_ = spectra(found)["EEG"]
    assert frequency[0] == 1.0
    nothing_hidden = dataclasses.replace(trace, hidden=np.zeros_like(hidden))
    assert spectra(dataclasses.replace(found, traces=(nothing_hidden,))) == {}
