"""Division of a fused projection into queries, keys and values without copies of them or of their gradients.

`Tensor.unbind` copies the gradients of its parts into a new tensor. Here the op that computes these gradients may write
them into one tensor from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from physiofast.ops.watching import is_watched


def cut(x: Tensor) -> tuple[Tensor, ...]:
    """Return the n parts [T, H, Dh] of x [T, n, H, Dh], as views.

    If the gradients of the parts lie in one tensor in the same way, x's gradient is a view of it and no copy.
    """
    return x.unbind(1) if torch.compiler.is_compiling() or is_watched() else _Cut.apply(x)


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        return x.unbind(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Under create_graph the gradient has to depend on all of its parts.
        if not torch.is_grad_enabled() and _are_parts(grads):
            (tokens, heads, width), first = grads[0].shape, grads[0]
            shape = (tokens, len(grads), heads, width)
            return first.as_strided(shape, (first.stride(0), heads * width, width, 1), first.storage_offset())
        return torch.stack(grads, 1)


def room_for_gradients(parts: Sequence[Tensor], may_share: bool) -> list[Tensor]:
    """Allocate an uninitialised tensor for the gradient of each part [T, H, Dh].

    If the gradients may share memory and the last parts lie side by side in one tensor, so do their gradients; all
    other gradients are contiguous.
    """
    for first in range(len(parts) if may_share else 0):
        last = parts[first:]
        if len(last) > 1 and _are_parts(last):
            tokens, heads, width = last[0].shape
            together = last[0].new_empty(tokens, len(last), heads, width).unbind(1)
            return [part.new_empty(part.shape) for part in parts[:first]] + list(together)
    return [part.new_empty(part.shape) for part in parts]


def _are_parts(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors [T, H, Dh] lie side by side in one [T, n, H, Dh] and make up all of it."""
    first, (_, heads, width) = tensors[0], tensors[0].shape
    strides = (len(tensors) * heads * width, width, 1)
    return all(
        tensor.shape == first.shape
        and tensor.dtype == first.dtype
        and tensor.stride() == strides
        and tensor.data_ptr() == first.data_ptr() + i * heads * width * first.element_size()
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        for i, tensor in enumerate(tensors)
    )
