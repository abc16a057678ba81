"""Paths as users give them to Python: text or not, with a `~` or without one."""

from pathlib import Path

import pytest
from rich.console import Console

import physiofast as pf
from physiofast.checkpoint import latest_checkpoint, load_checkpoint
from physiofast.config import Config, read_toml
from physiofast.demo import run_demo
from physiofast.model import MultimodalMAE
from physiofast.official_targets import read_official_arousal, read_official_stages
from physiofast.preparation import prepare
from physiofast.progress import Progress
from physiofast.report import write_report
from physiofast.runfolder.files import load_metrics, load_stages
from physiofast.runs import resume_run, start_run, train_run
from physiofast.sharing import push_run
from physiofast.store.verification import verify_store
from physiofast.support.paths import given_path
from tests.test_io_edf import write_edf
from tests.test_runs import CONFIG


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder; what `~` is not taken for lands beside it and not in the repository."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    yield folder
    assert not Path("~").exists()


def test_a_tilde_at_the_beginning_is_a_home_folder(home):
    assert given_path("~/x") == given_path(Path("~/x")) == home / "x"
    assert given_path("a/~/x") == Path("a/~/x")
    assert given_path("~nobody-is-called-so/x") == Path("~nobody-is-called-so/x")


def test_recordings_and_stores_are_found_in_a_home_folder(home):
    records = pf.write_cohort("~/cohort", pf.CohortConfig(subjects=1, hours=0.1, absent_share=0.0))
    report = prepare("~/cohort", "~/store")
    assert report.out == home / "store" and list(report.processed) == records
    assert pf.Store.open("~/store").path == home / "store"
    assert not any(damage for _, damage in verify_store("~/store").records)
    folder = pf.find_records("~/cohort")[0].path.parent
    assert folder == home / "cohort" / records[0]
    assert pf.open_recording(f"~/cohort/{records[0]}").path.parent == folder
    official = f"~/cohort/{records[0]}/{records[0]}-arousal.mat"
    assert read_official_arousal(official).size == read_official_stages(official).size


def test_a_hypnogram_is_found_in_a_home_folder(home):
    write_edf(home / "night.edf")
    with pytest.raises(FileNotFoundError) as error:
        pf.open_recording("~/night.edf", hypnogram="~/scored.edf")
    assert str(error.value).startswith(f"{home / 'scored.edf'}: no such hypnogram")


def test_runs_are_found_in_a_home_folder(store, home):
    (home / "my.toml").write_text("[training]\nsteps = 2\n")
    assert read_toml("~/my.toml", Config()).training.steps == 2
    assert train_run(start_run("~/first", store, CONFIG, "base"), Progress()).finished
    assert resume_run("~/first").path == home / "first"
    assert pf.train(store, "~/second", CONFIG, init="~/first").finished
    assert pf.open_run("~/second", store.path).path == home / "second"
    model = pf.load_pretrained("~/second")
    newest = latest_checkpoint(home / "second")[1]
    assert load_checkpoint(
        f"~/second/{newest.relative_to(home / 'second')}", MultimodalMAE(model.montage, model.config)
    )
    assert load_metrics("~/first/metrics.jsonl").steps
    assert pf.report_run("~/first") == write_report("~/first") == home / "first" / "report.html"
    with pytest.raises(FileNotFoundError, match=f"{home}/first/predictions.npz is not there"):
        load_stages("~/first/predictions.npz")


def test_a_store_that_has_moved_home_is_named_so(store, home):
    start_run("~/run", store, CONFIG, "base")
    store.path.rename(home / "moved")
    try:
        assert pf.open_run("~/run", "~/moved").store.path == home / "moved"
    finally:
        (home / "moved").rename(store.path)


def test_what_is_sent_lies_in_a_home_folder(home):
    with pytest.raises(ValueError, match=f"{home}/run"):
        push_run("~/run", "someone/sleep-mae")


def test_a_demo_that_is_there_already_is_found_in_a_home_folder(home):
    (home / "demo" / "run").mkdir(parents=True)
    (home / "demo" / "run" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{home}/demo already holds a demo"):
        run_demo("~/demo", 3, 0.1, 1, 0, Console())
