"""Rows of features on a CPU: picked, added in pairs and summed, each read and written once.

By the C++ engine in float32; by PyTorch where the extension is not built, and in other dtypes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.engine import native

if native:
    from physiofast import _native
    from physiofast.ops.cpu_threads import workers


def pick(base: Tensor, index: Tensor, more: Tensor | None = None, index_more: Tensor | None = None) -> Tensor:
    """[n, D], rows of `base` [k, D] plus rows of `more` [l, D]: int32 indices [n], -1 for a row of zeros.

    Where the index of `base` is -1, nothing of `more` is added.
    """
    if more is None or index_more is None:
        more, index_more = base[:0], index.new_full((1,), -1).expand_as(index)
    if _serves(base, index) and more.dtype == torch.float32:
        out = base.new_empty(len(index), base.shape[1])
        numbers = (index.numpy(), index_more.numpy())
        _native.pick_rows(_dense(base), numbers[0], _dense(more), numbers[1], out.numpy(), workers())
        return out
    out = _or_zeros(base, index)
    return out if not len(more) else out + _or_zeros(more.to(base.dtype), torch.where(index >= 0, index_more, -1))


def sums(values: Tensor, index: Tensor) -> Tensor:
    """[n, D] sums, in order, of the rows of values [T, D] that each row of an int32 index [n, k] names; -1 for none."""
    if _serves(values, index):
        out = values.new_empty(len(index), values.shape[1])
        _native.sum_rows(_dense(values), index.numpy(), out.numpy(), workers())
        return out
    return torch.cat([values, values.new_zeros(1, values.shape[1])])[index.long()].sum(1)


def _serves(rows: Tensor, index: Tensor) -> bool:
    return native and rows.dtype == torch.float32 and index.dtype == torch.int32


def _dense(x: Tensor) -> np.ndarray[Any, Any]:
    """x [n, D], where it lies if a row's features are side by side."""
    x = x.detach()
    return (x if x.stride(1) == 1 else x.contiguous()).numpy()


def _or_zeros(rows: Tensor, index: Tensor) -> Tensor:
    if not len(rows):
        return rows.new_zeros(len(index), rows.shape[1])
    out = rows.index_select(0, index.clamp(min=0))
    return out.masked_fill_((index < 0)[:, None], 0)
