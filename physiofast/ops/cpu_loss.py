"""The CPU forms of `masked_mse` and `linear_masked_mse`: the C++ engine reads samples once and writes gradients once.

Sums over a patch run in float32; sums over a modality, and mean and variance of normalised targets, in float64; 16-bit
predictions and samples are widened first. The definition serves anything in float64, and everything where the extension
is not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.engine import native
from physiofast.ops import reference
from physiofast.ops.cpu_arrays import array, features, lent
from physiofast.ops.cpu_tokens import patches_of, serves, serves_rows, widened

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
    samples = widened(samples, ids, patch_lengths)
    rows, packed = (samples, row_start, row_scale, row_shift), (ids, modality, slots)
    if pred.dtype == torch.float64 or not (serves_rows(rows) and serves((), packed)):
        return reference.masked_mse(pred, *rows, *packed, weight, patch_lengths, normalise, align)
    wide, weight = pred.detach().to(torch.float32), weight.detach().to(torch.float32)
    grad = wide.new_empty(wide.shape)
    targets, sums = _targets(rows, packed, weight, patch_lengths, normalise)
    _native.squared_errors(features(wide), *targets, lent(grad), lent(sums[0]), lent(sums[1]), workers())
    return *_loss(sums, weight), grad.to(pred.dtype)


def linear_masked_mse(
    x: Tensor,
    head: Tensor,
    bias: Tensor,
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
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, sum, count, gradients of x, head and bias), as `reference.linear_masked_mse`."""
    samples = widened(samples, ids, patch_lengths)
    rows, packed, leaves = (samples, row_start, row_scale, row_shift), (ids, modality, slots), (x, head, bias)
    if not (serves_rows(rows) and serves(leaves, packed) and head.numel()):
        given = (*leaves, *rows, *packed, weight)
        return reference.linear_masked_mse(*given, patch_lengths, normalise, align, need_gradient)
    weight = weight.detach().to(torch.float32)
    dx, dhead, dbias = (leaf.new_empty(leaf.shape if need_gradient else 0) for leaf in leaves)
    targets, sums = _targets(rows, packed, weight, patch_lengths, normalise)
    written = [lent(dx), lent(dhead), lent(dbias)] if need_gradient else None
    total, count = lent(sums[0]), lent(sums[1])
    _native.linear_errors(features(x), array(head), array(bias), *targets, written, total, count, workers())
    return *_loss(sums, weight), dx, dhead, dbias


def _targets(
    rows: Sequence[Tensor],
    packed: Sequence[Tensor],
    weight: Tensor,
    patch_lengths: Sequence[int],
    normalise: Sequence[int],
) -> tuple[tuple[Any, Any, Any], Tensor]:
    """(the targets as the engine takes them, an uninitialised tensor [2, M] for sums of errors and counts)."""
    targets = (patches_of(rows, packed, patch_lengths), array(weight), np.array(normalise, np.int64))
    return targets, torch.empty(2, len(patch_lengths), dtype=torch.float64, device="cpu")


def _loss(sums: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, sum, count) from sums of errors and counts [2, M]."""
    error, tokens = sums.to(torch.float32).unbind()
    return error @ weight, error, tokens.clone()
