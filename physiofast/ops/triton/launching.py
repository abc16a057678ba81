"""Starts kernels; or writes down what would be started, for compilation without a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from physiofast.ops.triton.table import Launch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """One start of a kernel."""

    kernel: Any
    """The jitted function."""
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    """Positional arguments: tensors, ints and floats."""
    constants: dict[str, Any]
    """Compile-time constants by name."""
    launch: Launch


_written: list[Started] | None = None


@contextlib.contextmanager
def written_down() -> Iterator[list[Started]]:
    """Within the block no kernel runs: each start is appended to the list. Tensors may be on any device."""
    global _written
    before, _written = _written, []
    try:
        yield _written
    finally:
        _written = before


def start(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], launch: Launch, **constants: Any) -> None:
    """Start a kernel on the device of its first argument, on that device's current stream.

    Args:
        kernel: the jitted function.
        grid: programs along each axis; nothing is started where one is 0.
        args: its arguments up to the compile-time constants.
        launch: blocks, which are constants too, warps and stages.
        constants: the other compile-time constants.
    """
    constants |= launch.blocks
    if _written is not None:
        _written.append(Started(kernel=kernel, grid=grid, args=args, constants=constants, launch=launch))
        return
    if 0 in grid:
        return
    with _device(args[0]):
        options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
        kernel[grid](*args, **constants, **options)


def _device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
