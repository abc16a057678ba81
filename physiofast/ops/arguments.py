"""Arguments of the registered ops, from those of the public functions."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from physiofast.ops import checks
from physiofast.ops.constants import filled
from physiofast.ops.contracts import AttentionSides, Packing, Plan, PlanSizes, Rows, Samples, need_tensor, unjudged_rows


def as_lengths(patch_lengths: Sequence[int]) -> tuple[int, ...]:
    """P_m of each modality."""
    try:
        given = tuple(patch_lengths)
        lengths = tuple(map(int, given))
        if lengths == given:
            return lengths
    except (TypeError, ValueError):  # no sequence, or one of words or arrays
        pass
    raise TypeError(f"patch_lengths needs P_m for each modality, such as (100,); found {patch_lengths!r}")


def as_flags(normalise: Sequence[bool] | None, patch_lengths: Sequence[int]) -> tuple[int, ...]:
    """Whether each modality's patches are scaled."""
    if normalise is None:
        return (0,) * len(patch_lengths)
    try:
        given = tuple(normalise)
        flags = tuple(map(int, given))
        if flags == given and set(flags) <= {0, 1}:
            return flags
    except (TypeError, ValueError):  # no sequence, or one of arrays
        pass
    such = [normalise is not False] * len(patch_lengths)
    raise TypeError(f"normalise needs a bool for each modality, such as {such}; found {normalise!r}")


def as_constant(weight: Tensor) -> Tensor:
    """The weight [M] of a loss, which no gradient reaches."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor [M]; found a {type(weight).__name__}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "weight gets no gradient; pass weight.detach(). To learn weights, compute each modality's loss by a call "
            "of its own, and weigh those"
        )
    return weight


def agreed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Within autocast all of the widest dtype among them, as PyTorch's own ops of several tensors have it."""
    dtypes = _dtypes(tensors)
    if len(dtypes) < 2 or not autocasts(tensors[0]):
        return tensors
    widest = functools.reduce(torch.promote_types, dtypes)
    return tuple(tensor.to(widest) for tensor in tensors)


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Within autocast, where their dtypes differ, all of autocast's, as those of scaled-dot-product attention are.

    As there, float64 is never lowered.
    """
    dtypes = _dtypes(tensors)
    if len(dtypes) < 2 or torch.float64 in dtypes or not autocasts(tensors[0]):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(tensor.device.type)) for tensor in tensors)


def _dtypes(tensors: Sequence[Tensor]) -> set[torch.dtype]:
    """Of tensors; none where something else is among them, which checks refuse by its name."""
    return {tensor.dtype for tensor in tensors} if all(isinstance(tensor, Tensor) for tensor in tensors) else set()


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of a tensor."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def as_rows(rows: Samples, packing: Packing, patch_lengths: tuple[int, ...]) -> Rows:
    """Rows, or those of dense samples."""
    are_packings(packing)
    if isinstance(rows, Rows):
        if rows.patch_lengths and rows.patch_lengths != patch_lengths:  # asked every time: no guard sees it
            checks.lengths(as_lengths(rows.patch_lengths), patch_lengths)
    else:
        rows = unjudged_rows(rows, checks.dense(rows, packing, patch_lengths))
    if rows.channel_lengths and not torch.compiler.is_compiling():
        checks.order(rows, packing, patch_lengths)
    return rows


def of_rows(rows: Rows) -> tuple[Tensor, ...]:
    """The tensors that say where samples lie and how they are scaled."""
    return rows.samples, rows.row_start, rows.row_scale, rows.row_shift


def of_packing(packing: Packing) -> tuple[Tensor, ...]:
    """A packing's tokens and where they stand."""
    are_packings(packing)
    return packing.ids, packing.modality, packing.slot


def are_packings(*packings: Packing) -> None:
    """Refuse anything else, such as a whole plan or a mask."""
    for found in packings:
        if not isinstance(found, Packing):
            hints = {Plan: "such as its .visible", Tensor: "such as one of `Plan.from_mask`"}
            hint = hints.get(type(found), "such as plan.visible")
            raise TypeError(f"expected a Packing, {hint}; found a {type(found).__name__}")


def is_plan(plan: Plan) -> None:
    """Refuse anything else, such as one of its packings."""
    if not isinstance(plan, Plan):
        raise TypeError(f"expected a Plan, of visible, hidden and present tokens; found a {type(plan).__name__}")


def are_sizes(sizes: PlanSizes) -> None:
    """Refuse anything else, such as a tuple of totals, and numbers that cannot be a plan's sizes."""
    if not isinstance(sizes, PlanSizes):
        raise TypeError(f"expected PlanSizes of totals and max_lens; found a {type(sizes).__name__}")
    checks.sizes(sizes.totals, sizes.max_lens)


def sides(
    q: Tensor,
    packing_q: Packing,
    packing_k: Packing,
    num_modalities: int,
    pair_bias: Tensor | None,
    allowed: Tensor | None,
    time_decay: Tensor | None,
    scale: float | None,
) -> AttentionSides:
    """What registered ops take after q, k and v; `num_modalities` is M where neither bias nor mask says so."""
    need_tensor("q", q)
    if q.ndim != 3 or not q.shape[1] * q.shape[2]:
        raise ValueError(f"q must have shape [{packing_q.modality.shape[0]}, heads, features]; found {list(q.shape)}")
    _, heads, width = q.shape
    for name, given, axes in (("pair_bias", pair_bias, 3), ("allowed", allowed, 2)):
        if given is None:
            continue
        need_tensor(name, given)
        if given.ndim != axes:
            raise ValueError(f"{name} must have {axes} axes, modalities the last two; found shape {list(given.shape)}")
    if pair_bias is not None:
        num_modalities = pair_bias.shape[-1]
    elif allowed is not None:
        num_modalities = allowed.shape[-1]
    if pair_bias is None:
        pair_bias = filled(0.0, (heads, num_modalities, num_modalities), torch.float32, q.device)
    if allowed is None:
        allowed = filled(True, (num_modalities, num_modalities), torch.bool, q.device)
    if time_decay is None:
        time_decay = filled(0.0, (0,), torch.float32, q.device)
    else:
        need_tensor("time_decay", time_decay)
        if time_decay.numel() == 0:  # which stands for none
            checks.shape("time_decay", time_decay, (heads,))
    if isinstance(scale, Tensor) and scale.requires_grad:
        raise ValueError("scale gets no gradient; multiply q by it, and leave scale out or give a number")
    scale = width**-0.5 if scale is None else float(scale)
    return AttentionSides(  # by place: keywords take the host twice as long
        packing_q.cu_seqlens,
        packing_k.cu_seqlens,
        packing_q.modality,
        packing_k.modality,
        packing_q.time_s,
        packing_k.time_s,
        pair_bias,
        allowed,
        time_decay,
        scale,
        packing_q.max_len,
        packing_k.max_len,
    )


def distances(tau_s: Sequence[float]) -> tuple[float, ...]:
    """Distances in time, each extended by a thousandth, at most a millisecond.

    Differences of float32 seconds are off by less than that in windows of up to 4,096 seconds and patches.
    """
    try:
        taus = [float(tau) for tau in tau_s]
    except (TypeError, ValueError):
        raise ValueError(f"tau_s must be a sequence of distances in seconds; found {tau_s!r}") from None
    if len(taus) > 8 or not all(tau >= 0 for tau in taus):
        raise ValueError(f"tau_s may have 8 distances in seconds, zero or more; found {taus}")
    return tuple(tau + min(tau / 1024, 1e-3) for tau in taus)


def gradient_unit(pred: Tensor, weight: Tensor, shortest: int) -> Tensor | None:
    """What `masked_mse` multiplies the weights of float16 predictions by, and divides the loss by; None for others.

    The forward pass computes the gradient in the dtype of predictions, before the factor of the loss is known. Weights
    are about one over the number of tokens, so most of it would underflow in float16, which scaling the loss afterwards
    cannot undo. With this power of two, from the largest weight and the shortest patch, no element exceeds four times
    its error; in longer patches elements are smaller in proportion.
    """
    if not (isinstance(pred, Tensor) and pred.dtype == torch.float16 and weight.is_floating_point()):
        return None
    largest = weight.to(torch.float32).abs().amax() if weight.numel() else weight.new_zeros((), dtype=torch.float32)
    return torch.exp2(shortest.bit_length() - 1 - largest.log2().floor().clamp(-100, 100))


def guarded_by_attention(sides: AttentionSides, packing_q: Packing, packing_k: Packing) -> tuple[Tensor, ...]:
    """What `call` guards besides q, k and v: all tensors that attention and its checks look at, each once."""
    if packing_q is packing_k:
        return (*sides.distinct(), packing_q.cu_modality)
    return (*sides.distinct(), packing_q.cu_modality, packing_k.cu_modality)


def of_hidden(plan: Plan) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(what `take_hidden` takes after the features, what `call` guards of its plan)."""
    is_plan(plan)
    hidden, present = plan.hidden, plan.present
    return (hidden.ids, present.ids, hidden.slot, present.slot), (*of_packing(hidden), *of_packing(present))
