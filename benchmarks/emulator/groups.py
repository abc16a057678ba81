"""Products that the 128 threads of a warp group run together, and that go on while the threads do: `wgmma`.

How a 64-bit descriptor says where a matrix lies in shared memory is in the PTX ISA, under "Asynchronous Warpgroup Level
Matrix Instructions".
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.emulator import scalars
from benchmarks.emulator.memory import Array, FaultError
from benchmarks.emulator.parsing import Instruction, Literal, Operand, Program, Register, registers_in
from benchmarks.emulator.scalars import KINDS, Run, Who, reader
from benchmarks.emulator.warps import U32, WARP, fragment_a, fragment_c, product, whole

GROUP = 128
ROWS = 64
_SWIZZLES = {0: 16, 1: 128, 2: 64, 3: 32}
"""Bits 62 and 63 of a descriptor -> bytes of a row of the pattern; of 16 there is none."""
_PRODUCT = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(\w+)\.\3")
_DEPTHS = {"bf16": 16, "f16": 16, "tf32": 8}
"""Numbers -> how many are summed over."""
_ZERO, _ONE = Literal("0"), Literal("1")
_WAITED = np.uint32(0x7FFFFFFF)
"""NaN, what a register has that a product is to fill."""
_UNUSED, _OTHERWISE = 0, -1
"""What a register was used for since a fence, where it is not the sum of a product."""


def compiled(instruction: Instruction) -> Run | None:
    """What it does; None where it is none of these."""
    name = instruction.name
    if name.startswith("wgmma.mma_async."):
        return _start(instruction)
    if name == "wgmma.commit_group.sync.aligned":
        return lambda machine, who: machine.products.commit(who)
    if name == "wgmma.wait_group.sync.aligned":
        (most,) = instruction.operands
        assert isinstance(most, Literal)
        count = int(most.text)
        return lambda machine, who: machine.products.wait(who, count)
    if name == "wgmma.fence.sync.aligned":
        return lambda machine, who: machine.products.fence(who)
    if name == "fence.proxy.async.shared::cta":
        return lambda machine, who: machine.shared.fence(machine.everybody[who])
    return None


def registers(program: Program) -> set[Register]:
    """Those that products add to or have a left matrix in."""
    products = [one for one in program.instructions if one.name.startswith("wgmma.mma_async.")]
    return {register for one in products for matrix in one.operands[:2] for register in registers_in(matrix)}


@functools.cache
def offsets(rows: int, depth: int, width: int, swizzle: int, leading: int, stride: int, by_depth: bool) -> Array:
    """Bytes from a matrix' begin to each element, [rows, depth], before bits are swizzled.

    Args:
        rows: of the left matrix, or columns of the right one: what is not summed over.
        depth: what is summed over.
        width: bytes of an element.
        swizzle: bytes of a row of the pattern.
        leading: the descriptor's leading dimension byte offset.
        stride: its stride byte offset.
        by_depth: whether elements along the sum lie side by side ("K-major").
    """
    row, k = np.arange(rows)[:, None], np.arange(depth)[None, :]
    byte = (k if by_depth else row) * width
    if by_depth:
        along = byte % 16 + byte // 16 * leading if swizzle == 16 else byte
        return row % 8 * swizzle + row // 8 * stride + along  # type: ignore[no-any-return]
    if swizzle == 16:
        return byte % 16 + byte // 16 * stride + k % 8 * 16 + k // 8 * leading  # type: ignore[no-any-return]
    return byte % swizzle + byte // swizzle * leading + k % 8 * swizzle + k // 8 * stride  # type: ignore[no-any-return]


class Described:
    """Matrices in shared memory, one of each warp group.

    Args:
        machine: whose shared memory.
        threads: of the groups, [groups, 128].
        descriptors: of each thread, [groups, 128].
        shape: of each matrix, rows and depth.
        kind: of its numbers.
        by_depth: whether those along the depth lie side by side.
    """

    def __init__(
        self, machine: Any, threads: Array, descriptors: Array, shape: tuple[int, int], kind: str, by_depth: bool
    ) -> None:
        if np.any(descriptors != descriptors[:, :1]):
            raise FaultError("threads of a warp group describe different matrices")
        self._shared, self._threads, self._kind = machine.shared, threads, kind
        self._width = 4 if kind == "tf32" else 2
        self._places = np.empty((len(threads), *shape), np.int64)
        blocks = machine.block[threads[:, 0]]
        for group, descriptor in enumerate(descriptors[:, 0].tolist()):
            begin, leading, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
            swizzle = _SWIZZLES[descriptor >> 62]
            if descriptor >> 49 & 7:
                raise FaultError("a descriptor with a base offset, which is not known here")
            local = begin + offsets(*shape, self._width, swizzle, leading, stride, by_depth)
            local ^= (local >> 7 & swizzle // 16 - 1) << 4
            self._places[group] = self._shared.places(blocks[group], local, self._width)
        in_line = self._places if by_depth else self._places.swapaxes(1, 2)
        self._lines = in_line[..., :: 16 // self._width].reshape(len(threads), -1)
        """Where 16 bytes lie side by side."""
        self._shared.read_by_products(threads, self._lines, 16)

    def numbers(self, groups: Array) -> Array:
        """float32, [groups, rows, depth], as shared memory is now."""
        self._shared.read(self._shared.block_of(self._threads[groups, :1]), self._lines[groups], 16)
        words = self._shared.views[self._width][self._places[groups] // self._width]
        return scalars.numbers(words, self._kind)


@dataclasses.dataclass
class Running:
    """A `wgmma.mma_async` of some groups."""

    registers: list[Register]
    left_registers: list[Register]
    """Of the left matrix, where it has some."""
    shape: int
    """A number for the sizes of its matrices."""
    threads: Array
    """[groups, 128]."""
    left: Callable[[Array], Array]
    """Groups -> [groups, 64, depth], read when it is called."""
    right: Callable[[Array], Array]
    """Groups -> [groups, columns, depth]."""
    before: Array
    """[groups, 64, columns], what it adds to where it `goes_on`."""
    goes_on: Array
    """[groups]."""
    commit: Array
    """[groups], which commit it is part of; -1 before any."""
    todo: Array
    """[groups], whether nobody has waited for it."""

    @property
    def groups(self) -> Array:
        """Their numbers."""
        return self.threads[:, 0] // GROUP


class Products:
    """Those of a machine that were started and not waited for, in order.

    Their registers, of sums and of left matrices, have to be fenced (`wgmma.fence`) from what other instructions did
    with them, and before the first product; between sums of one shape no fence is needed.

    As late as they may, they read shared memory and the left matrix' registers, and their own have what they give, when
    they are waited for. Until then the registers are NaN, and another product into them goes on from what this one has.
    """

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._running: list[Running] = []
        self._group = machine.everybody // GROUP
        self._commits = np.zeros(self._group[-1] + 1, np.int64)
        self._uses = np.full((machine.program.registers["b32"], self._group[-1] + 1), _OTHERWISE, np.int32)
        """What each register of each group was used for since the last fence; of sums, their products' shape."""

    def use(self, registers: Sequence[Register], who: Who) -> None:
        """By another instruction."""
        for register in registers:
            self._uses[register.number, self._group[who]] = _OTHERWISE

    def fence(self, who: Who) -> None:
        """Products that follow come after what was done with registers."""
        self._uses[:, whole(self._machine, who, GROUP)[:, 0] // GROUP] = _UNUSED

    def start(self, one: Running) -> None:
        """Now."""
        for other in self._running:
            shares = np.isin(one.groups, other.groups[other.todo]).any()
            others = set() if other.registers == one.registers else set(one.registers)
            if shares and set(other.registers) & others.union(one.left_registers):
                raise FaultError("a product has registers that another one, which is not done, adds to")
        into, left = (
            np.ix_([register.number for register in registers], one.groups)
            for registers in (one.registers, one.left_registers)
        )
        if np.any((self._uses[into] != _UNUSED) & (self._uses[into] != one.shape)) or np.any(self._uses[left]):
            raise FaultError("a product has registers that were used since the last wgmma.fence, or there was none")
        self._uses[into] = one.shape
        self._running.append(one)
        for register in one.registers:
            self._machine.files[register.file][register.number][one.threads] = _WAITED

    def commit(self, who: Who) -> None:
        """What was started is one group of products."""
        groups = whole(self._machine, who, GROUP)[:, 0] // GROUP
        for one in self._running:
            fresh = one.todo & (one.commit < 0) & np.isin(one.groups, groups)
            one.commit[fresh] = self._commits[one.groups[fresh]]
        self._commits[groups] += 1

    def wait(self, who: Who, most: int) -> None:
        """Until at most so many groups of products are not done."""
        groups = whole(self._machine, who, GROUP)[:, 0] // GROUP
        for place, one in enumerate(self._running):
            due = one.todo & np.isin(one.groups, groups) & (one.commit >= 0)
            due &= one.commit < self._commits[one.groups] - most
            if due.any():
                self._finish(place, np.flatnonzero(due))
        self._running = [one for one in self._running if one.todo.any()]

    def _finish(self, place: int, chosen: Array) -> None:
        """These rows of one: into the registers, or into what a later one adds to."""
        one = self._running[place]
        before = np.where(one.goes_on[chosen, None, None], one.before[chosen], np.float32(0))
        found = product(one.left(chosen), one.right(chosen).swapaxes(1, 2), before)
        one.todo[chosen] = False
        left = dict(zip(one.groups[chosen].tolist(), range(len(chosen)), strict=True))
        for other in self._running[place + 1 :]:
            if other.registers == one.registers:
                for row, group in enumerate(other.groups.tolist()):
                    if other.todo[row] and group in left:
                        other.before[row] = found[left.pop(group)]
        if left:
            rows = np.array(list(left.values()))
            self._write(one, one.threads[chosen[rows]], found[rows])

    def read(self, registers: list[Register], threads: Array) -> Array:
        """[groups, 64, columns] of what the registers have."""
        words = np.stack([self._machine.files[one.file][one.number][threads] for one in registers], axis=-1)
        rows, columns = fragment_c(len(registers))
        found = np.empty((len(threads), 4, 16, 2 * len(registers)), np.float32)
        found[:, :, rows, columns] = words.reshape(len(threads), 4, WARP, -1).view(np.float32)
        return found.reshape(len(threads), ROWS, -1)

    def _write(self, one: Running, threads: Array, found: Array) -> None:
        rows, columns = fragment_c(len(one.registers))
        words = found.reshape(len(threads), 4, 16, -1)[:, :, rows, columns].reshape(*threads.shape, -1).view(np.uint32)
        for place, register in enumerate(one.registers):
            self._machine.files[register.file][register.number][threads] = words[..., place]


def _start(instruction: Instruction) -> Run:
    match = _PRODUCT.fullmatch(instruction.name)
    if match is None or _DEPTHS.get(match[3]) != int(match[2]):
        raise ValueError(f"not known: {instruction.text}")
    columns, depth, kind = int(match[1]), int(match[2]), match[3]
    into, left, right, goes_on, *flags = instruction.operands
    signs, sides = flags[:2], flags[2:]
    # Matrices in memory state how they lie, but those of tf32, which can lie in one way only.
    told = 0 if kind == "tf32" else 1 if isinstance(left, tuple) else 2
    if signs != [_ONE, _ONE] or len(sides) != told or not set(sides) <= {_ZERO, _ONE}:
        raise ValueError(f"not known: {instruction.text}")
    by_depth = [side == _ZERO for side in sides] or [True]
    matrix = _matrix(left, ROWS, depth, kind, by_depth[0]), _matrix(right, columns, depth, kind, by_depth[-1])
    read_flag = reader(goes_on, KINDS["pred"])
    assert isinstance(into, tuple)
    registers = registers_in(into)
    left_registers = registers_in(left) if isinstance(left, tuple) else []
    shape = columns * 16 + depth

    def run(machine: Any, who: Who) -> None:
        threads = whole(machine, who, GROUP)
        a, b = (make(machine, who, threads) for make in matrix)
        flags = np.broadcast_to(read_flag(machine, who), threads.size).reshape(threads.shape)
        if np.any(flags != flags[:, :1]):
            raise FaultError("threads of a warp group do not agree whether a product goes on")
        before = machine.products.read(registers, threads)
        commit, todo = np.full(len(threads), -1, np.int64), np.ones(len(threads), bool)
        machine.products.start(
            Running(registers, left_registers, shape, threads, a, b, before, flags[:, 0], commit, todo)
        )

    return run


def _matrix(operand: Operand, rows: int, depth: int, kind: str, by_depth: bool) -> Callable[..., Callable[..., Array]]:
    """What a matrix is read by, as late as it may."""
    if isinstance(operand, tuple):
        reads = [reader(one, U32) for one in operand]

        def fragment(machine: Any, who: Who, threads: Array) -> Callable[[Array], Array]:
            def numbers(groups: Array) -> Array:
                chosen = threads[groups].ravel()
                words = [np.broadcast_to(read(machine, chosen), chosen.size).reshape(-1, WARP) for read in reads]
                return fragment_a(words, kind).reshape(len(groups), rows, depth)

            return numbers

        return fragment
    read = reader(operand, KINDS["b64"])

    def described(machine: Any, who: Who, threads: Array) -> Callable[[Array], Array]:
        descriptors = np.broadcast_to(read(machine, who), threads.size).reshape(threads.shape)
        return Described(machine, threads, descriptors, (rows, depth), kind, by_depth).numbers

    return described
