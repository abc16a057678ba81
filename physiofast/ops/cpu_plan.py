"""The CPU form of `sample_plan`: the C++ engine computes `reference.sample_plan` bit for bit.

The definition serves dtypes that `ops.sample_plan` does not document, and everything where the extension is not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.engine import native
from physiofast.ops import reference
from physiofast.ops.cpu_arrays import array

if native:
    from physiofast import _native
    from physiofast.ops.cpu_threads import workers

Array = np.ndarray[Any, Any]


_DTYPES = (torch.bool, torch.int64, torch.int64, torch.int32, torch.float32)
"""Dtypes of the arguments after the quotas."""


def sample_plan(
    quotas: Tensor,
    valid: Tensor,
    window_id: Tensor,
    seed_step: Tensor,
    token_modality: Tensor,
    token_time_s: Tensor,
    totals: Sequence[int],
    may_share: bool = False,
) -> list[Tensor]:
    """Draw a plan as `reference.sample_plan` does; no two of the tensors share memory.

    Raises:
        ValueError: modalities do not ascend within [0, M), or a packing has fewer places than tokens.
    """
    tensors = (quotas, valid, window_id, seed_step, token_modality, token_time_s)
    if not native or tuple(tensor.dtype for tensor in tensors[1:]) != _DTYPES:
        return reference.sample_plan(*tensors, totals)
    packings = [_packing(valid.shape, quotas.shape[1], total) for total in totals]
    visible, hidden, present = (_native.PackingArrays(*packing) for packing in packings)
    seed, step = seed_step.tolist()
    _native.sample_plan(
        array(quotas.to(torch.int64)),
        array(valid),
        array(window_id),
        seed,
        step,
        array(token_modality),
        array(token_time_s),
        visible,
        hidden,
        present,
        workers(),
    )
    return [torch.from_numpy(part) for packing in packings for part in packing]


def _packing(grid: tuple[int, ...], num_modalities: int, total: int) -> tuple[Array, ...]:
    """Allocate the seven arrays of a `Packing`, uninitialised, which NumPy does in half of PyTorch's time."""
    ids, modality, by_modality = (np.empty(total, np.int32) for _ in range(3))
    cu_seqlens, cu_modality = np.empty(grid[0] + 1, np.int32), np.empty(num_modalities + 1, np.int32)
    return ids, cu_seqlens, modality, np.empty(total, np.float32), np.empty(grid, np.int32), by_modality, cu_modality
