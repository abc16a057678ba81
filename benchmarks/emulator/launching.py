"""Kernels of the package, compiled as for a GPU and run on the tensors of a CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import codegen
from benchmarks.emulator.counting import Counts
from benchmarks.emulator.machine import Machine
from benchmarks.emulator.memory import Array, Global
from benchmarks.emulator.parsing import Program, parse
from benchmarks.emulator.schedule import Step, ready, run
from physiofast.ops import triton as kernels
from physiofast.ops.triton.launching import Kernel

_OF_TRITON = 2
"""Pointers to memory of Triton's own, of which these kernels have none."""
THREADS = 1 << 13
"""That run together; more take memory and gain little."""


class Compiled(NamedTuple):
    """For arguments of one kind."""

    program: Program
    code: list[Step]
    shared_bytes: int


@dataclasses.dataclass
class Emulation:
    """How kernels run, and what ran."""

    capability: int = 90
    """80 or 90: compute capability times ten."""
    order: random.Random | None = None
    """Of blocks and warps; without, warps go together and blocks from the first on."""
    counts: bool = False
    """Whether to count."""
    started: list[tuple[str, int, Counts]] = dataclasses.field(default_factory=list)
    """Name, blocks and what was counted, of each start."""
    compiled: dict[str, Compiled] = dataclasses.field(default_factory=dict)

    def start(self, kernel: Kernel, grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
        """As Triton would on a GPU.

        Raises:
            FaultError: what a GPU would not take, or may answer with anything.
        """
        program, code, shared_bytes = self._compile(kernel, args)
        memory = Global([arg for arg in args if isinstance(arg, Tensor)])
        parameters = _parameters(program, args, memory)
        axes = (*grid, 1, 1)[:3]
        blocks = blocks_of(axes, self.order)
        counts = Counts()
        self.started.append((program.name, len(blocks), counts))
        together = max(THREADS // program.threads, 1)
        with np.errstate(all="ignore"):
            for begin in range(0, len(blocks), together):
                some = blocks[begin : begin + together]
                machine = Machine(program, axes, some, shared_bytes, memory, parameters)
                run(machine, code, self.order, counts.add if self.counts else None)
        memory.copy_back()

    def _compile(self, kernel: Kernel, args: tuple[Any, ...]) -> Compiled:
        source = codegen.source(kernel.function, args, kernel.constants, lambda tensor: tensor.data_ptr() % 16 == 0)
        key = f"{source.hash()} {kernel.launch.options}"
        if key not in self.compiled:
            made = codegen.compiled(source, kernel.launch, self.capability)
            program = parse(made.asm["ptx"])
            self.compiled[key] = Compiled(program, ready(program), made.metadata.shared)
            gc.freeze()  # a program stays: no collection of garbage looks at its many objects again
        return self.compiled[key]


def blocks_of(axes: tuple[int, ...], order: random.Random | None) -> Array:
    """Number of each block along each axis, [blocks, axes]; without an order, from the first on."""
    blocks = np.stack(np.meshgrid(*map(np.arange, axes), indexing="ij"), axis=-1).reshape(-1, len(axes))
    return blocks if order is None else blocks[order.sample(range(len(blocks)), len(blocks))]


def _parameters(program: Program, args: tuple[Any, ...], memory: Global) -> Mapping[str, Any]:
    """By name, as bits; ints of 1 are compiled in, and behind the others Triton has two pointers to nothing."""
    given = [arg for arg in args if not (isinstance(arg, int) and arg == 1)]
    if len(program.parameters) != len(given) + _OF_TRITON:
        raise ValueError(f"{program.name} has {len(program.parameters)} parameters, for {len(given)} arguments")
    found: dict[str, Any] = {}
    for (name, size), arg in itertools.zip_longest(program.parameters.items(), given, fillvalue=0):
        value = memory.pointer(arg) if isinstance(arg, Tensor) else arg
        if isinstance(value, float):
            found[name] = np.float32(value).view(np.uint32)
        else:
            found[name] = np.dtype(f"u{size}").type(value & (1 << 8 * size) - 1)
    return found


@contextlib.contextmanager
def emulated(emulation: Emulation) -> Iterator[Emulation]:
    """Within the block, kernels that ops start on a CPU's tensors run as they are compiled for a GPU."""
    refusal, by_triton = kernels.refusal, Kernel.start_by_triton

    def nothing(device: torch.device | str) -> None:
        return None

    def start(kernel: Kernel, key: tuple[Any, ...], grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
        emulation.start(kernel, grid, args)

    kernels.refusal, Kernel.start_by_triton = nothing, start  # type: ignore[assignment, method-assign]
    try:
        yield emulation
    finally:
        kernels.refusal, Kernel.start_by_triton = refusal, by_triton  # type: ignore[method-assign]
