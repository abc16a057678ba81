"""How public functions and gradients call a registered op: past PyTorch's dispatcher where nothing there has a say.

To the dispatcher an op in Python is a detour that takes longer than most kernels run. So eager calls on plain tensors
go straight to the op's form. Tracing, modes, transforms, subclasses of tensors and those without data see the
registered op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from physiofast.ops import backends

_PLAIN = frozenset({Tensor, torch.nn.Parameter, int, float, bool, list, tuple})
_is_batched = torch._C._functorch.is_legacy_batchedtensor
"""Of the gradients that `torch.autograd.grad` takes many of at once; they are first arguments."""
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transforms, _tracer = torch._C._are_functorch_transforms_active, torch._C._get_tracing_state
_recorded: dict[str, tuple[Callable[..., Any] | None, tuple[int, ...]]] = {}
"""Op -> what records a call, and which of its arguments have gradients."""
_UNRECORDED = (None, (0,))


def call(op: str, *args: Any, **beside: Any) -> Any:
    """Call a registered op.

    Args:
        op: name.
        args: of its schema, by position; the first one is a tensor.
        beside: what its form is given besides if it is gone to directly, and does without if not.
    """
    if torch.compiler.is_compiling() or is_watched() or not _PLAIN.issuperset(map(type, args)) or _is_batched(args[0]):
        return getattr(torch.ops.physiofast, op)(*args)
    record, places = _recorded.get(op, _UNRECORDED)
    leaves = [args[place] for place in places]
    if True in [leaf.is_meta for leaf in leaves]:
        return getattr(torch.ops.physiofast, op)(*args)
    if torch.is_grad_enabled():
        if record is None and torch._C._any_requires_grad(*args):
            return getattr(torch.ops.physiofast, op)(*args)  # which refuses to be differentiated
        if record is not None and True in [leaf.requires_grad for leaf in leaves]:
            return record(args, *leaves)
    return backends.run(op, *args, **beside)


def is_watched() -> bool:
    """Whether a mode, a transform or a tracer wants to know of every call."""
    return bool(_dispatch_modes() or _function_modes() or _transforms() or forward_ad._current_level >= 0 or _tracer())


def differentiate(
    op: str, places: Sequence[int], setup: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Give an op its gradient where the dispatcher is passed by.

    Args:
        op: name.
        places: of the arguments that have gradients.
        setup: as `torch.library.register_autograd` takes it.
        backward: too.
    """

    def forward(ctx: Any, args: tuple[Any, ...], *leaves: Tensor) -> Any:
        output = backends.run(op, *args)
        setup(ctx, args, output)
        return output

    def of_leaves(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        found = backward(ctx, *grads)
        return None, *[found[place] for place in places]

    members = {"forward": staticmethod(forward), "backward": staticmethod(of_leaves)}
    function: Any = type(op, (torch.autograd.Function,), members)
    # What `function.apply` goes on to once it has seen that no transform is active, and all arguments for that.
    _recorded[op] = super(torch.autograd.Function, function).apply, tuple(places)
