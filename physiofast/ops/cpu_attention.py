"""The CPU form of `modality_attention`: the C++ engine computes one head of one window at a time, within the caches.

Nothing is padded, no matrix of all pairs is stored, and no bit depends on a window's neighbours or on the number of
threads. Sums run in float32; 16-bit tensors are widened first. Where the extension is not built, for float64, and for
more modalities than the kernels have room for, the definition serves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.engine import native
from physiofast.ops import reference
from physiofast.ops.contracts import AttentionSides
from physiofast.ops.cpu_arrays import array, lent
from physiofast.ops.projection import room_for_gradients

if native:
    from physiofast import _native
    from physiofast.ops.cpu_threads import workers

MAX_MODALITIES = 64
"""Modalities that the kernels have room for."""


def modality_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """(out [T_q, H, Dh], log-sum-exp [H, T_q]), as `reference.modality_attention`."""
    sides = AttentionSides(*rest)
    if not _serves(q, sides):
        return reference.modality_attention(q, k, v, *sides)
    end = int(sides.cu_q[-1])
    out, lse = q.new_empty(q.shape, dtype=torch.float32), q.new_empty(q.shape[1::-1], dtype=torch.float32)
    out[end:], lse[:, end:] = 0, -torch.inf
    given = (_rows(q), _rows(k), _rows(v), _sides(sides))
    _native.attend(*given, lent(out), lent(lse), workers())
    return out.to(q.dtype), lse


def modality_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
    may_share: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dpair_bias, dtime_decay), as `reference.modality_attention_backward`.

    The last two cost little beside the others and are computed even where they are not needed.
    """
    *attended, need_shared = rest
    sides = AttentionSides(*attended)
    if not _serves(q, sides):
        return reference.modality_attention_backward(grad, q, k, v, out, lse, *rest, may_share=may_share)
    pair_bias, time_decay = sides.pair_bias, sides.time_decay
    end_q, end_k = int(sides.cu_q[-1]), int(sides.cu_k[-1])
    room = room_for_gradients((q, k, v), may_share)
    dq, dk, dv = (place.to(torch.float32) for place in room)  # no copy of float32
    dq[end_q:], dk[end_k:], dv[end_k:] = 0, 0, 0
    dbias = pair_bias.new_empty(pair_bias.shape, dtype=torch.float32)
    ddecay = dbias.new_empty(q.shape[1])
    given = (_rows(grad), _rows(q), _rows(k), _rows(v), array(lse), _sides(sides))
    written = (lent(dq), lent(dk), lent(dv), lent(dbias), lent(ddecay))
    _native.attend_backward(*given, *written, workers())
    ddecay = ddecay[: len(time_decay)].to(time_decay.dtype)
    if not need_shared:
        dbias, ddecay = dbias.new_empty(0), ddecay.new_empty(0)
    if q.dtype != torch.float32:
        dq, dk, dv = (place.copy_(wide) for place, wide in zip(room, (dq, dk, dv), strict=True))
    return dq, dk, dv, dbias.to(pair_bias.dtype), ddecay


def _serves(q: Tensor, sides: AttentionSides) -> bool:
    windows = len(sides.cu_q) - 1
    fits = q.dtype != torch.float64 and sides.num_modalities <= MAX_MODALITIES
    return native and fits and windows > 0 and q.shape[1] * q.shape[2] > 0


def _rows(x: Tensor) -> np.ndarray[Any, Any]:
    """Return x [T, H, Dh] in float32, without a copy if a token's heads are side by side, as in a fused projection."""
    x = x.detach().to(torch.float32)
    side_by_side = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return lent(x if side_by_side else x.contiguous())


def _sides(sides: AttentionSides) -> _native.AttentionSides:
    """Convert the sides for the C++ engine, which takes each window's length from `cu_q` and `cu_k`."""
    return _native.AttentionSides(
        array(sides.cu_q),
        array(sides.cu_k),
        array(sides.modality_q),
        array(sides.modality_k),
        _floats(sides.time_q),
        _floats(sides.time_k),
        _floats(sides.pair_bias),
        array(sides.allowed).view(np.uint8),
        _floats(sides.time_decay),
        sides.scale,
    )


def _floats(x: Tensor) -> np.ndarray[Any, Any]:
    return array(x.to(torch.float32))
