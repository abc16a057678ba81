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
"""Modality of a group whose tokens disagree on modality, or of which one lies in an absent row. Its results are NaN."""


@triton.jit
def _list_tokens(
    row_start,  # [B * C]
    row_scale,
    row_shift,
    modality,  # [T]
    slots,  # [B, N]
    place,  # [groups, patches_per_group * B], where the group's tokens stand
    number,  # [groups, patches_per_group * B], which of the group's ids each has
    first,  # [groups, patches_per_group * B], where its samples begin
    scale,  # [groups, patches_per_group * B]
    shift,  # [groups, patches_per_group * B]
    counts,  # [groups], tokens
    group_modality,  # [groups]
    B,
    channels,
    patches_per_channel,
    groups_per_channel,
    patches_per_group,
    LENGTHS: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    UNSCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The tokens of a group, window after window."""
    group = tl.program_id(0)
    channel = group // groups_per_channel
    i = tl.arange(0, BLOCK_B * BLOCK_N)
    n = i % BLOCK_N
    patch = (group % groups_per_channel) * patches_per_group + n
    is_mine = (n < patches_per_group) & (patch < patches_per_channel)
    before = 0
    lowest, highest = NUM_MODALITIES, -1
    for begin in range(0, B, BLOCK_B):
        b = begin + i // BLOCK_N
        row = b * channels + channel
        t = tl.load(slots + row * patches_per_channel + patch, mask=is_mine & (b < B), other=-1)
        # Loaded before the reductions, whose barriers would delay it, even for windows that have no token here.
        start = tl.load(row_start + row, mask=b < B, other=0)
        if not UNSCALED:
            by = tl.load(row_scale + row, mask=b < B, other=0)
            plus = tl.load(row_shift + row, mask=b < B, other=0)
        here = t >= 0
        modality_tile = tl.load(modality + t, mask=here, other=-1)
        # Of an absent row, which must not be read.
        modality_tile = tl.where(here & (start < 0), NUM_MODALITIES, modality_tile)
        lowest = tl.minimum(lowest, tl.min(tl.where(here, modality_tile, NUM_MODALITIES)))
        highest = tl.maximum(highest, tl.max(modality_tile))
        start = tl.maximum(start, 0) + patch.to(tl.int64) * select(modality_tile, LENGTHS, NUM_MODALITIES)
        at = group * patches_per_group * B + before + tl.cumsum(here.to(tl.int32)) - 1
        tl.store(place + at, t, mask=here)
        tl.store(number + at, n, mask=here)
        tl.store(first + at, start, mask=here)
        if not UNSCALED:
            tl.store(scale + at, by, mask=here)
            tl.store(shift + at, plus, mask=here)
        before += tl.sum(here.to(tl.int32))
    tl.store(counts + group, before)
    is_one = (lowest == highest) & (highest < NUM_MODALITIES)
    tl.store(group_modality + group, tl.where(before == 0, NONE, tl.where(is_one, highest, SEVERAL)))


@triton.jit
def of_group(group, most, place, number, first, scale, shift):
    """Where a group's lists begin."""
    begin = group * most
    return place + begin, number + begin, first + begin, scale + begin, shift + begin


@triton.jit
def rows_of_table(group, patches_per_channel, groups_per_channel, patches_per_group, BLOCK_N: tl.constexpr):
    """(a group's rows of the table [BLOCK_N], which of these there are)."""
    n = tl.arange(0, BLOCK_N)
    patch = (group % groups_per_channel) * patches_per_group + n
    row = (group // groups_per_channel) * patches_per_channel + patch
    return row, (n < patches_per_group) & (patch < patches_per_channel)


@triton.jit
def locate(first, scale, shift, at, ALIGN: tl.constexpr, UNSCALED: tl.constexpr, ACC: tl.constexpr):
    """(where the samples begin, scale, shift) [BLOCK_T] of tokens of a group's lists."""
    begin = tl.multiple_of(tl.load(first + at), [ALIGN])
    if UNSCALED:
        by = begin  # unused
        plus = begin
    else:
        by = tl.load(scale + at).to(ACC)
        plus = tl.load(shift + at).to(ACC)
    return begin, by, plus


@triton.jit
def read_patches(
    samples, located, begin, LENGTH: tl.constexpr, UNSCALED: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr
):
    """[BLOCK_T, BLOCK_P], samples from `begin` on of tokens that `locate` has found."""
    first, scale, shift = located
    p = begin + tl.arange(0, BLOCK_P)
    patch = tl.load(samples + first[:, None] + p[None, :], mask=(p < LENGTH)[None, :], other=0)
    if not UNSCALED:
        # Without `where`, Triton loads 16-bit samples in the tensor core's layout, which is one by one.
        patch = tl.where((p < LENGTH)[None, :], patch.to(ACC) * scale[:, None] + shift[:, None], 0)
    return patch


class Known(NamedTuple):
    """What the kernels of a call are compiled for."""

    lengths: tuple[int, ...]
    """P_m."""
    width: int
    """D."""
    align: int
    is_unscaled: bool
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
            "NUM_MODALITIES": len(self.lengths),
            "LENGTH": length,
            "D": self.width,
            "ALIGN": math.gcd(length, self.align, 8),
            "UNSCALED": self.is_unscaled,
        }

    def kernels(self, function: Any, launch: Callable[[int], table.Launch], **more: Any) -> tuple[Kernel, ...]:
        """One for each patch length; the first one does what is of no length, too."""
        kernels: list[Kernel] = []
        for length in dict.fromkeys(self.lengths):
            kernels.append(Kernel(function, launch(length), FIRST=not kernels, **self.constants(length), **more))
        return tuple(kernels)


@functools.lru_cache
def _kernel(lengths: tuple[int, ...], is_unscaled: bool, ids: int) -> Kernel:
    return Kernel(
        _list_tokens, table.list_tokens(ids), LENGTHS=lengths, NUM_MODALITIES=len(lengths), UNSCALED=is_unscaled
    )


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
        is_unscaled: whether every scale is 1 and every shift 0.
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
        is_unscaled: bool,
    ) -> None:
        batch, channels = row_start.shape
        patches = slots.shape[1] // channels
        groups_per_channel, patches_per_group = table.groups_of_channel(channels, patches, weight.element_size())
        self.number, self._most = channels * groups_per_channel, patches_per_group * batch
        self.sizes = (batch, patches, groups_per_channel, patches_per_group)
        # A sample is an operand without arithmetic only where both have one dtype.
        is_unscaled = is_unscaled and samples.dtype == weight.dtype
        dtypes = (samples.dtype, weight.dtype)
        self.known = Known(
            tuple(patch_lengths), weight.shape[1], align, is_unscaled, *dtypes, is_exact(), patches_per_group
        )
        index, begin = slots.new_empty(0), slots.new_empty(0, dtype=torch.int64)
        self.empty = (index, index, begin, row_scale.new_empty(0), row_shift.new_empty(0), index, index)
        """Empty tensors of the lists' dtypes, which is all that `prepare` looks at."""
        inputs = (row_start, row_scale, row_shift, slots, slots, *self.empty)
        sizes = (batch, channels, patches, groups_per_channel, patches_per_group)
        self._start = _kernel(self.known.lengths, is_unscaled, patches_per_group).prepare((self.number,), inputs, sizes)

    def list(
        self, row_start: Tensor, row_scale: Tensor, row_shift: Tensor, modality: Tensor, slots: Tensor
    ) -> tuple[Tensor, ...]:
        """The lists of `_list_tokens`, from `place` to `group_modality`."""
        groups, most = self.number, self._most
        place, number = slots.new_empty(2, groups, most).unbind()
        counts, group_modality = slots.new_empty(2, groups).unbind()
        first, scale, shift = slots.new_empty(groups, most, dtype=torch.int64), row_scale, row_shift
        if not self.known.is_unscaled:  # else they are not read
            scale, shift = row_scale.new_empty(groups, most), row_shift.new_empty(groups, most)
        listed = (place, number, first, scale, shift, counts, group_modality)
        self._start((row_start, row_scale, row_shift, modality, slots, *listed), ())
        return listed
