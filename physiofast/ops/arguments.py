"""Turns the arguments of the public functions into those of the registered ops.

An argument of another type than documented is a TypeError, a value of that type that is not allowed a ValueError.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from physiofast.ops import checks
from physiofast.ops.constants import filled
from physiofast.ops.contracts import AttentionSides, Packing, Plan, PlanSizes, Rows, Samples, need_tensor, unjudged_rows


def as_lengths(patch_lengths: Sequence[int]) -> tuple[int, ...]:
    """Patch lengths as a tuple of ints, P_m of each modality.

    Raises:
        TypeError: it is no sequence of numbers.
        ValueError: a number is not whole.
    """
    lengths = _whole_numbers(patch_lengths)
    if lengths is None:
        wanted = "patch_lengths needs P_m for each modality, such as (100,)"
        raise _kind_of_error(patch_lengths)(f"{wanted}; found {patch_lengths!r}")
    return lengths


def as_flags(normalise: Sequence[bool] | None, patch_lengths: Sequence[int]) -> tuple[int, ...]:
    """The flags of `normalise` as a tuple of 0 and 1 for each modality; all 0 for None.

    Raises:
        TypeError: it is no sequence of bools.
        ValueError: a number is neither 0 nor 1.
    """
    if normalise is None:
        return (0,) * len(patch_lengths)
    flags = _whole_numbers(normalise)
    if flags is None or not set(flags) <= {0, 1}:
        such = [normalise is not False] * len(patch_lengths)
        wanted = f"normalise needs a bool for each modality, such as {such}"
        raise _kind_of_error(normalise)(f"{wanted}; found {normalise!r}")
    return flags


def _whole_numbers(values: Any) -> tuple[int, ...] | None:
    """A sequence of whole numbers as ints; None for anything else."""
    try:
        given = tuple(values)
        whole = tuple(map(int, given))
        return whole if whole == given else None
    except (TypeError, ValueError, OverflowError):  # no sequence, or one of words, arrays, NaN or infinity
        return None


def _kind_of_error(values: Any) -> type[TypeError] | type[ValueError]:
    """ValueError for a sequence of real numbers, of which one is not allowed; TypeError for anything else."""
    try:
        are_numbers = all(isinstance(value, numbers.Real) for value in values)
    except TypeError:  # no sequence
        return TypeError
    return ValueError if are_numbers else TypeError


def as_constant(weight: Tensor) -> Tensor:
    """The weight [M] of a loss, after a check that no gradient is asked of it."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor [M]; found a {type(weight).__name__}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "weight gets no gradient; pass weight.detach(). To learn weights, compute each modality's loss by a call "
            "of its own, and weigh those"
        )
    return weight


def agreed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors, cast within autocast to the widest dtype among them, as PyTorch does for its own ops of several."""
    dtypes = _dtypes(tensors)
    if len(dtypes) < 2 or not autocasts(tensors[0]):
        return tensors
    widest = functools.reduce(torch.promote_types, dtypes)
    return tuple(tensor.to(widest) for tensor in tensors)


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors, cast within autocast to its dtype where theirs differ, as scaled-dot-product attention does.

    As there, float64 is never lowered.
    """
    dtypes = _dtypes(tensors)
    if len(dtypes) < 2 or torch.float64 in dtypes or not autocasts(tensors[0]):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(tensor.device.type)) for tensor in tensors)


def _dtypes(tensors: Sequence[Tensor]) -> set[torch.dtype]:
    """The dtypes of tensors; empty where one is no tensor, which a check then refuses by name."""
    return {tensor.dtype for tensor in tensors} if all(isinstance(tensor, Tensor) for tensor in tensors) else set()


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of a tensor."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def as_rows(samples: Samples, packing: Packing, patch_lengths: Sequence[int] | None) -> tuple[Rows, tuple[int, ...]]:
    """(rows of the samples, P_m of each modality).

    Args:
        samples: rows, or dense samples, of which rows are made.
        packing: of tokens of these samples.
        patch_lengths: P_m of each modality; None where the rows have them.

    Raises:
        TypeError: `packing` is no Packing, the samples are neither rows nor tensors, or `patch_lengths` is needed and
            missing or no sequence of numbers.
        ValueError: patch lengths, samples and packing do not fit together.
    """
    require_packing(packing)
    if patch_lengths is None:
        lengths = _lengths_of(samples, packing)
    else:
        lengths = as_lengths(patch_lengths)
        own = samples.patch_lengths if isinstance(samples, Rows) else ()
        if own and own != lengths:  # asked every time: no guard sees it
            checks.check_lengths(as_lengths(own), lengths)
    rows = samples
    if not isinstance(rows, Rows):
        rows = unjudged_rows(rows, checks.check_dense(rows, packing, lengths))
    is_readable = rows.channel_lengths or getattr(packing.ids, "is_cpu", False)
    if is_readable and not torch.compiler.is_compiling():  # asked every time: no guard sees these lengths, or numbers
        checks.check_order(rows, packing, lengths)
    return rows, lengths


def _lengths_of(samples: Samples, packing: Packing) -> tuple[int, ...]:
    """P_m of each modality of a packing, from the patch lengths of its rows, which may be one for all."""
    if not isinstance(samples, Rows) or not samples.patch_lengths:
        raise TypeError(
            "patch_lengths is missing: plain tensors, and Rows without patch_lengths of their own, need P_m for each "
            "modality, such as patch_lengths=(100,); Rows.from_dense(x, patches) makes rows that have them"
        )
    lengths, num_modalities = as_lengths(samples.patch_lengths), packing.cu_modality.shape[0] - 1
    is_one_for_all = len(lengths) != num_modalities and len(set(lengths)) == 1
    return lengths[:1] * num_modalities if is_one_for_all else lengths


def of_rows(rows: Rows) -> tuple[Tensor, ...]:
    """(samples, row_start, row_scale, row_shift) of rows, as the registered ops take them."""
    return rows.samples, rows.row_start, rows.row_scale, rows.row_shift


def of_packing(packing: Packing) -> tuple[Tensor, ...]:
    """(ids, modality, slot) of a packing, as the registered ops take them."""
    require_packing(packing)
    return packing.ids, packing.modality, packing.slot


def require_packing(*packings: Packing) -> None:
    """Refuse whatever is no Packing, such as a whole plan or a mask.

    Raises:
        TypeError: with what to pass instead.
    """
    for found in packings:
        if not isinstance(found, Packing):
            hints = {Plan: "such as its .visible", Tensor: "such as one of `Plan.from_mask`"}
            hint = hints.get(type(found), "such as plan.visible")
            raise TypeError(f"expected a Packing, {hint}; found a {type(found).__name__}")


def require_plan(plan: Plan) -> None:
    """Refuse whatever is no Plan, such as one of its packings.

    Raises:
        TypeError: with what was found.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"expected a Plan, of visible, hidden and present tokens; found a {type(plan).__name__}")


def require_sizes(sizes: PlanSizes) -> None:
    """Refuse whatever is no PlanSizes, such as a tuple of totals.

    Raises:
        TypeError: with what was found.
    """
    if not isinstance(sizes, PlanSizes):
        raise TypeError(f"expected PlanSizes of totals and max_lens; found a {type(sizes).__name__}")


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
    """The arguments of the registered attention ops after q, k and v.

    Args:
        q: [T_q, H, Dh], the queries.
        packing_q: the queries' tokens.
        packing_k: the keys' tokens.
        num_modalities: M where neither `pair_bias` nor `allowed` is given.
        pair_bias: [H, M, M] or None.
        allowed: bool [M, M] or None.
        time_decay: [H] or None.
        scale: of the products of queries and keys; Dh ** -0.5 for None.
    """
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
            checks.check_shape("time_decay", time_decay, (heads,))
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
    """Distances in seconds, each extended by a thousandth, at most a millisecond.

    Differences of float32 seconds are off by less than that in windows of up to 4,096 seconds and patches.

    Raises:
        TypeError: it is no sequence of numbers.
        ValueError: there are more than 8, or one is negative or NaN.
    """
    try:
        taus = [float(tau) for tau in tau_s]
    except (TypeError, ValueError):
        raise TypeError(f"tau_s must be a sequence of distances in seconds; found {tau_s!r}") from None
    if len(taus) > 8 or not all(tau >= 0 for tau in taus):
        raise ValueError(f"tau_s may have up to 8 distances in seconds, zero or more; found {taus}")
    return tuple(tau + min(tau / 1024, 1e-3) for tau in taus)


def gradient_unit(pred: Tensor, weight: Tensor, shortest: int) -> Tensor | None:
    """The factor by which `masked_mse` scales the weights of float16 predictions; None for other dtypes.

    The loss is divided by it again. The forward pass computes the gradient in the dtype of the predictions, before the
    gradient of the loss is known. Weights are about one over the number of tokens, so most of it would underflow in
    float16, and scaling the loss afterwards cannot undo that. With this power of two, which follows from the largest
    weight and the shortest patch, no element exceeds four times its error; in longer patches elements are smaller in
    proportion.
    """
    if not (isinstance(pred, Tensor) and pred.dtype == torch.float16 and weight.is_floating_point()):
        return None
    largest = weight.to(torch.float32).abs().amax() if weight.numel() else weight.new_zeros((), dtype=torch.float32)
    return torch.exp2(shortest.bit_length() - 1 - largest.log2().floor().clamp(-100, 100))


def guarded_by_attention(sides: AttentionSides, packing_q: Packing, packing_k: Packing) -> tuple[Tensor, ...]:
    """The tensors that `call` guards besides q, k and v: all that attention and its checks look at, each once."""
    if packing_q is packing_k:
        return (*sides.distinct(), packing_q.cu_modality)
    return (*sides.distinct(), packing_q.cu_modality, packing_k.cu_modality)


def of_hidden(plan: Plan) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(the tensors that `take_hidden` takes after the features, the tensors of the plan that `call` guards)."""
    require_plan(plan)
    hidden, present = plan.hidden, plan.present
    return (hidden.ids, present.ids, hidden.slot, present.slot), (*of_packing(hidden), *of_packing(present))
