"""The config of a training run, and the check that it fits a store and a device."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import torch

from physiofast.cohort import Cohort, modalities_by_record, modalities_of, open_cohort
from physiofast.masking import MaskingConfig
from physiofast.model import ModelConfig
from physiofast.montage import Montage
from physiofast.objective import ObjectiveConfig
from physiofast.ops.checks import SHORTEST_NORMALISED
from physiofast.ranks import group_size, local_rank
from physiofast.store import Store
from physiofast.support.bounds import Bounds, check_fields, refuse_misfit
from physiofast.tracking import Tracker, need_tracker
from physiofast.windows import WindowsConfig

_TRAINING_BOUNDS = {
    "steps": Bounds(least=1),
    "batch": Bounds(least=1),
    "accumulate": Bounds(least=1),
    "lr": Bounds(least=0),
    "final_lr": Bounds(least=0),
    "bias_lr_scale": Bounds(above=0),
    "weight_decay": Bounds(least=0),
    "beta2": Bounds(least=0, below=1),
    "clip_norm": Bounds(above=0),
    "log_every": Bounds(least=1),
    "eval_every": Bounds(least=1),
    "eval_windows": Bounds(least=1),
    "checkpoint_every": Bounds(least=1),
    "keep_checkpoints": Bounds(least=1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation, precision and logging. Every default is ours."""

    steps: int = 20_000
    """Optimiser steps of the whole run; the schedule ends here."""
    batch: int = 64
    """Windows of a micro-batch."""
    accumulate: int = 1
    """Micro-batches of one optimiser step; several processes share them."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int | None = None
    """Steps of linear warm-up, then a cosine falls to `final_lr`; by default a tenth of the steps, at most 500."""
    final_lr: float = 1e-5
    """Learning rate of the last step."""
    bias_lr_scale: float = 10.0
    """Ratio of the learning rate of attention's pair bias and time decay, which are logits, to that of all else."""
    weight_decay: float = 0.05
    """AdamW weight decay of matrices; embeddings, biases and norms have none."""
    beta2: float = 0.95
    """AdamW beta2, the decay of the second-moment estimate; beta1 is fixed at 0.9."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; a larger gradient is scaled down to it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs linear layers and attention under autocast; patches are embedded in fp32, as parameters are."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda or cuda:N."""
    resident: bool = False
    """Keep the whole store on the device, so that a batch consists of row starts only."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 1000
    """Steps between evaluations of hidden-patch error on held-out subjects; also after the last step."""
    eval_windows: int = 256
    """Held-out windows per evaluation, evenly spaced."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; also after the last step."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that are kept; older ones are removed."""
    tracker: Tracker = "none"
    """Experiment tracker that also gets the lines of metrics.jsonl: none, tensorboard or wandb (extra `trackers`)."""

    def __post_init__(self) -> None:
        check_fields(self, "training", _TRAINING_BOUNDS)
        if self.warmup_steps is not None and not 0 <= self.warmup_steps < self.steps:
            refuse_misfit(f"training.warmup_steps must be below steps = {self.steps}; found {self.warmup_steps}")
        if not 0 <= self.final_lr <= self.lr:
            refuse_misfit(
                f"training.final_lr must be between 0 and lr = {self.lr}; found {self.final_lr}; choose a smaller one "
                "with --training.final-lr, or a larger --training.lr"
            )
        if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device) is None:
            raise ValueError(f"training.device must be auto, cpu, cuda or cuda:N; found {self.device!r}")

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up: `warmup_steps`, or its default."""
        return min(self.steps // 10, 500) if self.warmup_steps is None else self.warmup_steps

    @property
    def windows_per_step(self) -> int:
        """Windows of one optimiser step."""
        return self.batch * self.accumulate


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that decides what a run computes, besides the store."""

    seed: int = 0
    """Seed of the model's initial weights, the order of windows, the jitter and the plans."""
    windows: WindowsConfig = WindowsConfig()
    masking: MaskingConfig = MaskingConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        check_fields(self, "", {"seed": Bounds(least=0, below=2**63)})


def pick_device(name: str) -> torch.device:
    """Choose the device that a config names; each of several processes that train together gets its own GPU.

    Raises:
        ValueError: CUDA is asked for and there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    rank = local_rank()
    if rank is not None and name != "cpu" and (count or name != "auto"):
        return _gpu_of(rank, name, count)
    if name in ("auto", "cpu"):
        return torch.device("cuda" if name == "auto" and count else "cpu")
    device = torch.device(name)
    if not count:
        raise ValueError(f"training.device is {name!r} but torch {torch.__version__} sees no CUDA device; use cpu")
    if (device.index or 0) >= count:
        allowed = ", ".join(["auto", "cpu", "cuda", *(f"cuda:{number}" for number in range(count))])
        raise ValueError(f"training.device is {name!r} but there are {count} CUDA devices. Allowed: {allowed}")
    return device


def _gpu_of(rank: int, name: str, count: int) -> torch.device:
    if ":" in name:
        raise ValueError(
            f"training.device is {name!r}, one GPU for all {group_size()} processes; with auto or cuda each "
            "takes one of its own"
        )
    if rank >= count:
        raise ValueError(
            f"training.device is {name!r}, and process {rank} of this machine has no GPU of its own: torch "
            f"{torch.__version__} sees {count}; start as many processes as there are GPUs"
        )
    return torch.device("cuda", rank)


def check_fit(store: Store, config: PretrainConfig, processes: int = 1) -> None:
    """Refuse a config that cannot train on this store, before anything is written or computed.

    Args:
        store: prepared recordings.
        config: of the run.
        processes: number of processes that train together.

    Raises:
        ValueError: there are too few subjects or windows for a split, no such device or tracker, or nothing that is
            hidden or that it could be reconstructed from; the attention cannot be trained there, a modality cannot be
            normalised, a batch has too many tokens, or the processes cannot share the micro-batches evenly.
    """
    montage, training = store.montage, config.training
    if training.accumulate % processes:
        more = -(-training.accumulate // processes) * processes
        raise ValueError(
            f"training.accumulate = {training.accumulate} micro-batches of a step cannot be shared evenly by "
            f"{processes} processes; choose --training.accumulate {more}, and --training.batch by how many windows a "
            "step is to have"
        )
    _check_attention(config, pick_device(training.device))
    need_tracker(training.tracker)
    for name in config.objective.normalise:
        _check_normalised(name, montage)
    if config.masking.num_visible(montage.tokens) >= montage.tokens:
        raise ValueError(
            f"masking.keep = {config.masking.keep} hides none of a window's {montage.tokens} tokens where no modality "
            "is dropped, as in every evaluation, so nothing is left to predict; choose a smaller share, such as 0.9"
        )
    if training.batch * montage.tokens >= 2**31:
        raise ValueError(
            f"training.batch = {training.batch} windows of {montage.tokens} tokens are 2**31 tokens or more; "
            f"choose at most {(2**31 - 1) // montage.tokens}, and training.accumulate for larger steps"
        )
    cohort = open_cohort(store, config.windows)
    if config.model.decoder_pairs == "cross":
        _check_cross_modal(cohort)


def _check_attention(config: PretrainConfig, device: torch.device) -> None:
    form, precision = config.model.attention, config.training.precision
    if form == "varlen" and not (device.type == "cuda" and precision == "bf16"):
        needs, found = "is FlashAttention, of 16 bits on CUDA", f"training.precision = {precision!r} on {device.type}"
        way = "training.precision = 'bf16' with a CUDA device"
    elif form == "flex" and device.type != "cuda":
        needs, found, way = "has gradients on CUDA only", f"training on {device.type}", "a CUDA device"
    else:
        return
    raise ValueError(
        f"model.attention = {form!r} {needs}; found {found}. Choose {way}, or model.attention = 'packed' or 'sdpa', "
        "which compute the same anywhere"
    )


def _check_cross_modal(cohort: Cohort) -> None:
    if any(len(has) > 1 for has in modalities_by_record(cohort.store, cohort.train)):
        return
    names = ", ".join(modalities_of(cohort.store, cohort.train))
    raise ValueError(
        "model.decoder_pairs = 'cross' rebuilds each modality from the others, but no training record has two (found "
        f"{names}), so the encoder would learn nothing; choose any or intra"
    )


def _check_normalised(name: str, montage: Montage) -> None:
    if name not in montage.modalities:
        raise ValueError(
            f"objective.normalise names {name}, which the store's montage lacks; it has {', '.join(montage.modalities)}"
        )
    length = montage.patch_lengths[montage.modalities.index(name)]
    if length < SHORTEST_NORMALISED:
        raise ValueError(
            f"objective.normalise names {name}, whose patches at {montage.rate_hz[name]:g} Hz have {length} samples; "
            f"it needs at least {SHORTEST_NORMALISED}, so leave {name} out"
        )
