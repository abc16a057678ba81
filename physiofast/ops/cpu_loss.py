"""`masked_mse` on a CPU: predictions and samples are read once, gradients written once, by the C++ engine.

Sums of a patch run in float32, those of a modality, and mean and variance of targets that are normalised, in float64;
16-bit predictions are widened first. Samples of other dtypes than float32 and int16, and float64 are left to the
definition, and everything is where the extension is not built.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from physiofast.engine import native
from physiofast.ops import reference
from physiofast.ops.cpu_arrays import array, features, lent
from physiofast.ops.cpu_tokens import patches_of, serves, serves_rows

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
    rows, packed = (samples, row_start, row_scale, row_shift), (ids, modality, slots)
    if pred.dtype == torch.float64 or not (serves_rows(rows) and serves((), packed)):
        return reference.masked_mse(pred, *rows, *packed, weight, patch_lengths, normalise, align)
    wide, weight = pred.detach().to(torch.float32), weight.detach().to(torch.float32)
    grad = wide.new_empty(wide.shape)
    sums = torch.empty(2, len(patch_lengths), dtype=torch.float64)
    patches = patches_of(rows, packed, patch_lengths)
    total, count = lent(sums)
    flags = np.array(normalise, np.int64)
    _native.squared_errors(features(wide), patches, array(weight), flags, lent(grad), total, count, workers())
    error, tokens = sums.to(torch.float32).unbind()
    return error @ weight, error, tokens.clone(), grad.to(pred.dtype)
