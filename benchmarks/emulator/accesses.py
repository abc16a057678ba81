"""Loads, stores and copies between global memory, shared memory and registers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.emulator.memory import WORDS, Array, FaultError, Global, Space
from benchmarks.emulator.parsing import Address, Instruction, Register
from benchmarks.emulator.scalars import KINDS, Run, Who, reader, writer
from benchmarks.emulator.warps import shared_addresses

_ACCESS = re.compile(
    r"(?:ld\.param|ld\.global|st\.global|(?:ld|st)\.shared(?:::cta)?)(?:\.v([248]))?\.([bus]\d+|f32|f64)"
)
"""Without what says how long a cache keeps it, and which other threads have to see it."""


class Copies:
    """`cp.async` that were started: their bytes are NaN until they are waited for."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._running: list[list[Array]] = []
        self._commits = np.zeros(len(machine.everybody), np.int64)

    def start(self, threads: Array, places: Array, words: list[Array]) -> None:
        """Now, of these threads."""
        poison = words[0].dtype.type(np.iinfo(words[0].dtype).max)
        self._machine.shared.store(threads, places, [np.full_like(word, poison) for word in words])
        self._running.append([threads, np.full(len(threads), -1), places, *words])

    def commit(self, who: Who) -> None:
        """What was started is a group."""
        for threads, commit, *_ in self._running:
            fresh = (commit == -1) & self._among(threads, who)
            commit[fresh] = self._commits[threads[fresh]]
        self._commits[who] += 1

    def wait(self, who: Who, most: int) -> None:
        """Until at most so many groups are not done."""
        left = []
        for one in self._running:
            threads, commit, places, *words = one
            due = (commit >= 0) & (commit < self._commits[threads] - most) & self._among(threads, who)
            if due.any():
                self._machine.shared.store(threads[due], places[due], [word[due] for word in words])
            if not due.all():
                left.append([array[~due] for array in one])
        self._running = left

    def _among(self, threads: Array, who: Who) -> Array:
        if isinstance(who, slice):
            return np.ones(len(threads), bool)
        return np.isin(threads, who)


def words_of(name: str) -> tuple[np.dtype[Any], int]:
    """Kind of one word, and how many there are: `ld.global.v2.b32`."""
    match = _ACCESS.fullmatch(name)
    assert match is not None, name
    return KINDS[match[2]], int(match[1] or 1)


def _vector(operand: Any) -> tuple[Any, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def places_of(operand: Any, is_shared: bool) -> Callable[[Any, Who], Array]:
    """Addresses in a block's shared memory, or places in the copies of the tensors."""
    assert isinstance(operand, Address), operand
    if is_shared:
        return shared_addresses(operand)
    assert isinstance(operand.base, Register)
    read = reader(operand.base, KINDS["b64"])
    return lambda machine, who: read(machine, who).astype(np.int64) - Global.BASE + operand.offset


def _located(operand: Any, is_shared: bool, size: int) -> Callable[[Any, Who], tuple[Space, Array]]:
    """The memory that an operand of so many bytes is in, and where in it."""
    address = places_of(operand, is_shared)
    if not is_shared:
        return lambda machine, who: (machine.memory, address(machine, who))
    return lambda machine, who: (
        machine.shared,
        machine.shared.places(machine.block[who], address(machine, who), size),
    )


def _load(instruction: Instruction) -> Run:
    kind, count = words_of(instruction.name)
    into, source = instruction.operands
    writes = [writer(one) for one in _vector(into)]
    if instruction.name.startswith("ld.param"):
        assert isinstance(source, Address) and isinstance(source.base, str)
        if source.offset or count > 1:
            raise ValueError(f"not known: {instruction.text}")
        name = source.base

        def parameter(machine: Any, who: Who) -> None:
            writes[0](machine, who, np.asarray(machine.parameters[name]).view(kind))

        return parameter
    located = _located(source, instruction.name.startswith("ld.shared"), kind.itemsize * count)

    def run(machine: Any, who: Who) -> None:
        space, places = located(machine, who)
        words = space.load(machine.everybody[who], places, kind.itemsize, count)
        for write, word in zip(writes, words, strict=True):
            write(machine, who, word.view(kind))

    return run


def _store(instruction: Instruction) -> Run:
    kind, count = words_of(instruction.name)
    target, values = instruction.operands
    located = _located(target, instruction.name.startswith("st.shared"), kind.itemsize * count)
    reads = [reader(one, WORDS[kind.itemsize]) for one in _vector(values)]

    def run(machine: Any, who: Who) -> None:
        space, places = located(machine, who)
        words = [np.broadcast_to(read(machine, who), places.shape) for read in reads]
        space.store(machine.everybody[who], places, words)

    return run


def _copy(instruction: Instruction) -> Run:
    """`cp.async`: the rest of what is not there is zero."""
    target, source, size_text, *there = instruction.operands
    size = int(size_text.text, 0)  # type: ignore[union-attr]
    into, out_of = _located(target, True, size), _located(source, False, size)
    read_there = reader(there[0], KINDS["u32"]) if there else None
    width = min(size, 8)

    def run(machine: Any, who: Who) -> None:
        threads = machine.everybody[who]
        (shared, places), (memory, begins) = into(machine, who), out_of(machine, who)
        is_there = np.ones(len(threads), bool)
        if read_there is not None:
            have = np.broadcast_to(read_there(machine, who), threads.shape)
            if np.any((have != 0) & (have != size)):
                raise FaultError("cp.async of a part, which nobody here knows")
            is_there = have != 0
        words = [np.zeros(len(threads), WORDS[width]) for _ in range(size // width)]
        found = memory.load(threads[is_there], begins[is_there], width, len(words))
        for word, there in zip(words, found, strict=True):
            word[is_there] = there
        shared.check(places, size)
        machine.copies.start(threads, places, words)

    return run


def compiled(instruction: Instruction) -> Run | None:
    """What it does; None where it is none of these."""
    name = instruction.name
    if _ACCESS.fullmatch(name):
        return _load(instruction) if name.startswith("ld.") else _store(instruction)
    if name == "cp.async.commit_group":
        return lambda machine, who: machine.copies.commit(who)
    if name == "cp.async.wait_group":
        most = int(instruction.operands[0].text)  # type: ignore[union-attr]
        return lambda machine, who: machine.copies.wait(who, most)
    if name in ("cp.async.ca.shared.global", "cp.async.cg.shared.global"):
        return _copy(instruction)
    return None
