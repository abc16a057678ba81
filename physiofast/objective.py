"""The loss that pretraining minimises, and the error of reconstructed hidden patches."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from physiofast import ops
from physiofast.attention import needed_autocast
from physiofast.masking import Planner, plan_weight
from physiofast.model import MultimodalMAE, unwrapped
from physiofast.montage import MODALITIES, Montage, nearest
from physiofast.support.bounds import check_fields
from physiofast.windows import WindowIndex, WindowReader, evenly_spaced


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The reconstruction target, and the weights of modalities in the loss."""

    normalise: tuple[str, ...] = ()
    """Modalities whose target patches are scaled to zero mean and unit variance, each patch by itself."""
    balance: bool = True
    """Divide each modality's loss by the variance of its samples, so that modalities count alike."""

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():  # a compiled step may make one; annotations cannot be traced
            check_fields(self, "objective", {})
        for name in self.normalise:
            if name not in MODALITIES:
                raise ValueError(f"objective.normalise: no modality {name!r}{nearest(name, MODALITIES)}")

    def flags(self, montage: Montage) -> list[bool]:
        """Whether targets are normalised, for each modality of the montage."""
        return [name in self.normalise for name in montage.modalities]


_PLAIN = ObjectiveConfig()


def masked_loss(
    model: nn.Module,
    rows: ops.Samples,
    plan: ops.Plan,
    weight: Tensor | None = None,
    config: ObjectiveConfig = _PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the reconstruction loss of one batch.

    Args:
        model: the model, or a `DistributedDataParallel` or `AveragedModel` wrapper around it.
        rows: the batch's samples.
        plan: of the batch.
        weight: [M], weight of a token's error in the loss; by default `plan_weight(plan)`, by which modalities count
            alike in this batch.
        config: which targets are normalised. Its `balance` has no effect, as one batch does not tell how samples vary:
            divide `weight` by the `modality_variance` of the store, as training does.

    Returns:
        (loss, sum [M] of token errors, count [M] of tokens), as `ops.masked_mse` has them.

    Raises:
        TypeError: `model` is no such model, or `plan` no Plan.
    """
    montage = getattr(unwrapped(model), "montage", None)
    if not isinstance(montage, Montage):
        raise TypeError(f"model must be a MultimodalMAE, or a wrapper around one; found a {type(model).__name__}")
    weight = plan_weight(plan) if weight is None else weight
    pred = model(rows, plan)
    return ops.masked_mse(pred, rows, plan.hidden, weight, config.flags(montage), patch_lengths=montage.patch_lengths)


def modality_variance(
    reader: WindowReader, index: WindowIndex, config: ObjectiveConfig, windows: int = 256
) -> np.ndarray:
    """Compute the variance of each modality's valid target samples over evenly spaced windows of an index.

    Returns:
        float64 [M]; 1 for a modality that is normalised or that no window has, and for all without `config.balance`.
    """
    montage = reader.montage
    variance = np.ones(len(montage.modalities))
    if not config.balance:
        return variance
    chosen = evenly_spaced(len(index), windows)
    signals, by_channel = reader.signals(index, chosen), reader.valid(index, chosen)
    for m, flag in enumerate(config.flags(montage)):
        mine = [c for c, of in enumerate(montage.channel_modality) if of == m]
        kept = [signals[c][np.repeat(by_channel[:, c], montage.patch_lengths[m], axis=1)] for c in mine]
        samples = np.concatenate(kept).astype(np.float64)
        if not flag and len(samples) and samples.var() > 0:
            variance[m] = samples.var()
    return variance


@torch.no_grad()
def hidden_errors(
    model: MultimodalMAE,
    reader: WindowReader,
    index: WindowIndex,
    planner: Planner,
    config: ObjectiveConfig,
    *,
    batch_size: int = 32,
) -> dict[str, float]:
    """Compute the squared error of hidden patches over that of predicting the mean, for each modality.

    The mean is each channel's mean over all hidden patches that are evaluated. Below 1 the model reconstructs
    something; at 1 it knows no more than the channel's level. Each window is masked once, with the plan of step 0.
    Modalities whose targets are normalised are compared in the normalised scale, whose mean is 0.

    Args:
        model: the model, or a `DistributedDataParallel` or `AveragedModel` wrapper around it.
        reader: of the index's store.
        index: windows to evaluate.
        planner: draws the masks.
        config: of the training.
        batch_size: windows at a time.

    Returns:
        {modality: ratio}; modalities without hidden tokens are left out.
    """
    model = unwrapped(model)
    montage = model.montage
    channels = len(montage.channels)
    moments = torch.zeros(channels, 4, dtype=torch.float64)  # count, sum, sum of squares, squared error
    flags, lengths = config.flags(montage), montage.patch_lengths
    for windows in index.batches(batch_size):
        part = reader.batch(index, windows)
        plan = planner.draw(part)
        pred = _predict(model, part.rows, plan)
        target = hidden_targets(part.rows, plan, lengths, flags)
        moments += _channel_moments(pred, target, plan, montage).cpu()
    by_channel = np.asarray(montage.channel_modality)
    errors = {}
    for m, name in enumerate(montage.modalities):
        count, total, square, error = moments[torch.from_numpy(by_channel == m)].unbind(1)
        spread = (square - total**2 / count.clamp(min=1)).sum() if not flags[m] else square.sum()
        if spread > 0:
            errors[name] = float(error.sum() / spread)
    return errors


@torch.no_grad()
def rebuild(
    model: MultimodalMAE,
    reader: WindowReader,
    index: WindowIndex,
    windows: np.ndarray,
    planner: Planner,
    config: ObjectiveConfig,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Reconstruct the hidden patches of some windows, with the masks of `hidden_errors`.

    Where targets are normalised, a prediction is given the mean and deviation of the true patch, as is usual.

    Returns:
        (robust z-scores float32 [W, T_c] of each channel, NaN outside hidden patches; bool [W, C, S], which patches
        are hidden).
    """
    montage = model.montage
    part = reader.batch(index, windows)
    plan = planner.draw(part)
    pred = _predict(model, part.rows, plan)
    values = _undo_normalisation(pred, part.rows, plan, montage, config.flags(montage)).cpu().numpy()
    slot = plan.hidden.slot.cpu().numpy().reshape(len(windows), len(montage.channels), -1)
    hidden = slot >= 0
    rebuilt = []
    for c, m in enumerate(montage.channel_modality):
        patches = np.where(hidden[:, c, :, None], values[slot[:, c], : montage.patch_lengths[m]], np.nan)
        rebuilt.append(patches.reshape(len(windows), -1).astype(np.float32))
    return rebuilt, hidden


def _predict(model: MultimodalMAE, rows: ops.Samples, plan: ops.Plan) -> Tensor:
    """Predict hidden patches: float32 [T_hidden, P_max], computed in fp32 unless the attention needs 16 bits."""
    with needed_autocast(model):
        return model(rows, plan).float()


def _undo_normalisation(
    pred: Tensor, rows: ops.Rows, plan: ops.Plan, montage: Montage, normalise: list[bool]
) -> Tensor:
    for m, length in enumerate(montage.patch_lengths):
        if normalise[m]:
            true = ops.take_patches(rows, plan.hidden, patch_lengths=montage.patch_lengths)[:, :length]
            deviation, mean = torch.std_mean(true, 1, correction=0, keepdim=True)
            chosen = (plan.hidden.modality == m)[:, None]
            pred[:, :length] = torch.where(chosen, pred[:, :length] * deviation + mean, pred[:, :length])
    return pred


def hidden_targets(rows: ops.Rows, plan: ops.Plan, patch_lengths: tuple[int, ...], normalise: list[bool]) -> Tensor:
    """The targets that predictions are compared with: [T_hidden, P_max]."""
    patches = ops.take_patches(rows, plan.hidden, patch_lengths=patch_lengths)
    length = ops.reference.patch_length_of_tokens(plan.hidden.modality, patch_lengths)
    return ops.reference.normalise_patches(patches, plan.hidden.modality, length, normalise)


def _channel_moments(pred: Tensor, target: Tensor, plan: ops.Plan, montage: Montage) -> Tensor:
    """Sum up each channel: [C, 4], count, sum and sum of squares of the target's samples, and squared error."""
    hidden = plan.hidden
    length = ops.reference.patch_length_of_tokens(hidden.modality, montage.patch_lengths)
    inside = torch.arange(target.shape[1], device=pred.device) < length[:, None]
    target, error = target.double() * inside, (pred.double() - target) * inside
    columns = torch.stack([length, target.sum(1), target.square().sum(1), error.square().sum(1)], 1)
    # Gathered by slots, and not by `index_add_`, which adds in any order on a GPU.
    of_windows = ops.reference.rows_at(hidden.slot, columns)  # [B, N, 4]
    return of_windows.unflatten(1, (len(montage.channels), -1)).sum((0, 2))
