"""The tensors that every op shares: rows of samples, packings of tokens, and the plan of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from physiofast.ops.watching import is_watched


@dataclasses.dataclass(frozen=True)
class Rows:
    """The samples of a batch of B windows over C channels; no patch is ever materialised.

    Mixed rates, absent channels, int16 storage and a store that lives on the GPU are one case: each
    (window, channel) row starts somewhere in one flat buffer, and `value = sample * scale + shift`.
    """

    samples: Tensor
    """Flat 1-D int16, float16, bfloat16, float32 or float64."""
    row_start: Tensor
    """int64 [B, C], first sample of each row; -1 where the channel is absent."""
    row_scale: Tensor
    """float32 [B, C]."""
    row_shift: Tensor
    """float32 [B, C]."""
    valid: Tensor
    """bool [B, N], True where a patch is finite, not clipped and not flat. N = C * S."""
    align: int = 1
    """A promise that kernels read wide by: every row of patches of P samples starts at a multiple of gcd(align, P)."""
    unit: bool = False
    """A promise that kernels save conversions by: every row's scale is 1 and its shift 0, as those of dense values."""

    @classmethod
    def from_dense(cls, x: Tensor, patches: int) -> Rows:
        """Rows of a plain `[B, C, T]` tensor whose channels share one rate.

        Args:
            x: [B, C, T]; a patch that holds a NaN or an infinity is not valid.
            patches: S, patches per channel; T is a multiple of it.

        Raises:
            ValueError: x is not three-dimensional, or T is not a multiple of `patches`.
        """
        if x.ndim != 3:
            raise ValueError(f"expected samples [B, C, T]; found shape {tuple(x.shape)}")
        batch, channels, length = x.shape
        if length % patches:
            raise ValueError(f"T = {length} samples is not a multiple of {patches} patches")
        start = torch.arange(batch * channels, device=x.device, dtype=torch.int64) * length
        ones = torch.ones(batch, channels, device=x.device)
        finite = _are_finite(x.detach().reshape(batch, channels * patches, length // patches))
        return cls(
            samples=x.reshape(-1),
            row_start=start.reshape(batch, channels),
            row_scale=ones,
            row_shift=torch.zeros_like(ones),
            valid=finite,
            align=64,  # a row starts after whole rows, so at a multiple of its patch
            unit=True,
        )


def _are_finite(patches: Tensor) -> Tensor:
    """Whether all samples along the last dimension are finite: then least and largest are, which are NaN if one is."""
    if patches.device.type != "cpu" or torch.compiler.is_compiling() or is_watched():  # none branches on values
        low, high = torch.aminmax(patches, dim=-1)
        return low.isfinite() & high.isfinite()
    found = patches.sum(-1).isfinite()  # in one pass over memory; but large numbers may add up to infinity
    return found if found.all() else patches.amin(-1).isfinite() & patches.amax(-1).isfinite()


@dataclasses.dataclass(frozen=True)
class Packing:
    """Some tokens of each window of a batch, side by side without padding between windows.

    Windows keep their order in the batch and tokens are ordered by id within a window, so a modality is
    contiguous. T is one of a few fixed sizes; the tail that no token fills has id, modality -1.
    """

    ids: Tensor
    """int32 [T], window * N + token; -1 in the tail."""
    cu_seqlens: Tensor
    """int32 [B + 1], where each window's tokens begin and end."""
    modality: Tensor
    """int32 [T]; -1 in the tail."""
    time_s: Tensor
    """float32 [T], centre of the patch in seconds from the window's start; 0 in the tail."""
    slot: Tensor
    """int32 [B, N], the inverse of `ids`: where a token stands in the packing, -1 when it does not."""
    by_modality: Tensor
    """int32 [T], all places, those of the first modality first and the tail last; an order and no layout."""
    cu_modality: Tensor
    """int32 [M + 1], where each modality begins and ends in `by_modality`."""
    max_len: int
    """At least the tokens of the longest window; one of a few fixed sizes."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which tokens of a batch the encoder is given and which are to be reconstructed."""

    visible: Packing
    hidden: Packing
    present: Packing
    """Visible and hidden together. Absent and invalid tokens are in none of the three."""


@dataclasses.dataclass(frozen=True)
class PlanSizes:
    """Static sizes of a plan's three packings: T and `max_len` of each, in the order visible, hidden, present."""

    totals: tuple[int, int, int]
    max_lens: tuple[int, int, int]


Contract = TypeVar("Contract", Rows, Packing, Plan)

for _contract in (Rows, Packing, Plan):
    torch.export.register_dataclass(_contract, serialized_type_name=f"physiofast.{_contract.__name__}")
torch.serialization.add_safe_globals([Rows, Packing, Plan, PlanSizes])  # `torch.load` takes them as it takes tensors


def to_device(contract: Contract, device: torch.device | str, *, non_blocking: bool = False) -> Contract:
    """A copy of Rows, Packing or Plan with every tensor on `device`."""
    return torch.utils._pytree.tree_map_only(
        Tensor, lambda tensor: tensor.to(device, non_blocking=non_blocking), contract
    )


def row_offsets(patch_lengths: Sequence[int]) -> list[int]:
    """Where each modality's rows begin in `weight [sum P_m, D]`."""
    offsets = [0]
    for length in patch_lengths[:-1]:
        offsets.append(offsets[-1] + length)
    return offsets
