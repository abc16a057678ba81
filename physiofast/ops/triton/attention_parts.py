"""What kernels of attention share: tokens' rows and facts, logits of a tile of queries and keys.

A tile holds tokens of one window; its `begin` and `length` are then scalars. Or it holds several short windows in slots
of equal lengths; then they are [BLOCK], for each row those of its window: see `attention_order.rows_of_slots`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from physiofast.ops import reference

FORBIDDEN = tl.constexpr(reference.FORBIDDEN)
"""Logit of a forbidden pair. Its weight is exactly 0 beside any logit above half of it.

It is finite, also times log2(e): -inf would become NaN when it is multiplied by 0 or subtracted from itself.
"""
LEAST_SCALE = 2.0**-20
"""Smallest scale that kernels take. They keep logits divided by it, so that q @ k needs no multiplication."""


@triton.jit
def span(cu, b):
    """(first place, tokens) of window b."""
    begin = tl.load(cu + b)
    return begin, tl.load(cu + b + 1) - begin


@triton.jit
def rows_from(x, begin, stride, h, D: tl.constexpr):
    """Pointer to head h of a window's first token; [BLOCK, 1] in slots, of each row's window.

    Offsets from there fit 32 bits, which take fewer instructions and registers.
    """
    rows = x + begin.to(tl.int64) * stride + h * D
    if len(begin.shape) > 0:
        rows = rows[:, None]
    return rows


@triton.jit
def load_rows(x, begin, first, length, stride, h, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D], head h of a window's tokens from `first` on; zeros from `length` on."""
    i = first + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    mask = (i < length)[:, None]
    if D < BLOCK_D:
        mask = mask & (d < D)[None, :]
    return tl.load(rows_from(x, begin, stride, h, D) + (i * stride)[:, None] + d[None, :], mask=mask, other=0)


@triton.jit
def store_rows(x, values, begin, first, length, stride, h, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Head h of a window's tokens from `first` to `length`."""
    i = first + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    mask = (i < length)[:, None]
    if D < BLOCK_D:
        mask = mask & (d < D)[None, :]
    rows = rows_from(x, begin, stride, h, D) + (i * stride)[:, None] + d[None, :]
    tl.store(rows, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def zero_tail(x, begin, T, stride, h, worker, workers, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """This worker's share of the places from `begin` on, which no token fills."""
    nothing = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for after in range(worker * BLOCK, T - begin, workers * BLOCK):
        store_rows(x, nothing, begin + after, 0, T - begin - after, stride, h, D, BLOCK, BLOCK_D)


@triton.jit
def token_facts(modality, time_s, begin, first, length, NUM_MODALITIES: tl.constexpr, BLOCK: tl.constexpr):
    """(which are tokens, modality, seconds) [BLOCK] of a window's tokens from `first` on.

    Modality is -1 where there is no bias for it, and NUM_MODALITIES where there is no token.
    """
    i = first + tl.arange(0, BLOCK)
    real = i < length
    modality_tile = tl.load(modality + begin + i, mask=real, other=-1)
    modality_tile = tl.where(real, tl.where(modality_tile < NUM_MODALITIES, modality_tile, -1), NUM_MODALITIES)
    return real, modality_tile, tl.load(time_s + begin + i, mask=real, other=0)


@triton.jit
def load_lse(lse, begin, first, length, BLOCK: tl.constexpr):
    """[BLOCK]; +inf, so that all weights are 0, where there is no query or none that has an allowed key."""
    i = first + tl.arange(0, BLOCK)
    row_lse = tl.load(lse + begin + i, mask=i < length, other=float("inf"))
    return tl.where(row_lse == float("-inf"), float("inf"), row_lse)


@triton.jit
def narrow_for_product(x, OPERAND: tl.constexpr):
    """x in the dtype of products; clamped to float16's range, for an infinity would become NaN in a sum."""
    if OPERAND == tl.float16:  # noqa: SIM300
        x = tl.maximum(x, -65504.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return x.to(OPERAND)


@triton.jit
def weights_of(logits, lse, scale, FEW_REGISTERS: tl.constexpr):
    """[BLOCK_Q, BLOCK_K], exp(logit - lse), of logits in units of the scale.

    By exp2, which is one instruction; `tl.exp` needs more instructions but fewer registers. Rounding can make the
    difference positive, by much where logits are large: clamp it to 0.
    """
    below = tl.minimum(logits * scale - lse[:, None], 0.0, propagate_nan=tl.PropagateNan.ALL)
    if FEW_REGISTERS:
        weights = tl.exp(below)
    else:
        weights = tl.exp2(below * 1.4426950408889634)
    return weights


@triton.jit
def softmax_step(logits, row_max, scale):
    """(weights [BLOCK_Q, BLOCK_K], alpha [BLOCK_Q], the factor of sums over earlier keys, the new row_max).

    Logits are in units of the scale, and subtracted before they are multiplied: equal ones have a weight of exactly 1.
    """
    new_max = tl.maximum(row_max, tl.max(logits, 1))
    weights = tl.exp2((logits - new_max[:, None]) * (scale * 1.4426950408889634))
    return weights, tl.exp2((row_max - new_max) * (scale * 1.4426950408889634)), new_max


@triton.jit
def seconds_apart(second_q, second_k, ACC: tl.constexpr):
    """[BLOCK_Q, BLOCK_K] between queries and keys."""
    return tl.abs(second_q.to(ACC)[:, None] - second_k.to(ACC)[None, :])


@triton.jit
def within_slots(pair, bits, BLOCK: tl.constexpr):
    """Those of the pairs whose query and key are in the same slot of 2^bits tokens."""
    slot = tl.arange(0, BLOCK) >> bits
    return pair & (slot[:, None] == slot[None, :])


@triton.jit
def dot_within_slots(weights, x, bits, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    """weights @ x, slot by slot: weights between slots are 0, but 0 times infinity or NaN would be NaN."""
    slot = (tl.arange(0, BLOCK) >> bits)[:, None]
    total = tl.dot(weights, tl.where(slot == 0, x, 0), input_precision=PRECISION, out_dtype=ACC)
    for s in tl.static_range(1, BLOCK // 16):
        of_slot = tl.dot(weights, tl.where(slot == s, x, 0), input_precision=PRECISION, out_dtype=ACC)
        total = tl.where(slot == s, of_slot, total)
    return total


@triton.jit
def forbidden(scale):
    """`FORBIDDEN` in units of the scale; finite in these and in units of 1."""
    return (1 / tl.maximum(scale, 1.0)) * FORBIDDEN


@triton.jit
def bias_rows(
    pair_bias,
    allowed,
    query_modality,  # [BLOCK]
    h,
    scale,
    NUM_MODALITIES: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """[BLOCK, BLOCK_M], each query's bias to every key modality, in units of the scale; `forbidden` beyond them."""
    m = tl.arange(0, BLOCK_M)
    known = ((query_modality >= 0) & (query_modality < NUM_MODALITIES))[:, None] & (m < NUM_MODALITIES)[None, :]
    place = query_modality[:, None] * NUM_MODALITIES + m[None, :]
    bias = tl.load(pair_bias + h * NUM_MODALITIES * NUM_MODALITIES + place, mask=known, other=0).to(ACC) * (1 / scale)
    may = (tl.load(allowed + place, mask=known, other=1) != 0) & (m < NUM_MODALITIES)[None, :]
    never = forbidden(scale)
    return tl.where(may & ~(bias < never), bias, never)  # -inf times 0 would be NaN


@triton.jit
def has_keys(row_max, row_sum, scale):
    """[BLOCK], which queries have an allowed key, by its largest logit and the sum of its weights.

    A query with NaN among its logits counts as one: on a GPU the maximum ignores NaN, the sum does not.
    """
    return (row_max > forbidden(scale) / 2) | (row_sum != row_sum)


@triton.jit
def leading_bits(x, SPLIT: tl.constexpr):
    """x as bfloat16 (SPLIT 16); or with the 11 leading bits of its mantissa, which tf32 holds exactly."""
    if SPLIT == 16:
        high = x.to(tl.bfloat16)
    else:
        high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high


@triton.jit
def matmul_one_hot(x, one_hot, acc, ACC: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr):
    """acc + x @ one_hot for one-hot columns: to 16 bits of x where operands are bfloat16, else to 22 bits and more.

    Only x is split, in its leading bits and the rest: ones and zeros are exact as they are. Of tf32 these two products
    take fewer registers than the three of tf32x3.
    """
    if SPLIT == 0:
        acc = tl.dot(x, one_hot, acc, input_precision=PRECISION, out_dtype=ACC)
    else:
        one_hot = one_hot.to(tl.bfloat16 if SPLIT == 16 else ACC)
        high = leading_bits(x, SPLIT)
        acc = tl.dot(high, one_hot, acc, input_precision="tf32", out_dtype=ACC)
        rest = (x - high.to(ACC)).to(high.dtype)  # not before it is needed, for want of registers
        acc = tl.dot(rest, one_hot, acc, input_precision="tf32", out_dtype=ACC)
    return acc


@triton.jit
def sum_by_modality(
    modality, x, acc, ACC: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr
):
    """acc [BLOCK_M, columns] + sums of the rows of x that are of each modality, as precise as `matmul_one_hot`."""
    one_hot = (tl.arange(0, BLOCK_M)[:, None] == modality[None, :]).to(ACC)
    if SPLIT == 0:
        acc = tl.dot(one_hot, x, acc, input_precision=PRECISION, out_dtype=ACC)
    else:
        one_hot = one_hot.to(tl.bfloat16 if SPLIT == 16 else ACC)
        high = leading_bits(x, SPLIT)
        acc = tl.dot(one_hot, high, acc, input_precision="tf32", out_dtype=ACC)
        rest = (x - high.to(ACC)).to(high.dtype)
        acc = tl.dot(one_hot, rest, acc, input_precision="tf32", out_dtype=ACC)
    return acc


@triton.jit
def decay_of(time_decay, h, ACC: tl.constexpr, HAS_DECAY: tl.constexpr):
    """Decay of head h per second; 0 where none was given."""
    decay = 0.0
    if HAS_DECAY:
        decay = tl.load(time_decay + h).to(ACC)
    return decay


@triton.jit
def pair_logits(
    q,  # [BLOCK_Q, BLOCK_D]
    k,  # [BLOCK_K, BLOCK_D]
    bias,  # [BLOCK_Q, BLOCK_M]
    one_hot,  # [BLOCK_K, BLOCK_M]
    apart,  # [BLOCK_Q, BLOCK_K] seconds
    pair,  # [BLOCK_Q, BLOCK_K] or [1, BLOCK_K], which may be looked at
    decay,
    scale,
    NUM_MODALITIES: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
):
    """[BLOCK_Q, BLOCK_K] in units of the scale; `forbidden` or near it where a weight is 0.

    Without a decay seconds are unused, so that the compiler drops their loads. Padding keys have modality
    NUM_MODALITIES, whose bias column is forbidden; the explicit mask is needed only in slots, or if BLOCK_M has no
    spare column.
    """
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
    logits = matmul_one_hot(bias, tl.trans(one_hot), logits, ACC, PRECISION, SPLIT)
    if HAS_DECAY:
        logits -= (decay / scale) * apart
    if pair.shape[0] > 1 or one_hot.shape[1] == NUM_MODALITIES:
        logits = tl.where(pair, logits, forbidden(scale))
    return logits
