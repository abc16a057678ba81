"""Detection of modes, transforms and tracers that must see every call of an op, and of derivatives that no op has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transforms, _tracer = torch._C._are_functorch_transforms_active, torch._C._get_tracing_state


def is_watched() -> bool:
    """Whether a mode, a transform or a tracer that must see every call is active."""
    return bool(
        _dispatch_modes()
        or (_function_modes() and _any_function_mode_watches())
        or _transforms()
        or forward_ad._current_level >= 0
        or _tracer()
    )


def _any_function_mode_watches() -> bool:
    """Whether a function mode is more than a default device, which says only where new tensors are made."""
    modes = map(torch._C._get_function_stack_at, range(_function_modes()))
    return any(type(mode) is not DeviceContext for mode in modes)


def refuse_derivatives(op: str, tensors: Sequence[Tensor]) -> None:
    """Refuse the kinds of derivatives that no op has: they would be zero, or end in an error of PyTorch's.

    Raises:
        RuntimeError: an argument has a tangent, or `torch.func.grad`, `vjp` or `jacrev` transforms the call.
    """
    if forward_ad._current_level >= 0 and any(map(_has_tangent, tensors)):
        raise RuntimeError(
            f"physiofast::{op} has no forward-mode derivative, which torch.func.jvp, jacfwd and forward_ad ask for; "
            "use reverse mode: torch.autograd.grad or backward()"
        )
    if _transforms() and any(map(torch._C._functorch.is_gradtrackingtensor, tensors)):
        raise RuntimeError(
            f"physiofast::{op} is not differentiated by torch.func.grad, vjp or jacrev; use torch.autograd.grad or "
            "backward()"
        )


def _has_tangent(tensor: Tensor) -> bool:
    try:
        return forward_ad.unpack_dual(tensor, level=0).tangent is not None
    except RuntimeError:  # mapped by vmap within a forward-mode transform, where it cannot be told
        return True
