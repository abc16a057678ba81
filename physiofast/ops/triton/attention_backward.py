"""Gradients of `modality_attention`: weights from the log-sum-exp, nothing of all pairs stored, no atomics.

A window that fits one block is done by one program for each head. A longer one takes two passes: queries block by
block, which also leaves every query's sum of weighted gradients for the second pass, then keys block by block. What
a program adds to the gradients of biases and decay lies in a place of its own, and the places are summed in order.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.triton import table
from physiofast.ops.triton.assemble import accumulate_in
from physiofast.ops.triton.attention import (
    Sides,
    bias_rows,
    constants,
    decay_of,
    heads_of_rows,
    hot_rows,
    is_exact,
    load_rows,
    pair_logits,
    span,
    store_rows,
    times_hot,
    token_facts,
    zero_tail,
)
from physiofast.ops.triton.launching import Kernel


@triton.jit
def _load_lse(lse, begin, first, length, BLOCK: tl.constexpr):
    """[BLOCK]; +inf, so that all weights are 0, where there is no query or none that has an allowed key."""
    i = first + tl.arange(0, BLOCK)
    found = tl.load(lse + begin + i, mask=i < length, other=float("inf"))
    return tl.where(found == float("-inf"), float("inf"), found)


@triton.jit
def _narrow(x, OPERAND: tl.constexpr):
    """For a matrix product; float16 has no room for what float32 may hold, and infinity would become NaN."""
    if OPERAND == tl.float16:  # noqa: SIM300
        x = tl.minimum(tl.maximum(x, -65504.0), 65504.0)
    return x.to(OPERAND)


@triton.jit
def _pair_sums(
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
def _store_shared(
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
def _whole_window(
    grad,  # [T_q, H, D]
    q,  # [T_q, H, D]
    k,  # [T_k, H, D]
    v,  # [T_k, H, D]
    lse,  # [T_q], of this head
    modality_q,  # [T_q]
    modality_k,  # [T_k]
    time_q,  # [T_q]
    time_k,  # [T_k]
    pair_bias,  # [H, M, M]
    allowed,  # [M, M]
    dq,  # [T_q, H, D]
    dk,  # [T_k, H, D]
    dv,  # [T_k, H, D]
    partial,  # [places, H * M * M + H], or without a decay [places, H * M * M]
    begin_q,
    begin_k,
    length_q,
    length_k,
    b,
    h,
    H,
    stride_q,
    stride_k,
    stride_v,
    stride_out,
    decay,
    scale,
    PER_PLACE: tl.constexpr,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    NEED_SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """All gradients of one window and head."""
    query = load_rows(q, begin_q, 0, length_q, stride_q, h, D, BLOCK, BLOCK_D).to(OPERAND)
    key = load_rows(k, begin_k, 0, length_k, stride_k, h, D, BLOCK, BLOCK_D).to(OPERAND)
    _, kind_q, second_q = token_facts(modality_q, time_q, begin_q, 0, length_q, BLOCK)
    real_k, kind_k, second_k = token_facts(modality_k, time_k, begin_k, 0, length_k, BLOCK)
    bias = bias_rows(pair_bias, allowed, kind_q, h, KINDS, ACC, BLOCK_M)
    apart = tl.abs(second_q[:, None] - second_k[None, :]).to(ACC)

    hot = hot_rows(kind_k, ACC, BLOCK_M)
    logits = pair_logits(query, key, bias, hot, apart, real_k, decay, scale, ACC, PRECISION, SPLIT, HAS_DECAY)
    weights = tl.exp(logits - _load_lse(lse, begin_q, 0, length_q, BLOCK)[:, None])
    dout = load_rows(grad, begin_q, 0, length_q, stride_out, h, D, BLOCK, BLOCK_D).to(OPERAND)
    content = load_rows(v, begin_k, 0, length_k, stride_v, h, D, BLOCK, BLOCK_D).to(OPERAND)
    dcontent = tl.dot(tl.trans(weights.to(OPERAND)), dout, input_precision=PRECISION, out_dtype=ACC)
    store_rows(dv, dcontent, begin_k, 0, length_k, stride_out, h, D, BLOCK, BLOCK_D)

    # Seconds are loaded again: to keep them all the while would take as many registers as a block of weights.
    # What is made of them is compiled only if `_store_shared` stores it.
    _, _, second_q = token_facts(modality_q, time_q, begin_q, 0, length_q, BLOCK)
    _, _, second_k = token_facts(modality_k, time_k, begin_k, 0, length_k, BLOCK)
    distance = tl.sum(
        weights * tl.abs(second_q[:, None] - second_k[None, :]).to(ACC), 1
    )  # gradients of a row's logits sum to 0: less of it cancels around the mean
    dlogits = tl.dot(dout, tl.trans(content), input_precision=PRECISION, out_dtype=ACC)
    dlogits = weights * (dlogits - tl.sum(weights * dlogits, 1)[:, None])
    narrow = _narrow(dlogits, OPERAND)
    apart = tl.abs(second_q[:, None] - second_k[None, :]).to(ACC)
    ddecay = -tl.sum(narrow.to(ACC) * (apart - distance[:, None]))  # of the narrow ones, for want of registers
    if NEED_SHARED:
        dbias = tl.zeros([BLOCK_M, BLOCK_M], ACC)
        dbias = _pair_sums(kind_q, narrow, hot, dbias, ACC, OPERAND, PRECISION, SPLIT, BLOCK_M)
        _store_shared(partial, dbias, ddecay, begin_q, b, h, H, PER_PLACE, KINDS, HAS_DECAY, BLOCK_M)
    dquery = tl.dot(narrow, key, input_precision=PRECISION, out_dtype=ACC) * scale
    store_rows(dq, dquery, begin_q, 0, length_q, stride_out, h, D, BLOCK, BLOCK_D)
    dkey = tl.dot(tl.trans(narrow), query, input_precision=PRECISION, out_dtype=ACC) * scale
    store_rows(dk, dkey, begin_k, 0, length_k, stride_out, h, D, BLOCK, BLOCK_D)


@triton.jit
def _backward_whole(
    grad,  # [T_q, H, D]
    q,  # [T_q, H, D]
    k,  # [T_k, H, D]
    v,  # [T_k, H, D]
    lse,  # [H, T_q]
    cu_q,  # [B + 1]
    cu_k,  # [B + 1]
    modality_q,  # [T_q]
    modality_k,  # [T_k]
    time_q,  # [T_q]
    time_k,  # [T_k]
    pair_bias,  # [H, M, M]
    allowed,  # [M, M]
    time_decay,  # [H], or empty
    dq,  # [T_q, H, D]
    dk,  # [T_k, H, D]
    dv,  # [T_k, H, D]
    partial,  # [places, H * M * M + H], or without a decay [places, H * M * M]
    B,
    H,
    T_q,
    T_k,
    stride_q,
    stride_k,
    stride_v,
    stride_out,
    scale,
    ABOVE: tl.constexpr,
    PER_PLACE: tl.constexpr,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    NEED_SHARED: tl.constexpr,
    BLOCK_SHORT: tl.constexpr,
    BLOCK_LONG: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Windows of more than ABOVE tokens that fit one block."""
    h, b = tl.program_id(0) % H, tl.program_id(0) // H
    begin_q, length_q = span(cu_q, b)
    begin_k, length_k = span(cu_k, b)
    length = tl.maximum(length_q, length_k)
    decay = decay_of(time_decay, h, ACC, HAS_DECAY)
    of_head = lse + h.to(tl.int64) * T_q

    if (length > ABOVE) & (length <= BLOCK_SHORT):
        _whole_window(
            grad, q, k, v, of_head, modality_q, modality_k, time_q, time_k, pair_bias, allowed, dq, dk, dv, partial,
            begin_q, begin_k, length_q, length_k, b, h, H, stride_q, stride_k, stride_v, stride_out, decay,
            scale, PER_PLACE, KINDS, D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, NEED_SHARED, BLOCK_SHORT, BLOCK_D,
            BLOCK_M,
        )  # fmt: skip
    if BLOCK_SHORT < BLOCK_LONG:  # noqa: SIM102  one is known when compiled, one when run
        if (length > BLOCK_SHORT) & (length <= BLOCK_LONG):
            _whole_window(
                grad, q, k, v, of_head, modality_q, modality_k, time_q, time_k, pair_bias, allowed, dq, dk, dv, partial,
                begin_q, begin_k, length_q, length_k, b, h, H, stride_q, stride_k, stride_v, stride_out, decay,
                scale, PER_PLACE, KINDS, D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, NEED_SHARED, BLOCK_LONG, BLOCK_D,
                BLOCK_M,
            )  # fmt: skip
    if ABOVE == 0:
        zero_tail(dq, tl.load(cu_q + B), T_q, stride_out, h, b, B, D, BLOCK_SHORT, BLOCK_D)
        zero_tail(dk, tl.load(cu_k + B), T_k, stride_out, h, b, B, D, BLOCK_SHORT, BLOCK_D)
        zero_tail(dv, tl.load(cu_k + B), T_k, stride_out, h, b, B, D, BLOCK_SHORT, BLOCK_D)


@triton.jit
def _backward_queries(
    grad,  # [T_q, H, D]
    q,  # [T_q, H, D]
    k,  # [T_k, H, D]
    v,  # [T_k, H, D]
    out,  # [T_q, H, D]
    lse,  # [H, T_q]
    cu_q,  # [B + 1]
    cu_k,  # [B + 1]
    modality_q,  # [T_q]
    modality_k,  # [T_k]
    time_q,  # [T_q]
    time_k,  # [T_k]
    pair_bias,  # [H, M, M]
    allowed,  # [M, M]
    time_decay,  # [H], or empty
    dq,  # [T_q, H, D]
    delta,  # [H, T_q]
    partial,  # [places, H * M * M + H], or without a decay [places, H * M * M]
    H,
    blocks,
    T_q,
    stride_q,
    stride_k,
    stride_v,
    stride_out,
    scale,
    ABOVE: tl.constexpr,
    PER_PLACE: tl.constexpr,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    NEED_SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """First pass over a window of more than ABOVE tokens: one block of its queries."""
    pid = tl.program_id(0)
    first, h, b = (pid % blocks) * BLOCK, (pid // blocks) % H, pid // (blocks * H)
    begin_q, length_q = span(cu_q, b)
    begin_k, length_k = span(cu_k, b)
    if (tl.maximum(length_q, length_k) <= ABOVE) | (first >= length_q):
        return
    decay = decay_of(time_decay, h, ACC, HAS_DECAY)
    query = load_rows(q, begin_q, first, length_q, stride_q, h, D, BLOCK, BLOCK_D).to(OPERAND)
    dout = load_rows(grad, begin_q, first, length_q, stride_out, h, D, BLOCK, BLOCK_D).to(OPERAND)
    value = load_rows(out, begin_q, first, length_q, stride_out, h, D, BLOCK, BLOCK_D)
    mean = tl.sum(value.to(ACC) * dout.to(ACC), 1)
    i = first + tl.arange(0, BLOCK)
    tl.store(delta + h.to(tl.int64) * T_q + begin_q + i, mean, mask=i < length_q)
    found = _load_lse(lse + h.to(tl.int64) * T_q, begin_q, first, length_q, BLOCK)
    _, kind_q, second_q = token_facts(modality_q, time_q, begin_q, first, length_q, BLOCK)
    bias = bias_rows(pair_bias, allowed, kind_q, h, KINDS, ACC, BLOCK_M)

    dquery = tl.zeros([BLOCK, BLOCK_D], ACC)
    dbias = tl.zeros([BLOCK_M, BLOCK_M], ACC)
    ddecay = tl.zeros([BLOCK], ACC)
    distance = tl.zeros([BLOCK], ACC)
    residue = tl.zeros([BLOCK], ACC)
    for begin in range(0, length_k, BLOCK_K):
        key = load_rows(k, begin_k, begin, length_k, stride_k, h, D, BLOCK_K, BLOCK_D).to(OPERAND)
        content = load_rows(v, begin_k, begin, length_k, stride_v, h, D, BLOCK_K, BLOCK_D).to(OPERAND)
        real_k, kind_k, second_k = token_facts(modality_k, time_k, begin_k, begin, length_k, BLOCK_K)
        apart = tl.abs(second_q[:, None] - second_k[None, :]).to(ACC)
        hot = hot_rows(kind_k, ACC, BLOCK_M)
        logits = pair_logits(query, key, bias, hot, apart, real_k, decay, scale, ACC, PRECISION, SPLIT, HAS_DECAY)
        weights = tl.exp(logits - found[:, None])
        dlogits = tl.dot(dout, tl.trans(content), input_precision=PRECISION, out_dtype=ACC)
        narrow = _narrow(weights * (dlogits - mean[:, None]), OPERAND)
        if NEED_SHARED and HAS_DECAY:
            distance += tl.sum(weights * apart, 1)
            ddecay -= tl.sum(narrow.to(ACC) * apart, 1)  # of the narrow ones, for want of registers
            residue += tl.sum(narrow.to(ACC), 1)
        dquery = tl.dot(narrow, key, dquery, input_precision=PRECISION, out_dtype=ACC)
        if NEED_SHARED:
            dbias = _pair_sums(kind_q, narrow, hot, dbias, ACC, OPERAND, PRECISION, SPLIT, BLOCK_M)
    store_rows(dq, dquery * scale, begin_q, first, length_q, stride_out, h, D, BLOCK, BLOCK_D)
    if NEED_SHARED:
        # Gradients of a row's logits sum to 0, but for rounding, which long distances would multiply.
        ddecay += residue * distance
        _store_shared(partial, dbias, tl.sum(ddecay, 0), begin_q + first, b, h, H, PER_PLACE, KINDS, HAS_DECAY, BLOCK_M)


@triton.jit
def _backward_keys(
    grad,  # [T_q, H, D]
    q,  # [T_q, H, D]
    k,  # [T_k, H, D]
    v,  # [T_k, H, D]
    lse,  # [H, T_q]
    delta,  # [H, T_q]
    cu_q,  # [B + 1]
    cu_k,  # [B + 1]
    modality_q,  # [T_q]
    modality_k,  # [T_k]
    time_q,  # [T_q]
    time_k,  # [T_k]
    pair_bias,  # [H, M, M]
    allowed,  # [M, M]
    time_decay,  # [H], or empty
    dk,  # [T_k, H, D]
    dv,  # [T_k, H, D]
    H,
    blocks,
    T_q,
    stride_q,
    stride_k,
    stride_v,
    stride_out,
    scale,
    ABOVE: tl.constexpr,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Second pass over a window of more than ABOVE tokens: one block of its keys."""
    pid = tl.program_id(0)
    first, h, b = (pid % blocks) * BLOCK, (pid // blocks) % H, pid // (blocks * H)
    begin_q, length_q = span(cu_q, b)
    begin_k, length_k = span(cu_k, b)
    if (tl.maximum(length_q, length_k) <= ABOVE) | (first >= length_k):
        return
    decay = decay_of(time_decay, h, ACC, HAS_DECAY)
    of_head = h.to(tl.int64) * T_q
    key = load_rows(k, begin_k, first, length_k, stride_k, h, D, BLOCK, BLOCK_D).to(OPERAND)
    content = load_rows(v, begin_k, first, length_k, stride_v, h, D, BLOCK, BLOCK_D).to(OPERAND)
    real_k, kind_k, second_k = token_facts(modality_k, time_k, begin_k, first, length_k, BLOCK)
    hot = hot_rows(kind_k, ACC, BLOCK_M)

    dkey = tl.zeros([BLOCK, BLOCK_D], ACC)
    dcontent = tl.zeros([BLOCK, BLOCK_D], ACC)
    for begin in range(0, length_q, BLOCK):
        query = load_rows(q, begin_q, begin, length_q, stride_q, h, D, BLOCK, BLOCK_D).to(OPERAND)
        dout = load_rows(grad, begin_q, begin, length_q, stride_out, h, D, BLOCK, BLOCK_D).to(OPERAND)
        _, kind_q, second_q = token_facts(modality_q, time_q, begin_q, begin, length_q, BLOCK)
        bias = bias_rows(pair_bias, allowed, kind_q, h, KINDS, ACC, BLOCK_M)
        apart = tl.abs(second_q[:, None] - second_k[None, :]).to(ACC)
        logits = pair_logits(query, key, bias, hot, apart, real_k, decay, scale, ACC, PRECISION, SPLIT, HAS_DECAY)
        weights = tl.exp(logits - _load_lse(lse + of_head, begin_q, begin, length_q, BLOCK)[:, None])
        dcontent = tl.dot(tl.trans(weights.to(OPERAND)), dout, dcontent, input_precision=PRECISION, out_dtype=ACC)
        dlogits = tl.dot(dout, tl.trans(content), input_precision=PRECISION, out_dtype=ACC)
        i = begin + tl.arange(0, BLOCK)
        mean = tl.load(delta + of_head + begin_q + i, mask=i < length_q, other=0)
        narrow = _narrow(weights * (dlogits - mean[:, None]), OPERAND)
        dkey = tl.dot(tl.trans(narrow), query, dkey, input_precision=PRECISION, out_dtype=ACC)
    store_rows(dk, dkey * scale, begin_k, first, length_k, stride_out, h, D, BLOCK, BLOCK_D)
    store_rows(dv, dcontent, begin_k, first, length_k, stride_out, h, D, BLOCK, BLOCK_D)


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


class _Kernels(NamedTuple):
    """Of one head width and number of modalities."""

    whole: tuple[tuple[int, Kernel], ...]
    """(longest window that is left to the ones before it, kernel) of each."""
    above: int
    """The longest window that the last of them does; the other two do longer ones."""
    queries: Kernel
    keys: Kernel


@functools.lru_cache
def _kernels(
    dtype: torch.dtype, width: int, kinds: int, has_decay: bool, need_shared: bool, is_exact: bool
) -> _Kernels:
    size = dtype.itemsize
    starts, above = table.attention_whole(width, kinds, size)
    queries, keys = table.attention_queries(width, kinds, size), table.attention_keys(width, kinds, size)
    # Three tf32 products split their factors into more registers than most of these kernels leave.
    exact = constants(dtype, width, kinds, has_decay, True)
    exact |= {"PER_PLACE": queries.blocks["BLOCK"], "NEED_SHARED": need_shared}
    whole = tuple((floor, Kernel(_backward_whole, launch, ABOVE=floor, **exact)) for floor, launch in starts)
    of_keys = constants(dtype, width, kinds, has_decay, is_exact or width > 64)
    of_queries = Kernel(_backward_queries, queries, ABOVE=above, **exact)
    return _Kernels(whole, above, of_queries, Kernel(_backward_keys, keys, ABOVE=above, **of_keys))


@functools.lru_cache
def _sum(dtype: torch.dtype) -> Kernel:
    return Kernel(_sum_places, table.sum_places(), ACC=accumulate_in(dtype))


def sum_in_order(partial: Tensor, first: Tensor, second: Tensor) -> None:
    """Sums of the rows of partial, in groups first where they are many; a row holds what `first` and `second` do."""
    (places, both), more, kernel = partial.shape, second.shape[0], _sum(partial.dtype)
    columns, across = both - more, table.tiles(both, kernel.blocks["BLOCK_C"])
    groups = table.sum_groups(places)
    if groups > 1:
        summed = partial.new_empty(groups, both)
        sizes = (places, columns, more, table.tiles(places, groups), both)
        kernel.start((across, groups), (partial, summed, summed[0, columns:]), (), sizes)
        partial, places = summed, groups
    kernel.start((across, 1), (partial, first, second), (), (places, columns, more, places, 0))


def modality_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *sides: Any, may_share: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.modality_attention_backward`."""
    *attended, need_shared = sides
    known, (tokens_q, heads, width), tokens_k = Sides(*attended), q.shape, k.shape[0]
    batch, kinds, longest = known.cu_q.shape[0] - 1, known.pair_bias.shape[1], max(known.max_q, known.max_k)
    if width > table.MAX_HEAD_WIDTH or batch == 0:
        return reference.modality_attention_backward(grad, q, k, v, out, lse, *sides)
    (q, stride_q), (k, stride_k), (v, stride_v) = heads_of_rows(q), heads_of_rows(k), heads_of_rows(v)
    grad, out = grad.contiguous(), out.contiguous()
    dq = q.new_empty(tokens_q, heads, width)
    dk, dv = k.new_empty(tokens_k, heads, width), v.new_empty(tokens_k, heads, width)
    dbias, ddecay, partial = known.pair_bias.new_empty(0), known.time_decay.new_empty(0), lse
    kernels = _kernels(q.dtype, width, kinds, known.has_decay, need_shared, is_exact())
    block = kernels.queries.blocks["BLOCK"]
    if need_shared:
        dbias, ddecay = (t.new_empty(t.shape) for t in (known.pair_bias, known.time_decay))
        # Zero where no program leaves its part: empty windows, and the room for blocks that are not full.
        places = tokens_q // block + batch
        partial = lse.new_zeros(places, dbias.numel() + ddecay.numel())
    strides = (stride_q, stride_k, stride_v, heads * width)
    facts, scale = known.facts(), known.scale
    for floor, whole in kernels.whole:
        if floor == 0 or longest > floor:
            inputs, sizes = (grad, q, k, v, lse, *facts), (batch, heads, tokens_q, tokens_k, *strides)
            whole.start((batch * heads,), inputs, (dq, dk, dv, partial), sizes, scale)
    if longest > kernels.above:
        delta = torch.empty_like(lse)
        blocks = table.attention_blocks(known.max_q, block)
        inputs, grid = (grad, q, k, v, out, lse, *facts), (batch * heads * blocks,)
        kernels.queries.start(grid, inputs, (dq, delta, partial), (heads, blocks, tokens_q, *strides), scale)
        blocks = table.attention_blocks(known.max_k, kernels.keys.blocks["BLOCK"])
        inputs, grid = (grad, q, k, v, lse, delta, *facts), (batch * heads * blocks,)
        kernels.keys.start(grid, inputs, (dk, dv), (heads, blocks, tokens_q, *strides), scale)
    if need_shared:
        sum_in_order(partial, dbias, ddecay)
    return dq, dk, dv, dbias, ddecay
