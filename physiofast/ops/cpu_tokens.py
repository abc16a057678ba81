"""The CPU forms of the token ops: passes of the C++ engine over packings, including the products with weights.

The engine takes features in float32, samples in float32 or int16, and the rest as the contracts say. Floats of 16 bits
are widened first and results rounded once, as the definition does. Rows that are only copied are not widened: they are
read as half as many numbers of 32 bits. The definition serves other dtypes, and everything where the extension is not
built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.engine import native
from physiofast.ops import reference
from physiofast.ops.contracts import row_offsets
from physiofast.ops.cpu_arrays import array, features, lent
from physiofast.ops.reference import locate

if native:
    from physiofast import _native
    from physiofast.ops.cpu_threads import workers

_NARROW = (torch.float16, torch.bfloat16)


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
    is_unscaled: bool,
) -> Tensor:
    """[T, D], as `reference.embed_patches`."""
    samples = widened(samples, ids, patch_lengths)
    rows, packed, order = (samples, row_start, row_scale, row_shift), (ids, modality, slots), (by_modality, cu_modality)
    if not (serves_rows(rows) and serves((weight, table), (*packed, *order))):
        embed, wide = reference.embed_patches, (weight, table)
        if serves_rows(rows) and _serves_widened(wide, (*packed, *order)):
            embed, wide = embed_patches, (weight.float(), table.float())
        return embed(*rows, *packed, *order, *wide, patch_lengths, align, is_unscaled).to(weight.dtype)
    out = weight.new_empty(len(ids), weight.shape[1])
    patches = _patches_by_modality(rows, packed, order, patch_lengths)
    where = (array(by_modality), array(ids))
    _native.embed_patches(*patches, array(weight), *where, features(table), lent(out), workers())
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
    is_unscaled: bool,
    need_samples: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dweight, dtable, dsamples), as `reference.embed_patches_backward`."""
    if not need_samples:  # whose gradient is of their dtype
        samples = widened(samples, ids, patch_lengths)
    rows, packed, order = (samples, row_start, row_scale, row_shift), (ids, modality, slots), (by_modality, cu_modality)
    if not (serves_rows(rows) and serves((grad, weight), (*packed, *order))):
        backward, wide = reference.embed_patches_backward, (grad, weight)
        if serves_rows(rows) and _serves_widened((grad, weight), (*packed, *order)):
            backward, wide = embed_patches_backward, (grad.float(), weight.float())
        dweight, dtable, dsamples = backward(
            wide[0], *rows, *packed, *order, wide[1], patch_lengths, align, is_unscaled, need_samples
        )
        return dweight.to(weight.dtype), dtable.to(weight.dtype), dsamples
    ordered, dweight = grad.new_empty(grad.shape), weight.new_empty(weight.shape)
    dtable = grad.new_empty(slots.shape[1], grad.shape[1])
    where = (array(slots), array(by_modality))
    _native.order_gradients(features(grad), *where, lent(ordered), lent(dtable), workers())
    patches = _patches_by_modality(rows, packed, order, patch_lengths)
    _native.weight_gradients(*patches, lent(ordered), lent(dweight), workers())
    if not need_samples:
        return dweight, dtable, samples.new_empty(0)
    dsamples, token = torch.zeros_like(samples), ids.index_select(0, by_modality)
    for (span, weights), length in zip(_spans(cu_modality, patch_lengths), patch_lengths, strict=True):
        first, row = locate(token[span], row_start, slots, length)
        slope = ordered[span] @ weight[weights].mT
        dsamples[first[:, None] + torch.arange(length, device=row.device)] = slope.mul_(
            row_scale.reshape(-1)[row][:, None]
        )
    return dweight, dtable, dsamples


def take_tokens(x: Tensor, ids: Tensor, slots: Tensor) -> Tensor:
    """[T, D], as `reference.take_tokens`."""
    return _pick(x.flatten(0, 1), ids) if _copies((x,), (ids,)) else reference.take_tokens(x, ids, slots)


def take_tokens_backward(grad: Tensor, slots: Tensor) -> Tensor:
    """[B, N, D], as `reference.take_tokens_backward`."""
    if not _copies((grad,), (slots,)):
        return reference.take_tokens_backward(grad, slots)
    return _pick(grad, slots.reshape(-1)).view(*slots.shape, grad.shape[1])


def take_hidden(
    x: Tensor, ids_hidden: Tensor, ids_present: Tensor, slot_hidden: Tensor, slot_present: Tensor
) -> Tensor:
    """[T_hidden, D], as `reference.take_hidden`."""
    if not _copies((x,), (ids_hidden, slot_present)):
        return reference.take_hidden(x, ids_hidden, ids_present, slot_hidden, slot_present)
    return _pick(x, ids_hidden, slot_present)


def take_hidden_backward(grad: Tensor, onto: Tensor, ids_present: Tensor, slot_hidden: Tensor) -> Tensor:
    """[T_present, D], as `reference.take_hidden_backward`."""
    if not _copies((grad, onto), (ids_present, slot_hidden)) or grad.dtype != onto.dtype:
        return reference.take_hidden_backward(grad, onto, ids_present, slot_hidden)
    if len(onto) and grad.dtype in _NARROW:
        return _pick(grad, ids_present, slot_hidden).add_(onto)
    return _pick(grad, ids_present, slot_hidden, onto if len(onto) else None)


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
    tables = (table_visible, table_hidden)
    if not serves((encoded, *tables), (ids_present, slot_visible)):
        indices = (ids_visible, ids_present, slot_visible, slot_present)
        if _serves_widened((encoded, *tables), (ids_present, slot_visible)):
            wide = (tensor.float() for tensor in tables)
            return assemble_tokens(encoded.float(), *indices, *wide).to(encoded.dtype)
        return reference.assemble_tokens(encoded, *indices, *tables)
    out = encoded.new_empty(len(ids_present), encoded.shape[1])
    visible, hidden = map(features, tables)
    slots = array(slot_visible)
    _native.assemble_rows(features(encoded), array(ids_present), slots, visible, hidden, lent(out), workers())
    return out


def assemble_tokens_backward(
    grad: Tensor, ids_visible: Tensor, slot_visible: Tensor, slot_present: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dencoded, dtable_visible, dtable_hidden), as `reference.assemble_tokens_backward`."""
    where = (ids_visible, slot_visible, slot_present)
    if not serves((grad, table), where):
        if _serves_widened((grad, table), where):
            encoded, visible, hidden = assemble_tokens_backward(grad.float(), *where, table.float())
            return encoded.to(grad.dtype), visible.to(table.dtype), hidden.to(table.dtype)
        return reference.assemble_tokens_backward(grad, *where, table)
    encoded = grad.new_empty(len(ids_visible), grad.shape[1])
    visible, hidden = table.new_empty(table.shape), table.new_empty(table.shape)
    ids, slots_visible, slots_present = map(array, where)
    out = (lent(encoded), lent(visible), lent(hidden))
    _native.assemble_gradients(features(grad), ids, slots_visible, slots_present, *out, workers())
    return encoded, visible, hidden


def serves(rows: Sequence[Tensor], places: Sequence[Tensor]) -> bool:
    """Whether the engine takes these rows of features and the integers that index them."""
    are_floats = all(tensor.dtype == torch.float32 and not tensor.is_neg() for tensor in rows)
    return native and are_floats and all(tensor.dtype == torch.int32 for tensor in places)


def _serves_widened(rows: Sequence[Tensor], places: Sequence[Tensor]) -> bool:
    """Whether the engine takes these rows once those of 16 bits are widened to float32."""
    are_floats = all(x.dtype in (torch.float32, *_NARROW) and not x.is_neg() for x in rows)
    return are_floats and serves((), places)


def _copies(rows: Sequence[Tensor], places: Sequence[Tensor]) -> bool:
    """Whether the engine can copy these rows: of float32, or of 16 bits whose numbers lie in pairs."""
    if serves(rows, places):
        return True
    are_pairs = all(x.dtype in _NARROW and _lies_in_pairs(x) for x in rows)
    return are_pairs and serves((), places)


def _lies_in_pairs(x: Tensor) -> bool:
    """Whether 16-bit numbers x [..., D] can be read as half as many of 32 bits."""
    *steps, step = x.stride()
    starts = (x.shape[-1], x.storage_offset(), x.data_ptr() // 2, *steps)
    return step == 1 and not x.is_neg() and not any(start % 2 for start in starts)


def _paired(x: Tensor) -> Tensor:
    """View rows as float32; of rows of 16 bits two numbers become one, which is only copied."""
    return x.detach().view(torch.float32) if x.dtype in _NARROW else x


def serves_rows(rows: Sequence[Tensor]) -> bool:
    """Whether the engine reads these (samples, row_start, row_scale, row_shift)."""
    samples, *about = rows
    are_usual = [tensor.dtype for tensor in about] == [torch.int64, torch.float32, torch.float32]
    is_plain = samples.is_contiguous() and not samples.is_neg()
    return native and are_usual and samples.dtype in (torch.float32, torch.int16) and is_plain


def widened(samples: Tensor, ids: Tensor, patch_lengths: Sequence[int]) -> Tensor:
    """Widen samples of 16 bits to float32, unless they are many more than the tokens need, as in a whole store."""
    is_narrow = native and samples.dtype in _NARROW
    return samples.float() if is_narrow and len(samples) <= 8 * len(ids) * max(patch_lengths) else samples


def patches_of(
    rows: Sequence[Tensor], packed: Sequence[Tensor], patch_lengths: Sequence[int]
) -> _native.PatchesOfFloat32 | _native.PatchesOfInt16:
    """Describe the patches of a packing's tokens to the engine."""
    ids, modality, slots = packed
    samples, row_start, row_scale, row_shift = rows
    lengths, patches = list(patch_lengths), slots.shape[1] // row_start.shape[1]
    about = (array(row_start), array(row_scale), array(row_shift))
    of_samples = _native.PatchesOfInt16 if samples.dtype == torch.int16 else _native.PatchesOfFloat32
    return of_samples(array(samples), *about, array(ids), array(modality), lengths, patches)


def _pick(rows: Tensor, index: Tensor, through: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """Gather the rows at an index [n]: [n, D], zeros for -1.

    With `through` [B, N] the index is that of an entry of it, which names the row. `onto` [n, D] is added.
    """
    out = rows.new_empty(len(index), rows.shape[1])
    slots, sums = (None if through is None else array(through)), (None if onto is None else features(onto))
    _native.pick_rows(features(_paired(rows)), array(index), slots, sums, lent(_paired(out)), workers())
    return out


def _patches_by_modality(
    rows: Sequence[Tensor], packed: Sequence[Tensor], order: Sequence[Tensor], patch_lengths: Sequence[int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[int]]:
    """(float32 samples of all patches in order of modality, cu_modality, patch lengths), as the engine takes them."""
    spans, lengths = _spans(order[1], patch_lengths), list(patch_lengths)
    count = sum((span.stop - span.start) * length for (span, _), length in zip(spans, lengths, strict=True))
    values = torch.empty(count, dtype=torch.float32, device="cpu")
    by_modality, cu_modality = map(array, order)
    _native.gather_patches(patches_of(rows, packed, lengths), by_modality, cu_modality, lent(values), workers())
    return lent(values), cu_modality, lengths


def _spans(cu_modality: Tensor, patch_lengths: Sequence[int]) -> list[tuple[slice, slice]]:
    """For each modality: (slice of its places in the order by modality, slice of its rows of the weight)."""
    edges = cu_modality.tolist()
    return [
        (slice(edges[m], edges[m + 1]), slice(offset, offset + patch_lengths[m]))
        for m, offset in enumerate(row_offsets(patch_lengths))
    ]
