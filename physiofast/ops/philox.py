"""Random words that depend on counters alone, in plain PyTorch: the definition of every draw."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four random 32-bit words (as int64) for each counter.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # the low 64 bits are right though int64 wraps
        c0, c1, c2, c3 = ((b >> 32) ^ c1 ^ k0) & _LOW32, b & _LOW32, ((a >> 32) ^ c3 ^ k1) & _LOW32, a & _LOW32
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return c0, c1, c2, c3


def random_words(seed_step: Tensor, window_id: Tensor, count: int, domain: int = 0) -> Tensor:
    """Random 32-bit words, int64 [B, count], which depend on (seed, step), window id and position alone.

    Args:
        seed_step: int64 [2], (seed, step).
        window_id: int64 [B].
        count: words of each window.
        domain: a number for the purpose of the draw; words of two domains are independent.
    """
    # Masked like the other words: otherwise Inductor would compute in 32 bits, which Philox's factors do not fit.
    block = (torch.arange((count + 3) // 4, device=window_id.device) + (domain << 24)) & _LOW32
    step = (seed_step[1] & _LOW32).expand(len(window_id), len(block))
    low, high = ((part & _LOW32)[:, None].expand_as(step) for part in (window_id, window_id >> 32))
    key = (seed_step[0] & _LOW32, (seed_step[0] >> 32) & _LOW32)
    words = philox((block.expand_as(step), step, low, high), key)
    return torch.stack(words, -1).flatten(1)[:, :count]
