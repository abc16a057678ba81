"""A run goes on, and is probed, as it was started, or not at all."""

import dataclasses
import json
import shutil
import signal

import pytest

from physiofast.checkpoint import latest_checkpoint, save_checkpoint
from physiofast.progress import Progress
from physiofast.runfolder.identity import MAY_CHANGE, check_settings, identity
from physiofast.runfolder.initial import new_model
from physiofast.runfolder.pretrained import load_pretrained
from physiofast.runs import open_run, probe_run, start_run, train_run
from physiofast.store import Store
from physiofast.store.manifest import manifest_changes, manifest_sha256, read_manifest
from physiofast.support.bounds import field_types
from physiofast.training import make_optimiser, train
from physiofast.training_config import PretrainConfig
from tests.cohort import write_store
from tests.test_runs import CONFIG as RUN_CONFIG
from tests.test_training import CONFIG, StopAfter, final_state, same


@pytest.fixture(scope="module")
def stopped(store, tmp_path_factory):
    """A run that was stopped after step 7."""
    run = start_run(tmp_path_factory.mktemp("stopped") / "run", store, RUN_CONFIG, "base")
    assert not train_run(run, StopAfter(7, signal.SIGINT)).finished
    return run


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped.path, tmp_path / "copy")


def with_keys(config, **keys):
    """A config with `section_key` changed."""
    for name, value in keys.items():
        section, _, key = name.partition("__")
        part = dataclasses.replace(getattr(config, section), **{key: value}) if key else value
        config = dataclasses.replace(config, **{section: part})
    return config


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seed": 4}, "seed 3 -> 4. Put"),
        ({"windows__split_seed": 2, "training__lr": 0.01}, "windows.split_seed 0 -> 2, training.lr 0.003 -> 0.01. Put"),
        (
            {"training__steps": 24},
            "training.steps 12 -> 24; training.steps decides the learning rate of every step, so",
        ),
        (
            {"training__steps": 24},
            r"training.steps .*to train longer begin another run .* --init .*copy --training.steps ",
        ),
        ({"training__warmup_steps": None}, "training.warmup_steps 2 -> None"),
        ({"objective__normalise": ("EEG",)}, r"objective.normalise \[\] -> \['EEG'\]"),
        ({"model__width": 32}, "model.width 16 -> 32"),
    ],
)
def test_other_settings_are_refused_by_their_keys(store, copy, keys, said):
    other = with_keys(RUN_CONFIG, **keys)
    with pytest.raises(ValueError, match=said) as caught:
        train(store, copy, other, resume=True, progress=Progress())
    assert f"Put them back in {copy / 'config.json'}, " in str(caught.value)
    assert str(caught.value).endswith(f"; only {', '.join(MAY_CHANGE)} may change")
    assert latest_checkpoint(copy)[0] == 7
    saved = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(saved | {"config": dataclasses.asdict(other)}))
    run = open_run(copy)
    with pytest.raises(ValueError, match=said):
        train_run(run, Progress(), resume=True)
    if said.startswith("training."):  # how steps were taken does not matter to a probe
        assert run.load_newest()[1] == 7
        return
    with pytest.raises(ValueError, match=said.partition(", training")[0]) as caught:
        probe_run(run, Progress())
    assert str(caught.value).endswith("; here only seed, model.*, windows.*, masking.*, objective.* matter")


def test_a_pretrained_model_is_built_as_it_was_trained(copy):
    saved = json.loads((copy / "config.json").read_text())
    for key, value, is_model in (("heads", 4, True), ("attention", "sdpa", False)):
        other = json.loads(json.dumps(saved))
        other["config"]["model"][key] = value
        other["config"]["seed"] = 9  # says nothing of what the model computes
        (copy / "config.json").write_text(json.dumps(other))
        if not is_model:
            assert load_pretrained(copy).config.attention == "sdpa"
            continue
        with pytest.raises(ValueError, match="computed with other settings: model.heads 2 -> 4. Put"):
            load_pretrained(copy)


def test_what_says_where_and_when_may_change_and_changes_no_weight(store, copy, tmp_path):
    train(store, tmp_path / "whole", CONFIG, progress=Progress())
    other = with_keys(
        CONFIG,
        training__device="auto",
        training__resident=True,
        training__log_every=1,
        training__eval_every=5,
        training__checkpoint_every=2,
        training__keep_checkpoints=1,
    )
    assert train(store, copy, other, resume=True, progress=Progress()).finished
    assert same(final_state(tmp_path / "whole", store), final_state(copy, store))


def test_every_key_is_compared_or_may_change(store, tmp_path):
    said = identity(store, CONFIG)
    keys = json.loads(said["config"])
    inner = {name: hint for name, hint in field_types(PretrainConfig).items() if dataclasses.is_dataclass(hint)}
    assert set(keys) == {"seed"} | {f"{name}.{key}" for name, hint in inner.items() for key in field_types(hint)}
    assert set(MAY_CHANGE) < set(keys)
    for key in keys:
        other = {"config": json.dumps(keys | {key: "another"})}
        if key in MAY_CHANGE:
            check_settings(tmp_path / "x", CONFIG, other)
            continue
        with pytest.raises(ValueError, match=f"settings: {key} 'another' -> "):
            check_settings(tmp_path / "x", CONFIG, other)


def test_another_store_is_refused(store, copy, tmp_path):
    other = write_store(tmp_path / "other", seed=1)
    manifest = json.loads((other.path / "manifest.json").read_text())
    manifest["records"][0]["hours"] += 1
    (other.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"is not what it was when .*copy was started \(r00: hours"):
        train(Store.open(other.path), copy, CONFIG, resume=True, progress=Progress())
    shutil.copy(other.path / "manifest.json", copy / "prepare.json")
    with pytest.raises(ValueError, match=r"was computed from another store than .*other: .* Name the run's own store"):
        train(Store.open(other.path), copy, CONFIG, resume=True, progress=Progress())
    moved = Store.open(shutil.copytree(store.path, tmp_path / "moved"))
    shutil.copy(store.path / "manifest.json", copy / "prepare.json")
    assert train(moved, copy, CONFIG, resume=True, progress=Progress()).finished


def test_the_digest_of_a_manifest_is_of_what_windows_depend_on(store):
    manifest = read_manifest(store.path)
    first, *others = manifest["records"]
    for same_one in (
        {"failed": [{"record": "x", "reason": "y"}]},
        {"records": [first | {"warnings": ["late"]}, *others]},
        {"records": [dict(reversed(first.items())), *others]},
    ):
        assert not manifest_changes(manifest, manifest | same_one)
        assert manifest_sha256(manifest | same_one) == manifest_sha256(manifest)
    for other in ({"physiofast": "9"}, {"records": [first | {"hours": 9.0}, *others]}, {"records": [*others, first]}):
        assert manifest_changes(manifest, manifest | other)
        assert manifest_sha256(manifest | other) != manifest_sha256(manifest)


def test_a_checkpoint_that_no_run_wrote_is_refused(store, copy):
    model = new_model(store, CONFIG)
    save_checkpoint(copy, 12, model, make_optimiser(model, CONFIG.training))
    with pytest.raises(ValueError, match="does not say by which config and from which store it was computed"):
        load_pretrained(copy)
    with pytest.raises(ValueError, match="does not say by which config"):
        train(store, copy, CONFIG, resume=True, progress=Progress())
