"""The forms of attention between which `ModalityAttention` chooses: the package's op, and PyTorch's for comparison.

All compute `ops.modality_attention` of the same packed tokens. `packed` is that op. The others are what PyTorch
itself offers: `sdpa` pads every window and gives scaled-dot-product attention a dense mask of biases; `varlen` is
FlashAttention over packed tokens, where M more features of every head carry the biases; `flex` is FlexAttention with a
document mask. Their gradients of the biases are not reproducible everywhere, and `sdpa` stores all pairs.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from physiofast import ops
from physiofast.ops import Packing, arguments, checks
from physiofast.ops.reference import one_hot, padded_index, take_padded

AttentionForm = Literal["packed", "sdpa", "varlen", "flex"]
_FORBIDDEN = -3e4
"""Replaces -inf where float16 has to hold it; beside an allowed key its weight is 0."""


class Options(NamedTuple):
    """The arguments of attention besides queries, keys, values and their packings."""

    pair_bias: Tensor
    """[H, M, M], query modality by key modality."""
    allowed: Tensor
    """bool [M, M], which query modality may attend to which key modality."""
    time_decay: Tensor | None = None
    """[H] per second; None for no decay."""


def packed(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
    """Compute attention by `ops.modality_attention`: [T_q, H, Dh]."""
    return ops.modality_attention(q, k, v, packing_q, packing_k, **options._asdict())


# ---- padded windows ----------------------------------------------------------------------------------------------


def padded_sdpa(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
    """Compute attention by scaled-dot-product attention of padded windows with a dense mask of biases: [T_q, H, Dh]."""
    (iq, real_q), (ik, real_k) = _padded(packing_q), _padded(packing_k)
    mask, some = pair_biases(packing_q, packing_k, options, q.dtype)
    query, key, value = (
        take_padded(t, i, real).transpose(1, 2) for t, i, real in ((q, iq, real_q), (k, ik, real_k), (v, ik, real_k))
    )
    tile = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    return unpadded(torch.where(some, tile, 0), packing_q)


def _padded(packing: Packing) -> tuple[Tensor, Tensor]:
    return padded_index(packing.cu_seqlens, packing.max_len)


def unpadded(tile: Tensor, packing: Packing) -> Tensor:
    """Pack padded windows [B, L, H, Dh] into [T, H, Dh]; the tail is zero."""
    window, place = windows_of(packing)
    flat = tile.flatten(0, 1)
    row = (window * tile.shape[1] + place).clamp(max=max(len(flat) - 1, 0))
    return torch.where((window < len(tile))[:, None, None], flat[row], 0)


def windows_of(packing: Packing) -> tuple[Tensor, Tensor]:
    """(window [T] of each place of a packing, B in the tail; index of the place within its window)."""
    places = torch.arange(len(packing.ids), device=packing.ids.device)
    window = torch.searchsorted(packing.cu_seqlens[1:].contiguous(), places, right=True)
    return window, places - packing.cu_seqlens[window.clamp(max=len(packing.cu_seqlens) - 1)]


def pair_biases(packing_q: Packing, packing_k: Packing, options: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(biases of all pairs [B, H, Lq, Lk], -inf where a weight is 0; bool [B, Lq, 1, 1], whether a query has a key).

    The whole row of a query without a key is 0, so that nothing becomes NaN.
    """
    (iq, real_q), (ik, real_k) = _padded(packing_q), _padded(packing_k)
    acc, count = _wide(dtype), len(options.allowed)
    hot_q, hot_k = (one_hot(p.modality[i], count, acc) for p, i in ((packing_q, iq), (packing_k, ik)))
    biases = torch.einsum("bqm,hmn,bkn->bhqk", hot_q, options.pair_bias.to(acc), hot_k)
    if options.time_decay is not None:
        time_q, time_k = packing_q.time_s.to(acc)[iq], packing_k.time_s.to(acc)[ik]
        apart = (time_q[:, :, None] - time_k[:, None, :]).abs()
        biases = biases - options.time_decay.to(acc)[:, None, None] * apart[:, None]
    may = (hot_q @ options.allowed.to(acc) @ hot_k.mT > 0) & real_q[:, :, None] & real_k[:, None, :]
    some = may.any(-1)
    biases = biases.masked_fill(~may[:, None] & some[:, None, :, None], -torch.inf)
    return biases.masked_fill(~some[:, None, :, None], 0).to(dtype), some[:, :, None, None]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which biases are computed for queries of a dtype."""
    return torch.promote_types(dtype, torch.float32)


# ---- FlashAttention over packed tokens ---------------------------------------------------------------------------


def varlen(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
    """Compute attention by `torch.nn.attention.varlen.varlen_attn`: [T_q, H, Dh].

    M more features of each head carry the biases.

    Raises:
        RuntimeError: the tensors are not CUDA tensors of 16 bits, or this PyTorch has no such function.
        ValueError: there is a decay.
    """
    refused = varlen_refusal(q)
    if refused:
        raise RuntimeError(f"attention = 'varlen': {refused}; use 'packed' or 'sdpa'")
    if options.time_decay is not None:
        raise ValueError("attention = 'varlen' has no room for a decay with distance in time; leave time_decay out")
    from torch.nn.attention.varlen import varlen_attn

    wide = widened(q, k, v, packing_q, packing_k, options)
    # FlashAttention writes nothing in the tail, of results or gradients: what is there must reach nothing.
    is_query, is_key = ((packing.ids >= 0)[:, None, None] for packing in (packing_q, packing_k))
    wide = torch.where(is_query, wide[0], 0), torch.where(is_key, wide[1], 0), torch.where(is_key, wide[2], 0)
    ends, longest = (packing_q.cu_seqlens, packing_k.cu_seqlens), (packing_q.max_len, packing_k.max_len)
    out = varlen_attn(*wide, *ends, *longest, scale=1.0)
    assert isinstance(out, Tensor)
    return torch.where(with_allowed_key(packing_q, packing_k, options.allowed), out[..., : v.shape[-1]], 0)


def varlen_refusal(q: Tensor) -> str | None:
    """Why `varlen_attn` cannot take tensors such as q, as a sentence; None when it can."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention takes CUDA tensors of float16 or bfloat16; found {q.device.type} and {q.dtype}"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"PyTorch {torch.__version__} has no torch.nn.attention.varlen"
    return None


def widened(
    q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Widen q, k and v to Dh + M features, rounded up to a multiple of 8.

    The product of the widened q and k is `scale * q . k` plus the bias of the pair.
    """
    (heads, width), count = q.shape[1:], len(options.allowed)
    acc = _wide(q.dtype)
    hot_q, hot_k = (one_hot(p.modality, count, acc) for p in (packing_q, packing_k))
    bias = torch.where(options.allowed, options.pair_bias.to(acc), _FORBIDDEN)
    of_query = torch.einsum("tm,hmn->thn", hot_q, bias).to(q.dtype)
    of_key = hot_k[:, None].expand(-1, heads, -1).to(k.dtype)
    room = -(width + count) % 8
    pad = functools.partial(nn.functional.pad, pad=(0, room))
    wide_v = nn.functional.pad(v, (0, count + room))
    return pad(torch.cat([q * width**-0.5, of_query], -1)), pad(torch.cat([k, of_key], -1)), wide_v


def with_allowed_key(packing_q: Packing, packing_k: Packing, allowed: Tensor) -> Tensor:
    """Find the queries that are tokens and have an allowed key in their window: bool [T_q, 1, 1]."""
    window_q, _ = windows_of(packing_q)
    window_k, _ = windows_of(packing_k)
    windows, count = len(packing_q.cu_seqlens), len(allowed)
    hot_q, hot_k = (one_hot(p.modality, count, torch.float32) for p in (packing_q, packing_k))
    there = hot_k.new_zeros(windows, count).index_add(0, window_k, hot_k)
    may = there[window_q] @ allowed.float().mT > 0  # [T_q, M], whether a query of that modality had one
    mine = (may & (hot_q > 0)).any(-1)
    return (mine & (window_q < windows - 1))[:, None, None]


# ---- FlexAttention -----------------------------------------------------------------------------------------------


def flex(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
    """Compute attention by FlexAttention with a document mask: [T_q, H, Dh].

    Raises:
        RuntimeError: a gradient is asked for on a CPU, where FlexAttention has none.
    """
    leaves = (q, k, v, options.pair_bias, options.time_decay)
    has_gradient = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    if q.device.type == "cpu" and has_gradient:
        raise RuntimeError(
            "attention = 'flex': FlexAttention has no gradients on a CPU; use 'packed' or 'sdpa', or torch.no_grad"
        )
    return flex_with(flex_block_mask(packing_q, packing_k, options.allowed), q, k, v, packing_q, packing_k, options)


def flex_block_mask(packing_q: Packing, packing_k: Packing, allowed: Tensor) -> Any:
    """Make FlexAttention's mask of the pairs in one window whose modalities may attend; all layers can share it."""
    from torch.nn.attention.flex_attention import create_block_mask

    (window_q, _), (window_k, _) = windows_of(packing_q), windows_of(packing_k)
    kind_q, kind_k = packing_q.modality.clamp(min=0), packing_k.modality.clamp(min=0)
    windows = len(packing_q.cu_seqlens) - 1

    def may(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (window_q[i] == window_k[j]) & (window_q[i] < windows) & allowed[kind_q[i], kind_k[j]]

    return create_block_mask(may, None, None, len(window_q), len(window_k), device=window_q.device)


def flex_with(
    mask: Any, q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options
) -> Tensor:
    """Compute attention as `flex` does, with a mask that `flex_block_mask` has made before."""
    kind_q, kind_k = packing_q.modality.clamp(min=0), packing_k.modality.clamp(min=0)
    acc = _wide(q.dtype)
    time_q, time_k = packing_q.time_s.to(acc), packing_k.time_s.to(acc)
    pair_bias, time_decay = options.pair_bias.to(acc), options.time_decay

    def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        logit = logit + pair_bias[h, kind_q[i], kind_k[j]]
        if time_decay is not None:
            logit = logit - time_decay[h] * (time_q[i] - time_k[j]).abs()
        return logit

    attend = _flex_attention(q.device.type)
    out = attend(*(t.transpose(0, 1)[None] for t in (q, k, v)), score_mod=score, block_mask=mask)
    return out[0].transpose(0, 1)


@functools.cache
def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


def _checked(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Add the op's own checks of arguments to a form."""

    @functools.wraps(form)
    def run(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
        arguments.require_packing(packing_q, packing_k)
        sides = arguments.sides(q, packing_q, packing_k, 1, *options, None)
        checks.check_values(("q", "k", "v", *sides._fields[:9]), (q, k, v, *sides.tensors))
        checks.check_attention(q, (("k", k), ("v", v)), sides)
        checks.check_pairs(len(options.allowed), packing_q, packing_k)
        return form(q, k, v, packing_q, packing_k, options)

    return run


FORMS: dict[str, Callable[..., Tensor]] = {
    "packed": packed,
    "sdpa": _checked(padded_sdpa),
    "varlen": _checked(varlen),
    "flex": _checked(flex),
}
"""Name of a form -> its function, which takes q, k, v, both packings and `Options`."""
