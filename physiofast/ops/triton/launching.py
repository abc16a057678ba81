"""Starts kernels; or writes down what would be started, for compilation without a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver

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


class Kernel:
    """A jitted function with all that it is compiled for but its arguments.

    Triton binds, specialises and hashes the arguments of every call anew, which takes longer than many of these kernels
    run. What it compiled is kept here by what it specialises on, and started as it starts it, on the current stream.
    A knob of Triton's that changes what is compiled counts for kernels that were not started before.

    Args:
        function: the jitted function.
        launch: blocks, which are constants too, warps and stages.
        constants: the other compile-time constants.
    """

    def __init__(self, function: Any, launch: Launch, **constants: Any) -> None:
        self.function, self.launch, self.blocks = function, launch, launch.blocks
        self.constants = constants | launch.blocks
        self._options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
        self._in_order = tuple(self.constants[name] for name in function.arg_names if name in self.constants)
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def start(
        self, grid: tuple[int, ...], tensors: Sequence[Tensor], sizes: Sequence[int] = (), *scalars: float
    ) -> None:
        """Start it on the device of its first tensor, on that device's current stream.

        Args:
            grid: programs along each axis; nothing is started where one is 0.
            tensors: its first arguments.
            sizes: the ints after them.
            scalars: the floats after these.
        """
        if _written is not None:
            args = (*tensors, *sizes, *scalars)
            launch, constants = self.launch, self.constants
            _written.append(Started(kernel=self.function, grid=grid, args=args, constants=constants, launch=launch))
            return
        if 0 in grid:
            return
        device = tensors[0].get_device()  # -1 of a CPU
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self.start(grid, tensors, sizes, *scalars)
        dtypes = [tensor.dtype for tensor in tensors]
        aligned = [tensor.data_ptr() % 16 == 0 for tensor in tensors]
        key = (device, *dtypes, *aligned, *map(size_class, sizes))
        compiled = self._compiled.get(key)
        if compiled is None or self._is_hooked():
            compiled = self.function[grid](*tensors, *sizes, *scalars, **self.constants, **self._options)
            if _KEEPS and compiled is not None:  # the interpreter compiles nothing
                self._compiled[key] = compiled
            return
        stream = driver.active.get_current_stream(device)
        x, y, z = (*grid, 1, 1)[:3]
        handles = (stream, compiled.function, compiled.packed_metadata, None, None, None)  # no metadata and hooks
        compiled.run(x, y, z, *handles, *tensors, *sizes, *scalars, *self._in_order)

    def _is_hooked(self) -> bool:
        """Whether somebody, such as a profiler, wants to be called when a kernel is started; then Triton does that."""
        first, last = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        return bool(getattr(first, "calls", first) or getattr(last, "calls", last) or self.function.pre_run_hooks)


@functools.lru_cache(maxsize=1 << 14)
def size_class(size: int) -> str:
    """What Triton compiles an int for: 1 is a constant, multiples of 16 are known to be, others have a width."""
    if size == 1:
        return "1"
    width = "i32" if -(1 << 31) <= size < 1 << 31 else "i64"
    return width if size % 16 else f"{width}, 16 divides it"


_KEEPS = (3, 6) <= tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 9)
"""Whether this Triton's compiled kernels are started by what `Kernel.start` calls; others go through its own call."""
