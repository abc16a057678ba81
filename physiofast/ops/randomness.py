"""Random words on the host, a function of (seed, step, window id) and of the purpose that they are drawn for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from physiofast.engine import native
from physiofast.ops import philox

if native:
    from physiofast import _native

ORDER, DIRICHLET, DROPOUT, JITTER = range(4)
"""Domains of draws: the order of a modality's tokens, its share of the visible ones, its dropout, a window's shift."""


def random_words(
    seed: int, step: int, window_id: np.ndarray[Any, Any], count: int, domains: Sequence[int]
) -> np.ndarray[Any, Any]:
    """Random words uint32 [domains, B, count]; those of each domain are `philox.random_words`."""
    if not native:
        seed_step, window = torch.tensor([seed, step], device="cpu"), torch.from_numpy(window_id)
        return np.stack([philox.random_words(seed_step, window, count, domain) for domain in domains]).astype(np.uint32)
    words = np.empty((len(domains), len(window_id), -(-count // 4) * 4), np.uint32)
    _native.random_words(seed, step, np.ascontiguousarray(window_id), np.array(domains, np.int64), words)
    return words[..., :count]
