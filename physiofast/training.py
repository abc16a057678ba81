"""Pretraining: the loop, the learning rate schedule, and what is logged."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from physiofast.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from physiofast.cohort import Cohort, describe_cohort, open_cohort
from physiofast.masking import Planner, hidden_weight
from physiofast.model import MultimodalMAE
from physiofast.objective import hidden_errors, masked_loss, modality_variance
from physiofast.progress import Progress
from physiofast.ranks import ALONE, Ranks, open_ranks
from physiofast.reading_ahead import ReadAhead
from physiofast.runfolder.identity import check_same, identity
from physiofast.runfolder.initial import describe_initial, initial_of, keep_initial, load_initial, new_model
from physiofast.runfolder.metricslog import MetricsLog, NoLog
from physiofast.runfolder.provenance import (
    check_same_store,
    note_environment,
    update_provenance,
    way_to_resume,
    write_provenance,
)
from physiofast.runfolder.summary import timed, update_summary, write_errors
from physiofast.store import Store
from physiofast.support.bounds import require_instance
from physiofast.support.interrupts import stop_on_signal
from physiofast.support.locks import hold_run
from physiofast.support.messages import command, first_names
from physiofast.support.paths import given_path
from physiofast.tracking import open_tracker
from physiofast.training_config import PretrainConfig, TrainingConfig, check_fit, pick_device
from physiofast.windows import (
    Batch,
    WindowIndex,
    WindowReader,
    evenly_spaced,
    jitter_patches,
    step_windows,
)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended."""

    step: int
    """Number of finished optimiser steps of the run."""
    finished: bool
    """False when a signal stopped the call, even during the last step; what follows training is then left out."""
    windows_per_s: float | None
    """Median speed over the logged steps of this call; None when it ended before the first of them."""
    errors: dict[str, float]
    """Latest hidden-patch error of each modality on held-out subjects, of this call or an earlier one of the run."""


class NonFiniteLossError(ArithmeticError):
    """The loss of a step, the norm of its gradient, an evaluation or a weight is NaN or infinite."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step: linear warm-up to `lr`, then a cosine down to `final_lr` at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    falling = config.steps - 1 - config.warmup
    share = (step - config.warmup) / falling if falling else 1.0
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


def make_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Make an AdamW with weight decay for the matrices of layers only, and a higher rate for attention's biases."""
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


@dataclasses.dataclass(frozen=True)
class Work:
    """Everything that the steps of a run share."""

    run: Path
    """The run folder."""
    config: PretrainConfig
    cohort: Cohort
    reader: WindowReader
    planner: Planner
    model: MultimodalMAE
    optimiser: torch.optim.AdamW
    variance: Tensor
    """float32 [M], divisor of each modality's loss; a pure function of store and config."""
    identity: Mapping[str, str]
    """Metadata of the run that each checkpoint carries."""
    ranks: Ranks
    """The processes that compute the steps."""
    batches: ReadAhead[list[Batch]]
    """The micro-batches of each step that this process computes."""

    def save(self, step: int, *, prune: bool = True) -> None:
        """Write the checkpoint after `step` steps, and with `prune` remove all but the newest `keep_checkpoints`.

        Raises:
            NonFiniteLossError: weights are not finite; nothing is written or removed.
        """
        check_weights(self, step)
        if not self.ranks.first:
            return
        keep = self.config.training.keep_checkpoints if prune else len(list_checkpoints(self.run)) + 1
        save_checkpoint(self.run, step, self.model, self.optimiser, keep=keep, about=self.identity)


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The numbers of one optimiser step."""

    loss: float
    total: Tensor
    """[M], sum over each modality's hidden patches of their mean squared error."""
    count: Tensor
    """[M], number of each modality's hidden patches."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    lr: float
    """Learning rate of the step."""
    padding_share: float
    """Share of the places in the step's packings that no token fills."""
    seconds: float
    """Duration of the step."""

    def line(self, modalities: Sequence[str]) -> dict[str, Any]:
        """The numbers for metrics.jsonl; a modality without hidden patches in this step has no loss."""
        totals, counts = self.total.tolist(), self.count.tolist()
        losses = {f"loss.{m}": t / n for m, t, n in zip(modalities, totals, counts, strict=True) if n}
        rest = {"lr": self.lr, "grad_norm": self.grad_norm, "padding_share": self.padding_share}
        return {"loss": self.loss, **losses, **rest}


def train(
    store: Store,
    run: str | os.PathLike[str],
    config: PretrainConfig,
    *,
    init: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Pretrain into a run folder; with `resume`, continue from its newest checkpoint, or begin where it has none.

    A step is a pure function of (config, store, step number, state), so a resumed run equals an uninterrupted
    one; where it continues under another environment, which may change bits, `progress` says so. The first SIGINT or
    SIGTERM ends it after the current step, with a checkpoint; a second one ends it at once. A run that was stopped
    during its last step is finished by resuming it, without a further step.

    Where torchrun started the processes, or PyTorch has a process group, each process computes an equal part of a
    step's micro-batches. The step is the one that a single process computes, but for the order in which gradients are
    added up. Only the first process writes.

    The folder is the one that `physiofast train` makes, for every other command.

    Args:
        store: prepared recordings.
        run: the run folder.
        config: of the run; a resumed run may change those of its keys that `runfolder.identity.MAY_CHANGE` lists.
        init: folder of another run, whose newest weights this one begins with instead of random ones. They are copied,
            so that folder is not needed later; it has no effect on a run that has a checkpoint of its own.
        resume: continue the run instead of beginning it.
        progress: where progress is shown; nowhere when left out.

    Raises:
        NonFiniteLossError: the loss of a step is not finite, with the step, its records and the command that replays
            it; or an evaluation or weights are not finite.
        ValueError: the config does not fit the store; the run has already begun, or another process trains it; a
            checkpoint cannot be read, or was computed by another config or from another store; config.json or
            prepare.json is damaged; or `init` is no run whose weights fit.
        OSError: a file of the run cannot be written.
        MemoryError: memory ran out; the message says what takes less.
        TypeError: `store` or `config` is of another type, such as a path.
    """
    require_instance(Store, "store", store, "physiofast.Store.open(path) makes one")
    require_instance(PretrainConfig, "config", config, "physiofast.get_recipe(name) or PretrainConfig(...) makes one")
    folder, other = given_path(run), None if init is None else given_path(init)
    progress = progress or Progress()
    keep_provenance = update_provenance if resume else write_provenance

    def begin() -> None:
        if resume and (folder / "config.json").exists():
            check_same_store(folder, store.path)
        if not list_checkpoints(folder) and (init is not None or not resume):
            keep_initial(folder, None if other is None else initial_of(store, config, other))

    with held_by_first(store, folder, config, begin) as ranks:
        keep = functools.partial(keep_provenance, folder, store, config)
        return train_held(store, folder, config, ranks, resume=resume, progress=progress, keep=keep)


@contextmanager
def held_by_first(store: Store, run: Path, config: PretrainConfig, begin: Callable[[], None]) -> Iterator[Ranks]:
    """Hold a run folder's lock, and call `begin` in it, in the first of the processes that train together.

    Args:
        store: prepared recordings.
        run: the run folder.
        config: of the run.
        begin: called by the first process once it holds the lock, while the others wait.

    Yields:
        The processes that train together.

    Raises:
        ValueError: the config does not fit the store, another process trains in the folder, or `begin` raises one.
        OSError: the folder cannot be made or written to.
    """
    with open_ranks() as ranks, ExitStack() as held:
        check_fit(store, config, ranks.size)
        ranks.by_first(lambda: held.enter_context(hold_run(run)))
        ranks.by_first(begin)
        yield ranks


def train_held(
    store: Store,
    run: Path,
    config: PretrainConfig,
    ranks: Ranks,
    *,
    resume: bool = False,
    progress: Progress,
    keep: Callable[[], None] | None = None,
) -> TrainResult:
    """Train as `train` does, within `held_by_first`, and write the results into summary.json.

    Args:
        store: prepared recordings.
        run: the run folder, which already has its provenance if `keep` is None.
        config: of the run.
        ranks: the processes that train together.
        resume: continue the run instead of beginning it.
        progress: where progress is shown.
        keep: called by the first process before the first step, to write the provenance of the run.
    """
    _refuse_begun(run, resume)
    with timed(run, "train") if ranks.first else nullcontext(), says_what_takes_less_memory(config.training):
        work = set_up(store, run, config, ranks)
        first = restore(work)
        if keep is not None:
            ranks.by_first(keep)
        result = take_steps(work, first, progress)
    if ranks.first and result.windows_per_s is not None:  # also when stopped: the next call may have no step to time
        update_summary(run, {"throughput": {"windows_per_s": result.windows_per_s}})
    if result.finished:
        ranks.by_first(lambda: write_errors(run, result.errors, store, work.cohort.test_subjects))
    return result


@contextmanager
def says_what_takes_less_memory(settings: TrainingConfig) -> Iterator[None]:
    """Give an error of PyTorch's that memory ran out a message that says what to change.

    Raises:
        MemoryError: in its place.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = ("can't allocate memory", "not enough memory", "out of memory")
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(part in str(error) for part in told):
            raise
        raise MemoryError(
            f"memory ran out with training.batch = {settings.batch} windows at a time. Choose a smaller "
            "--training.batch, with a larger --training.accumulate for as many windows in a step; a run that has taken "
            f"steps keeps its batch, so begin another with --out. ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def take_steps(work: Work, first: int, progress: Progress) -> TrainResult:
    """Take the steps of a run from `first` on, until its last or until a signal comes."""
    settings, ranks = work.config.training, work.ranks
    ranks.need_same({"run folder": work.run.name, "steps taken": str(first), **work.identity})
    ranks.share(list(work.model.parameters()))  # another machine may draw others
    with open_log(work, first, progress) as log:
        done, seconds, speeds = first, list[float](), list[float]()
        evaluated, errors = ranks.of_first(log.last_evaluation)
        if 0 < first != evaluated and is_due(first, settings.eval_every, settings):
            errors = assess(work, done, log)  # the log was lost, is of another state, or this was not due then
        with work.batches, stop_on_signal() as stopping, progress.task("train", settings.steps, done=first) as bar:
            while done < settings.steps and not ranks.any(bool(stopping)):
                step = run_step(work, done)
                done += 1
                bar.advance(1)
                seconds.append(step.seconds)
                if is_due(done, settings.log_every, settings):
                    speeds.append(len(seconds) * settings.windows_per_step / sum(seconds))
                    seconds.clear()
                    line = {
                        "step": done,
                        **step.line(work.cohort.store.montage.modalities),
                        "windows_per_s": speeds[-1],
                    }
                    log.write(line)
                    progress.note(line)
                if is_due(done, settings.eval_every, settings):
                    errors = assess(work, done, log)
                if is_due(done, settings.checkpoint_every, settings):
                    work.save(done)
        if done not in dict(list_checkpoints(work.run)):
            work.save(done)
        stopped = ranks.any(bool(stopping))
    speed = float(np.median(speeds)) if speeds else None
    return TrainResult(step=done, finished=done == settings.steps and not stopped, windows_per_s=speed, errors=errors)


@contextmanager
def open_log(work: Work, first: int, progress: Progress) -> Iterator[MetricsLog | NoLog]:
    """Open the log of the steps after the first `first`; only the first process writes one, and says how it begins."""
    run, config = work.run, work.config
    if not work.ranks.first:
        yield NoLog()
        return
    if first < config.training.steps:
        progress.say(note_environment(run, first, config))
        progress.say(describe_cohort(work.cohort, config.training.windows_per_step))
    if not first:
        progress.say(describe_initial(run))
    with closing(open_tracker(config.training.tracker, run, dataclasses.asdict(config), first=first)) as track:
        yield MetricsLog(run / "metrics.jsonl", keep_before=first, track=track.write)


def set_up(store: Store, run: Path, config: PretrainConfig, ranks: Ranks = ALONE) -> Work:
    """Make everything that the steps of a run share, before the first of them."""
    device, cohort = pick_device(config.training.device), open_cohort(store, config.windows)
    reader, model = WindowReader(store, device, config.training.resident), new_model(store, config).to(device)
    read = functools.partial(read_step, reader, cohort.train, config, ranks=ranks)
    ahead = device.type == "cuda"
    return Work(
        run=run,
        config=config,
        cohort=cohort,
        reader=reader,
        planner=Planner(store.montage, config.masking, config.seed),
        model=model,
        optimiser=make_optimiser(model, config.training),
        variance=torch.from_numpy(modality_variance(reader, cohort.train, config.objective)).float(),
        identity=identity(store, config),
        ranks=ranks,
        batches=ReadAhead(_on_stream_of(device, read) if ahead else read, config.training.steps, ahead=ahead),
    )


def _on_stream_of(device: torch.device, read: Callable[[int], list[Batch]]) -> Callable[[int], list[Batch]]:
    """Make a thread read on the stream that steps are computed on; its own current stream is another."""
    stream = torch.cuda.current_stream(device)

    def read_there(step: int) -> list[Batch]:
        with torch.cuda.stream(stream):
            return read(step)

    return read_there


def restore(work: Work) -> int:
    """Load the newest checkpoint into model and optimiser, or the initial weights where there is none.

    Returns:
        The number of finished steps.

    Raises:
        ValueError: the newest checkpoint cannot be read, or was computed by another config or from another store.
    """
    checkpoints = list_checkpoints(work.run)
    if not checkpoints:
        load_initial(work.run, work.model)
        return 0
    newest = checkpoints[-1][1]
    check = functools.partial(check_same, newest, work.cohort.store, work.config)
    return load_checkpoint(newest, work.model, work.optimiser, check)


def _refuse_begun(run: Path, resume: bool) -> None:
    """Refuse to begin a run in a folder that has checkpoints.

    Raises:
        ValueError: with what to do.
    """
    checkpoints = list_checkpoints(run)
    if checkpoints and not resume:
        raise ValueError(
            f"{run} already has checkpoints, up to step {checkpoints[-1][0]}; {way_to_resume(run)}, or choose another "
            "folder"
        )


def is_due(done: int, every: int, settings: TrainingConfig) -> bool:
    """Whether something that is due after every `every` steps is due after step `done`; it always is after the last."""
    return done % every == 0 or done == settings.steps


def run_step(work: Work, step: int) -> StepResult:
    """Take one optimiser step.

    Raises:
        NonFiniteLossError: the loss or gradient is not finite. The state before the step is saved, to replay it, unless
            its weights are already not finite; all older checkpoints are kept.
    """
    began, model, settings = time.perf_counter(), work.model, work.config.training
    lr = learning_rate(settings, step)
    for group in work.optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]
    micro = work.batches.take(step)
    weight, quotas = share_step(micro, work.planner, step, work.ranks)
    weight = weight / work.variance
    total, count, padding = model_step(model, micro, weight, quotas, work.planner, work.config, step)
    total, count = work.ranks.add_gradients(model.parameters(), (total, count))
    numbers = (total * weight.to(total.device)).sum(), nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    loss, norm = torch.stack([number.double() for number in numbers]).tolist()  # a GPU is waited for once
    if not (math.isfinite(loss) and math.isfinite(norm)):
        work.optimiser.zero_grad(set_to_none=True)
        work.save(step, prune=False)
        raise NonFiniteLossError(describe_bad_step(work, step, loss, norm))
    work.optimiser.step()
    work.optimiser.zero_grad(set_to_none=True)
    padding_share = float(work.ranks.added(np.asarray(padding))) / work.ranks.size
    return StepResult(loss, total, count, norm, lr, padding_share, time.perf_counter() - began)


def read_step(
    reader: WindowReader, index: WindowIndex, config: PretrainConfig, step: int, *, ranks: Ranks = ALONE
) -> list[Batch]:
    """Read this process's micro-batches of a step, of B windows each; a function of its arguments alone."""
    settings = config.training
    chosen = step_windows(len(index), config.seed, step, settings.windows_per_step)
    shift = None
    if config.windows.jitter:
        shift = jitter_patches(config.seed, step, index.window_id[chosen], reader.montage.patches_per_window)
    parts = np.split(np.arange(len(chosen)), settings.accumulate)[ranks.part(settings.accumulate)]
    least = config.windows.min_valid_share
    return [
        reader.batch(index, chosen[part], None if shift is None else shift[part], min_valid_share=least)
        for part in parts
    ]


def share_step(micro: Sequence[Batch], planner: Planner, step: int, ranks: Ranks = ALONE) -> tuple[Tensor, np.ndarray]:
    """(loss weights of the whole step, float32 [M]; quotas of these A micro-batches, int64 [A * B, M])."""
    capacity = np.concatenate([planner.capacity(batch.valid) for batch in micro])
    quotas = planner.quotas(step, torch.cat([batch.window_id for batch in micro]), capacity)
    return torch.from_numpy(hidden_weight(ranks.added((capacity - quotas).sum(0)))), quotas


def model_step(
    model: MultimodalMAE,
    micro: Sequence[Batch],
    weight: Tensor,
    quotas: np.ndarray,
    planner: Planner,
    config: PretrainConfig,
    step: int,
) -> tuple[Tensor, Tensor, float]:
    """Compute loss and gradient of every micro-batch; returns (sum [M], count [M], padding share) of the step."""
    device = next(model.parameters()).device
    weight = weight.to(device)
    total = count = torch.zeros(len(weight), device=device)
    padding = []
    for batch, quota in zip(micro, np.split(quotas, len(micro)), strict=True):
        capacity = planner.capacity(batch.valid)
        plan = planner.plan(step, batch.window_id, batch.rows.valid, quota, capacity)
        with autocast(device, config.training.precision):
            loss, part_total, part_count = masked_loss(model, batch.rows, plan, weight, config.objective)
        loss.backward()
        total, count = total + part_total, count + part_count
        padding.append(planner.padding_share(quota, capacity))
    return total, count, float(np.mean(padding))


def autocast(device: torch.device, precision: str) -> Any:
    """Return autocast to bf16 for the precision bf16, else a context that does nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def evaluate(
    model: MultimodalMAE, reader: WindowReader, index: WindowIndex, planner: Planner, config: PretrainConfig
) -> dict[str, float]:
    """Compute `hidden_errors` on evenly spaced windows of an index, without modality dropout."""
    some = index.take(evenly_spaced(len(index), config.training.eval_windows))
    batch_size = config.training.batch
    return hidden_errors(model, reader, some, planner.without_dropout(), config.objective, batch_size=batch_size)


def assess(work: Work, done: int, log: MetricsLog | NoLog) -> dict[str, float]:
    """Evaluate the model after step `done`, and log its hidden-patch error of each modality, which is returned.

    Raises:
        NonFiniteLossError: as of `check_evaluation`.
    """
    errors = evaluate(work.model, work.reader, work.cohort.test, work.planner, work.config)
    log.write({"step": done, "eval": {f"error.{name}": value for name, value in errors.items()}})
    check_evaluation(work, done, errors)
    return errors


def check_evaluation(work: Work, done: int, errors: Mapping[str, float]) -> None:
    """Refuse to continue from weights whose evaluation is not finite; after the last step nothing else would tell.

    Raises:
        NonFiniteLossError: the hidden-patch error of a modality is not finite; these weights are not saved.
    """
    bad = [f"{name} {value}" for name, value in errors.items() if not math.isfinite(value)]
    if bad:
        what = f"the hidden-patch error is not finite ({', '.join(bad)})"
        raise NonFiniteLossError(describe_spoilt(work, done, what))


def check_weights(work: Work, done: int) -> None:
    """Refuse to save weights that are not finite, as the run would continue from them.

    Raises:
        NonFiniteLossError: a weight is not finite.
    """
    parameters = dict(work.model.named_parameters())
    finite = torch.stack([parameter.isfinite().all() for parameter in parameters.values()]).tolist()
    bad = [name for name, is_finite in zip(parameters, finite, strict=True) if not is_finite]
    if bad:
        what = f"{len(bad)} of {len(parameters)} parameters are not finite ({first_names(bad)})"
        raise NonFiniteLossError(describe_spoilt(work, done, what))


def describe_spoilt(work: Work, done: int, what: str) -> str:
    """Tell a user what to do about weights that an update has spoilt."""
    steps, settings = [step for step, _ in list_checkpoints(work.run)], work.config.training
    older = [step for step in steps if step < done]
    saved = "its checkpoint of that step holds them" if done in steps else "they are not saved"
    newest = "it has no checkpoint from before"
    if older:
        newest = (
            f"its newest good checkpoint is that of step {older[-1]}, from which "
            f"`{command('train', '--resume', work.run)}` would repeat the same steps"
        )
    return (
        f"after step {done} of {settings.steps} {what}: an update has spoilt the weights, and {saved}; "
        f"{work.run} ends here, and {newest}. {_gentler(settings)}"
    )


def _gentler(settings: TrainingConfig) -> str:
    return (
        f"Start a new run with --out, and a smaller --training.lr (found {settings.lr:g}) or --training.weight-decay "
        f"(found {settings.weight_decay:g})"
    )


def describe_bad_step(work: Work, step: int, loss: float, norm: float) -> str:
    """Tell a user what to do about a step, counted from 0, whose loss or gradient is not finite."""
    config, cohort = work.config, work.cohort
    chosen = step_windows(len(cohort.train), config.seed, step, config.training.windows_per_step)
    names = sorted({cohort.store.records[r].record for r in cohort.train.record[chosen]})
    what = f"loss of step {step + 1} of {config.training.steps} is {loss}"  # as the log counts steps
    if math.isfinite(loss):
        what += f", but the norm of its gradient is {norm}"
    return (
        f"the {what}. Its windows are of {', '.join(names)}. {_gentler(config.training)}. The state before the step is "
        f"saved to look into it: `{command('train', '--resume', work.run)}` takes the same step again"
    )
