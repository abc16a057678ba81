"""How a run folder begins; what becomes of it is told by the tests of the command line."""

import dataclasses
import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from physiofast import cli, runs, sharing
from physiofast.config import Config, to_dict
from physiofast.masking import Planner
from physiofast.progress import Progress
from physiofast.reconstruction import reconstruction_arrays
from physiofast.runfolder.files import load_probes, load_reconstruction, load_stages
from physiofast.runfolder.pretrained import load_pretrained
from physiofast.runfolder.summary import load_summary, timed, update_summary
from physiofast.runs import open_run, start_run, train_run
from physiofast.store import StoreRecord
from physiofast.support import strictjson
from physiofast.training import train
from physiofast.windows import WindowReader
from tests.cohort import write_store
from tests.test_training import CONFIG as PRETRAINING
from tests.test_training import StopAfter

CONFIG = Config(**{field.name: getattr(PRETRAINING, field.name) for field in dataclasses.fields(PRETRAINING)})


def test_what_was_started_can_be_opened(store, tmp_path):
    run = start_run(tmp_path, store, CONFIG, "base")
    assert open_run(tmp_path).config == run.config == CONFIG
    assert json.loads((tmp_path / "config.json").read_text())["config"] == json.loads(json.dumps(to_dict(CONFIG)))


def sent_to(there, path):
    """A folder with what `push` sends of a run."""
    for name, content in sharing._without_subjects(path, sharing._files(path)).items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
    return there


def test_what_was_sent_of_a_run_says_which_store_it_needs_and_takes_that_alone(
    store, finished, tmp_path, capsys, monkeypatch
):
    there, other = sent_to(tmp_path / "there", finished.path), write_store(tmp_path / "store", seed=1)
    monkeypatch.chdir(tmp_path)  # where a folder `store` lies, by chance
    manifest = json.loads((other.path / "manifest.json").read_text())
    manifest["records"][0]["hours"] += 1
    (other.path / "manifest.json").write_text(json.dumps(manifest))
    embeds = f"Other recordings are embedded without it: physiofast.load_pretrained('{there}'), then embed_windows"
    for words in (["probe"], ["train", "--resume"]):
        assert cli.main([*words, str(there)]) == 1
        said = capsys.readouterr().err
        assert (
            f"{there} was sent by `physiofast push`, without where its store is and which recordings are in it" in said
        )
        named = "--store DIR (in Python: the argument `store` of `open_run`)"
        assert f"name the store that it was trained on with {named}. {embeds}" in said
        assert cli.main([*words, str(there), "--store", "store"]) == 1
        said = capsys.readouterr().err
        assert f"the store store is another than the one that {there} was trained on: `physiofast push` sent" in said
        assert embeds in said
    assert cli.main(["probe", str(there), "--store", str(store.path)]) == 0
    assert cli.main(["probe", str(there)]) == 0  # it keeps in mind where it is


def test_a_pretrained_model_needs_neither_its_store_nor_its_recordings(store, tmp_path):
    """As it is read by its path, a text, from the run's folder, and from what is sent of that."""
    path = tmp_path / "run"
    run = start_run(path, store, CONFIG, "base")
    with pytest.raises(ValueError, match="run has no checkpoint; make one with `physiofast train"):
        load_pretrained(path)
    assert train_run(run, Progress()).finished
    trained, steps = open_run(str(path), str(store.path)).load_newest()
    assert steps == CONFIG.training.steps
    there = sent_to(tmp_path / "there", path)
    for folder in (str(path), there):
        model = load_pretrained(folder)
        assert not model.training and model.montage == store.montage and model.config == CONFIG.model
        for name, found in model.state_dict().items():
            assert torch.equal(found, trained.state_dict()[name]), name
    (there / "prepare.json").write_text("{}")
    with pytest.raises(ValueError, match=r"prepare\.json: the model's montage cannot be read \(no entry 'montage'\)"):
        load_pretrained(there)
    with pytest.raises(ValueError, match="is not a run folder"):
        load_pretrained(tmp_path)


def test_a_run_of_python_code_is_as_whole_as_one_of_the_command_line(store, tmp_path, capsys):
    path = tmp_path / "run"
    assert train(store, path, PRETRAINING, progress=StopAfter(7, signal.SIGINT)).step == 7
    saved = json.loads((path / "config.json").read_text())
    assert (saved["recipe"], open_run(path).config, open_run(path).store.path) == (None, CONFIG, store.path)
    assert load_pretrained(path).config == CONFIG.model
    with pytest.raises(ValueError, match="continue it with `physiofast train --resume .*run`, or choose another"):
        train(store, path, PRETRAINING, progress=Progress())
    for words in (["train", "--resume"], ["probe"], ["report"]):
        assert cli.main([*words, str(path)]) == 0, words
    started = start_run(tmp_path / "started", store, CONFIG, "base")
    assert train_run(started, Progress()).finished
    cli.main(["probe", str(started.path)])
    cli.main(["report", str(started.path)])
    names = [{file.name for file in folder.iterdir()} for folder in (path, started.path)]
    assert names[0] == names[1]
    last = [folder / "checkpoints" / "step-00000012.safetensors" for folder in (path, started.path)]
    first, second = map(load_file, last)
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_a_run_of_the_command_line_keeps_recipe_and_probes_in_python(store, tmp_path):
    probe = dataclasses.replace(CONFIG.probe, folds=2)
    config = dataclasses.replace(CONFIG, probe=probe)
    train_run(start_run(tmp_path, store, config, "base"), StopAfter(7, signal.SIGINT))
    training = dataclasses.replace(PRETRAINING.training, log_every=1)
    train(store, tmp_path, dataclasses.replace(PRETRAINING, training=training), resume=True, progress=Progress())
    assert json.loads((tmp_path / "config.json").read_text())["recipe"] == "base"
    assert open_run(tmp_path).config == dataclasses.replace(config, training=training)


def test_a_run_that_lacks_its_config_says_how_to_get_it(store, tmp_path):
    train(store, tmp_path, PRETRAINING, progress=StopAfter(7, signal.SIGINT))
    for name in ("config.json", "environment.json", "prepare.json"):
        (tmp_path / name).unlink()
    advice = r"put that file back, or continue .* by `physiofast.train\(store, .*resume=True"
    for use in (load_pretrained, open_run, runs.report_run, lambda path: sharing.push_run(path, "x/y")):
        with pytest.raises(ValueError, match=rf"has checkpoints, but no config.json; .*{advice}"):
            use(tmp_path)
    with pytest.raises(ValueError, match=rf"already holds a run; .*{advice}.*another --out"):
        start_run(tmp_path, store, CONFIG, "base")
    with pytest.raises(ValueError, match=rf"already has checkpoints, up to step 7; .*{advice}"):
        train(store, tmp_path, PRETRAINING, progress=Progress())
    assert train(store, tmp_path, PRETRAINING, resume=True, progress=Progress()).finished
    assert open_run(tmp_path).config == CONFIG
    load_pretrained(tmp_path)


def test_a_start_that_is_refused_leaves_the_config_of_the_run(store, tmp_path):
    train(store, tmp_path, PRETRAINING, progress=Progress())
    before = (tmp_path / "config.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"already has checkpoints|computed with other settings"):
            train(store, tmp_path, dataclasses.replace(PRETRAINING, seed=4), resume=resume, progress=Progress())
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_store_is_no_place_for_a_run(store, tmp_path):
    with pytest.raises(ValueError, match="is a store; choose another folder as --out"):
        start_run(store.path, store, CONFIG, "base")


def test_a_run_that_may_not_be_written_to_is_neither_probed_nor_reported(store, tmp_path, monkeypatch):
    run = start_run(tmp_path / "run", store, CONFIG, "base")
    monkeypatch.setattr(runs.os, "access", lambda path, mode: path != run.path)
    with pytest.raises(PermissionError, match="run may not be written to, .*; probe a copy of that folder"):
        runs.probe_run(run, Progress())
    with pytest.raises(PermissionError, match="run may not be written to, where report.html .*; report a copy of that"):
        runs.report_run(run.path)


def test_nothing_is_written_before_model_and_optimiser_are_built(store, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    for name in ("make_optimiser", "new_model"):
        with monkeypatch.context() as patch:
            patch.setattr(runs, name, fail)
            with pytest.raises(ValueError, match="no model can be built of this configuration: .*allocate memory"):
                start_run(tmp_path / "run", store, CONFIG, "base")
        assert not (tmp_path / "run").exists()
    start_run(tmp_path / "run", store, CONFIG, "base")


def test_a_run_without_a_step_is_begun_anew_and_one_with_steps_is_not(store, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("the tracker has no account")

    with monkeypatch.context() as patch:
        patch.setattr("physiofast.training.open_tracker", fail)
        with pytest.raises(ValueError, match="no account"):
            train_run(start_run(tmp_path, store, CONFIG, "base"), Progress())
    other = dataclasses.replace(CONFIG, seed=4)
    assert train_run(start_run(tmp_path, store, other, "base"), Progress()).finished
    assert open_run(tmp_path).config == other
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="already holds a run; continue it with"):
        start_run(tmp_path, store, CONFIG, "base")


def test_two_starts_into_one_folder_train_only_what_the_folder_says(store, tmp_path):
    first = start_run(tmp_path, store, CONFIG, "base")
    second = start_run(tmp_path, store, dataclasses.replace(CONFIG, seed=4), "base")
    with pytest.raises(ValueError, match="another process has started another run in"):
        train_run(first, Progress())
    assert not (tmp_path / "metrics.jsonl").exists()
    assert train_run(second, Progress()).finished


def test_a_run_stopped_in_its_last_step_is_summed_up_when_it_is_resumed(store, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr("physiofast.runfolder.summary.store_predictability", lambda *_: measured.append(True) or {})
    run = start_run(tmp_path, store, CONFIG, "base")
    stopped = train_run(run, StopAfter(CONFIG.training.steps, signal.SIGINT))
    assert not stopped.finished
    assert "errors" not in json.loads((tmp_path / "summary.json").read_text())
    assert not measured
    assert train_run(run, Progress(), resume=True).finished
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: entry["error"] for name, entry in summary["errors"].items()} == pytest.approx(stopped.errors)
    assert summary["throughput"] == {"windows_per_s": stopped.windows_per_s}
    assert measured == [True]


def test_training_from_python_is_summed_up_as_by_the_command(store, tmp_path):
    train_run(start_run(tmp_path / "command", store, CONFIG, "base"), Progress())
    stopped = train(store, tmp_path / "python", CONFIG, progress=StopAfter(7, signal.SIGINT))
    assert not stopped.finished
    seconds = load_summary(tmp_path / "python")["seconds"]["train"]
    assert train(store, tmp_path / "python", CONFIG, resume=True).finished
    wanted, found = (load_summary(tmp_path / name) for name in ("command", "python"))
    assert found["seconds"]["train"] > seconds
    assert found["seconds"].keys() == wanted["seconds"].keys() == {"train", "predictable share"}
    assert found["throughput"].keys() == wanted["throughput"].keys() == {"windows_per_s"}
    for different in ("seconds", "throughput"):
        del found[different], wanted[different]
    assert found == wanted
    assert found["errors"]


def test_a_config_that_cannot_be_read_says_which_key(store, tmp_path):
    start_run(tmp_path, store, CONFIG, "base")
    saved = json.loads((tmp_path / "config.json").read_text())
    for spoilt, reason in (
        ({"config": saved["config"] | {"training": {"lr": None}}}, "training.lr must be float; found None"),
        ({"config": saved["config"] | {"trainin": {}}}, "unknown config key 'trainin'; did you mean 'training'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(saved | spoilt))
        with pytest.raises(ValueError, match=rf"config.json: not the config of a run of this version \({reason}"):
            open_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"config": saved["config"]}))
    with pytest.raises(ValueError, match=r"not the config of a run of this version \(no entry 'store'\)"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "is damaged: it has no object 'montage'"),
        ('{"montage": {}, "config": {}, "records": [{}], "failed": []}', "entry 0 of 'records' has no 'file'"),
        ("{", "not valid JSON"),
        (None, "is not there"),
    ],
)
def test_a_damaged_copy_of_the_manifest_is_named(store, tmp_path, content, reason):
    start_run(tmp_path, store, CONFIG, "base")
    file = tmp_path / "prepare.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match="put back the one that .*, or start a new run with --out") as caught:
        open_run(tmp_path)
    assert str(file) in str(caught.value) and reason in str(caught.value)


def test_what_several_write_into_the_summary_at_once_is_all_there(tmp_path):
    def write(number):
        for k in range(10):
            update_summary(tmp_path, {f"{number} {k}": k})
            with timed(tmp_path, "stage"):
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(load_summary(tmp_path)) == 41


def test_what_goes_wrong_in_a_stage_is_not_hidden_by_its_time(tmp_path, monkeypatch):
    def fail(path, _):
        raise OSError(28, "No space left on device", str(path))

    with timed(tmp_path, "train"):
        pass
    with pytest.raises(OSError, match="make room"), timed(tmp_path, "probe"):
        raise OSError("make room there")
    assert set(load_summary(tmp_path)["seconds"]) == {"train", "probe"}
    monkeypatch.setattr(strictjson, "write_text", fail)
    with pytest.raises(OSError, match="^metrics.jsonl cannot be written; make room there$"), timed(tmp_path, "x"):
        raise OSError("metrics.jsonl cannot be written; make room there")
    with pytest.raises(OSError, match="No space left on device.*summary.json"), timed(tmp_path, "x"):
        pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"errors": {', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b'{"seconds": []}', "expected a JSON object at 'seconds', found []"),
    ],
)
def test_a_damaged_summary_is_named_before_any_work_and_costs_a_report_its_sections_alone(
    store, tmp_path, content, reason
):
    start_run(tmp_path, store, CONFIG, "base")
    (tmp_path / "summary.json").write_bytes(content)
    advice = "summary.json.*delete it: `physiofast train --resume"
    with pytest.raises(ValueError, match=advice) as caught, timed(tmp_path, "train"):
        pytest.fail("the work has begun")
    assert reason in str(caught.value)
    page = runs.report_run(tmp_path).read_text()
    assert "4 recordings of 4 subjects" in page
    assert "summary.json: " in page
    assert (tmp_path / "summary.json").read_bytes() == content


def test_a_report_does_without_config_or_environment_that_cannot_be_read(store, tmp_path):
    start_run(tmp_path, store, CONFIG, "base")
    (tmp_path / "environment.json").unlink()
    page = runs.report_run(tmp_path).read_text()
    assert "environment.json is not in this run folder" in page and "config.training.steps" in page
    assert not {"config", "environment"} & load_summary(tmp_path).keys()  # each is said in one file
    (tmp_path / "config.json").write_text("{")
    page = runs.report_run(tmp_path).read_text()
    assert "config.json could not be shown" in page and "4 recordings of 4 subjects" in page


def with_units(store, *units):
    """The same store, whose records have these units of channel 3."""
    records = [
        StoreRecord(record.path, record.entry | {"units": [*record.units[:3], unit, *record.units[4:]]})
        for record, unit in zip(store.records, units, strict=True)
    ]
    return dataclasses.replace(store, records=tuple(records))


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """A run of all its steps."""
    run = start_run(tmp_path_factory.mktemp("finished") / "run", store, CONFIG, "base")
    assert train_run(run, Progress()).finished
    return run


def test_an_epoch_of_a_hypnogram_is_as_long_as_a_window(finished):
    assert finished.store.montage.window_s == 6.0
    runs.probe_run(finished, Progress())
    assert load_stages(finished.path / "predictions.npz").epoch_s == 6.0


def test_a_full_disk_hides_no_score_and_says_what_to_do(finished, tmp_path, capsys, monkeypatch):
    shutil.copytree(finished.path, tmp_path / "run")
    run = open_run(tmp_path / "run")

    def fail(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.np, "savez_compressed", fail)
    assert cli.main(["probe", str(run.path)]) == 1
    printed = capsys.readouterr()
    assert "balanced_accuracy" in printed.out
    assert "predictions.npz cannot be written: No space left on device; the run's other files are whole" in printed.err
    assert f"Make room there, or allow writing, then run `physiofast probe {run.path}` again" in printed.err
    assert load_probes(run.path).step == 12
    monkeypatch.setattr(Path, "write_text", fail)
    assert cli.main(["report", str(run.path)]) == 1
    said = capsys.readouterr().err
    assert "report.html cannot be written: No space left on device" in said
    assert f"`physiofast report {run.path}` again" in said
    assert list(run.path.glob(".*.part")) == []


def test_what_was_probed_half_way_says_so(finished, tmp_path, capsys):
    shutil.copytree(finished.path, tmp_path / "run")
    half = open_run(tmp_path / "run")
    runs.probe_run(half, Progress())
    assert "This is the model after step" not in runs.report_run(half.path).read_text()
    newest = half.path / "checkpoints" / "step-00000012.safetensors"
    newest.rename(tmp_path / newest.name)
    assert cli.main(["probe", str(half.path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"the encoder after step 10 of 12; go on with: physiofast train --resume {half.path}" in printed
    found = [
        load_probes(half.path).step,
        load_stages(half.path / "predictions.npz").step,
        load_reconstruction(half.path / "reconstruction.npz").step,
    ]
    assert found == [10, 10, 10]
    page = runs.report_run(half.path).read_text()
    assert page.count("This is the model after step 10; the last logged step is 12.") == 5


def test_probes_are_scored_on_every_held_out_window(store):
    probe = dataclasses.replace(CONFIG.probe, max_train_windows=11)
    run = SimpleNamespace(store=store, config=dataclasses.replace(CONFIG, probe=probe))
    cohort = runs.open_cohort(store, run.config.windows)
    found = runs.probe_windows(run, cohort)
    is_train = np.isin(found.record, np.unique(cohort.train.record))
    every = runs.index_windows(store, None, run.config.windows.min_valid_share)
    held_out = ~np.isin(every.record, np.unique(cohort.train.record))
    assert is_train.sum() == 11 < (~held_out).sum()
    assert np.array_equal(found.window_id[~is_train], every.window_id[held_out])
    labels = runs.window_labels(store, every)
    scored = np.any([labels[name] >= 0 for name in ("stage", "arousal", "apnea")], axis=0)
    assert np.isin(found.window_id[is_train], every.window_id[scored]).all()


def test_what_is_shown_of_a_channel_is_in_one_unit(store):
    cohort = runs.open_cohort(store, CONFIG.windows)
    held_out = sorted(set(cohort.test.record))
    units = ["L/min"] * len(store.records)
    for number, record in enumerate(held_out):
        units[record] = ("uV", "L/min")[number % 2]
    other = with_units(store, *units)
    index, planner = runs.open_cohort(other, CONFIG.windows).test, Planner(other.montage, CONFIG.masking, CONFIG.seed)
    shown = np.arange(min(len(index), 24))
    model, reader = runs.new_model(other, CONFIG), WindowReader(other)
    arrays = reconstruction_arrays(model, reader, index, shown, planner.without_dropout(), CONFIG.objective)
    record = [[r.record for r in other.records].index(name) for name in arrays["record"]]
    unit = np.asarray([units[r] for r in record])
    assert arrays["unit"][3] == unit[0] and len(set(unit)) == min(2, len(held_out))
    assert np.array_equal(np.isfinite(arrays["true_3"]).all(1), unit == unit[0])
    assert not arrays["hidden_3"][unit != unit[0]].any()
    assert np.isfinite(arrays["true_0"]).all()


def test_a_probe_takes_the_folder_as_a_report_does(store, tmp_path):
    with pytest.raises(ValueError, match="nothing is not a run folder"):
        runs.probe_run(str(tmp_path / "nothing"))
    run = start_run(tmp_path / "run", store, CONFIG, "base")
    with pytest.raises(ValueError, match="run has no checkpoint"):
        runs.probe_run(str(run.path))
