"""`modality_attention`: softmax over blocks of keys, one program for a block of one window's queries and one head.

How a window is cut into blocks follows from its own length alone, so its bits depend neither on its neighbours nor on
how long the longest window of the batch may be, which only sets the number of programs. The bias of a modality pair is
a product of one-hot vectors, as in `reference.attention_weights`; that of a forbidden pair leaves no weight.
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
from physiofast.ops.reference import accumulator
from physiofast.ops.triton import table
from physiofast.ops.triton.assemble import accumulate_in
from physiofast.ops.triton.launching import Kernel, prepared

FORBIDDEN = tl.constexpr(-1e30)
"""A logit whose weight is exactly 0 beside any other; unlike -inf safe to multiply by 0 and to subtract."""


# ---- what attention kernels share --------------------------------------------------------------------------------


@triton.jit
def span(cu, b):
    """(first place, tokens) of window b."""
    begin = tl.load(cu + b)
    return begin, tl.load(cu + b + 1) - begin


@triton.jit
def load_rows(x, begin, first, length, stride, h, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D], head h of a window's tokens from `first` on; zeros from `length` on."""
    i = first + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    place = (begin + i).to(tl.int64)[:, None] * stride + h * D + d[None, :]
    mask = (i < length)[:, None]
    if D < BLOCK_D:
        mask = mask & (d < D)[None, :]
    return tl.load(x + place, mask=mask, other=0)


@triton.jit
def store_rows(x, values, begin, first, length, stride, h, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Head h of a window's tokens from `first` to `length`."""
    i = first + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    place = (begin + i).to(tl.int64)[:, None] * stride + h * D + d[None, :]
    mask = (i < length)[:, None]
    if D < BLOCK_D:
        mask = mask & (d < D)[None, :]
    tl.store(x + place, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def zero_tail(x, begin, T, stride, h, worker, workers, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """This worker's share of the places from `begin` on, which no token fills."""
    for first in range(begin + worker * BLOCK, T, workers * BLOCK):
        store_rows(x, tl.zeros([BLOCK, BLOCK_D], tl.float32), 0, first, T, stride, h, D, BLOCK, BLOCK_D)


@triton.jit
def token_facts(modality, time_s, begin, first, length, BLOCK: tl.constexpr):
    """(which are tokens, modality or -1, seconds) [BLOCK] of a window's tokens from `first` on."""
    i = first + tl.arange(0, BLOCK)
    real = i < length
    kind = tl.load(modality + begin + i, mask=real, other=-1)
    return real, kind, tl.load(time_s + begin + i, mask=real, other=0)


@triton.jit
def bias_rows(pair_bias, allowed, kind, h, KINDS: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr):
    """[BLOCK, BLOCK_M], each query's bias to every key modality."""
    m = tl.arange(0, BLOCK_M)
    known = ((kind >= 0) & (kind < KINDS))[:, None] & (m < KINDS)[None, :]
    place = kind[:, None] * KINDS + m[None, :]
    bias = tl.load(pair_bias + h * KINDS * KINDS + place, mask=known, other=0).to(ACC)
    may = tl.load(allowed + place, mask=known, other=1) != 0
    return tl.where(may, bias, FORBIDDEN)


@triton.jit
def hot_rows(kind, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr):
    """[BLOCK, BLOCK_M] with a one at each token's modality."""
    return (kind[:, None] == tl.arange(0, BLOCK_M)[None, :]).to(DTYPE)


@triton.jit
def leading_bits(x):
    """x with the 11 leading bits of its mantissa, which a tensor core's tf32 takes as they are."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def times_hot(x, hot, total, ACC: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr):
    """total + x @ hot for one-hot columns: to 16 bits of x where operands are bfloat16, else to 22 bits and more."""
    if SPLIT == 0:
        total = tl.dot(x, hot, total, input_precision=PRECISION, out_dtype=ACC)
    elif SPLIT == 16:  # ones and zeros need no splitting: two products do
        narrow = hot.to(tl.bfloat16)
        high = x.to(tl.bfloat16)
        total = tl.dot(high, narrow, total, out_dtype=ACC)
        total = tl.dot((x - high.to(ACC)).to(tl.bfloat16), narrow, total, out_dtype=ACC)
    else:  # and of tf32 two take fewer registers than the three of tf32x3
        leading = leading_bits(x)
        total = tl.dot(leading, hot, total, input_precision="tf32", out_dtype=ACC)
        total = tl.dot(x - leading, hot, total, input_precision="tf32", out_dtype=ACC)
    return total


@triton.jit
def by_kind(kind, x, total, ACC: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr):
    """total [BLOCK_M, columns] + sums of the rows of x that are of each modality, as precise as `times_hot`."""
    hot = (tl.arange(0, BLOCK_M)[:, None] == kind[None, :]).to(ACC)
    if SPLIT == 0:
        total = tl.dot(hot, x, total, input_precision=PRECISION, out_dtype=ACC)
    elif SPLIT == 16:
        narrow = hot.to(tl.bfloat16)
        high = x.to(tl.bfloat16)
        total = tl.dot(narrow, high, total, out_dtype=ACC)
        total = tl.dot(narrow, (x - high.to(ACC)).to(tl.bfloat16), total, out_dtype=ACC)
    else:
        leading = leading_bits(x)
        total = tl.dot(hot, leading, total, input_precision="tf32", out_dtype=ACC)
        total = tl.dot(hot, x - leading, total, input_precision="tf32", out_dtype=ACC)
    return total


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
    hot,  # [BLOCK_K, BLOCK_M]
    apart,  # [BLOCK_Q, BLOCK_K] seconds
    real_k,  # [BLOCK_K]
    decay,
    scale,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
):
    """[BLOCK_Q, BLOCK_K]; `FORBIDDEN` or near it where a weight is 0.

    Without a decay nothing is made of seconds, so that a compiler neither loads nor keeps them.
    """
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * scale
    logits = times_hot(bias, tl.trans(hot), logits, ACC, PRECISION, SPLIT)
    if HAS_DECAY:
        logits -= decay * apart
    return tl.where(real_k[None, :], logits, FORBIDDEN)


# ---- forward ---------------------------------------------------------------------------------------------------


@triton.jit
def _attend_block(
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
    lse,  # [H, T_q]
    begin_q,
    begin_k,
    first,
    length_q,
    length_k,
    h,
    T_q,
    stride_q,
    stride_k,
    stride_v,
    stride_out,
    decay,
    scale,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Queries `first` to `first + BLOCK` of a window, over its keys in blocks of as many."""
    query = load_rows(q, begin_q, first, length_q, stride_q, h, D, BLOCK, BLOCK_D).to(OPERAND)
    _, kind_q, second_q = token_facts(modality_q, time_q, begin_q, first, length_q, BLOCK)
    bias = bias_rows(pair_bias, allowed, kind_q, h, KINDS, ACC, BLOCK_M)

    largest = tl.full([BLOCK], float("-inf"), ACC)
    total = tl.zeros([BLOCK], ACC)
    value = tl.zeros([BLOCK, BLOCK_D], ACC)
    end = length_k
    if ONE_BLOCK:
        end = BLOCK  # a loop of one round is compiled to none, which takes far fewer registers; its bits are the same
    for begin in range(0, end, BLOCK):
        key = load_rows(k, begin_k, begin, length_k, stride_k, h, D, BLOCK, BLOCK_D).to(OPERAND)
        real_k, kind_k, second_k = token_facts(modality_k, time_k, begin_k, begin, length_k, BLOCK)
        hot = hot_rows(kind_k, ACC, BLOCK_M)
        apart = tl.abs(second_q[:, None] - second_k[None, :]).to(ACC)
        logits = pair_logits(query, key, bias, hot, apart, real_k, decay, scale, ACC, PRECISION, SPLIT, HAS_DECAY)
        larger = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp(logits - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        content = load_rows(v, begin_k, begin, length_k, stride_v, h, D, BLOCK, BLOCK_D).to(OPERAND)
        if not ONE_BLOCK:
            value *= shrink[:, None]
        value = tl.dot(weights.to(OPERAND), content, value, input_precision=PRECISION, out_dtype=ACC)
        largest = larger

    some = largest > FORBIDDEN / 2
    value = tl.where(some[:, None], value / tl.where(some, total, 1)[:, None], 0)
    store_rows(out, value, begin_q, first, length_q, stride_out, h, D, BLOCK, BLOCK_D)
    i = first + tl.arange(0, BLOCK)
    found = tl.where(some, largest + tl.log(tl.where(some, total, 1)), float("-inf"))
    tl.store(lse + h.to(tl.int64) * T_q + begin_q + i, found, mask=i < length_q)


@triton.jit
def _attend(
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
    out,  # [T_q, H, D]
    lse,  # [H, T_q]
    B,
    H,
    blocks,
    T_q,
    stride_q,
    stride_k,
    stride_v,
    stride_out,
    scale,
    KINDS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_SHORT: tl.constexpr,
    BLOCK_LONG: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pid = tl.program_id(0)
    i_block, h, b = pid % blocks, (pid // blocks) % H, pid // (blocks * H)
    begin_q, length_q = span(cu_q, b)
    begin_k, length_k = span(cu_k, b)
    decay = decay_of(time_decay, h, ACC, HAS_DECAY)

    # One block of a short window is smaller: a program of its own, not a share of a larger block.
    if tl.maximum(length_q, length_k) <= BLOCK_SHORT:
        if (i_block == 0) & (length_q > 0):
            _attend_block(
                q, k, v, modality_q, modality_k, time_q, time_k, pair_bias, allowed, out, lse,
                begin_q, begin_k, 0, length_q, length_k, h, T_q, stride_q, stride_k, stride_v, stride_out, decay, scale,
                KINDS, D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, True, BLOCK_SHORT, BLOCK_D, BLOCK_M,
            )  # fmt: skip
    elif i_block * BLOCK_LONG < length_q:
        _attend_block(
            q, k, v, modality_q, modality_k, time_q, time_k, pair_bias, allowed, out, lse,
            begin_q, begin_k, i_block * BLOCK_LONG, length_q, length_k, h, T_q, stride_q, stride_k, stride_v,
            stride_out, decay, scale, KINDS, D, ACC, OPERAND, PRECISION, SPLIT, HAS_DECAY, ONE_BLOCK, BLOCK_LONG,
            BLOCK_D, BLOCK_M,
        )  # fmt: skip

    worker, workers = b * blocks + i_block, B * blocks
    tail = tl.load(cu_q + B)
    zero_tail(out, tail, T_q, stride_out, h, worker, workers, D, BLOCK_SHORT, BLOCK_D)
    for first in range(tail + worker * BLOCK_SHORT, T_q, workers * BLOCK_SHORT):
        i = first + tl.arange(0, BLOCK_SHORT)
        nothing = tl.full([BLOCK_SHORT], float("-inf"), ACC)
        tl.store(lse + h.to(tl.int64) * T_q + i, nothing, mask=i < T_q)


# ---- starting ----------------------------------------------------------------------------------------------------


class Sides(NamedTuple):
    """The arguments of `physiofast::modality_attention` after q, k, v."""

    cu_q: Tensor
    cu_k: Tensor
    modality_q: Tensor
    modality_k: Tensor
    time_q: Tensor
    time_k: Tensor
    pair_bias: Tensor
    allowed: Tensor
    time_decay: Tensor
    scale: float
    max_q: int
    max_k: int

    def facts(self) -> tuple[Tensor, ...]:
        """What kernels are given of them, after q, k, v."""
        return (*self[:6], self.pair_bias.contiguous(), self.allowed.contiguous(), self.time_decay.contiguous())

    @property
    def has_decay(self) -> bool:
        """Whether one was given."""
        return self.time_decay.shape[0] > 0


_OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def constants(dtype: torch.dtype, width: int, kinds: int, has_decay: bool, exact: bool) -> dict[str, Any]:
    """What a kernel of attention is compiled for; `exact` ones multiply float32 in full."""
    acc = accumulate_in(dtype)
    return {
        "KINDS": kinds,
        "D": width,
        "ACC": acc,
        "OPERAND": acc if acc == tl.float64 else _OPERANDS[dtype],
        "PRECISION": "ieee" if exact else "tf32x3",
        "SPLIT": 16 if dtype == torch.bfloat16 else 32 * (dtype.itemsize == 2 or (dtype.itemsize == 4 and not exact)),
        "HAS_DECAY": has_decay,
    }


def is_exact() -> bool:
    """Whether PyTorch is set to multiply float32 in full."""
    return torch.get_float32_matmul_precision() == "highest"


@functools.lru_cache
def _kernels(dtype: torch.dtype, width: int, kinds: int, has_decay: bool, exact: bool) -> tuple[Kernel, Kernel]:
    """For any keys; for those of windows that are one block."""
    launch, known = table.attention(width, kinds, dtype.itemsize), constants(dtype, width, kinds, has_decay, exact)
    return Kernel(_attend, launch, ONE_BLOCK=False, **known), Kernel(_attend, launch, ONE_BLOCK=True, **known)


def heads_of_rows(x: Tensor) -> tuple[Tensor, int]:
    """(x [T, H, D], stride of a token): itself where a token's heads lie side by side, as in a fused projection."""
    of_token, of_head, of_feature = x.stride()
    _, heads, width = x.shape
    return (x, of_token) if of_feature == 1 and of_head == width else (x.contiguous(), heads * width)


@prepared
def modality_attention(q: Tensor, k: Tensor, v: Tensor, *sides: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """As `reference.modality_attention`."""
    known = Sides(*sides)
    places, heads, width = q.shape
    batch = known.cu_q.shape[0] - 1
    if width > table.MAX_HEAD_WIDTH or batch == 0:
        return reference.modality_attention
    stay, strides = zip(*(heads_of_rows(x) for x in (q, k, v)), strict=True)
    are_rows = all(map(operator.is_, stay, (q, k, v)))
    kernels = _kernels(q.dtype, width, known.pair_bias.shape[1], known.has_decay, is_exact())
    block = kernels[0].blocks["BLOCK_LONG"]
    blocks = table.attention_blocks(known.max_q, block)
    kernel, sizes = kernels[known.max_k <= block], (batch, heads, blocks, places, *strides, heads * width)
    start = kernel.prepare((batch * heads * blocks,), (q, k, v, *known.facts()), sizes)
    of_lse = accumulator(q)

    def run(q: Tensor, k: Tensor, v: Tensor, *sides: Any) -> tuple[Tensor, Tensor]:
        if not are_rows:
            (q, _), (k, _), (v, _) = heads_of_rows(q), heads_of_rows(k), heads_of_rows(v)
        *packed, pair_bias, allowed, time_decay, scale, _, _ = sides
        shared = (pair_bias.contiguous(), allowed.contiguous(), time_decay.contiguous())
        out, lse = q.new_empty(places, heads, width), q.new_empty(heads, places, dtype=of_lse)
        start((q, k, v, *packed, *shared), (out, lse), scale)
        return out, lse

    return run
