"""What kernels share: where a token's samples lie, and what its modality means."""

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
def first_sample(row_start, ids, length, patches, real, ALIGN: tl.constexpr):
    """(flat row [BLOCK_T] of each token among B * C, int64 first sample [BLOCK_T], a multiple of ALIGN)."""
    row = ids // patches
    start = tl.load(row_start + row, mask=real, other=0) + (ids % patches).to(tl.int64) * length
    return row, tl.multiple_of(start, [ALIGN])


@triton.jit
def scales(row_scale, row_shift, row, real, ACC: tl.constexpr):
    """(scale, shift) [BLOCK_T] of each token's row: value = sample * scale + shift."""
    scale = tl.load(row_scale + row, mask=real, other=0).to(ACC)
    return scale, tl.load(row_shift + row, mask=real, other=0).to(ACC)
