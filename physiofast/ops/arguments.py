"""Arguments of the registered ops, from those of the public functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from physiofast.ops import checks
from physiofast.ops.absent import filled
from physiofast.ops.contracts import Packing, Plan, Rows


def as_rows(rows: Rows | Tensor, packing: Packing, patch_lengths: Sequence[int]) -> Rows:
    """Rows, or those of dense samples."""
    return rows if isinstance(rows, Rows) else Rows.from_dense(rows, checks.dense(rows, packing, patch_lengths))


def of_rows(rows: Rows) -> tuple[Tensor, ...]:
    """Where samples lie and what they mean."""
    return rows.samples, rows.row_start, rows.row_scale, rows.row_shift


def of_packing(packing: Packing) -> tuple[Tensor, ...]:
    """A packing's tokens and where they stand."""
    return packing.ids, packing.modality, packing.slot


def sides(
    q: Tensor,
    packing_q: Packing,
    packing_k: Packing,
    kinds: int,
    pair_bias: Tensor | None,
    allowed: Tensor | None,
    time_decay: Tensor | None,
    scale: float | None,
) -> tuple[tuple[Tensor, ...], tuple[float, int, int]]:
    """The arguments of the registered ops after q, k and v; `kinds` modalities where no argument says how many."""
    if q.ndim != 3 or not q.shape[1] * q.shape[2]:
        raise ValueError(f"q must have shape [{packing_q.modality.shape[0]}, heads, features]; found {list(q.shape)}")
    _, heads, width = q.shape
    for name, given, axes in (("pair_bias", pair_bias, 3), ("allowed", allowed, 2)):
        if given is not None and given.ndim != axes:
            raise ValueError(f"{name} must have {axes} axes, modalities the last two; found shape {list(given.shape)}")
    if pair_bias is not None:
        kinds = pair_bias.shape[-1]
    elif allowed is not None:
        kinds = allowed.shape[-1]
    if pair_bias is None:
        pair_bias = filled(0.0, (heads, kinds, kinds), torch.float32, q.device)
    if allowed is None:
        allowed = filled(True, (kinds, kinds), torch.bool, q.device)
    if time_decay is None:
        time_decay = filled(0.0, (0,), torch.float32, q.device)
    elif time_decay.numel() == 0:  # which stands for none
        checks.shape("time_decay", time_decay, (heads,))
    edges = (packing_q.cu_seqlens, packing_k.cu_seqlens)
    packed = (packing_q.modality, packing_k.modality, packing_q.time_s, packing_k.time_s)
    scale = width**-0.5 if scale is None else float(scale)
    return (*edges, *packed, pair_bias, allowed, time_decay), (scale, packing_q.max_len, packing_k.max_len)


def told_by(sides: tuple[Tensor, ...], packing_q: Packing, packing_k: Packing) -> tuple[Tensor, ...]:
    """All that attention and its checks look at besides queries, keys and values, each once."""
    if packing_q is packing_k:
        return (*sides[:6:2], *sides[6:], packing_q.cu_modality)
    return (*sides, packing_q.cu_modality, packing_k.cu_modality)


def of_hidden(plan: Plan) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What `take_hidden` is given besides features, and what its checks look at."""
    hidden, present = plan.hidden, plan.present
    return (hidden.ids, present.ids, hidden.slot, present.slot), (*of_packing(hidden), *of_packing(present))
