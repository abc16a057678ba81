"""Gradients of `modality_attention`: weights from the log-sum-exp, nothing of all pairs stored, no atomics.

A window that fits one block is done by one program for each head, the shortest ones several a program; longer ones take
two passes (`attention_backward_long`). Gradients of biases and decay are summed over programs in `attention_sums`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.contracts import AttentionSides
from physiofast.ops.projection import room_for_gradients
from physiofast.ops.triton import table
from physiofast.ops.triton.attention import constants, heads_of_rows, is_served
from physiofast.ops.triton.attention_backward_long import backward_keys, backward_queries
from physiofast.ops.triton.attention_order import (
    BOUNDS,
    put_in_order,
    rows_of_slots,
    window_between,
)
from physiofast.ops.triton.attention_parts import (
    bias_rows,
    decay_of,
    dot_within_slots,
    load_lse,
    load_rows,
    narrow_for_product,
    pair_logits,
    seconds_apart,
    span,
    store_rows,
    token_facts,
    weights_of,
    within_slots,
    zero_tail,
)
from physiofast.ops.triton.attention_sums import no_sums, pair_sums, store_shared, sum_in_order, with_block
from physiofast.ops.triton.dtypes import is_exact
from physiofast.ops.triton.launching import Kernel, by_definition
from physiofast.ops.triton.parts import one_hot_rows, product


@triton.jit
def _tile_gradients(
    pointers,  # to the tensors of `_backward_short`, without ends, decay and order; lse [T_q] is of this head
    begin_q,
    begin_k,
    length_q,
    length_k,
    bits,
    token,
    b,
    h,
    H,
    strides,  # of q, k and v, out, dq, dk and dv
    decay,
    scale,
    PER_PLACE: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    NEED_SHARED: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """All gradients of one head of a window, or of windows in slots; `token` is the first query, of window b.

    With BLOCK_W 0 it takes fewer registers and more instructions.
    """
    grad, q, k, v, lse, modality_q, modality_k, time_q, time_k, pair_bias, allowed, dq, dk, dv, partial = pointers
    stride_q, stride_k, stride_out, stride_dq, stride_dk = strides
    query = load_rows(q, begin_q, 0, length_q, stride_q, h, D, BLOCK, BLOCK_D).to(OPERAND)
    key = load_rows(k, begin_k, 0, length_k, stride_k, h, D, BLOCK, BLOCK_D).to(OPERAND)
    _, query_modality, second_q = token_facts(modality_q, time_q, begin_q, 0, length_q, NUM_MODALITIES, BLOCK)
    real_k, key_modality, second_k = token_facts(modality_k, time_k, begin_k, 0, length_k, NUM_MODALITIES, BLOCK)
    bias = bias_rows(pair_bias, allowed, query_modality, h, scale, NUM_MODALITIES, ACC, BLOCK_M)
    apart = seconds_apart(second_q, second_k, ACC)
    pair = real_k[None, :]
    if HAS_SLOTS:
        pair = within_slots(pair, bits, BLOCK)

    one_hot = one_hot_rows(key_modality, ACC, BLOCK_M)
    logits = pair_logits(
        query, key, bias, one_hot, apart, pair, decay, scale, NUM_MODALITIES, ACC, PRECISION, SPLIT, HAS_DECAY
    )
    weights = weights_of(logits, load_lse(lse, begin_q, 0, length_q, BLOCK), scale, HAS_DECAY and BLOCK_W == 0)
    if HAS_SLOTS:  # NaN of one window would spread to the others
        weights = tl.where(pair, weights, 0)
    dout = load_rows(grad, begin_q, 0, length_q, stride_out, h, D, BLOCK, BLOCK_D).to(OPERAND)
    value = load_rows(v, begin_k, 0, length_k, stride_k, h, D, BLOCK, BLOCK_D).to(OPERAND)
    turned = tl.trans(weights.to(OPERAND))
    dvalue = _times(turned, dout, bits, ACC, PRECISION, HAS_SLOTS, BLOCK)
    store_rows(dv, dvalue, begin_k, 0, length_k, stride_dk, h, D, BLOCK, BLOCK_D)

    # Seconds are loaded again: to keep them alive would take as many registers as the weights. What follows from them
    # is compiled only if `store_shared` stores it.
    _, _, second_q = token_facts(modality_q, time_q, begin_q, 0, length_q, NUM_MODALITIES, BLOCK)
    _, _, second_k = token_facts(modality_k, time_k, begin_k, 0, length_k, NUM_MODALITIES, BLOCK)
    # A row's dlogits sum to 0, so distances may be taken from their mean: less cancels.
    IS_ALONE: tl.constexpr = SPLIT == 0  # without tensor cores a thread may hold a single element
    distance = tl.sum(product(weights, seconds_apart(second_q, second_k, ACC), IS_ALONE), 1)
    dlogits = tl.dot(dout, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
    if HAS_SLOTS:
        dlogits = tl.where(pair, dlogits, 0)
    dlogits = weights * (dlogits - tl.sum(product(weights, dlogits, IS_ALONE), 1)[:, None])
    if HAS_SLOTS:
        dlogits = tl.where(pair, dlogits, 0)
    narrow = narrow_for_product(dlogits, OPERAND)
    apart = seconds_apart(second_q, second_k, ACC)
    # Of `narrow`: there are no registers to keep `dlogits`, too.
    ddecay = -tl.sum(product(narrow.to(ACC), apart - distance[:, None], IS_ALONE))
    if NEED_SHARED:
        sums = no_sums(ACC, BLOCK, BLOCK_M, BLOCK_W)
        sums = with_block(
            sums, query_modality, key_modality, one_hot, narrow, ACC, OPERAND, PRECISION, SPLIT, BLOCK_M, BLOCK_W
        )
        dbias = pair_sums(sums, query_modality, ACC, PRECISION, SPLIT, BLOCK_M, BLOCK_W)
        store_shared(partial, dbias, ddecay, token, b, h, H, PER_PLACE, NUM_MODALITIES, HAS_DECAY, BLOCK_M, BLOCK_W)
    dquery = _times(narrow, key, bits, ACC, PRECISION, HAS_SLOTS, BLOCK) * scale
    store_rows(dq, dquery, begin_q, 0, length_q, stride_dq, h, D, BLOCK, BLOCK_D)
    dkey = _times(tl.trans(narrow), query, bits, ACC, PRECISION, HAS_SLOTS, BLOCK) * scale
    store_rows(dk, dkey, begin_k, 0, length_k, stride_dk, h, D, BLOCK, BLOCK_D)


@triton.jit
def _times(weights, x, bits, ACC: tl.constexpr, PRECISION: tl.constexpr, HAS_SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """weights @ x."""
    if HAS_SLOTS:
        total = dot_within_slots(weights, x, bits, ACC, PRECISION, BLOCK)
    else:
        total = tl.dot(weights, x, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def _backward_short(
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
    order,  # [B + BOUNDS]
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
    stride_out,
    stride_dq,
    stride_dk,
    scale,
    PER_PLACE: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    NEED_SHARED: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Windows of at most BLOCK tokens, in the order of the batch; those of at most SHARED share tiles of BLOCK_S.

    Program 0 sorts all windows by length for the kernels after this one; the others also fill the tails.
    """
    if tl.program_id(0) == 0:
        put_in_order(cu_q, cu_k, order, B, BLOCK_B)
    else:
        h, b = (tl.program_id(0) - 1) % H, (tl.program_id(0) - 1) // H
        begin_q, length_q = span(cu_q, b)
        begin_k, length_k = span(cu_k, b)
        length = tl.maximum(length_q, length_k)
        decay = decay_of(time_decay, h, ACC, HAS_DECAY)
        of_head = lse + h.to(tl.int64) * T_q
        pointers = (
            grad, q, k, v, of_head, modality_q, modality_k, time_q, time_k, pair_bias, allowed, dq, dk, dv, partial,
        )  # fmt: skip
        strides = (stride_q, stride_k, stride_out, stride_dq, stride_dk)
        if (length > SHARED) & (length <= BLOCK):
            _tile_gradients(
                pointers, begin_q, begin_k, length_q, length_k, 0, begin_q, b, h, H, strides, decay, scale, PER_PLACE,
                NUM_MODALITIES, D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, NEED_SHARED, False, BLOCK, BLOCK_D,
                BLOCK_M, 0,
            )  # fmt: skip
        elif SHARED > 0 and (length > 0) & (length <= SHARED):
            bits = tl.where(length > 16, 5, 4)
            begins_q, ends_q, begins_k, ends_k, is_taken = rows_of_slots(cu_q, cu_k, b, B, bits, BLOCK_S)
            if is_taken == 0:
                _tile_gradients(
                    pointers, begins_q, begins_k, ends_q, ends_k, bits, begin_q, b, h, H, strides, decay, scale,
                    PER_PLACE, NUM_MODALITIES, D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, NEED_SHARED, True, BLOCK_S,
                    BLOCK_D, BLOCK_M, 0,
                )  # fmt: skip
        zero_tail(dq, tl.load(cu_q + B), T_q, stride_dq, h, b, B, D, BLOCK, BLOCK_D)
        zero_tail(dk, tl.load(cu_k + B), T_k, stride_dk, h, b, B, D, BLOCK, BLOCK_D)
        zero_tail(dv, tl.load(cu_k + B), T_k, stride_dk, h, b, B, D, BLOCK, BLOCK_D)


@triton.jit
def _backward_sorted(
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
    order,  # [B + BOUNDS]
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
    stride_out,
    stride_dq,
    stride_dk,
    scale,
    PER_PLACE: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    NEED_SHARED: tl.constexpr,
    ABOVE: tl.constexpr,
    UPTO: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Windows of more than ABOVE and at most UPTO tokens, which fit BLOCK_Q."""
    h = tl.program_id(0) % H
    b, is_there = window_between(order, B, tl.program_id(0) // H, ABOVE, UPTO)
    begin_q, length_q = span(cu_q, b)
    begin_k, length_k = span(cu_k, b)
    if is_there:
        decay = decay_of(time_decay, h, ACC, HAS_DECAY)
        of_head = lse + h.to(tl.int64) * T_q
        pointers = (
            grad, q, k, v, of_head, modality_q, modality_k, time_q, time_k, pair_bias, allowed, dq, dk, dv, partial,
        )  # fmt: skip
        strides = (stride_q, stride_k, stride_out, stride_dq, stride_dk)
        _tile_gradients(
            pointers, begin_q, begin_k, length_q, length_k, 0, begin_q, b, h, H, strides, decay, scale, PER_PLACE,
            NUM_MODALITIES, D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, NEED_SHARED, False, BLOCK_Q, BLOCK_D, BLOCK_M,
            BLOCK_W,
        )  # fmt: skip


class _Kernels(NamedTuple):
    """Of one head width and number of modalities."""

    short: Kernel
    sorted: tuple[tuple[table.SortedLaunch, Kernel], ...]
    above: int
    """The longest window that these do; the other two do longer ones."""
    queries: Kernel
    keys: Kernel


@functools.lru_cache
def _kernels(
    dtype: torch.dtype, width: int, num_modalities: int, has_decay: bool, need_shared: bool, is_exact: bool
) -> _Kernels:
    size = dtype.itemsize
    # Three tf32 products split their factors into more registers than most of these kernels leave.
    exact = constants(dtype, width, num_modalities, has_decay, True)
    launches = table.attention_whole(width, num_modalities, size, has_decay and exact["SPLIT"] == 32)
    above = launches.longest
    queries = table.attention_queries(width, num_modalities, size, has_decay)
    keys = table.attention_keys(width, num_modalities, size, has_decay)
    exact |= {"PER_PLACE": queries.blocks["BLOCK"], "NEED_SHARED": need_shared}
    by_length = tuple((one, Kernel(_backward_sorted, one.launch, **exact, **one.constants)) for one in launches.sorted)
    of_keys = constants(dtype, width, num_modalities, has_decay, is_exact or width > 64)
    return _Kernels(
        Kernel(_backward_short, launches.short, SHARED=launches.shared, **exact),
        by_length,
        above,
        Kernel(backward_queries, queries, ABOVE=above, **exact),
        Kernel(backward_keys, keys, ABOVE=above, **of_keys),
    )


def modality_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any, may_share: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.modality_attention_backward`."""
    *attended, need_shared = rest
    sides, (tokens_q, heads, width), tokens_k = AttentionSides(*attended), q.shape, k.shape[0]
    batch, num_modalities = sides.cu_q.shape[0] - 1, sides.num_modalities
    ((q,), stride_q), ((k, v), stride_k) = heads_of_rows(q), heads_of_rows(k, v)
    if batch == 0 or not is_served(width, sides, stride_q, stride_k):
        defined = by_definition(reference.modality_attention_backward)
        return defined(grad, q, k, v, out, lse, *rest, may_share=may_share)
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    starts_aligned = heads * width * q.element_size() % 16 == 0  # as outputs have to
    dq, dk, dv = room_for_gradients((q, k, v), may_share and starts_aligned)
    dbias, ddecay, partial = sides.pair_bias.new_empty(0), sides.time_decay.new_empty(0), lse
    kernels = _kernels(q.dtype, width, num_modalities, sides.has_decay, need_shared, is_exact())
    block = kernels.queries.blocks["BLOCK"]
    if need_shared:
        dbias, ddecay = (t.new_empty(t.shape) for t in (sides.pair_bias, sides.time_decay))
        # Zero where no program leaves its part: empty windows, and the room for blocks that are not full.
        places = tokens_q // block + batch
        partial = lse.new_zeros(places, dbias.numel() + ddecay.numel())
    strides, scale = (stride_q, stride_k, heads * width), sides.scale
    stride_dq, stride_dk = dq.stride(0), dk.stride(0)
    facts, order = sides.contiguous(), sides.cu_q.new_empty(batch + BOUNDS)
    inputs, outputs = (grad, q, k, v, lse, *facts), (order, dq, dk, dv, partial)
    sizes = (batch, heads, tokens_q, tokens_k, *strides, stride_dq, stride_dk)
    kernels.short.start((batch * heads + 1,), inputs, outputs, sizes, scale)
    for one, kernel in kernels.sorted:
        kernel.start((batch * heads * one.blocks(sides.max_q, sides.max_k),), inputs, outputs, sizes, scale)
    if max(sides.max_q, sides.max_k) > kernels.above:
        delta = torch.empty_like(lse)
        blocks = table.attention_blocks(sides.max_q, block)
        inputs, grid = (grad, q, k, v, out, lse, *facts), (batch * heads * blocks,)
        of_windows = (batch, heads, blocks, tokens_q, *strides)
        kernels.queries.start(grid, inputs, (order, dq, delta, partial), (*of_windows, stride_dq), scale)
        blocks = table.attention_blocks(sides.max_k, kernels.keys.blocks["BLOCK"])
        inputs, grid = (grad, q, k, v, lse, delta, *facts), (batch * heads * blocks,)
        of_windows = (batch, heads, blocks, tokens_q, *strides)
        kernels.keys.start(grid, inputs, (order, dk, dv), (*of_windows, stride_dk), scale)
    if need_shared:
        sum_in_order(partial, dbias, ddecay)
    return dq, dk, dv, dbias, ddecay
