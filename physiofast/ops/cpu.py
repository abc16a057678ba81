"""Forms of ops that are faster on a CPU than their twin and tested against it like a kernel.

Tokens: whole rows are copied and summed (`cpu_rows`), each read and written once, where twins index and mask elements.
Modalities follow one another along `by_modality`.

Attention, the loss and plans have files of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from physiofast.ops import cpu_rows
from physiofast.ops.contracts import row_offsets
from physiofast.ops.cpu_attention import modality_attention as modality_attention
from physiofast.ops.cpu_attention import modality_attention_backward as modality_attention_backward
from physiofast.ops.cpu_loss import masked_mse as masked_mse
from physiofast.ops.cpu_plan import sample_plan as sample_plan
from physiofast.ops.reference import accumulator, locate

# ---- tokens --------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Where samples lie: the first four arguments of the ops that read them."""

    samples: Tensor
    row_start: Tensor
    row_scale: Tensor
    row_shift: Tensor

    def are_values(self) -> bool:
        """Whether samples are what they stand for: floats of scale 1 and shift 0."""
        plain = self.samples.is_floating_point() and bool((self.row_scale == 1).all())
        return plain and not bool(self.row_shift.any())


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
    table: Tensor,
    patch_lengths: Sequence[int],
    align: int,
    unit: bool,
) -> Tensor:
    """[T, D], as `reference.embed_patches`."""
    acc = accumulator(samples, weight)
    token = ids.index_select(0, by_modality)
    products = weight.new_empty(len(ids), weight.shape[1], dtype=acc)
    rows = _Rows(samples, row_start, row_scale, row_shift)
    for span, length, offset, patches in _by_modality(rows, token, slots, cu_modality, patch_lengths, unit):
        torch.mm(patches.to(acc), weight[offset : offset + length].to(acc), out=products[span])
    of_table = torch.where(ids >= 0, ids % slots.shape[1], -1)
    return cpu_rows.pick(table.to(acc), of_table, products, _inverse(by_modality)).to(weight.dtype)


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
    """(dweight, dtable, dsamples), as `reference.embed_patches_backward`."""
    acc = accumulator(samples, weight)
    rows = _Rows(samples, row_start, row_scale, row_shift)
    token, by_kind = ids.index_select(0, by_modality), cpu_rows.pick(grad, by_modality).to(acc)
    dweight = weight.new_empty(weight.shape, dtype=acc)
    dsamples = torch.zeros_like(samples, dtype=acc) if need_samples else samples.new_empty(0)
    for span, length, offset, patches in _by_modality(rows, token, slots, cu_modality, patch_lengths, unit):
        torch.mm(patches.to(acc).mT, by_kind[span], out=dweight[offset : offset + length])
        if need_samples:
            first, row = locate(token[span], row_start, slots, length)
            slope = by_kind[span] @ weight[offset : offset + length].to(acc).mT
            slope *= row_scale.reshape(-1)[row][:, None].to(acc)
            dsamples[first[:, None] + torch.arange(length)] = slope
    dtable = cpu_rows.sums(grad.to(acc), slots.mT)
    return dweight.to(weight.dtype), dtable.to(weight.dtype), dsamples.to(samples.dtype)


def take_tokens(x: Tensor, ids: Tensor, slots: Tensor) -> Tensor:
    """[T, D], as `reference.take_tokens`."""
    return cpu_rows.pick(x.flatten(0, 1), ids)


def take_tokens_backward(grad: Tensor, slots: Tensor) -> Tensor:
    """[B, N, D], as `reference.take_tokens_backward`."""
    return cpu_rows.pick(grad, slots.reshape(-1)).view(*slots.shape, -1)


def assemble_tokens(
    encoded: Tensor,
    ids_visible: Tensor,
    ids_present: Tensor,
    slot_visible: Tensor,
    slot_present: Tensor,
    table_visible: Tensor,
    table_hidden: Tensor,
) -> Tensor:
    """[T_present, D], as `reference.assemble_tokens`."""
    tokens = slot_visible.shape[1]
    slot = slot_visible.reshape(-1).index_select(0, ids_present.clamp(min=0))
    of_token = torch.where(slot >= 0, tokens, 0) + ids_present % tokens
    tables = torch.cat([table_hidden, table_visible]).to(encoded.dtype)
    return cpu_rows.pick(tables, torch.where(ids_present >= 0, of_token, -1).int(), encoded, slot)


def assemble_tokens_backward(
    grad: Tensor, ids_visible: Tensor, slot_visible: Tensor, slot_present: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dencoded, dtable_visible, dtable_hidden), as `reference.assemble_tokens_backward`."""
    acc, tokens = accumulator(grad, table), slot_visible.shape[1]
    place = slot_present.reshape(-1).index_select(0, ids_visible.clamp(min=0))
    dencoded = cpu_rows.pick(grad, torch.where(ids_visible >= 0, place, -1))
    seen = slot_visible >= 0
    apart = torch.cat([torch.where(seen, slot_present, -1), torch.where(seen, -1, slot_present)], 1)
    dvisible, dhidden = cpu_rows.sums(grad.to(acc), apart.mT).to(table.dtype).split(tokens)
    return dencoded, dvisible.clone(), dhidden.clone()  # outputs of an op must not share memory


def _by_modality(
    rows: _Rows, token: Tensor, slots: Tensor, cu_modality: Tensor, patch_lengths: Sequence[int], unit: bool
) -> Iterator[tuple[slice, int, int, Tensor]]:
    """(where its tokens stand, P_m, first row of its weights, patches) of each modality; `token` is in their order."""
    edges, are_values = cu_modality.tolist(), unit or rows.are_values()
    for m, (length, offset) in enumerate(zip(patch_lengths, row_offsets(patch_lengths), strict=True)):
        span = slice(edges[m], edges[m + 1])
        yield span, length, offset, _patches(rows, token[span], slots, length, are_values)


def _patches(rows: _Rows, token: Tensor, slots: Tensor, length: int, are_values: bool) -> Tensor:
    """[t, P] new dequantised samples of tokens of one patch length, or samples where these are the values."""
    first, row = locate(token, rows.row_start, slots, length)
    if bool((first % length == 0).all()):  # so it is where rows lie densely: whole rows of a matrix
        whole = rows.samples[: len(rows.samples) // length * length].view(-1, length)
        patches = whole.index_select(0, first // length)
    else:
        patches = rows.samples.unfold(0, length, 1)[first]
    if are_values:
        return patches
    acc = accumulator(rows.samples)
    scale, shift = (t.reshape(-1).index_select(0, row)[:, None].to(acc) for t in (rows.row_scale, rows.row_shift))
    return patches.to(acc).mul_(scale).add_(shift)


def _inverse(order: Tensor) -> Tensor:
    """Where each element of a permutation [T] stands."""
    place = torch.empty_like(order)
    place[order.long()] = torch.arange(len(order), dtype=order.dtype)
    return place
