"""What pretraining minimises, and how well hidden patches are rebuilt."""

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
    """The reconstruction target."""

    normalise: tuple[str, ...] = ()
    """Modalities whose target patches are scaled to zero mean and unit variance, each patch by itself."""
    balance: bool = True
    """Divide each modality's loss by the variance of its samples, so that all count alike however heavy their tails."""

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():  # a compiled step may make one; annotations cannot be traced
            check_fields(self, "objective", {})
        for name in self.normalise:
            if name not in MODALITIES:
                raise ValueError(f"objective.normalise: no modality {name!r}{nearest(name, MODALITIES)}")

    def flags(self, montage: Montage) -> list[bool]:
        """One flag per modality of the montage."""
        return [name in self.normalise for name in montage.modalities]


_PLAIN = ObjectiveConfig()


def masked_loss(
    model: nn.Module,
    rows: ops.Samples,
    plan: ops.Plan,
    weight: Tensor | None = None,
    config: ObjectiveConfig = _PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, sum [M], count [M]) of the hidden patches of one batch; see `ops.masked_mse`.

    Args:
        model: predicts them; one that wraps it in its `module` (`DistributedDataParallel`, `AveragedModel`) does, too.
        rows: the batch's samples.
        plan: of the batch.
        weight: [M], what a token's error counts in the loss; left out it is `plan_weight(plan)`, by which modalities
            count alike in this batch.
        config: which targets are normalised. Its `balance` is left to `weight`, for a batch does not tell how samples
            vary: training divides its weights by the `modality_variance` of the store.
    """
    montage = unwrapped(model).montage
    weight = plan_weight(plan) if weight is None else weight
    pred = model(rows, plan)
    return ops.masked_mse(pred, rows, plan.hidden, weight, config.flags(montage), patch_lengths=montage.patch_lengths)


def modality_variance(
    reader: WindowReader, index: WindowIndex, config: ObjectiveConfig, windows: int = 256
) -> np.ndarray:
    """float64 [M], variance of each modality's valid target samples over evenly spaced windows of an index.

    1 without `config.balance`, for normalised modalities, and for one that no window has.
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
    batch: int = 32,
) -> dict[str, float]:
    """Squared error of hidden patches over that of predicting the mean, per modality.

    The mean is each channel's mean over all hidden patches that are evaluated: below 1 the model rebuilds
    something, at 1 it knows no more than the channel's level. Each window is masked once, with step 0's plan.
    Modalities whose targets are normalised are compared in the normalised scale, whose mean is 0.

    Args:
        model: in evaluation the whole of `index` is seen once; it may be wrapped as that of `masked_loss`.
        reader: of the index's store.
        index: windows to evaluate.
        planner: draws the masks.
        config: of the training.
        batch: windows at a time.

    Returns:
        {modality: ratio}; modalities without hidden tokens are left out.
    """
    model = unwrapped(model)
    montage = model.montage
    channels = len(montage.channels)
    moments = torch.zeros(channels, 4, dtype=torch.float64)  # count, sum, sum of squares, squared error
    flags, lengths = config.flags(montage), montage.patch_lengths
    for windows in index.batches(batch):
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
    """The model's version of some windows' hidden patches, with the masks of `hidden_errors`.

    Where targets are normalised, the true patch gives the prediction its mean and deviation, as is usual.

    Returns:
        Per channel float32 [W, T_c] robust z-scores, NaN outside hidden patches; and hidden bool [W, C, S].
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
    """float32 [T_hidden, P_max], the model's prediction, computed in fp32 unless its attention takes 16 bits alone."""
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
    """[T_hidden, P_max], what the predictions are compared with."""
    patches = ops.take_patches(rows, plan.hidden, patch_lengths=patch_lengths)
    length = ops.reference.patch_length_of_tokens(plan.hidden.modality, patch_lengths)
    return ops.reference.normalise_patches(patches, plan.hidden.modality, length, normalise)


def _channel_moments(pred: Tensor, target: Tensor, plan: ops.Plan, montage: Montage) -> Tensor:
    """[C, 4]: per channel the count, sum and sum of squares of the target's samples, and the squared error."""
    hidden = plan.hidden
    length = ops.reference.patch_length_of_tokens(hidden.modality, montage.patch_lengths)
    inside = torch.arange(target.shape[1], device=pred.device) < length[:, None]
    target, error = target.double() * inside, (pred.double() - target) * inside
    columns = torch.stack([length, target.sum(1), target.square().sum(1), error.square().sum(1)], 1)
    # By where tokens are, and not `index_add_`, which adds in any order on a GPU.
    of_windows = ops.reference.rows_at(hidden.slot, columns)  # [B, N, 4]
    return of_windows.unflatten(1, (len(montage.channels), -1)).sum((0, 2))
