"""`embed_patches`: samples to tokens in one pass, and the gradients of weights, table and dense samples.

Tiles are cut along `by_modality`, so that a tile's tokens are of one modality, but for a few tiles that hold the end of
one and the beginning of the next. Kernels are started once for each patch length, which they know when compiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops.contracts import row_offsets
from physiofast.ops.triton import table
from physiofast.ops.triton.assemble import accumulate_in, sum_by_token
from physiofast.ops.triton.launching import start
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
    """The modalities of one patch length."""

    length: int
    kinds: tuple[int, ...]
    is_first: bool


def _groups(patch_lengths: Sequence[int]) -> Iterator[_Group]:
    for number, length in enumerate(dict.fromkeys(patch_lengths)):
        yield _Group(length, tuple(m for m, found in enumerate(patch_lengths) if found == length), number == 0)


def _constants(samples: Tensor, weight: Tensor, group: _Group, align: int) -> dict[str, Any]:
    """What every kernel of this file is compiled for."""
    acc = accumulate_in(samples, weight)
    return {
        "LENGTH": group.length,
        "D": weight.shape[1],
        "ALIGN": math.gcd(group.length, align, 8),
        "ACC": acc,
        "OPERAND": acc if acc == tl.float64 else _OPERANDS[weight.dtype],
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32x3",
    }


_OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


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
    tokens, width, kinds = len(ids), weight.shape[1], len(patch_lengths)
    out = weight.new_empty(tokens, width)
    rows = (samples, row_start.contiguous(), row_scale.contiguous(), row_shift.contiguous())
    args = (*rows, ids, modality, by_modality, weight.contiguous(), position.contiguous(), out, tokens, slots.shape[1])
    for group in _groups(patch_lengths):
        launch = table.embed_patches(group.length, width, weight.element_size())
        start(
            _embed,
            (triton.cdiv(tokens, launch.blocks["BLOCK_T"]), triton.cdiv(width, launch.blocks["BLOCK_D"])),
            (*args, slots.shape[1] // row_start.shape[1]),
            launch,
            OFFSETS=tuple(row_offsets(patch_lengths)),
            MEMBERS=tuple(int(m in group.kinds) for m in range(kinds)),
            KINDS=kinds,
            FIRST=group.is_first,
            **_constants(samples, weight, group, align),
        )
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
    patches = slots.shape[1] // row_start.shape[1]
    dsamples = torch.zeros_like(samples) if need_samples else samples.new_empty(0)
    dtable = weight.new_empty(slots.shape[1], weight.shape[1])
    splits = table.embed_splits(len(ids), len(patch_lengths))
    partial = weight.new_empty((splits, *weight.shape), dtype=_torch_accumulator(samples, weight))
    offsets = row_offsets(patch_lengths)
    for group in _groups(patch_lengths):
        known = _constants(samples, weight, group, align)
        launch = table.embed_weights(group.length, weight.shape[1], weight.element_size())
        across = (
            triton.cdiv(group.length, launch.blocks["BLOCK_P"]),
            triton.cdiv(weight.shape[1], launch.blocks["BLOCK_D"]),
        )
        start(
            _dweight,
            (splits * len(group.kinds), *across),
            (grad, samples, *rows, ids, by_modality, cu_modality, partial, splits, patches),
            launch,
            OFFSETS=tuple(offsets[m] for m in group.kinds),
            KIND=group.kinds,
            NUM=len(group.kinds),
            ROWS=len(weight),
            **known,
        )
        if need_samples:
            launch = table.embed_patches(group.length, weight.shape[1], weight.element_size())
            tiles = (
                triton.cdiv(len(ids), launch.blocks["BLOCK_T"]),
                triton.cdiv(group.length, launch.blocks["BLOCK_P"]),
            )
            start(
                _dsamples,
                tiles,
                (grad, *rows, ids, modality, by_modality, weight, dsamples, len(ids), patches),
                launch,
                OFFSETS=tuple(offsets),
                MEMBERS=tuple(int(m in group.kinds) for m in range(len(patch_lengths))),
                KINDS=len(patch_lengths),
                **known,
            )
    dweight = torch.empty_like(weight)
    launch = table.sum_splits()
    grid = (triton.cdiv(weight.numel(), launch.blocks["BLOCK"]),)
    acc = accumulate_in(samples, weight)
    start(_sum_splits, grid, (partial, dweight, splits, weight.numel()), launch, ACC=acc)
    sum_by_token(grad, slots, dtable)
    return dweight, dtable, dsamples


def _torch_accumulator(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if accumulate_in(*tensors) == tl.float64 else torch.float32
