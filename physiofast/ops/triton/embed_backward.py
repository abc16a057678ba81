"""Gradients of `embed_patches`: of weights and table by sums in a fixed order, no atomics, and of dense samples.

Token ids come in groups: some patches of one channel, so of one modality. First the tokens of each group are listed,
with the places where their samples begin. A program then takes a group and some features: what it reads of the tokens'
gradients serves the weights, whose sums over groups are added in order, and the table, whose rows are its own. A number
that is not finite spoils its feature in all rows of the group, and not in its token's row alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.triton import table
from physiofast.ops.triton.dtypes import accumulate_in
from physiofast.ops.triton.embed_groups import (
    NONE,
    SEVERAL,
    Groups,
    Known,
    locate,
    of_group,
    read_patches,
    rows_of_table,
)
from physiofast.ops.triton.launching import Kernel, by_definition_if_rounded, prepared
from physiofast.ops.triton.parts import fence, one_hot_rows, select, stages


@triton.jit
def _sums(
    grad,  # [T, D]
    samples,
    place,  # [groups, patches_per_group * B]
    number,
    first,
    scale,
    shift,
    counts,  # [groups]
    group_modality,  # [groups]
    partial,  # [groups, ROWS, D]
    dtable,  # [N, D]
    B,
    patches_per_channel,
    groups_per_channel,
    patches_per_group,
    MEMBERS: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    UNSCALED: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Of a group: its part of the gradient of its modality's weights, and the gradient of its rows of the table."""
    columns: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    group = tl.program_id(0) // columns
    modality = tl.load(group_modality + group)
    if (select(modality, MEMBERS, NUM_MODALITIES) > 0) | (FIRST & (modality < 0)):
        d = (tl.program_id(0) % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
        from_p = tl.program_id(1) * BLOCK_P
        count = tl.load(counts + group) * (modality >= 0)
        place, number, first, scale, shift = of_group(group, patches_per_group * B, place, number, first, scale, shift)
        products = tl.zeros([BLOCK_P, BLOCK_D], ACC)
        sums = tl.zeros([BLOCK_D, BLOCK_N], ACC) + tl.where(modality == SEVERAL, float("nan"), 0.0)
        for begin in range(0, count, BLOCK_T):
            j = begin + tl.arange(0, BLOCK_T)
            at = tl.minimum(j, count - 1)  # beyond the end the last one again, times 0
            located = locate(first, scale, shift, at, ALIGN, UNSCALED, ACC)
            patch = read_patches(samples, located, from_p, LENGTH, UNSCALED, ACC, BLOCK_P)
            t = tl.load(place + at).to(tl.int64)
            within = (j < count)[:, None] & (d < D)[None, :]
            grad_tile = tl.load(grad + t[:, None] * D + d[None, :], mask=within, other=0).to(OPERAND)
            patch = tl.trans(patch.to(OPERAND))
            products = tl.dot(patch, grad_tile, products, input_precision=PRECISION, out_dtype=ACC)
            one_hot = one_hot_rows(tl.load(number + at), OPERAND, BLOCK_N)
            sums = tl.dot(tl.trans(grad_tile), one_hot, sums, input_precision=PRECISION, out_dtype=ACC)
        p = from_p + tl.arange(0, BLOCK_P)
        at = (group * ROWS + p).to(tl.int64)[:, None] * D + d[None, :]
        tl.store(partial + at, products, mask=(p < LENGTH)[:, None] & (d < D)[None, :] & (modality >= 0))
        row, is_mine = rows_of_table(group, patches_per_channel, groups_per_channel, patches_per_group, BLOCK_N)
        at = row[None, :] * D + d[:, None]
        mask = (d < D)[:, None] & (is_mine & (tl.program_id(1) == 0))[None, :]
        tl.store(dtable + at, sums.to(dtable.dtype.element_ty), mask=mask)


@triton.jit
def _sum_groups(
    partial,  # [groups, ROWS, D]
    group_modality,  # [groups]
    out,  # [sum P_m, D]
    groups,
    LENGTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of some weights of a modality: what its groups found, in their order."""
    modality = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < select(modality, LENGTHS, NUM_MODALITIES) * D
    total = tl.zeros([BLOCK_G, BLOCK], ACC)
    for begin in range(0, groups, BLOCK_G):
        g = begin + tl.arange(0, BLOCK_G)
        modality_tile = tl.load(group_modality + g, mask=g < groups, other=NONE)
        at = g.to(tl.int64)[:, None] * (ROWS * D) + i[None, :]
        total += tl.load(partial + at, mask=(modality_tile == modality)[:, None] & inside[None, :], other=0)
        total += tl.where(modality_tile == SEVERAL, float("nan"), 0.0)[:, None]
    weights = tl.sum(total, 0)  # [BLOCK]
    tl.store(out + select(modality, OFFSETS, NUM_MODALITIES) * D + i, weights.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dsamples(
    grad,  # [T, D]
    place,  # [groups, patches_per_group * B]
    number,
    first,
    scale,
    shift,
    counts,  # [groups]
    group_modality,  # [groups]
    weight,  # [sum P_m, D]
    out,  # like samples, zero where no token reads
    B,
    patches_per_group,
    strips,  # programs that share a group's tokens
    OFFSETS: tl.constexpr,
    MEMBERS: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    FIRST: tl.constexpr,
    LENGTH: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    UNSCALED: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    group = tl.program_id(0) // strips
    modality = tl.load(group_modality + group)
    count = tl.load(counts + group)
    place, number, first, scale, shift = of_group(group, patches_per_group * B, place, number, first, scale, shift)
    if FIRST and modality == SEVERAL:  # of unknown length: its first sample alone
        for begin in range((tl.program_id(0) % strips) * BLOCK_T, count, strips * BLOCK_T):
            j = begin + tl.arange(0, BLOCK_T)
            tl.store(out + tl.load(first + j, mask=j < count, other=0), float("nan"), mask=j < count)
    if select(modality, MEMBERS, NUM_MODALITIES) > 0:
        p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
        for begin in range((tl.program_id(0) % strips) * BLOCK_T, count, strips * BLOCK_T):
            j = begin + tl.arange(0, BLOCK_T)
            t = tl.load(place + j, mask=j < count, other=0).to(tl.int64)
            total = tl.zeros([BLOCK_T, BLOCK_P], ACC)
            for features in tl.range(0, D, BLOCK_D, num_stages=stages()):
                d = features + tl.arange(0, BLOCK_D)
                within = (j < count)[:, None] & (d < D)[None, :]
                grad_tile = tl.load(grad + t[:, None] * D + d[None, :], mask=within, other=0).to(OPERAND)
                at_weight = (select(modality, OFFSETS, NUM_MODALITIES) + p)[:, None] * D + d[
                    None, :
                ]  # [BLOCK_P, BLOCK_D]
                part = tl.load(weight + at_weight, mask=(p < LENGTH)[:, None] & (d < D)[None, :], other=0).to(OPERAND)
                fence(features)
                total = tl.dot(grad_tile, tl.trans(part), total, input_precision=PRECISION, out_dtype=ACC)
            if not UNSCALED:
                total *= tl.load(scale + j, mask=j < count, other=0).to(ACC)[:, None]
            begins = tl.multiple_of(tl.load(first + j, mask=j < count, other=0), [ALIGN])
            inside = (j < count)[:, None] & (p < LENGTH)[None, :]
            tl.store(out + begins[:, None] + p[None, :], total.to(out.dtype.element_ty), mask=inside)


class _Kernels(NamedTuple):
    sums: tuple[Kernel, ...]
    """One for each patch length."""
    sum_groups: Kernel


@functools.lru_cache
def _kernels(known: Known) -> _Kernels:
    rows, acc = max(known.lengths), accumulate_in(known.samples, known.weight)
    sizes = (known.width, known.weight.itemsize, known.ids, known.samples.itemsize)
    sums = known.kernels(_sums, lambda length: table.embed_weights(length, *sizes), ROWS=rows)
    lengths = {"LENGTHS": known.lengths, "OFFSETS": known.offsets, "NUM_MODALITIES": len(known.lengths)}
    sum_groups = Kernel(_sum_groups, table.sum_groups_of_tokens(), ROWS=rows, D=known.width, ACC=acc, **lengths)
    return _Kernels(sums=sums, sum_groups=sum_groups)


@functools.lru_cache
def _sample_kernels(known: Known) -> tuple[Kernel, ...]:
    """Of dense samples."""
    sizes = (known.width, known.weight.itemsize)
    return known.kernels(_dsamples, lambda length: table.embed_samples(length, *sizes), OFFSETS=known.offsets)


def _samples_gradient(groups: Groups, grad: Tensor, samples: Tensor, weight: Tensor) -> Callable[..., Tensor]:
    """A function of these and of the groups' lists: the gradient of dense samples, zero where no token reads."""
    batch, _, _, patches_per_group = groups.sizes
    launches = []
    for kernel in _sample_kernels(groups.known):
        strips = table.tiles(len(grad), groups.number * kernel.blocks["BLOCK_T"])
        grid = (groups.number * strips, table.tiles(kernel.constants["LENGTH"], kernel.blocks["BLOCK_P"]))
        launches.append(kernel.prepare(grid, (grad, *groups.empty, weight), (batch, patches_per_group, strips)))

    def run(grad: Tensor, samples: Tensor, listed: tuple[Tensor, ...], weight: Tensor) -> Tensor:
        out = torch.zeros_like(samples)
        for launch in launches:
            launch((grad, *listed, weight), (out,))
        return out

    return run


@prepared
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
    is_unscaled: bool,
    need_samples: bool,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """As `reference.embed_patches_backward`."""
    defined = by_definition_if_rounded("embed_patches_backward", (samples, weight), (row_scale, row_shift))
    if defined:
        return defined
    groups = Groups(samples, row_start, row_scale, row_shift, slots, weight, patch_lengths, align, is_unscaled)
    kernels, width, longest = _kernels(groups.known), weight.shape[1], max(patch_lengths)
    acc = reference.accumulator(samples, weight)
    sums = []
    for kernel in kernels.sums:
        across = table.tiles(kernel.constants["LENGTH"], kernel.blocks["BLOCK_P"])
        grid = (groups.number * table.tiles(width, kernel.blocks["BLOCK_D"]), across)
        sums.append(kernel.prepare(grid, (grad, samples, *groups.empty), groups.sizes))
    grid = (table.tiles(longest * width, kernels.sum_groups.blocks["BLOCK"]), len(patch_lengths))
    sum_groups = kernels.sum_groups.prepare(grid, (weight.new_empty(0, dtype=acc), slots), (groups.number,))
    of_samples = _samples_gradient(groups, grad, samples, weight) if need_samples else None

    def run(
        grad: Tensor,
        samples: Tensor,
        start: Tensor,
        scale: Tensor,
        shift: Tensor,
        ids: Tensor,
        modality: Tensor,
        slots: Tensor,
        by_modality: Tensor,
        cu_modality: Tensor,
        weight: Tensor,
        *known: object,
    ) -> tuple[Tensor, Tensor, Tensor]:
        listed = groups.list(start, scale, shift, modality, slots)
        partial = weight.new_empty(groups.number, longest, width, dtype=acc)
        dweight, dtable = torch.empty_like(weight), weight.new_empty(slots.shape[1], width)
        for one in sums:
            one((grad, samples, *listed), (partial, dtable))
        sum_groups((partial, listed[-1]), (dweight,))
        dsamples = samples.new_empty(0) if of_samples is None else of_samples(grad, samples, listed, weight)
        return dweight, dtable, dsamples

    return run
