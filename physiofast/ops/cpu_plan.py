"""Plans on a CPU: `reference.sample_plan` bit for bit, by the C++ engine.

Dtypes that it does not document are left to the definition, and everything is where the extension is not built.
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

_LOW32, _HALF, _DOMAIN = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(1 << 24)
Array = np.ndarray[Any, Any]


def random_words(seed: int, step: int, window_id: Array, count: int, domains: Sequence[int]) -> Array:
    """uint64 [domains, B, count] of 32-bit words, each domain's as `reference.random_words`, by NumPy."""
    block = np.arange((count + 3) // 4, dtype=np.uint64) + np.array(domains, np.uint64)[:, None, None] * _DOMAIN
    window = window_id.astype(np.uint64)[:, None]  # of a negative number the same bits
    counter = (block, np.uint64(step & 0xFFFFFFFF), window & _LOW32, window >> _HALF)
    words = np.empty((len(domains), len(window), block.shape[-1], 4), np.uint64)
    for i, word in enumerate(_philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))):
        words[..., i] = word
    return words.reshape(len(domains), len(window), 4 * block.shape[-1])[..., :count]


def _philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """As `reference.philox`; counters broadcast, so the first rounds work on few numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (b >> _HALF) ^ (c1 ^ np.uint64(k0)),
            b & _LOW32,
            (a >> _HALF) ^ (c3 ^ np.uint64(k1)),
            a & _LOW32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def sample_plan(
    quotas: Tensor,
    valid: Tensor,
    window_id: Tensor,
    stream: Tensor,
    token_modality: Tensor,
    token_time_s: Tensor,
    totals: Sequence[int],
    may_share: bool = False,
) -> list[Tensor]:
    """As `reference.sample_plan`; no two share memory.

    Raises:
        ValueError: modalities do not ascend within [0, M), or a packing has fewer places than tokens.
    """
    tensors = (quotas, valid, window_id, stream, token_modality, token_time_s)
    if not native or tuple(tensor.dtype for tensor in tensors[1:]) != _DTYPES:
        return reference.sample_plan(*tensors, totals)
    packings = [_packing(valid.shape, quotas.shape[1], total) for total in totals]
    visible, hidden, present = (_native.PackingArrays(*packing) for packing in packings)
    seed, step = stream.tolist()
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


_DTYPES = (torch.bool, torch.int64, torch.int64, torch.int32, torch.float32)


def _packing(grid: tuple[int, ...], kinds: int, total: int) -> tuple[Array, ...]:
    """The seven arrays of a `Packing`, not yet written: NumPy makes them in half of PyTorch's time."""
    ids, modality, by_modality = (np.empty(total, np.int32) for _ in range(3))
    cu_seqlens, cu_modality = np.empty(grid[0] + 1, np.int32), np.empty(kinds + 1, np.int32)
    return ids, cu_seqlens, modality, np.empty(total, np.float32), np.empty(grid, np.int32), by_modality, cu_modality
