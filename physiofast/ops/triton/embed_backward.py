"""Gradients of `embed_patches`: of weights and table by sums in a fixed order, no atomics, and of dense samples.

Token ids come in groups: some patches of one channel, so of one modality. First the tokens of each group are listed,
with the places where their samples begin. A program then takes a group and some features: what it reads of the tokens'
gradients serves the weights, whose sums over groups are added in order, and the table, whose rows are its own. A number
that is not finite spoils its feature in all rows of the group, and not in its token's row alone.
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

_NONE: tl.constexpr = tl.constexpr(-1)
"""Modality of a group without tokens."""
_SEVERAL: tl.constexpr = tl.constexpr(-2)
"""Modality of a group whose tokens are of two and more, which no row of samples has."""


@triton.jit
def _list_tokens(
    row_start,  # [B * C]
    row_scale,
    row_shift,
    modality,  # [T]
    slots,  # [B, N]
    place,  # [groups, per * B], where the group's tokens stand
    number,  # [groups, per * B], which of the group's ids each has
    first,  # [groups, per * B], where its samples begin
    scale,  # [groups, per * B]
    shift,  # [groups, per * B]
    counts,  # [groups], tokens
    kinds,  # [groups]
    B,
    channels,
    patches,
    parts,  # groups of a channel
    per,  # ids of a group
    LENGTHS: tl.constexpr,
    KINDS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The tokens of a group, window after window."""
    group = tl.program_id(0)
    channel = group // parts
    i = tl.arange(0, BLOCK_B * BLOCK_N)
    n = i % BLOCK_N
    patch = (group % parts) * per + n
    is_mine = (n < per) & (patch < patches)
    before = 0
    lowest, highest = KINDS, -1
    for begin in range(0, B, BLOCK_B):
        b = begin + i // BLOCK_N
        t = tl.load(slots + (b * channels + channel) * patches + patch, mask=is_mine & (b < B), other=-1)
        here = t >= 0
        kind = tl.load(modality + t, mask=here, other=-1)
        lowest = tl.minimum(lowest, tl.min(tl.where(here, kind, KINDS)))
        highest = tl.maximum(highest, tl.max(kind))
        row = b * channels + channel
        start = tl.load(row_start + row, mask=here, other=0) + patch.to(tl.int64) * select(kind, LENGTHS, KINDS)
        at = group * per * B + before + tl.cumsum(here.to(tl.int32)) - 1
        tl.store(place + at, t, mask=here)
        tl.store(number + at, n, mask=here)
        tl.store(first + at, start, mask=here)
        if not UNIT:
            tl.store(scale + at, tl.load(row_scale + row, mask=here, other=0), mask=here)
            tl.store(shift + at, tl.load(row_shift + row, mask=here, other=0), mask=here)
        before += tl.sum(here.to(tl.int32))
    tl.store(counts + group, before)
    tl.store(kinds + group, tl.where(before == 0, _NONE, tl.where(lowest == highest, highest, _SEVERAL)))


@triton.jit
def _sums(
    grad,  # [T, D]
    samples,
    place,  # [groups, per * B]
    number,
    first,
    scale,
    shift,
    counts,  # [groups]
    kinds,  # [groups]
    partial,  # [groups, ROWS, D]
    dtable,  # [N, D]
    B,
    patches,
    parts,
    per,
    MEMBERS: tl.constexpr,
    KINDS: tl.constexpr,
    FIRST: tl.constexpr,
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
    BLOCK_N: tl.constexpr,
):
    """Of a group: its part of the gradient of its modality's weights, and the gradient of its rows of the table."""
    columns: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    group = tl.program_id(0) // columns
    kind = tl.load(kinds + group)
    if (select(kind, MEMBERS, KINDS) > 0) | (FIRST & (kind < 0)):
        d = (tl.program_id(0) % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
        p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
        n = tl.arange(0, BLOCK_N)
        count = tl.load(counts + group) * (kind >= 0)
        products = tl.zeros([BLOCK_P, BLOCK_D], ACC)
        sums = tl.zeros([BLOCK_D, BLOCK_N], ACC) + tl.where(kind == _SEVERAL, float("nan"), 0.0)
        for begin in range(0, count, BLOCK_T):
            j = begin + tl.arange(0, BLOCK_T)
            at = group * per * B + j
            sample = tl.multiple_of(tl.load(first + at, mask=j < count, other=0), [ALIGN])
            t = tl.load(place + at, mask=j < count, other=0).to(tl.int64)
            of = tl.load(number + at, mask=j < count, other=-1)
            inside = (j < count)[:, None] & (p < LENGTH)[None, :]
            patch = tl.load(samples + sample[:, None] + p[None, :], mask=inside, other=0)
            within = (j < count)[:, None] & (d < D)[None, :]
            found = tl.load(grad + t[:, None] * D + d[None, :], mask=within, other=0).to(OPERAND)
            if not UNIT:
                by = tl.load(scale + at, mask=j < count, other=0).to(ACC)
                plus = tl.load(shift + at, mask=j < count, other=0).to(ACC)
                patch = tl.where((p < LENGTH)[None, :], patch.to(ACC) * by[:, None] + plus[:, None], 0)
            patch = tl.trans(patch.to(OPERAND))
            products = tl.dot(patch, found, products, input_precision=PRECISION, out_dtype=ACC)
            hot = (of[:, None] == n[None, :]).to(OPERAND)
            sums = tl.dot(tl.trans(found), hot, sums, input_precision=PRECISION, out_dtype=ACC)
        at = (group * ROWS + p).to(tl.int64)[:, None] * D + d[None, :]
        tl.store(partial + at, products, mask=(p < LENGTH)[:, None] & (d < D)[None, :])
        patch_of = (group % parts) * per + n
        is_mine = (n < per) & (patch_of < patches) & (tl.program_id(1) == 0)
        at = (group // parts * patches + patch_of)[None, :] * D + d[:, None]
        tl.store(dtable + at, sums.to(dtable.dtype.element_ty), mask=(d < D)[:, None] & is_mine[None, :])


@triton.jit
def _sum_groups(
    partial,  # [groups, ROWS, D]
    kinds,  # [groups]
    out,  # [sum P_m, D]
    groups,
    LENGTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    KINDS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of some weights of a modality: what its groups found, in their order."""
    kind = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < select(kind, LENGTHS, KINDS) * D
    total = tl.zeros([BLOCK_G, BLOCK], ACC)
    for begin in range(0, groups, BLOCK_G):
        g = begin + tl.arange(0, BLOCK_G)
        is_mine = tl.load(kinds + g, mask=g < groups, other=-1) == kind
        at = g.to(tl.int64)[:, None] * (ROWS * D) + i[None, :]
        total += tl.load(partial + at, mask=is_mine[:, None] & inside[None, :], other=0)
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
    list_tokens: Kernel
    sums: tuple[Kernel, ...]
    """One for each patch length."""
    sum_groups: Kernel


@functools.lru_cache
def _kernels(known: Known, ids: int) -> _Kernels:
    """For groups of so many token ids."""
    rows, acc = max(known.lengths), accumulate_in(known.samples, known.weight)
    lengths = {"LENGTHS": known.lengths, "KINDS": len(known.lengths)}
    sums: list[Kernel] = []
    for length in dict.fromkeys(known.lengths):
        launch = table.embed_weights(length, known.width, known.weight.itemsize, known.unit, ids)
        sums.append(Kernel(_sums, launch, FIRST=not sums, ROWS=rows, UNIT=known.unit, **known.constants(length)))
    in_order = lengths | {"OFFSETS": tuple(row_offsets(known.lengths)), "ROWS": rows, "D": known.width, "ACC": acc}
    return _Kernels(
        list_tokens=Kernel(_list_tokens, table.list_tokens(ids), UNIT=known.unit, **lengths),
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
    (height, width), (batch, channels), tokens = weight.shape, row_start.shape, slots.shape[1]
    known, patches = Known.of(samples, weight, patch_lengths, align, unit), tokens // channels
    parts, per = table.parts_of_channel(channels, patches)
    groups, kernels = channels * parts, _kernels(known, per)
    acc = torch.float64 if torch.float64 in (samples.dtype, weight.dtype) else torch.float32
    place, number = ids.new_empty(2, groups, per * batch).unbind()
    scale, shift = row_scale.new_empty(2, groups, per * batch).unbind()
    first, counts, kinds = place.new_empty(place.shape, dtype=torch.int64), *ids.new_empty(2, groups).unbind()
    listed = (place, number, first, scale, shift, counts, kinds)
    sizes = (batch, channels, patches, parts, per)
    kernels.list_tokens.start((groups,), (*row, modality.contiguous(), slots.contiguous(), *listed), (), sizes)
    partial = weight.new_empty(groups, max(patch_lengths), width, dtype=acc)
    dweight, dtable = weight.new_empty(height, width), weight.new_empty(tokens, width)
    for kernel in kernels.sums:
        across = table.tiles(kernel.constants["LENGTH"], kernel.blocks["BLOCK_P"])
        grid = (groups * table.tiles(width, kernel.blocks["BLOCK_D"]), across)
        kernel.start(grid, (grad, samples, *listed), (partial, dtable), (batch, patches, parts, per))
    add = kernels.sum_groups
    grid = (table.tiles(max(patch_lengths) * width, add.blocks["BLOCK"]), len(patch_lengths))
    add.start(grid, (partial, kinds), (dweight,), (groups,))
    if not need_samples:
        return dweight, dtable, samples.new_empty(0)
    order = (ids.contiguous(), by_modality.contiguous(), cu_modality.contiguous())
    return dweight, dtable, _samples_gradient(known, grad, samples, row, order, weight, patches)
