"""Every command as a user runs it, on a small synthetic cohort."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from physiofast import cli
from physiofast.store import Store

SMALL_RUN = """
[windows]
min_valid = 0.3
[model]
width = 16
depth = 1
heads = 2
decoder_width = 16
decoder_depth = 1
[training]
steps = 6
batch = 4
warmup_steps = 2
log_every = 2
eval_windows = 8
device = "cpu"
[probe]
bootstrap_draws = 50
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "recordings"
    assert cli.main(["synth", str(folder), "--subjects", "6", "--hours", "0.25", "--seed", "5", "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def store(cohort):
    folder = cohort.parent / "store"
    assert cli.main(["prepare", str(cohort), str(folder), "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def toml(cohort):
    file = cohort.parent / "small.toml"
    file.write_text(SMALL_RUN)
    return file


@pytest.fixture(scope="module")
def run(store, toml):
    folder = store.parent / "run"
    assert cli.main(["train", "demo", str(toml), "--store", str(store), "--out", str(folder), "--seed", "9"]) == 0
    return folder


def error_of(arguments, capsys):
    assert cli.main(list(map(str, arguments))) == 1
    return capsys.readouterr().err


def test_store_holds_every_record(store):
    opened = Store.open(store)
    assert len(opened.records) == 6
    assert opened.failed == ()
    assert all(record.num_windows == 30 for record in opened.records)


def test_inspect_prints_what_prepare_drops(cohort, store, capsys):
    assert cli.main(["inspect", str(cohort), "--json"]) == 0
    surveys = json.loads(capsys.readouterr().out)
    drops = {record.record: record.drops for record in Store.open(store).records}
    assert {survey["record"]: survey["drops"] for survey in surveys} == drops
    assert cli.main(["inspect", str(cohort)]) == 0
    printed = capsys.readouterr().out
    assert surveys[0]["record"] in printed
    assert "C3-M2" in printed
    assert "hours per stage" in printed


def test_prepare_again_does_nothing(cohort, store, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in store.glob("*.safetensors")}
    assert cli.main(["prepare", str(cohort), str(store), "--workers", "1"]) == 0
    assert "0 records prepared, 6 were there already" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in store.glob("*.safetensors")} == before


def test_flags_and_file_change_the_recipe(run):
    saved = json.loads((run / "config.json").read_text())
    assert saved["recipe"] == "demo"
    assert saved["config"]["seed"] == 9
    assert saved["config"]["model"]["width"] == 16
    assert saved["config"]["masking"]["keep"] == 0.4


def test_probe_and_report(run, capsys):
    assert cli.main(["probe", str(run)]) == 0
    assert cli.main(["report", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "band_power" in printed
    summary = json.loads((run / "summary.json").read_text())
    assert summary["probes"] == json.loads((run / "probe.json").read_text())
    assert set(summary["seconds"]) == {"train", "probe", "report"}
    assert summary["throughput"]["windows_per_s"] > 0
    with np.load(run / "reconstruction.npz") as arrays:
        hidden, rebuilt, true = arrays["hidden_0"], arrays["rebuilt_0"], arrays["true_0"]
        inside = np.repeat(hidden, 128, axis=1)
        assert np.isfinite(rebuilt[inside]).all()
        assert np.isnan(rebuilt[~inside]).all()
        assert np.isfinite(true[inside]).all()
        assert 5 < np.nanstd(true) < 200  # microvolts, not robust scores
    page = (run / "report.html").read_text()
    assert "Hypnogram" in page or "hypnogram" in page


def test_resume_goes_on_and_refuses_other_options(run, store, toml, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    message = error_of(["train", "demo", "--store", store, "--out", copy], capsys)
    assert f"continue it with `physiofast train --resume {copy}`" in message
    assert "leave out" in error_of(["train", "demo", "--resume", copy], capsys)
    assert cli.main(["train", "--resume", str(copy)]) == 0
    assert (copy / "metrics.jsonl").read_text().count('"step": 6') >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command is named 'trian'; did you mean 'train'"),
        (["train"], "name a recipe: base, demo, small, strict-cross-modal"),
        (["train", "dmo"], "no recipe is named 'dmo'; did you mean 'demo'"),
        (["train", "demo"], "make them with `physiofast prepare IN DIR`"),
        (["train", "demo", "--store", "nowhere"], "nowhere is not a store: it has no manifest.json"),
        (["probe", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["inspect", "nowhere"], "nowhere"),
        (["prepare", "nowhere", "out"], "nowhere"),
        (["train", "demo", "missing.toml", "--store", "x"], "missing.toml"),
        (["demo", "--subjects", "2", "--out", "unused"], "at least 3 subjects"),
    ],
)
def test_bad_input_is_explained_on_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = error_of(arguments, capsys)
    assert message in printed
    assert printed.startswith("physiofast: ")
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no record in this folder" in error_of(["prepare", tmp_path / "empty", tmp_path / "out"], capsys)


def test_unknown_flag_names_the_nearest(capsys, store):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "demo", "--store", str(store), "--training.step", "3"])
    assert ended.value.code == 2
    assert "--training.steps" in capsys.readouterr().err


def test_one_bad_record_does_not_stop_the_others(cohort, tmp_path, capsys):
    folder = tmp_path / "recordings"
    shutil.copytree(cohort, folder)
    names = (folder / "RECORDS").read_text().split()
    broken = folder / names[0] / f"{names[0].rstrip('/').split('/')[-1]}.mat"
    broken.write_bytes(broken.read_bytes()[:-1000])
    assert cli.main(["prepare", str(folder), str(tmp_path / "store"), "--workers", "1"]) == 0
    assert "5 records prepared, 0 were there already, 1 failed" in capsys.readouterr().out
    assert len(Store.open(tmp_path / "store").failed) == 1
    assert cli.main(["prepare", str(folder), str(tmp_path / "store"), "--workers", "1", "--strict"]) == 1
    assert cli.main(["inspect", str(folder)]) == 1
    assert "refused" in capsys.readouterr().out


def test_overview_names_every_command(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"physiofast {name}" in capsys.readouterr().out


def test_options_have_help_texts():
    for options in (cli.DemoOptions, cli.SynthOptions, cli.InspectOptions, cli.PrepareOptions, cli.TrainOptions):
        assert options.__doc__
        assert dataclasses.fields(options)
