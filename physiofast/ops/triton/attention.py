"""`modality_attention`: softmax over blocks of keys, one program for a block of one window's queries and one head.

How a window is cut into blocks follows from its own length alone, so its bits depend neither on its neighbours nor on
how long the longest window of the batch may be, which only sets the number of programs. Two windows of at most 16
tokens share a tile of 32, each in a slot of its own: what it adds to the other is 0 in every sum. The bias of a pair of
modalities is a product of one-hot vectors, as in `reference.attention_weights`; a forbidden one leaves no weight.
NaN in a window's keys or values makes all of its queries NaN, NaN in a query only that one.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.contracts import AttentionSides
from physiofast.ops.triton import table
from physiofast.ops.triton.attention_order import (
    BOUNDS,
    put_in_order,
    rows_of_slots,
    window_between,
)
from physiofast.ops.triton.attention_parts import (
    LEAST_SCALE,
    bias_rows,
    decay_of,
    dot_within_slots,
    has_keys,
    load_rows,
    pair_logits,
    seconds_apart,
    softmax_step,
    span,
    store_rows,
    token_facts,
    within_slots,
    zero_tail,
)
from physiofast.ops.triton.dtypes import is_exact, products
from physiofast.ops.triton.launching import Kernel, by_definition, prepared
from physiofast.ops.triton.parts import fence, one_hot_rows, stages


@triton.jit
def _attend_tile(
    q,  # [T_q, H, D]
    k,  # [T_k, H, D]
    v,  # [T_k, H, D]
    modality_q,  # [T_q]
    modality_k,  # [T_k]
    time_q,  # [T_q]
    time_k,  # [T_k]
    pair_bias,  # [H, M, M]
    allowed,  # [M, M]
    out,  # [T_q, H, D]
    lse,  # [T_q], of this head
    begin_q,
    begin_k,
    first,
    length_q,
    length_k,
    bits,
    h,
    stride_q,
    stride_k,
    stride_out,
    decay,
    scale,
    NUM_MODALITIES: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Queries `first` to `first + BLOCK_Q` of a window over its keys in blocks of BLOCK_K; or of windows in slots."""
    query = load_rows(q, begin_q, first, length_q, stride_q, h, D, BLOCK_Q, BLOCK_D).to(OPERAND)
    # Loaded here, since behind the biases it would wait for modalities, too. With fewer queries than keys there are no
    # registers for both.
    if ONE_BLOCK and BLOCK_Q == BLOCK_K:
        key = load_rows(k, begin_k, 0, length_k, stride_k, h, D, BLOCK_K, BLOCK_D).to(OPERAND)
    _, query_modality, second_q = token_facts(modality_q, time_q, begin_q, first, length_q, NUM_MODALITIES, BLOCK_Q)
    bias = bias_rows(pair_bias, allowed, query_modality, h, scale, NUM_MODALITIES, ACC, BLOCK_M)

    row_max = tl.full([BLOCK_Q], float("-inf"), ACC)
    row_sum = tl.zeros([BLOCK_Q], ACC)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], ACC)
    end = tl.maximum(length_k, 1)
    if ONE_BLOCK:
        end = BLOCK_K  # of a single round the compiler makes no loop, which takes far fewer registers; the same bits
    for begin in tl.range(0, end, BLOCK_K, num_stages=stages()):
        if not (ONE_BLOCK and BLOCK_Q == BLOCK_K):
            key = load_rows(k, begin_k, begin, length_k, stride_k, h, D, BLOCK_K, BLOCK_D).to(OPERAND)
        real_k, key_modality, second_k = token_facts(
            modality_k, time_k, begin_k, begin, length_k, NUM_MODALITIES, BLOCK_K
        )
        one_hot = one_hot_rows(key_modality, ACC, BLOCK_M)
        apart = seconds_apart(second_q, second_k, ACC)
        pair = real_k[None, :]
        if HAS_SLOTS:
            pair = within_slots(pair, bits, BLOCK_K)
        if not ONE_BLOCK:
            fence(begin)
        logits = pair_logits(
            query, key, bias, one_hot, apart, pair, decay, scale, NUM_MODALITIES, ACC, PRECISION, SPLIT, HAS_DECAY
        )
        weights, alpha, row_max = softmax_step(logits, row_max, scale)
        row_sum = row_sum * alpha + tl.sum(weights, 1)
        value = load_rows(v, begin_k, begin, length_k, stride_k, h, D, BLOCK_K, BLOCK_D).to(OPERAND)
        if not ONE_BLOCK:
            acc *= alpha[:, None]
            fence(begin)
        if HAS_SLOTS:
            acc = dot_within_slots(weights.to(OPERAND), value, bits, ACC, PRECISION, BLOCK_K)
        else:
            acc = tl.dot(weights.to(OPERAND), value, acc, input_precision=PRECISION, out_dtype=ACC)

    some = has_keys(row_max, row_sum, scale)
    acc = tl.where(some[:, None], acc * (1 / tl.where(some, row_sum, 1))[:, None], 0)
    store_rows(out, acc, begin_q, first, length_q, stride_out, h, D, BLOCK_Q, BLOCK_D)
    i = first + tl.arange(0, BLOCK_Q)
    row_lse = tl.where(some, row_max * scale + tl.log(tl.where(some, row_sum, 1)), float("-inf"))
    tl.store(lse + begin_q + i, row_lse, mask=i < length_q)


@triton.jit
def _attend_short(
    q,  # [T_q, H, D]
    k,  # [T_k, H, D]
    v,  # [T_k, H, D]
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
    out,  # [T_q, H, D]
    lse,  # [H, T_q]
    B,
    H,
    T_q,
    stride_q,
    stride_k,
    stride_out,
    scale,
    NUM_MODALITIES: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Windows of at most BLOCK tokens, in the order of the batch; those of at most SHARED share tiles of BLOCK_S.

    Program 0 sorts all windows by length for the kernel after this one; the others also fill the tail.
    """
    if tl.program_id(0) == 0:
        put_in_order(cu_q, cu_k, order, B, BLOCK_B)
    else:
        h, b = (tl.program_id(0) - 1) % H, (tl.program_id(0) - 1) // H
        begin_q, length_q = span(cu_q, b)
        begin_k, length_k = span(cu_k, b)
        of_head = lse + h.to(tl.int64) * T_q
        length = tl.maximum(length_q, length_k)
        decay = decay_of(time_decay, h, ACC, HAS_DECAY)
        if (length > SHARED) & (length <= BLOCK):
            _attend_tile(
                q, k, v, modality_q, modality_k, time_q, time_k, pair_bias, allowed, out, of_head, begin_q, begin_k, 0,
                length_q, length_k, 0, h, stride_q, stride_k, stride_out, decay, scale, NUM_MODALITIES, D, ACC, OPERAND,
                PRECISION, SPLIT, HAS_DECAY, True, False, BLOCK, BLOCK, BLOCK_D, BLOCK_M,
            )  # fmt: skip
        elif SHARED > 0 and (length > 0) & (length <= SHARED):
            bits = tl.where(length > 16, 5, 4)
            begins_q, ends_q, begins_k, ends_k, is_taken = rows_of_slots(cu_q, cu_k, b, B, bits, BLOCK_S)
            if is_taken == 0:
                _attend_tile(
                    q, k, v, modality_q, modality_k, time_q, time_k, pair_bias, allowed, out, of_head, begins_q,
                    begins_k, 0, ends_q, ends_k, bits, h, stride_q, stride_k, stride_out, decay, scale, NUM_MODALITIES,
                    D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, True, True, BLOCK_S, BLOCK_S, BLOCK_D, BLOCK_M,
                )  # fmt: skip

        tail = tl.load(cu_q + B)
        zero_tail(out, tail, T_q, stride_out, h, b, B, D, BLOCK, BLOCK_D)
        for first in range(tail + b * BLOCK, T_q, B * BLOCK):
            i = first + tl.arange(0, BLOCK)
            tl.store(of_head + i, tl.full([BLOCK], float("-inf"), ACC), mask=i < T_q)


@triton.jit
def _attend_sorted(
    q,  # [T_q, H, D]
    k,  # [T_k, H, D]
    v,  # [T_k, H, D]
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
    out,  # [T_q, H, D]
    lse,  # [H, T_q]
    B,
    H,
    blocks,
    T_q,
    stride_q,
    stride_k,
    stride_out,
    scale,
    NUM_MODALITIES: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    ABOVE: tl.constexpr,
    UPTO: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A block of queries of a window of more than ABOVE and at most UPTO tokens; with UPTO 0, of any more."""
    pid = tl.program_id(0)
    first, h = (pid % blocks) * BLOCK_Q, (pid // blocks) % H
    window, is_there = window_between(order, B, pid // (blocks * H), ABOVE, UPTO)
    begin_q, length_q = span(cu_q, window)
    begin_k, length_k = span(cu_k, window)
    if is_there & (first < length_q):
        decay = decay_of(time_decay, h, ACC, HAS_DECAY)
        _attend_tile(
            q, k, v, modality_q, modality_k, time_q, time_k, pair_bias, allowed, out, lse + h.to(tl.int64) * T_q,
            begin_q, begin_k, first, length_q, length_k, 0, h, stride_q, stride_k, stride_out, decay, scale,
            NUM_MODALITIES, D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, UPTO == BLOCK_K, False, BLOCK_Q, BLOCK_K,
            BLOCK_D, BLOCK_M,
        )  # fmt: skip


# ---- launching ---------------------------------------------------------------------------------------------------


def constants(dtype: torch.dtype, width: int, num_modalities: int, has_decay: bool, exact: bool) -> dict[str, Any]:
    """What a kernel of attention is compiled for; `exact` ones multiply float32 in full."""
    return products(dtype, exact) | {
        "NUM_MODALITIES": num_modalities,
        "D": width,
        "SPLIT": 16 if dtype == torch.bfloat16 else 32 * (dtype.itemsize == 2 or (dtype.itemsize == 4 and not exact)),
        "HAS_DECAY": has_decay,
    }


class _Kernels(NamedTuple):
    """Of one head width and number of modalities."""

    short: Kernel
    sorted: tuple[tuple[table.SortedLaunch, Kernel], ...]


@functools.lru_cache
def _kernels(dtype: torch.dtype, width: int, num_modalities: int, has_decay: bool, exact: bool) -> _Kernels:
    known = constants(dtype, width, num_modalities, has_decay, exact)
    launches = table.attention(width, num_modalities, dtype.itemsize, has_decay)
    by_length = tuple((one, Kernel(_attend_sorted, one.launch, **known, **one.constants)) for one in launches.sorted)
    return _Kernels(Kernel(_attend_short, launches.short, SHARED=launches.shared, **known), by_length)


def heads_of_rows(*tensors: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """The tensors [T, H, D] with a token's heads side by side and tokens as far apart in all of them; and how far.

    They are themselves where they lie so, as keys and values of a fused projection do.
    """
    strides = {x.stride() for x in tensors}
    of_token, *of_others = strides.pop()
    _, heads, width = tensors[0].shape
    if not strides and of_others == [width, 1]:
        return tensors, of_token
    return tuple(x.contiguous() for x in tensors), heads * width


def is_served(width: int, sides: AttentionSides, *strides: int) -> bool:
    """Whether the kernels have room for heads so wide, and for windows whose tokens lie so far apart.

    They reckon in units of the scale, which therefore has to be positive; whatever else is left to the definition.
    """
    longest = max(sides.max_q, sides.max_k)
    return width <= table.MAX_HEAD_WIDTH and not sides.scale < LEAST_SCALE and longest * max(strides) < 1 << 31


@prepared(as_they_lie=(0, 1, 2))
def modality_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """As `reference.modality_attention`."""
    sides = AttentionSides(*rest)
    places, heads, width = q.shape
    batch, num_modalities = sides.cu_q.shape[0] - 1, sides.num_modalities
    (rows_q, stride_q), (rows_k, stride_k) = heads_of_rows(q), heads_of_rows(k, v)
    if batch == 0 or not is_served(width, sides, stride_q, stride_k):
        return by_definition(reference.modality_attention)
    are_rows = all(map(operator.is_, (q, k, v), (*rows_q, *rows_k)))
    kernels = _kernels(q.dtype, width, num_modalities, sides.has_decay, is_exact())
    like, sizes = (q, k, v, *sides.contiguous()), (places, stride_q, stride_k, heads * width)
    launches = [kernels.short.prepare((batch * heads + 1,), like, (batch, heads, *sizes))]
    for one, kernel in kernels.sorted:
        blocks = one.blocks(sides.max_q, sides.max_k)
        if blocks > 0:
            launches.append(kernel.prepare((batch * heads * blocks,), like, (batch, heads, blocks, *sizes)))
    of_lse = reference.accumulator(q)

    def run(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if not are_rows:
            ((q,), _), ((k, v), _) = heads_of_rows(q), heads_of_rows(k, v)
        *tensors, scale, _, _ = rest
        inputs = (q, k, v, cu_q, *tensors)
        out, lse = q.new_empty(places, heads, width), q.new_empty(heads, places, dtype=of_lse)
        outputs = (cu_q.new_empty(batch + BOUNDS), out, lse)
        for launch in launches:
            launch(inputs, outputs, scale)
        return out, lse

    return run
