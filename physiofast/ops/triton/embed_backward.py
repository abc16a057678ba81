"""Gradients of `embed_patches`: of weights and table by sums in a fixed order, no atomics, and of dense samples.

First it is written down where each token's samples begin, so that the sums over tokens have no chain of indices to
follow; and which tokens there are of each id. A program then sums the products of many tokens of one modality, and
what programs found is added in order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops.contracts import row_offsets
from physiofast.ops.triton import table
from physiofast.ops.triton.dtypes import accumulate_in
from physiofast.ops.triton.embed import Known
from physiofast.ops.triton.launching import Kernel
from physiofast.ops.triton.parts import first_sample, scales, select, tile_of_kind


@triton.jit
def _locate(
    block,
    row_start,  # [B * C]
    row_scale,
    row_shift,
    ids,  # [T]
    modality,  # [T]
    by_modality,  # [T]
    first,  # [T], along by_modality
    scale,  # [T]
    shift,  # [T]
    T,
    patches,
    LENGTHS: tl.constexpr,
    KINDS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where the samples of a block of tokens begin, their scale and shift."""
    i = block * BLOCK + tl.arange(0, BLOCK)
    t = tl.load(by_modality + i, mask=i < T, other=0)
    token = tl.load(ids + t, mask=i < T, other=-1)
    kind = tl.load(modality + t, mask=i < T, other=-1)
    row, begin = first_sample(row_start, token, select(kind, LENGTHS, KINDS), patches, token >= 0, 1)
    by, plus = scales(row_scale, row_shift, row, token >= 0, ACC)
    tl.store(first + i, begin, mask=i < T)
    tl.store(scale + i, by, mask=i < T)
    tl.store(shift + i, plus, mask=i < T)


@triton.jit
def _list_tokens(
    n,
    slots,  # [B, N]
    listed,  # [N, B], the places of each id's tokens
    counts,  # [N]
    B,
    N,
    BLOCK_B: tl.constexpr,
):
    """The places of the tokens of id n, and how many there are."""
    count = 0
    for begin in range(0, B, BLOCK_B):
        b = begin + tl.arange(0, BLOCK_B)
        slot = tl.load(slots + b * N + n, mask=b < B, other=-1)
        here = (slot >= 0).to(tl.int32)
        tl.store(listed + n * B + count + tl.cumsum(here) - 1, slot, mask=slot >= 0)
        count += tl.sum(here)
    tl.store(counts + n, count)


@triton.jit
def _prepare(
    row_start,  # [B * C]
    row_scale,
    row_shift,
    ids,  # [T]
    modality,  # [T]
    by_modality,  # [T]
    slots,  # [B, N]
    first,  # [T], along by_modality
    scale,  # [T]
    shift,  # [T]
    listed,  # [N, B]
    counts,  # [N]
    T,
    patches,
    B,
    N,
    LENGTHS: tl.constexpr,
    KINDS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < N:
        _list_tokens(pid, slots, listed, counts, B, N, BLOCK_B)
    else:
        _locate(
            pid - N, row_start, row_scale, row_shift, ids, modality, by_modality, first, scale, shift, T, patches,
            LENGTHS, KINDS, ACC, BLOCK,
        )  # fmt: skip


@triton.jit
def _sum_listed(
    pid,
    values,  # [T, D]
    listed,  # [N, B]
    counts,  # [N]
    out,  # [N, D]
    B,
    D: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sum of one id's tokens, and of `BLOCK_D` of their features."""
    columns: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    n = pid // columns
    d = (pid % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    count = tl.load(counts + n)
    total = tl.zeros([BLOCK_B, BLOCK_D], ACC)
    for begin in tl.range(0, count, BLOCK_B, num_stages=2):  # loops without products are pipelined when told to
        j = begin + tl.arange(0, BLOCK_B)
        t = tl.load(listed + n * B + j, mask=j < count, other=0).to(tl.int64)
        mask = (j < count)[:, None] & (d < D)[None, :]
        total += tl.load(values + t[:, None] * D + d[None, :], mask=mask, other=0).to(ACC)
    tl.store(out + n * D + d, tl.sum(total, 0).to(out.dtype.element_ty), mask=d < D)


@triton.jit
def _sum_products(
    pid,
    grad,  # [T, D]
    samples,
    by_modality,  # [T]
    cu_modality,  # [M + 1]
    first,  # [T], along by_modality
    scale,  # [T]
    shift,  # [T]
    partial,  # [groups, ROWS, D]
    T,
    rounds,
    MEMBERS: tl.constexpr,
    KINDS: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A group's part of the gradient of its modality's weights: the sum over its tokens of samples times gradients."""
    columns: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    group = pid // columns
    kind, first_place, end = tile_of_kind(cu_modality, group, T, BLOCK_T * rounds, KINDS)
    d = (pid % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    if (kind >= 0) & (kind < KINDS):  # noqa: SIM102  `and` would compute both
        if select(kind, MEMBERS, KINDS) > 0:
            total = tl.zeros([BLOCK_P, BLOCK_D], ACC)
            for begin in range(first_place, end, BLOCK_T):
                i = begin + tl.arange(0, BLOCK_T)
                sample = tl.multiple_of(tl.load(first + i, mask=i < end, other=0), [ALIGN])
                t = tl.load(by_modality + i, mask=i < end, other=0)
                inside = (i < end)[:, None] & (p < LENGTH)[None, :]
                patch = tl.load(samples + sample[:, None] + p[None, :], mask=inside, other=0)
                place = t.to(tl.int64)[:, None] * D + d[None, :]
                found = tl.load(grad + place, mask=(i < end)[:, None] & (d < D)[None, :], other=0).to(OPERAND)
                if not UNIT:
                    by = tl.load(scale + i, mask=i < end, other=0)
                    plus = tl.load(shift + i, mask=i < end, other=0)
                    patch = tl.where(inside, patch.to(ACC) * by[:, None] + plus[:, None], 0)
                patch = tl.trans(patch.to(OPERAND))
                total = tl.dot(patch, found, total, input_precision=PRECISION, out_dtype=ACC)
            place = (group * ROWS + p).to(tl.int64)[:, None] * D + d[None, :]
            tl.store(partial + place, total, mask=(p < LENGTH)[:, None] & (d < D)[None, :])


@triton.jit
def _sums(
    grad,  # [T, D]
    samples,
    by_modality,  # [T]
    cu_modality,  # [M + 1]
    first,  # [T], along by_modality
    scale,  # [T]
    shift,  # [T]
    listed,  # [N, B]
    counts,  # [N]
    partial,  # [groups, ROWS, D]
    dtable,  # [N, D]
    T,
    B,
    rounds,
    of_weights,  # programs; the others sum for the table
    MEMBERS: tl.constexpr,
    KINDS: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Products for the weights, of which few programs fit beside each other, and sums for the table in the gaps."""
    pid = tl.program_id(0)
    if pid < of_weights:
        _sum_products(
            pid, grad, samples, by_modality, cu_modality, first, scale, shift, partial, T, rounds,
            MEMBERS, KINDS, ROWS, LENGTH, D, ALIGN, UNIT, ACC, OPERAND, PRECISION, BLOCK_T, BLOCK_P, BLOCK_D,
        )  # fmt: skip
    elif tl.program_id(1) == 0:
        _sum_listed(pid - of_weights, grad, listed, counts, dtable, B, D, ACC, BLOCK_B, BLOCK_W)


@triton.jit
def _sum_groups(
    partial,  # [groups, ROWS, D]
    cu_modality,  # [M + 1]
    out,  # [sum P_m, D]
    rows,
    LENGTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    KINDS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK: tl.constexpr,
):
    kind = tl.program_id(1)
    low = tl.load(cu_modality)
    before = kind * 0
    first = before
    count = before
    for m in tl.static_range(KINDS):
        high = tl.load(cu_modality + m + 1)
        groups = tl.cdiv(high - low, rows)
        first = tl.where(kind == m, before, first)
        count = tl.where(kind == m, groups, count)
        before += groups
        low = high
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g = tl.arange(0, BLOCK_G)
    inside = i < select(kind, LENGTHS, KINDS) * D
    total = tl.zeros([BLOCK_G, BLOCK], ACC)
    for begin in range(0, count, BLOCK_G):
        place = (first + begin + g).to(tl.int64)[:, None] * (ROWS * D) + i[None, :]
        total += tl.load(partial + place, mask=(begin + g < count)[:, None] & inside[None, :], other=0)
    found = tl.sum(total, 0)  # [BLOCK]
    tl.store(out + select(kind, OFFSETS, KINDS) * D + i, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dsamples(
    grad,  # [T, D]
    row_start,  # [B * C]
    row_scale,
    row_shift,
    ids,  # [T]
    by_modality,  # [T]
    cu_modality,  # [M + 1]
    weight,  # [sum P_m, D]
    out,  # like samples, zero where no token reads
    T,
    patches,
    OFFSETS: tl.constexpr,
    MEMBERS: tl.constexpr,
    KINDS: tl.constexpr,
    LENGTH: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    kind, first_place, end = tile_of_kind(cu_modality, tl.program_id(0), T, BLOCK_T, KINDS)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    i = first_place + tl.arange(0, BLOCK_T)
    if (kind >= 0) & (kind < KINDS):  # noqa: SIM102  `and` would compute both
        if select(kind, MEMBERS, KINDS) > 0:
            t = tl.load(by_modality + i, mask=i < end, other=0)
            token = tl.load(ids + t, mask=i < end, other=0)
            row, first = first_sample(row_start, token, LENGTH, patches, i < end, ALIGN)
            scale, _ = scales(row_scale, row_shift, row, i < end, ACC)
            total = tl.zeros([BLOCK_T, BLOCK_P], ACC)
            for begin in range(0, D, BLOCK_D):
                d = begin + tl.arange(0, BLOCK_D)
                place = t.to(tl.int64)[:, None] * D + d[None, :]
                found = tl.load(grad + place, mask=(i < end)[:, None] & (d < D)[None, :], other=0).to(OPERAND)
                of_kind = (select(kind, OFFSETS, KINDS) + p)[:, None] * D + d[None, :]  # [BLOCK_P, BLOCK_D]
                part = tl.load(weight + of_kind, mask=(p < LENGTH)[:, None] & (d < D)[None, :], other=0).to(OPERAND)
                total = tl.dot(found, tl.trans(part), total, input_precision=PRECISION, out_dtype=ACC)
            slope = (total * scale[:, None]).to(out.dtype.element_ty)
            tl.store(out + first[:, None] + p[None, :], slope, mask=(i < end)[:, None] & (p < LENGTH)[None, :])


class _Kernels(NamedTuple):
    prepare: Kernel
    sums: tuple[Kernel, ...]
    """One for each patch length."""
    sum_groups: Kernel


@functools.lru_cache
def _kernels(known: Known, windows: int) -> _Kernels:
    """For that many windows, rounded up to a power of two."""
    rows, acc = max(known.lengths), accumulate_in(known.samples, known.weight)
    lengths = {"LENGTHS": known.lengths, "KINDS": len(known.lengths), "ACC": acc}
    sums = []
    for length in dict.fromkeys(known.lengths):
        launch = table.embed_weights(length, known.width, known.weight.itemsize, known.unit)
        sums.append(Kernel(_sums, launch, ROWS=rows, UNIT=known.unit, **known.constants(length)))
    in_order = lengths | {"OFFSETS": tuple(row_offsets(known.lengths)), "ROWS": rows, "D": known.width}
    return _Kernels(
        prepare=Kernel(_prepare, table.embed_indices(windows), **lengths),
        sums=tuple(sums),
        sum_groups=Kernel(_sum_groups, table.sum_groups_of_tokens(), **in_order),
    )


@functools.lru_cache
def _sample_kernels(known: Known) -> tuple[Kernel, ...]:
    """Of dense samples; one for each patch length."""
    offsets = tuple(row_offsets(known.lengths))
    launches = {n: table.embed_samples(n, known.width, known.weight.itemsize) for n in known.lengths}
    return tuple(Kernel(_dsamples, launch, OFFSETS=offsets, **known.constants(n)) for n, launch in launches.items())


def _samples_gradient(
    known: Known,
    grad: Tensor,
    samples: Tensor,
    row: tuple[Tensor, ...],
    order: tuple[Tensor, ...],
    weight: Tensor,
    patches: int,
) -> Tensor:
    """Like samples: zero where no token reads.

    Args:
        known: of the call.
        grad: [T, D] of the tokens.
        samples: dense ones.
        row: start, scale and shift of each.
        order: ids, by_modality, cu_modality.
        weight: [sum P_m, D].
        patches: of a row.
    """
    out = torch.zeros_like(samples)
    for kernel in _sample_kernels(known):
        tiles = table.tiles(len(grad), kernel.blocks["BLOCK_T"]) + len(known.lengths)
        across = table.tiles(kernel.constants["LENGTH"], kernel.blocks["BLOCK_P"])
        kernel.start((tiles, across), (grad, *row, *order, weight), (out,), (len(grad), patches))
    return out


def embed_patches_backward(
    grad: Tensor,
    samples: Tensor,
    row_start: Tensor,
    row_scale: Tensor,
    row_shift: Tensor,
    ids: Tensor,
    modality: Tensor,
    slots: Tensor,
    by_modality: Tensor,
    cu_modality: Tensor,
    weight: Tensor,
    patch_lengths: Sequence[int],
    align: int,
    unit: bool,
    need_samples: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.embed_patches_backward`."""
    grad, samples, weight = grad.contiguous(), samples.contiguous(), weight.contiguous()
    row = (row_start.contiguous(), row_scale.contiguous(), row_shift.contiguous())
    order = (ids, by_modality, cu_modality) = tuple([t.contiguous() for t in (ids, by_modality, cu_modality)])
    modality, slots = modality.contiguous(), slots.contiguous()
    count, (height, width), (batch, tokens) = ids.shape[0], weight.shape, slots.shape
    patches, kinds, longest = tokens // row_start.shape[1], len(patch_lengths), max(patch_lengths)
    known = Known.of(samples, weight, patch_lengths, align, unit)
    kernels = _kernels(known, table.next_power_of_2(batch))
    acc = torch.float64 if torch.float64 in (samples.dtype, weight.dtype) else torch.float32
    first, (scale, shift) = ids.new_empty(count, dtype=torch.int64), grad.new_empty(2, count, dtype=acc).unbind()
    listed, counts = ids.new_empty(tokens, batch), ids.new_empty(tokens)
    found = (first, scale, shift, listed, counts)
    grid: tuple[int, ...] = (tokens + table.tiles(count, kernels.prepare.blocks["BLOCK"]),)
    inputs = (*row, ids, modality, by_modality, slots, *found)  # of which `shift` need not be aligned
    kernels.prepare.start(grid, inputs, (), (count, patches, batch, tokens))
    rows = table.embed_rows(count)
    groups = table.tiles(count, rows) + kinds
    partial = weight.new_empty(groups, longest, width, dtype=acc)
    dweight, dtable = weight.new_empty(height, width), weight.new_empty(tokens, width)
    for number, kernel in enumerate(kernels.sums):
        blocks = kernel.blocks
        of_weights = groups * table.tiles(width, blocks["BLOCK_D"])
        of_table = tokens * table.tiles(width, blocks["BLOCK_W"]) if number == 0 else 0
        grid = (of_weights + of_table, table.tiles(kernel.constants["LENGTH"], blocks["BLOCK_P"]))
        sizes = (count, batch, rows // blocks["BLOCK_T"], of_weights)
        kernel.start(grid, (grad, samples, by_modality, cu_modality, *found), (partial, dtable), sizes)
    add = kernels.sum_groups
    grid = (table.tiles(longest * width, add.blocks["BLOCK"]), kinds)
    add.start(grid, (partial, cu_modality), (dweight,), (rows,))
    if not need_samples:
        return dweight, dtable, samples.new_empty(0)
    return dweight, dtable, _samples_gradient(known, grad, samples, row, order, weight, patches)
