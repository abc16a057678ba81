"""Instructions that a thread runs by itself, on registers."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.emulator.memory import Array
from benchmarks.emulator.parsing import Instruction, Literal, Operand, Register

Who = Any
"""Threads: a slice of all, or their numbers."""
Run = Callable[[Any, Who], None]
Read = Callable[[Any, Who], Any]
KINDS: dict[str, np.dtype[Any]] = {
    **{f"{letter}{8 * size}": np.dtype(f"u{size}") for letter in "bu" for size in (1, 2, 4, 8)},
    **{f"s{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "pred": np.dtype(bool),
}


def reader(operand: Operand, kind: np.dtype[Any]) -> Read:
    """Values of an operand for threads, as numbers of a kind that is no wider than the register."""
    if isinstance(operand, Literal):
        value = literal(operand.text, kind)
        return lambda machine, who: value
    if isinstance(operand, str):
        name = operand
        return lambda machine, who: machine.special(name, who).astype(kind, copy=False)
    assert isinstance(operand, Register), operand
    file, number = operand.file, operand.number
    if kind.kind == "b":
        return lambda machine, who: machine.files[file][number][who]

    def read(machine: Any, who: Who) -> Array:
        row = machine.files[file][number][who]
        return row.view(kind) if row.itemsize == kind.itemsize else row.astype(kind)

    return read


def literal(text: str, kind: np.dtype[Any]) -> Any:
    """A number as PTX writes it."""
    if text[:2] == "0f":
        return np.uint32(int(text[2:], 16)).view(kind if kind.itemsize == 4 else np.float32)
    if text[:2] == "0d":
        return np.float64(struct.unpack(">d", bytes.fromhex(text[2:]))[0])
    number = int(text.rstrip("U"), 0)
    if kind.kind == "b":
        return np.bool_(number)
    unsigned = np.dtype(f"u{kind.itemsize}")
    return unsigned.type(number & ((1 << 8 * kind.itemsize) - 1)).view(kind)


def writer(operand: Operand) -> Callable[[Any, Who, Any], None]:
    """Puts values into a register: of floats their bits, of narrower ints the same number."""
    if operand == "_":
        return lambda machine, who, value: None
    if not isinstance(operand, Register):
        raise ValueError(f"not known: a result in {operand}")
    file, number = operand.file, operand.number

    def write(machine: Any, who: Who, value: Any) -> None:
        row = machine.files[file][number]
        if value.dtype.kind == "f":
            value = value.view(f"u{value.dtype.itemsize}")
        row[who] = value.astype(row.dtype, copy=False)

    return write


def _shift(right: bool) -> Callable[[Array, Array], Array]:
    """By more than there are bits, too."""

    def shift(value: Array, by: Array) -> Array:
        bits = 8 * value.dtype.itemsize
        amount = np.minimum(by, bits - 1).astype(value.dtype)
        moved = value >> amount if right else value << amount
        is_out = by >= bits
        if not np.any(is_out) or (right and value.dtype.kind == "i"):
            return moved  # type: ignore[no-any-return]
        return np.where(is_out, value.dtype.type(0), moved)

    return shift


def _divide(a: Array, b: Array) -> Array:
    rest = np.fmod(a, b)
    return (a - rest) // b  # type: ignore[no-any-return]


def _divide_nearly(a: Array, b: Array) -> Array:
    """By numbers that no reciprocal is made of, from 2^126 on, zero comes out, or NaN of an infinity."""
    is_out = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
    return np.where(is_out, a * np.float32(0), np.asarray(a) / b)  # type: ignore[no-any-return]


def _wide(a: Array, b: Array) -> Array:
    kind = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return np.asarray(a).astype(kind) * np.asarray(b).astype(kind)  # type: ignore[no-any-return]


def _high(a: Array, b: Array) -> Array:
    return (_wide(a, b) >> 8 * a.dtype.itemsize).astype(a.dtype)


def fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once but for what float64 rounds of the sum."""
    return (np.asarray(a, np.float64) * b + c).astype(np.float32)


def _field(value: Array, begin: Array, length: Array) -> Array:
    """`length` bits from `begin` on."""
    begin, length = begin & np.uint32(0xFF), length & np.uint32(0xFF)
    mask = (np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)
    field = (value.astype(np.int64).astype(np.uint64) >> begin.astype(np.uint64)) & mask
    if value.dtype.kind == "i":
        sign = np.where(length > 0, np.uint64(1) << (np.maximum(length, 1) - 1).astype(np.uint64), 0).astype(np.uint64)
        field = (field ^ sign) - sign
    return field.astype(value.dtype)


def _permute(a: Array, b: Array, selector: Array) -> Array:
    """Bytes of two words: four picks, each of three bits for which and one for its sign over and over."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    found = np.uint32(0)
    for place in range(4):
        pick = selector.astype(np.uint64) >> np.uint64(4 * place)
        byte = (both >> (np.uint64(8) * (pick & np.uint64(7)))) & np.uint64(0xFF)
        signs = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        found = found | (np.where(pick & np.uint64(8), signs, byte) << np.uint64(8 * place)).astype(np.uint32)
    return found  # type: ignore[return-value]


def _count_bits(value: Array) -> Array:
    return np.bitwise_count(value).astype(np.uint32)


def narrow(value: Array) -> Array:
    """float32 -> the nearest bfloat16, ties to even, as 16 bits."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint16)


def widen(value: Array) -> Array:
    """bfloat16 as 16 bits -> float32."""
    return (value.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_half(value: Array) -> Array:
    """float32 -> float16 as 16 bits."""
    return np.asarray(value).astype(np.float16).view(np.uint16)


def from_half(value: Array) -> Array:
    """float16 as 16 bits -> float32."""
    return np.asarray(value).view(np.float16).astype(np.float32)


def numbers(words: Array, kind: str) -> Array:
    """What tensor cores see of words: of `bf16` and `f16`, which have 16 bits, or of `tf32` without its last 13."""
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)
    return widen(words) if kind == "bf16" else from_half(words)


def tf32(value: Array) -> Array:
    """float32 -> the nearest of ten bits' fraction, ties away from zero."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(value), rounded, bits).astype(np.uint32).view(np.float32)


def flushed(value: Array) -> Array:
    """Subnormal numbers as zeros."""
    return np.where(np.abs(value) < np.float32(1.1754944e-38), np.copysign(np.float32(0), value), value)


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
_COMPARISONS |= {
    name + "u": lambda a, b, opposite=_COMPARISONS[opposite]: ~opposite(a, b)
    for name, opposite in {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}.items()
}
_PLAIN: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "mul.lo": operator.mul,
    "mul.rn": operator.mul,
    "mul.wide": _wide,
    "mul.hi": _high,
    "mad.lo": lambda a, b, c: a * b + c,
    "mad.wide": lambda a, b, c: _wide(a, b) + c,
    "fma.rn": fused,
    "div": _divide,
    "div.approx": _divide_nearly,
    "div.full": operator.truediv,
    "div.rn": operator.truediv,
    "rem": np.fmod,
    "min": lambda a, b: np.fmin(a, b),
    "max": lambda a, b: np.fmax(a, b),
    "min.NaN": np.minimum,
    "max.NaN": np.maximum,
    "neg": operator.neg,
    "abs": np.abs,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": operator.invert,
    "shl": _shift(right=False),
    "shr": _shift(right=True),
    "popc": _count_bits,
    "ex2.approx": np.exp2,
    "sqrt.approx": np.sqrt,
    "sqrt.rn": np.sqrt,
    "rcp.approx": np.reciprocal,
    "prmt": _permute,
}
_THIRD = {"mad.wide": 2}
"""Instructions whose third operand is so many times as wide."""
_OTHERWISE = ("fma.rn.f64", "min.s16x2", "max.s16x2")
"""Instructions that the functions above would get wrong: of float64 in one rounding, of halves with signs."""
_HALVES = {"bf16": (widen, narrow), "f16": (from_half, to_half)}
_INTS = [f"{letter}{bits}" for letter in "su" for bits in (8, 16, 32, 64)]
_CONVERSIONS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "f32.bf16": ("b16", widen),
    "rn.bf16.f32": ("f32", narrow),
    "f32.f16": ("b16", from_half),
    "rn.f16.f32": ("f32", to_half),
    "rna.tf32.f32": ("f32", tf32),
    **{f"rn.f32.{kind}": (kind, operator.methodcaller("astype", KINDS["f32"])) for kind in _INTS},
    **{f"{into}.{kind}": (kind, operator.methodcaller("astype", KINDS[into])) for into in _INTS for kind in _INTS},
}
"""What follows `cvt.` -> kind of its operand, and what is made of it."""
_PACKS = {"rn.bf16x2.f32": narrow, "rn.f16x2.f32": to_half}


def compiled(instruction: Instruction) -> Run | None:
    """What it does; None where it is none of these."""
    name, operands = instruction.name, instruction.operands
    root, _, kind = name.rpartition(".")
    if root == "cvt" or root.startswith("cvt."):
        return _convert(operands, name.removeprefix("cvt."))
    if root in _MAKERS or root.startswith("setp."):
        return _MAKERS.get(root, _compare)(operands, name) if kind in KINDS else None
    is_flushed = kind == "f32" and ".ftz" in root
    root = root.replace(".ftz", "") if is_flushed else root
    if root not in _PLAIN or f"{root}.{kind}" in _OTHERWISE:
        return None
    if kind in _HALVES:
        return _from_function(operands, [KINDS["b16"]] * (len(operands) - 1), _in_float32(_PLAIN[root], kind))
    if kind.endswith("x2"):
        return _by_halves(operands, _in_float32(_PLAIN[root], kind.removesuffix("x2")))
    if kind not in KINDS:
        return None
    kinds = [KINDS[kind]] * (len(operands) - 1)
    if root in _THIRD:
        kinds[2] = np.dtype(f"{kinds[2].kind}{2 * kinds[2].itemsize}")
    if root in ("shl", "shr"):
        kinds[1] = KINDS["u32"]
    function = _PLAIN[root]
    if is_flushed:
        return _from_function(operands, kinds, lambda *values: flushed(function(*map(flushed, values))))
    return _from_function(operands, kinds, function)


def _from_function(operands: tuple[Operand, ...], kinds: list[np.dtype[Any]], function: Callable[..., Any]) -> Run:
    write = writer(operands[0])
    reads = [reader(operand, kind) for operand, kind in zip(operands[1:], kinds, strict=True)]
    if len(reads) == 2:
        first, second = reads
        return lambda machine, who: write(machine, who, function(first(machine, who), second(machine, who)))
    return lambda machine, who: write(machine, who, np.asarray(function(*[read(machine, who) for read in reads])))


def _compare(operands: tuple[Operand, ...], name: str) -> Run | None:
    _, comparison, kind, *more = name.split(".")
    if more or comparison not in _COMPARISONS:
        return None
    return _from_function(operands, [KINDS[kind]] * 2, _COMPARISONS[comparison])


def _extract(operands: tuple[Operand, ...], name: str) -> Run:
    return _from_function(operands, [KINDS[name.removeprefix("bfe.")], KINDS["u32"], KINDS["u32"]], _field)


def _select(operands: tuple[Operand, ...], name: str) -> Run:
    kind = KINDS[name.removeprefix("selp.")]
    write, which = writer(operands[0]), reader(operands[3], KINDS["pred"])
    yes, no = (reader(operand, kind) for operand in operands[1:3])
    return lambda machine, who: write(machine, who, np.where(which(machine, who), yes(machine, who), no(machine, who)))


def _move(operands: tuple[Operand, ...], name: str) -> Run:
    """Also the parts of a register into several, and several into one."""
    kind = KINDS[name.removeprefix("mov.")]
    into, out_of = operands
    if isinstance(into, tuple):
        part = np.dtype(f"u{kind.itemsize // len(into)}")
        read, writes = reader(out_of, kind), [writer(one) for one in into]

        def divide(machine: Any, who: Who) -> None:
            value = read(machine, who)
            for place, write in enumerate(writes):
                write(machine, who, (value >> kind.type(8 * part.itemsize * place)).astype(part))

        return divide
    write = writer(into)
    if isinstance(out_of, tuple):
        part = np.dtype(f"u{kind.itemsize // len(out_of)}")
        reads = [reader(one, part) for one in out_of]

        def join(machine: Any, who: Who) -> None:
            value = kind.type(0)
            for place, read in enumerate(reads):
                value = value | read(machine, who).astype(kind) << kind.type(8 * part.itemsize * place)
            write(machine, who, value)

        return join
    read = reader(out_of, kind)
    return lambda machine, who: write(machine, who, np.asarray(read(machine, who)))


def _convert(operands: tuple[Operand, ...], way: str) -> Run | None:
    """`way` is how it rounds, what it makes, and of what."""
    if way in _PACKS:
        to_bits = _PACKS[way]

        def pack(high: Array, low: Array) -> Array:
            return to_bits(high).astype(np.uint32) << np.uint32(16) | to_bits(low)

        return _from_function(operands, [KINDS["f32"]] * 2, pack)
    if way not in _CONVERSIONS:
        return None
    kind, function = _CONVERSIONS[way]
    return _from_function(operands, [KINDS[kind]], function)


def _in_float32(function: Callable[..., Any], kind: str) -> Callable[..., Array]:
    """Of 16-bit numbers, what the function gives of float32, rounded; of ints of 16 bits itself."""
    if kind not in _HALVES:
        return function
    from_bits, to_bits = _HALVES[kind]
    return lambda *halves: to_bits(function(*map(from_bits, halves)))


def _by_halves(operands: tuple[Operand, ...], function: Callable[..., Array]) -> Run:
    """On both 16 bits of registers."""

    def run(*words: Array) -> Array:
        low = function(*[(word & np.uint32(0xFFFF)).astype(np.uint16) for word in words])
        high = function(*[(word >> np.uint32(16)).astype(np.uint16) for word in words])
        return high.astype(np.uint32) << np.uint32(16) | low

    return _from_function(operands, [KINDS["b32"]] * (len(operands) - 1), run)


_MAKERS: dict[str, Callable[[tuple[Operand, ...], str], Run | None]] = {"selp": _select, "mov": _move, "bfe": _extract}
"""Of instructions whose names, but for the kind of number, are these."""
