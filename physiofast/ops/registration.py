"""Registers every op with `torch.library`: schema, implementations, shapes for tracing, and gradient."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from physiofast.ops import backends, reference
from physiofast.ops.calling import call, differentiate

OPS: list[str] = []
"""Names of the ops, in the order of this file."""
_LIBRARY = torch.library.Library("physiofast", "DEF")
_ROWS = "Tensor samples, Tensor row_start, Tensor row_scale, Tensor row_shift"
_PACKED = "Tensor ids, Tensor modality, Tensor slots"
_ORDER = "Tensor by_modality, Tensor cu_modality"
_SIDES = (
    "Tensor cu_q, Tensor cu_k, Tensor modality_q, Tensor modality_k, Tensor time_q, Tensor time_k, "
    "Tensor pair_bias, Tensor allowed, Tensor time_decay, float scale, SymInt max_q, SymInt max_k"
)


# ---- gradients: what a forward keeps, and the backward op it calls ---------------------------------------


_TWICE = "cannot be differentiated twice; call backward without create_graph"


def _refuse(name: str, why: str) -> Callable:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"physiofast::{name} {why}")

    return refuse


def _embed_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, _, lengths, ctx.align, ctx.unit = inputs
    ctx.patch_lengths = tuple(lengths)
    ctx.save_for_backward(*tensors)
    ctx.need_samples = inputs[0].requires_grad


def _embed_backward(ctx: Any, grad: Tensor) -> tuple:
    known = (ctx.patch_lengths, ctx.align, ctx.unit, ctx.need_samples)
    dweight, dtable, dsamples = call("embed_patches_backward", (grad.contiguous(), *ctx.saved_tensors), known)
    return (dsamples if ctx.need_samples else None, *[None] * 8, dweight, dtable, *[None] * 3)


def _take_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])


def _take_backward(ctx: Any, grad: Tensor) -> tuple:
    return call("take_tokens_backward", (grad.contiguous(), *ctx.saved_tensors)), None, None


def _hidden_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, _, ids_present, slot_hidden, _ = inputs
    ctx.save_for_backward(ids_present, slot_hidden)


def _hidden_backward(ctx: Any, grad: Tensor) -> tuple:
    return call("take_hidden_backward", (grad.contiguous(), grad[:0], *ctx.saved_tensors)), None, None, None, None


def _assemble_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ids_visible, _, slot_visible, slot_present, table_visible, _ = inputs
    ctx.save_for_backward(ids_visible, slot_visible, slot_present, table_visible)


def _assemble_backward(ctx: Any, grad: Tensor) -> tuple:
    dencoded, dvisible, dhidden = call("assemble_tokens_backward", (grad.contiguous(), *ctx.saved_tensors))
    return (dencoded, None, None, None, None, dvisible, dhidden)


def _attention_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, *packed, pair_bias, allowed, time_decay, scale, max_q, max_k = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or zeros would be made for the log-sum-exp
    ctx.save_for_backward(q, k, v, *output, pair_bias, time_decay)
    # Not saved, which takes the host longer than the rest of this: nobody writes into packings between two passes.
    ctx.packed, ctx.allowed = packed, allowed
    ctx.known = (scale, max_q, max_k, pair_bias.requires_grad or time_decay.requires_grad)


def _attention_backward(ctx: Any, grad: Tensor | None, *ignored: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 15
    *content, pair_bias, time_decay = ctx.saved_tensors
    tensors = (grad.contiguous(), *content, *ctx.packed, pair_bias, ctx.allowed, time_decay)
    of_queries, of_keys = ctx.packed[::2], ctx.packed[1::2]
    told_by = (*tensors[:6], *of_queries, *tensors[-3:]) if all(map(operator.is_, of_queries, of_keys)) else tensors
    found = call("modality_attention_backward", tensors, ctx.known, told_by=told_by, may_share=True)
    dq, dk, dv, dbias, ddecay = found
    if not ctx.known[-1]:
        dbias = ddecay = None
    return (dq, dk, dv, *[None] * 6, dbias, None, ddecay, *[None] * 3)


def _mse_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])
    ctx.is_shown = _top_hooks(False) is not None
    ctx.set_materialize_grads(False)  # or the gradient's own would be as many zeros


def _mse_backward(ctx: Any, grad_loss: Tensor | None, *ignored: Tensor | None) -> tuple:
    return (*_scaled("masked_mse", ctx, grad_loss, 1), *[None] * 11)


def _linear_backward(ctx: Any, grad_loss: Tensor | None, *ignored: Tensor | None) -> tuple:
    return (*_scaled("linear_masked_mse", ctx, grad_loss, 3), *[None] * 12)


def _scaled(name: str, ctx: Any, grad_loss: Tensor | None, count: int) -> list[Tensor | None]:
    """The gradients that a forward found and saved, times that of its loss."""
    if grad_loss is None:
        return [None] * count
    if torch.is_grad_enabled():  # a graph of this pass would not know that what was saved follows from predictions
        raise RuntimeError(f"physiofast::{name} {_TWICE}")
    found: list[Tensor | None] = []
    for saved in ctx.saved_tensors:
        if not ctx.is_shown and _is_last_use(saved, grad_loss):
            found.append(backends.run("scale_gradient", saved, grad_loss))
        else:
            found.append((saved.to(grad_loss.dtype) * grad_loss).to(saved.dtype))
    return found


_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_tracing: None)
"""The hooks on saved tensors that are in force, which are shown what is saved and may keep it."""


def _is_last_use(saved: Tensor, grad: Tensor) -> bool:
    """Whether a backward pass may overwrite what its forward saved: nobody needs that again, or traces or maps this.

    PyTorch tells so in a private place; where it does not, the answer is no, which costs a pass over memory.
    """
    if torch.compiler.is_compiling() or type(saved) is not Tensor:
        return False
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    mapped = torch._C._functorch.is_legacy_batchedtensor(grad) or torch._C._functorch.is_functorch_wrapped_tensor(grad)
    return not mapped and not keeps_graph()


class WithHidden(torch.autograd.Function):
    """x [T_present, D] and, by `take_hidden`, its hidden tokens. No op: the first of its outputs is its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: tuple[Tensor, ...], told_by: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Arguments are those of `take_hidden`, and what else `call` tells calls apart by."""
        hidden = call("take_hidden", (x, *packed), told_by=(x, *told_by))
        _hidden_setup(ctx, (x, *packed), hidden)
        ctx.set_materialize_grads(False)
        return x, hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_hidden: Tensor | None) -> tuple[Tensor | None, ...]:
        """Both gradients in one pass."""
        if grad_hidden is None:
            return grad, None, None
        grad_hidden = grad_hidden.contiguous()
        if grad is None or torch.is_grad_enabled():  # what may be differentiated again is added by what can be
            found = call("take_hidden_backward", (grad_hidden, grad_hidden[:0], *ctx.saved_tensors))
            return (found if grad is None else found + grad), None, None
        return call("take_hidden_backward", (grad_hidden, grad.contiguous(), *ctx.saved_tensors)), None, None


# ---- shapes for tracing -----------------------------------------------------------------------------------
# `x.shape[0]` and not `len(x)`: that would be a Python int, and pin the size that a graph is compiled for.


def _fake_patches(
    samples: Any,
    row_start: Any,
    row_scale: Any,
    row_shift: Any,
    ids: Any,
    modality: Any,
    slots: Any,
    patch_lengths: Any,
) -> Any:
    return samples.new_empty(ids.shape[0], max(patch_lengths), dtype=reference.accumulator(samples))


def _fake_embed(
    samples: Any,
    row_start: Any,
    row_scale: Any,
    row_shift: Any,
    ids: Any,
    modality: Any,
    slots: Any,
    by_modality: Any,
    cu_modality: Any,
    weight: Any,
    table: Any,
    patch_lengths: Any,
    align: Any,
    unit: Any,
) -> Any:
    return weight.new_empty(ids.shape[0], weight.shape[1])


def _fake_embed_backward(grad: Any, samples: Any, *rest: Any) -> Any:
    slots, _, _, weight, _, _, _, need_samples = rest[-8:]
    table = weight.new_empty(slots.shape[1], weight.shape[1])
    return weight.new_empty(weight.shape), table, samples.new_empty(samples.shape[0] if need_samples else 0)


def _fake_take(x: Any, ids: Any, slots: Any) -> Any:
    return x.new_empty(ids.shape[0], x.shape[2])


def _fake_take_backward(grad: Any, slots: Any) -> Any:
    return grad.new_empty(*slots.shape, grad.shape[1])


def _fake_hidden(x: Any, ids_hidden: Any, *rest: Any) -> Any:
    return x.new_empty(ids_hidden.shape[0], x.shape[1])


def _fake_hidden_backward(grad: Any, onto: Any, ids_present: Any, slot_hidden: Any) -> Any:
    return grad.new_empty(ids_present.shape[0], grad.shape[1])


def _fake_assemble(encoded: Any, ids_visible: Any, ids_present: Any, *rest: Any) -> Any:
    return encoded.new_empty(ids_present.shape[0], encoded.shape[1])


def _fake_assemble_backward(grad: Any, ids_visible: Any, slot_visible: Any, slot_present: Any, table: Any) -> Any:
    dencoded = grad.new_empty(ids_visible.shape[0], grad.shape[1])
    return dencoded, table.new_empty(table.shape), table.new_empty(table.shape)


def _fake_mse(pred: Any, samples: Any, *rest: Any) -> Any:
    patch_lengths = rest[-3]
    acc = reference.accumulator(pred, samples)
    total = pred.new_empty(len(patch_lengths), dtype=acc)
    return pred.new_empty((), dtype=acc), total, torch.empty_like(total), pred.new_empty(pred.shape)


def _fake_linear_mse(x: Any, head: Any, bias: Any, samples: Any, *rest: Any) -> Any:
    *_, patch_lengths, _, _, need_gradient = rest
    acc = reference.accumulator(x, samples)
    total = x.new_empty(len(patch_lengths), dtype=acc)
    grads = (leaf.new_empty(leaf.shape if need_gradient else 0) for leaf in (x, head, bias))
    return x.new_empty((), dtype=acc), total, torch.empty_like(total), *grads


def _fake_plan(
    quotas: Any, valid: Any, window_id: Any, stream: Any, token_modality: Any, token_time_s: Any, totals: Any
) -> Any:
    batch, kinds = valid.shape[0], quotas.shape[1]
    parts = []
    for total in totals:
        parts += [valid.new_empty(total, dtype=torch.int32), valid.new_empty(batch + 1, dtype=torch.int32)]
        parts += [token_modality.new_empty(total), token_time_s.new_empty(total)]
        parts += [valid.new_empty(size, dtype=torch.int32) for size in (valid.shape, (total,), (kinds + 1,))]
    return parts


# ---- the ops ----------------------------------------------------------------------------------------------


def _register(
    schema: str,
    fake: Callable,
    backward: Callable | None = None,
    setup: Callable | None = None,
    leaves: tuple[str, ...] = (),
) -> None:
    """Define an op, which `backends.run` runs by its name; `leaves` are the arguments that have gradients."""
    name = schema.split("(", maxsplit=1)[0]
    OPS.append(name)
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, functools.partial(backends.run, name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"physiofast::{name}", fake, lib=_LIBRARY)
    refused = _refuse(name, _TWICE if name.endswith("_backward") else "has no gradient")
    torch.library.register_autograd(f"physiofast::{name}", backward or refused, setup_context=setup, lib=_LIBRARY)
    if setup and backward:
        arguments = [argument.name for argument in getattr(torch.ops.physiofast, name).default._schema.arguments]
        differentiate(name, [arguments.index(leaf) for leaf in leaves], setup, backward)


def _fake_attention(q: Any, *rest: Any) -> Any:
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=reference.accumulator(q))
    return q.new_empty(q.shape), lse


def _fake_attention_backward(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *sides: Any) -> Any:
    pair_bias, time_decay, need_shared = sides[6], sides[8], sides[-1]
    shared = (t.new_empty(t.shape if need_shared else 0) for t in (pair_bias, time_decay))
    return (*(t.new_empty(t.shape) for t in (q, k, v)), *shared)


def _fake_stats(q: Any, k: Any, *sides: Any) -> Any:
    *_, pair_bias, _, _, _, _, _, tau_s = sides
    heads, kinds, acc = q.shape[1], pair_bias.shape[1], reference.accumulator(q)
    return q.new_empty((2 + len(tau_s)) * (heads + 1), kinds, kinds, dtype=acc), q.new_empty(kinds, dtype=acc)


_register(f"take_patches({_ROWS}, {_PACKED}, int[] patch_lengths) -> Tensor", _fake_patches)
_register(
    f"embed_patches({_ROWS}, {_PACKED}, {_ORDER}, Tensor weight, Tensor table, int[] patch_lengths, int align, "
    "bool unit) -> Tensor",
    _fake_embed,
    _embed_backward,
    _embed_setup,
    ("samples", "weight", "table"),
)
_register(
    f"embed_patches_backward(Tensor grad, {_ROWS}, {_PACKED}, {_ORDER}, Tensor weight, int[] patch_lengths, "
    "int align, bool unit, bool need_samples) -> (Tensor, Tensor, Tensor)",
    _fake_embed_backward,
)
_register("take_tokens(Tensor x, Tensor ids, Tensor slots) -> Tensor", _fake_take, _take_backward, _take_setup, ("x",))
_register("take_tokens_backward(Tensor grad, Tensor slots) -> Tensor", _fake_take_backward)
_register(
    "take_hidden(Tensor x, Tensor ids_hidden, Tensor ids_present, Tensor slot_hidden, Tensor slot_present) -> Tensor",
    _fake_hidden,
    _hidden_backward,
    _hidden_setup,
    ("x",),
)
_register(
    "take_hidden_backward(Tensor grad, Tensor onto, Tensor ids_present, Tensor slot_hidden) -> Tensor",
    _fake_hidden_backward,
)
_register(
    "assemble_tokens(Tensor encoded, Tensor ids_visible, Tensor ids_present, Tensor slot_visible, "
    "Tensor slot_present, Tensor table_visible, Tensor table_hidden) -> Tensor",
    _fake_assemble,
    _assemble_backward,
    _assemble_setup,
    ("encoded", "table_visible", "table_hidden"),
)
_register(
    "assemble_tokens_backward(Tensor grad, Tensor ids_visible, Tensor slot_visible, Tensor slot_present, "
    "Tensor table) -> (Tensor, Tensor, Tensor)",
    _fake_assemble_backward,
)
_register(
    f"modality_attention(Tensor q, Tensor k, Tensor v, {_SIDES}) -> (Tensor, Tensor)",
    _fake_attention,
    _attention_backward,
    _attention_setup,
    ("q", "k", "v", "pair_bias", "time_decay"),
)
_register(
    f"modality_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_SIDES}, "
    "bool need_shared) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_attention_backward,
)
_register(f"modality_attention_stats(Tensor q, Tensor k, {_SIDES}, float[] tau_s) -> (Tensor, Tensor)", _fake_stats)
_register(
    f"masked_mse(Tensor pred, {_ROWS}, {_PACKED}, Tensor weight, int[] patch_lengths, int[] normalise, int align) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _fake_mse,
    _mse_backward,
    _mse_setup,
    ("pred",),
)
_register(
    f"linear_masked_mse(Tensor x, Tensor head, Tensor bias, {_ROWS}, {_PACKED}, Tensor weight, int[] patch_lengths, "
    "int[] normalise, int align, bool need_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_linear_mse,
    _linear_backward,
    _mse_setup,
    ("x", "head", "bias"),
)
_register(
    "sample_plan(Tensor quotas, Tensor valid, Tensor window_id, Tensor stream, Tensor token_modality, "
    "Tensor token_time_s, int[] totals) -> Tensor[]",
    _fake_plan,
)
