"""Registers and memory of blocks of threads that run a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.emulator.accesses import Copies
from benchmarks.emulator.groups import Products
from benchmarks.emulator.memory import POISON, WORDS, Array, Global
from benchmarks.emulator.parsing import Program
from benchmarks.emulator.scalars import Who
from benchmarks.emulator.shared import Shared
from benchmarks.emulator.warps import SHARED

_FILES = {"pred": np.dtype(np.uint8), "b16": WORDS[2], "b32": WORDS[4], "b64": WORDS[8]}
_AXES = {"x": 0, "y": 1, "z": 2}


class Machine:
    """Some blocks of a kernel; what nobody has written is NaN, or -1, or true.

    Args:
        program: the kernel.
        grid: blocks along each of three axes.
        blocks: number of each along these axes, [blocks, 3].
        shared_bytes: of one block.
        memory: the tensors.
        parameters: name -> value, as bits of its size.
    """

    def __init__(
        self,
        program: Program,
        grid: Sequence[int],
        blocks: Array,
        shared_bytes: int,
        memory: Global,
        parameters: Mapping[str, Any],
    ) -> None:
        self.program, self.grid, self.blocks = program, grid, blocks
        self.memory, self.parameters = memory, parameters
        self.shared = Shared(len(blocks), shared_bytes, program.threads)
        count = len(blocks) * program.threads
        self.everybody = np.arange(count)
        self.block, self.thread = np.divmod(self.everybody, program.threads)
        self.files: dict[str, Array] = {}
        for file, registers in program.registers.items():
            kind = _FILES[file]
            unwritten = np.full((registers, count * kind.itemsize), POISON, np.uint8)
            self.files[file] = unwritten.astype(bool) if file == "pred" else unwritten.view(kind)
        self.copies, self.products = Copies(self), Products(self)

    def special(self, name: str, who: Who) -> Array:
        """A special register, or where shared memory begins.

        Raises:
            ValueError: nobody here knows it.
        """
        threads = self.everybody[who]
        if name == SHARED:
            return np.zeros(len(threads), np.uint32)
        register, _, axis = name.rpartition(".")
        if register == "%ctaid":
            return self.blocks[self.block[threads], _AXES[axis]].astype(np.uint32)
        if register == "%nctaid":
            return np.full(len(threads), self.grid[_AXES[axis]], np.uint32)
        if name == "%tid.x":
            return self.thread[threads].astype(np.uint32)
        raise ValueError(f"{name} is not known")
