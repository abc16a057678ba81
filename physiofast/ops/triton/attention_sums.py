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
from physiofast.ops.triton.attention_parts import matmul_one_hot, sum_by_modality
from physiofast.ops.triton.dtypes import accumulate_in
from physiofast.ops.triton.launching import BoundLaunch, Kernel
from physiofast.ops.triton.parts import one_hot_rows


@triton.jit
def no_sums(ACC: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr):
    """Zeros, to which `with_block` adds."""
    if BLOCK_W > 0:
        sums = tl.zeros([BLOCK_Q, BLOCK_W], ACC)
    else:
        sums = tl.zeros([BLOCK_M, BLOCK_M], ACC)
    return sums


@triton.jit
def with_block(
    sums,
    query_modality,  # [BLOCK_Q]
    key_modality,  # [BLOCK_K]
    one_hot_k,  # [BLOCK_K, BLOCK_M]
    dlogits,  # [BLOCK_Q, BLOCK_K]
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The sums and those of one more block of keys: [BLOCK_Q, BLOCK_W], each query's over the keys of each modality.

    Warps split the queries. With BLOCK_W 0 the sums are [BLOCK_M, BLOCK_M], over the queries too. That needs fewer
    registers, but BLOCK_M rows are too few to split: every warp computes both products in full.
    """
    if BLOCK_W > 0:
        one_hot = one_hot_rows(key_modality, OPERAND, BLOCK_W)
        sums = tl.dot(dlogits, one_hot, sums, input_precision=PRECISION, out_dtype=ACC)
    else:
        one_hot_q = (tl.arange(0, BLOCK_M)[:, None] == query_modality[None, :]).to(OPERAND)
        per_key = tl.dot(one_hot_q, dlogits, input_precision=PRECISION, out_dtype=ACC)
        sums = matmul_one_hot(per_key, one_hot_k, sums, ACC, PRECISION, SPLIT)
    return sums


@triton.jit
def pair_sums(
    sums,  # of `with_block`
    query_modality,  # [BLOCK_Q]
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """[BLOCK_M, BLOCK_W or BLOCK_M], over the pairs of modalities, those of queries by those of keys."""
    if BLOCK_W > 0:
        sums = sum_by_modality(query_modality, sums, tl.zeros([BLOCK_M, BLOCK_W], ACC), ACC, PRECISION, SPLIT, BLOCK_M)
    return sums


@triton.jit
def store_shared(
    partial,  # [places, H * M * M + H], or without a decay [places, H * M * M]
    dbias,  # [BLOCK_M, BLOCK_W or BLOCK_M], query modality by key modality
    ddecay,
    token,
    b,
    h,
    H,
    PER_PLACE: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """This program's part of the gradients of biases and decay, to a row of `partial` of its own.

    Row token // PER_PLACE + b is unique: blocks begin PER_PLACE tokens apart, and a window of n tokens has at most
    n // PER_PLACE + 1 of them.
    """
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_W if BLOCK_W > 0 else BLOCK_M)
    row = partial + (token // PER_PLACE + b).to(tl.int64) * (H * (NUM_MODALITIES * NUM_MODALITIES + HAS_DECAY))
    inside = (m < NUM_MODALITIES)[:, None] & (n < NUM_MODALITIES)[None, :]
    tl.store(row + h * NUM_MODALITIES * NUM_MODALITIES + m[:, None] * NUM_MODALITIES + n[None, :], dbias, mask=inside)
    if HAS_DECAY:
        tl.store(row + H * NUM_MODALITIES * NUM_MODALITIES + h, ddecay)


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
    column_sum = tl.sum(total, 0)  # [BLOCK_C]
    tl.store(first + group * stride + c, column_sum.to(first.dtype.element_ty), mask=c < columns)
    beyond = (c >= columns) & (c < columns + more)
    tl.store(second + group * stride + c - columns, column_sum.to(second.dtype.element_ty), mask=beyond)


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
    add = BoundLaunch(kernel, (across, 1), device, dtypes, rest)
    of_group = (places, columns, more, per_group, both)
    add_groups = BoundLaunch(kernel, (across, groups), device, dtypes[:1] * 3, of_group)

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
