"""Calls of registered ops by public functions and gradients, past PyTorch's dispatcher where nothing must see the call.

Dispatching an op that is written in Python takes longer than most kernels run, so eager calls on plain tensors go
straight to the op's form. Tracing, modes, transforms, tensor subclasses and tensors without data see the registered op.

Whether arguments fit together, which form serves them and how its kernels are started follow from shapes, strides,
dtypes and the like. All this is decided once; later calls on tensors that agree in these reuse the decision. Whether
tensors agree is tested by the guards that `torch.compile` runs before a compiled graph, for all tensors in one call.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from physiofast.ops import backends, flops
from physiofast.ops.watching import is_watched, refuse_derivatives

_PLAIN = frozenset({Tensor, torch.nn.Parameter, int, float, bool, tuple})
_is_profiled: Callable[[], bool] = getattr(torch.autograd, "_profiler_enabled", lambda: False)
_is_batched = torch._C._functorch.is_legacy_batchedtensor
"""Whether a gradient is one of many at once (`is_grads_batched`); gradients are first arguments."""
_recorded: dict[str, tuple[Callable[..., Any], Callable[[tuple[Any, ...]], Sequence[Tensor]]]] = {}
"""Op -> (function that records a call for autograd, function that picks the arguments that have gradients)."""


class _Seen(NamedTuple):
    """Cached dispatch decision for one signature of arguments."""

    is_alike: Callable[..., bool]
    """Tells whether guarded tensors agree with those of the cached call in all but values and addresses."""
    prepared: backends.Prepared
    """The form that serves the call."""
    record: Callable[..., Any] | None
    """Records the call for autograd; None where nothing requires a gradient."""
    leaves_of: Callable[[tuple[Any, ...]], Sequence[Tensor]]
    """Picks the arguments that have gradients."""


_seen: dict[tuple[Any, ...], list[_Seen]] = {}
"""(op, constants, number of guarded tensors, precision of float32 products) -> cached decisions, the latest first."""
_MOST_ALIKE, _MOST_SEEN = 16, 256
"""Most decisions kept for one key, and most keys; at the latter the cache is cleared."""


def call(
    op: str,
    tensors: tuple[Tensor, ...],
    constants: tuple[Any, ...] = (),
    check: Callable[[], None] | None = None,
    guarded: tuple[Tensor, ...] | None = None,
    **hints: Any,
) -> Any:
    """Call a registered op.

    Args:
        op: name of the op.
        tensors: the first arguments of the op's schema.
        constants: the other arguments of the schema, with tuples for lists.
        check: raises where arguments do not fit together. It may look at shapes, strides, dtypes and devices only, as
            it does not run again for tensors that agree in those.
        guarded: the tensors that are compared with those of earlier calls: all that the op or `check` looks at, each
            once. By default `tensors`.
        hints: extra keyword arguments for the form, passed only when the dispatcher is bypassed and nothing is
            recorded.
    """
    if torch.compiler.is_compiling() or is_watched():
        if check is not None:
            check()
        if not torch.compiler.is_compiling():
            refuse_derivatives(op, tensors)
            flops.tell_counters()
        return getattr(torch.ops.physiofast, op)(*tensors, *constants)
    guarded = guarded or tensors
    key = (op, constants, len(guarded), backends.float32_precision())
    for is_alike, prepared, record, leaves_of in _seen.get(key, ()):
        if is_alike(*guarded):
            if not prepared.is_current():
                break
            args, run = (*tensors, *constants), prepared.run
            if _is_profiled():
                run = functools.partial(_run_named, op, run)
            if record is not None and torch.is_grad_enabled():
                return record(run, args, *leaves_of(args))
            return run(*args, **hints)
    if check is not None:
        check()
    return _call_anew(key, tensors, guarded, hints)


def call_unrecorded(
    op: str,
    tensors: tuple[Tensor, ...],
    constants: tuple[Any, ...] = (),
    check: Callable[[], None] | None = None,
    guarded: tuple[Tensor, ...] | None = None,
) -> Any:
    """Call an op that has no gradient, even if its arguments require one; arguments are those of `call`."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)  # as torch.no_grad does, in a sixth of the time
    try:
        return call(op, tensors, constants, check, guarded)
    finally:
        torch._C._set_grad_enabled(before)


def _call_anew(
    key: tuple[Any, ...], tensors: tuple[Tensor, ...], guarded: tuple[Tensor, ...], hints: dict[str, Any]
) -> Any:
    """Call an op for which no cached decision fits, and cache the decision where that is possible."""
    op, constants, *_ = key
    args = (*tensors, *constants)
    record, leaves_of = _recorded.get(op) or (functools.partial(_refused, op), _tensors_of)
    leaves = leaves_of(args)
    is_plain = _PLAIN.issuperset(map(type, args)) and not _is_batched(args[0])
    is_plain = is_plain and not any(tensor.is_neg() for tensor in tensors)  # the dispatcher gives forms the negatives
    if not is_plain or len({tensor.device for tensor in tensors}) > 1 or args[0].is_meta:
        return getattr(torch.ops.physiofast, op)(*args)
    prepared = backends.prepare(op, *args)
    has_gradient = torch._C._any_requires_grad(*leaves)
    is_recorded = has_gradient and torch.is_grad_enabled()
    if not has_gradient and torch._C._any_requires_grad(*_tensors_of(args)):
        prepared = prepared._replace(run=torch.no_grad()(prepared.run))  # other arguments require gradients in vain
    run = functools.partial(_run_named, op, prepared.run) if _is_profiled() else prepared.run
    result = record(run, args, *leaves) if is_recorded else run(*args, **hints)
    if len(guarded) == len(set(map(id, guarded))) and _can_tell():  # guards never pass for one tensor twice
        if len(_seen) >= _MOST_SEEN:
            _seen.clear()
        calls = _seen.setdefault(key, [])
        calls.insert(0, _Seen(_guards(guarded), prepared, record if has_gradient else None, leaves_of))
        del calls[_MOST_ALIKE:]
    return result


def _run_named(op: str, run: Callable[..., Any], *args: Any, **hints: Any) -> Any:
    """Run a form under the name that a profiler sees where the dispatcher calls the op."""
    with torch.profiler.record_function(f"physiofast::{op}"):
        return run(*args, **hints)


def _refused(op: str, run: Callable[..., Any], args: tuple[Any, ...], *leaves: Tensor) -> Any:
    """Call the registered op, whose backward raises, where an op without a gradient should be recorded."""
    return getattr(torch.ops.physiofast, op)(*args)


def _tensors_of(args: tuple[Any, ...]) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]


def _guards(tensors: tuple[Tensor, ...]) -> Callable[..., bool]:
    """Make a function that tells whether other tensors agree with these in shape, strides, dtype, device and so on."""
    from torch._C._dynamo.guards import TensorGuards

    of_dims: Any = [list(tensor.shape) for tensor in tensors], [list(tensor.stride()) for tensor in tensors]
    check: Callable[..., bool] = TensorGuards(
        *tensors, dynamic_dims_sizes=of_dims[0], dynamic_dims_strides=of_dims[1]
    ).check
    return check


@functools.cache
def _can_tell() -> bool:
    """Whether this PyTorch's guards, a private part of it, tell apart what they must; else nothing is cached."""
    try:
        with torch.inference_mode(False):
            first, second = torch.zeros(2, 3, 4, dtype=torch.float32, device="cpu").unbind()
            is_alike = _guards((first, second))
            turned, wanted = first.t().contiguous().t(), first.clone().requires_grad_()
            others = [first.double(), first[:, :3], turned, wanted, first.to("meta"), first.as_subclass(_Other)]
            others.append(torch._neg_view(first))
            return is_alike(second, first) and not any(is_alike(other, second) for other in others)
    except Exception:  # whatever a later PyTorch changes
        return False


class _Other(Tensor):
    """A subclass that guards must tell from a plain tensor."""


def register_gradient(
    op: str, places: Sequence[int], setup: Callable[..., None], backward: Callable[..., Sequence[Tensor | None]]
) -> None:
    """Register the gradient of an op for calls that bypass the dispatcher.

    Args:
        op: name of the op.
        places: positions of the arguments that have gradients.
        setup: as `torch.library.register_autograd` takes it.
        backward: (ctx, *gradients of the results) -> gradients of these arguments, in order of `places`.
    """

    def forward(ctx: Any, run: Callable[..., Any], args: tuple[Any, ...], *leaves: Tensor) -> Any:
        output = run(*args)
        setup(ctx, args, output)
        return output

    def of_leaves(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return None, None, *backward(ctx, *grads)

    members = {"forward": staticmethod(forward), "backward": staticmethod(of_leaves)}
    function: Any = type(op, (torch.autograd.Function,), members)
    first = places[0]
    leaves_of = operator.itemgetter(*places) if len(places) > 1 else operator.itemgetter(slice(first, first + 1))
    # `function.apply` without its own search for transforms, which looks at all arguments; `call` has excluded them.
    _recorded[op] = super(torch.autograd.Function, function).apply, leaves_of
