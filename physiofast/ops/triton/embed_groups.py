"""Tokens by groups of ids, which is how `embed_patches` and its gradients go through a packing.

A group is some patches of one channel: its tokens are of one modality and have few rows of the table, so that products
with the modality's weights, and sums over a row's tokens, are of whole blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops.contracts import row_offsets
from physiofast.ops.triton import table
from physiofast.ops.triton.dtypes import is_exact, products
from physiofast.ops.triton.launching import Kernel
from physiofast.ops.triton.parts import select

NONE: tl.constexpr = tl.constexpr(-1)
"""Modality of a group without tokens."""
SEVERAL: tl.constexpr = tl.constexpr(-2)
"""Modality of a group whose tokens are of two and more, where a row of samples has one, or some of an absent row: such
groups give NaN."""


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
        row = b * channels + channel
        t = tl.load(slots + row * patches + patch, mask=is_mine & (b < B), other=-1)
        # Not behind the barriers of the sums below: of windows where the group has no token, too.
        start = tl.load(row_start + row, mask=b < B, other=0)
        if not UNIT:
            by = tl.load(row_scale + row, mask=b < B, other=0)
            plus = tl.load(row_shift + row, mask=b < B, other=0)
        here = t >= 0
        kind = tl.load(modality + t, mask=here, other=-1)
        kind = tl.where(here & (start < 0), KINDS, kind)  # of no row, of which nobody may read
        lowest = tl.minimum(lowest, tl.min(tl.where(here, kind, KINDS)))
        highest = tl.maximum(highest, tl.max(kind))
        start = tl.maximum(start, 0) + patch.to(tl.int64) * select(kind, LENGTHS, KINDS)
        at = group * per * B + before + tl.cumsum(here.to(tl.int32)) - 1
        tl.store(place + at, t, mask=here)
        tl.store(number + at, n, mask=here)
        tl.store(first + at, start, mask=here)
        if not UNIT:
            tl.store(scale + at, by, mask=here)
            tl.store(shift + at, plus, mask=here)
        before += tl.sum(here.to(tl.int32))
    tl.store(counts + group, before)
    is_one = (lowest == highest) & (highest < KINDS)
    tl.store(kinds + group, tl.where(before == 0, NONE, tl.where(is_one, highest, SEVERAL)))


@triton.jit
def of_group(group, most, place, number, first, scale, shift):
    """Where a group's lists begin."""
    begin = group * most
    return place + begin, number + begin, first + begin, scale + begin, shift + begin


@triton.jit
def rows_of_table(group, patches, parts, per, BLOCK_N: tl.constexpr):
    """(a group's rows of the table [BLOCK_N], which of these there are)."""
    n = tl.arange(0, BLOCK_N)
    patch = (group % parts) * per + n
    return (group // parts) * patches + patch, (n < per) & (patch < patches)


@triton.jit
def locate(first, scale, shift, at, ALIGN: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr):
    """(where the samples begin, scale, shift) [BLOCK_T] of tokens of a group's lists."""
    begin = tl.multiple_of(tl.load(first + at), [ALIGN])
    if UNIT:
        by = begin  # nobody asks
        plus = begin
    else:
        by = tl.load(scale + at).to(ACC)
        plus = tl.load(shift + at).to(ACC)
    return begin, by, plus


@triton.jit
def read_patches(
    samples, located, begin, LENGTH: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr
):
    """[BLOCK_T, BLOCK_P], samples from `begin` on of tokens that `locate` has found."""
    first, scale, shift = located
    p = begin + tl.arange(0, BLOCK_P)
    patch = tl.load(samples + first[:, None] + p[None, :], mask=(p < LENGTH)[None, :], other=0)
    if not UNIT:
        # Without `where`, Triton loads 16-bit samples one by one, as tensor cores want to have them.
        patch = tl.where((p < LENGTH)[None, :], patch.to(ACC) * scale[:, None] + shift[:, None], 0)
    return patch


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
    ids: int
    """Of a group."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the weights of each modality begin."""
        return tuple(row_offsets(self.lengths))

    def constants(self, length: int) -> dict[str, Any]:
        """Of every kernel for patches of a length."""
        members = [m for m, of_m in enumerate(self.lengths) if of_m == length]
        return products(self.weight, self.is_exact, self.samples) | {
            "MEMBERS": tuple(int(m in members) for m in range(len(self.lengths))),
            "KINDS": len(self.lengths),
            "LENGTH": length,
            "D": self.width,
            "ALIGN": math.gcd(length, self.align, 8),
            "UNIT": self.unit,
        }

    def kernels(self, function: Any, launch: Callable[[int], table.Launch], **more: Any) -> tuple[Kernel, ...]:
        """One for each patch length; the first one does what is of no length, too."""
        found: list[Kernel] = []
        for length in dict.fromkeys(self.lengths):
            found.append(Kernel(function, launch(length), FIRST=not found, **self.constants(length), **more))
        return tuple(found)


@functools.lru_cache
def _kernel(lengths: tuple[int, ...], unit: bool, ids: int) -> Kernel:
    return Kernel(_list_tokens, table.list_tokens(ids), LENGTHS=lengths, KINDS=len(lengths), UNIT=unit)


class Groups:
    """The groups that a packing's tokens come in.

    Args:
        samples: flat.
        row_start: [B, C].
        row_scale: [B, C].
        row_shift: [B, C].
        slots: [B, N].
        weight: [sum P_m, D].
        patch_lengths: P_m.
        align: of rows.
        unit: whether every scale is 1 and every shift 0.
    """

    def __init__(
        self,
        samples: Tensor,
        row_start: Tensor,
        row_scale: Tensor,
        row_shift: Tensor,
        slots: Tensor,
        weight: Tensor,
        patch_lengths: Sequence[int],
        align: int,
        unit: bool,
    ) -> None:
        batch, channels = row_start.shape
        patches = slots.shape[1] // channels
        parts, per = table.parts_of_channel(channels, patches, weight.element_size())
        self.number, self._most = channels * parts, per * batch
        self.sizes = (batch, patches, parts, per)
        # A sample is an operand as it is only where both are of one type.
        unit = unit and samples.dtype == weight.dtype
        dtypes = (samples.dtype, weight.dtype)
        self.known = Known(tuple(patch_lengths), weight.shape[1], align, unit, *dtypes, is_exact(), per)
        index, begin = slots.new_empty(0), slots.new_empty(0, dtype=torch.int64)
        self.empty = (index, index, begin, row_scale.new_empty(0), row_shift.new_empty(0), index, index)
        """Lists without a place, of the types that lists have."""
        inputs = (row_start, row_scale, row_shift, slots, slots, *self.empty)
        sizes = (batch, channels, patches, parts, per)
        self._start = _kernel(self.known.lengths, unit, per).prepare((self.number,), inputs, sizes)

    def list(
        self, row_start: Tensor, row_scale: Tensor, row_shift: Tensor, modality: Tensor, slots: Tensor
    ) -> tuple[Tensor, ...]:
        """The lists of `_list_tokens`, from `place` to `kinds`."""
        groups, most = self.number, self._most
        place, number = slots.new_empty(2, groups, most).unbind()
        counts, kinds = slots.new_empty(2, groups).unbind()
        first, scale, shift = slots.new_empty(groups, most, dtype=torch.int64), row_scale, row_shift
        if not self.known.unit:  # else nobody asks
            scale, shift = row_scale.new_empty(groups, most), row_shift.new_empty(groups, most)
        listed = (place, number, first, scale, shift, counts, kinds)
        self._start((row_start, row_scale, row_shift, modality, slots, *listed), ())
        return listed
