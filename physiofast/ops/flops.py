"""Operation counts of the ops that multiply matrices, for `torch.utils.flop_counter.FlopCounterMode`.

Products are counted as PyTorch counts its own, 2 * m * n * k each. Only real tokens count, not places in the tail, but
for the linear head of `linear_masked_mse`, which counts as `torch.nn.functional.linear` does that it stands for.
Attention has two products of its windows forward and five backward, as FlashAttention has. Where tensors have no
values, the counts are those of as many tokens, in windows as long, as their sizes have room for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from physiofast.ops.contracts import AttentionSides


def tell_counters() -> None:
    """Register the counts of the ops with PyTorch's counters, both active ones and those made later.

    The module of the counters imports Triton, so it is not imported here: code that counts has imported it.
    """
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    counters = [getattr(mode, "counter", None) for mode in _get_current_dispatch_mode_stack()]
    for known in (counting.flop_registry, *[getattr(counter, "flop_registry", {}) for counter in counters]):
        for op, count in _COUNTS.items():
            known.setdefault(getattr(torch.ops.physiofast, op), count)


def _embed(*args: Any, **result: Any) -> int:
    *_, cu_modality, weight, _, patch_lengths, _, _ = args
    return _products(cu_modality, args[4], weight, patch_lengths)


def _embed_backward(*args: Any, **result: Any) -> int:
    *_, cu_modality, weight, patch_lengths, _, _, need_samples = args
    return (2 if need_samples else 1) * _products(cu_modality, args[5], weight, patch_lengths)


def _products(cu_modality: Tensor, ids: Tensor, weight: Tensor, patch_lengths: Sequence[int]) -> int:
    """Operations of the products of all modalities' patches with their weights."""
    if not _has_values(cu_modality):
        return 2 * ids.shape[0] * max(patch_lengths) * weight.shape[1]
    tokens = cu_modality.diff().tolist()
    return 2 * weight.shape[1] * sum(map(int.__mul__, tokens, patch_lengths))


def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **result: Any) -> int:
    return 2 * _all_pairs(q, AttentionSides(*rest))


def _attention_backward(grad: Tensor, q: Tensor, *rest: Any, **result: Any) -> int:
    *sides, _ = rest[4:]
    return 5 * _all_pairs(q, AttentionSides(*sides))


def _attention_stats(q: Tensor, k: Tensor, *rest: Any, **result: Any) -> int:
    return _all_pairs(q, AttentionSides(*rest[:-1]))


def _all_pairs(q: Tensor, sides: AttentionSides) -> int:
    """Operations of one product of every query with every key of its window."""
    if _has_values(sides.cu_q):
        pairs = int((sides.cu_q.diff().long() * sides.cu_k.diff()).sum())
    else:
        pairs = (sides.cu_q.shape[0] - 1) * sides.max_q * sides.max_k
    return 2 * pairs * q.shape[1] * q.shape[2]


def _linear_loss(x: Tensor, head: Tensor, *rest: Any, **result: Any) -> int:
    """Operations of the linear head, whose backward pass is part of the op where a gradient is needed."""
    return (6 if rest[-1] else 2) * x.shape[0] * head.shape[0] * head.shape[1]


def _has_values(x: Tensor) -> bool:
    return type(x) is Tensor and not x.is_meta


_COUNTS: dict[str, Callable[..., int]] = {
    "embed_patches": _embed,
    "embed_patches_backward": _embed_backward,
    "modality_attention": _attention,
    "modality_attention_backward": _attention_backward,
    "modality_attention_stats": _attention_stats,
    "linear_masked_mse": _linear_loss,
}
"""Op -> function that counts its operations from the arguments of the registered op."""
