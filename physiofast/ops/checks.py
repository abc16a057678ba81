"""Checks of the arguments of public functions.

They look at shapes, dtypes and devices alone, so a call whose arguments agree with an earlier call's in these is not
checked again. Each raises a ValueError that names the argument; one that is no tensor at all is a TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.ops.contracts import (
    SAMPLE_DTYPES,
    AttentionSides,
    Packing,
    Plan,
    Rows,
    check_id_range,
    longest_window,
    need_tensor,
)
from physiofast.ops.watching import is_watched

SHORTEST_NORMALISED = 16
"""Fewest samples of a patch that may be normalised: mean and variance of fewer reveal too much of the target."""
_FEATURES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...], free: int = 0) -> None:
    """Require that the leading axes have the sizes `wanted`, and that `free` axes of any size follow."""
    need_tensor(name, tensor)
    found = tensor.shape
    if found[: len(wanted)] != wanted or len(found) != len(wanted) + free:
        text = ", ".join([*map(str, wanted), *["any"] * free])
        raise ValueError(f"{name} must have shape [{text}]; found {list(found)}")


def check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype, hint: str = "") -> None:
    """Require one of the allowed dtypes; `hint` ends the message."""
    if tensor.dtype not in allowed:
        text = " or ".join(str(each).removeprefix("torch.") for each in allowed)
        raise ValueError(f"{name} must be {text}; found {str(tensor.dtype).removeprefix('torch.')}{hint}")


def _check_exact(name: str, tensor: Tensor) -> None:
    """Require float32 or float64, for values in physical units or seconds, which 16 bits cannot hold."""
    hint = "; what casts a model's inputs (as FSDP's cast_forward_inputs does) has to leave out rows and packings"
    check_dtype(name, tensor, torch.float32, torch.float64, hint=hint)


def check_features(name: str, tensor: Tensor, wanted: tuple[int, ...], free: int = 0) -> None:
    """Require a floating dtype, and a shape as `check_shape` does."""
    check_shape(name, tensor, wanted, free)
    check_dtype(name, tensor, *_FEATURES)


def check_one_device(names: Sequence[str], args: Sequence[Any]) -> None:
    """Require that all tensors are on one device: the forms of an op read memory without asking where it is."""
    placed = [(name, arg.device) for name, arg in zip(names, args, strict=True) if isinstance(arg, Tensor)]
    first, device = placed[0]
    for name, other in placed:
        if other != device:
            raise ValueError(f"{name} is on {other} but {first} is on {device}; move them to one device")


def check_values(names: Sequence[str], args: Sequence[Any]) -> None:
    """Refuse an argument on the meta device beside others that have values: a result would have none, or wrong ones."""
    tensors = [(name, arg) for name, arg in zip(names, args, strict=True) if isinstance(arg, Tensor)]
    without = [name for name, tensor in tensors if _is_meta(tensor)]
    if 0 < len(without) < len(tensors):
        raise ValueError(
            f"{without[0]} has no values (it is on the meta device); load them, or make them by to_empty and "
            "reset_parameters, or move all tensors to the meta device"
        )


def _is_meta(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"  # `is_meta` is of no fake tensor


def check_weight(tensor: Tensor, samples: int) -> None:
    """Require the weights of all modalities, [sum P_m, D]; `samples` is sum P_m."""
    need_tensor("weight", tensor)
    turned = tensor.ndim == 2 and tensor.shape[1] == samples != tensor.shape[0]
    if turned:
        found = list(tensor.shape)
        raise ValueError(f"weight must have shape [{samples}, any]; found {found}: transpose that of a Linear")
    check_features("weight", tensor, (samples,), free=1)


def check_linear(x: Tensor, head: Tensor, bias: Tensor | None, tokens: int, samples: int, casts: bool) -> None:
    """Check the features x of a linear head, its weight and its bias.

    Args:
        x: must be [tokens, D].
        head: must be [samples, D].
        bias: must be [samples] or None.
        tokens: T_hidden.
        samples: P_max.
        casts: whether autocast brings them to one dtype, so that they may differ.
    """
    check_features("x", x, (tokens,), free=1)
    for name, tensor, wanted in (("head", head, (samples, x.shape[1])), ("bias", bias, (samples,))):
        if tensor is not None:
            check_features(name, tensor, wanted)
            if not casts or torch.float64 in (tensor.dtype, x.dtype):  # which autocast leaves as it is
                check_same_dtype(name, tensor, "x", x)


def check_same_dtype(name: str, tensor: Tensor, other: str, like: Tensor) -> None:
    """Require that two tensors have one dtype."""
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name} is {tensor.dtype} but {other} is {like.dtype}; cast them to one dtype")


def check_dense(samples: Tensor | Sequence[Tensor], packing: Packing, patch_lengths: Sequence[int]) -> int:
    """Check dense samples against a packing and patch lengths; return S, the patches of a row.

    Args:
        samples: [B, C, T] with patches of one length, or one such tensor for each modality.
        packing: its grid of token ids says how many patches there are.
        patch_lengths: P_m of each modality.
    """
    tokens = packing.slot.shape[-1]
    if not isinstance(samples, Tensor):
        return _check_dense_by_modality(samples, tokens, patch_lengths)
    if samples.ndim != 3 or samples.shape[1] < 1 or tokens % samples.shape[1]:
        raise ValueError(
            f"dense samples must be [B, C, T] with C dividing the {tokens} token ids; found {tuple(samples.shape)}"
        )
    check_dtype("dense samples", samples, *SAMPLE_DTYPES)
    patches = tokens // samples.shape[1]
    if any(length * patches != samples.shape[2] for length in patch_lengths):
        if samples.shape[2] % patches:
            _check_count(samples.shape[1], samples.shape[2], tokens, patch_lengths)
        raise ValueError(
            f"dense samples of T = {samples.shape[2]} have {patches} patches a row, so every modality's must be "
            f"{samples.shape[2] / patches:g} samples long; found patch_lengths {list(patch_lengths)}. "
            "Rows may have a rate for each modality"
        )
    return patches


def _check_count(channels: int, samples: int, tokens: int, patch_lengths: Sequence[int]) -> None:
    """Require, where dense samples divide into patches of one length, that there are as many patches as token ids."""
    length = patch_lengths[0]
    if not samples or length < 1 or samples % length or len(set(patch_lengths)) > 1:
        return
    patches = samples // length
    fitting = [f"T = {tokens // channels * length}"]
    if tokens % patches == 0:
        fitting.insert(0, f"C = {tokens // patches}")
    raise ValueError(
        f"dense samples of C = {channels} and T = {samples} are C * S = {channels} * {patches} patches of {length} "
        f"samples, but the packing is of N = {tokens} token ids; {' or '.join(fitting)} would fit"
    )


def _check_dense_by_modality(samples: Sequence[Tensor], tokens: int, patch_lengths: Sequence[int]) -> int:
    are_several = isinstance(samples, Sequence)
    if not (are_several and all(isinstance(part, Tensor) and part.ndim == 3 for part in samples)):
        found = type(samples).__name__
        raise TypeError(f"expected Rows, a tensor [B, C, T] or one such tensor for each modality; found a {found}")
    channels = sum(part.shape[1] for part in samples)
    if len(samples) != len(patch_lengths) or not channels or tokens % channels:
        raise ValueError(
            f"dense samples must be one [B, C_m, T_m] for each of {len(patch_lengths)} patch_lengths, the sum of C_m "
            f"dividing the {tokens} token ids; found {[tuple(part.shape) for part in samples]}"
        )
    patches = tokens // channels
    for m, (part, length) in enumerate(zip(samples, patch_lengths, strict=True)):
        check_dtype(f"samples of modality {m}", part, *SAMPLE_DTYPES)
        if part.dtype != samples[0].dtype or part.shape[2] != patches * length:
            raise ValueError(
                f"samples of modality {m} must be {samples[0].dtype} and T = {patches} patches of {length} samples; "
                f"found {part.dtype} and T = {part.shape[2]}"
            )
    return patches


def check_packing(name: str, packing: Packing) -> None:
    """Check the ids, modalities and slots of a packing."""
    check_shape(f"{name}.ids", packing.ids, (), free=1)
    check_shape(f"{name}.modality", packing.modality, packing.ids.shape)
    check_shape(f"{name}.slot", packing.slot, (), free=2)
    for part, tensor in (("ids", packing.ids), ("modality", packing.modality), ("slot", packing.slot)):
        check_dtype(f"{name}.{part}", tensor, torch.int32)


def check_present(x: Tensor, plan: Plan) -> None:
    """Require that x [T_present, D] has features of all present tokens of a plan, and check the plan's packings."""
    check_shape("x", x, plan.present.ids.shape, free=1)
    check_packing("plan.hidden", plan.hidden)
    check_packing("plan.present", plan.present)
    check_shape("plan.present.slot", plan.present.slot, plan.hidden.slot.shape)


def check_by_modality(name: str, packing: Packing, patch_lengths: Sequence[int]) -> None:
    """Check a packing's order by modality, which must have as many modalities as there are patch lengths."""
    check_shape(f"{name}.by_modality", packing.by_modality, packing.ids.shape)
    check_dtype(f"{name}.by_modality", packing.by_modality, torch.int32)
    check_dtype(f"{name}.cu_modality", packing.cu_modality, torch.int32)
    _check_modalities(name, packing, patch_lengths)


def check_lengths(of_rows: tuple[int, ...], patch_lengths: tuple[int, ...]) -> None:
    """Require that the patch lengths agree with those of the rows.

    Rows whose patches all have one length fit any number of modalities with that length.
    """
    if of_rows != patch_lengths and not (len(set(of_rows)) == 1 and set(of_rows) == set(patch_lengths)):
        raise ValueError(
            f"these rows have patches of {', '.join(map(str, of_rows))} samples; found patch_lengths "
            f"{list(patch_lengths)}. Others need rows of their own, as of Rows.from_dense(x, patches), or of "
            "rows.replace(patch_lengths=()), which say nothing of it"
        )


def check_rows(found: Rows, name: str, packing: Packing, patch_lengths: Sequence[int]) -> None:
    """Check rows, the packing of their tokens, and that both fit the patch lengths."""
    check_packing(name, packing)
    tokens, starts = packing.slot.shape, found.row_start.shape
    check_shape("rows.samples", found.samples, (), free=1)
    check_shape("rows.row_start", found.row_start, (tokens[0],), free=1)
    check_shape("rows.row_scale", found.row_scale, starts)
    check_shape("rows.row_shift", found.row_shift, starts)
    check_shape("rows.valid", found.valid, tokens)
    check_dtype("rows.samples", found.samples, *SAMPLE_DTYPES)
    check_dtype("rows.row_start", found.row_start, torch.int64)
    _check_exact("rows.row_scale", found.row_scale)
    _check_exact("rows.row_shift", found.row_shift)
    if not starts[1] or tokens[1] % starts[1]:
        raise ValueError(f"{tokens[1]} token ids do not divide into {starts[1]} channels")
    if not patch_lengths or min(patch_lengths) < 1:
        raise ValueError(f"patch_lengths must be positive, one per modality; found {list(patch_lengths)}")
    _check_modalities(name, packing, patch_lengths)
    if not torch.compiler.is_compiling():
        check_order(found, packing, tuple(patch_lengths))


def check_order(found: Rows, packing: Packing, patch_lengths: tuple[int, ...]) -> None:
    """Require that all tokens of a channel are of one modality, and that their patches are as long as the channel's.

    The first N tokens of a packing are looked at. The host waits for a GPU's token ids where such rows come for the
    first time, and never again: what this finds is that a script gives its tokens or tensors in the wrong order, which
    is so in every batch or in none. Tokens in CPU memory are compared with those that were right before.
    """
    ids, kinds, slot, starts = packing.ids, packing.modality, packing.slot, found.row_start
    if not type(ids) is type(kinds) is type(slot) is type(starts) is Tensor or starts.ndim != 2 or is_watched():
        return
    channels, tokens = starts.shape[1], slot.shape[-1]
    is_readable = ids.dtype == kinds.dtype == torch.int32 and ids.shape == kinds.shape
    if not is_readable or ids.is_meta or kinds.is_meta or not channels or not tokens or tokens % channels:
        return
    of_channels = found.channel_lengths if len(found.channel_lengths) == channels else ()  # not a part of them
    grid = (channels, tokens, of_channels, patch_lengths, ids.device)
    known = _ordered.get(grid)
    if not ids.is_cpu and (known is not None or torch.cuda.is_current_stream_capturing()):
        return
    if not ids.is_cpu:
        ids, kinds = ids.cpu(), kinds.cpu()
    place, modality = ids.numpy()[:tokens], kinds.numpy()[:tokens]
    if len(modality) and modality[-1] < 0:  # within the tail
        used = np.count_nonzero(modality >= 0)
        place, modality = place[:used], modality[:used]
    if known is not None and known.take(place, mode="wrap").tobytes() == modality.tobytes():
        return
    order = _order_of_channels(place, modality, channels, tokens)
    if of_channels:
        _check_channel_lengths(order, of_channels, patch_lengths)
    if known is not None:
        order = np.where(order < 0, known[:: tokens // channels], order)
    elif len(_ordered) >= _MOST_ORDERED:
        _ordered.clear()
    _ordered[grid] = order.repeat(tokens // channels)


_ordered: dict[tuple[Any, ...], np.ndarray] = {}
"""(C, N, channel lengths, patch lengths, device) -> int32 [N], modalities that `check_order` has passed, -1 unknown."""
_MOST_ORDERED = 256
"""Most grids that are kept; beyond that all are forgotten."""


def _order_of_channels(place: np.ndarray, modality: np.ndarray, channels: int, tokens: int) -> np.ndarray:
    """The modality of each channel, int32 [C], -1 where no token is of it; each token has its channel's."""
    patches = tokens // channels
    channel = place % tokens // patches
    order = np.full(channels, -1, np.int32)
    order[channel] = modality
    wrong = np.flatnonzero(order[channel] != modality)
    if len(wrong):
        c = int(channel[wrong[0]])
        raise ValueError(
            f"tokens of channel {c} are of modalities {int(modality[wrong[0]])} and {int(order[c])}, but those of a "
            f"channel must be of one: of these {channels} channels of S = {patches} patches, token id c * S + s is "
            "patch s of channel c, so that token_modality is channel_modality.repeat_interleave(S)"
        )
    return order


def _check_channel_lengths(order: np.ndarray, of_channels: Sequence[int], patch_lengths: Sequence[int]) -> None:
    """Require that the patches of each channel are as long as those of its modality."""
    used = np.asarray(patch_lengths).take(order, mode="clip")
    wrong = np.flatnonzero((order >= 0) & (used != of_channels))
    if len(wrong):
        c, m = int(wrong[0]), int(order[wrong[0]])
        raise ValueError(
            f"patches of channel {c} have {of_channels[c]} samples, but its tokens in the packing are of modality {m}, "
            f"whose patches have {patch_lengths[m]}: token_modality has to number modalities in the order of the "
            "samples' tensors, and token ids to go through their channels in that order. Rows whose channels were put "
            "in another order by hand take rows.replace(channel_lengths=()), which says nothing of it"
        )


def _check_modalities(name: str, packing: Packing, patch_lengths: Sequence[int]) -> None:
    check_shape(f"{name}.cu_modality", packing.cu_modality, (), free=1)
    if packing.cu_modality.shape[0] != len(patch_lengths) + 1:
        raise ValueError(
            f"{name} has tokens of {packing.cu_modality.shape[0] - 1} modalities, but patch_lengths "
            f"{list(patch_lengths)} are of {len(patch_lengths)}"
        )


def check_normalised(flags: Sequence[int], patch_lengths: Sequence[int]) -> None:
    """Check the flags that say which modalities' patches are normalised; short patches must not be."""
    if len(flags) != len(patch_lengths):
        raise ValueError(f"normalise has {len(flags)} entries for {len(patch_lengths)} modalities")
    for m, (flag, length) in enumerate(zip(flags, patch_lengths, strict=True)):
        if flag and length < SHORTEST_NORMALISED:
            raise ValueError(
                f"normalise of modality {m}: patches of {length} samples are too short; at least {SHORTEST_NORMALISED}"
            )


def check_plan_inputs(
    quotas: Tensor, valid: Tensor, window_id: Tensor, seed_step: Tensor, token_modality: Tensor, token_time_s: Tensor
) -> None:
    """Check the shapes and dtypes of what a plan is drawn from."""
    check_shape("valid", valid, (), free=2)
    batch, tokens = valid.shape
    check_shape("quotas", quotas, (batch,), free=1)
    check_shape("window_id", window_id, (batch,))
    check_shape("seed_step", seed_step, (2,))
    check_shape("token_modality", token_modality, (tokens,))
    check_shape("token_time_s", token_time_s, (tokens,))
    check_dtype("quotas", quotas, *_INTEGERS)
    check_dtype("valid", valid, torch.bool)
    check_dtype("window_id", window_id, torch.int64)
    check_dtype("seed_step", seed_step, torch.int64)
    check_dtype("token_modality", token_modality, torch.int32)
    check_dtype("token_time_s", token_time_s, torch.float32)
    check_id_range(batch, tokens)


def check_ascending(token_modality: Tensor, num_modalities: int) -> None:
    """Require that modalities of a window's tokens ascend within [0, M); they are in CPU memory.

    The message is that of the C++ form.
    """
    least = 0
    for n, found in enumerate(token_modality.tolist()):
        if not least <= found < num_modalities:
            raise ValueError(f"token_modality {n}: expected {least} to {num_modalities - 1}, found {found}")
        least = found


def check_totals(chosen: Sequence[Tensor], totals: Sequence[int]) -> None:
    """Require room for the tokens of each packing, whose masks are in CPU memory.

    The message is that of the C++ form.
    """
    for p, (mask, total) in enumerate(zip(chosen, totals, strict=True)):
        if (used := int(mask.sum())) > total:
            raise ValueError(f"sizes.totals {p}: expected at least {used}, found {total}")


def check_max_len(name: str, cu_seqlens: Tensor, max_len: int) -> None:
    """Require room for the tokens of a packing's longest window; `cu_seqlens` is in CPU memory."""
    found = longest_window(cu_seqlens)
    if found > max_len:
        raise ValueError(f"sizes.max_lens of {name} must be at least {found}; found {max_len}")


def check_attention(q: Tensor, keys: Sequence[tuple[str, Tensor]], sides: AttentionSides) -> None:
    """Check the arguments of attention.

    Args:
        q: the queries.
        keys: (name, tensor) of keys, and of values where there are any.
        sides: what the registered op takes after them.
    """
    cu_q, cu_k, modality_q, modality_k, time_q, time_k, pair_bias, allowed, time_decay = sides.tensors
    check_features("q", q, (modality_q.shape[0],), free=2)
    _, heads, width = q.shape
    for name, tensor in keys:
        check_shape(name, tensor, (modality_k.shape[0], heads, width))
        check_same_dtype(name, tensor, "q", q)
    if cu_q.shape != cu_k.shape:
        raise ValueError(f"queries are of {cu_q.shape[0] - 1} windows, keys of {cu_k.shape[0] - 1}")
    for name, cu_seqlens, modality, time_s in (("q", cu_q, modality_q, time_q), ("k", cu_k, modality_k, time_k)):
        check_shape(f"packing_{name}.time_s", time_s, modality.shape)
        check_dtype(f"packing_{name}.cu_seqlens", cu_seqlens, torch.int32)
        check_dtype(f"packing_{name}.modality", modality, torch.int32)
        _check_exact(f"packing_{name}.time_s", time_s)
    num_modalities = pair_bias.shape[-1]
    check_features("pair_bias", pair_bias, (heads, num_modalities, num_modalities))
    check_shape("allowed", allowed, (num_modalities, num_modalities))
    check_dtype("allowed", allowed, torch.bool)
    if time_decay.shape != (0,):  # none was given
        check_features("time_decay", time_decay, (heads,))


def check_pairs(num_modalities: int, *packings: Packing) -> None:
    """Require that biases and mask are of no fewer modalities than the packings have."""
    for packing in packings:
        found = packing.cu_modality.shape[0] - 1
        if found > num_modalities:
            raise ValueError(
                f"pair_bias and allowed are of {num_modalities} modalities, but a packing has tokens of {found}"
            )
