"""`sample_plan` on the device: keys, a sort of each window's row, and three packings, all of static shape."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.triton import table
from physiofast.ops.triton.launching import Kernel, by_definition, prepared

_INDEX_BITS = 16
MAX_TOKENS = 4096
"""Of a window, that a program has registers for. Of 8,192 its sort would spill some, of 16,384 more, after minutes of
compiling, and more have no room in shared memory; a sort key has 16 bits for a token."""
MAX_MODALITIES = 64
"""That a sort key has room for."""
_LIMIT = f"windows of more than {MAX_TOKENS:,} tokens or {MAX_MODALITIES} modalities are planned by definition"
LIMITS = {"sample_plan": _LIMIT}
"""Op -> where its kernels leave off, as `ops.explain` says it."""


@triton.jit
def _choose(
    quotas,  # [B, M]
    valid,  # [B, N]
    window_id,  # [B]
    seed_step,  # [2]
    token_modality,  # [N]
    state,  # [B, N]: 0 not there, 1 visible, 2 hidden
    counts,  # [3, M + 1, B]: visible, hidden, present of each modality and of all
    B,
    N,
    NUM_MODALITIES: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    b = tl.program_id(0)
    n = tl.arange(0, BLOCK_N)
    modality_tile = tl.load(token_modality + n, mask=n < N, other=63)
    there = tl.load(valid + b * N + n, mask=n < N, other=0) != 0

    window = tl.load(window_id + b)
    block = tl.arange(0, BLOCK_N // 4)
    step = (tl.load(seed_step + 1) + block * 0).to(tl.uint32)
    low, high = (window + block * 0).to(tl.uint32), ((window >> 32) + block * 0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(tl.load(seed_step), block.to(tl.uint32), step, low, high)
    word = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))  # one of four words for each token

    key = (modality_tile.to(tl.int64) << 1 | (1 - there.to(tl.int64))) << 32 | word.to(tl.int64)
    key = key << INDEX_BITS | n  # equal words: the lower id first
    ordered = tl.sort(key)
    visible = n < 0
    seen, present = 0, 0
    begin = 0
    for m in tl.static_range(NUM_MODALITIES):
        of_m = (modality_tile == m) & (n < N)
        capacity = tl.sum((of_m & there).to(tl.int32))
        # Any number: all, where there are fewer, and none if negative.
        wanted = tl.load(quotas + b * NUM_MODALITIES + m)
        quota = tl.minimum(tl.maximum(wanted, 0), capacity).to(tl.int32)
        last = tl.sum(tl.where(n == begin + quota - 1, ordered, 0))
        visible = visible | (of_m & there & (quota > 0) & (key <= last))
        begin += tl.sum(of_m.to(tl.int32))
        tl.store(counts + m * B + b, quota)
        tl.store(counts + (NUM_MODALITIES + 1 + m) * B + b, capacity - quota)
        tl.store(counts + (2 * NUM_MODALITIES + 2 + m) * B + b, capacity)
        seen += quota
        present += capacity
    tl.store(counts + NUM_MODALITIES * B + b, seen)
    tl.store(counts + (2 * NUM_MODALITIES + 1) * B + b, present - seen)
    tl.store(counts + (3 * NUM_MODALITIES + 2) * B + b, present)
    token_state = tl.where(visible, 1, tl.where(there, 2, 0))
    tl.store(state + b * N + n, token_state.to(tl.int8), mask=n < N)


@triton.jit
def _count_before(
    counts,  # [columns, B]
    before,  # [columns, B + 1]: sums over the windows before each, and over all
    B,
    BLOCK_B: tl.constexpr,
):
    column = tl.program_id(0)
    carried = 0
    tl.store(before + column * (B + 1), 0)
    for begin in range(0, B, BLOCK_B):
        b = begin + tl.arange(0, BLOCK_B)
        here = tl.load(counts + column * B + b, mask=b < B, other=0)
        tl.store(before + column * (B + 1) + b + 1, carried + tl.cumsum(here), mask=b < B)
        carried += tl.sum(here)


@triton.jit
def _pack_one(
    state,  # [B, N]
    sums,  # [3, M + 1, B + 1]
    token_modality,  # [N]
    token_time_s,  # [N]
    ids,  # [T]
    cu_seqlens,  # [B + 1]
    modality,  # [T]
    time_s,  # [T]
    slot,  # [B, N]
    by_modality,  # [T]
    cu_modality,  # [M + 1]
    T,
    B,
    N,
    which: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One window's tokens of a packing, and a share of its tail.

    One that has no room for all of its tokens is left empty: nobody has looked whether quotas fit.
    """
    b = tl.program_id(0)
    n = tl.arange(0, BLOCK_N)
    windows = B + 1
    before = sums + which * (NUM_MODALITIES + 1) * windows
    total = tl.load(before + NUM_MODALITIES * windows + B)
    fits = total <= T
    if b < B:
        token_state = tl.load(state + b * N + n, mask=n < N, other=0)
        chosen = (token_state > 0) & fits
        if which < 2:
            chosen = (token_state == which + 1) & fits
        modality_tile = tl.load(token_modality + n, mask=n < N, other=-1)
        rank = tl.cumsum(chosen.to(tl.int32)) - 1
        place = tl.load(before + NUM_MODALITIES * windows + b) + rank
        # Where this window's tokens of each modality begin among all of that modality, less their rank here.
        shift = rank * 0
        start_of_m = 0
        lower = 0
        for m in tl.static_range(NUM_MODALITIES):
            shift = tl.where(modality_tile == m, start_of_m + tl.load(before + m * windows + b) - lower, shift)
            start_of_m += tl.load(before + m * windows + B)
            lower += tl.load(before + m * windows + b + 1) - tl.load(before + m * windows + b)
        tl.store(ids + place, b * N + n, mask=chosen)
        tl.store(modality + place, modality_tile, mask=chosen)
        tl.store(time_s + place, tl.load(token_time_s + n, mask=chosen, other=0), mask=chosen)
        tl.store(by_modality + shift + rank, place, mask=chosen)
        tl.store(slot + b * N + n, tl.where(chosen, place, -1), mask=n < N)
        tl.store(cu_seqlens + b + 1, tl.where(fits, tl.load(before + NUM_MODALITIES * windows + b + 1), 0))
    for first in range(tl.where(fits, total, 0) + b * BLOCK_N, T, tl.num_programs(0) * BLOCK_N):
        place = first + n
        tl.store(ids + place, place * 0 - 1, mask=place < T)
        tl.store(modality + place, place * 0 - 1, mask=place < T)
        tl.store(time_s + place, place * 0.0, mask=place < T)
        tl.store(by_modality + place, place, mask=place < T)
    if b == 0:
        end_of_m = 0
        tl.store(cu_seqlens, 0)
        tl.store(cu_modality, 0)
        for m in tl.static_range(NUM_MODALITIES):
            end_of_m += tl.load(before + m * windows + B)
            tl.store(cu_modality + m + 1, tl.where(fits, end_of_m, 0))


@triton.jit
def _pack(
    state,  # [B, N]
    sums,  # [3, M + 1, B + 1]
    token_modality,  # [N]
    token_time_s,  # [N]
    ids0,
    cu_seqlens0,
    modality0,
    time_s0,
    slot0,
    by_modality0,
    cu_modality0,
    ids1,
    cu_seqlens1,
    modality1,
    time_s1,
    slot1,
    by_modality1,
    cu_modality1,
    ids2,
    cu_seqlens2,
    modality2,
    time_s2,
    slot2,
    by_modality2,
    cu_modality2,
    T0,
    T1,
    T2,
    B,
    N,
    NUM_MODALITIES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """All three packings, which are outputs 0, 1 and 2: side by side, for none fills the device."""
    which = tl.program_id(1)
    if which == 0:
        _pack_one(
            state, sums, token_modality, token_time_s, ids0, cu_seqlens0, modality0, time_s0, slot0, by_modality0,
            cu_modality0, T0, B, N, 0, NUM_MODALITIES, BLOCK_N,
        )  # fmt: skip
    elif which == 1:
        _pack_one(
            state, sums, token_modality, token_time_s, ids1, cu_seqlens1, modality1, time_s1, slot1, by_modality1,
            cu_modality1, T1, B, N, 1, NUM_MODALITIES, BLOCK_N,
        )  # fmt: skip
    else:
        _pack_one(
            state, sums, token_modality, token_time_s, ids2, cu_seqlens2, modality2, time_s2, slot2, by_modality2,
            cu_modality2, T2, B, N, 2, NUM_MODALITIES, BLOCK_N,
        )  # fmt: skip


@functools.lru_cache
def _kernels(tokens: int, num_modalities: int) -> tuple[Kernel, Kernel, Kernel]:
    """Choice, sums over windows, packings."""
    choose = Kernel(_choose, table.choose_visible(tokens), NUM_MODALITIES=num_modalities, INDEX_BITS=_INDEX_BITS)
    pack = Kernel(_pack, table.pack(tokens), NUM_MODALITIES=num_modalities)
    return choose, Kernel(_count_before, table.count_before()), pack


def _round(size: int) -> int:
    """Up to 16 bytes, of 32-bit numbers."""
    return size + -size % 4


def _room(sizes: Sequence[int], dtype: torch.dtype, *width: int) -> Callable[[Tensor, bool], tuple[Tensor, ...]]:
    """Makes tensors of 32-bit numbers or of rows of them; where they may be pieces of one, at multiples of 16 bytes."""
    cuts: list[int] = []
    wanted = []
    for size in sizes:
        wanted.append(len(cuts))
        cuts += [size, _round(size) - size] if size % 4 else [size]
    total, pick = sum(cuts), operator.itemgetter(*wanted)

    def make(like: Tensor, may_share: bool) -> tuple[Tensor, ...]:
        if may_share:
            return pick(like.new_empty(total, *width, dtype=dtype).unsafe_split_with_sizes(cuts))
        return tuple([like.new_empty(size, *width, dtype=dtype) for size in sizes])

    return make


@prepared
def sample_plan(
    quotas: Tensor,
    valid: Tensor,
    window_id: Tensor,
    seed_step: Tensor,
    token_modality: Tensor,
    token_time_s: Tensor,
    totals: Sequence[int],
) -> Callable[..., list[Tensor]]:
    """As `reference.sample_plan`.

    An allocation takes the host longer than a piece of one, so the indices of the three packings, their times and their
    slots may be pieces of one each: whoever keeps one packing keeps those of all, and a little that only kernels need.
    """
    (batch, tokens), num_modalities, columns = valid.shape, quotas.shape[1], 3 * (quotas.shape[1] + 1)
    if tokens > MAX_TOKENS or num_modalities > MAX_MODALITIES:
        return by_definition(reference.sample_plan)
    choose, count_before, pack = _kernels(tokens, num_modalities)
    ints, state = (valid.new_empty(0, dtype=dtype) for dtype in (torch.int32, torch.int8))
    start_choice = choose.prepare((batch,), (quotas, valid, window_id, seed_step, token_modality), (batch, tokens))
    start_counts = count_before.prepare((columns,), (ints,), (batch,))
    grid = (max(batch, 1), 3)  # without windows all is tail
    start_packings = pack.prepare(grid, (state, ints, token_modality, token_time_s), (*totals, batch, tokens))
    for_kernels = (_round(columns * batch), _round(columns * (batch + 1)))
    of_packings = [size for total in totals for size in (total, batch + 1, total, total, num_modalities + 1)]
    indices = _room([*for_kernels, *of_packings], torch.int32)
    times, slots = _room(totals, token_time_s.dtype), _room([batch] * 3, torch.int32, tokens)
    in_order = operator.itemgetter(*[place for i in range(3) for place in _places(i)])

    def run(
        quotas: Tensor,
        valid: Tensor,
        window_id: Tensor,
        seed_step: Tensor,
        token_modality: Tensor,
        token_time_s: Tensor,
        totals: Sequence[int],
        may_share: bool = False,
    ) -> list[Tensor]:
        counts, before, *pieces = indices(valid, may_share)
        pieces += (*times(valid, may_share), *slots(valid, may_share))
        parts, state = list(in_order(pieces)), valid.new_empty(batch, tokens, dtype=torch.int8)
        start_choice((quotas, valid, window_id, seed_step, token_modality), (state, counts))
        start_counts((counts,), (before,))
        start_packings((state, before, token_modality, token_time_s), parts)
        return parts

    return run


def _places(i: int) -> tuple[int, ...]:
    """Where the parts of packing i, in their order, are among the indices, times and slots of all three."""
    ids, cu_seqlens, modality, by_modality, cu_modality = range(5 * i, 5 * i + 5)
    return ids, cu_seqlens, modality, 15 + i, 18 + i, by_modality, cu_modality
