"""Gradients that all windows share, of biases and decay: each program's part in a place of its own, summed in order.

The order is that of windows in the batch and of blocks in a window, whatever program comes first. Windows that share a
tile share the place of its first; which ones do follows from the lengths of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops.triton import table
from physiofast.ops.triton.attention_parts import times_hot
from physiofast.ops.triton.dtypes import accumulate_in
from physiofast.ops.triton.launching import Kernel, Start


@triton.jit
def pair_sums(
    kind_q,  # [BLOCK_Q]
    dlogits,  # [BLOCK_Q, BLOCK_K]
    hot_k,  # [BLOCK_K, BLOCK_M]
    total,  # [BLOCK_M, BLOCK_M]
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """total + sums of a block over the pairs of modalities, those of queries by those of keys.

    Queries are summed first, so that both products have BLOCK_M rows: Triton 3.6 makes of 64 rows by 16 columns an
    instruction of Hopper that is wrong, and reads outside of shared memory.
    """
    hot_q = (tl.arange(0, BLOCK_M)[:, None] == kind_q[None, :]).to(OPERAND)
    per_key = tl.dot(hot_q, dlogits, input_precision=PRECISION, out_dtype=ACC)
    return times_hot(per_key, hot_k, total, ACC, PRECISION, SPLIT)


@triton.jit
def store_shared(
    partial,  # [places, H * M * M + H], or without a decay [places, H * M * M]
    dbias,  # [BLOCK_M, BLOCK_M], query modality by key modality
    ddecay,
    token,
    b,
    h,
    H,
    PER_PLACE: tl.constexpr,
    KINDS: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """This program's part of the gradients of biases and decay, in a place that no other block of queries has.

    A window's blocks begin PER_PLACE tokens apart and it has one place more than whole blocks, as is known of the
    tokens before it.
    """
    m = tl.arange(0, BLOCK_M)
    row = partial + (token // PER_PLACE + b).to(tl.int64) * (H * (KINDS * KINDS + HAS_DECAY))
    inside = (m < KINDS)[:, None] & (m < KINDS)[None, :]
    tl.store(row + h * KINDS * KINDS + m[:, None] * KINDS + m[None, :], dbias, mask=inside)
    if HAS_DECAY:
        tl.store(row + H * KINDS * KINDS + h, ddecay)


@triton.jit
def _sum_places(
    partial,  # [places, columns + more]
    first,  # [groups, columns], rows `stride` apart
    second,  # [groups, more], rows `stride` apart
    places,
    columns,
    more,
    per_group,
    stride,
    ACC: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    group = tl.program_id(1)
    g = tl.arange(0, BLOCK_G)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    end = tl.minimum((group + 1) * per_group, places)
    total = tl.zeros([BLOCK_G, BLOCK_C], ACC)
    for begin in range(group * per_group, end, BLOCK_G):
        place = (begin + g).to(tl.int64)[:, None] * (columns + more) + c[None, :]
        total += tl.load(partial + place, mask=(begin + g < end)[:, None] & (c < columns + more)[None, :], other=0)
    found = tl.sum(total, 0)  # [BLOCK_C]
    tl.store(first + group * stride + c, found.to(first.dtype.element_ty), mask=c < columns)
    beyond = (c >= columns) & (c < columns + more)
    tl.store(second + group * stride + c - columns, found.to(second.dtype.element_ty), mask=beyond)


@functools.lru_cache
def _sum(dtype: torch.dtype) -> Kernel:
    return Kernel(_sum_places, table.sum_places(), ACC=accumulate_in(dtype))


@functools.lru_cache
def summing(
    shape: tuple[int, int], more: int, dtypes: tuple[torch.dtype, ...], device: int
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """A `sum_in_order` for tensors of these dtypes, of which partial has this shape and second `more` columns."""
    (places, both), kernel, groups = shape, _sum(dtypes[0]), table.sum_groups(shape[0])
    columns, across, per_group = both - more, table.tiles(both, kernel.blocks["BLOCK_C"]), table.tiles(places, groups)
    rest = (groups, columns, more, groups, 0) if groups > 1 else (places, columns, more, places, 0)
    add = Start(kernel, (across, 1), device, dtypes, rest)
    of_group = (places, columns, more, per_group, both)
    add_groups = Start(kernel, (across, groups), device, dtypes[:1] * 3, of_group)

    def run(partial: Tensor, first: Tensor, second: Tensor) -> None:
        if groups > 1:
            summed = partial.new_empty(groups, both)
            add_groups((partial, summed, summed[0, columns:]), ())
            partial = summed
        add((partial, first, second), ())

    return run


def sum_in_order(partial: Tensor, first: Tensor, second: Tensor) -> None:
    """Sums of the rows of partial, in groups first where they are many; a row holds what `first` and `second` do."""
    dtypes = (partial.dtype, first.dtype, second.dtype)
    summing(partial.shape, second.shape[0], dtypes, partial.get_device())(partial, first, second)
