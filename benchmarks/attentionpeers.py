"""What PyTorch offers on a GPU for attention with biases, each as somebody would write it for speed.

What stays the same for all layers of a model is made once and is no part of a call: FlexAttention's block mask, the
places of padding, one-hot modalities. What a learned bias changes in each step is part of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention import Form, Inputs

UNBIASED, VARLEN = "varlen_attn without biases", "varlen_attn, biases as features"
FLEX, DENSE = "flex_attention, mask kept", "eager dense, compiled"
FLEX_FEATURED = "flex_attention, biases as features"
COMPILED = (DENSE, FLEX, FLEX_FEATURED)
"""These take seconds to compile, for each length anew."""
_BLOCK = 128


# ---- FlashAttention over packed tokens ---------------------------------------------------------------------------


def unbiased(given: Inputs) -> tuple[Tensor, bool, bool]:
    """Another function, without what there is no room for: the floor of what FlashAttention takes."""
    return _packed(given, given.q, given.k, given.v), False, False


def varlen(given: Inputs) -> tuple[Tensor, bool, bool]:
    """Biases as features of every head, which the values get as well, as zeros."""
    width = given.q.shape[2]
    wide_q, wide_k = _featured(given)
    wide_v = torch.nn.functional.pad(given.v, (0, wide_q.shape[2] - width))
    return _packed(given, wide_q, wide_k, wide_v)[..., :width], False, True


def _featured(given: Inputs) -> tuple[Tensor, Tensor]:
    """Queries and keys with M more features of every head, and zeros up to a multiple of 8: one copy of each.

    Their products are the biases over the scale of logits; for widths that are powers of four that costs no digit.
    """
    (places, heads, width), kinds, hot = given.q.shape, given.pair_bias.shape[1], given.hot
    of_query = torch.einsum("tm,hmn->thn", hot, (given.pair_bias * width**0.5).to(hot.dtype))
    zeros = hot.new_zeros(1, 1, 1).expand(places, heads, -(width + kinds) % 8)
    wide_q = torch.cat([given.q, of_query, zeros], -1)
    return wide_q, torch.cat([given.k, hot[:, None].expand(-1, heads, -1), zeros], -1)


def _packed(given: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = given.packing.cu_seqlens, given.packing.max_len
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=given.q.shape[2] ** -0.5)
    assert isinstance(out, Tensor)
    return out


# ---- the formula over padded windows, compiled -------------------------------------------------------------------


def dense(given: Inputs, compiler: str, mode: str | None = None) -> Form:
    """Compiled for these sizes."""
    hot, (_, real) = given.hot_padded, given.places
    compiled = torch.compile(dense_formula, backend=compiler, mode=mode, dynamic=False)
    return lambda now: (compiled(*now.padded, now.pair_bias, hot, real), True, True)


def dense_formula(q: Tensor, k: Tensor, v: Tensor, pair_bias: Tensor, hot: Tensor, real: Tensor) -> Tensor:
    """[B, H, L, Dh], written out."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    logits = logits + (hot[:, None] @ pair_bias.to(hot.dtype)) @ hot[:, None].mT
    return logits.masked_fill(~real[:, None, None, :], -torch.inf).softmax(-1) @ v


# ---- FlexAttention -----------------------------------------------------------------------------------------------


def flex(given: Inputs, compiler: str | None, mode: str | None = None) -> Form:
    """With a mask of windows that is kept and a bias that is learned; uncompiled where there is no compiler."""
    attend, kind = _flexible(given, compiler, mode), given.packing.modality

    def form(now: Inputs) -> tuple[Tensor, bool, bool]:
        bias = now.pair_bias

        def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return logit + bias[h, kind[i], kind[j]]

        bias = bias if compiler else bias.detach()
        return attend(now.q, now.k, now.v, score_mod=score), False, True

    return form


def flex_featured(given: Inputs, compiler: str | None, mode: str | None = None) -> Form:
    """The same mask, and biases as features of every head: their gradient is a product, and no sum of elements.

    Values are as they are, for FlexAttention takes others than queries and keys.
    """
    attend, scale = _flexible(given, compiler, mode), given.q.shape[2] ** -0.5
    return lambda now: (attend(*_featured(now), now.v, scale=scale), False, True)


def _flexible(given: Inputs, compiler: str | None, mode: str | None) -> Callable[..., Tensor]:
    """FlexAttention of packed queries, keys and values. On a CPU it refuses what could need a gradient and has none."""
    from torch.nn.attention.flex_attention import flex_attention

    mask, attend = window_mask(given.packing.cu_seqlens), flex_attention
    if compiler:
        attend = torch.compile(flex_attention, backend=compiler, mode=mode, dynamic=False)

    def run(*packed: Tensor, **options: Any) -> Tensor:
        rows = (t.transpose(0, 1)[None] for t in packed)
        out = attend(*(rows if compiler else map(torch.detach, rows)), block_mask=mask, **options)
        return out[0].transpose(0, 1)

    return run


def window_mask(ends: Tensor) -> Any:
    """FlexAttention's mask of the pairs of one window, from where windows begin and end.

    `create_block_mask` would write down all pairs of a batch first: 42 GB of 512 windows of 400 tokens.

    Args:
        ends: int32 [B + 1]; no token lies behind the last.
    """
    from torch.nn.attention.flex_attention import BlockMask

    places = int(ends[-1])
    windows = torch.arange(len(ends) - 1, device=ends.device, dtype=torch.int32)
    window = windows.repeat_interleave(ends.diff())
    edges = torch.arange(0, places, _BLOCK, device=ends.device)
    first, last = window[edges], window[(edges + _BLOCK - 1).clamp(max=places - 1)]
    some = (first[:, None] <= last) & (first <= last[:, None])
    full = (first == last)[:, None] & (first == last) & (first[:, None] == first)
    if places % _BLOCK:  # the last block is not full of tokens
        full[-1], full[:, -1] = False, False

    def may(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return window[i] == window[j]

    parts = (*_ordered(some & ~full), *_ordered(full))
    return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=_BLOCK, mask_mod=may, seq_lengths=(places, places))


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(number of chosen blocks of keys, all of them with those first) of each block of queries."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None].contiguous()


# ---- all of them -------------------------------------------------------------------------------------------------


def forms(given: Inputs, compiler: str, mode: str | None = None) -> dict[str, Callable[[], Form]]:
    """By name, makers of what the device of the inputs can run; `varlen_attn` needs CUDA tensors of 16 bits.

    Args:
        given: of `attention.inputs`.
        compiler: backend of torch.compile.
        mode: of torch.compile; its default where there is none.
    """
    from physiofast.attention_forms import varlen_refusal

    is_cuda = given.q.device.type == "cuda"
    found: dict[str, Callable[[], Form]] = {
        DENSE: functools.partial(dense, given, compiler, mode),
        FLEX: functools.partial(flex, given, compiler if is_cuda else None, mode),
        FLEX_FEATURED: functools.partial(flex_featured, given, compiler if is_cuda else None, mode),
    }
    if varlen_refusal(given.q) is None:
        found |= {UNBIASED: lambda: unbiased, VARLEN: lambda: varlen}
    return found
