"""What kernels share: values and one-hot rows by a small number, such as a token's modality."""

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


@triton.jit
def hot_rows(number, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK_T, BLOCK] with a one at each token's number, such as its modality."""
    return (number[:, None] == tl.arange(0, BLOCK)[None, :]).to(DTYPE)
