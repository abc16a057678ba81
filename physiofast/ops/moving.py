"""What dataclasses of tensors have in common: they are moved as one, compared by identity and printed briefly."""

from __future__ import annotations

import dataclasses
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

Contract = TypeVar("Contract")


class OfTensors:
    """What Rows, Packing and Plan have in common: they are moved as one, compared by identity and printed briefly."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """A copy with every tensor on a device; `to_device` also takes lists, tuples and dicts of such."""
        return to_device(self, device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """A copy in pinned memory, which a `DataLoader` asks for with `pin_memory=True`."""
        pinned: Self = torch.utils._pytree.tree_map_only(Tensor, Tensor.pin_memory, self)
        return pinned

    def __repr__(self) -> str:
        """Dtypes and shapes, for thousands of numbers say little."""
        found: Any = self
        parts = [f"{field.name}={_described(getattr(self, field.name))}" for field in dataclasses.fields(found)]
        return f"{type(self).__name__}({', '.join(parts)})"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)


def to_device(contract: Contract, device: torch.device | str, *, non_blocking: bool = False) -> Contract:
    """Return a copy of Rows, Packing or Plan with every tensor on `device`.

    Lists, tuples and dicts of these are copied too, and `windows.Batch`, which keeps on the host what is needed there.

    Raises:
        TypeError: it holds tensors but is none of these; its tensors would stay where they are.
    """

    def move(leaf: Any) -> Any:
        if hasattr(leaf, "to"):
            return leaf.to(device, non_blocking=non_blocking)
        if any(isinstance(held, Tensor) for held in getattr(leaf, "__dict__", {}).values()):
            kind = type(leaf).__name__
            raise TypeError(
                f"to_device moves Rows, Packing, Plan, tensors and what has a `to`; found a {kind} of tensors"
            )
        return leaf

    moved: Contract = torch.utils._pytree.tree_map(move, contract)
    return moved
