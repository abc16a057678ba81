"""What kernels share: the meaning of a token's modality."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def select(kind, VALUES: tl.constexpr, KINDS: tl.constexpr):
    """VALUES[kind] for a block of modalities; 0 for -1, the tail."""
    found = kind * 0
    for m in tl.static_range(KINDS):
        found = tl.where(kind == m, VALUES[m], found)
    return found
