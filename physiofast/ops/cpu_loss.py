"""`masked_mse` on a CPU: predictions and samples are read once, gradients written once, by the C++ engine.

Sums of a patch run in float32; 16-bit predictions are widened first. Normalised targets, samples of other dtypes than
float32 and int16, and float64 are left to the definition, and everything is where the extension is not built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physiofast.engine import native
from physiofast.ops import reference
from physiofast.ops.reference import one_hot

if native:
    from physiofast import _native
    from physiofast.ops.cpu_threads import workers


def masked_mse(
    pred: Tensor,
    samples: Tensor,
    row_start: Tensor,
    row_scale: Tensor,
    row_shift: Tensor,
    ids: Tensor,
    modality: Tensor,
    slots: Tensor,
    weight: Tensor,
    patch_lengths: Sequence[int],
    normalise: Sequence[int],
    align: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, sum, count, gradient), as `reference.masked_mse`."""
    rows = (row_start, row_scale, row_shift)
    if not _serves(pred, samples) or any(normalise):
        packed = (ids, modality, slots)
        return reference.masked_mse(pred, samples, *rows, *packed, weight, patch_lengths, normalise, align)
    of_modality = torch.tensor([*patch_lengths, 0], dtype=torch.int32)
    length = of_modality.index_select(0, torch.where(ids >= 0, modality, -1) % len(of_modality))
    first, scale, shift = _places(ids, length, slots, *rows)
    member = one_hot(modality, len(patch_lengths), torch.float32)
    factor = 2 * (member @ weight.to(torch.float32)) / length.clamp(min=1)
    wide = pred.detach().to(torch.float32)
    grad, mean = wide.new_empty(wide.shape), wide.new_empty(len(ids))
    _native.squared_errors(
        (wide if wide.stride(1) == 1 else wide.contiguous()).numpy(),
        samples.detach().numpy(),
        first.numpy(),
        length.numpy(),
        scale.numpy(),
        shift.numpy(),
        factor.numpy(),
        grad.numpy(),
        mean.numpy(),
        workers(),
    )
    total, count = mean @ member, member.sum(0)
    return total @ weight.to(torch.float32), total, count, grad.to(pred.dtype)


def _serves(pred: Tensor, samples: Tensor) -> bool:
    known = samples.dtype in (torch.float32, torch.int16) and samples.is_contiguous()
    return native and known and pred.dtype != torch.float64


def _places(
    ids: Tensor, length: Tensor, slots: Tensor, row_start: Tensor, row_scale: Tensor, row_shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(first sample of each token, -1 in the tail; its scale and shift, or none where samples are values)."""
    patches = slots.shape[1] // row_start.shape[1]
    token = ids.clamp(min=0)
    row = token // patches
    first = row_start.reshape(-1).index_select(0, row) + (token % patches) * length
    first = torch.where(ids >= 0, first, -1)
    if bool((row_scale == 1).all()) and not bool(row_shift.any()):
        return first, row_scale.new_empty(0), row_scale.new_empty(0)
    scale, shift = (t.reshape(-1).index_select(0, row).to(torch.float32) for t in (row_scale, row_shift))
    return first, scale, shift
