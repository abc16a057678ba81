"""Pretraining: the loop, its schedule and its log."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from physiofast.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from physiofast.masking import MaskingConfig, Planner, padding_share
from physiofast.model import ModelConfig, MultimodalMAE
from physiofast.objective import ObjectiveConfig, hidden_errors, masked_loss, modality_variance
from physiofast.progress import Progress
from physiofast.splits import subject_split
from physiofast.store import Store
from physiofast.tracking import Tracker, open_tracker
from physiofast.windows import (
    Batch,
    WindowIndex,
    WindowReader,
    WindowsConfig,
    index_windows,
    jitter_patches,
    step_windows,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation, precision and logging. Every default is ours."""

    steps: int = 20_000
    """Optimiser steps of the whole run; the schedule ends here."""
    batch: int = 64
    """Windows of a micro-batch."""
    accumulate: int = 1
    """Micro-batches of one optimiser step."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 500
    """Steps of linear warm-up; then a cosine falls to `final_lr`."""
    final_lr: float = 1e-5
    """Learning rate of the last step."""
    bias_lr_scale: float = 10.0
    """Learning rate of attention's pair bias and time decay over that of all other parameters: they are logits."""
    weight_decay: float = 0.05
    """AdamW decay of matrices; embeddings, biases and norms have none."""
    beta2: float = 0.95
    """Second momentum of AdamW; the first is 0.9."""
    clip_norm: float = 1.0
    """Gradients are scaled down to at most this norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs linear layers and attention under autocast; parameters and sums stay fp32."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda or cuda:N."""
    resident: bool = False
    """Keep the whole store on the device, so that a batch is row starts only."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 1000
    """Steps between evaluations of hidden-patch error on held-out subjects; also after the last step."""
    eval_windows: int = 256
    """Held-out windows per evaluation, evenly spaced."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; also after the last step."""
    keep_checkpoints: int = 2
    """Older checkpoints are removed."""
    tracker: Tracker = "none"
    """Where lines of metrics.jsonl go besides: none, tensorboard or wandb (extra `trackers`)."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "accumulate", "log_every", "eval_every", "eval_windows", "checkpoint_every")
        for name in (*counts, "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1; found {getattr(self, name)}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"training.warmup_steps must be below steps = {self.steps}; found {self.warmup_steps}")
        if not 0 <= self.final_lr <= self.lr:
            raise ValueError(f"training.final_lr must be between 0 and lr = {self.lr}; found {self.final_lr}")
        for name in ("clip_norm", "bias_lr_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name} must be positive; found {getattr(self, name)}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"training.precision must be fp32 or bf16; found {self.precision!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that decides what a run computes, besides the store."""

    seed: int = 0
    """Of the model's initial weights, the order of windows, the jitter and the plans."""
    windows: WindowsConfig = WindowsConfig()
    masking: MaskingConfig = MaskingConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended."""

    step: int
    """Finished optimiser steps of the run."""
    finished: bool
    """False when a signal stopped it early."""
    windows_per_s: float
    """Median over the logged steps of this call; NaN when it ended before the first."""
    errors: dict[str, float]
    """Last hidden-patch error of each modality on held-out subjects."""


class NonFiniteLossError(ArithmeticError):
    """The loss of a step is NaN or infinite."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up to `lr`, then a cosine down to `final_lr` at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


def make_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices of layers only, and faster attention biases."""
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "bias": [], "rest": []}
    for name, parameter in model.named_parameters():
        if name.endswith(("pair_bias", "time_decay")):
            groups["bias"].append(parameter)
        else:
            groups["matrix" if name.endswith("weight") and parameter.ndim == 2 else "rest"].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups["matrix"], "weight_decay": config.weight_decay, "lr_scale": 1.0},
            {"params": groups["rest"], "weight_decay": 0.0, "lr_scale": 1.0},
            {"params": groups["bias"], "weight_decay": 0.0, "lr_scale": config.bias_lr_scale},
        ],
        lr=config.lr,
        betas=(0.9, config.beta2),
        fused=True,
    )


def pick_device(name: str) -> torch.device:
    """The device of a config's name.

    Raises:
        ValueError: CUDA is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"training.device is {name!r} but torch {torch.__version__} sees no CUDA device; use cpu")
    return torch.device(name)


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A store split by subject, with the windows of both sides."""

    store: Store
    train: WindowIndex
    test: WindowIndex
    train_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]


def open_cohort(store: Store, config: WindowsConfig) -> Cohort:
    """Split a store's subjects as the config says and index both sides."""
    subjects = sorted({record.subject for record in store.records})
    train, test = subject_split(subjects, config.test_share, config.split_seed)
    return Cohort(
        store=store,
        train=index_windows(store, set(train), config.min_valid),
        test=index_windows(store, set(test), config.min_valid),
        train_subjects=tuple(train),
        test_subjects=tuple(test),
    )


def new_model(store: Store, config: PretrainConfig) -> MultimodalMAE:
    """A model with the initial weights of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MultimodalMAE(store.montage, config.model)


def train(store: Store, run: Path, config: PretrainConfig, *, resume: bool = False, progress: Progress) -> TrainResult:
    """Pretrain, or go on from the newest checkpoint of the run.

    A step is a pure function of (config, store, step number, state), so a resumed run equals an uninterrupted
    one. SIGINT and SIGTERM end it after the current step, with a checkpoint.

    Args:
        store: prepared recordings.
        run: folder for checkpoints and metrics.jsonl.
        config: of the run.
        resume: continue instead of beginning.
        progress: where progress goes.

    Raises:
        NonFiniteLossError: with the step, its records and the command that replays it.
        ValueError: a config that does not fit the store.
    """
    settings, device = config.training, pick_device(config.training.device)
    cohort = open_cohort(store, config.windows)
    reader = WindowReader(store, device, settings.resident)
    planner = Planner(store.montage, config.masking, config.seed)
    model = new_model(store, config).to(device)
    optimiser = make_optimiser(model, settings)
    variance = torch.from_numpy(modality_variance(reader, cohort.train, config.objective)).float()
    first = load_checkpoint(latest_checkpoint(run)[1], model, optimiser) if resume else 0
    track = open_tracker(settings.tracker, run, dataclasses.asdict(config))
    log = MetricsLog(run / "metrics.jsonl", keep_before=first, track=track)
    speeds: list[float] = []
    errors: dict[str, float] = log.last_errors
    done, saved, mark, seen = first, first if resume else -1, time.perf_counter(), 0
    with stop_on_signal() as stopping, progress.task("train", settings.steps, done=first) as bar:
        while done < settings.steps and not stopping:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(settings, done) * group["lr_scale"]
            micro, weight, quotas = load_step(cohort.train, reader, planner, config, done)
            weight = weight / variance
            total, count, padding = model_step(model, micro, weight, quotas, planner, config, done)
            loss = float((total * weight.to(device)).sum())
            if not math.isfinite(loss):
                save_checkpoint(run, done, model, optimiser, keep=settings.keep_checkpoints)
                raise NonFiniteLossError(describe_bad_step(cohort, config, done, loss, run))
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            seen += settings.batch * settings.accumulate
            done += 1
            if done % settings.log_every == 0 or done == settings.steps:
                speeds.append(seen / (time.perf_counter() - mark))
                mean = (total / count.clamp(min=1)).tolist()
                losses = {f"loss.{name}": value for name, value in zip(store.montage.modalities, mean, strict=True)}
                line = {"step": done, "loss": loss, **losses, "lr": learning_rate(settings, done - 1)}
                line |= {"grad_norm": float(norm), "windows_per_s": speeds[-1], "padding_share": padding}
                log.write(line)
                progress.note(line)
                mark, seen = time.perf_counter(), 0
            if done % settings.eval_every == 0 or done == settings.steps:
                errors = evaluate(model, cohort.test, reader, planner, config)
                log.write({"step": done, "eval": {f"error.{name}": value for name, value in errors.items()}})
                mark, seen = time.perf_counter(), 0
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                save_checkpoint(run, done, model, optimiser, keep=settings.keep_checkpoints)
                saved, mark, seen = done, time.perf_counter(), 0
            bar.advance(1)
    if done > saved:
        save_checkpoint(run, done, model, optimiser, keep=settings.keep_checkpoints)
    speed = float(np.median(speeds)) if speeds else math.nan
    return TrainResult(step=done, finished=done == settings.steps, windows_per_s=speed, errors=errors)


def load_step(
    index: WindowIndex, reader: WindowReader, planner: Planner, config: PretrainConfig, step: int
) -> tuple[list[Batch], Tensor, np.ndarray]:
    """The micro-batches of a step, the loss weights of the whole step, and its quotas [batch * accumulate, M]."""
    settings = config.training
    chosen = step_windows(len(index), config.seed, step, settings.batch * settings.accumulate)
    shift = None
    if config.windows.jitter:
        shift = jitter_patches(config.seed, step, index.window_id[chosen], reader.montage.patches_per_window)
    parts = np.split(np.arange(len(chosen)), settings.accumulate)
    micro = [reader.batch(index, chosen[part], None if shift is None else shift[part]) for part in parts]
    capacity = np.concatenate([planner.capacity(batch.valid) for batch in micro])
    quotas = planner.quotas(step, torch.cat([batch.window_id for batch in micro]), capacity)
    return micro, torch.from_numpy(planner.hidden_weight(quotas, capacity)), quotas


def model_step(
    model: MultimodalMAE,
    micro: Sequence[Batch],
    weight: Tensor,
    quotas: np.ndarray,
    planner: Planner,
    config: PretrainConfig,
    step: int,
) -> tuple[Tensor, Tensor, float]:
    """Forward and backward of every micro-batch; (sum [M], count [M], padding share) of the step."""
    device = next(model.parameters()).device
    total = count = torch.zeros(len(weight), device=device)
    padding = []
    for batch, quota in zip(micro, np.split(quotas, len(micro)), strict=True):
        plan = planner.plan(step, batch.window_id, batch.rows.valid, quota, planner.capacity(batch.valid))
        with autocast(device, config.training.precision):
            loss, part_total, part_count = masked_loss(model, batch.rows, plan, weight.to(device), config.objective)
        loss.backward()
        total, count = total + part_total, count + part_count
        padding.append(padding_share(plan))
    return total, count, float(np.mean(padding))


def autocast(device: torch.device, precision: str) -> Any:
    """Autocast to bf16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def evaluate(
    model: MultimodalMAE, index: WindowIndex, reader: WindowReader, planner: Planner, config: PretrainConfig
) -> dict[str, float]:
    """Hidden-patch error per modality on evenly spaced windows of an index, without modality dropout."""
    places = np.unique(np.linspace(0, len(index) - 1, config.training.eval_windows).astype(int))
    some = WindowIndex(index.record[places], index.epoch[places], index.window_id[places])
    return hidden_errors(model, reader, some, planner.without_dropout(), config.objective, batch=config.training.batch)


def describe_bad_step(cohort: Cohort, config: PretrainConfig, step: int, loss: float, run: Path) -> str:
    """What a user needs to look into a step whose loss is not finite."""
    settings = config.training
    chosen = step_windows(len(cohort.train), config.seed, step, settings.batch * settings.accumulate)
    names = sorted({cohort.store.records[r].record for r in cohort.train.record[chosen]})
    return (
        f"the loss of step {step} is {loss}. Its windows are of {', '.join(names)}. The state before the step is "
        f"saved; replay it with `physiofast train --resume {run}`"
    )


class MetricsLog:
    """metrics.jsonl: one object per line, appended; lines after `keep_before` steps are dropped on resume."""

    def __init__(self, path: Path, keep_before: int, track: Callable[[Mapping[str, Any]], None]) -> None:
        self.path, self._track = path, track
        self.last_errors: dict[str, float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        kept = [line for line in lines if line["step"] <= keep_before]
        for line in kept:
            self.last_errors = {
                k.removeprefix("error."): v for k, v in line.get("eval", {}).items()
            } or self.last_errors
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: dict) -> None:
        """Append one object."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._track(line)


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Within, SIGINT and SIGTERM append to the list instead of ending the process; outside the main thread nothing."""
    received: list[int] = []
    try:
        old = {s: signal.signal(s, lambda number, _: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
