"""Registers every op with `torch.library`: schema, implementations, shapes for tracing, and gradient."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from physiofast.ops import backends, checks, flops, reference
from physiofast.ops.calling import call, register_gradient
from physiofast.ops.contracts import AttentionSides

OPS: list[str] = []
"""Names of the registered ops, in the order of this file."""
_LIBRARY = torch.library.Library("physiofast", "DEF")
_ROWS = "Tensor samples, Tensor row_start, Tensor row_scale, Tensor row_shift"
_PACKED = "Tensor ids, Tensor modality, Tensor slots"
_ORDER = "Tensor by_modality, Tensor cu_modality"
_SIDES = (
    "Tensor cu_q, Tensor cu_k, Tensor modality_q, Tensor modality_k, Tensor time_q, Tensor time_k, "
    "Tensor pair_bias, Tensor allowed, Tensor time_decay, float scale, SymInt max_q, SymInt max_k"
)

_TWICE = "cannot be differentiated twice; call backward without create_graph"


def _register(
    schema: str,
    fake: Callable,
    setup: Callable | None = None,
    backward: Callable | None = None,
    leaves: tuple[str, ...] = (),
) -> None:
    """Define an op, which `backends.run` runs by its name.

    Args:
        schema: as `torch.library.define` takes it.
        fake: makes empty results for tracing, from the arguments that its parameters name. It reads sizes from
            `x.shape`, not by `len(x)`, which is a Python int and would pin the size that a graph is compiled for.
        setup: (ctx, inputs, output) -> None, as `torch.library.register_autograd` takes it. None: no gradient.
        backward: (ctx, *gradients of the results) -> gradients of `leaves`, in their order.
        leaves: names of the arguments that have gradients.
    """
    name = schema.partition("(")[0]
    OPS.append(name)
    _LIBRARY.define(schema)
    arguments = [argument.name for argument in getattr(torch.ops.physiofast, name).default._schema.arguments]
    read = [arguments.index(parameter) for parameter in inspect.signature(fake).parameters]

    serve = functools.partial(backends.run, name)

    def run(*args: Any) -> Any:
        checks.check_one_device(arguments, args)
        return serve(*args)

    def shapes(*args: Any) -> Any:
        checks.check_values(arguments, args)
        return fake(*[args[i] for i in read])

    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"physiofast::{name}", shapes, lib=_LIBRARY)
    if setup is None or backward is None:
        of_arguments = _refuse(name, _TWICE if name.endswith("_backward") else "has no gradient")
    else:
        places = [arguments.index(leaf) for leaf in leaves]
        of_arguments = _of_arguments(backward, places, len(arguments))
        register_gradient(name, places, setup, backward)
    torch.library.register_autograd(f"physiofast::{name}", of_arguments, setup_context=setup, lib=_LIBRARY)


def _refuse(name: str, why: str) -> Callable:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"physiofast::{name} {why}")

    return refuse


def _of_arguments(backward: Callable, places: Sequence[int], count: int) -> Callable:
    """Extend a backward function so that it returns a gradient, or None, for each of `count` arguments."""

    def of_arguments(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * count
        for place, gradient in zip(places, backward(ctx, *grads), strict=True):
            gradients[place] = gradient
        return tuple(gradients)

    return of_arguments


# ---- take_patches --------------------------------------------------------------------------------------------


def _fake_patches(samples: Any, ids: Any, patch_lengths: Any) -> Any:
    return samples.new_empty(ids.shape[0], max(patch_lengths), dtype=reference.accumulator(samples))


_register(f"take_patches({_ROWS}, {_PACKED}, int[] patch_lengths) -> Tensor", _fake_patches)


# ---- embed_patches -------------------------------------------------------------------------------------------


def _fake_embed(ids: Any, weight: Any) -> Any:
    return weight.new_empty(ids.shape[0], weight.shape[1])


def _embed_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, _, patch_lengths, align, is_unscaled = inputs
    ctx.save_for_backward(*tensors)
    ctx.need_samples = inputs[0].requires_grad
    ctx.constants = (tuple(patch_lengths), align, is_unscaled, ctx.need_samples)


def _embed_backward(ctx: Any, grad: Tensor) -> tuple:
    tensors = (grad.contiguous(), *ctx.saved_tensors)
    dweight, dtable, dsamples = call("embed_patches_backward", tensors, ctx.constants)
    return (dsamples if ctx.need_samples else None), dweight, dtable


_register(
    f"embed_patches({_ROWS}, {_PACKED}, {_ORDER}, Tensor weight, Tensor table, int[] patch_lengths, int align, "
    "bool is_unscaled) -> Tensor",
    _fake_embed,
    _embed_setup,
    _embed_backward,
    leaves=("samples", "weight", "table"),
)


def _fake_embed_backward(samples: Any, slots: Any, weight: Any, need_samples: Any) -> Any:
    dtable = weight.new_empty(slots.shape[1], weight.shape[1])
    return weight.new_empty(weight.shape), dtable, samples.new_empty(samples.shape[0] if need_samples else 0)


_register(
    f"embed_patches_backward(Tensor grad, {_ROWS}, {_PACKED}, {_ORDER}, Tensor weight, int[] patch_lengths, "
    "int align, bool is_unscaled, bool need_samples) -> (Tensor, Tensor, Tensor)",
    _fake_embed_backward,
)


# ---- take_tokens ---------------------------------------------------------------------------------------------


def _fake_take(x: Any, ids: Any) -> Any:
    return x.new_empty(ids.shape[0], x.shape[2])


def _take_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, _, slots = inputs
    ctx.save_for_backward(slots)


def _take_backward(ctx: Any, grad: Tensor) -> tuple:
    return (call("take_tokens_backward", (grad.contiguous(), *ctx.saved_tensors)),)


_register(
    "take_tokens(Tensor x, Tensor ids, Tensor slots) -> Tensor", _fake_take, _take_setup, _take_backward, leaves=("x",)
)


def _fake_take_backward(grad: Any, slots: Any) -> Any:
    return grad.new_empty(*slots.shape, grad.shape[1])


_register("take_tokens_backward(Tensor grad, Tensor slots) -> Tensor", _fake_take_backward)


# ---- take_hidden ---------------------------------------------------------------------------------------------


def _fake_hidden(x: Any, ids_hidden: Any) -> Any:
    return x.new_empty(ids_hidden.shape[0], x.shape[1])


def _hidden_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, _, ids_present, slot_hidden, _ = inputs
    ctx.save_for_backward(ids_present, slot_hidden)


def _hidden_backward(ctx: Any, grad: Tensor) -> tuple:
    return (call("take_hidden_backward", (grad.contiguous(), grad[:0], *ctx.saved_tensors)),)


_register(
    "take_hidden(Tensor x, Tensor ids_hidden, Tensor ids_present, Tensor slot_hidden, Tensor slot_present) -> Tensor",
    _fake_hidden,
    _hidden_setup,
    _hidden_backward,
    leaves=("x",),
)


def _fake_hidden_backward(grad: Any, ids_present: Any) -> Any:
    return grad.new_empty(ids_present.shape[0], grad.shape[1])


_register(
    "take_hidden_backward(Tensor grad, Tensor onto, Tensor ids_present, Tensor slot_hidden) -> Tensor",
    _fake_hidden_backward,
)


class WithHidden(torch.autograd.Function):
    """Returns x [T_present, D] and, by `take_hidden`, its hidden tokens; no op, as its first output is its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: tuple[Tensor, ...], guarded: tuple[Tensor, ...], check: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        """Return x and its hidden tokens; `packed` and `guarded` as of `arguments.of_hidden`, `check` as of `call`."""
        hidden = call("take_hidden", (x, *packed), check=check, guarded=(x, *guarded))
        _hidden_setup(ctx, (x, *packed), hidden)
        ctx.set_materialize_grads(False)
        return x, hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_hidden: Tensor | None) -> tuple[Tensor | None, ...]:
        """Add both gradients in one pass over memory."""
        if grad_hidden is None:
            return grad, None, None, None
        grad_hidden = grad_hidden.contiguous()
        if grad is None or torch.is_grad_enabled():  # under create_graph the sum is one that autograd knows
            dx = call("take_hidden_backward", (grad_hidden, grad_hidden[:0], *ctx.saved_tensors))
            return (dx if grad is None else dx + grad), None, None, None
        return call("take_hidden_backward", (grad_hidden, grad.contiguous(), *ctx.saved_tensors)), None, None, None


# ---- assemble_tokens -----------------------------------------------------------------------------------------


def _fake_assemble(encoded: Any, ids_present: Any) -> Any:
    return encoded.new_empty(ids_present.shape[0], encoded.shape[1])


def _assemble_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ids_visible, _, slot_visible, slot_present, table_visible, _ = inputs
    ctx.save_for_backward(ids_visible, slot_visible, slot_present, table_visible)


def _assemble_backward(ctx: Any, grad: Tensor) -> tuple:
    return call("assemble_tokens_backward", (grad.contiguous(), *ctx.saved_tensors))


_register(
    "assemble_tokens(Tensor encoded, Tensor ids_visible, Tensor ids_present, Tensor slot_visible, "
    "Tensor slot_present, Tensor table_visible, Tensor table_hidden) -> Tensor",
    _fake_assemble,
    _assemble_setup,
    _assemble_backward,
    leaves=("encoded", "table_visible", "table_hidden"),
)


def _fake_assemble_backward(grad: Any, ids_visible: Any, table: Any) -> Any:
    dencoded = grad.new_empty(ids_visible.shape[0], grad.shape[1])
    return dencoded, table.new_empty(table.shape), table.new_empty(table.shape)


_register(
    "assemble_tokens_backward(Tensor grad, Tensor ids_visible, Tensor slot_visible, Tensor slot_present, "
    "Tensor table) -> (Tensor, Tensor, Tensor)",
    _fake_assemble_backward,
)


# ---- modality_attention --------------------------------------------------------------------------------------


def _fake_attention(q: Any) -> Any:
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=reference.accumulator(q))
    return q.new_empty(q.shape), lse


def _attention_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, *packed, pair_bias, allowed, time_decay, scale, max_q, max_k = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or zeros would be made for the log-sum-exp
    ctx.save_for_backward(q, k, v, *output, pair_bias, time_decay)
    # Not saved, which would take the host longer than all else here; as if they were, nobody may write into them.
    ctx.packed, ctx.allowed, ctx.constants = packed, allowed, (scale, max_q, max_k)
    ctx.versions = _versions(packed, allowed)
    ctx.need_shared = pair_bias.requires_grad or time_decay.requires_grad


def _versions(packed: Sequence[Tensor], allowed: Tensor) -> list[int]:
    """How often each tensor was written to; tensors of inference mode do not count it."""
    if torch.compiler.is_compiling():  # where it cannot be told
        return []
    return [0 if tensor.is_inference() else tensor._version for tensor in (*packed, allowed)]


def _attention_backward(ctx: Any, grad: Tensor | None, *ignored: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 5
    *attended, pair_bias, time_decay = ctx.saved_tensors
    if not torch.compiler.is_compiling() and ctx.versions not in ([], _versions(ctx.packed, ctx.allowed)):
        raise RuntimeError(
            "physiofast::modality_attention: a packing or `allowed` was changed in place between the forward and the "
            "backward pass, which needs it as it was; give each forward pass tensors of its own"
        )
    sides = AttentionSides._make((*ctx.packed, pair_bias, ctx.allowed, time_decay, *ctx.constants))
    first, constants = (grad.contiguous(), *attended), (*sides.constants, ctx.need_shared)
    tensors, guarded = (*first, *sides.tensors), (*first, *sides.distinct())
    gradients = call("modality_attention_backward", tensors, constants, guarded=guarded, may_share=True)
    dq, dk, dv, dbias, ddecay = gradients
    return (dq, dk, dv, dbias, ddecay) if ctx.need_shared else (dq, dk, dv, None, None)


_register(
    f"modality_attention(Tensor q, Tensor k, Tensor v, {_SIDES}) -> (Tensor, Tensor)",
    _fake_attention,
    _attention_setup,
    _attention_backward,
    leaves=("q", "k", "v", "pair_bias", "time_decay"),
)


def _fake_attention_backward(q: Any, k: Any, v: Any, pair_bias: Any, time_decay: Any, need_shared: Any) -> Any:
    shared = (t.new_empty(t.shape if need_shared else 0) for t in (pair_bias, time_decay))
    return (*(t.new_empty(t.shape) for t in (q, k, v)), *shared)


_register(
    f"modality_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_SIDES}, "
    "bool need_shared) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_attention_backward,
)


def _fake_stats(q: Any, pair_bias: Any, tau_s: Any) -> Any:
    heads, num_modalities, acc = q.shape[1], pair_bias.shape[1], reference.accumulator(q)
    sums = q.new_empty((2 + len(tau_s)) * (heads + 1), num_modalities, num_modalities, dtype=acc)
    return sums, q.new_empty(num_modalities, dtype=acc)


_register(f"modality_attention_stats(Tensor q, Tensor k, {_SIDES}, float[] tau_s) -> (Tensor, Tensor)", _fake_stats)


# ---- masked_mse ----------------------------------------------------------------------------------------------


def _fake_mse(pred: Any, samples: Any, patch_lengths: Any) -> Any:
    acc = reference.accumulator(pred, samples)
    total = pred.new_empty(len(patch_lengths), dtype=acc)
    return pred.new_empty((), dtype=acc), total, torch.empty_like(total), pred.new_empty(pred.shape)


def _mse_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, _, _, *gradients = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*gradients)
    ctx.is_shown = _top_hooks(False) is not None
    ctx.set_materialize_grads(False)  # or zeros would be made for the saved gradient, which is a result too


def _mse_backward(ctx: Any, grad_loss: Tensor | None, *ignored: Tensor | None) -> list[Tensor | None]:
    return _scaled("masked_mse", ctx, grad_loss, 1)


def _scaled(name: str, ctx: Any, grad_loss: Tensor | None, count: int) -> list[Tensor | None]:
    """Multiply the gradients that a forward pass computed and saved by the gradient of its loss."""
    if grad_loss is None:
        return [None] * count
    if torch.is_grad_enabled():  # its graph would miss that what was saved depends on predictions
        raise RuntimeError(f"physiofast::{name} {_TWICE}")
    scaled: list[Tensor | None] = []
    for saved in ctx.saved_tensors:
        if not ctx.is_shown and _is_last_use(saved, grad_loss):
            scaled.append(backends.run("scale_gradient", saved, grad_loss))
        else:
            scaled.append((saved.to(grad_loss.dtype) * grad_loss).to(saved.dtype))
    return scaled


_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_tracing: None)
"""Returns the active hooks on saved tensors, which see what is saved and may keep it."""


def _is_last_use(saved: Tensor, grad: Tensor) -> bool:
    """Whether a backward pass may overwrite what its forward pass saved, as nothing reads it again, traces or maps it.

    Only private functions of PyTorch tell this; where they do not, the answer is no, which costs a pass over memory.
    """
    if torch.compiler.is_compiling() or type(saved) is not Tensor or saved.is_meta:
        return False
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    mapped = torch._C._functorch.is_legacy_batchedtensor(grad) or torch._C._functorch.is_functorch_wrapped_tensor(grad)
    return not mapped and not keeps_graph()


_register(
    f"masked_mse(Tensor pred, {_ROWS}, {_PACKED}, Tensor weight, int[] patch_lengths, int[] normalise, int align) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _fake_mse,
    _mse_setup,
    _mse_backward,
    leaves=("pred",),
)


# ---- linear_masked_mse ---------------------------------------------------------------------------------------


def _fake_linear_mse(x: Any, head: Any, bias: Any, samples: Any, patch_lengths: Any, need_gradient: Any) -> Any:
    acc = reference.accumulator(x, samples)
    total = x.new_empty(len(patch_lengths), dtype=acc)
    grads = (leaf.new_empty(leaf.shape if need_gradient else 0) for leaf in (x, head, bias))
    return x.new_empty((), dtype=acc), total, torch.empty_like(total), *grads


def _linear_mse_backward(ctx: Any, grad_loss: Tensor | None, *ignored: Tensor | None) -> list[Tensor | None]:
    return _scaled("linear_masked_mse", ctx, grad_loss, 3)


_register(
    f"linear_masked_mse(Tensor x, Tensor head, Tensor bias, {_ROWS}, {_PACKED}, Tensor weight, int[] patch_lengths, "
    "int[] normalise, int align, bool need_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_linear_mse,
    _mse_setup,
    _linear_mse_backward,
    leaves=("x", "head", "bias"),
)


# ---- sample_plan ---------------------------------------------------------------------------------------------


def _fake_plan(quotas: Any, valid: Any, token_modality: Any, token_time_s: Any, totals: Any) -> Any:
    batch, num_modalities = valid.shape[0], quotas.shape[1]
    parts = []
    for total in totals:
        parts += [valid.new_empty(total, dtype=torch.int32), valid.new_empty(batch + 1, dtype=torch.int32)]
        parts += [token_modality.new_empty(total), token_time_s.new_empty(total)]
        parts += [valid.new_empty(size, dtype=torch.int32) for size in (valid.shape, (total,), (num_modalities + 1,))]
    return parts


_register(
    "sample_plan(Tensor quotas, Tensor valid, Tensor window_id, Tensor seed_step, Tensor token_modality, "
    "Tensor token_time_s, int[] totals) -> Tensor[]",
    _fake_plan,
)
flops.tell_counters()
