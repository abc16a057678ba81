"""Plans on a CPU: `reference.sample_plan` bit for bit, by NumPy, whose 64-bit products and sort use vectors.

A token's place in its window and modality is decided by one integer: modality, then whether it is invalid, then its
random word, then its number. So rows need no stable sort, and tell where each key came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.ops import reference

_LOW32, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
Array = np.ndarray[Any, Any]


def random_words(seed: int, step: int, window_id: Array, count: int, domain: int = 0) -> Array:
    """uint64 [B, count] of 32-bit words, as `reference.random_words`."""
    block = np.arange((count + 3) // 4, dtype=np.uint64) + np.uint64(domain << 24)
    window = window_id.astype(np.uint64)[:, None]  # of a negative number the same bits
    counter = (block, np.uint64(step & 0xFFFFFFFF), window & _LOW32, window >> _HALF)
    words = np.empty((len(window), len(block), 4), np.uint64)
    for i, word in enumerate(_philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))):
        words[..., i] = word
    return words.reshape(len(window), -1)[:, :count]


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
    """As `reference.sample_plan`; no two share memory."""
    tokens, kinds = valid.shape[1], quotas.shape[1]
    if kinds.bit_length() + tokens.bit_length() + 33 > 64:  # a key would not fit
        return reference.sample_plan(quotas, valid, window_id, stream, token_modality, token_time_s, totals)
    here, kind, time_s = valid.numpy(), token_modality.numpy(), token_time_s.numpy()
    seed, step = stream.tolist()
    words = random_words(seed, step, window_id.numpy(), tokens)
    visible = _choose_visible(quotas.numpy(), here, words, kind)
    chosen = (visible, here & ~visible, here)
    return [
        torch.from_numpy(array)
        for mask, total in zip(chosen, totals, strict=True)
        for array in _pack(mask, kind, time_s, kinds, total)
    ]


def _choose_visible(quotas: Array, valid: Array, words: Array, kind: Array) -> Array:
    """bool [B, N], as `reference.choose_visible`."""
    batch, tokens = valid.shape
    number = np.arange(tokens)
    bits = np.uint64(tokens.bit_length())
    of_kind = kind.astype(np.uint64) << (bits + np.uint64(33))
    key = (words << bits) | (of_kind | number.astype(np.uint64))
    key |= (~valid).astype(np.uint64) << (bits + _HALF)
    key.sort(axis=1)
    # Modalities ascend and all windows have the same grid, so the p-th smallest key is of the p-th token's modality.
    rank = number - np.searchsorted(kind, kind)
    taken = (rank < quotas[:, kind]) & (key >> (bits + _HALF) & np.uint64(1) == 0)
    where = (key & np.uint64((1 << int(bits)) - 1)).astype(np.int64) + np.arange(batch)[:, None] * tokens
    visible = np.zeros(batch * tokens, bool)
    visible[where[taken]] = True
    return visible.reshape(batch, tokens)


def _pack(chosen: Array, kind: Array, time_s: Array, kinds: int, total: int) -> tuple[Array, ...]:
    """As `reference.pack`."""
    token = np.flatnonzero(chosen)
    used, which = len(token), token % chosen.shape[1]
    ids, modality = np.full(total, -1, np.int32), np.full(total, -1, kind.dtype)
    times, slot = np.zeros(total, time_s.dtype), np.full(chosen.size, -1, np.int32)
    ids[:used], modality[:used], times[:used], slot[token] = token, kind[which], time_s[which], np.arange(used)
    by_modality = np.arange(total, dtype=np.int32)
    # NumPy sorts small integers by counting them.
    by_modality[:used] = modality[:used].astype(np.uint8 if kinds < 256 else np.int32).argsort(kind="stable")
    lengths, sizes = np.count_nonzero(chosen, axis=1), np.bincount(modality[:used], minlength=kinds)
    cu_seqlens, cu_modality = (np.concatenate([[0], n.cumsum()]).astype(np.int32) for n in (lengths, sizes))
    return ids, cu_seqlens, modality, times, slot.reshape(chosen.shape), by_modality, cu_modality
