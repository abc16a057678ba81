"""Every command as a user runs it, on a small synthetic cohort."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wfdb
from safetensors.numpy import load_file

from physiofast import cli
from physiofast.montage import MONTAGES
from physiofast.progress import Progress
from physiofast.store import Store
from physiofast.support.messages import command
from tests.helptexts import fields_without_text

SMALL_RUN = """
[windows]
min_valid_share = 0.3
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
checkpoint_every = 4
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


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="names are bytes of a UTF-8 file system")
def test_names_of_files_need_not_be_text(cohort, run, tmp_path):
    """As of a disk that was written under Latin-1: they are shown, and cost no page."""
    source = tmp_path / os.fsdecode(b"M\xfcller")
    shutil.copytree(next(path for path in cohort.iterdir() if path.is_dir()), source)
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    words = [sys.executable, "-m", "physiofast", "inspect", str(source)]
    (source / "RECORDS").write_bytes(b"not there \xfc\n")
    done = subprocess.run(words, capture_output=True, env=os.environ | strict)
    assert done.returncode == 1 and b"M\\udcfcller" in done.stdout + done.stderr, done
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "prepare.json").read_text())
    manifest["failed"] = [{"record": os.fsdecode(b"M\xfcller"), "reason": "empty"}]
    (copy / "prepare.json").write_text(json.dumps(manifest))
    assert cli.main(["report", str(copy)]) == 0
    assert "M\\udcfcller" in (copy / "report.html").read_text()


def test_store_holds_every_record(store):
    opened = Store.open(store)
    assert len(opened.records) == 6
    assert opened.failed == ()
    assert all(record.num_windows == 30 for record in opened.records)


def test_inspect_prints_what_prepare_drops(cohort, store, capsys):
    assert cli.main(["inspect", str(cohort), "--json"]) == 0
    out, err = capsys.readouterr()
    inspections = json.loads(out)
    assert json.loads(err)["task"] == "inspect"  # progress stays out of standard output
    drops = {record.record: record.drops for record in Store.open(store).records}
    assert {inspection["record"]: inspection["drops"] for inspection in inspections} == drops
    assert cli.main(["inspect", str(cohort)]) == 0
    printed = capsys.readouterr().out
    assert inspections[0]["record"] in printed
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
    assert set(summary["seconds"]) >= {"train", "probe", "report"}
    assert summary["throughput"]["windows_per_s"] > 0
    with np.load(run / "reconstruction.npz") as arrays:
        hidden, rebuilt, true = arrays["hidden_0"], arrays["rebuilt_0"], arrays["true_0"]
        inside = np.repeat(hidden, 128, axis=1)
        assert np.isfinite(rebuilt[inside]).all()
        assert np.isnan(rebuilt[~inside]).all()
        assert np.isfinite(true[inside]).all()
        assert 5 < np.nanstd(true) < 200  # microvolts, not robust scores
    page = (run / "report.html").read_text()
    hypnogram = re.split(r"<h2\b", page[page.index('<h2 id="hypnogram">') + 1 :])[0]
    assert "<svg" in hypnogram


def test_flags_of_a_probe_are_the_runs_from_then_on(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    before = json.loads((copy / "config.json").read_text())
    assert cli.main(["probe", str(copy), "--probe.tasks", "stage", "--probe.bootstrap-draws", "20"]) == 0
    printed = capsys.readouterr().out
    assert "stage" in printed and "apnea" not in printed
    after = json.loads((copy / "config.json").read_text())
    changed = before["config"]["probe"] | {"tasks": ["stage"], "bootstrap_draws": 20}
    assert after == before | {"config": before["config"] | {"probe": changed}}
    assert cli.main(["probe", "--probe.tasks", "stage", "arousal", "--", str(copy)]) == 0
    assert "arousal" in capsys.readouterr().out
    again = json.loads((copy / "config.json").read_text())["config"]["probe"]
    assert again == changed | {"tasks": ["stage", "arousal"]}
    with pytest.raises(SystemExit):
        cli.main(["probe", str(copy), "--probe.tasks", "stages"])
    assert "no probe is named 'stages'" in capsys.readouterr().err
    assert json.loads((copy / "config.json").read_text())["config"]["probe"] == again
    shutil.rmtree(copy / "checkpoints")
    assert "checkpoint" in error_of(["probe", str(copy), "--probe.folds", "2"], capsys)
    assert json.loads((copy / "config.json").read_text())["config"]["probe"] == again  # it did not probe


def assert_same_end(one, other):
    """The last checkpoints hold the same bits; the order of a file's entries is its writer's."""
    first, second = (load_file(path / "checkpoints" / "step-00000006.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


class Stops(Progress):
    """Presses Ctrl-C at the first note."""

    def note(self, line):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_stopped_run_goes_on_to_the_same_end(run, store, toml, tmp_path, capsys, monkeypatch):
    stopped = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr("physiofast.progress.make_progress", Stops)
        arguments = ["train", "demo", str(toml), "--store", str(store), "--out", str(stopped), "--seed", "9"]
        assert cli.main(arguments) == 130
    assert f"stopped after step 2; go on with: physiofast train --resume '{stopped}'" in capsys.readouterr().out
    assert [file.name for file in (stopped / "checkpoints").glob("*.safetensors")] == ["step-00000002.safetensors"]
    assert cli.main(["train", f"--resume={stopped}"]) == 0
    assert_same_end(stopped, run)
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 6]


TERMINATED = """
import importlib, os, signal, sys
from physiofast import cli
def terminate(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
importlib.import_module("physiofast.{module}").{function} = terminate
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("module", "function", "kept"),
    [
        ("training", "modality_variance", "it has no checkpoint yet; go on with: physiofast train --resume {run}"),
        (
            "runfolder.summary",
            "store_predictability",
            "its checkpoint of step 6 is kept; go on with: physiofast train --resume {run}",
        ),
    ],
)
def test_a_signal_before_the_first_step_and_after_the_last_says_how_to_go_on(
    run, store, toml, tmp_path, module, function, kept
):
    stopped = tmp_path / "run"
    arguments = ["train", "demo", str(toml), "--store", str(store), "--out", str(stopped), "--seed", "9"]
    code = TERMINATED.format(module=module, function=function)
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert f"physiofast: {stopped} was stopped, {kept.format(run=stopped)}\n" in ended.stderr
    assert cli.main(["train", "--resume", str(stopped)]) == 0
    assert_same_end(stopped, run)


def test_what_is_stopped_in_probes_and_in_preparation_says_how_to_go_on(run, cohort, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("physiofast.runs.compare_probes", interrupt)
    assert cli.main(["probe", str(run)]) == 130
    assert f"{run} can be probed again with: physiofast probe {run}\n" in capsys.readouterr().err
    monkeypatch.setattr("physiofast.preparation.prepare", interrupt)
    assert cli.main(["prepare", str(cohort), str(tmp_path / "store")]) == 130
    assert f"are kept in {tmp_path / 'store'}; run the same command again to resume\n" in capsys.readouterr().err
    monkeypatch.setitem(cli.COMMANDS, "doctor", interrupt)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "physiofast: interrupted\n"


def test_a_run_that_lost_its_last_checkpoint_goes_on_from_the_one_before(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step-00000006.safetensors").unlink()
    assert cli.main(["train", "--resume", str(copy)]) == 0
    assert_same_end(copy, run)


def test_resume_refuses_other_options(run, store, capsys):
    message = error_of(["train", "demo", "--store", store, "--out", run], capsys)
    assert f"continue it with `physiofast train --resume {run}`" in message
    for arguments in (["demo", "--resume", run], [f"--resume={run}", "--seed=3"], ["--resume", run, "--out=x"]):
        assert "leave out all other arguments except --store" in error_of(["train", *arguments], capsys)


def test_a_run_goes_on_and_is_probed_where_its_store_has_moved(run, store, tmp_path, capsys):
    copy, moved, other = (tmp_path / name for name in ("copy", "moved", "other"))
    shutil.copytree(run, copy)
    shutil.copytree(store, moved)
    shutil.copytree(store, other)
    (copy / "checkpoints" / "step-00000006.safetensors").unlink()
    saved = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(saved | {"store": str(tmp_path / "gone")}))
    for words in (["train", "--resume"], ["probe"]):
        message = error_of([*words, copy], capsys)
        assert f"{tmp_path / 'gone'}, which is gone; put it back there, or say with --store DIR" in message
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["records"][0]["hours"] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    for words in (["train", "--resume"], ["probe"]):
        assert "name the run's own store with --store" in error_of([*words, copy, "--store", other], capsys)
        assert "nowhere is not a store" in error_of([*words, copy, "--store", "nowhere"], capsys)
    assert cli.main(["train", "--resume", str(copy), "--store", str(moved)]) == 0
    assert_same_end(copy, run)
    assert json.loads((copy / "config.json").read_text()) == saved | {"store": str(moved)}
    moved.rename(tmp_path / "again")
    assert cli.main(["probe", str(copy), "--store", str(tmp_path / "again")]) == 0
    shutil.rmtree(tmp_path / "again")
    assert cli.main(["report", str(copy)]) == 0
    assert "<svg" in (copy / "report.html").read_text()


def test_a_start_that_fails_leaves_nothing_that_blocks_the_next(store, toml, tmp_path, capsys):
    arguments = ["train", "demo", str(toml), "--store", str(store), "--out", str(tmp_path / "run")]
    for flag, value, message in (
        ("--training.beta2", "1.5", "training.beta2 must be at least 0 and below 1; found 1.5"),
        ("--model.mlp-ratio", "-1", "model.mlp_ratio must be above 0"),
        ("--training.lr", "inf", "training.lr must be a finite number"),
    ):
        with contextlib.suppress(SystemExit):
            assert cli.main([*arguments, f"{flag}={value}"]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
        assert list(tmp_path.iterdir()) == []
    assert cli.main(arguments) == 0


def test_a_file_needs_to_fit_only_together_with_the_flags_beside_it(store, toml, tmp_path, capsys):
    file, out = tmp_path / "more.toml", tmp_path / "run"
    file.write_text(toml.read_text().replace("warmup_steps = 2", "warmup_steps = 7").replace("heads = 2", "heads = 3"))
    arguments = ["train", "demo", str(file), "--store", str(store), "--out", str(out)]
    for flags, message in (
        ([], f"{file}: model.width 16 must be a multiple of 2 * heads = 6"),
        (["--model.heads", "4"], f"{file}: training.warmup_steps must be below steps = 6; found 7"),
        (["--training.log-every", "1", "--model.heads=4"], "training.warmup_steps must be below steps = 6; found 7"),
    ):
        with contextlib.suppress(SystemExit):
            assert cli.main([*arguments, *flags]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
        assert not out.exists()
    assert cli.main([*arguments, "--model.heads", "4", "--training.steps", "8"]) == 0
    saved = json.loads((out / "config.json").read_text())["config"]
    assert (saved["training"]["steps"], saved["training"]["warmup_steps"], saved["model"]["heads"]) == (8, 7, 4)
    file.write_text("[training]\nsteps = 3.5\n[model]\nheads = 3\n")
    assert f"{file}: training.steps must be int; found 3.5" in error_of([*arguments, "--model.heads", "4"], capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.heads", "3"], "--model.heads 3 does not fit {}: model.width 16 must be a multiple of 2 * heads = 6"),
        (["--model.width=33", "--training.log-every", "1"], "--model.width 33 does not fit {}: model.width 33 must be"),
        (["--model.heads", "3", "--model.width", "32"], "--model.width 32 and --model.heads 3 do not fit {}: model"),
        (
            ["--training.lr", "1e-6"],
            "--training.lr 1e-06 does not fit {}: training.final_lr must be between 0 and lr = 1e-06; found 1e-05; "
            "choose a smaller one with --training.final-lr, or a larger --training.lr",
        ),
    ],
)
def test_a_flag_that_does_not_fit_is_not_blamed_on_the_file(store, toml, tmp_path, capsys, flags, message):
    said = error_of(["train", "demo", toml, "--store", store, "--out", tmp_path / "run", *flags], capsys)
    assert said.startswith(f"physiofast: {message.format(toml)}")


def test_a_file_is_blamed_for_the_part_that_flags_have_not_changed(store, toml, tmp_path, capsys):
    file = tmp_path / "bad.toml"
    file.write_text(toml.read_text().replace("heads = 2", "heads = 3"))
    arguments = ["train", "demo", file, "--store", store, "--out", tmp_path / "run"]
    assert f"{file}: model.width 16 must be a multiple of 2 * heads = 6" in error_of(
        [*arguments, "--training.steps", "9"], capsys
    )
    assert f"--model.heads 5 does not fit {file}: model.width 16 must be a multiple of 2 * heads = 10" in error_of(
        [*arguments, "--model.heads", "5"], capsys
    )


def test_training_twice_in_one_folder_is_refused(run, toml, store, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    script = """
import sys
from pathlib import Path
from physiofast.support.locks import hold_run
with hold_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script, str(run)], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        message = error_of(["train", "--resume", run], capsys)
        assert f"{run} is being trained by process {other.pid} on " in message
        other.kill()
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} == {run / ".training.lock"}


def test_a_run_folder_that_cannot_be_one_names_the_option(store, toml, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    message = error_of(["train", "demo", toml, "--store", store, "--out", tmp_path / "file"], capsys)
    assert f"{tmp_path / 'file'} cannot be a run folder: it is a file; choose another with --out" in message
    message = error_of(["train", "demo", toml, "--store", store, "--out", "/proc/nothing"], capsys)
    assert "/proc/nothing cannot be a run folder: No such file or directory; choose another with --out" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command is named 'trian'; did you mean 'train'"),
        (["train"], "name a recipe: base, demo, small, strict-cross-modal"),
        (["train", "--store", "x y", "demo"], "then flags: physiofast train demo --store 'x y'"),
        (["train", "--store", "x", "a.toml", "demo"], "then flags: physiofast train demo a.toml --store x"),
        (["train", "demo", "--store", "x", "a.toml"], "then flags: physiofast train demo a.toml --store x"),
        (
            ["train", "a.toml", "demo"],
            "the recipe comes first, then a TOML file, then flags: physiofast train demo a.toml",
        ),
        (["train", "a.toml", "--store", "x"], "such as: physiofast train base a.toml --store x"),
        (["train", "--store", "demo"], "name a recipe: base, demo, small, strict-cross-modal; or"),
        (["train", "demo", "a.toml", "b.toml"], "expected RECIPE [file.toml] and then flags; found demo a.toml b.toml"),
        (["train", "dmo"], "no recipe is named 'dmo'; did you mean 'demo'"),
        (["train", "demo"], "make them with `physiofast prepare IN DIR`"),
        (["train", "demo", "--store", "nowhere"], "nowhere is not a store: it has no manifest.json"),
        (["probe", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["inspect", "nowhere"], "nowhere"),
        (["prepare", "nowhere", "out"], "nowhere"),
        (
            ["train", "demo", "no.toml", "--store", "x"],
            "the TOML file no.toml cannot be read: No such file or directory;",
        ),
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
    words = ["prepare", str(folder), str(tmp_path / "store"), "--workers", "1"]
    assert cli.main(words) == 1
    assert "5 records prepared, 0 were there already, 1 failed" in capsys.readouterr().out
    assert len(Store.open(tmp_path / "store").failed) == 1
    assert cli.main([*words, "--allow-failures"]) == 0
    assert cli.main(["inspect", str(folder)]) == 1
    assert "refused" in capsys.readouterr().out


def test_a_store_of_other_recordings_is_kept(store, cohort, capsys):
    one = next(path for path in sorted(cohort.iterdir()) if path.is_dir())
    before = (store / "manifest.json").read_bytes()
    assert "prepare all recordings from one folder, or drop them" in error_of(["prepare", one, store], capsys)
    assert (store / "manifest.json").read_bytes() == before


def test_brackets_in_names_are_printed(tmp_path, capsys):
    folder, names = tmp_path / "b[x] [red]", ("C3-M2", "C3 [/x] M2", "ECG")
    folder.mkdir()
    digital = np.random.default_rng(0).integers(-300, 300, (40 * 200, 3))
    settings = {"d_signal": digital, "fmt": ["16"] * 3, "adc_gain": [1] * 3, "baseline": [0] * 3}
    wfdb.wrsamp("r1", 200, ["uV", "uV", "mV"], list(names), **settings, write_dir=str(folder))
    assert cli.main(["inspect", str(folder)]) == 0
    assert "ignored: C3 [/x] M2 (200 Hz, uV)" in capsys.readouterr().out
    store = tmp_path / "store [/b]"
    assert cli.main(["prepare", str(folder), str(store)]) == 0
    assert f"Next: physiofast train RECIPE --store '{store}'" in capsys.readouterr().out


def inspection_of(path, capsys, *flags):
    status = cli.main(["inspect", str(path), "--json", *flags])
    (inspection,) = json.loads(capsys.readouterr().out)
    assert (status == 1) == bool(inspection["errors"])
    return inspection


def test_sleep_edfx_with_its_hypnogram(real_data, tmp_path, capsys):
    source, flags = tmp_path / "night", ("--montage", "sleep-edfx")
    source.mkdir()
    shutil.copy(real_data / "sleep-edfx" / "short_psg.edf", source / "SC4001E0-PSG.edf")
    shutil.copy(real_data / "sleep-edfx" / "SC4001EC-Hypnogram.edf", source)
    inspection = inspection_of(source, capsys, *flags)
    assert (inspection["record"], inspection["age_years"], inspection["sex"], inspection["windows"]) == (
        "SC4001E0-PSG",
        33,
        "F",
        10,
    )
    assert inspection["stage_hours"]["W"] == pytest.approx(300 / 3600)
    assert list(inspection["drops"]) == ["submental", "oro-nasal"]
    assert cli.main(["prepare", str(source), str(tmp_path / "store"), *flags]) == 0
    record = Store.open(tmp_path / "store").records[0]
    assert record.drops == inspection["drops"]
    assert record.stage.tolist() == [0] * 10
    assert record.plane_length.tolist() == [30000, 30000, 30000, 0, 0]


@pytest.mark.parametrize(
    ("name", "flags", "hours", "windows", "present", "length"),
    [
        ("100", ["--montage", "cinc2018-100hz"], 650000 / 360 / 3600, 60, ("MLII", 360.0, "mV"), 180500),
        ("a103l", [], 82500 / 250 / 3600, 11, ("II", 250.0, "mV"), 330 * 128),
    ],
)
def test_wfdb_records(real_data, tmp_path, capsys, name, flags, hours, windows, present, length):
    inspection = inspection_of(real_data / "wfdb" / name, capsys, *flags)
    assert (inspection["hours"], inspection["windows"]) == (pytest.approx(hours), windows)
    kept = [channel for channel in inspection["channels"] if channel["drop"] is None]
    assert [(channel["source"], channel["rate_hz"], channel["unit"]) for channel in kept] == [present]
    assert kept[0]["name"] == "ECG" and kept[0]["valid_share"] > 0.99
    assert (
        all(reason.startswith("absent") for reason in inspection["drops"].values()) and len(inspection["drops"]) == 12
    )
    assert cli.main(["prepare", str(real_data / "wfdb" / name), str(tmp_path / "store"), *flags]) == 0
    store = Store.open(tmp_path / "store")
    assert store.records[0].plane_length[store.montage.index("ECG")] == length
    assert store.records[0].drops == inspection["drops"]


@pytest.mark.parametrize(
    ("montage", "flags"),
    [
        ("cinc2018-mixed", []),
        ("cinc2018-100hz", ["--training.precision", "bf16"]),
    ],
)
def test_other_rates_and_bf16_from_recordings_to_report(cohort, toml, tmp_path, montage, flags):
    source, store, run = (str(tmp_path / name) for name in ("in", "store", "run"))
    for record in sorted(path for path in cohort.iterdir() if path.is_dir())[:3]:
        shutil.copytree(record, tmp_path / "in" / record.name)
    shutil.copy(cohort / "age-sex.csv", tmp_path / "in")
    assert cli.main(["prepare", source, store, "--workers", "1", "--montage", montage]) == 0
    assert cli.main(["train", "demo", str(toml), "--store", store, "--out", run, *flags]) == 0
    assert cli.main(["probe", run]) == 0
    assert cli.main(["report", run]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["errors"]) == ["EEG", "EOG", "EMG", "ECG", "RESP", "SPO2"]
    assert all(0 < entry["error"] < 10 for entry in summary["errors"].values())
    assert set(summary["probes"]["tasks"]["stage"]["models"]) == {"pretrained", "untrained", "band_power"}
    with np.load(tmp_path / "run" / "reconstruction.npz") as arrays:
        rates = dict(zip(arrays["modality"], arrays["rate_hz"], strict=True))
        assert np.isfinite(arrays["rebuilt_12"]).any()
    assert (
        rates == dict.fromkeys(rates, 100.0)
        if montage == "cinc2018-100hz"
        else (rates["SPO2"], rates["RESP"]) == (8, 32)
    )


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


@pytest.mark.parametrize("name", ["prepare", "inspect"])
def test_help_names_every_montage(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    words = re.sub(r"[│\n]", " ", capsys.readouterr().out)
    assert all(re.search(rf"[ ,]{montage}[ ,;]", words) for montage in MONTAGES)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["train", "demo", "--help"], ["inspect", "COHORT"], ["inspect", "COHORT", "--json"]],
)
def test_a_reader_of_the_output_that_leaves_is_no_error(words, cohort):
    """As `head` does once it has its lines."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "physiofast", *(str(cohort) if word == "COHORT" else word for word in words)]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert ended.returncode == 141
    assert "Traceback" not in ended.stderr and "Broken" not in ended.stderr


def test_a_pipe_that_is_not_the_outputs_is_an_error_like_others(capsys, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "doctor", lambda _: (_ for _ in ()).throw(BrokenPipeError(32, "Broken pipe")))
    monkeypatch.setattr(cli, "_nobody_reads", lambda: False)
    assert "physiofast: [Errno 32] Broken pipe" in error_of(["doctor"], capsys)


def option_classes():
    return [getattr(cli, name) for name in vars(cli) if name.endswith("Options")]


@pytest.mark.parametrize("options", option_classes())
def test_every_option_has_its_text_for_help(options):
    assert not fields_without_text(options)


def test_commands_of_messages_are_whole_words_of_a_shell():
    assert command("train", "--resume", Path("my run")) == "physiofast train --resume 'my run'"
    assert command("probe", Path("runs/base")) == "physiofast probe runs/base"
