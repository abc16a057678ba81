"""`embed_patches`: samples to tokens in one pass.

Tiles are cut along `by_modality`, each of one modality. Kernels are started once for each patch length, which they know
when compiled. `embed_backward` has the gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops.contracts import row_offsets
from physiofast.ops.triton import table
from physiofast.ops.triton.dtypes import is_exact, products
from physiofast.ops.triton.launching import Kernel
from physiofast.ops.triton.parts import first_sample, scales, select, tile_of_kind


@triton.jit
def _embed(
    samples,
    row_start,  # [B * C]
    row_scale,
    row_shift,
    ids,  # [T]
    by_modality,  # [T]
    cu_modality,  # [M + 1]
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
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    columns: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    kind, first_place, end = tile_of_kind(cu_modality, tl.program_id(0) // columns, T, BLOCK_T, KINDS)
    d = (tl.program_id(0) % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    i = first_place + tl.arange(0, BLOCK_T)
    mask = (i < end)[:, None] & (d < D)[None, :]
    t = tl.load(by_modality + i, mask=i < end, other=0)
    place = t.to(tl.int64)[:, None] * D + d[None, :]
    if (kind >= 0) & (kind < KINDS):
        if select(kind, MEMBERS, KINDS) > 0:
            token = tl.load(ids + t, mask=i < end, other=0)
            row, first = first_sample(row_start, token, LENGTH, patches, i < end, ALIGN)
            if not UNIT:
                scale, shift = scales(row_scale, row_shift, row, i < end, ACC)
            total = tl.zeros([BLOCK_T, BLOCK_D], ACC)
            for begin in range(0, LENGTH, BLOCK_P):
                p = begin + tl.arange(0, BLOCK_P)
                inside = (i < end)[:, None] & (p < LENGTH)[None, :]
                patch = tl.load(samples + first[:, None] + p[None, :], mask=inside, other=0)
                if not UNIT:
                    patch = tl.where(inside, patch.to(ACC) * scale[:, None] + shift[:, None], 0)
                of_kind = (select(kind, OFFSETS, KINDS) + p)[:, None] * D + d[None, :]  # [BLOCK_P, BLOCK_D]
                part = tl.load(weight + of_kind, mask=(p < LENGTH)[:, None] & (d < D)[None, :], other=0)
                total = tl.dot(patch.to(OPERAND), part.to(OPERAND), total, input_precision=PRECISION, out_dtype=ACC)
            total += tl.load(position + (token % N)[:, None] * D + d[None, :], mask=mask, other=0).to(ACC)
            tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)
    elif FIRST:  # the tail is zero
        tl.store(out + place, tl.zeros([BLOCK_T, BLOCK_D], out.dtype.element_ty), mask=mask)


class Known(NamedTuple):
    """What kernels are compiled for, of one call."""

    lengths: tuple[int, ...]
    """P_m."""
    width: int
    """D."""
    align: int
    unit: bool
    samples: torch.dtype
    weight: torch.dtype
    is_exact: bool
    """Whether float32 is multiplied in full."""

    @classmethod
    def of(cls, samples: Tensor, weight: Tensor, patch_lengths: Sequence[int], align: int, unit: bool) -> Known:
        """Of the arguments of the registered op."""
        # A sample is an operand as it is only where both are of one type.
        unit = unit and samples.dtype == weight.dtype
        return cls(tuple(patch_lengths), weight.shape[1], align, unit, samples.dtype, weight.dtype, is_exact())

    def constants(self, length: int) -> dict[str, Any]:
        """Of every kernel for patches of a length."""
        kinds = [m for m, of_m in enumerate(self.lengths) if of_m == length]
        return products(self.weight, self.is_exact, self.samples) | {
            "MEMBERS": tuple(int(m in kinds) for m in range(len(self.lengths))),
            "KINDS": len(self.lengths),
            "LENGTH": length,
            "D": self.width,
            "ALIGN": math.gcd(length, self.align, 8),
        }


@functools.lru_cache
def _kernels(known: Known) -> tuple[Kernel, ...]:
    """One for each patch length."""
    found: list[Kernel] = []
    offsets = tuple(row_offsets(known.lengths))
    for length in dict.fromkeys(known.lengths):
        launch = table.embed_patches(length, known.width, known.weight.itemsize)
        constants = known.constants(length) | {"OFFSETS": offsets, "UNIT": known.unit}
        found.append(Kernel(_embed, launch, FIRST=not found, **constants))
    return tuple(found)


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
    unit: bool,
) -> Tensor:
    """As `reference.embed_patches`."""
    count, width, tokens = ids.shape[0], weight.shape[1], slots.shape[1]
    out = weight.new_empty(count, width)
    rows, order = (samples, row_start, row_scale, row_shift), (ids, by_modality, cu_modality)
    inputs = [tensor.contiguous() for tensor in (*rows, *order, weight, position)]
    sizes = (count, tokens, tokens // row_start.shape[1])
    for kernel in _kernels(Known.of(samples, weight, patch_lengths, align, unit)):
        tiles = table.tiles(count, kernel.blocks["BLOCK_T"]) + len(patch_lengths)
        kernel.start((tiles * table.tiles(width, kernel.blocks["BLOCK_D"]),), inputs, (out,), sizes)
    return out
