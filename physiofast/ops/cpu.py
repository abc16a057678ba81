"""Forms of ops that are faster on a CPU than their twin and tested against it like a kernel.

Attention: windows of equal lengths are stacked, a few at a time so that their tile stays in cache. No tile
holds padding, so nothing is masked but forbidden pairs, and no bit depends on the neighbours of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from physiofast.ops.reference import accumulator, one_hot

_TILE_ELEMENTS = 400_000  # of a [R, H, Lq, Lk] tile; measured on cores with 2 MB of second-level cache
_FORBIDDEN = -1e30  # a logit whose weight is exactly 0, unlike -inf safe to multiply by 0


class _Sides(NamedTuple):
    """The arguments of `physiofast::modality_attention` after q, k, v."""

    cu_q: Tensor
    cu_k: Tensor
    modality_q: Tensor
    modality_k: Tensor
    time_q: Tensor
    time_k: Tensor
    pair_bias: Tensor
    allowed: Tensor
    time_decay: Tensor
    scale: float


class _Tile(NamedTuple):
    """R windows of equal lengths."""

    rows_q: Tensor  # [R, Lq] places in the packing
    rows_k: Tensor  # [R, Lk]
    hot_q: Tensor  # [R, Lq, M]
    hot_k: Tensor  # [R, Lk, M]
    apart: Tensor  # [R, 1, Lq, Lk] seconds
    some: Tensor | None  # bool [R, Lq, 1, 1], queries with an allowed key; None when all have one
    weights: Tensor  # [R, H, Lq, Lk]


def modality_attention(q: Tensor, k: Tensor, v: Tensor, *sides: Any) -> Tensor:
    """[T_q, H, Dh], as `reference.modality_attention`."""
    out = torch.zeros_like(q)
    for tile in _tiles(q, k, _Sides(*sides)):
        value = (tile.weights @ _heads_first(v, tile.rows_k)).transpose(1, 2)
        out[tile.rows_q] = _only(tile.some, value).to(q.dtype)
    return out


def modality_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *sides: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dpair_bias, dtime_decay), as `reference.modality_attention_backward`."""
    known = _Sides(*sides)
    acc = accumulator(q)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dbias = torch.zeros_like(known.pair_bias, dtype=acc)
    ddecay = torch.zeros_like(known.time_decay, dtype=acc)
    for tile in _tiles(q, k, known):
        dout = _only(tile.some, grad[tile.rows_q].to(acc)).transpose(1, 2)
        dlogits = dout @ _heads_first(v, tile.rows_k).mT
        dv[tile.rows_k] = (tile.weights.mT @ dout).transpose(1, 2).to(v.dtype)
        dlogits -= torch.linalg.vecdot(tile.weights, dlogits)[..., None]
        dlogits *= tile.weights
        dq[tile.rows_q] = (dlogits @ _heads_first(k, tile.rows_k) * known.scale).transpose(1, 2).to(q.dtype)
        dk[tile.rows_k] = (dlogits.mT @ _heads_first(q, tile.rows_q) * known.scale).transpose(1, 2).to(k.dtype)
        dbias += (tile.hot_q.mT[:, None] @ (dlogits @ tile.hot_k[:, None])).sum(0)
        ddecay -= torch.linalg.vecdot(dlogits.flatten(2), tile.apart.flatten(2)).sum(0)
    return dq, dk, dv, dbias.to(known.pair_bias.dtype), ddecay.to(known.time_decay.dtype)


def _tiles(q: Tensor, k: Tensor, known: _Sides) -> Iterator[_Tile]:
    """Every window once, in groups of equal lengths; windows without queries or without keys are left out."""
    acc, kinds = accumulator(q), known.pair_bias.shape[1]
    bias = torch.where(known.allowed, known.pair_bias.to(acc), _FORBIDDEN)
    free = bool(known.allowed.all())
    for windows, length_q, length_k in _groups(known.cu_q, known.cu_k, q.shape[1]):
        rows_q = known.cu_q[windows, None].long() + torch.arange(length_q)
        rows_k = known.cu_k[windows, None].long() + torch.arange(length_k)
        hot_q, hot_k = one_hot(known.modality_q[rows_q], kinds, acc), one_hot(known.modality_k[rows_k], kinds, acc)
        apart = (known.time_q[rows_q][:, :, None] - known.time_k[rows_k][:, None, :]).abs().to(acc)[:, None]
        # The pair's bias is a product of one-hot vectors: M further features of q and k carry it.
        wide_q = torch.cat([_heads_first(q, rows_q) * known.scale, hot_q[:, None] @ bias], -1)
        wide_k = torch.cat([_heads_first(k, rows_k), hot_k[:, None].expand(-1, q.shape[1], -1, -1)], -1)
        logits = wide_q @ wide_k.mT
        logits.addcmul_(apart, known.time_decay.to(acc)[:, None, None], value=-1)
        some = None
        if not free:
            some = (hot_q @ known.allowed.to(acc) @ hot_k.mT).amax(-1)[..., None, None] > 0
        yield _Tile(rows_q, rows_k, hot_q, hot_k, apart, some, torch.softmax(logits, -1))


def _groups(cu_q: Tensor, cu_k: Tensor, heads: int) -> Iterator[tuple[Tensor, int, int]]:
    """(windows, Lq, Lk) for windows whose lengths agree, few enough that a tile stays in cache."""
    lengths = torch.stack([cu_q.diff(), cu_k.diff()], 1).long()
    for length_q, length_k in torch.unique(lengths, dim=0).tolist():
        if length_q and length_k:
            windows = ((lengths[:, 0] == length_q) & (lengths[:, 1] == length_k)).nonzero()[:, 0]
            for part in windows.split(max(1, _TILE_ELEMENTS // (heads * length_q * length_k))):
                yield part, length_q, length_k


def _heads_first(packed: Tensor, rows: Tensor) -> Tensor:
    """[R, H, L, Dh] in the accumulator's dtype."""
    return packed[rows].to(accumulator(packed)).transpose(1, 2)


def _only(some: Tensor | None, values: Tensor) -> Tensor:
    """[R, Lq, H, Dh] with zeros for the queries that have no allowed key."""
    return values if some is None else values.masked_fill(~some, 0)
