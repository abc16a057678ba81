"""Instructions that the 32 threads of a warp run together: exchanges and products of matrices.

Which thread has which element is in the PTX ISA (`mma.m16n8k16`, `mma.m16n8k8`, `ldmatrix`, `stmatrix`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.emulator import scalars
from benchmarks.emulator.memory import Array, FaultError
from benchmarks.emulator.parsing import Address, Instruction, Literal
from benchmarks.emulator.scalars import KINDS, Run, Who, reader, writer

WARP = 32
SHARED = "global_smem"
"""Symbol of a block's shared memory, which begins at 0."""
_LANE = np.arange(WARP)
_ROW, _PAIR = _LANE // 4, _LANE % 4
U32 = KINDS["b32"]


def compiled(instruction: Instruction) -> Run | None:
    """What it does; None where it is none of these."""
    for pattern, make in _MAKERS.items():
        if re.fullmatch(pattern, instruction.name):
            return make(instruction)
    return None


def whole(machine: Any, who: Who, count: int = WARP) -> Array:
    """Numbers of the threads, [*, count]; `FaultError` where some of a warp, or of as many as `count`, are missing."""
    threads = machine.everybody[who]
    if len(threads) % count == 0:
        rows = threads.reshape(-1, count)
        if np.all(rows[:, 0] % count == 0) and np.all(rows[:, -1] - rows[:, 0] == count - 1):
            return rows
    raise FaultError(f"not all of {count} threads are at an instruction that they run together")


def _shuffle(instruction: Instruction) -> Run:
    mode = instruction.name.split(".")[2]
    into, value, other, bounds, members = instruction.operands
    write, read, by = writer(into), reader(value, U32), reader(other, U32)
    if (bounds, members) != (Literal("0" if mode == "up" else "31"), Literal("-1")):  # a whole warp
        raise ValueError(f"not known: {instruction.text}")

    def run(machine: Any, who: Who) -> None:
        threads = whole(machine, who)
        values = read(machine, who).reshape(-1, WARP)
        step = np.broadcast_to(by(machine, who), values.size).reshape(-1, WARP).astype(np.int64) & 31
        source = {"bfly": _LANE ^ step, "up": _LANE - step, "down": _LANE + step, "idx": step}[mode]
        source = np.where((source < 0) | (source > 31), _LANE, source)
        write(machine, who, np.take_along_axis(values, source, axis=1).reshape(threads.size))

    return run


def _reduce(instruction: Instruction) -> Run:
    *_, how, kind = instruction.name.split(".")
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}[how]
    write, read = writer(instruction.operands[0]), reader(instruction.operands[1], KINDS[kind])
    members = reader(instruction.operands[2], U32)

    def run(machine: Any, who: Who) -> None:
        whole(machine, who)
        if np.any(members(machine, who) != 0xFFFFFFFF):
            raise FaultError("redux.sync of some threads of a warp")
        values = read(machine, who).reshape(-1, WARP)
        found = function.reduce(values, axis=1, keepdims=True, dtype=values.dtype)
        write(machine, who, np.broadcast_to(found, values.shape).ravel())

    return run


def _meet(instruction: Instruction) -> Run:
    if instruction.operands != (Literal("-1"),):
        raise ValueError(f"not known: {instruction.text}")

    def run(machine: Any, who: Who) -> None:
        machine.shared.meet_in_warps(whole(machine, who))

    return run


def _rows(machine: Any, who: Who, address: Callable[[Any, Who], Array], matrices: int) -> tuple[Array, Array]:
    """Which warps these are, [warps, matrices, 8], and where in shared memory each of 8 rows of matrices begins."""
    threads = whole(machine, who)
    addresses = address(machine, who).reshape(-1, WARP)[:, : 8 * matrices]
    blocks = np.repeat(machine.block[threads[:, 0]], 8 * matrices)
    places = machine.shared.places(blocks, addresses.ravel(), 16).reshape(-1, matrices, 8)
    return np.broadcast_to(machine.shared.warp_of(threads[:, :1, None]), places.shape), places


def _load_matrices(instruction: Instruction) -> Run:
    into, source = instruction.operands
    assert isinstance(into, tuple) and isinstance(source, Address)
    writes, address = [writer(one) for one in into], shared_addresses(source)
    is_transposed = ".trans" in instruction.name

    def run(machine: Any, who: Who) -> None:
        found = np.stack(machine.shared.load(*_rows(machine, who, address, len(writes)), 2, 8), axis=-1)
        found = np.ascontiguousarray(found.swapaxes(-1, -2)) if is_transposed else found
        words = found.view(np.uint32)
        for matrix, write in enumerate(writes):
            write(machine, who, words[:, matrix].reshape(-1))

    return run


def _store_matrices(instruction: Instruction) -> Run:
    target, values = instruction.operands
    assert isinstance(values, tuple) and isinstance(target, Address)
    reads, address = [reader(one, U32) for one in values], shared_addresses(target)
    is_transposed = ".trans" in instruction.name

    def run(machine: Any, who: Who) -> None:
        warps, places = _rows(machine, who, address, len(reads))
        for matrix, read in enumerate(reads):
            words = np.ascontiguousarray(read(machine, who)).reshape(-1, 8, 4)
            halves = words.view(np.uint16)
            columns = np.moveaxis(halves, -2 if is_transposed else -1, 0)
            machine.shared.store(warps[:, matrix], places[:, matrix], list(columns))

    return run


def shared_addresses(operand: Address) -> Callable[[Any, Who], Array]:
    """32-bit addresses in a block's shared memory."""
    if isinstance(operand.base, str):
        if operand.base != SHARED:
            raise ValueError(f"not known: {operand.base}, another symbol than {SHARED}")
        return lambda machine, who: np.full(len(machine.everybody[who]), operand.offset, np.int64)
    read = reader(operand.base, U32)
    return lambda machine, who: read(machine, who).astype(np.int64) + operand.offset


def numbers_in(words: list[Array], kind: str) -> Array:
    """Registers of a fragment -> float32 numbers, [*, registers, numbers in one]."""
    stacked = np.stack(words, axis=-1)[..., None]
    return scalars.numbers(stacked if kind == "tf32" else stacked.view(np.uint16), kind)


def fragment_a(words: list[Array], kind: str) -> Array:
    """Four registers of each thread, [warps, 32] -> 16 rows, [warps, 16, 16] or, of tf32, [warps, 16, 8]."""
    numbers = numbers_in(words, kind)
    wide = numbers.shape[-1]
    found = np.empty((len(numbers), 16, 8 * wide), np.float32)
    for register in range(4):
        rows, columns = _ROW + 8 * (register % 2), 4 * wide * (register // 2) + wide * _PAIR
        for i in range(wide):
            found[:, rows, columns + i] = numbers[:, :, register, i]
    return found


def _fragment_b(words: list[Array], kind: str) -> Array:
    """Two registers of each thread -> [warps, 16 or 8, 8 columns]."""
    numbers = numbers_in(words, kind)
    wide = numbers.shape[-1]
    found = np.empty((len(numbers), 8 * wide, 8), np.float32)
    for register in range(2):
        for i in range(wide):
            found[:, 4 * wide * register + wide * _PAIR + i, _ROW] = numbers[:, :, register, i]
    return found


def fragment_c(registers: int) -> tuple[Array, Array]:
    """Row and column of each register of each thread of a warp, [32, registers]."""
    number = np.arange(registers)
    rows = _ROW[:, None] + 8 * (number // 2 % 2)
    return rows, 8 * (number // 4) + 2 * _PAIR[:, None] + number % 2


def product(a: Array, b: Array, c: Array) -> Array:
    """As tensor cores have it but for their rounding: exact products, one sum."""
    return (np.matmul(a.astype(np.float64), b.astype(np.float64)) + c).astype(np.float32)


def _mma(instruction: Instruction) -> Run:
    kind = instruction.name.split(".")[-2]
    into, a, b, c = (operand if isinstance(operand, tuple) else () for operand in instruction.operands)
    writes = [writer(one) for one in into]
    reads = [[reader(one, U32) for one in operand] for operand in (a, b, c)]
    rows, columns = fragment_c(4)

    def run(machine: Any, who: Who) -> None:
        shape = whole(machine, who).shape
        words = [[np.broadcast_to(r(machine, who), shape[0] * WARP).reshape(shape) for r in one] for one in reads]
        before = np.empty((shape[0], 16, 8), np.float32)
        before[:, rows, columns] = np.stack(words[2], axis=-1).view(np.float32)
        found = product(fragment_a(words[0], kind), _fragment_b(words[1], kind), before)[:, rows, columns]
        for register, write in enumerate(writes):
            write(machine, who, np.ascontiguousarray(found[..., register]).ravel())

    return run


# Names in full: one with a modifier more is another instruction, which nobody here knows.
_MAKERS: dict[str, Callable[[Instruction], Run]] = {
    r"shfl\.sync\.(bfly|up|down|idx)\.b32": _shuffle,
    r"redux\.sync\.(add|min|max)\.[su]32": _reduce,
    r"bar\.warp\.sync": _meet,
    r"ldmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16": _load_matrices,
    r"stmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16": _store_matrices,
    r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16\.bf16|f16\.f16)\.f32": _mma,
    r"mma\.sync\.aligned\.m16n8k8\.row\.col\.f32\.tf32\.tf32\.f32": _mma,
}
