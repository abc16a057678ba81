"""What public functions require of arguments: of shapes and dtypes alone, so like arguments need no second check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.ops.contracts import SAMPLE_DTYPES, AttentionSides, Packing, Plan, Rows, longest_window, need_tensor
from physiofast.ops.watching import is_watched

SHORTEST_NORMALISED = 16
"""Samples of a patch; mean and variance of fewer say too much about what is to be predicted."""
_FEATURES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def shape(name: str, tensor: Tensor, wanted: tuple[int, ...], free: int = 0) -> None:
    """These sizes of the leading axes, and then `free` axes of any size."""
    need_tensor(name, tensor)
    found = tensor.shape
    if found[: len(wanted)] != wanted or len(found) != len(wanted) + free:
        text = ", ".join([*map(str, wanted), *["any"] * free])
        raise ValueError(f"{name} must have shape [{text}]; found {list(found)}")


def dtype(name: str, tensor: Tensor, *allowed: torch.dtype, hint: str = "") -> None:
    """One of some dtypes."""
    if tensor.dtype not in allowed:
        text = " or ".join(str(each).removeprefix("torch.") for each in allowed)
        raise ValueError(f"{name} must be {text}; found {str(tensor.dtype).removeprefix('torch.')}{hint}")


def _exact(name: str, tensor: Tensor) -> None:
    """32 bits or more, for values in units or seconds, which 16 bits cannot hold."""
    hint = "; what casts a model's inputs (as FSDP's cast_forward_inputs does) has to leave out rows and packings"
    dtype(name, tensor, torch.float32, torch.float64, hint=hint)


def features(name: str, tensor: Tensor, wanted: tuple[int, ...], free: int = 0) -> None:
    """Floating numbers of a shape, as `shape` has it."""
    shape(name, tensor, wanted, free)
    dtype(name, tensor, *_FEATURES)


def one_device(names: Sequence[str], args: Sequence[Any]) -> None:
    """Tensors that lie in one place: forms of ops read memory without asking where it is."""
    placed = [(name, arg.device) for name, arg in zip(names, args, strict=True) if isinstance(arg, Tensor)]
    first, device = placed[0]
    for name, other in placed:
        if other != device:
            raise ValueError(f"{name} is on {other} but {first} is on {device}; move them to one device")


def no_values(names: Sequence[str], args: Sequence[Any], results: Sequence[Tensor]) -> None:
    """No argument on the meta device, unless results are there too: else nobody would have written these."""
    without = [name for name, arg in zip(names, args, strict=True) if isinstance(arg, Tensor) and _is_meta(arg)]
    if without and not all(_is_meta(found) or not found.numel() for found in results):
        raise ValueError(
            f"{without[0]} has no values (it is on the meta device); load them, or make them by to_empty and "
            "reset_parameters, or move all tensors to the meta device"
        )


def _is_meta(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"  # `is_meta` is of no fake tensor


def weight(tensor: Tensor, samples: int) -> None:
    """Weights of all modalities, [sum P_m, D]."""
    need_tensor("weight", tensor)
    turned = tensor.ndim == 2 and tensor.shape[1] == samples != tensor.shape[0]
    if turned:
        found = list(tensor.shape)
        raise ValueError(f"weight must have shape [{samples}, any]; found {found}: transpose that of a Linear")
    features("weight", tensor, (samples,), free=1)


def linear(x: Tensor, head: Tensor, bias: Tensor | None, tokens: int, samples: int, casts: bool) -> None:
    """Features of `tokens`, and the map that predicts `samples` of them; all of one dtype, unless `casts`."""
    features("x", x, (tokens,), free=1)
    for name, tensor, wanted in (("head", head, (samples, x.shape[1])), ("bias", bias, (samples,))):
        if tensor is not None:
            features(name, tensor, wanted)
            if not casts or torch.float64 in (tensor.dtype, x.dtype):  # which autocast leaves as it is
                same_dtype(name, tensor, "x", x)


def same_dtype(name: str, tensor: Tensor, other: str, like: Tensor) -> None:
    """One dtype of two tensors."""
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name} is {tensor.dtype} but {other} is {like.dtype}; cast them to one dtype")


def dense(samples: Tensor | Sequence[Tensor], packing: Packing, patch_lengths: Sequence[int]) -> int:
    """Dense samples [B, C, T] of patches of one length, or a tensor for each modality; returns the patches of a row."""
    tokens = packing.slot.shape[-1]
    if not isinstance(samples, Tensor):
        return _dense_by_modality(samples, tokens, patch_lengths)
    if samples.ndim != 3 or samples.shape[1] < 1 or tokens % samples.shape[1]:
        raise ValueError(
            f"dense samples must be [B, C, T] with C dividing the {tokens} token ids; found {tuple(samples.shape)}"
        )
    dtype("dense samples", samples, *SAMPLE_DTYPES)
    patches = tokens // samples.shape[1]
    wrong = [length for length in patch_lengths if length * patches != samples.shape[2]]
    if wrong:
        raise ValueError(
            f"dense samples of T = {samples.shape[2]} have {patches} patches a row, so every modality's must be "
            f"{samples.shape[2] / patches:g} samples long; found patch_lengths {list(patch_lengths)}. "
            "Rows may have a rate for each modality"
        )
    return patches


def _dense_by_modality(samples: Sequence[Tensor], tokens: int, patch_lengths: Sequence[int]) -> int:
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
        dtype(f"samples of modality {m}", part, *SAMPLE_DTYPES)
        if part.dtype != samples[0].dtype or part.shape[2] != patches * length:
            raise ValueError(
                f"samples of modality {m} must be {samples[0].dtype} and T = {patches} patches of {length} samples; "
                f"found {part.dtype} and T = {part.shape[2]}"
            )
    return patches


def packed(name: str, packing: Packing) -> None:
    """The tokens of a packing, and where they stand."""
    shape(f"{name}.ids", packing.ids, (), free=1)
    shape(f"{name}.modality", packing.modality, packing.ids.shape)
    shape(f"{name}.slot", packing.slot, (), free=2)
    for part, tensor in (("ids", packing.ids), ("modality", packing.modality), ("slot", packing.slot)):
        dtype(f"{name}.{part}", tensor, torch.int32)


def present(x: Tensor, plan: Plan) -> None:
    """Features of all present tokens of a plan."""
    shape("x", x, plan.present.ids.shape, free=1)
    packed("plan.hidden", plan.hidden)
    packed("plan.present", plan.present)
    shape("plan.present.slot", plan.present.slot, plan.hidden.slot.shape)


def by_modality(name: str, packing: Packing, patch_lengths: Sequence[int]) -> None:
    """A packing's order by modality, of as many modalities as there are patch lengths."""
    shape(f"{name}.by_modality", packing.by_modality, packing.ids.shape)
    dtype(f"{name}.by_modality", packing.by_modality, torch.int32)
    dtype(f"{name}.cu_modality", packing.cu_modality, torch.int32)
    _modalities(name, packing, patch_lengths)


def lengths(of_rows: tuple[int, ...], patch_lengths: tuple[int, ...]) -> None:
    """Patch lengths beside those of rows; where all have one, any number of modalities may have it."""
    if of_rows != patch_lengths and not (len(set(of_rows)) == 1 and set(of_rows) == set(patch_lengths)):
        raise ValueError(
            f"these rows have patches of {', '.join(map(str, of_rows))} samples; found patch_lengths "
            f"{list(patch_lengths)}. Others need rows of their own, as of Rows.from_dense(x, patches), or of "
            "dataclasses.replace(rows, patch_lengths=()), which say nothing of it"
        )


def rows(found: Rows, name: str, packing: Packing, patch_lengths: Sequence[int]) -> None:
    """Rows, and the packing of their tokens."""
    packed(name, packing)
    tokens, starts = packing.slot.shape, found.row_start.shape
    shape("rows.samples", found.samples, (), free=1)
    shape("rows.row_start", found.row_start, (tokens[0],), free=1)
    shape("rows.row_scale", found.row_scale, starts)
    shape("rows.row_shift", found.row_shift, starts)
    shape("rows.valid", found.valid, tokens)
    dtype("rows.samples", found.samples, *SAMPLE_DTYPES)
    dtype("rows.row_start", found.row_start, torch.int64)
    _exact("rows.row_scale", found.row_scale)
    _exact("rows.row_shift", found.row_shift)
    if not starts[1] or tokens[1] % starts[1]:
        raise ValueError(f"{tokens[1]} token ids do not divide into {starts[1]} channels")
    if not patch_lengths or min(patch_lengths) < 1:
        raise ValueError(f"patch_lengths must be positive, one per modality; found {list(patch_lengths)}")
    _modalities(name, packing, patch_lengths)


def order(found: Rows, packing: Packing, patch_lengths: tuple[int, ...]) -> None:
    """Tokens as long as the patches of their channels; a look at as many as a window has.

    A GPU is waited for where such rows come for the first time, and not again: what is wrong, if anything is, is the
    order in which a script gives its tensors.
    """
    ids, tokens, of_channels = packing.ids, packing.slot.shape[-1], found.channel_lengths
    known = (of_channels, patch_lengths)
    is_readable = type(ids) is type(packing.modality) is Tensor and ids.shape == packing.modality.shape
    is_readable = is_readable and not (ids.is_meta or packing.modality.is_meta)
    has_channels = found.row_start.ndim == 2 and found.row_start.shape[1] == len(of_channels)  # not a part of them
    if not (is_readable and has_channels) or is_watched() or tokens % len(of_channels):
        return
    if not ids.is_cpu and ((*known, tokens, ids.device) in _ordered or torch.cuda.is_current_stream_capturing()):
        return
    place, modality = (part[:tokens].detach().cpu().numpy() for part in (ids, packing.modality))
    channel = place % tokens // (tokens // len(of_channels))
    used, wanted = np.asarray(patch_lengths).take(modality, mode="clip"), np.asarray(of_channels)[channel]
    wrong = np.flatnonzero((place >= 0) & (used != wanted))
    if len(wrong):
        c, m = int(channel[wrong[0]]), int(modality[wrong[0]])
        raise ValueError(
            f"patches of channel {c} have {of_channels[c]} samples, but its tokens in the packing are of modality {m}, "
            f"whose patches have {patch_lengths[m]}: token_modality has to number modalities in the order of the "
            "samples' tensors, and token ids to go through their channels in that order. Rows whose channels were put "
            "in another order by hand take dataclasses.replace(rows, channel_lengths=()), which says nothing of it"
        )
    if not ids.is_cpu:
        _ordered.add((*known, tokens, ids.device))


_ordered: set[tuple[Any, ...]] = set()


def _modalities(name: str, packing: Packing, patch_lengths: Sequence[int]) -> None:
    shape(f"{name}.cu_modality", packing.cu_modality, (), free=1)
    if packing.cu_modality.shape[0] != len(patch_lengths) + 1:
        raise ValueError(
            f"{name} has tokens of {packing.cu_modality.shape[0] - 1} modalities, but patch_lengths "
            f"{list(patch_lengths)} are of {len(patch_lengths)}"
        )


def normalised(flags: Sequence[int], patch_lengths: Sequence[int]) -> None:
    """Which modalities' patches are scaled."""
    if len(flags) != len(patch_lengths):
        raise ValueError(f"normalise has {len(flags)} entries for {len(patch_lengths)} modalities")
    for m, (flag, length) in enumerate(zip(flags, patch_lengths, strict=True)):
        if flag and length < SHORTEST_NORMALISED:
            raise ValueError(
                f"normalise of modality {m}: patches of {length} samples are too short; at least {SHORTEST_NORMALISED}"
            )


def drawn(
    quotas: Tensor, valid: Tensor, window_id: Tensor, stream: Tensor, token_modality: Tensor, token_time_s: Tensor
) -> None:
    """What a plan is drawn from."""
    shape("valid", valid, (), free=2)
    batch, tokens = valid.shape
    shape("quotas", quotas, (batch,), free=1)
    shape("window_id", window_id, (batch,))
    shape("stream", stream, (2,))
    shape("token_modality", token_modality, (tokens,))
    shape("token_time_s", token_time_s, (tokens,))
    dtype("quotas", quotas, *_INTEGERS)
    dtype("valid", valid, torch.bool)
    dtype("window_id", window_id, torch.int64)
    dtype("stream", stream, torch.int64)
    dtype("token_modality", token_modality, torch.int32)
    dtype("token_time_s", token_time_s, torch.float32)
    if batch * tokens >= 2**31:
        raise ValueError(f"{batch} windows of {tokens} tokens do not fit 32-bit token ids; use a smaller batch")


def sizes(totals: Sequence[int], max_lens: Sequence[int]) -> None:
    """Sizes of a plan's packings."""
    for name, found in (("totals", totals), ("max_lens", max_lens)):
        if len(found) != 3 or min(found) < 0:
            raise ValueError(f"sizes.{name} must be of visible, hidden and present tokens, 0 or more; found {found}")


def ascending(token_modality: Tensor, num_modalities: int) -> None:
    """Modalities of a window's tokens, in CPU memory; with the message of the C++ form."""
    least = 0
    for n, found in enumerate(token_modality.tolist()):
        if not least <= found < num_modalities:
            raise ValueError(f"token_modality {n}: expected {least} to {num_modalities - 1}, found {found}")
        least = found


def places(chosen: Sequence[Tensor], totals: Sequence[int]) -> None:
    """Room for the tokens of each packing, whose masks are in CPU memory; with the message of the C++ form."""
    for p, (mask, total) in enumerate(zip(chosen, totals, strict=True)):
        if (used := int(mask.sum())) > total:
            raise ValueError(f"sizes.totals {p}: expected at least {used}, found {total}")


def longest(name: str, cu_seqlens: Tensor, max_len: int) -> None:
    """Room for a packing's longest window, whose ends are in CPU memory."""
    found = longest_window(cu_seqlens)
    if found > max_len:
        raise ValueError(f"sizes.max_lens of {name} must be at least {found}; found {max_len}")


def attention(q: Tensor, keys: Sequence[tuple[str, Tensor]], sides: AttentionSides) -> None:
    """Queries; keys and values by name; what the registered op takes after them."""
    cu_q, cu_k, modality_q, modality_k, time_q, time_k, pair_bias, allowed, time_decay = sides.tensors
    features("q", q, (modality_q.shape[0],), free=2)
    _, heads, width = q.shape
    for name, tensor in keys:
        shape(name, tensor, (modality_k.shape[0], heads, width))
        same_dtype(name, tensor, "q", q)
    if cu_q.shape != cu_k.shape:
        raise ValueError(f"queries are of {cu_q.shape[0] - 1} windows, keys of {cu_k.shape[0] - 1}")
    for name, cu_seqlens, modality, time_s in (("q", cu_q, modality_q, time_q), ("k", cu_k, modality_k, time_k)):
        shape(f"packing_{name}.time_s", time_s, modality.shape)
        dtype(f"packing_{name}.cu_seqlens", cu_seqlens, torch.int32)
        dtype(f"packing_{name}.modality", modality, torch.int32)
        _exact(f"packing_{name}.time_s", time_s)
    num_modalities = pair_bias.shape[-1]
    features("pair_bias", pair_bias, (heads, num_modalities, num_modalities))
    shape("allowed", allowed, (num_modalities, num_modalities))
    dtype("allowed", allowed, torch.bool)
    if time_decay.shape != (0,):  # none was given
        features("time_decay", time_decay, (heads,))


def pairs(num_modalities: int, *packings: Packing) -> None:
    """Biases or a mask of no fewer modalities than the packings have."""
    for packing in packings:
        found = packing.cu_modality.shape[0] - 1
        if found > num_modalities:
            raise ValueError(
                f"pair_bias and allowed are of {num_modalities} modalities, but a packing has tokens of {found}"
            )
