"""What a kernel asks of a GPU: instructions, sectors of global memory, cycles of shared memory, multiplications."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from benchmarks.emulator.accesses import places_of, words_of
from benchmarks.emulator.machine import Machine
from benchmarks.emulator.memory import Array
from benchmarks.emulator.parsing import Instruction, Literal
from benchmarks.emulator.scalars import Who
from benchmarks.emulator.warps import WARP

_SECTOR, _BANKS, _WORD = 32, 32, 4


@dataclasses.dataclass
class Counts:
    """Sums over all warps of one start of a kernel."""

    instructions: int = 0
    """Of PTX, by warps; machine code has about as many."""
    sectors: int = 0
    """Of 32 bytes of global memory, each as often as an instruction of a warp touches it."""
    least_sectors: int = 0
    """The same if the bytes of a warp lay side by side and began with a sector."""
    cycles: int = 0
    """Of shared memory, which has a word of each of 32 banks in one; without what `wgmma` reads."""
    least_cycles: int = 0
    """The same if no two words that a warp needs were in one bank."""
    multiplications: int = 0
    """Of tensor cores, each with its addition."""

    def add(self, instruction: Instruction, machine: Machine, who: Who) -> None:
        """One instruction of these threads."""
        threads, name = machine.everybody[who], instruction.name
        warps = len(np.unique(threads // WARP))
        self.instructions += warps
        if shape := re.search(r"mma.*\.m(\d+)n(\d+)k(\d+)\.", name):
            m, n, k = map(int, shape.groups())
            self.multiplications += m * n * k * warps // (4 if name.startswith("wgmma") else 1)
        elif name.startswith(("ldmatrix", "stmatrix")):
            places = places_of(_address(instruction), is_shared=True)(machine, who)
            matrices = int(re.search(r"\.x(\d)", name)[1])  # type: ignore[index]
            for rows in places.reshape(-1, WARP)[:, : 8 * matrices].reshape(-1, 8):
                self._add_cycles(rows, 16)
        elif name.startswith(("ld.shared", "st.shared", "ld.global", "st.global")):
            kind, count = words_of(name)
            is_shared = name[3:].startswith("shared")
            places = places_of(_address(instruction), is_shared)(machine, who)
            (self._add_shared if is_shared else self._add_sectors)(threads, places, kind.itemsize * count)
        elif name.startswith(("cp.async.ca", "cp.async.cg")):
            into, out_of, size, *_ = instruction.operands
            assert isinstance(size, Literal)
            for places, add in ((into, self._add_shared), (out_of, self._add_sectors)):
                add(threads, places_of(places, places is into)(machine, who), int(size.text, 0))

    def _add_shared(self, threads: Array, places: Array, size: int) -> None:
        """A warp's words of 16 bytes come in four turns, of 8 in two."""
        turn = threads // {16: 8, 8: 16}.get(size, WARP)
        for number in np.unique(turn):
            self._add_cycles(places[turn == number], size)

    def _add_cycles(self, places: Array, size: int) -> None:
        words = np.unique(places[:, None] // _WORD + np.arange(max(size // _WORD, 1)))
        self.cycles += int(np.bincount(words % _BANKS).max())
        self.least_cycles += -(-len(words) // _BANKS)

    def _add_sectors(self, threads: Array, places: Array, size: int) -> None:
        warp = threads // WARP
        self.sectors += len(np.unique((warp << 48) + places // _SECTOR))
        self.least_sectors += int((-(-np.unique(warp, return_counts=True)[1] * size // _SECTOR)).sum())


def _address(instruction: Instruction) -> Any:
    """Of a load its second operand, of a store its first."""
    return instruction.operands[instruction.name.startswith("ld")]
