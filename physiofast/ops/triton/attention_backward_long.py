"""Gradients of `modality_attention` for windows that no block holds, in two passes.

The first takes queries block by block, and leaves every query's sum of weighted gradients for the second, which takes
keys block by block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from physiofast.ops.triton.attention_order import window_between
from physiofast.ops.triton.attention_parts import (
    bias_rows,
    decay_of,
    load_lse,
    load_rows,
    narrow_for_product,
    pair_logits,
    seconds_apart,
    span,
    store_rows,
    token_facts,
    weights_of,
)
from physiofast.ops.triton.attention_sums import no_sums, pair_sums, store_shared, with_block
from physiofast.ops.triton.parts import fence, one_hot_rows, product, stages


@triton.jit
def backward_queries(
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
    order,  # [B + BOUNDS]
    dq,  # [T_q, H, D]
    delta,  # [H, T_q]
    partial,  # [places, H * M * M + H], or without a decay [places, H * M * M]
    B,
    H,
    blocks,
    T_q,
    stride_q,
    stride_k,
    stride_out,
    stride_dq,
    scale,
    ABOVE: tl.constexpr,
    PER_PLACE: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
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
    BLOCK_W: tl.constexpr,
):
    """First pass over a window of more than ABOVE tokens: one block of its queries."""
    pid = tl.program_id(0)
    first, h = (pid % blocks) * BLOCK, (pid // blocks) % H
    b, is_there = window_between(order, B, pid // (blocks * H), ABOVE, 0)
    begin_q, length_q = span(cu_q, b)
    begin_k, length_k = span(cu_k, b)
    if (is_there == 0) | (first >= length_q):
        return
    decay = decay_of(time_decay, h, ACC, HAS_DECAY)
    query = load_rows(q, begin_q, first, length_q, stride_q, h, D, BLOCK, BLOCK_D).to(OPERAND)
    dout = load_rows(grad, begin_q, first, length_q, stride_out, h, D, BLOCK, BLOCK_D).to(OPERAND)
    output = load_rows(out, begin_q, first, length_q, stride_out, h, D, BLOCK, BLOCK_D)
    row_delta = tl.sum(output.to(ACC) * dout.to(ACC), 1)
    i = first + tl.arange(0, BLOCK)
    tl.store(delta + h.to(tl.int64) * T_q + begin_q + i, row_delta, mask=i < length_q)
    row_lse = load_lse(lse + h.to(tl.int64) * T_q, begin_q, first, length_q, BLOCK)
    _, query_modality, second_q = token_facts(modality_q, time_q, begin_q, first, length_q, NUM_MODALITIES, BLOCK)
    bias = bias_rows(pair_bias, allowed, query_modality, h, scale, NUM_MODALITIES, ACC, BLOCK_M)

    dquery = tl.zeros([BLOCK, BLOCK_D], ACC)
    sums = no_sums(ACC, BLOCK, BLOCK_M, BLOCK_W)
    ddecay = tl.zeros([BLOCK], ACC)
    distance = tl.zeros([BLOCK], ACC)
    residue = tl.zeros([BLOCK], ACC)
    IS_ALONE: tl.constexpr = SPLIT == 0  # without tensor cores a thread may hold a single element
    for begin in range(0, tl.maximum(length_k, 1), BLOCK_K):
        key = load_rows(k, begin_k, begin, length_k, stride_k, h, D, BLOCK_K, BLOCK_D).to(OPERAND)
        value = load_rows(v, begin_k, begin, length_k, stride_k, h, D, BLOCK_K, BLOCK_D).to(OPERAND)
        real_k, key_modality, second_k = token_facts(
            modality_k, time_k, begin_k, begin, length_k, NUM_MODALITIES, BLOCK_K
        )
        apart = seconds_apart(second_q, second_k, ACC)
        one_hot = one_hot_rows(key_modality, ACC, BLOCK_M)
        logits = pair_logits(
            query,
            key,
            bias,
            one_hot,
            apart,
            real_k[None, :],
            decay,
            scale,
            NUM_MODALITIES,
            ACC,
            PRECISION,
            SPLIT,
            HAS_DECAY,
        )
        weights = weights_of(logits, row_lse, scale, False)
        dlogits = tl.dot(dout, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
        narrow = narrow_for_product(product(weights, dlogits - row_delta[:, None], IS_ALONE), OPERAND)
        if NEED_SHARED and HAS_DECAY:
            distance += tl.sum(product(weights, apart, IS_ALONE), 1)
            ddecay -= tl.sum(product(narrow.to(ACC), apart, IS_ALONE), 1)  # as in `_tile_gradients`
            residue += tl.sum(narrow.to(ACC), 1)
        dquery = tl.dot(narrow, key, dquery, input_precision=PRECISION, out_dtype=ACC)
        if NEED_SHARED:
            sums = with_block(
                sums, query_modality, key_modality, one_hot, narrow, ACC, OPERAND, PRECISION, SPLIT, BLOCK_M, BLOCK_W
            )
    store_rows(dq, dquery * scale, begin_q, first, length_q, stride_dq, h, D, BLOCK, BLOCK_D)
    if NEED_SHARED:
        # A row's dlogits sum to 0 but for rounding, which long distances multiply: take them from their mean.
        ddecay += residue * distance
        dbias = pair_sums(sums, query_modality, ACC, PRECISION, SPLIT, BLOCK_M, BLOCK_W)
        store_shared(
            partial,
            dbias,
            tl.sum(ddecay, 0),
            begin_q + first,
            b,
            h,
            H,
            PER_PLACE,
            NUM_MODALITIES,
            HAS_DECAY,
            BLOCK_M,
            BLOCK_W,
        )


@triton.jit
def backward_keys(
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
    order,  # [B + BOUNDS]
    dk,  # [T_k, H, D]
    dv,  # [T_k, H, D]
    B,
    H,
    blocks,
    T_q,
    stride_q,
    stride_k,
    stride_out,
    stride_dk,
    scale,
    ABOVE: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
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
    first, h = (pid % blocks) * BLOCK, (pid // blocks) % H
    b, is_there = window_between(order, B, pid // (blocks * H), ABOVE, 0)
    begin_q, length_q = span(cu_q, b)
    begin_k, length_k = span(cu_k, b)
    if (is_there == 0) | (first >= length_k):
        return
    decay = decay_of(time_decay, h, ACC, HAS_DECAY)
    of_head = h.to(tl.int64) * T_q
    key = load_rows(k, begin_k, first, length_k, stride_k, h, D, BLOCK, BLOCK_D).to(OPERAND)
    value = load_rows(v, begin_k, first, length_k, stride_k, h, D, BLOCK, BLOCK_D).to(OPERAND)
    real_k, key_modality, second_k = token_facts(modality_k, time_k, begin_k, first, length_k, NUM_MODALITIES, BLOCK)
    one_hot = one_hot_rows(key_modality, ACC, BLOCK_M)

    dkey = tl.zeros([BLOCK, BLOCK_D], ACC)
    dvalue = tl.zeros([BLOCK, BLOCK_D], ACC)
    for begin in tl.range(0, tl.maximum(length_q, 1), BLOCK, num_stages=stages()):
        query = load_rows(q, begin_q, begin, length_q, stride_q, h, D, BLOCK, BLOCK_D).to(OPERAND)
        dout = load_rows(grad, begin_q, begin, length_q, stride_out, h, D, BLOCK, BLOCK_D).to(OPERAND)
        _, query_modality, second_q = token_facts(modality_q, time_q, begin_q, begin, length_q, NUM_MODALITIES, BLOCK)
        bias = bias_rows(pair_bias, allowed, query_modality, h, scale, NUM_MODALITIES, ACC, BLOCK_M)
        apart = seconds_apart(second_q, second_k, ACC)
        fence(begin)
        logits = pair_logits(
            query,
            key,
            bias,
            one_hot,
            apart,
            real_k[None, :],
            decay,
            scale,
            NUM_MODALITIES,
            ACC,
            PRECISION,
            SPLIT,
            HAS_DECAY,
        )
        row_lse = load_lse(lse + of_head, begin_q, begin, length_q, BLOCK)
        weights = weights_of(logits, row_lse, scale, D > 64)
        dvalue = tl.dot(tl.trans(weights.to(OPERAND)), dout, dvalue, input_precision=PRECISION, out_dtype=ACC)
        dlogits = tl.dot(dout, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
        i = begin + tl.arange(0, BLOCK)
        row_delta = tl.load(delta + of_head + begin_q + i, mask=i < length_q, other=0)
        narrow = narrow_for_product(weights * (dlogits - row_delta[:, None]), OPERAND)
        dkey = tl.dot(tl.trans(narrow), query, dkey, input_precision=PRECISION, out_dtype=ACC)
    store_rows(dk, dkey * scale, begin_k, first, length_k, stride_dk, h, D, BLOCK, BLOCK_D)
    store_rows(dv, dvalue, begin_k, first, length_k, stride_dk, h, D, BLOCK, BLOCK_D)
