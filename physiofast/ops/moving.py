"""What dataclasses of tensors have in common: they are moved as one, compared by identity and printed briefly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

Contract = TypeVar("Contract")


class OfTensors:
    """What Rows, Packing and Plan have in common: they are moved as one, compared by identity and printed briefly."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """A copy with every tensor on a device; `to_device` also takes lists, tuples and dicts of such."""
        return self._of(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in pinned memory, which a `DataLoader` asks for with `pin_memory=True`."""
        return self._of(Tensor.pin_memory)

    def _of(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with every tensor changed; nothing asks for their values, which may be on their way."""
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is one
            value = getattr(self, field.name)
            if isinstance(value, OfTensors):
                value = value._of(change)
            fields[field.name] = change(value) if isinstance(value, Tensor) else value
        return unchecked(type(self), **fields)

    def __repr__(self) -> str:
        """Dtypes and shapes, for thousands of numbers say little."""
        found: Any = self
        parts = [f"{field.name}={_described(getattr(self, field.name))}" for field in dataclasses.fields(found)]
        return f"{type(self).__name__}({', '.join(parts)})"


def unchecked(contract: type[Contract], **fields: Any) -> Contract:
    """Make Rows or a Packing of all its fields without `__post_init__`, which reads tensors to check them."""
    if torch.compiler.is_compiling():
        return contract(**fields)
    made = object.__new__(contract)
    vars(made).update(fields)
    return made


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

    moved: Contract = torch.utils._pytree.tree_map(move, contract, is_leaf=lambda part: isinstance(part, OfTensors))
    return moved
