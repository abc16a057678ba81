import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from physiofast import attention_forms, checkpoint, tracking, training, training_config
from physiofast.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from physiofast.cohort import describe_cohort, open_cohort
from physiofast.embedding import embed_windows
from physiofast.masking import MaskingConfig
from physiofast.model import ModelConfig
from physiofast.objective import ObjectiveConfig, rebuild
from physiofast.progress import Progress
from physiofast.runfolder.metricslog import MetricsLog, read_lines
from physiofast.runfolder.summary import load_summary
from physiofast.support.interrupts import stop_on_signal, terminate_as_interrupt
from physiofast.support.locks import hold_run
from physiofast.training import (
    NonFiniteLossError,
    learning_rate,
    make_optimiser,
    model_step,
    new_model,
    read_step,
    set_up,
    share_step,
    train,
)
from physiofast.training_config import PretrainConfig, TrainingConfig, check_fit, pick_device
from physiofast.windows import WindowsConfig, step_windows
from tests.cohort import MONTAGE, write_store
from tests.varlen import pretend_varlen

CONFIG = PretrainConfig(
    seed=3,
    windows=WindowsConfig(min_valid_share=0.0),
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
    config = changed(steps=100, batch=8, lr=2e-2, eval_every=100, eval_windows=60, checkpoint_every=100)
    result = train(store, tmp_path / "run", config, progress=Progress())
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    assert result.finished
    assert all(error < 0.5 for error in result.errors.values())


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


def test_a_signal_during_the_last_step_is_heard_and_resuming_finishes(store, tmp_path):
    train(store, tmp_path / "whole", CONFIG, progress=Progress())
    stopped = train(store, tmp_path / "parts", CONFIG, progress=StopAfter(12, signal.SIGINT))
    assert (stopped.step, stopped.finished) == (12, False)
    resumed = train(store, tmp_path / "parts", CONFIG, resume=True, progress=Progress())
    assert resumed == dataclasses.replace(stopped, finished=True, windows_per_s=None)
    assert same(final_state(tmp_path / "whole", store), final_state(tmp_path / "parts", store))


def test_a_signal_during_the_last_evaluation_is_heard(store, tmp_path, monkeypatch):
    evaluate = training.evaluate

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr(training, "evaluate", interrupted)
    stopped = train(store, tmp_path, changed(eval_every=99), progress=Progress())
    assert (stopped.step, stopped.finished) == (12, False)
    assert latest_checkpoint(tmp_path)[0] == 12


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
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums are the same for the same number of threads
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, check=False, timeout=200, env=os.environ | threads)
    assert ended.returncode == -signal.SIGKILL
    assert latest_checkpoint(tmp_path / "killed")[0] == 5
    train(store, tmp_path / "killed", CONFIG, resume=True, progress=Progress())
    train(store, tmp_path / "whole", CONFIG, progress=Progress())
    assert same(final_state(tmp_path / "whole", store), final_state(tmp_path / "killed", store))
    timeless = [[drop_speed(line) for line in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert timeless[0] == timeless[1]


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(store, tmp_path):
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "metrics.jsonl").write_text('{"step": 3, "loss": 9.0}\n{"step": 6, "lo')
    for name in ("whole", "killed"):
        train(store, tmp_path / name, changed(steps=6), resume=name == "killed", progress=Progress())
    assert same(final_state(tmp_path / "whole", store), final_state(tmp_path / "killed", store))
    timeless = [[drop_speed(line) for line in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert timeless[0] == timeless[1]
    with pytest.raises(ValueError, match=r"already has checkpoints, up to step 6; continue it with"):
        train(store, tmp_path / "whole", CONFIG, progress=Progress())


def contents(run):
    """All files of a run, of summary.json without how long its stages took."""
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "summary.json"}
    return files, {key: value for key, value in load_summary(run).items() if key != "seconds"}


def test_resuming_a_finished_run_changes_nothing(store, tmp_path):
    result = train(store, tmp_path, CONFIG, progress=Progress())
    before = contents(tmp_path)
    again = train(store, tmp_path, CONFIG, resume=True, progress=Progress())
    assert again == dataclasses.replace(result, windows_per_s=None)
    assert contents(tmp_path) == before


def test_errors_that_the_log_lost_are_computed_anew(store, tmp_path):
    result = train(store, tmp_path, CONFIG)
    kept = load_summary(tmp_path)["errors"]
    log, lines = tmp_path / "metrics.jsonl", list(read_lines(tmp_path / "metrics.jsonl"))
    for before in ("", json.dumps({"step": 1, "eval": {"error.EEG": 9.0}}) + "\n"):  # lost, or of an earlier state
        log.write_text(before)
        assert train(store, tmp_path, CONFIG, resume=True).errors == result.errors
        assert load_summary(tmp_path)["errors"] == kept != {}
        assert list(read_lines(log))[-1] == [line for line in lines if "eval" in line][-1]


def test_a_log_line_that_a_kill_cut_off_is_dropped(tmp_path):
    path, tracked = tmp_path / "metrics.jsonl", []
    whole = '{"step": 3, "loss": 0.25}\n{"step": 3, "eval": {"error.EEG": 0.5, "error.ECG": null}}\n'
    path.write_text(whole + '{"step": 6, "loss": 1.0}\n{"step": 6, "ev')
    assert [line["step"] for line in read_lines(path)] == [3, 3, 6]
    log = MetricsLog(path, keep_before=3, track=tracked.append)
    assert log.last_evaluation == (3, {"EEG": 0.5})
    log.write({"step": 6, "loss": math.nan, "eval": {"error.EEG": math.inf}})
    new = {"step": 6, "loss": None, "eval": {"error.EEG": None}}
    assert path.read_text() == whole + json.dumps(new) + "\n"
    assert tracked == [new]
    path.write_text("broken\n" + whole)
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: not a JSON object with a step"):
        MetricsLog(path, keep_before=3, track=tracked.append)


@pytest.mark.parametrize(
    "line", ['{"step": "5"}', '{"step": true}', '{"step": Infinity}', '{"step": 5, "eval": 3}', "5", ""]
)
def test_a_damaged_log_line_says_what_to_do(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 3}}\n{line}\n{{"step": 6}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a JSON object .*; delete that line"):
        read_lines(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_acts_as_it_did_before(number):
    seen = []
    old = {n: signal.signal(n, lambda n, _: seen.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stop_on_signal() as stopping:
            os.kill(os.getpid(), number)
            assert (stopping, seen) == ([number], [])
            for other in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), other)
            assert (stopping, seen) == ([number], [signal.SIGTERM, signal.SIGINT])
        os.kill(os.getpid(), number)
        assert len(seen) == 3
    finally:
        for n, handler in old.items():
            signal.signal(n, handler)


def terminated_twice():
    with stop_on_signal():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_command_hears_the_first_sigterm_as_sigint_and_leaves_the_rest_alone():
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with terminate_as_interrupt():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the next one ends the process
        with terminate_as_interrupt(), stop_on_signal() as stopping:  # within a loop it is the loop's
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopping == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with terminate_as_interrupt():
            with pytest.raises(KeyboardInterrupt):
                terminated_twice()
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a third one ends the process
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with terminate_as_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_interrupt_ends_a_long_evaluation(store, tmp_path, monkeypatch):
    def interrupted_twice(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second interrupt did nothing")

    closed = []
    monkeypatch.setattr(training, "evaluate", interrupted_twice)
    monkeypatch.setattr(tracking.Track, "close", lambda _: closed.append(True))
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, CONFIG, progress=Progress())
    assert latest_checkpoint(tmp_path)[0] == 5
    assert closed == [True]


def test_rerun_is_equal_and_another_seed_is_not(store, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(store, tmp_path / name, dataclasses.replace(CONFIG, seed=seed), progress=Progress())
    a, b, c = (final_state(tmp_path / name, store) for name in "abc")
    assert same(a, b)
    assert not same(a, c)


def compared(name, value):
    """What shifts all keys alike has gradient 0 but for rounding, which Adam blows up: the bias of k is left out."""
    return value.chunk(3)[::2] if name.endswith("qkv.bias") else [value]


def test_accumulation_equals_one_large_batch(store, tmp_path):
    train(store, tmp_path / "one", changed(batch=4, accumulate=1, steps=4, eval_every=9), progress=Progress())
    train(store, tmp_path / "two", changed(batch=2, accumulate=2, steps=4, eval_every=9), progress=Progress())
    one, two = final_state(tmp_path / "one", store), final_state(tmp_path / "two", store)
    for name in one:
        for got, want in zip(compared(name, one[name]), compared(name, two[name]), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    losses = [[line["loss"] for line in read_metrics(tmp_path / n) if "loss" in line] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_resident_store_trains_to_the_same_bits(store, tmp_path):
    for name, resident in (("gathered", False), ("resident", True)):
        train(store, tmp_path / name, changed(resident=resident), progress=Progress())
    assert same(final_state(tmp_path / "gathered", store), final_state(tmp_path / "resident", store))


def test_bf16_trains(store, tmp_path):
    result = train(store, tmp_path, changed(precision="bf16", steps=40, eval_every=40), progress=Progress())
    losses = [line["loss"] for line in read_metrics(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]
    assert all(math.isfinite(value) for value in result.errors.values())


def with_attention(form, **changes):
    model = dataclasses.replace(CONFIG.model, attention=form, time_decay=form != "varlen")
    return dataclasses.replace(changed(**changes), model=model)


def test_attention_of_16_bits_is_trained_evaluated_rebuilt_and_embedded(store, tmp_path, monkeypatch):
    config = with_attention("varlen", precision="bf16")
    monkeypatch.setattr(training_config, "_check_attention", lambda *_: None)
    monkeypatch.setattr(
        attention_forms, "varlen_refusal", lambda q: None if q.dtype == torch.bfloat16 else f"found {q.dtype}"
    )
    pretend_varlen(monkeypatch)
    result = train(store, tmp_path, config, progress=Progress())
    assert result.finished
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="packed"))
    found = {}
    for name, of in (("varlen", config), ("packed", plain)):
        work = set_up(store, tmp_path, of)
        training.restore(work)
        windows = work.cohort.test.take(np.arange(8))
        shown = rebuild(work.model, work.reader, windows, np.arange(4), work.planner, of.objective)[0]
        found[name] = (
            np.asarray(list(training.evaluate(work.model, work.reader, windows, work.planner, of).values())),
            np.concatenate([channel[np.isfinite(channel)] for channel in shown]),
            embed_windows(work.model, work.reader, windows),
        )
    for got, want in zip(found["varlen"], found["packed"], strict=True):
        np.testing.assert_allclose(got, want, atol=0.02 * np.nanstd(want), rtol=0.02)


def test_attention_that_cannot_be_trained_on_a_device_is_refused(store, tmp_path, monkeypatch):
    """Of the config alone, before a folder is made."""
    for precision in ("fp32", "bf16"):
        message = rf"'varlen' is FlashAttention.*found training.precision = '{precision}' on cpu.*'bf16' with a CUDA"
        refused(store, with_attention("varlen", precision=precision), message)
    refused(store, with_attention("flex"), "'flex' has gradients on CUDA only; found training on cpu. Choose a CUDA")
    with pytest.raises(ValueError, match="model.attention = 'packed' or 'sdpa', which compute the same anywhere"):
        train(store, tmp_path / "run", with_attention("flex"), progress=Progress())
    assert not (tmp_path / "run").exists()
    check_fit(store, with_attention("sdpa"))
    monkeypatch.setattr(training_config, "pick_device", lambda _: torch.device("cuda"))
    for form in ("packed", "sdpa", "flex"):
        check_fit(store, with_attention(form))
    check_fit(store, with_attention("varlen", precision="bf16"))
    refused(store, with_attention("varlen", precision="fp32"), r"found training.precision = 'fp32' on cuda\. Choose")


def test_a_loss_that_is_not_finite_stops_with_what_to_do(store, tmp_path):
    with pytest.raises(
        NonFiniteLossError,
        match=r"loss of step \d+ of 12 is (nan|inf).*windows are of r0.*smaller --training.lr \(found 1e\+18\)",
    ):
        train(store, tmp_path, changed(lr=1e18, final_lr=0.0, warmup_steps=0, clip_norm=1e30), progress=Progress())
    assert list_checkpoints(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
)
def test_too_little_memory_says_what_takes_less(store, tmp_path, monkeypatch, error):
    def run_step(work, step):
        raise error

    monkeypatch.setattr(training, "run_step", run_step)
    with pytest.raises(MemoryError, match=r"training.batch = 4 windows .* --training.batch.* --training.accumulate"):
        train(store, tmp_path, CONFIG)
    monkeypatch.setattr(training, "run_step", lambda work, step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(store, tmp_path / "other", CONFIG)


@pytest.mark.parametrize(("steps", "newest"), [(1, "it has no checkpoint"), (6, "checkpoint is that of step 5")])
def test_weights_that_the_last_update_spoils_are_an_error_and_not_saved(store, tmp_path, monkeypatch, steps, newest):
    rate = learning_rate
    monkeypatch.setattr(training, "learning_rate", lambda c, step: 1e38 if step == steps - 1 else rate(c, step))
    message = rf"after step {steps} of {steps} .*EEG (nan|inf).*{newest}.*--training.lr"
    for resume in (False, True):
        with pytest.raises(NonFiniteLossError, match=message):
            train(store, tmp_path, changed(steps=steps, warmup_steps=0), resume=resume, progress=Progress())
        assert steps not in dict(list_checkpoints(tmp_path))
    assert all(math.isfinite(line["loss"]) for line in read_metrics(tmp_path) if "loss" in line)


@pytest.mark.parametrize(
    ("spoilt", "stop", "message", "kept"),
    [
        (8, None, r"after step 8 of 12 \d+ of \d+ parameters are not finite .*that of step 5", [5]),  # the next loss
        (10, None, r"after step 10 of 12 .*that of step 5, from which `physiofast train --resume", [5]),  # when due
        (8, 8, r"after step 8 of 12 .*that of step 5", [5]),  # a signal
        (2, None, r"after step 2 of 12 .*it has no checkpoint from before.*--training.lr", []),
    ],
)
def test_spoilt_weights_never_take_the_place_of_good_ones(store, tmp_path, monkeypatch, spoilt, stop, message, kept):
    rate = learning_rate
    monkeypatch.setattr(training, "learning_rate", lambda c, step: math.inf if step == spoilt - 1 else rate(c, step))
    progress = Progress() if stop is None else StopAfter(stop, signal.SIGINT)
    with pytest.raises(NonFiniteLossError, match=message):
        train(store, tmp_path, changed(keep_checkpoints=1), progress=progress)
    assert [step for step, _ in list_checkpoints(tmp_path)] == kept


def test_the_state_before_a_bad_step_is_saved_beside_all_older_ones(store, tmp_path, monkeypatch):
    count = itertools.count(1)
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf if next(count) == 7 else 1.0)
    )
    with pytest.raises(NonFiniteLossError, match="loss of step 7 of 12 is 0.*The state before the step is saved"):
        train(store, tmp_path, changed(keep_checkpoints=1), progress=Progress())
    assert [step for step, _ in list_checkpoints(tmp_path)] == [5, 6]


def test_a_checkpoint_that_cannot_be_written_leaves_a_run_that_goes_on(store, tmp_path, monkeypatch):
    save = checkpoint.save_file

    def full_at_step_10(tensors, path, **options):
        if "00000010" in path.name:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full_at_step_10)
        with pytest.raises(OSError, match="step-00000010.safetensors cannot be written.*goes on from step 5"):
            train(store, tmp_path / "full", CONFIG, progress=Progress())
    train(store, tmp_path / "full", CONFIG, resume=True, progress=Progress())
    train(store, tmp_path / "whole", CONFIG, progress=Progress())
    assert same(final_state(tmp_path / "whole", store), final_state(tmp_path / "full", store))
    timeless = [[drop_speed(line) for line in read_metrics(tmp_path / name)] for name in ("whole", "full")]
    assert timeless[0] == timeless[1]


def test_a_log_that_cannot_be_written_says_where_and_what_to_do(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", keep_before=0, track=lambda _: None)
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(OSError, match=r"metrics.jsonl cannot be written: .*go on with `physiofast train --resume"):
        log.write({"step": 1})


def test_a_folder_that_another_trains_in_is_refused(store, tmp_path):
    with hold_run(tmp_path), pytest.raises(ValueError, match="is being trained by process"):
        train(store, tmp_path, CONFIG, progress=Progress())
    assert [path.name for path in tmp_path.iterdir()] == [".training.lock"]


def test_metrics_say_what_a_step_did(store, tmp_path):
    train(store, tmp_path, CONFIG, progress=Progress())
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 6, 9, 12, 12]
    assert set(lines[0]) >= {"loss", "loss.EEG", "loss.SPO2", "lr", "grad_norm", "windows_per_s", "padding_share"}
    assert set(lines[2]["eval"]) == {f"error.{m}" for m in MONTAGE.modalities}
    assert lines[1]["lr"] == pytest.approx(learning_rate(CONFIG.training, 5))


def test_a_gradient_that_is_not_finite_stops_the_same_way_and_replays(store, tmp_path, monkeypatch):
    states = []

    def explode(parameters, _):
        states.append([p.detach().clone() for p in parameters])
        return torch.tensor(math.inf if len(states) in (7, 8) else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    messages = []
    for resume in (False, True):
        with pytest.raises(
            NonFiniteLossError, match="loss of step 7 of 12 is 0.* norm of its gradient is inf"
        ) as caught:
            train(store, tmp_path, CONFIG, resume=resume, progress=Progress())
        messages.append(str(caught.value))
        assert latest_checkpoint(tmp_path)[0] == 6
    assert messages[0] == messages[1]
    assert all(torch.equal(a, b) for a, b in zip(states[6], states[7], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(states[6], final_weights(tmp_path, store), strict=True))


def final_weights(run, store):
    model = new_model(store, CONFIG)
    load_checkpoint(latest_checkpoint(run)[1], model)
    return list(model.parameters())


def test_loss_and_gradient_add_up_over_micro_batches(store, tmp_path):
    """Weights are of the whole step and variances of the whole store, so the split does not matter."""
    found = []
    for accumulate in (1, 2, 4):
        config = changed(batch=8 // accumulate, accumulate=accumulate)
        work = set_up(store, tmp_path, config)
        work.model.double()
        micro = read_step(work.reader, work.cohort.train, config, 5)
        weight, quotas = share_step(micro, work.planner, 5)
        weight = weight / work.variance
        total, count, _ = model_step(work.model, micro, weight, quotas, work.planner, config, 5)
        gradient = torch.cat([p.grad.flatten() for p in work.model.parameters()])
        found.append((weight, total, count, gradient))
    assert not torch.equal(work.variance, torch.ones(len(work.variance)))
    for weight, total, count, gradient in found[1:]:
        assert torch.equal(weight, found[0][0])
        assert torch.equal(count, found[0][2])
        torch.testing.assert_close(total, found[0][1], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, found[0][3], rtol=1e-5, atol=1e-7)


def test_jittered_windows_have_as_many_valid_patches_as_all_others(tmp_path):
    store = write_store(tmp_path / "store", windows=12)
    for entry in store.records:
        entry.valid[:, 20:45] = False
    config = dataclasses.replace(changed(batch=4, accumulate=2), windows=WindowsConfig(min_valid_share=0.5))
    work = set_up(store, tmp_path / "run", config)
    least, shifted = config.windows.min_valid_share, 0
    for step in range(20):
        micro, again = (read_step(work.reader, work.cohort.train, config, step) for _ in range(2))
        chosen = step_windows(len(work.cohort.train), config.seed, step, 8)
        plain = torch.from_numpy(work.reader.valid(work.cohort.train, chosen)).flatten(1)
        for batch, other in zip(micro, again, strict=True):
            present = (batch.rows.row_start >= 0).sum(1) * store.montage.patches_per_window
            assert (batch.valid.sum(1) >= least * present).all()
            assert torch.equal(batch.valid, other.valid)
        shifted += int((torch.cat([batch.valid for batch in micro]) != plain).any(1).sum())
    assert shifted > 80  # of 160: the others keep their jitter


def test_a_modality_without_hidden_patches_has_no_loss(store):
    step = training.StepResult(
        loss=math.nan,
        total=torch.tensor([6.0, 0.0]),
        count=torch.tensor([3.0, 0.0]),
        grad_norm=1.0,
        lr=0.1,
        padding_share=0.5,
        seconds=1.0,
    )
    line = step.line(("EEG", "ECG"))
    assert line["loss.EEG"] == 2.0
    assert "loss.ECG" not in line


def refused(store, config, message):
    with pytest.raises(ValueError, match=message):
        check_fit(store, config)


def test_what_does_not_fit_the_store_is_refused(store, tmp_path):
    check_fit(store, CONFIG)
    refused(store, changed(device="cuda:99"), "sees no CUDA device; use cpu|Allowed: auto, cpu, cuda, cuda:0")
    refused(store, changed(batch=2**27), "training.batch = 134217728 windows of 30 tokens")
    for keep in (1.0, 0.99):
        masking = dataclasses.replace(CONFIG, masking=MaskingConfig(keep=keep))
        refused(store, masking, f"masking.keep = {keep} hides none of a window's 30 tokens")
    for name, message in (("RESP", "RESP, whose patches at 8 Hz have 8 samples"), ("EMG", "EMG, which the store's")):
        refused(store, dataclasses.replace(CONFIG, objective=ObjectiveConfig(normalise=(name,))), message)
    strict = dataclasses.replace(CONFIG, windows=WindowsConfig(min_valid_share=0.5))
    for side in ("training", "held-out"):
        half = write_store(tmp_path / side, subjects=2)
        cohort = open_cohort(half, CONFIG.windows)
        (subject,) = cohort.train_subjects if side == "training" else cohort.test_subjects
        next(record for record in half.records if record.subject == subject).valid[:] = False
        refused(half, strict, rf"of the 1 {side} subjects \({subject}\): .*no window of 1 records has 50% valid")
    refused(write_store(tmp_path / "one", subjects=1), CONFIG, "needs at least 2 subjects, found only 's00'")
    with pytest.raises(ValueError, match="masking.keep"):
        train(store, tmp_path / "run", masking, progress=Progress())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("absent", [False, True], ids=["the montage has one", "the channels of others are absent"])
def test_cross_modal_pairs_need_two_modalities_in_a_record(tmp_path, absent):
    """Without them no hidden token has a key to attend to, and no gradient reaches the encoder."""
    eeg = dataclasses.replace(MONTAGE, channels=MONTAGE.channels[:2], rate_hz={"EEG": 16.0})
    store = write_store(tmp_path / "store", montage=MONTAGE if absent else eeg, absent=False)
    for record in store.records:
        record.plane_start = np.where(np.arange(len(record.plane_start)) < 2, record.plane_start, -1)
    cross = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, decoder_pairs="cross"))
    refused(store, cross, r"decoder_pairs = 'cross' .*no training record has two \(found EEG\).*choose any or intra")
    check_fit(store, CONFIG)
    check_fit(write_store(tmp_path / "both", subjects=2), cross)


def test_what_a_run_does_not_learn_or_measure_is_said(tmp_path, monkeypatch):
    store, said = write_store(tmp_path / "store", absent=False), []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    cohort, kinds = open_cohort(store, CONFIG.windows), np.asarray(MONTAGE.channel_modality)
    assert describe_cohort(cohort, len(cohort.train)) == ""
    of = {name: MONTAGE.modalities.index(name) for name in MONTAGE.modalities}
    for record in store.records:
        gone = "RESP" if record.subject in cohort.train_subjects else "EOG"
        record.plane_start[kinds == of[gone]] = -1
        record.valid[kinds == of[gone]] = False
    described = describe_cohort(cohort, len(cohort.train) + 1)
    wanted = (
        "No training recording has RESP: nothing is learnt of that",
        "No held-out recording has EOG: no hidden",
        f"A step takes {len(cohort.train) + 1} windows, .* only {len(cohort.train)} are different",
    )
    for sentence in wanted:
        assert re.search(sentence, described)
    train(store, tmp_path / "run", CONFIG)
    assert describe_cohort(cohort, CONFIG.training.windows_per_step) in said


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


@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, None), (1, 0), (2, 1), (20, 19), (20, 18)])
def test_the_last_step_has_the_final_rate_however_short_the_fall(steps, warmup_steps):
    config = TrainingConfig(steps=steps, lr=1.0, warmup_steps=warmup_steps, final_lr=0.1)
    rates = [learning_rate(config, step) for step in range(steps)]
    assert rates[-1] == pytest.approx(0.1)
    assert rates[: config.warmup] == pytest.approx(np.arange(1, config.warmup + 1) / max(config.warmup, 1))


def test_only_matrices_decay(store):
    model = new_model(store, CONFIG)
    groups = make_optimiser(model, CONFIG.training).param_groups
    decayed = {id(p) for p in groups[0]["params"]}
    with_decay = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "encoder.0.attn.qkv.weight" in with_decay
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


def test_a_cuda_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="are 2 CUDA devices. Allowed: auto, cpu, cuda, cuda:0, cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "training.steps must be at least 1"),
        ({"warmup_steps": 12}, "training.warmup_steps must be below steps = 12"),
        ({"final_lr": 1.0}, "training.final_lr must be between 0 and lr"),
        ({"precision": "fp8"}, "training.precision must be one of 'fp32', 'bf16'; found 'fp8'"),
        ({"beta2": 1.5}, "training.beta2 must be at least 0 and below 1; found 1.5"),
        ({"weight_decay": -3.0}, "training.weight_decay must be at least 0; found -3.0"),
        ({"device": "foo"}, "training.device must be auto, cpu, cuda or cuda:N; found 'foo'"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(**changes)
