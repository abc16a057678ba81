"""The twins, which define in plain PyTorch what every op computes.

These functions are the specification. They take the registered ops' arguments (`ops/functional.py` documents
them), accumulate in float32 (float64 for float64 inputs) and trust their caller to have checked shapes.
Backward functions are written out, so that a kernel's gradient has a twin of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from physiofast.ops import checks
from physiofast.ops.contracts import AttentionSides, row_offsets
from physiofast.ops.philox import random_words
from physiofast.ops.projection import room_for_gradients

FORBIDDEN = -2e38
"""Finite value that replaces a bias of -inf; any bias below half of it forbids its pair as `allowed` does."""


def accumulator(*tensors: Tensor) -> torch.dtype:
    """The dtype of sums over these tensors: float64 when any of them is, else float32."""
    return torch.float64 if torch.float64 in [t.dtype for t in tensors] else torch.float32


# ---- patches -------------------------------------------------------------------------------------------------


def locate(token_id: Tensor, row_start: Tensor, slots: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Locate tokens [t] of one modality: (index of the first sample of each, its row among the flattened [B * C])."""
    patches = slots.shape[1] // row_start.shape[1]
    row, patch = token_id.long() // patches, token_id.long() % patches
    return row_start.reshape(-1)[row] + patch * length, row


def patch_length_of_tokens(modality: Tensor, patch_lengths: Sequence[int]) -> Tensor:
    """int64 [T], P_m of each token; 0 in the tail."""
    return torch.tensor([*patch_lengths, 0], device=modality.device)[modality.long()]


def take_patches(
    samples: Tensor,
    row_start: Tensor,
    row_scale: Tensor,
    row_shift: Tensor,
    ids: Tensor,
    modality: Tensor,
    slots: Tensor,
    patch_lengths: Sequence[int],
    acc: torch.dtype | None = None,
) -> Tensor:
    """Dequantised samples [T, P_max] of each token; NaN for an absent row, zero in columns from P_m on and in the tail.

    Their dtype is `acc` if given, which is that of the sums that they go into.
    """
    acc = acc or accumulator(samples)
    out = samples.new_zeros(len(ids), max(patch_lengths), dtype=acc)
    for m, length in enumerate(patch_lengths):
        token = (modality == m).nonzero()[:, 0]
        if len(token):
            first, row = locate(ids[token], row_start, slots, length)
            scale, shift = (t.reshape(-1)[row][:, None] for t in (row_scale, row_shift))  # float64 ones are not rounded
            scale = scale.masked_fill(row_start.reshape(-1)[row][:, None] < 0, torch.nan)
            values = samples.unfold(0, length, 1)[first.clamp(min=0)].to(acc) * scale + shift
            out[token, :length] = values.to(acc)
    return out


# ---- embed_patches -------------------------------------------------------------------------------------------


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
    """Embed tokens, [T, D]: each token's samples times its modality's rows of `weight`, plus its row of `table`."""
    acc = accumulator(samples, weight)
    patches = take_patches(samples, row_start, row_scale, row_shift, ids, modality, slots, patch_lengths, acc)
    out = table.new_zeros(len(ids), weight.shape[1], dtype=acc)
    for m, (length, offset) in enumerate(zip(patch_lengths, row_offsets(patch_lengths), strict=True)):
        token = (modality == m).nonzero()[:, 0]
        product = patches[token, :length] @ weight[offset : offset + length].to(acc)
        out[token] = product + table[ids[token].long() % slots.shape[1]].to(acc)
    return out.to(weight.dtype)


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
    """(dweight [sum P_m, D], dtable [N, D], dsamples), where dsamples is like samples, or empty unless needed."""
    acc = accumulator(samples, weight)
    patches = take_patches(samples, row_start, row_scale, row_shift, ids, modality, slots, patch_lengths, acc)
    grad = grad.to(acc)
    dweight = weight.new_zeros(weight.shape, dtype=acc)
    dsamples = torch.zeros_like(samples, dtype=acc) if need_samples else samples.new_empty(0)
    for m, (length, offset) in enumerate(zip(patch_lengths, row_offsets(patch_lengths), strict=True)):
        token = (modality == m).nonzero()[:, 0]
        dweight[offset : offset + length] = patches[token, :length].T @ grad[token]
        if need_samples:
            first, row = locate(ids[token], row_start, slots, length)
            dpatch = grad[token] @ weight[offset : offset + length].to(acc).T
            index = first[:, None] + torch.arange(length, device=ids.device)
            dsamples[index] = (dpatch * row_scale.reshape(-1)[row][:, None]).to(acc)
    dtable = sum_by_token(grad, slots)
    return dweight.to(weight.dtype), dtable.to(weight.dtype), dsamples.to(samples.dtype)


def sum_by_token(values: Tensor, slots: Tensor) -> Tensor:
    """Sum the values at each token's slots [B, N] over the windows, in their order: [N, D]."""
    return rows_at(slots, values).sum(0)


def rows_at(number: Tensor, rows: Tensor) -> Tensor:
    """Gather rows by their numbers [...]: [..., D], zeros where the number is -1."""
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])[number.long()].contiguous()


def slots_of(ids: Tensor, slots: Tensor) -> Tensor:
    """Look up the place of each token [T] of a packing in another packing, whose slots are [B, N]; -1 for none."""
    return torch.cat([slots.reshape(-1), slots.new_full((1,), -1)])[ids.long()]


# ---- take_tokens ---------------------------------------------------------------------------------------------


def take_tokens(x: Tensor, ids: Tensor, slots: Tensor) -> Tensor:
    """Take the features [T, D] of each token of a packing from x [B, N, D]; the tail is zero."""
    return rows_at(ids, x.flatten(0, 1))


def take_tokens_backward(grad: Tensor, slots: Tensor) -> Tensor:
    """The gradient of x [B, N, D]; zero for tokens that are not in the packing."""
    return rows_at(slots, grad)


# ---- take_hidden ---------------------------------------------------------------------------------------------


def take_hidden(
    x: Tensor, ids_hidden: Tensor, ids_present: Tensor, slot_hidden: Tensor, slot_present: Tensor
) -> Tensor:
    """Take the features [T_hidden, D] of each hidden token from x [T_present, D]; the tail is zero."""
    return rows_at(slots_of(ids_hidden, slot_present), x)


def take_hidden_backward(grad: Tensor, onto: Tensor, ids_present: Tensor, slot_hidden: Tensor) -> Tensor:
    """The gradient of x [T_present, D]: zero for visible tokens; plus `onto`, where that is not empty."""
    dx = rows_at(slots_of(ids_present, slot_hidden), grad)
    return dx + onto if onto.numel() else dx


# ---- assemble_tokens -----------------------------------------------------------------------------------------


def assemble_tokens(
    encoded: Tensor,
    ids_visible: Tensor,
    ids_present: Tensor,
    slot_visible: Tensor,
    slot_present: Tensor,
    table_visible: Tensor,
    table_hidden: Tensor,
) -> Tensor:
    """Assemble [T_present, D]: a visible token is its encoding plus table_visible, a hidden one table_hidden alone."""
    acc = accumulator(encoded, table_visible)
    slot = slots_of(ids_present, slot_visible)
    token = ids_present % slot_visible.shape[1]
    seen = rows_at(slot, encoded).to(acc) + table_visible[token].to(acc)
    out = torch.where((slot >= 0)[:, None], seen, table_hidden[token].to(acc))
    return torch.where((ids_present >= 0)[:, None], out, 0).to(encoded.dtype)


def assemble_tokens_backward(
    grad: Tensor, ids_visible: Tensor, slot_visible: Tensor, slot_present: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dencoded [T_visible, D], dtable_visible [N, D], dtable_hidden [N, D])."""
    acc = accumulator(grad, table)
    dencoded = rows_at(slots_of(ids_visible, slot_present), grad)
    seen = slot_visible >= 0
    dvisible = sum_by_token(grad.to(acc), torch.where(seen, slot_present, -1))
    dhidden = sum_by_token(grad.to(acc), torch.where(seen, -1, slot_present))
    return dencoded, dvisible.to(table.dtype), dhidden.to(table.dtype)


# ---- modality_attention --------------------------------------------------------------------------------------


def padded_index(cu_seqlens: Tensor, max_len: int | None = None) -> tuple[Tensor, Tensor]:
    """(position [B, L] of each window's tokens in the packing, bool [B, L] whether there is a token).

    L is `max_len`, or the number of tokens of the longest window.
    """
    length = cu_seqlens.diff()
    if max_len is None:
        max_len = int(length.max()) if len(length) else 0
    step = torch.arange(max_len, device=cu_seqlens.device)
    real = step < length[:, None]
    return torch.where(real, cu_seqlens[:-1, None] + step, 0).long(), real


def take_padded(x: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """Gather the rows of x at a `padded_index`, [B, L, H, Dh]; zeros where there is no token, as 0 * NaN is NaN."""
    return torch.where(real[..., None, None], x[index], 0)


def one_hot(modality: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """One-hot vectors [..., M] of each token's modality."""
    return (modality[..., None] == torch.arange(count, device=modality.device)).to(dtype)


def attention_weights(
    q: Tensor,
    k: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    modality_q: Tensor,
    modality_k: Tensor,
    time_q: Tensor,
    time_k: Tensor,
    pair_bias: Tensor,
    allowed: Tensor,
    time_decay: Tensor,
    scale: float,
    max_q: int,
    max_k: int,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(weights [B, H, Lq, Lk], log-sum-exp [B, H, Lq], seconds apart [B, Lq, Lk], index, real, one-hot modalities).

    Each of the last three is a pair, for queries and for keys; the first two of them are a `padded_index`. A query with
    no allowed key has all weights zero and log-sum-exp -inf.
    """
    acc = accumulator(q)
    (iq, real_q), (ik, real_k) = padded_index(cu_q), padded_index(cu_k)
    hot_q, hot_k = (one_hot(modality, pair_bias.shape[1], acc) for modality in (modality_q[iq], modality_k[ik]))
    # The pair's bias is a product of one-hot vectors: extra features of q and k carry it exactly.
    of_query = torch.einsum("bqm,hmn->bqhn", hot_q, pair_bias.to(acc).clamp(min=FORBIDDEN))
    wide_q = torch.cat([q[iq].to(acc) * scale, of_query], -1)
    wide_k = torch.cat([k[ik].to(acc), hot_k[:, :, None].expand(-1, -1, k.shape[1], -1)], -1)
    logits = torch.einsum("bqhd,bkhd->bhqk", wide_q, wide_k)
    apart = (time_q.to(acc)[iq][:, :, None] - time_k.to(acc)[ik][:, None, :]).abs()
    if time_decay.numel():  # else there is no decay
        logits.addcmul_(time_decay.to(acc)[:, None, None], apart[:, None], value=-1)
    forbidden = hot_q @ (~allowed).to(acc).expand(hot_q.shape[-1], hot_k.shape[-1]) @ hot_k.mT
    pair = real_q[:, :, None] & real_k[:, None, :] & (forbidden == 0)
    logits.masked_fill_(~pair[:, None], -torch.inf)
    none = (logits <= FORBIDDEN / 2).all(-1)  # False for NaN
    lse, weights = logits.logsumexp(-1).masked_fill_(none, -torch.inf), logits.softmax(-1)
    return weights.masked_fill_(none[..., None], 0), lse, apart, (iq, ik), (real_q, real_k), (hot_q, hot_k)


def modality_attention(q: Tensor, k: Tensor, v: Tensor, *sides: Any) -> tuple[Tensor, Tensor]:
    """(out [T_q, H, Dh], log-sum-exp [H, T_q]); `sides` are the fields of `AttentionSides`."""
    weights, lse_tile, _, (iq, ik), (real_q, real_k), _ = attention_weights(q, k, *sides)
    tile = torch.einsum("bhqk,bkhd->bqhd", weights, take_padded(v, ik, real_k).to(weights.dtype))
    out, lse = q.new_zeros(q.shape), weights.new_full((q.shape[1], len(q)), -torch.inf)
    out[iq[real_q]] = tile[real_q].to(q.dtype)
    lse[:, iq[real_q]] = lse_tile.transpose(0, 1)[:, real_q]
    return out, lse


def modality_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
    may_share: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dpair_bias, dtime_decay); the weights are recomputed, for which faster forms read `out` and `lse`.

    `rest` are the fields of `AttentionSides`, and whether the last two gradients are needed; they are empty if not.
    With `may_share` the first three may be views of one tensor where q, k and v are; results of a registered op may
    not.
    """
    *attended, need_shared = rest
    sides = AttentionSides(*attended)
    weights, _, apart, (iq, ik), (real_q, real_k), (hot_q, hot_k) = attention_weights(q, k, *sides)
    acc = weights.dtype
    tile, of_q = (take_padded(x, iq, real_q).to(acc) for x in (grad, q))
    of_k, of_v = (take_padded(x, ik, real_k).to(acc) for x in (k, v))
    dlogits = torch.einsum("bqhd,bkhd->bhqk", tile, of_v)
    dlogits -= torch.einsum("bhqk,bhqk->bhq", weights, dlogits)[..., None]
    dlogits *= weights
    dq, dk, dv = (room.zero_() for room in room_for_gradients((q, k, v), may_share))
    dq[iq[real_q]] = (torch.einsum("bhqk,bkhd->bqhd", dlogits, of_k) * sides.scale)[real_q].to(q.dtype)
    dk[ik[real_k]] = (torch.einsum("bhqk,bqhd->bkhd", dlogits, of_q) * sides.scale)[real_k].to(k.dtype)
    dv[ik[real_k]] = torch.einsum("bhqk,bqhd->bkhd", weights, tile)[real_k].to(v.dtype)
    if not need_shared:
        return dq, dk, dv, sides.pair_bias.new_empty(0), sides.time_decay.new_empty(0)
    dbias = torch.einsum("bqm,bhqn->hmn", hot_q, dlogits @ hot_k[:, None]).contiguous()
    ddecay = -torch.einsum("bhqk,bqk->h", dlogits, apart)[: len(sides.time_decay)]
    return dq, dk, dv, dbias.to(sides.pair_bias.dtype), ddecay.to(sides.time_decay.dtype)


def modality_attention_stats(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """(sums [(2 + taus) * (H + 1), M, M], queries [M]); `rest` are the fields of `AttentionSides` and the taus.

    The sums go over queries of one modality and keys of another. Summed are the weights, the weights times seconds
    apart, and for each tau the weights of keys at most tau seconds apart, each for all heads; then the same three with
    equal weights on the keys that the first head allows. `queries` counts the queries that have such a key.
    """
    *attended, tau_s = rest
    sides = AttentionSides(*attended)
    weights, _, apart, _, _, (hot_q, hot_k) = attention_weights(q, k, *sides)
    q, k, no_decay = (torch.zeros_like(t) for t in (q[:, :1], k[:, :1], sides.time_decay[:1]))
    forbidding = torch.where(sides.pair_bias[:1] < FORBIDDEN / 2, sides.pair_bias[:1], 0)
    even, *_ = attention_weights(q, k, *sides._replace(pair_bias=forbidding, time_decay=no_decay, scale=1.0))
    weights, apart = torch.cat([weights, even], 1), apart[:, None]
    parts = (weights, weights * apart, *(weights * (apart <= tau) for tau in tau_s))
    # Each window's sum first: float32 that adds up all pairs of a batch one by one is off by thousands of roundings.
    pair_sums = [torch.einsum("bqm,bhqk,bkn->bhmn", hot_q, part, hot_k).sum(0) for part in parts]
    sums = torch.cat([*(of_heads[:-1] for of_heads in pair_sums), *(of_heads[-1:] for of_heads in pair_sums)])
    return sums, torch.einsum("bqm,bhq->m", hot_q, (even > 0).any(-1).to(sums.dtype))


# ---- masked_mse ----------------------------------------------------------------------------------------------


def normalise_patches(patches: Tensor, modality: Tensor, lengths: Tensor, normalise: Sequence[int]) -> Tensor:
    """Scale each patch to zero mean and unit (biased) variance, eps 1e-6, for modalities with a 1 in `normalise`."""
    real = torch.arange(patches.shape[1], device=patches.device) < lengths[:, None]
    count = lengths.clamp(min=1)[:, None]
    mean = patches.sum(1, keepdim=True) / count
    centred = torch.where(real, patches - mean, 0)
    scaled = centred * ((centred.square().sum(1, keepdim=True) / count) + 1e-6).rsqrt()
    chosen = torch.tensor([*normalise, 0], device=patches.device, dtype=torch.bool)[modality.long()]
    return torch.where(chosen[:, None], scaled, patches)


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
    """(loss, sum [M], count [M], dloss/dpred [T, P_max]), in one pass over the samples."""
    acc = accumulator(pred, samples)
    target = take_patches(samples, row_start, row_scale, row_shift, ids, modality, slots, patch_lengths, acc)
    num_modalities = len(patch_lengths)
    lengths = patch_length_of_tokens(modality, patch_lengths)
    target = normalise_patches(target, modality, lengths, normalise)
    real = torch.arange(target.shape[1], device=pred.device) < lengths[:, None]
    error = torch.where(real, pred.to(acc) - target, 0)
    per_token = error.square().sum(1) / lengths.clamp(min=1)
    member = one_hot(modality, num_modalities, acc)
    total, count = (member * per_token[:, None]).sum(0), member.sum(0)
    token_weight = member @ weight.to(acc)
    grad = 2 * error * (token_weight / lengths.clamp(min=1))[:, None]
    return (total * weight.to(acc)).sum(), total, count, grad.to(pred.dtype)


def linear_masked_mse(
    x: Tensor,
    head: Tensor,
    bias: Tensor,
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
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, sum [M], count [M], dloss/dx, dloss/dhead, dloss/dbias); the gradients are empty unless needed."""
    pred = torch.nn.functional.linear(x, head, bias)
    rows, packed = (samples, row_start, row_scale, row_shift), (ids, modality, slots)
    loss, total, count, grad = masked_mse(pred, *rows, *packed, weight, patch_lengths, normalise, align)
    if not need_gradient:
        return loss, total, count, x.new_empty(0), head.new_empty(0), bias.new_empty(0)
    of_tokens = torch.where((ids >= 0)[:, None], x, 0)  # a tail may hold infinities; it is in no sum
    return loss, total, count, grad @ head, grad.mT @ of_tokens, grad.sum(0)


def scale_gradient(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply `grad` by a scalar in place, as the backward of `masked_mse` does with the gradient its forward saved.

    A factor of 1, as from `loss.backward()`, is detected on its own device and costs no pass over `grad`.
    """
    if factor.device.type == "cpu" and factor == 1:
        return grad
    return grad.copy_(grad.to(factor.dtype) * factor)


# ---- sample_plan ---------------------------------------------------------------------------------------------


def choose_visible(
    quotas: Tensor, valid: Tensor, window_id: Tensor, seed_step: Tensor, token_modality: Tensor
) -> Tensor:
    """Choose the visible tokens: bool [B, N], of each modality's valid tokens the quotas[b, m] with the smallest keys.

    Of tokens with equal keys the one with the lower id comes first.
    """
    words = random_words(seed_step, window_id, valid.shape[1])
    modality = token_modality.long()
    of_windows = modality.expand_as(words)
    order = ((of_windows << 33) | (~valid).long() << 32 | words).sort(dim=1, stable=True).indices
    per_modality = (modality[:, None] == torch.arange(quotas.shape[1], device=modality.device)).sum(0)
    begin = per_modality.cumsum(0) - per_modality
    rank_at = torch.arange(valid.shape[1], device=modality.device) - begin[modality]
    rank = torch.empty_like(order).scatter_(1, order, rank_at.expand_as(order))
    return valid & (rank < quotas.long().gather(1, of_windows))


def pack(
    chosen: Tensor, token_modality: Tensor, token_time_s: Tensor, num_modalities: int, total: int
) -> tuple[Tensor, ...]:
    """Pack the chosen tokens [B, N] into `total` places; returns the seven tensors of a `Packing`.

    The host does not wait for a GPU to count the tokens: a packing without room for all of them is left empty.
    """
    chosen = chosen & (chosen.sum() <= total)
    flat = chosen.reshape(-1)
    place = flat.long().cumsum(0) - 1
    token = torch.arange(flat.shape[0], device=chosen.device, dtype=torch.int32)
    # Tokens that are not chosen all write to one place past the end, which is cut off again.
    ids = token.new_full((total + 1,), -1).scatter_(0, torch.where(flat, place, total), token)[:total]
    cu_seqlens = torch.nn.functional.pad(chosen.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    real, which = ids >= 0, ids.long() % chosen.shape[1]
    modality = torch.where(real, token_modality[which], -1)
    time_s = torch.where(real, token_time_s[which], 0)
    slot = torch.where(chosen, place.reshape(chosen.shape), -1).to(torch.int32)
    by_modality = torch.where(real, modality, num_modalities).sort(stable=True).indices.to(torch.int32)
    per_modality = (modality[:, None] == torch.arange(num_modalities, device=chosen.device)).sum(0)
    cu_modality = torch.nn.functional.pad(per_modality.cumsum(0), (1, 0)).to(torch.int32)
    return ids, cu_seqlens, modality, time_s, slot, by_modality, cu_modality


def sample_plan(
    quotas: Tensor,
    valid: Tensor,
    window_id: Tensor,
    seed_step: Tensor,
    token_modality: Tensor,
    token_time_s: Tensor,
    totals: Sequence[int],
    may_share: bool = False,
) -> list[Tensor]:
    """Draw a plan; returns the tensors of `pack` for the visible, hidden and present tokens, one after the other.

    With `may_share` they may be views of larger ones, in forms that gain by it; results of a registered op may not.

    Raises:
        ValueError: on a CPU, modalities do not ascend within [0, M), or a packing has fewer places than tokens.
    """
    has_values = valid.device.type == "cpu" and not torch.compiler.is_compiling()
    if has_values:
        checks.check_ascending(token_modality, quotas.shape[1])
    visible = choose_visible(quotas, valid, window_id, seed_step, token_modality)
    chosen = (visible, valid & ~visible, valid)
    if has_values:
        checks.check_totals(chosen, totals)
    return [
        tensor
        for mask, total in zip(chosen, totals, strict=True)
        for tensor in pack(mask, token_modality, token_time_s, quotas.shape[1], total)
    ]
