"""PTX text as Triton writes it -> instructions."""

from __future__ import annotations

import dataclasses
import re

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{(.*)", re.DOTALL)
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_ADDRESS = re.compile(r"\[\s*(%[a-z]+\d+|[A-Za-z_]\w*)\s*(?:\+\s*(-?\d+)\s*)?\]")
_BYTES = {"b8": 1, "b16": 2, "b32": 4, "u32": 4, "f32": 4, "b64": 8, "u64": 8, "f64": 8}
FILES = {"%p": "pred", "%rs": "b16", "%r": "b32", "%rd": "b64"}
"""Prefix of a register's name -> its file."""


@dataclasses.dataclass(frozen=True)
class Register:
    """One of a file."""

    file: str
    number: int


@dataclasses.dataclass(frozen=True)
class Literal:
    """A number as it is written."""

    text: str


@dataclasses.dataclass(frozen=True)
class Address:
    """A register or symbol, and bytes after it."""

    base: Register | str
    offset: int


Operand = Register | Literal | Address | str | tuple["Operand", ...]
"""The string is a label, symbol or special register; a tuple is a vector, in which `_` is nothing."""


def registers_in(operand: Operand) -> list[Register]:
    """That an operand names."""
    if isinstance(operand, tuple):
        return [register for one in operand for register in registers_in(one)]
    named = operand.base if isinstance(operand, Address) else operand
    return [named] if isinstance(named, Register) else []


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One statement."""

    name: str
    operands: tuple[Operand, ...]
    guard: Register | None
    is_negated: bool
    """Whether it runs where the guard is not set."""
    text: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A kernel."""

    name: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    registers: dict[str, int]
    """File -> how many."""
    parameters: dict[str, int]
    """Name -> bytes, in order."""
    threads: int


def parse(text: str) -> Program:
    """The one kernel of a module.

    Raises:
        ValueError: something is there that Triton does not write.
    """
    found = _ENTRY.search(_COMMENT.sub("", text))
    if found is None:
        raise ValueError("no .entry")
    name, parameters, attributes, rest = found.groups()
    threads = re.search(r"\.reqntid\s+(\d+)", attributes)
    if threads is None:
        raise ValueError(f"{name} does not say how many threads it has")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    registers = dict.fromkeys(FILES.values(), 0)
    for statement in _statements(rest):
        if statement.endswith(":"):
            labels[statement[:-1]] = len(instructions)
        elif statement.startswith(".reg"):
            prefix, count = re.fullmatch(r"\.reg\s+\.\w+\s+(%\w+)<(\d+)>", statement).groups()  # type: ignore[union-attr]
            if registers[FILES[prefix]]:
                raise ValueError(f"registers {prefix} are declared twice")
            registers[FILES[prefix]] = int(count)
        elif not statement.startswith("."):
            instructions.append(_instruction(statement))
    sizes = re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", parameters.strip())
    known = {parameter: _BYTES[kind] for kind, parameter in sizes}
    return Program(name, tuple(instructions), labels, registers, known, int(threads[1]))


def _statements(body: str) -> list[str]:
    """Up to the brace that closes the kernel; labels end with a colon, directives of one line have no semicolon."""
    found, depth, text = [], 1, ""
    for line in body.splitlines():
        line = line.strip()
        if not text and re.fullmatch(r"\$?\w+:", line):
            found.append(line)
            continue
        if not text and re.match(r"\.(loc|file)\b", line):
            continue
        for character in line + " ":
            if character in "{}" and not text.strip():  # of a scope, and not of a vector
                depth += 1 if character == "{" else -1
                if depth == 0:
                    return found
            elif character == ";":
                found.append(text.strip())
                text = ""
            else:
                text += character
        text = text.lstrip()
    raise ValueError("the kernel does not end")


def _instruction(statement: str) -> Instruction:
    match = _STATEMENT.fullmatch(statement)
    if match is None:
        raise ValueError(f"not an instruction: {statement}")
    negated, guard, name, rest = match.groups()
    operands = tuple(_operand(part) for part in _parts(rest))
    return Instruction(name, operands, _register(guard) if guard else None, bool(negated), statement)


def _parts(text: str) -> list[str]:
    """Between commas that are in no brackets."""
    parts = re.split(r",(?![^{\[]*[}\]])", text)
    return [part.strip() for part in parts if part.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return tuple(_operand(part) for part in _parts(text[1:-1]))
    if text.startswith("["):
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError(f"not an address: {text}")
        base, offset = match.groups()
        return Address(_register(base) if base.startswith("%") else base, int(offset or 0))
    if re.fullmatch(r"%(p|rs|r|rd)\d+", text):
        return _register(text)
    return Literal(text) if re.match(r"-?\d", text) else text


def _register(text: str) -> Register:
    prefix, number = re.fullmatch(r"(%[a-z]+)(\d+)", text).groups()  # type: ignore[union-attr]
    return Register(FILES[prefix], int(number))
