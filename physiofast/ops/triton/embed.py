"""`embed_patches`: samples to tokens, by groups of token ids.

A program loops over a group's tokens and keeps, for some features, the group's rows of the table, and its modality's
weights where a patch is no longer than a block. Rows are added as a product with one-hot numbers of the tokens: a row
that is not finite spoils its feature in the whole group. There is one launch for each patch length, which is known when
compiled. `embed_backward` has the gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops.triton import table
from physiofast.ops.triton.embed_groups import SEVERAL, Groups, Known, locate, of_group, read_patches, rows_of_table
from physiofast.ops.triton.launching import Kernel, by_definition_if_rounded, prepared
from physiofast.ops.triton.parts import fence, one_hot_rows, select, stages


@triton.jit
def _embed(
    samples,
    place,  # [groups, patches_per_group * B], of the group's tokens
    number,
    first,
    scale,
    shift,
    counts,  # [groups]
    group_modality,  # [groups]
    cu_modality,  # [M + 1]
    weight,  # [sum P_m, D]
    pos_table,  # [N, D]
    out,  # [T, D]
    T,
    B,
    patches_per_channel,
    groups_per_channel,
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
    BLOCK_N: tl.constexpr,
):
    columns: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    strip = tl.program_id(0) // columns
    d = (tl.program_id(0) % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    group = strip // strips
    modality = tl.load(group_modality + group)
    count = tl.load(counts + group)
    mine = (strip % strips) * BLOCK_T
    place, number, first, scale, shift = of_group(group, patches_per_group * B, place, number, first, scale, shift)
    if FIRST:
        tail = tl.load(cu_modality + NUM_MODALITIES)
        for begin in range(tail + strip * BLOCK_T, T, tl.num_programs(0) // columns * BLOCK_T):
            t = begin + tl.arange(0, BLOCK_T)
            _fill(out, t, t < T, d, 0.0, D)
        if modality == SEVERAL:
            for begin in range(mine, count, strips * BLOCK_T):
                j = begin + tl.arange(0, BLOCK_T)
                _fill(out, tl.load(place + j, mask=j < count, other=0), j < count, d, float("nan"), D)
    if select(modality, MEMBERS, NUM_MODALITIES) > 0:
        row, is_mine = rows_of_table(group, patches_per_channel, groups_per_channel, patches_per_group, BLOCK_N)
        is_mine = is_mine[:, None] & (d < D)[None, :]
        added = tl.load(pos_table + row[:, None] * D + d[None, :], mask=is_mine, other=0).to(OPERAND)
        p = tl.arange(0, BLOCK_P)
        at_weight = (select(modality, OFFSETS, NUM_MODALITIES) + p)[:, None] * D + d[None, :]  # [BLOCK_P, BLOCK_D]
        if LENGTH <= BLOCK_P:
            whole = tl.load(weight + at_weight, mask=(p < LENGTH)[:, None] & (d < D)[None, :], other=0).to(OPERAND)
        for begin in tl.range(mine, count, strips * BLOCK_T, num_stages=stages() if UNSCALED else None):
            j = begin + tl.arange(0, BLOCK_T)
            at = tl.minimum(j, count - 1)  # beyond the end the last one again, which is not stored
            located = locate(first, scale, shift, at, ALIGN, UNSCALED, ACC)
            if LENGTH <= BLOCK_P:
                patch = read_patches(samples, located, 0, LENGTH, UNSCALED, ACC, BLOCK_P)
                if UNSCALED:
                    fence(begin)
                total = tl.dot(patch.to(OPERAND), whole, input_precision=PRECISION, out_dtype=ACC)
            else:
                total = tl.zeros([BLOCK_T, BLOCK_D], ACC)
                for sample in tl.range(0, LENGTH, BLOCK_P, num_stages=stages()):
                    patch = read_patches(samples, located, sample, LENGTH, UNSCALED, ACC, BLOCK_P)
                    inside = (sample + p < LENGTH)[:, None] & (d < D)[None, :]
                    part = tl.load(weight + at_weight + sample * D, mask=inside, other=0).to(OPERAND)
                    fence(sample)
                    total = tl.dot(patch.to(OPERAND), part, total, input_precision=PRECISION, out_dtype=ACC)
            one_hot = one_hot_rows(tl.load(number + at), OPERAND, BLOCK_N)
            total = tl.dot(one_hot, added, total, input_precision=PRECISION, out_dtype=ACC)
            t = tl.load(place + at).to(tl.int64)
            mask = (j < count)[:, None] & (d < D)[None, :]
            tl.store(out + t[:, None] * D + d[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _fill(out, t, real, d, value, D: tl.constexpr):
    """The same number in features d of tokens t."""
    place = t.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(out + place, tl.full(place.shape, value, out.dtype.element_ty), mask=real[:, None] & (d < D)[None, :])


@functools.lru_cache
def _kernels(known: Known) -> tuple[Kernel, ...]:
    sizes = (known.width, known.weight.itemsize, known.ids, known.samples.itemsize)
    return known.kernels(_embed, lambda length: table.embed_patches(length, *sizes), OFFSETS=known.offsets)


@prepared
def embed_patches(
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
    pos_table: Tensor,
    patch_lengths: Sequence[int],
    align: int,
    is_unscaled: bool,
) -> Callable[..., Tensor]:
    """As `reference.embed_patches`."""
    defined = by_definition_if_rounded("embed_patches", (samples, weight), (row_scale, row_shift))
    if defined:
        return defined
    count, width = ids.shape[0], weight.shape[1]
    groups = Groups(samples, row_start, row_scale, row_shift, slots, weight, patch_lengths, align, is_unscaled)
    strips = table.embed_strips(count, groups.number)
    inputs, sizes = (samples, *groups.empty, cu_modality, weight, pos_table), (count, *groups.sizes, strips)
    launches = []
    for kernel in _kernels(groups.known):
        grid = (groups.number * strips * table.tiles(width, kernel.blocks["BLOCK_D"]),)
        launches.append(kernel.prepare(grid, inputs, sizes))

    def run(
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
        pos_table: Tensor,
        *known: object,
    ) -> Tensor:
        out = weight.new_empty(count, width)
        inputs = (samples, *groups.list(start, scale, shift, modality, slots), cu_modality, weight, pos_table)
        for launch in launches:
            launch(inputs, (out,))
        return out

    return run
