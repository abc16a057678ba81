"""`masked_mse`: loss and gradient of hidden patches in one pass over predictions and samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops import reference
from physiofast.ops.triton import table
from physiofast.ops.triton.dtypes import accumulate_in
from physiofast.ops.triton.launching import Kernel, by_definition, by_definition_if_rounded, prepared
from physiofast.ops.triton.parts import product, select


@triton.jit
def _first_sample(row_start, ids, length, patches, real, ALIGN: tl.constexpr):
    """(flat row of each token among B * C, its int64 first sample, a multiple of ALIGN, is it there), [BLOCK_T] each.

    Of an absent row that is the first sample of all, and the patch there is read in vain.
    """
    row = ids // patches
    start = tl.load(row_start + row, mask=real, other=0)
    is_there = start >= 0
    start = tl.where(is_there, start + (ids % patches).to(tl.int64) * length, 0)
    return row, tl.multiple_of(start, [ALIGN]), is_there


@triton.jit
def _scales(row_scale, row_shift, row, real, is_there, ACC: tl.constexpr):
    """(scale, shift) [BLOCK_T] of each token's row: value = sample * scale + shift, NaN of an absent one."""
    scale = tl.load(row_scale + row, mask=real, other=0).to(ACC)
    return tl.where(is_there, scale, float("nan")), tl.load(row_shift + row, mask=real, other=0).to(ACC)


@triton.jit
def _masked_mse(
    pred,  # [T, P_MAX]
    samples,
    row_start,  # [B * C]
    row_scale,
    row_shift,
    ids,  # [T]
    modality,  # [T]
    weight,  # [M]
    grad,  # [T, P_MAX]
    partial,  # [programs, 2, M]: sums of token errors, and tokens
    T,
    patches,
    LENGTHS: tl.constexpr,
    NORMALISE: tl.constexpr,
    NUM_MODALITIES: tl.constexpr,
    P_MAX: tl.constexpr,
    UNIFORM: tl.constexpr,
    ANY_NORMALISED: tl.constexpr,
    ALIGN: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pid = tl.program_id(0)
    p = tl.arange(0, BLOCK_P)
    m = tl.arange(0, BLOCK_M)
    t = pid * BLOCK_T + tl.arange(0, BLOCK_T)
    token_modality = tl.load(modality + t, mask=t < T, other=-1)  # [BLOCK_T]
    real = token_modality >= 0
    token = tl.load(ids + t, mask=t < T, other=0)  # beside the modalities, not after them
    length = tl.multiple_of(select(token_modality, LENGTHS, NUM_MODALITIES), [ALIGN])
    place = t.to(tl.int64)[:, None] * P_MAX + p[None, :]  # [BLOCK_T, BLOCK_P]
    if UNIFORM:  # either way a mask that is known to be constant over ALIGN samples, so that loads are wide
        inside = real[:, None] & (p < P_MAX)[None, :]
    else:
        inside = (p // ALIGN)[None, :] < (length // ALIGN)[:, None]
    if not ANY_NORMALISED:  # while it is found out where samples begin; beside statistics there are no registers for it
        prediction = tl.load(pred + place, mask=inside, other=0)
        factor = tl.load(weight + token_modality, mask=real, other=0).to(ACC)
    row, first, is_there = _first_sample(row_start, token, length, patches, real, ALIGN)
    stored = tl.load(samples + first[:, None] + p[None, :], mask=inside, other=0)
    if ANY_NORMALISED:
        prediction = tl.load(pred + place, mask=inside, other=0)

    IS_ALONE: tl.constexpr = ALIGN == 1 and BLOCK_P <= 256  # a sample of a thread, of 8 warps at most
    share = 1.0 / tl.maximum(length, 1).to(ACC)
    scale, shift = _scales(row_scale, row_shift, row, real, is_there, ACC)
    target = stored.to(ACC) * scale[:, None] + shift[:, None]
    if ANY_NORMALISED:
        mean = tl.sum(tl.where(inside, target, 0), 1) * share
        centred = tl.where(inside, target - mean[:, None], 0)
        rstd = 1 / tl.sqrt(tl.sum(product(centred, centred, IS_ALONE), 1) * share + 1e-6)
        # By token, so that no second tile of targets is kept.
        chosen = select(token_modality, NORMALISE, NUM_MODALITIES) > 0
        mean, rstd = tl.where(chosen, mean, 0), tl.where(chosen, rstd, 1)
        target = (target - mean[:, None]) * rstd[:, None]
    error = tl.where(inside, prediction.to(ACC) - target, 0)
    one_hot = (token_modality[:, None] == m[None, :]).to(ACC)  # [BLOCK_T, BLOCK_M]
    squares = tl.sum(product(error, error, IS_ALONE), 1)
    total = tl.sum(one_hot * (squares * share)[:, None], 0)
    count = tl.sum(one_hot, 0)
    if ANY_NORMALISED:
        factor = tl.load(weight + token_modality, mask=real, other=0).to(ACC)

    slope = (error * (factor * share * 2)[:, None]).to(grad.dtype.element_ty)
    tl.store(grad + place, slope, mask=(t < T)[:, None] & (p < P_MAX)[None, :])
    tl.store(partial + pid * 2 * NUM_MODALITIES + m, total, mask=m < NUM_MODALITIES)
    tl.store(partial + (pid * 2 + 1) * NUM_MODALITIES + m, count, mask=m < NUM_MODALITIES)


@triton.jit
def _sum_partials(
    partial,  # [programs, 2, M]
    weight,  # [M]
    loss,  # [1]
    total,  # [M]
    count,  # [M]
    programs,
    NUM_MODALITIES: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    g = tl.arange(0, BLOCK_G)
    m = tl.arange(0, BLOCK_M)
    totals = tl.zeros([BLOCK_G, BLOCK_M], ACC)
    counts = tl.zeros([BLOCK_G, BLOCK_M], ACC)
    for begin in range(0, programs, BLOCK_G):
        mask = (begin + g < programs)[:, None] & (m < NUM_MODALITIES)[None, :]
        place = (begin + g)[:, None] * 2 * NUM_MODALITIES + m[None, :]
        totals += tl.load(partial + place, mask=mask, other=0)
        counts += tl.load(partial + place + NUM_MODALITIES, mask=mask, other=0)
    sums = tl.sum(totals, 0)  # [BLOCK_M]
    factor = tl.load(weight + m, mask=m < NUM_MODALITIES, other=0).to(ACC)
    tl.store(loss, tl.sum(sums * factor, 0))
    tl.store(total + m, sums, mask=m < NUM_MODALITIES)
    tl.store(count + m, tl.sum(counts, 0), mask=m < NUM_MODALITIES)


@triton.jit
def _scale_gradient(
    grad,  # [size]
    factor,  # [1]
    size,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    by = tl.load(factor)
    if by != 1.0:
        for r in range(ROUNDS):
            i = (tl.program_id(0).to(tl.int64) * ROUNDS + r) * BLOCK + tl.arange(0, BLOCK)
            scaled = tl.load(grad + i, mask=i < size, other=0).to(by.dtype) * by
            tl.store(grad + i, scaled.to(grad.dtype.element_ty), mask=i < size)


@functools.lru_cache
def _kernels(
    lengths: tuple[int, ...], normalise: tuple[int, ...], width: int, align: int, acc: torch.dtype
) -> tuple[Kernel, Kernel]:
    """Errors and gradients; sums of what its programs found."""
    num_modalities, align = len(lengths), math.gcd(align, 8, *lengths)
    known = {"NUM_MODALITIES": num_modalities, "ACC": accumulate_in(acc)}
    errors = Kernel(
        _masked_mse,
        table.masked_mse(width, num_modalities, any(normalise), align),
        LENGTHS=lengths,
        NORMALISE=normalise,
        P_MAX=width,
        UNIFORM=len(set(lengths)) == 1,
        ANY_NORMALISED=any(normalise),
        ALIGN=align,
        **known,
    )
    return errors, Kernel(_sum_partials, table.sum_partials(num_modalities), **known)


@functools.cache
def _scaling() -> Kernel:
    return Kernel(_scale_gradient, table.scale_gradient())


@prepared
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
) -> Callable[..., tuple[Tensor, ...]]:
    """As `reference.masked_mse`."""
    defined = by_definition_if_rounded("masked_mse", (pred, samples), (row_scale, row_shift))
    if defined:
        return defined
    if samples.shape[0] < max(patch_lengths):  # kernels read one patch for tokens of absent rows
        return by_definition(reference.masked_mse)
    acc = reference.accumulator(pred, samples)
    num_modalities, (tokens, width), patches = len(patch_lengths), pred.shape, slots.shape[1] // row_start.shape[1]
    errors, sums = _kernels(tuple(patch_lengths), tuple(normalise), width, align, acc)
    programs = table.tiles(tokens, errors.blocks["BLOCK_T"])
    inputs = (pred, samples, row_start, row_scale, row_shift, ids, modality, weight)
    find_errors = errors.prepare((programs,), inputs, (tokens, patches))
    add_partials = sums.prepare((1,), (pred.new_empty(0, dtype=acc), weight), (programs,))

    def run(
        pred: Tensor,
        samples: Tensor,
        start: Tensor,
        scale: Tensor,
        shift: Tensor,
        ids: Tensor,
        modality: Tensor,
        slots: Tensor,
        weight: Tensor,
        *known: object,
    ) -> tuple[Tensor, ...]:
        grad, partial = pred.new_empty(tokens, width), pred.new_empty(programs, 2, num_modalities, dtype=acc)
        loss, total, count = partial.new_empty(()), partial.new_empty(num_modalities), partial.new_empty(num_modalities)
        find_errors((pred, samples, start, scale, shift, ids, modality, weight), (grad, partial))
        add_partials((partial, weight), (loss, total, count))
        return loss, total, count, grad

    return run


def scale_gradient(grad: Tensor, factor: Tensor) -> Tensor:
    """As `reference.scale_gradient`; without a host sync, so also where a CUDA graph is captured."""
    if not grad.is_contiguous():
        return by_definition(reference.scale_gradient)(grad, factor)
    kernel, size = _scaling(), grad.numel()
    programs = table.tiles(size, kernel.blocks["BLOCK"] * kernel.blocks["ROUNDS"])
    kernel.start((programs,), (grad, factor), (), (size,))
    return grad
