"""The attention module of encoder and decoders, and the forms of its function that it can be compared with.

All forms compute `ops.modality_attention` of the same packed tokens. `packed` is that op. The others are what PyTorch
itself offers: `sdpa` pads every window and gives scaled-dot-product attention a dense mask of biases; `varlen` is
FlashAttention over packed tokens, to which the biases are M more features of every head; `flex` is FlexAttention with a
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
from physiofast.ops import Packing
from physiofast.ops.projection import cut

AttentionForm = Literal["packed", "sdpa", "varlen", "flex"]
SLOPES_PER_S = (1.0, 1 / 4, 1 / 16, 0.0)
"""Initial decay of attention with distance, over the heads in turn."""
_FORBIDDEN = -3e4
"""In place of -inf where float16 has to hold it; no weight survives it beside an allowed key."""


class ModalityAttention(nn.Module):
    """Attention of some tokens to others of the same window, with a bias per modality pair and a decay per second.

    Parameters are named as in the usual vision transformer (`qkv`, `proj`, `q_norm`, `k_norm`), whose state dicts
    load with `strict=False`; `pair_bias` and `time_decay` are its own.

    Args:
        width: D, a multiple of `heads`.
        heads: H.
        kinds: M, modalities.
        allowed: bool [M, M], which query modality (row) may attend to which key modality; all when left out.
        qk_norm: normalise queries and keys over the features of a head.
        decay: learn a decay with distance in time.
        attention: the form that computes it; all give the same numbers. `varlen` needs CUDA tensors of 16 bits
            and knows no decay.

    Raises:
        ValueError: an unknown form, `varlen` with a decay, or a width that heads do not divide.
    """

    allowed: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        kinds: int,
        allowed: Tensor | None = None,
        *,
        qk_norm: bool = False,
        decay: bool = True,
        attention: AttentionForm = "packed",
    ) -> None:
        super().__init__()
        if attention not in FORMS:
            raise ValueError(f"attention must be one of {', '.join(FORMS)}; found {attention!r}")
        if attention == "varlen" and decay:
            raise ValueError("attention = 'varlen' has no room for a decay with distance in time; use decay=False")
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        self.heads, self.attention = heads, attention
        self.qkv = _fused(nn.Linear(width, width), nn.Linear(width, 2 * width))
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        self.pair_bias = nn.Parameter(torch.zeros(heads, kinds, kinds))
        slopes = torch.tensor(SLOPES_PER_S).repeat(-(-heads // 4))[:heads]
        self.time_decay = nn.Parameter(slopes.clone()) if decay else None
        allowed = torch.ones(kinds, kinds, dtype=torch.bool) if allowed is None else allowed
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(
        self, x: Tensor, packing: Packing, context: Tensor | None = None, packing_context: Packing | None = None
    ) -> Tensor:
        """[T, D], for the tokens x [T, D] of a packing; keys and values are theirs or those of a context."""
        if (context is None) != (packing_context is None):
            given, missing = ("packing_context", "context")[:: 1 if context is None else -1]
            raise ValueError(f"{given} without {missing}: keys and values come from both, or from x by neither")
        if context is None or packing_context is None:
            q, k, v = self._split(self.qkv(x), 3)
            packing_context = packing
        else:
            width, bias = x.shape[-1], self.qkv.bias
            (q,) = self._split(nn.functional.linear(x, self.qkv.weight[:width], bias[:width]), 1)
            k, v = self._split(nn.functional.linear(context, self.qkv.weight[width:], bias[width:]), 2)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        options = Options(self.pair_bias, self.allowed, self.time_decay)
        return self.proj(FORMS[self.attention](q, k, v, packing, packing_context, options).flatten(-2))

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[T, H, Dh] of each part, where it lies."""
        return cut(projected.unflatten(-1, (parts, self.heads, -1)))


class Options(NamedTuple):
    """What attention is given besides queries, keys, values and their packings."""

    pair_bias: Tensor
    """[H, M, M]."""
    allowed: Tensor
    """bool [M, M]."""
    time_decay: Tensor | None = None
    """[H] per second."""


def packed(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
    """[T_q, H, Dh], by `ops.modality_attention`."""
    return ops.modality_attention(q, k, v, packing_q, packing_k, **options._asdict())


# ---- padded windows ----------------------------------------------------------------------------------------------


def padded_sdpa(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
    """[T_q, H, Dh], by scaled-dot-product attention over padded windows with a dense mask of biases."""
    (iq, real_q), (ik, real_k) = padded_places(packing_q), padded_places(packing_k)
    mask, some = pair_biases(packing_q, packing_k, options, q.dtype)
    query, key, value = (
        torch.where(real[..., None, None], t[i], 0).transpose(1, 2)
        for t, i, real in ((q, iq, real_q), (k, ik, real_k), (v, ik, real_k))
    )
    tile = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    return unpadded(torch.where(some, tile, 0), packing_q)


def padded_places(packing: Packing) -> tuple[Tensor, Tensor]:
    """(place in the packing [B, L] of every window's tokens, which of them are tokens), with L = max_len."""
    step = torch.arange(packing.max_len, device=packing.cu_seqlens.device)
    real = step < packing.cu_seqlens.diff()[:, None]
    return torch.where(real, packing.cu_seqlens[:-1, None] + step, 0).long(), real


def unpadded(tile: Tensor, packing: Packing) -> Tensor:
    """[T, H, Dh] of a [B, L, H, Dh]; the tail is zero."""
    window, place = windows_of(packing)
    flat = tile.flatten(0, 1)
    row = (window * tile.shape[1] + place).clamp(max=max(len(flat) - 1, 0))
    return torch.where((window < len(tile))[:, None, None], flat[row], 0)


def windows_of(packing: Packing) -> tuple[Tensor, Tensor]:
    """(window [T] of each place, B in the tail; its place within the window)."""
    places = torch.arange(len(packing.ids), device=packing.ids.device)
    window = torch.searchsorted(packing.cu_seqlens[1:].contiguous(), places, right=True)
    return window, places - packing.cu_seqlens[window.clamp(max=len(packing.cu_seqlens) - 1)]


def pair_biases(packing_q: Packing, packing_k: Packing, options: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(biases of all pairs [B, H, Lq, Lk], -inf where a weight is 0; bool [B, Lq, 1, 1], queries with a key).

    The row of a query without a key is 0 all along, so that nothing becomes NaN.
    """
    (iq, real_q), (ik, real_k) = padded_places(packing_q), padded_places(packing_k)
    acc = _wide(dtype)
    hot_q, hot_k = (_one_hot(p.modality[i], options.allowed, acc) for p, i in ((packing_q, iq), (packing_k, ik)))
    biases = torch.einsum("bqm,hmn,bkn->bhqk", hot_q, options.pair_bias.to(acc), hot_k)
    if options.time_decay is not None:
        time_q, time_k = packing_q.time_s.to(acc)[iq], packing_k.time_s.to(acc)[ik]
        apart = (time_q[:, :, None] - time_k[:, None, :]).abs()
        biases = biases - options.time_decay.to(acc)[:, None, None] * apart[:, None]
    may = (hot_q @ options.allowed.to(acc) @ hot_k.mT > 0) & real_q[:, :, None] & real_k[:, None, :]
    some = may.any(-1)
    biases = biases.masked_fill(~may[:, None] & some[:, None, :, None], -torch.inf)
    return biases.masked_fill(~some[:, None, :, None], 0).to(dtype), some[:, :, None, None]


def _one_hot(modality: Tensor, allowed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return (modality[..., None] == torch.arange(len(allowed), device=modality.device)).to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Of biases beside queries of a dtype."""
    return torch.promote_types(dtype, torch.float32)


# ---- FlashAttention over packed tokens ---------------------------------------------------------------------------


def varlen(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
    """[T_q, H, Dh], by `torch.nn.attention.varlen.varlen_attn` with the biases as M more features of a head.

    Raises:
        RuntimeError: the tensors are not CUDA ones of 16 bits, or this PyTorch has no such function.
        ValueError: there is a decay.
    """
    refused = varlen_refusal(q)
    if refused:
        raise RuntimeError(f"attention = 'varlen': {refused}; use 'packed' or 'sdpa'")
    if options.time_decay is not None:
        raise ValueError("attention = 'varlen' has no room for a decay with distance in time; leave time_decay out")
    from torch.nn.attention.varlen import varlen_attn

    wide = widened(q, k, v, packing_q, packing_k, options)
    ends, longest = (packing_q.cu_seqlens, packing_k.cu_seqlens), (packing_q.max_len, packing_k.max_len)
    out = varlen_attn(*wide, *ends, *longest, scale=1.0)
    assert isinstance(out, Tensor)
    return torch.where(with_allowed_key(packing_q, packing_k, options.allowed), out[..., : v.shape[-1]], 0)


def varlen_refusal(q: Tensor) -> str | None:
    """Why `varlen_attn` cannot take such tensors; None when it can."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention takes CUDA tensors of float16 or bfloat16; found {q.device.type} and {q.dtype}"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"PyTorch {torch.__version__} has no torch.nn.attention.varlen"
    return None


def widened(
    q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k, v) of Dh + M features, up to a multiple of 8: `scale * q . k` plus the pair's bias is one product."""
    heads, width = q.shape[1:]
    acc = _wide(q.dtype)
    hot_q, hot_k = (_one_hot(p.modality, options.allowed, acc) for p in (packing_q, packing_k))
    bias = torch.where(options.allowed, options.pair_bias.to(acc), _FORBIDDEN)
    of_query = torch.einsum("tm,hmn->thn", hot_q, bias).to(q.dtype)
    of_key = hot_k[:, None].expand(-1, heads, -1).to(k.dtype)
    room = -(width + len(options.allowed)) % 8
    pad = functools.partial(nn.functional.pad, pad=(0, room))
    wide_v = nn.functional.pad(v, (0, len(options.allowed) + room))
    return pad(torch.cat([q * width**-0.5, of_query], -1)), pad(torch.cat([k, of_key], -1)), wide_v


def with_allowed_key(packing_q: Packing, packing_k: Packing, allowed: Tensor) -> Tensor:
    """bool [T_q, 1, 1]: queries that are tokens and have an allowed key in their window."""
    window_q, _ = windows_of(packing_q)
    window_k, _ = windows_of(packing_k)
    windows, kinds = len(packing_q.cu_seqlens), len(allowed)
    there = torch.zeros(windows, kinds, device=allowed.device).index_add(
        0, window_k, _one_hot(packing_k.modality, allowed)
    )
    may = there[window_q] @ allowed.float().mT > 0  # [T_q, M], whether a query of that modality had one
    mine = (may & (_one_hot(packing_q.modality, allowed) > 0)).any(-1)
    return (mine & (window_q < windows - 1))[:, None, None]


# ---- FlexAttention -----------------------------------------------------------------------------------------------


def flex(q: Tensor, k: Tensor, v: Tensor, packing_q: Packing, packing_k: Packing, options: Options) -> Tensor:
    """[T_q, H, Dh], by FlexAttention with a document mask; compiled on CUDA, without gradients on a CPU."""
    return flex_with(flex_block_mask(packing_q, packing_k, options.allowed), q, k, v, packing_q, packing_k, options)


def flex_block_mask(packing_q: Packing, packing_k: Packing, allowed: Tensor) -> Any:
    """FlexAttention's mask of the pairs of one window whose modalities may attend; the same for every layer."""
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
    """As `flex`, with a mask of `flex_block_mask` that is kept."""
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


FORMS: dict[str, Callable[..., Tensor]] = {"packed": packed, "sdpa": padded_sdpa, "varlen": varlen, "flex": flex}
"""Name of a form -> its function of q, k, v, their packings and `Options`."""


def _fused(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """One layer that gives the features of two, initialised as they are."""
    both = nn.utils.skip_init(nn.Linear, first.in_features, first.out_features + second.out_features)
    with torch.no_grad():
        both.weight.copy_(torch.cat([first.weight, second.weight]))
        both.bias.copy_(torch.cat([first.bias, second.bias]))
    return both
