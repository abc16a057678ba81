"""Forms of ops that are faster on a CPU than their twin and tested against it like a kernel.

Tokens: whole rows are copied by `index_select` and summed by `index_add_`, one modality after another along
`by_modality`, where twins index and mask elements.

Attention: windows of equal lengths are stacked, a few at a time so that their tile stays in cache. No tile
holds padding, so nothing is masked but forbidden pairs, and no bit depends on the neighbours of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.contracts import row_offsets
from physiofast.ops.reference import accumulator, locate, one_hot

_TILE_ELEMENTS = 400_000  # of a [R, H, Lq, Lk] tile; measured on cores with 2 MB of second-level cache
_FORBIDDEN = -1e30  # a logit whose weight is exactly 0, unlike -inf safe to multiply by 0


# ---- tokens --------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Where samples lie: the first four arguments of the ops that read them."""

    samples: Tensor
    row_start: Tensor
    row_scale: Tensor
    row_shift: Tensor


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
) -> Tensor:
    """[T, D], as `reference.embed_patches`."""
    acc = accumulator(samples, weight)
    rows = _Rows(samples, row_start, row_scale, row_shift)
    out = weight.new_empty(len(ids), weight.shape[1])
    for length, offset, place in _by_modality(by_modality, cu_modality, patch_lengths):
        token = ids.index_select(0, place)
        position = table.index_select(0, token % slots.shape[1]).to(acc)
        patches = _patches(rows, token, slots, length).to(acc)
        out.index_copy_(0, place, position.addmm_(patches, weight[offset : offset + length].to(acc)).to(out.dtype))
    return out.index_fill_(0, by_modality[int(cu_modality[-1]) :].long(), 0)


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
    """(dweight, dtable, dsamples), as `reference.embed_patches_backward`."""
    acc = accumulator(samples, weight)
    rows = _Rows(samples, row_start, row_scale, row_shift)
    dweight = weight.new_empty(weight.shape, dtype=acc)
    dsamples = torch.zeros_like(samples, dtype=acc) if need_samples else samples.new_empty(0)
    for length, offset, place in _by_modality(by_modality, cu_modality, patch_lengths):
        token, mine = ids.index_select(0, place), grad.index_select(0, place).to(acc)
        dweight[offset : offset + length] = _patches(rows, token, slots, length).to(acc).mT @ mine
        if need_samples:
            first, row = locate(token, row_start, slots, length)
            slope = mine @ weight[offset : offset + length].to(acc).mT
            slope *= row_scale.reshape(-1)[row][:, None].to(acc)
            dsamples[first[:, None] + torch.arange(length)] = slope
    dtable = _sum_by_token(grad.to(acc), torch.where(ids >= 0, ids % slots.shape[1], -1), slots.shape[1])
    return dweight.to(weight.dtype), dtable.to(weight.dtype), dsamples.to(samples.dtype)


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
    acc, tokens = accumulator(encoded, table_visible), slot_visible.shape[1]
    out = table_hidden.to(encoded.dtype).index_select(0, ids_present.clamp(min=0) % tokens)
    out.index_fill_(0, (ids_present < 0).nonzero()[:, 0], 0)
    seen = (ids_visible >= 0).nonzero()[:, 0]
    token = ids_visible.index_select(0, seen)
    values = table_visible.index_select(0, token % tokens).to(acc)
    values += encoded if len(seen) == len(encoded) else encoded.index_select(0, seen)
    return out.index_copy_(0, slot_present.reshape(-1).index_select(0, token).long(), values.to(encoded.dtype))


def assemble_tokens_backward(
    grad: Tensor, ids_visible: Tensor, slot_visible: Tensor, slot_present: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dencoded, dtable_visible, dtable_hidden), as `reference.assemble_tokens_backward`."""
    acc, tokens = accumulator(grad, table), slot_visible.shape[1]
    source = slot_present.reshape(-1).index_select(0, ids_visible.clamp(min=0))
    dencoded = grad.index_select(0, source.clamp(min=0))
    dencoded.index_fill_(0, (ids_visible < 0).nonzero()[:, 0], 0)
    # Which token id each place of the packing has; places of visible tokens and of the tail count for no table.
    token_of = torch.full((len(grad),), -1)
    hidden = ((slot_present >= 0) & (slot_visible < 0)).nonzero()
    token_of[slot_present[hidden[:, 0], hidden[:, 1]].long()] = hidden[:, 1]
    dvisible = _sum_by_token(dencoded.to(acc), torch.where(ids_visible >= 0, ids_visible % tokens, -1), tokens)
    dhidden = _sum_by_token(grad.to(acc), token_of, tokens)
    return dencoded, dvisible.to(table.dtype), dhidden.to(table.dtype)


def masked_mse(
    pred: Tensor,
    samples: Tensor,
    row_start: Tensor,
    row_scale: Tensor,
    row_shift: Tensor,
    ids: Tensor,
    modality: Tensor,
    slots: Tensor,
    weight: Tensor,
    patch_lengths: Sequence[int],
    normalise: Sequence[int],
    align: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, sum, count, gradient), as `reference.masked_mse`; patches of several lengths and normalised ones by it."""
    rows = _Rows(samples, row_start, row_scale, row_shift)
    if len(set(patch_lengths)) > 1 or any(normalise):
        packed = (ids, modality, slots)
        return reference.masked_mse(pred, *rows, *packed, weight, patch_lengths, normalise, align)
    acc, length = accumulator(pred, samples), patch_lengths[0]
    real = ids >= 0
    if not real.any():
        zeros = pred.new_zeros(len(patch_lengths), dtype=acc)
        return zeros.sum(), zeros, zeros.clone(), torch.zeros_like(pred)
    somewhere = ids[int(real.nonzero()[0, 0])]  # the tail reads what some token reads, and counts for nothing
    error = _patches(rows, torch.where(real, ids, somewhere), slots, length).to(acc)
    error = torch.sub(pred, error) if pred.dtype == acc else pred.to(acc) - error
    per_token = torch.linalg.vecdot(error, error) / length
    member = one_hot(modality, len(patch_lengths), acc)
    total, count = per_token @ member, member.sum(0)
    grad = error.mul_((member @ weight.to(acc))[:, None] * (2 / length))
    return total @ weight.to(acc), total, count, grad.to(pred.dtype)


def _by_modality(
    by_modality: Tensor, cu_modality: Tensor, patch_lengths: Sequence[int]
) -> Iterator[tuple[int, int, Tensor]]:
    """(P_m, first row of its weights, its places) of each modality."""
    parts = by_modality[: int(cu_modality[-1])].long().split(cu_modality.diff().tolist())
    yield from zip(patch_lengths, row_offsets(patch_lengths), parts, strict=True)


def _patches(rows: _Rows, token: Tensor, slots: Tensor, length: int) -> Tensor:
    """[t, P] dequantised samples of tokens of one patch length; float samples of scale 1 and shift 0 as they are."""
    first, row = locate(token, rows.row_start, slots, length)
    if bool((first % length == 0).all()):  # so it is where rows lie densely: whole rows of a matrix
        whole = rows.samples[: len(rows.samples) // length * length].view(-1, length)
        patches = whole.index_select(0, first // length)
    else:
        patches = rows.samples.unfold(0, length, 1)[first]
    if rows.samples.is_floating_point() and bool((rows.row_scale == 1).all()) and not rows.row_shift.any():
        return patches
    acc = accumulator(rows.samples)
    scale, shift = (t.reshape(-1).index_select(0, row)[:, None].to(acc) for t in (rows.row_scale, rows.row_shift))
    return patches.to(acc).mul_(scale).add_(shift)


def _sum_by_token(values: Tensor, token: Tensor, tokens: int) -> Tensor:
    """[N, D]: the sum, in order, of the values [T, D] whose token id [T] is n; -1 counts for none."""
    index = torch.where(token >= 0, token, tokens)
    return values.new_zeros(tokens + 1, values.shape[1]).index_add_(0, index.long(), values)[:tokens]


# ---- attention -----------------------------------------------------------------------------------------------


class _Sides(NamedTuple):
    """The arguments of `physiofast::modality_attention` after q, k, v."""

    cu_q: Tensor
    cu_k: Tensor
    modality_q: Tensor
    modality_k: Tensor
    time_q: Tensor
    time_k: Tensor
    pair_bias: Tensor
    allowed: Tensor
    time_decay: Tensor
    scale: float
    max_q: int
    max_k: int


class _Tile(NamedTuple):
    """R windows of equal lengths."""

    rows_q: Tensor  # [R, Lq] places in the packing
    rows_k: Tensor  # [R, Lk]
    wide_q: Tensor  # [R, H, Lq, Dh + M], scaled queries and their biases to every modality
    wide_k: Tensor  # [R, H, Lk, Dh + M], keys and the ones of their modality
    apart: Tensor  # [R, 1, Lq, Lk] seconds
    logits: Tensor  # [R, H, Lq, Lk]


def modality_attention(q: Tensor, k: Tensor, v: Tensor, *sides: Any) -> tuple[Tensor, Tensor]:
    """(out [T_q, H, Dh], log-sum-exp [H, T_q]), as `reference.modality_attention`."""
    out, lse = q.new_zeros(q.shape), q.new_full((q.shape[1], len(q)), -torch.inf, dtype=accumulator(q))
    for tile in _tiles(q, k, _Sides(*sides)):
        largest = tile.logits.amax(-1, keepdim=True)
        weights = tile.logits.sub_(largest).exp_()
        total = weights.sum(-1, keepdim=True)
        none = largest < _FORBIDDEN / 2
        value = (weights @ _heads_first(v, tile.rows_k)).div_(total).masked_fill_(none, 0)
        out[tile.rows_q] = value.transpose(1, 2).to(q.dtype)
        found = total.log_().add_(largest).masked_fill_(none, -torch.inf)
        lse[:, tile.rows_q] = found[..., 0].transpose(0, 1)
    return out, lse


def modality_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *sides: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dpair_bias, dtime_decay), as `reference.modality_attention_backward`."""
    known, width = _Sides(*sides), q.shape[-1]
    acc = accumulator(q)
    dq, dk, dv = (t.new_zeros(t.shape) for t in (q, k, v))
    dbias = torch.zeros_like(known.pair_bias, dtype=acc)
    ddecay = torch.zeros_like(known.time_decay, dtype=acc)
    lse = torch.where(lse.isfinite(), lse, 0)  # all weights of a query without an allowed key are 0 either way
    delta = torch.linalg.vecdot(grad.to(acc), out.to(acc))  # [T_q, H]
    for tile in _tiles(q, k, known, lse):
        weights = tile.logits.exp_()
        dout = _heads_first(grad, tile.rows_q)
        dv[tile.rows_k] = (weights.mT @ dout).transpose(1, 2).to(v.dtype)
        dlogits = dout @ _heads_first(v, tile.rows_k).mT
        dlogits.sub_(delta[tile.rows_q].transpose(1, 2)[..., None]).mul_(weights)
        dwide_q = dlogits @ tile.wide_k[..., : width + dbias.shape[1]]
        dq[tile.rows_q] = (dwide_q[..., :width] * known.scale).transpose(1, 2).to(q.dtype)
        dk[tile.rows_k] = (dlogits.mT @ tile.wide_q[..., :width]).transpose(1, 2).to(k.dtype)
        hot_q = one_hot(known.modality_q[tile.rows_q], dbias.shape[1], acc)
        dbias += (hot_q.mT[:, None] @ dwide_q[..., width:]).sum(0)
        ddecay -= torch.linalg.vecdot(dlogits.flatten(2), tile.apart.flatten(2)).sum(0)
    return dq, dk, dv, dbias.to(known.pair_bias.dtype), ddecay.to(known.time_decay.dtype)


def _tiles(q: Tensor, k: Tensor, known: _Sides, lse: Tensor | None = None) -> Iterator[_Tile]:
    """Every window once, in groups of equal lengths; windows without queries or without keys are left out.

    With `lse` [H, T_q], logits come less that: it is one more feature of the queries, and 1 of every key.
    """
    acc, kinds = accumulator(q), known.pair_bias.shape[1]
    bias = torch.where(known.allowed, known.pair_bias.to(acc), _FORBIDDEN)
    for windows, length_q, length_k in _groups(known.cu_q, known.cu_k, q.shape[1]):
        rows_q = known.cu_q[windows, None].long() + torch.arange(length_q)
        rows_k = known.cu_k[windows, None].long() + torch.arange(length_k)
        hot_q, hot_k = one_hot(known.modality_q[rows_q], kinds, acc), one_hot(known.modality_k[rows_k], kinds, acc)
        apart = (known.time_q[rows_q][:, :, None] - known.time_k[rows_k][:, None, :]).abs().to(acc)[:, None]
        # The pair's bias is a product of one-hot vectors: M further features of q and k carry it.
        of_query = [_heads_first(q, rows_q) * known.scale, hot_q[:, None] @ bias]
        of_key = [_heads_first(k, rows_k), hot_k[:, None].expand(-1, q.shape[1], -1, -1)]
        if lse is not None:
            of_query.append(-lse[:, rows_q].transpose(0, 1)[..., None])
            of_key.append(of_key[0].new_ones(1).expand(*of_key[0].shape[:-1], 1))
        wide_q, wide_k = torch.cat(of_query, -1), torch.cat(of_key, -1)
        logits = wide_q @ wide_k.mT
        logits.addcmul_(apart, known.time_decay.to(acc)[:, None, None], value=-1)
        yield _Tile(rows_q, rows_k, wide_q, wide_k, apart, logits)


def _groups(cu_q: Tensor, cu_k: Tensor, heads: int) -> Iterator[tuple[Tensor, int, int]]:
    """(windows, Lq, Lk) for windows whose lengths agree, few enough that a tile stays in cache."""
    lengths = torch.stack([cu_q.diff(), cu_k.diff()], 1).long()
    for length_q, length_k in torch.unique(lengths, dim=0).tolist():
        if length_q and length_k:
            windows = ((lengths[:, 0] == length_q) & (lengths[:, 1] == length_k)).nonzero()[:, 0]
            for part in windows.split(max(1, _TILE_ELEMENTS // (heads * length_q * length_k))):
                yield part, length_q, length_k


def _heads_first(packed: Tensor, rows: Tensor) -> Tensor:
    """[R, H, L, Dh] in the accumulator's dtype."""
    return packed[rows].to(accumulator(packed)).transpose(1, 2)
