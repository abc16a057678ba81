"""`take_tokens`, `take_hidden` and `assemble_tokens`: rows of features to and from their places in a packing."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from physiofast.ops.triton import table
from physiofast.ops.triton.dtypes import accumulate_in
from physiofast.ops.triton.launching import Kernel, prepared


@triton.jit
def _take_rows(
    x,  # [R, D]
    index,  # [T], -1 for a row of zeros
    out,  # [T, D]
    T,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.load(index + t, mask=t < T, other=-1).to(tl.int64)
    values = tl.load(x + row[:, None] * D + d[None, :], mask=(row >= 0)[:, None] & (d < D)[None, :], other=0)
    tl.store(out + t.to(tl.int64)[:, None] * D + d[None, :], values, mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def _take_slots(
    x,  # [R, D]
    ids,  # [T]
    slots,  # [B * N], rows of x
    onto,  # [T, D]
    out,  # [T, D]
    T,
    D: tl.constexpr,
    HAS_ONTO: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    place = t.to(tl.int64)[:, None] * D + d[None, :]  # [BLOCK_T, BLOCK_D]
    inside = (t < T)[:, None] & (d < D)[None, :]
    token = tl.load(ids + t, mask=t < T, other=-1)
    row = tl.load(slots + token, mask=token >= 0, other=-1).to(tl.int64)
    values = tl.load(x + row[:, None] * D + d[None, :], mask=(row >= 0)[:, None] & inside, other=0)
    if HAS_ONTO:
        ACC: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
        values = values.to(ACC) + tl.load(onto + place, mask=inside, other=0).to(ACC)
    tl.store(out + place, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _assemble(
    encoded,  # [T_visible, D]
    ids,  # [T]
    slot_visible,  # [B * N]
    table_visible,  # [N, D]
    table_hidden,  # [N, D]
    out,  # [T, D]
    T,
    N,
    D: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    token = tl.load(ids + t, mask=t < T, other=-1)
    slot = tl.load(slot_visible + token, mask=token >= 0, other=-1).to(tl.int64)
    seen, unseen = slot >= 0, (token >= 0) & (slot < 0)
    place = (token % N).to(tl.int64)[:, None] * D + d[None, :]  # [BLOCK_T, BLOCK_D]
    width = (d < D)[None, :]
    values = tl.load(encoded + slot[:, None] * D + d[None, :], mask=seen[:, None] & width, other=0).to(ACC)
    values += tl.load(table_visible + place, mask=seen[:, None] & width, other=0).to(ACC)
    hidden = tl.load(table_hidden + place, mask=unseen[:, None] & width, other=0).to(ACC)
    values = tl.where(unseen[:, None], hidden, values).to(out.dtype.element_ty)
    tl.store(out + t.to(tl.int64)[:, None] * D + d[None, :], values, mask=(t < T)[:, None] & width)


@triton.jit
def _assemble_backward(
    grad,  # [T_present, D]
    ids_visible,  # [T_visible]
    slot_visible,  # [B, N]
    slot_present,  # [B, N]
    dencoded,  # [T_visible, D]
    dvisible,  # [N, D]
    dhidden,  # [N, D]
    T_visible,
    B,
    N,
    D: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    columns: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    pid = tl.program_id(0) // columns  # side by side: parts of one row, which lie so in memory
    d = (tl.program_id(0) % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    width = (d < D)[None, :]
    if pid < N:  # everything of token id `pid`: gradients of both tables, and of its encodings
        seen_sum = tl.zeros([BLOCK_B, BLOCK_D], ACC)
        unseen_sum = tl.zeros([BLOCK_B, BLOCK_D], ACC)
        for begin in tl.range(0, B, BLOCK_B, num_stages=2):  # without a product, pipelined only when told to
            b = begin + tl.arange(0, BLOCK_B)
            present = tl.load(slot_present + b * N + pid, mask=b < B, other=-1).to(tl.int64)
            visible = tl.load(slot_visible + b * N + pid, mask=b < B, other=-1).to(tl.int64)
            mask = (present >= 0)[:, None] & width
            grad_tile = tl.load(grad + present[:, None] * D + d[None, :], mask=mask, other=0)
            seen = (visible >= 0)[:, None]
            tl.store(dencoded + visible[:, None] * D + d[None, :], grad_tile, mask=seen & width)
            seen_sum += tl.where(seen, grad_tile.to(ACC), 0)
            unseen_sum += tl.where(seen, 0, grad_tile.to(ACC))
        tl.store(dvisible + pid * D + d, tl.sum(seen_sum, 0).to(dvisible.dtype.element_ty), mask=d < D)
        tl.store(dhidden + pid * D + d, tl.sum(unseen_sum, 0).to(dhidden.dtype.element_ty), mask=d < D)
    else:  # a stretch of the packing: its tail, which no token fills, is zero
        t = (pid - N) * BLOCK_B + tl.arange(0, BLOCK_B)
        token = tl.load(ids_visible + t, mask=t < T_visible, other=0)
        zeros = tl.zeros([BLOCK_B, BLOCK_D], dencoded.dtype.element_ty)
        tl.store(dencoded + t.to(tl.int64)[:, None] * D + d[None, :], zeros, mask=(token < 0)[:, None] & width)


@functools.lru_cache
def _taking(width: int, dtype: torch.dtype) -> Kernel:
    return Kernel(_take_rows, table.rows(width, dtype.itemsize), D=width)


@functools.lru_cache
def _taking_slots(width: int, dtype: torch.dtype, has_onto: bool) -> Kernel:
    return Kernel(_take_slots, table.rows(width, dtype.itemsize), D=width, HAS_ONTO=has_onto)


@functools.lru_cache
def _assembling(width: int, dtype: torch.dtype, of_tables: torch.dtype) -> tuple[Kernel, Kernel]:
    """Forward and backward."""
    known = {"D": width, "ACC": accumulate_in(dtype, of_tables)}
    forward = Kernel(_assemble, table.rows(width, dtype.itemsize), **known)
    return forward, Kernel(_assemble_backward, table.sum_rows(width), **known)


def _taker(x: Tensor, index: Tensor, count: int, shape: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """Of rows of x [R, D], and of zeros where the index [count] is -1, into a tensor of that shape."""
    width = shape[-1]
    kernel = _taking(width, x.dtype)
    grid = (table.tiles(count, kernel.blocks["BLOCK_T"]), table.tiles(width, kernel.blocks["BLOCK_D"]))
    start = kernel.prepare(grid, (x, index), (count,))

    def take(x: Tensor, index: Tensor) -> Tensor:
        out = x.new_empty(*shape)
        start((x, index), (out,))
        return out

    return take


def _slot_taker(x: Tensor, ids: Tensor, slots: Tensor, onto: Tensor | None) -> Callable[..., Tensor]:
    """Of rows of x [R, D] at the slots of tokens [T], and of zeros where they have none; on top of `onto`."""
    count, width = ids.shape[0], x.shape[1]
    kernel = _taking_slots(width, x.dtype, onto is not None)
    grid = (table.tiles(count, kernel.blocks["BLOCK_T"]), table.tiles(width, kernel.blocks["BLOCK_D"]))
    start = kernel.prepare(grid, (x, ids, slots, x if onto is None else onto), (count,))

    def take(x: Tensor, ids: Tensor, slots: Tensor, onto: Tensor) -> Tensor:
        out = x.new_empty(count, width)
        start((x, ids, slots, onto), (out,))
        return out

    return take


@prepared
def take_tokens(x: Tensor, ids: Tensor, slots: Tensor) -> Callable[..., Tensor]:
    """As `reference.take_tokens`."""
    count = ids.shape[0]
    take = _taker(x, ids, count, (count, x.shape[2]))
    return lambda x, ids, slots: take(x, ids)


@prepared
def take_tokens_backward(grad: Tensor, slots: Tensor) -> Callable[..., Tensor]:
    """As `reference.take_tokens_backward`."""
    return _taker(grad, slots, slots.numel(), (*slots.shape, grad.shape[1]))


@prepared
def take_hidden(
    x: Tensor, ids_hidden: Tensor, ids_present: Tensor, slot_hidden: Tensor, slot_present: Tensor
) -> Callable[..., Tensor]:
    """As `reference.take_hidden`."""
    take = _slot_taker(x, ids_hidden, slot_present, None)
    return lambda x, ids, _, unused, slots: take(x, ids, slots, x)


@prepared
def take_hidden_backward(grad: Tensor, onto: Tensor, ids_present: Tensor, slot_hidden: Tensor) -> Callable[..., Tensor]:
    """As `reference.take_hidden_backward`."""
    has_onto = onto.shape[0] > 0
    take = _slot_taker(grad, ids_present, slot_hidden, onto if has_onto else None)
    return lambda grad, onto, ids, slots: take(grad, ids, slots, onto if has_onto else grad)


@prepared
def assemble_tokens(
    encoded: Tensor,
    ids_visible: Tensor,
    ids_present: Tensor,
    slot_visible: Tensor,
    slot_present: Tensor,
    table_visible: Tensor,
    table_hidden: Tensor,
) -> Callable[..., Tensor]:
    """As `reference.assemble_tokens`."""
    count, width = ids_present.shape[0], encoded.shape[1]
    kernel, _ = _assembling(width, encoded.dtype, table_visible.dtype)
    grid = (table.tiles(count, kernel.blocks["BLOCK_T"]), table.tiles(width, kernel.blocks["BLOCK_D"]))
    inputs = (encoded, ids_present, slot_visible, table_visible, table_hidden)
    start = kernel.prepare(grid, inputs, (count, slot_visible.shape[1]))

    def run(
        encoded: Tensor, ids_visible: Tensor, ids: Tensor, slots: Tensor, _: Tensor, visible: Tensor, hidden: Tensor
    ) -> Tensor:
        out = encoded.new_empty(count, width)
        start((encoded, ids, slots, visible, hidden), (out,))
        return out

    return run


@prepared
def assemble_tokens_backward(
    grad: Tensor, ids_visible: Tensor, slot_visible: Tensor, slot_present: Tensor, table_visible: Tensor
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """As `reference.assemble_tokens_backward`."""
    (batch, tokens), width, visible = slot_visible.shape, grad.shape[1], ids_visible.shape[0]
    _, kernel = _assembling(width, grad.dtype, table_visible.dtype)
    stretches = table.tiles(visible, kernel.blocks["BLOCK_B"])
    grid = ((tokens + stretches) * table.tiles(width, kernel.blocks["BLOCK_D"]),)
    start = kernel.prepare(grid, (grad, ids_visible, slot_visible, slot_present), (visible, batch, tokens))

    def run(
        grad: Tensor, ids_visible: Tensor, slot_visible: Tensor, slot_present: Tensor, table_visible: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs = (
            grad.new_empty(visible, width),
            table_visible.new_empty(tokens, width),
            table_visible.new_empty(tokens, width),
        )
        start((grad, ids_visible, slot_visible, slot_present), outputs)
        return outputs

    return run
