import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from physiofast.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from physiofast.masking import MaskingConfig
from physiofast.model import ModelConfig
from physiofast.objective import ObjectiveConfig
from physiofast.progress import Progress
from physiofast.training import (
    NonFiniteLossError,
    PretrainConfig,
    TrainingConfig,
    learning_rate,
    make_optimiser,
    new_model,
    open_cohort,
    pick_device,
    train,
)
from physiofast.windows import WindowsConfig
from tests.cohort import MONTAGE, write_store

CONFIG = PretrainConfig(
    seed=3,
    windows=WindowsConfig(min_valid=0.0),
    masking=MaskingConfig(keep=0.4),
    model=ModelConfig(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1),
    objective=ObjectiveConfig(),
    training=TrainingConfig(
        steps=12,
        batch=4,
        lr=3e-3,
        warmup_steps=2,
        log_every=3,
        eval_every=6,
        eval_windows=8,
        checkpoint_every=5,
        device="cpu",
    ),
)


def changed(**changes) -> PretrainConfig:
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, **changes))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), subjects=6)


def final_state(run, store, config=CONFIG):
    model = new_model(store, config)
    load_checkpoint(latest_checkpoint(run)[1], model)
    return model.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class StopAfter(Progress):
    """Sends this process a signal after some steps."""

    def __init__(self, steps, number):
        self.left, self.number = steps, number

    def task(self, name, total, done=0):
        from contextlib import nullcontext

        return nullcontext(self)

    def advance(self, steps):
        self.left -= steps
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def test_training_learns_what_channels_share(tmp_path):
    store = write_store(tmp_path / "store", subjects=6, windows=60, absent=False)
    config = changed(steps=300, batch=8, eval_every=300, eval_windows=100, checkpoint_every=300)
    result = train(store, tmp_path / "run", config, progress=Progress())
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:3])
    assert result.finished
    assert result.errors["EEG"] < 0.9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(store, tmp_path, number, accumulate):
    config = changed(accumulate=accumulate)
    train(store, tmp_path / "whole", config, progress=Progress())
    stopped = train(store, tmp_path / "parts", config, progress=StopAfter(7, number))
    assert (stopped.step, stopped.finished) == (7, False)
    assert latest_checkpoint(tmp_path / "parts")[0] == 7
    resumed = train(store, tmp_path / "parts", config, resume=True, progress=Progress())
    assert resumed.finished
    assert same(final_state(tmp_path / "whole", store), final_state(tmp_path / "parts", store))
    timeless = [[drop_speed(line) for line in read_metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert timeless[0] == timeless[1]


def read_metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def drop_speed(line):
    return {k: v for k, v in line.items() if k not in ("windows_per_s", "eta_s")}


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(store, tmp_path):
    """kill -9 in the middle: the run goes on from its last checkpoint, and its log has no step twice."""
    script = f"""
        from pathlib import Path
        from physiofast.store import Store
        from physiofast.progress import Progress
        from physiofast.training import train
        from tests.test_training import CONFIG, StopAfter
        import signal
        train(Store.open({str(store.path)!r}), Path({str(tmp_path / "killed")!r}), CONFIG,
              progress=StopAfter(8, signal.SIGKILL))
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=200)
    assert ended.returncode == -signal.SIGKILL
    assert latest_checkpoint(tmp_path / "killed")[0] == 5
    train(store, tmp_path / "killed", CONFIG, resume=True, progress=Progress())
    train(store, tmp_path / "whole", CONFIG, progress=Progress())
    assert same(final_state(tmp_path / "whole", store), final_state(tmp_path / "killed", store))
    timeless = [[drop_speed(line) for line in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert timeless[0] == timeless[1]


def test_rerun_is_equal_and_another_seed_is_not(store, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(store, tmp_path / name, dataclasses.replace(CONFIG, seed=seed), progress=Progress())
    a, b, c = (final_state(tmp_path / name, store) for name in "abc")
    assert same(a, b)
    assert not same(a, c)


def test_accumulation_equals_one_large_batch(store, tmp_path):
    train(store, tmp_path / "one", changed(batch=4, accumulate=1, steps=4, eval_every=9), progress=Progress())
    train(store, tmp_path / "two", changed(batch=2, accumulate=2, steps=4, eval_every=9), progress=Progress())
    one, two = final_state(tmp_path / "one", store), final_state(tmp_path / "two", store)
    for name in one:
        if not name.endswith(
            "kv.bias"
        ):  # what shifts all keys alike has gradient 0 but for rounding; Adam blows that up
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-4)
    losses = [[line["loss"] for line in read_metrics(tmp_path / n) if "loss" in line] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_resident_store_trains_to_the_same_bits(store, tmp_path):
    for name, resident in (("gathered", False), ("resident", True)):
        train(store, tmp_path / name, changed(resident=resident), progress=Progress())
    assert same(final_state(tmp_path / "gathered", store), final_state(tmp_path / "resident", store))


def test_bf16_trains(store, tmp_path):
    result = train(store, tmp_path, changed(precision="bf16", steps=60, eval_every=60), progress=Progress())
    losses = [line["loss"] for line in read_metrics(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]
    assert all(math.isfinite(value) for value in result.errors.values())


def test_a_loss_that_is_not_finite_stops_with_what_to_do(store, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"loss of step \d+ is (nan|inf).*windows are of r0.*train --resume"):
        train(store, tmp_path, changed(lr=1e18, final_lr=0.0, warmup_steps=0, clip_norm=1e30), progress=Progress())
    assert list_checkpoints(tmp_path)


def test_metrics_say_what_a_step_did(store, tmp_path):
    train(store, tmp_path, CONFIG, progress=Progress())
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 6, 9, 12, 12]
    assert set(lines[0]) >= {"loss", "loss.EEG", "loss.SPO2", "lr", "grad_norm", "windows_per_s", "padding_share"}
    assert set(lines[2]["eval"]) == {f"error.{m}" for m in MONTAGE.modalities}
    assert lines[1]["lr"] == pytest.approx(learning_rate(CONFIG.training, 5))


def test_old_checkpoints_are_removed(store, tmp_path):
    train(store, tmp_path, changed(checkpoint_every=2, keep_checkpoints=3), progress=Progress())
    assert [step for step, _ in list_checkpoints(tmp_path)] == [8, 10, 12]


def test_schedule_warms_up_and_falls():
    config = TrainingConfig(steps=100, lr=1.0, warmup_steps=10, final_lr=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[10 + 45] == pytest.approx(0.55, abs=0.02)


def test_only_matrices_decay(store):
    model = new_model(store, CONFIG)
    groups = make_optimiser(model, CONFIG.training).param_groups
    decayed = {id(p) for p in groups[0]["params"]}
    with_decay = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "encoder.0.attn.q.weight" in with_decay
    assert "tokeniser.EEG.weight" in with_decay
    assert with_decay.isdisjoint(
        {"positions.time", "encoder.0.attn.pair_bias", "encoder.0.norm1.weight", "decoder.head.bias"}
    )


def test_split_is_by_subject(store):
    cohort = open_cohort(store, CONFIG.windows)
    assert not set(cohort.train_subjects) & set(cohort.test_subjects)
    subjects = np.asarray([r.subject for r in store.records])
    assert set(subjects[cohort.train.record]) == set(cohort.train_subjects)
    assert set(subjects[cohort.test.record]) == set(cohort.test_subjects)


def test_cuda_without_a_device_is_an_error():
    if torch.cuda.is_available():
        assert pick_device("cuda").type == "cuda"
    else:
        with pytest.raises(ValueError, match="sees no CUDA device; use cpu"):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "training.steps must be at least 1"),
        ({"warmup_steps": 12}, "training.warmup_steps must be below steps = 12"),
        ({"final_lr": 1.0}, "training.final_lr must be between 0 and lr"),
        ({"precision": "fp8"}, "training.precision must be fp32 or bf16"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(**changes)
