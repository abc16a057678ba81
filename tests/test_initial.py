"""Runs that begin with the weights of another run."""

import dataclasses
import json
import shutil
import signal

import pytest
import torch

from physiofast import cli
from physiofast.checkpoint import initial_path, latest_checkpoint, list_checkpoints
from physiofast.cohort import open_cohort
from physiofast.progress import Progress
from physiofast.report import render_report
from physiofast.runfolder.initial import NOTE, describe_initial, initial_of, new_model
from physiofast.runfolder.pretrained import load_pretrained
from physiofast.runs import open_run, start_run, train_run
from physiofast.training import train
from tests.cohort import MONTAGE, write_store
from tests.test_identity import with_keys
from tests.test_runs import CONFIG as RUN_CONFIG
from tests.test_runs import sent_to
from tests.test_training import CONFIG, StopAfter, final_state, same

STILL = with_keys(CONFIG, training__final_lr=0.0, training__lr=0.0, training__warmup_steps=0, training__steps=2)
"""Steps that change no weight."""
OTHER_HALF = with_keys(CONFIG, windows__split_seed=1)
"""Holds out others than CONFIG."""


@pytest.fixture(scope="module")
def source(store, tmp_path_factory):
    """A run of another seed than CONFIG's."""
    path = tmp_path_factory.mktemp("source") / "source"
    assert train_run(start_run(path, store, with_keys(RUN_CONFIG, seed=5), "base"), Progress()).finished
    return path


class Said(Progress):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines += [text] if text else []


def test_a_run_begins_with_the_newest_weights_of_another(store, source, tmp_path):
    train(store, tmp_path / "run", STILL, init=source, progress=(said := Said()))
    begun = final_state(tmp_path / "run", store)
    assert same(begun, load_pretrained(source).state_dict())
    assert not same(begun, new_model(store, CONFIG).state_dict())
    note = json.loads((tmp_path / "run" / NOTE).read_text())
    seen = sorted(open_cohort(store, CONFIG.windows).train_subjects)
    assert note == {"run": str(source), "step": 12, "anew": [], "subjects": seen, "held_out": []}
    assert said.lines == [f"It began with the weights of {source} after step 12"]
    assert list_checkpoints(tmp_path / "run") == [(2, tmp_path / "run" / "checkpoints" / "step-00000002.safetensors")]


@pytest.mark.parametrize("steps", [0, 7])
def test_a_run_that_was_stopped_goes_on_with_these_weights_wherever_the_other_is(store, source, tmp_path, steps):
    """Also one that was killed before its first checkpoint."""
    train(store, tmp_path / "whole", CONFIG, init=source, progress=Progress())
    lent, run = shutil.copytree(source, tmp_path / "lent"), tmp_path / "run"
    if steps:
        assert train(store, run, CONFIG, init=lent, progress=StopAfter(steps, signal.SIGINT)).step == steps
    else:
        start_run(run, store, RUN_CONFIG, "base", lent)
    shutil.rmtree(lent)
    assert train(store, run, CONFIG, resume=True, progress=Progress()).finished
    assert same(final_state(run, store), final_state(tmp_path / "whole", store))
    train(store, tmp_path / "random", CONFIG, progress=Progress())
    assert not same(final_state(run, store), final_state(tmp_path / "random", store))


def test_it_is_of_no_account_once_there_are_checkpoints(store, source, tmp_path):
    train(store, tmp_path, CONFIG, progress=StopAfter(7, signal.SIGINT))
    assert train(store, tmp_path, CONFIG, init=source, resume=True, progress=Progress()).finished
    assert not (tmp_path / NOTE).exists() and not initial_path(tmp_path).exists()
    train(store, tmp_path / "random", CONFIG, progress=Progress())
    assert same(final_state(tmp_path, store), final_state(tmp_path / "random", store))


def test_a_start_at_random_forgets_what_an_earlier_one_would_have_begun_with(store, source, tmp_path):
    for begin in (
        lambda run: start_run(run, store, with_keys(RUN_CONFIG, training=STILL.training), "base"),
        lambda run: train(store, run, STILL, progress=Progress()),
    ):
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        start_run(run, store, RUN_CONFIG, "base", source)
        assert initial_path(run).exists() and (run / NOTE).exists()
        begin(run)
        assert not initial_path(run).exists() and not (run / NOTE).exists()


def test_a_model_of_other_sizes_is_refused_with_the_flags_that_make_them_equal(store, source, tmp_path, capsys):
    words = ["train", "demo", "--store", str(store.path), "--init", str(source), "--out", str(tmp_path / "run")]
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "its model has other sizes: model.width 16 there and 96 here, model.depth 1 there and 3 here" in said
    assert not (tmp_path / "run").exists()
    flags = said[said.index("Take those of that run: ") + 24 :].split()
    fast = ["--training.steps", "2", "--training.device", "cpu", "--windows.min-valid-share", "0"]
    assert cli.main([*words, *flags, *fast]) == 0, capsys.readouterr().err


def test_wiring_may_be_another(store, source):
    config = with_keys(CONFIG, model__attention="sdpa", model__encoder_pairs="intra", model__decoder_pairs="cross")
    assert initial_of(store, config, source).note["anew"] == []


def test_another_montage_takes_over_what_has_the_same_name(store, source, tmp_path):
    montage = dataclasses.replace(
        MONTAGE.select(("C4-M1", "E1-M2", "SaO2")), rate_hz={"EEG": 16.0, "EOG": 8.0, "SPO2": 2.0}
    )
    other = write_store(tmp_path / "store", subjects=4, montage=montage)
    initial = initial_of(other, CONFIG, source)
    before, now = load_pretrained(source).state_dict(), initial.model.state_dict()
    assert torch.equal(before["positions.channel.C4-M1"], now["positions.channel.C4-M1"])
    assert torch.equal(before["tokeniser.EEG.weight"], now["tokeniser.EEG.weight"])
    assert initial.note["anew"] == ["tokeniser.EOG.weight"]
    train(other, tmp_path / "run", STILL, init=source, progress=(said := Said()))
    assert "after step 12, but for tokeniser.EOG.weight, which that run lacks in this size" in said.lines[0]


def test_a_model_of_none_of_the_store_s_modalities_is_refused(tmp_path):
    breath = write_store(tmp_path / "breath", montage=MONTAGE.select(("AIRFLOW", "SaO2")))
    brain = write_store(tmp_path / "brain", montage=MONTAGE.select(("C4-M1", "E1-M2")))
    train(breath, str(tmp_path / "run"), STILL)  # a path may be a text, and progress be nobody's
    with pytest.raises(ValueError, match="its model knows RESP, SPO2, and none of EEG, EOG, which the store has"):
        initial_of(brain, CONFIG, tmp_path / "run")


def test_held_out_subjects_that_these_weights_have_seen_are_named_everywhere(store, source, tmp_path, capsys):
    run, held_out = tmp_path / "run", open_cohort(store, OTHER_HALF.windows).test_subjects
    seen = [name for name in held_out if name in open_cohort(store, CONFIG.windows).train_subjects]
    assert seen
    train(store, run, OTHER_HALF, init=source, progress=(said := Said()))
    sentence = f"{len(seen)} of its held-out subjects ({', '.join(seen)}) are named as subjects that those weights were"
    assert sentence in said.lines[0]
    assert cli.main(["probe", str(run)]) == 0
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert sentence in render_report(run)
    sent = sent_to(tmp_path / "sent", run)
    assert f"It began with the weights of another run after step 12. {len(seen)} of its held-out" in describe_initial(
        sent
    )
    note = (sent / NOTE).read_text()
    assert not any(name in note for name in (*seen, str(source)))
    # and a run that begins with that one has seen what both were trained on
    train(store, tmp_path / "third", CONFIG, init=run, progress=Progress())
    note = json.loads((tmp_path / "third" / NOTE).read_text())
    both = {*open_cohort(store, CONFIG.windows).train_subjects, *open_cohort(store, OTHER_HALF.windows).train_subjects}
    assert note["subjects"] == sorted(both)
    assert note["held_out"] == [n for n in open_cohort(store, CONFIG.windows).test_subjects if n in both] != []


def test_of_a_run_that_was_sent_nobody_knows_the_subjects(store, source, tmp_path):
    there = sent_to(tmp_path / "there", source)
    train(store, tmp_path / "run", STILL, init=there, progress=(said := Said()))
    assert said.lines[0].endswith(
        "Which subjects that run was trained on is not known here, so held-out ones may be among them"
    )
    assert "is not known here" in render_report(tmp_path / "run")
    start_run(tmp_path / "next", store, RUN_CONFIG, "base", tmp_path / "run")
    assert json.loads((tmp_path / "next" / NOTE).read_text())["subjects"] is None


def test_what_is_no_run_or_damaged_says_so(store, source, tmp_path):
    with pytest.raises(ValueError, match="nothing is not a run folder"):
        train(store, tmp_path / "run", CONFIG, init=tmp_path / "nothing", progress=Progress())
    start_run(tmp_path / "empty", store, RUN_CONFIG, "base")
    with pytest.raises(ValueError, match="empty has no checkpoint"):
        train(store, tmp_path / "run", CONFIG, init=tmp_path / "empty", progress=Progress())
    run = start_run(tmp_path / "begun", store, RUN_CONFIG, "base", source).path
    content = bytearray(initial_path(run).read_bytes())
    content[-1] ^= 1
    initial_path(run).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"initial\.safetensors is not a .*; start the run again with --init, in anoth"
    ):
        train(store, run, CONFIG, resume=True, progress=Progress())
    (run / NOTE).write_text("{}")
    with pytest.raises(ValueError, match="'run' is 'not there'. It only says what the run began with"):
        describe_initial(run)
    assert "What it began with could not be shown" in render_report(run)


def test_weights_that_are_gone_are_not_replaced_by_random_ones(store, source, tmp_path):
    run = start_run(tmp_path / "run", store, RUN_CONFIG, "base", source)
    initial_path(run.path).unlink()
    with pytest.raises(
        ValueError, match=r"initial\.safetensors is not there, though .*run began with the weights of .*; "
    ):
        train(store, run.path, CONFIG, resume=True, progress=Progress())
    assert not list_checkpoints(run.path)


def test_two_starts_into_one_folder_with_other_weights_train_only_what_the_folder_says(store, source, tmp_path):
    run = start_run(tmp_path / "run", store, RUN_CONFIG, "base", source)
    start_run(tmp_path / "run", store, RUN_CONFIG, "base")  # of another process, with the same config
    with pytest.raises(ValueError, match="another process has started another run in"):
        train_run(run, Progress())
    assert train_run(open_run(tmp_path / "run"), Progress()).finished


def test_weights_that_cannot_be_written_leave_no_run(store, source, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("physiofast.checkpoint.save_file", full)
    with pytest.raises(OSError, match="cannot be written: no space left on device; make room there"):
        start_run(tmp_path / "run", store, RUN_CONFIG, "base", source)
    assert not (tmp_path / "run" / "config.json").exists() and not initial_path(tmp_path / "run").exists()


def test_a_flag_begins_with_them_and_a_run_resumes_without_it(store, source, tmp_path, capsys):
    toml = tmp_path / "small.toml"
    toml.write_text(
        "[windows]\nmin_valid_share = 0.0\n"
        "[model]\nwidth = 16\ndepth = 1\nheads = 2\ndecoder_width = 16\ndecoder_depth = 1\n"
        '[training]\nsteps = 4\nbatch = 4\ndevice = "cpu"\n'
    )
    run = tmp_path / "run"
    words = ["train", "base", str(toml), "--store", str(store.path), "--out", str(run), "--init", str(source)]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert f"It began with the weights of {source} after step 12" in "".join(capsys.readouterr())
    assert latest_checkpoint(run)[0] == 4
    assert cli.main(["train", "--resume", str(run), "--init", str(source)]) == 1
    assert "leave out all other arguments" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(run)]) == 0
