"""`embed_patches`: samples to tokens in one pass, and the gradients of weights, table and dense samples.

Tiles are cut along `by_modality`, so that a tile's tokens are of one modality, but for a few tiles that hold the end of
one and the beginning of the next. Kernels are started once for each patch length, which they know when compiled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops.contracts import row_offsets
from physiofast.ops.triton import table
from physiofast.ops.triton.assemble import accumulate_in, sum_by_token
from physiofast.ops.triton.launching import Kernel
from physiofast.ops.triton.parts import first_sample, scales, select


@triton.jit
def _tile(by_modality, modality, ids, T, MEMBERS: tl.constexpr, KINDS: tl.constexpr, BLOCK_T: tl.constexpr):
    """(places, modality or -1, token ids, whose patches have this length, first and last modality) of a tile."""
    i = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    t = tl.load(by_modality + i, mask=i < T, other=-1)
    kind = tl.load(modality + t, mask=t >= 0, other=-1)
    mine = select(kind, MEMBERS, KINDS) > 0
    token = tl.load(ids + t, mask=mine, other=0)
    low = tl.min(tl.where(mine, kind, KINDS))
    high = tl.max(tl.where(mine, kind, -1))
    return t, kind, token, mine, low, high


@triton.jit
def _embed(
    samples,
    row_start,  # [B * C]
    row_scale,
    row_shift,
    ids,  # [T]
    modality,  # [T]
    by_modality,  # [T]
    weight,  # [sum P_m, D]
    position,  # [N, D]
    out,  # [T, D]
    T,
    N,
    patches,
    OFFSETS: tl.constexpr,
    MEMBERS: tl.constexpr,
    KINDS: tl.constexpr,
    FIRST: tl.constexpr,
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
    t, kind, token, mine, low, high = _tile(by_modality, modality, ids, T, MEMBERS, KINDS, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row, first = first_sample(row_start, token, LENGTH, patches, mine, ALIGN)
    scale, shift = scales(row_scale, row_shift, row, mine, ACC)
    offset = select(kind, OFFSETS, KINDS)
    width = (d < D)[None, :]

    total = tl.zeros([BLOCK_T, BLOCK_D], ACC)
    for m in range(low, high + 1):
        here = mine & (kind == m)
        of_m = tl.max(tl.where(here, offset, 0))
        for begin in tl.static_range(0, LENGTH, BLOCK_P):
            p = begin + tl.arange(0, BLOCK_P)
            inside = here[:, None] & (p < LENGTH)[None, :]
            stored = tl.load(samples + first[:, None] + p[None, :], mask=inside, other=0)
            patch = tl.where(inside, stored.to(ACC) * scale[:, None] + shift[:, None], 0).to(OPERAND)
            place = (of_m + p)[:, None] * D + d[None, :]  # [BLOCK_P, BLOCK_D]
            part = tl.load(weight + place, mask=(p < LENGTH)[:, None] & width, other=0).to(OPERAND)
            total = tl.dot(patch, part, total, input_precision=PRECISION, out_dtype=ACC)

    place = (token % N)[:, None] * D + d[None, :]
    total += tl.load(position + place, mask=mine[:, None] & width, other=0).to(ACC)
    written = mine
    if FIRST:  # the tail is zero
        written = mine | ((kind < 0) & (t >= 0))
    place = t.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=written[:, None] & width)


@triton.jit
def _dweight(
    grad,  # [T, D]
    samples,
    row_start,  # [B * C]
    row_scale,
    row_shift,
    ids,  # [T]
    by_modality,  # [T]
    cu_modality,  # [M + 1]
    partial,  # [splits, sum P_m, D]
    splits,
    patches,
    OFFSETS: tl.constexpr,
    KIND: tl.constexpr,
    NUM: tl.constexpr,
    ROWS: tl.constexpr,
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
    pid = tl.program_id(0)
    split, i_m = pid % splits, pid // splits
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m = select(i_m, KIND, NUM)
    begin, end = tl.load(cu_modality + m), tl.load(cu_modality + m + 1)
    tiles = tl.cdiv(tl.cdiv(end - begin, BLOCK_T), splits)
    first_tile = begin + split * tiles * BLOCK_T

    total = tl.zeros([BLOCK_P, BLOCK_D], ACC)
    for tile in range(tiles):
        i = first_tile + tile * BLOCK_T + tl.arange(0, BLOCK_T)
        real = i < end
        t = tl.load(by_modality + i, mask=real, other=0)
        token = tl.load(ids + t, mask=real, other=0)
        row, first = first_sample(row_start, token, LENGTH, patches, real, ALIGN)
        scale, shift = scales(row_scale, row_shift, row, real, ACC)
        inside = real[:, None] & (p < LENGTH)[None, :]
        stored = tl.load(samples + first[:, None] + p[None, :], mask=inside, other=0)
        patch = tl.where(inside, stored.to(ACC) * scale[:, None] + shift[:, None], 0).to(OPERAND)
        place = t.to(tl.int64)[:, None] * D + d[None, :]
        found = tl.load(grad + place, mask=real[:, None] & (d < D)[None, :], other=0).to(OPERAND)
        total = tl.dot(tl.trans(patch), found, total, input_precision=PRECISION, out_dtype=ACC)

    place = (split * ROWS + select(i_m, OFFSETS, NUM) + p).to(tl.int64)[:, None] * D + d[None, :]
    tl.store(partial + place, total, mask=(p < LENGTH)[:, None] & (d < D)[None, :])


@triton.jit
def _sum_splits(
    partial,  # [splits, size]
    out,  # [size]
    splits,
    size,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for split in range(splits):
        total += tl.load(partial + split * size + i, mask=i < size, other=0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)


@triton.jit
def _dsamples(
    grad,  # [T, D]
    row_start,  # [B * C]
    row_scale,
    row_shift,
    ids,  # [T]
    modality,  # [T]
    by_modality,  # [T]
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
    t, kind, token, mine, low, high = _tile(by_modality, modality, ids, T, MEMBERS, KINDS, BLOCK_T)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    row, first = first_sample(row_start, token, LENGTH, patches, mine, ALIGN)
    scale, _ = scales(row_scale, row_shift, row, mine, ACC)
    offset = select(kind, OFFSETS, KINDS)

    total = tl.zeros([BLOCK_T, BLOCK_P], ACC)
    for m in range(low, high + 1):
        here = mine & (kind == m)
        of_m = tl.max(tl.where(here, offset, 0))
        for begin in range(0, D, BLOCK_D):
            d = begin + tl.arange(0, BLOCK_D)
            place = t.to(tl.int64)[:, None] * D + d[None, :]
            found = tl.load(grad + place, mask=here[:, None] & (d < D)[None, :], other=0).to(OPERAND)
            place = (of_m + p)[:, None] * D + d[None, :]  # [BLOCK_P, BLOCK_D]
            part = tl.load(weight + place, mask=(p < LENGTH)[:, None] & (d < D)[None, :], other=0).to(OPERAND)
            total = tl.dot(found, tl.trans(part), total, input_precision=PRECISION, out_dtype=ACC)

    slope = (total * scale[:, None]).to(out.dtype.element_ty)
    tl.store(out + first[:, None] + p[None, :], slope, mask=mine[:, None] & (p < LENGTH)[None, :])


class _Group(NamedTuple):
    """The modalities of one patch length, and their kernels."""

    length: int
    kinds: tuple[int, ...]
    embed: Kernel
    dweight: Kernel
    dsamples: Kernel


_OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@functools.lru_cache
def _groups(
    lengths: tuple[int, ...], width: int, align: int, samples: torch.dtype, dtype: torch.dtype, precision: str
) -> tuple[_Group, ...]:
    """For samples of a dtype, weights [sum P_m, width] of another, and PyTorch's precision of matrix products."""
    acc, offsets = accumulate_in(samples, dtype), row_offsets(lengths)
    found: list[_Group] = []
    for length in dict.fromkeys(lengths):
        kinds = tuple(m for m, of_m in enumerate(lengths) if of_m == length)
        known = {
            "LENGTH": length,
            "D": width,
            "ALIGN": math.gcd(length, align, 8),
            "ACC": acc,
            "OPERAND": acc if acc == tl.float64 else _OPERANDS[dtype],
            "PRECISION": "ieee" if precision == "highest" else "tf32x3",
        }
        members = {
            "OFFSETS": tuple(offsets),
            "MEMBERS": tuple(int(m in kinds) for m in range(len(lengths))),
            "KINDS": len(lengths),
        }
        mine = {"OFFSETS": tuple(offsets[m] for m in kinds), "KIND": kinds, "NUM": len(kinds), "ROWS": sum(lengths)}
        launch = table.embed_patches(length, width, dtype.itemsize)
        embed = Kernel(_embed, launch, FIRST=not found, **members, **known)
        dweight = Kernel(_dweight, table.embed_weights(length, width, dtype.itemsize), **mine, **known)
        found.append(_Group(length, kinds, embed, dweight, Kernel(_dsamples, launch, **members, **known)))
    return tuple(found)


@functools.lru_cache
def _sum(acc: torch.dtype) -> Kernel:
    return Kernel(_sum_splits, table.sum_splits(), ACC=accumulate_in(acc))


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
    position: Tensor,
    patch_lengths: Sequence[int],
    align: int,
) -> Tensor:
    """As `reference.embed_patches`."""
    count, width, tokens = ids.shape[0], weight.shape[1], slots.shape[1]
    out = weight.new_empty(count, width)
    rows = (samples, row_start.contiguous(), row_scale.contiguous(), row_shift.contiguous())
    tensors = (*rows, ids, modality, by_modality, weight.contiguous(), position.contiguous(), out)
    sizes = (count, tokens, tokens // row_start.shape[1])
    precision = torch.get_float32_matmul_precision()
    for group in _groups(tuple(patch_lengths), width, align, samples.dtype, weight.dtype, precision):
        blocks = group.embed.blocks
        grid = (table.tiles(count, blocks["BLOCK_T"]), table.tiles(width, blocks["BLOCK_D"]))
        group.embed.start(grid, tensors, sizes)
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
    need_samples: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.embed_patches_backward`."""
    grad, weight = grad.contiguous(), weight.contiguous()
    rows = (row_start.contiguous(), row_scale.contiguous(), row_shift.contiguous())
    count, (height, width), tokens = ids.shape[0], weight.shape, slots.shape[1]
    patches = tokens // row_start.shape[1]
    dsamples = torch.zeros_like(samples) if need_samples else samples.new_empty(0)
    dtable, dweight = weight.new_empty(tokens, width), weight.new_empty(height, width)
    splits = table.embed_splits(count, len(patch_lengths))
    acc = torch.float64 if torch.float64 in (samples.dtype, weight.dtype) else torch.float32
    partial = weight.new_empty(splits, height, width, dtype=acc)
    precision = torch.get_float32_matmul_precision()
    for group in _groups(tuple(patch_lengths), width, align, samples.dtype, weight.dtype, precision):
        blocks = group.dweight.blocks
        across = (table.tiles(group.length, blocks["BLOCK_P"]), table.tiles(width, blocks["BLOCK_D"]))
        inputs = (grad, samples, *rows, ids, by_modality, cu_modality)
        group.dweight.start((splits * len(group.kinds), *across), (*inputs, partial), (splits, patches))
        if need_samples:
            blocks = group.dsamples.blocks
            grid = (table.tiles(count, blocks["BLOCK_T"]), table.tiles(group.length, blocks["BLOCK_P"]))
            inputs = (grad, *rows, ids, modality, by_modality, weight)
            group.dsamples.start(grid, (*inputs, dsamples), (count, patches))
    size, add = height * width, _sum(acc)
    add.start((table.tiles(size, add.blocks["BLOCK"]),), (partial, dweight), (splits, size))
    sum_by_token(grad, slots, dtable)
    return dweight, dtable, dsamples
