"""Forms of ops that are faster on a CPU than their twin and tested against it like a kernel.

Tokens: whole rows are copied by `index_select` and summed as bags of an `embedding_bag`, each row read and written
once, where twins index and mask elements. Modalities follow one another along `by_modality`.

Attention: windows that have room for equally many tokens, in multiples of 8, are stacked, and PyTorch's fused kernel
attends in each stack. The pair's bias is M more features of queries and keys, which give its gradient as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.contracts import row_offsets
from physiofast.ops.cpu_plan import sample_plan as sample_plan
from physiofast.ops.reference import accumulator, locate, one_hot

_TILE_ELEMENTS = 400_000  # of a [R, H, Lq, Lk] stack; measured on cores with 2 MB of second-level cache
_ROOM = 8  # tokens; finer leaves more stacks of fewer windows, coarser more padding
_FORBIDDEN = -1e30  # a logit whose weight is exactly 0, unlike -inf safe to multiply by 0


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
) -> Tensor:
    """[T, D], as `reference.embed_patches`."""
    acc = accumulator(samples, weight)
    token = ids.index_select(0, by_modality)
    out = table.to(acc).index_select(0, token % slots.shape[1])
    rows = _Rows(samples, row_start, row_scale, row_shift)
    for span, length, offset, patches in _by_modality(rows, token, slots, cu_modality, patch_lengths):
        out[span].addmm_(patches.to(acc), weight[offset : offset + length].to(acc))
    out[int(cu_modality[-1]) :] = 0
    return out.to(weight.dtype).index_select(0, _inverse(by_modality))


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
    token, by_kind = ids.index_select(0, by_modality), grad.index_select(0, by_modality).to(acc)
    dweight = weight.new_empty(weight.shape, dtype=acc)
    dsamples = torch.zeros_like(samples, dtype=acc) if need_samples else samples.new_empty(0)
    for span, length, offset, patches in _by_modality(rows, token, slots, cu_modality, patch_lengths):
        torch.mm(patches.to(acc).mT, by_kind[span], out=dweight[offset : offset + length])
        if need_samples:
            first, row = locate(token[span], row_start, slots, length)
            slope = by_kind[span] @ weight[offset : offset + length].to(acc).mT
            slope *= row_scale.reshape(-1)[row][:, None].to(acc)
            dsamples[first[:, None] + torch.arange(length)] = slope
    dtable = _sum_by_token(grad.to(acc), slots)
    return dweight.to(weight.dtype), dtable.to(weight.dtype), dsamples.to(samples.dtype)


def take_tokens(x: Tensor, ids: Tensor, slots: Tensor) -> Tensor:
    """[T, D], as `reference.take_tokens`."""
    out = x.flatten(0, 1).index_select(0, ids.clamp(min=0))
    out[int((ids >= 0).sum()) :] = 0
    return out


def take_tokens_backward(grad: Tensor, slots: Tensor) -> Tensor:
    """[B, N, D], as `reference.take_tokens_backward`."""
    return _bags(grad, slots.reshape(-1, 1)).view(*slots.shape, -1)  # bags of one row, or of none


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
    # Every row that a token may become: of the table, then of the visible ones. Then each is copied once.
    choice = encoded.new_empty(tokens + len(encoded), encoded.shape[1])
    choice[:tokens] = table_hidden
    torch.add(encoded, table_visible.index_select(0, ids_visible % tokens), out=choice[tokens:])
    slot = slot_visible.reshape(-1).index_select(0, ids_present.clamp(min=0))
    out = choice.index_select(0, torch.where(slot >= 0, slot + tokens, ids_present % tokens))
    out[int((ids_present >= 0).sum()) :] = 0
    return out


def assemble_tokens_backward(
    grad: Tensor, ids_visible: Tensor, slot_visible: Tensor, slot_present: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dencoded, dtable_visible, dtable_hidden), as `reference.assemble_tokens_backward`."""
    acc, tokens = accumulator(grad, table), slot_visible.shape[1]
    dencoded = grad.index_select(0, slot_present.reshape(-1).index_select(0, ids_visible.clamp(min=0)).clamp(min=0))
    dencoded[int((ids_visible >= 0).sum()) :] = 0
    seen = slot_visible >= 0
    apart = torch.cat([torch.where(seen, slot_present, -1), torch.where(seen, -1, slot_present)], 1)
    dvisible, dhidden = _sum_by_token(grad.to(acc), apart).to(table.dtype).split(tokens)
    return dencoded, dvisible.clone(), dhidden.clone()  # outputs of an op must not share memory


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
    error = _patches(rows, torch.where(real, ids, somewhere), slots, length, rows.are_values()).to(acc)
    error.sub_(pred)  # in place: these are as many bytes as the predictions
    per_token = torch.linalg.vector_norm(error, dim=1).square() / length  # one pass, unlike a vecdot
    member = one_hot(modality, len(patch_lengths), acc)
    total, count = per_token @ member, member.sum(0)
    grad = error.mul_((member @ weight.to(acc))[:, None] * (-2 / length))
    return total @ weight.to(acc), total, count, grad.to(pred.dtype)


def _by_modality(
    rows: _Rows, token: Tensor, slots: Tensor, cu_modality: Tensor, patch_lengths: Sequence[int]
) -> Iterator[tuple[slice, int, int, Tensor]]:
    """(where its tokens stand, P_m, first row of its weights, patches) of each modality; `token` is in their order."""
    edges, are_values = cu_modality.tolist(), rows.are_values()
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


def _sum_by_token(values: Tensor, slots: Tensor) -> Tensor:
    """[N, D], as `reference.sum_by_token`."""
    return _bags(values, slots.mT)


def _bags(values: Tensor, index: Tensor) -> Tensor:
    """[n, D] sums, in order, of the rows of values [T, D] that each row of an index [n, k] names; -1 names none."""
    if values.dtype == torch.float64:  # PyTorch's vectorised sum has no float64
        return torch.cat([values, values.new_zeros(1, values.shape[1])])[index.long()].sum(1)
    known = np.ascontiguousarray(index.numpy()).reshape(-1)
    named = known >= 0
    end = np.concatenate([[0], named.cumsum()[index.shape[1] - 1 :: index.shape[1]]])
    which, begin = (torch.from_numpy(n) for n in (known[np.flatnonzero(named)].astype(np.int64), end[:-1]))
    return torch.nn.functional.embedding_bag(which, values.detach(), begin, mode="sum")


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


class _Layout(NamedTuple):
    """The tokens of one side, in stacks of windows that have room for equally many."""

    rows: Tensor  # [P], place in the packing; that of the window's last token where there is none
    real: Tensor  # bool [P]
    into: Tensor  # [P], place in the packing; its end where there is no token
    groups: list[tuple[int, int, int]]  # (first of P, windows, places of a window)

    def part(self, group: int, of_places: Tensor) -> Tensor:
        """A stack's part of [P]."""
        first, windows, length = self.groups[group]
        return of_places[first : first + windows * length]

    def stacked(self, group: int, flat: Tensor) -> Tensor:
        """[R, H, L, W] of a stack's [R * L, H, W], where it lies."""
        _, windows, length = self.groups[group]
        return flat.unflatten(0, (windows, length)).transpose(1, 2)

    def scatter(self, group: int, tile: Tensor, out: Tensor) -> None:
        """Write a stack [R, H, L, W] to its tokens' places in out [T + 1, H, W]; what is no token falls off its end."""
        out.index_copy_(0, self.part(group, self.into), tile.transpose(1, 2).flatten(0, 1).to(out.dtype))


def modality_attention(q: Tensor, k: Tensor, v: Tensor, *sides: Any) -> tuple[Tensor, Tensor]:
    """(out [T_q, H, Dh], log-sum-exp [H, T_q]), as `reference.modality_attention`."""
    known, acc, width = _Sides(*sides), accumulator(q), q.shape[2]
    of_q, of_k = _layouts(known, q.shape[1])
    features = _features(q, known)
    out, lse = q.new_zeros(len(q) + 1, *q.shape[1:]), q.new_full((len(q) + 1, q.shape[1]), -torch.inf, dtype=acc)
    for group in range(len(of_q.groups)):
        tile = _widened(group, q, k, v, known, of_q, of_k, features)
        found, total = _attend(*tile, _distance(group, known, of_q, of_k, acc))
        none = total < _FORBIDDEN / 2
        found, total = found[..., :width], total.masked_fill(none, -torch.inf)
        if bool(none.any()):
            found = found.masked_fill(none[..., None], 0)
        of_q.scatter(group, found, out)
        of_q.scatter(group, total[..., None], lse[..., None])
    return out[:-1], lse[:-1].mT.contiguous()


def modality_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *sides: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dpair_bias, dtime_decay), as `reference.modality_attention_backward`."""
    known, acc, (_, heads, width) = _Sides(*sides), accumulator(q), q.shape
    kinds = known.pair_bias.shape[1]
    of_q, of_k = _layouts(known, q.shape[1])
    features = _features(q, known)
    total = lse.mT
    dq, dk, dv = (t.new_zeros(len(t) + 1, *t.shape[1:]) for t in (q, k, v))
    dbias, ddecay = torch.zeros(kinds, heads * kinds, dtype=acc), torch.zeros(heads, dtype=acc)
    for group in range(len(of_q.groups)):
        tile = _widened(group, q, k, v, known, of_q, of_k, features)
        rows, columns = of_q.part(group, of_q.rows), tile[0].shape[-1]
        log_sum = total.index_select(0, rows)
        none = log_sum == -torch.inf
        dout = _padded(grad, rows, columns).masked_fill_((none | ~of_q.part(group, of_q.real)[:, None])[..., None], 0)
        value, log_sum = _padded(out, rows, columns), log_sum.masked_fill_(none, 0)[..., None]
        tops = (of_q.stacked(group, dout), of_q.stacked(group, value), of_q.stacked(group, log_sum))
        distance = _distance(group, known, of_q, of_k, acc)
        dwide_q, dwide_k, dwide_v, slope = _attend_backward(*tops, *tile, distance)
        of_q.scatter(group, dwide_q[..., :width] * known.scale, dq)
        of_k.scatter(group, dwide_k[..., :width], dk)
        of_k.scatter(group, dwide_v[..., :width], dv)
        of_query = dwide_q[..., width : width + kinds].transpose(1, 2).flatten(0, 1).flatten(1)  # [P, H * M]
        dbias += one_hot(known.modality_q.index_select(0, rows), kinds, acc).mT @ of_query
        ddecay += slope
    dbias = dbias.unflatten(1, (heads, kinds)).transpose(0, 1).contiguous()
    ddecay = ddecay[: len(known.time_decay)]
    return dq[:-1], dk[:-1], dv[:-1], dbias.to(known.pair_bias.dtype), ddecay.to(known.time_decay.dtype)


def _layouts(known: _Sides, heads: int) -> tuple[_Layout, _Layout]:
    """Of queries and keys, their groups side by side; windows without queries or without keys are in none.

    A window has room for a multiple of `_ROOM` tokens on each side, so its bits depend on no other window.
    """
    lengths = [cu.diff().long() for cu in (known.cu_q, known.cu_k)]
    room_q, room_k = (-(-n // _ROOM) * _ROOM for n in lengths)
    order = (room_q * (int(room_k.max()) + 1) + room_k).argsort(stable=True) if len(room_q) else room_q
    order = order[(room_q[order] > 0) & (room_k[order] > 0)]
    rooms, counts = torch.unique_consecutive(torch.stack([room_q[order], room_k[order]], 1), dim=0, return_counts=True)
    stacks = [
        (room, min(most, windows - first))
        for room, windows in zip(rooms.tolist(), counts.tolist(), strict=True)
        for most in [max(1, _TILE_ELEMENTS // (heads * room[0] * room[1]))]
        for first in range(0, windows, most)
    ]
    made = [
        _layout(
            cu[:-1].long()[order], n[order], room[order], len(kind), [(room[side], windows) for room, windows in stacks]
        )
        for side, (cu, kind, n, room) in enumerate(
            (
                (known.cu_q, known.modality_q, lengths[0], room_q),
                (known.cu_k, known.modality_k, lengths[1], room_k),
            )
        )
    ]
    return made[0], made[1]


def _layout(begin: Tensor, length: Tensor, room: Tensor, end: int, stacks: list[tuple[int, int]]) -> _Layout:
    ends = room.cumsum(0)
    step = torch.arange(int(room.sum())) - (ends - room).repeat_interleave(room)
    of_each = length.repeat_interleave(room)
    real = step < of_each
    rows = begin.repeat_interleave(room) + torch.minimum(step, of_each - 1)
    groups, first = [], 0
    for places, windows in stacks:
        groups.append((first, windows, places))
        first += places * windows
    return _Layout(rows, real, torch.where(real, rows, end), groups)


class _Features(NamedTuple):
    """What queries and keys have after their own features, so that one product gives a logit with its bias."""

    of_query: Tensor  # [M, H, W - Dh], by modality: bias to every key modality, and 1
    of_key: Tensor  # [M + 1, H, W - Dh], by modality: its one-hot vector; last what forbids a place without a key


def _features(q: Tensor, known: _Sides) -> _Features:
    acc, kinds, (_, heads, width) = accumulator(q), known.pair_bias.shape[1], q.shape
    room = -(-(width + kinds + 1) // 8) * 8 - width - kinds
    bias = torch.where(known.allowed, known.pair_bias.to(acc), _FORBIDDEN).transpose(0, 1)  # [M, H, M]
    of_query = torch.nn.functional.pad(bias, (0, room))
    of_query[..., kinds] = 1
    of_key = torch.eye(kinds + 1, kinds + room, dtype=acc)
    of_key[kinds, kinds] = _FORBIDDEN
    return _Features(of_query, of_key[:, None].expand(-1, heads, -1).contiguous())


def _widened(
    group: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    known: _Sides,
    of_q: _Layout,
    of_k: _Layout,
    features: _Features,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k, v) of a stack, [R, H, L, W]."""
    acc, kinds = accumulator(q), known.pair_bias.shape[1]
    rows_q, rows_k = of_q.part(group, of_q.rows), of_k.part(group, of_k.rows)
    kind_q = known.modality_q.index_select(0, rows_q).clamp_(0, kinds - 1)
    kind_k = known.modality_k.index_select(0, rows_k).clamp_(0, kinds - 1)
    kind_k = torch.where(of_k.part(group, of_k.real), kind_k, kinds)
    query = q.index_select(0, rows_q).to(acc) * known.scale
    wide_q = torch.cat([query, features.of_query.index_select(0, kind_q)], -1)
    wide_k = torch.cat([k.index_select(0, rows_k).to(acc), features.of_key.index_select(0, kind_k)], -1)
    wide_v = _padded(v, rows_k, wide_q.shape[2])
    return of_q.stacked(group, wide_q), of_k.stacked(group, wide_k), of_k.stacked(group, wide_v)


def _padded(packed: Tensor, rows: Tensor, columns: int) -> Tensor:
    """[rows, H, columns] in the accumulator's dtype; zeros after the features of `packed` [T, H, Dh]."""
    found = packed.index_select(0, rows).to(accumulator(packed))
    return torch.nn.functional.pad(found, (0, columns - packed.shape[2]))


def _distance(
    group: int, known: _Sides, of_q: _Layout, of_k: _Layout, acc: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """(seconds apart [R, 1, Lq, Lk], decay [H, 1, 1]) of a group; None when there is no decay."""
    if not known.time_decay.numel():
        return None
    second_q, second_k = (
        layout.stacked(group, time_s.index_select(0, layout.part(group, layout.rows))[:, None, None])
        for layout, time_s in ((of_q, known.time_q), (of_k, known.time_k))
    )
    return (second_q - second_k.mT).abs().to(acc), known.time_decay.to(acc)[:, None, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, distance: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """(out [R, H, Lq, W], log-sum-exp [R, H, Lq]) of a group, by PyTorch's own kernel."""
    mask = None if distance is None else distance[0] * -distance[1]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=1.0)


def _attend_backward(
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    distance: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """(dq, dk, dv, ddecay [H]) of a group. PyTorch's kernel gives no gradient of a mask, so a decay is done by hand."""
    if distance is None:
        saved = (out, lse[..., 0].contiguous(), 0.0, False)
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return *flash(dout, q, k, v, *saved, scale=1.0), 0.0
    apart, decay = distance
    weights = (q @ k.mT).addcmul_(apart, decay, value=-1).sub_(lse).exp_()
    dv = weights.mT @ dout
    dlogits = dout @ v.mT
    # Not by `out`: what is lost where that is rounded to 16 bits adds up in the gradient of a decay.
    dlogits.sub_(torch.linalg.vecdot(weights, dlogits)[..., None]).mul_(weights)
    slope = -torch.linalg.vecdot(dlogits.flatten(2), apart.flatten(2)).sum(0)
    return dlogits @ k, dlogits.mT @ q, dv, slope
