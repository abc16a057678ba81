"""`modality_attention_stats`: what attention looks at, summed over modality pairs while keys stream by.

One program for a window and head; one head more has all logits equal. Sums of a query block are rescaled as softmax's
own total is when a larger logit turns up, so the weights are formed once and never stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.contracts import AttentionSides
from physiofast.ops.triton import table
from physiofast.ops.triton.attention import constants, heads_of_rows, is_served
from physiofast.ops.triton.attention_parts import (
    bias_rows,
    decay_of,
    forbidden,
    has_keys,
    load_rows,
    pair_logits,
    seconds_apart,
    softmax_step,
    span,
    sum_by_modality,
    token_facts,
)
from physiofast.ops.triton.attention_sums import summing
from physiofast.ops.triton.launching import Kernel, by_definition, prepared
from physiofast.ops.triton.parts import one_hot_rows

_TAUS_AT_ONCE = 3
"""More sums do not fit a program's registers; the rest take another pass."""


@triton.jit
def _nothing(NUM: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr):
    """NUM blocks of zeros."""
    sums = ()
    for _ in tl.static_range(NUM):
        sums = sums + (tl.zeros([BLOCK, BLOCK_M], ACC),)  # type: ignore[assignment]  # noqa: RUF005
    return sums


@triton.jit
def _with_block(
    sums,  # NUM of [BLOCK, BLOCK_M]
    alpha,  # [BLOCK]
    weights,  # [BLOCK, BLOCK], queries by keys
    apart,  # [BLOCK, BLOCK] seconds
    one_hot,  # [BLOCK, BLOCK_M], of keys
    TAUS: tl.constexpr,
    NUM: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sums and those of one more block of keys: of weights, seconds, and weights within each tau."""
    updated = ()
    for i in tl.static_range(NUM):
        if i == 0:
            part = weights
        elif i == 1:
            part = weights * apart
        else:
            part = tl.where(apart <= TAUS[i - 2], weights, 0)
        total = tl.dot(part.to(OPERAND), one_hot, sums[i] * alpha[:, None], input_precision=PRECISION, out_dtype=ACC)
        updated = updated + (total,)  # type: ignore[assignment]  # noqa: RUF005
    return updated


@triton.jit
def _with_queries(
    pairs,  # NUM of [BLOCK_M, BLOCK_M], query modality by key modality
    sums,  # NUM of [BLOCK, BLOCK_M]
    share,  # [BLOCK], 1 / sum of a query's weights
    query_modality,  # [BLOCK]
    NUM: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The sums over modality pairs and those of one more block of queries."""
    updated = ()
    for i in tl.static_range(NUM):
        pair = sum_by_modality(query_modality, sums[i] * share[:, None], pairs[i], ACC, PRECISION, SPLIT, BLOCK_M)
        updated = updated + (pair,)  # type: ignore[assignment]  # noqa: RUF005
    return updated


@triton.jit
def _stats(
    q,  # [T_q, H, D]
    k,  # [T_k, H, D]
    cu_q,  # [B + 1]
    cu_k,  # [B + 1]
    modality_q,  # [T_q]
    modality_k,  # [T_k]
    time_q,  # [T_q]
    time_k,  # [T_k]
    pair_bias,  # [H, M, M]
    allowed,  # [M, M]
    time_decay,  # [H], or empty
    partial,  # [B, columns]: sums [NUM, H, M, M] of heads, [NUM, M, M] of the one after them, and queries [M]
    H,
    stride_q,
    stride_k,
    scale,
    TAUS: tl.constexpr,
    NUM: tl.constexpr,
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
    pid = tl.program_id(0)
    h, b = pid % (H + 1), pid // (H + 1)
    begin_q, length_q = span(cu_q, b)
    begin_k, length_k = span(cu_k, b)
    # The head after the last one has all logits 0: no rows of queries and keys, biases or decay.
    is_head = h < H
    factor = tl.where(is_head, is_head.to(ACC) * scale, 1)
    head = tl.where(is_head, h, 0)
    rows_q, rows_k = tl.where(is_head, length_q, 0), tl.where(is_head, length_k, 0)
    decay = tl.where(is_head, decay_of(time_decay, head, ACC, HAS_DECAY), 0)
    m = tl.arange(0, BLOCK_M)
    columns = (H + 1) * NUM * NUM_MODALITIES * NUM_MODALITIES
    row = partial + b.to(tl.int64) * (columns + NUM_MODALITIES)

    count = tl.zeros([BLOCK_M], ACC)
    pairs = _nothing(NUM, ACC, BLOCK_M, BLOCK_M)
    for first in range(0, length_q, BLOCK):
        query = load_rows(q, begin_q, first, rows_q, stride_q, head, D, BLOCK, BLOCK_D).to(OPERAND)
        _, query_modality, second_q = token_facts(modality_q, time_q, begin_q, first, length_q, NUM_MODALITIES, BLOCK)
        bias = bias_rows(pair_bias, allowed, query_modality, head, factor, NUM_MODALITIES, ACC, BLOCK_M)
        bias = tl.where(is_head | (bias < forbidden(factor) / 2), bias, 0)
        row_max = tl.full([BLOCK], float("-inf"), ACC)
        row_sum = tl.zeros([BLOCK], ACC)
        sums = _nothing(NUM, ACC, BLOCK, BLOCK_M)
        for begin in range(0, length_k, BLOCK):
            key = load_rows(k, begin_k, begin, rows_k, stride_k, head, D, BLOCK, BLOCK_D).to(OPERAND)
            real_k, key_modality, second_k = token_facts(
                modality_k, time_k, begin_k, begin, length_k, NUM_MODALITIES, BLOCK
            )
            one_hot = one_hot_rows(key_modality, ACC, BLOCK_M)
            apart = seconds_apart(second_q, second_k, ACC)
            logits = pair_logits(
                query,
                key,
                bias,
                one_hot,
                apart,
                real_k[None, :],
                decay,
                factor,
                NUM_MODALITIES,
                ACC,
                PRECISION,
                SPLIT,
                HAS_DECAY,
            )
            weights, alpha, row_max = softmax_step(logits, row_max, factor)
            row_sum = row_sum * alpha + tl.sum(weights, 1)
            sums = _with_block(sums, alpha, weights, apart, one_hot.to(OPERAND), TAUS, NUM, ACC, OPERAND, PRECISION)
        some = has_keys(row_max, row_sum, factor)
        share = tl.where(some, 1 / tl.where(some, row_sum, 1), 0)
        count += tl.sum(tl.where(some[:, None], one_hot_rows(query_modality, ACC, BLOCK_M), 0), 0)
        pairs = _with_queries(pairs, sums, share, query_modality, NUM, ACC, PRECISION, SPLIT, BLOCK_M)

    inside = (m < NUM_MODALITIES)[:, None] & (m < NUM_MODALITIES)[None, :]
    begin, step = tl.where(is_head, h, NUM * H), tl.where(is_head, H, 1)
    for i in tl.static_range(NUM):
        place = (begin + i * step) * NUM_MODALITIES * NUM_MODALITIES + m[:, None] * NUM_MODALITIES + m[None, :]
        tl.store(row + place, pairs[i], mask=inside)
    if h == H:
        tl.store(row + columns + m, count, mask=m < NUM_MODALITIES)


@functools.lru_cache
def _kernel(dtype: torch.dtype, width: int, num_modalities: int, taus: tuple[float, ...], has_decay: bool) -> Kernel:
    # Three tf32 products split their factors into more registers than the sums leave.
    known = {"TAUS": taus, "NUM": 2 + len(taus)} | constants(dtype, width, num_modalities, has_decay, True)
    return Kernel(_stats, table.attention_stats(width, num_modalities, dtype.itemsize), **known)


def _joined(of_passes: Sequence[Tensor], heads: int) -> Tensor:
    """What one pass would have found: weight and seconds of the first pass alone, and weight within the taus of all."""
    of_heads, of_even = zip(
        *(sums.tensor_split((len(sums) // (heads + 1) * heads,)) for sums in of_passes), strict=True
    )
    near, even_near = [sums[2 * heads :] for sums in of_heads[1:]], [sums[2:] for sums in of_even[1:]]
    return torch.cat([of_heads[0], *near, of_even[0], *even_near])


@prepared(as_they_lie=(0, 1))
def modality_attention_stats(q: Tensor, k: Tensor, *rest: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """As `reference.modality_attention_stats`."""
    *attended, tau_s = rest
    sides = AttentionSides(*attended)
    (_, heads, width), num_modalities, batch = q.shape, sides.num_modalities, sides.cu_q.shape[0] - 1
    ((rows_q,), stride_q), ((rows_k,), stride_k), acc = heads_of_rows(q), heads_of_rows(k), reference.accumulator(q)
    if not is_served(width, sides, stride_q, stride_k):
        return by_definition(reference.modality_attention_stats)
    are_rows, facts = rows_q is q and rows_k is k, (q, k, *sides.contiguous())
    passes = []
    for first in range(0, max(len(tau_s), 1), _TAUS_AT_ONCE):
        taus = tuple(map(float, tau_s[first : first + _TAUS_AT_ONCE]))
        kernel = _kernel(q.dtype, width, num_modalities, taus, sides.has_decay)
        start = kernel.prepare((batch * (heads + 1),), facts, (heads, stride_q, stride_k))
        rows = (heads + 1) * (2 + len(taus))
        columns = rows * num_modalities * num_modalities + num_modalities
        passes.append((rows, columns, start, summing((batch, columns), num_modalities, (acc,) * 3, q.get_device())))

    def run(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if not are_rows:
            ((q,), _), ((k,), _) = heads_of_rows(q), heads_of_rows(k)
        *tensors, scale, _, _, _ = rest
        queries, of_passes = q.new_empty(num_modalities, dtype=acc), []
        for rows, columns, start, add in passes:
            sums, partial = queries.new_empty(rows, num_modalities, num_modalities), queries.new_empty(batch, columns)
            start((q, k, *tensors), (partial,), scale)
            add(partial, sums, queries)
            of_passes.append(sums)
        return of_passes[0] if len(of_passes) == 1 else _joined(of_passes, heads), queries

    return run
