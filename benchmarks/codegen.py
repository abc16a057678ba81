"""Compile every kernel without a GPU and look at its machine code: `python -m benchmarks.codegen [--check | --write]`.

For compute capability 9.0: no stack frame (so no spills), shared memory within the limit, tensor-core instructions
where a kernel multiplies matrices, loads as wide as the alignment of samples allows. 8.0 and 10.0 have to compile,
with no more shared memory than there is. Products of a warp group are to run side by side: the assembler makes each
wait for the one before it where their sums may be written otherwise while they run, as by a loop of no rounds.
Threads that make a sum together are to get the same bits, which they do not if a product is fused into its first
exchange (`parts.product`).
`--check` fails also where an entry is worse than in the committed table, which has a part for each version of Triton;
`--write` renews the installed one's. With `--changed` only what is not in the table as it would be compiled now is
compiled: the table holds nothing that failed, and a version of Triton makes the same of the same.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.specimens import Specimen, specimens
from physiofast.ops.triton.table import LEAST_COLUMNS, Launch

TABLE = Path(__file__).with_name("results") / "codegen.json"
SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that one block may have on compute capability 9.0."""
SHARED_LIMITS = {80: 99 * 1024, 90: SHARED_LIMIT, 100: SHARED_LIMIT}
"""The same of each capability that kernels have to compile for; what is made for 8.0 is to run on 8.6 and 8.9, too."""
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.x]+)", re.MULTILINE)
_TENSOR_CORE = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "QMMA", "IMMA", "DMMA")
"""The first three are of a warp group."""
_WAIT = "WARPGROUP.DEPBAR.LE"
"""For products of a warp group."""
_EXCHANGED = re.compile(r"shfl\.sync\.bfly\.b32\s+(%\w+)")
_ADDED_TO_PRODUCT = re.compile(r"fma\.rn\.f32\s+%\w+, \S+, \S+, (%\w+);")
_NARROW = f"HGMMA of fewer than {LEAST_COLUMNS} columns"
_TYPES = {torch.bool: "i1", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}
_TYPES |= {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Machine code of one kernel for compute capability 9.0."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    tensor_core: dict[str, int]
    """Kind -> tensor-core instructions: `HGMMA` of four warps together, `HMMA` and others of one."""
    loads: dict[str, int]
    """Bits -> loads from global memory, those that go to shared memory too."""
    stores: dict[str, int]
    products_in_turn: bool
    """Whether each product of a warp group waits for the one before it, which PTX does not ask for."""
    sums_differ: bool
    """Whether threads that make a sum together get sums that differ in their last bits."""
    made_from: str
    """`digest` of what was compiled."""


def source(
    function: Any, args: Sequence[Any], constants: Mapping[str, Any], is_aligned: Callable[[torch.Tensor], bool]
) -> ASTSource:
    """What Triton's launcher would compile: pointers and ints that are multiples of 16 are known to be, 1 is 1.

    Args:
        function: the jitted function.
        args: its positional arguments.
        constants: its compile-time constants.
        is_aligned: whether a tensor begins at a multiple of 16 bytes.
    """
    signature: dict[str, str] = {}
    known, attributes = dict(constants), {}
    for place, (name, value) in enumerate(zip(function.arg_names, args, strict=False)):
        is_round = False
        if isinstance(value, torch.Tensor):
            signature[name], is_round = "*" + _TYPES[value.dtype], is_aligned(value)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], known[name] = "constexpr", 1
        else:
            signature[name], is_round = "i32" if -(1 << 31) <= value < 1 << 31 else "i64", value % 16 == 0
        if is_round:
            attributes[(place,)] = [["tt.divisibility", 16]]
    for name in constants:
        signature[name] = "constexpr"
    ordered = {name: signature[name] for name in function.arg_names}
    return ASTSource(fn=function, signature=ordered, constexprs=known, attrs=attributes)


def _source_of(specimen: Specimen) -> ASTSource:
    started = specimen.started
    return source(started.kernel, started.args, started.constants, lambda tensor: True)


def compiled(source: ASTSource, launch: Launch, capability: int) -> Any:
    """Triton's compiled kernel."""
    options = launch.options | {"enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_for(specimen: Specimen, capability: int) -> Any:
    """The same of a specimen."""
    return compiled(_source_of(specimen), specimen.started.launch, capability)


def capabilities(specimen: Specimen) -> tuple[int, ...]:
    """Compute capabilities that it has to compile for."""
    return tuple(SHARED_LIMITS) if specimen.is_everywhere else (90,)


def digest(specimen: Specimen) -> str:
    """All that machine code follows from, where Triton is the same: source, arguments, options and capabilities."""
    options = sorted(specimen.started.launch.options.items())
    told = f"{_source_of(specimen).hash()} {options} {capabilities(specimen)}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


class Code(NamedTuple):
    """What was compiled for compute capability 9.0."""

    usage: dict[str, int]
    """REG, STACK and so on, in the names of cuobjdump."""
    shared_bytes: int
    text: bytes
    """Instructions, of 16 bytes each."""
    waits: int
    """How often PTX waits for products of a warp group."""
    sums_differ: bool
    made_from: str


def code(compiled: Any, made_from: str) -> Code:
    """Resources and machine code of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cubin").write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", "cubin", folder=folder)
        _tool("cuobjdump", "-xtext", "all", "cubin", folder=folder)
        (text,) = Path(folder).glob("*.bin")
        found = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", usage)}
        return Code(
            usage=found,
            shared_bytes=compiled.metadata.shared,
            text=text.read_bytes(),
            waits=compiled.asm["ptx"].count("wgmma.wait_group."),
            sums_differ=sums_differ(compiled.asm["ptx"]),
            made_from=made_from,
        )


def sums_differ(ptx: str) -> bool:
    """Whether a thread adds its product, before it is rounded, to what another thread has rounded."""
    return not set(_EXCHANGED.findall(ptx)).isdisjoint(_ADDED_TO_PRODUCT.findall(ptx))


def inspect(codes: Sequence[Code]) -> list[Entry]:
    """Resources and instructions of kernels."""
    return [
        Entry(
            registers=found.usage["REG"],
            stack_bytes=found.usage["STACK"] + found.usage.get("LOCAL", 0),
            shared_bytes=found.shared_bytes,
            instructions=len(names),
            tensor_core=_kinds(names),
            loads=_widths(names, ("LDG", "LDGSTS")),
            stores=_widths(names, ("STG",)),
            products_in_turn=names.count(_WAIT) > found.waits and names.count(_WAIT) >= _kinds(names).get("HGMMA", 0),
            sums_differ=found.sums_differ,
            made_from=found.made_from,
        )
        for found, names in zip(codes, disassemble([found.text for found in codes]), strict=True)
    ]


def disassemble(texts: Sequence[bytes]) -> list[list[str]]:
    """Names of each kernel's instructions: all kernels behind each other in one run, whose start takes 0.4 s."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(texts))
        file.flush()
        listing = _tool("nvdisasm", "--binary", "SM90a", file.name)
    ends = list(itertools.accumulate(map(len, texts)))
    names: list[list[str]] = [[] for _ in texts]
    for address, name in _INSTRUCTION.findall(listing):
        names[bisect.bisect_right(ends, int(address, 16))].append(name)
    return names


def _tool(name: str, *arguments: str, folder: str | None = None) -> str:
    return subprocess.run([_TOOLS / name, *arguments], check=True, capture_output=True, text=True, cwd=folder).stdout


def _kinds(names: Sequence[str]) -> dict[str, int]:
    """Kind of tensor-core instruction -> number of them."""
    found = collections.Counter(name.split(".")[0] for name in names)
    kinds = {kind: found[kind] for kind in _TENSOR_CORE if kind in found}
    narrow = sum(int(name.split("x")[1]) < LEAST_COLUMNS for name in names if name.startswith("HGMMA."))
    return kinds | ({_NARROW: narrow} if narrow else {})


def _widths(names: Sequence[str], kinds: tuple[str, ...]) -> dict[str, int]:
    """Bits -> number of instructions of these kinds."""
    found: collections.Counter[str] = collections.Counter()
    for name in names:
        parts = name.split(".")
        if parts[0] in kinds:
            width = next(
                (part.lstrip("US") for part in parts[1:] if part.lstrip("US") in ("8", "16", "64", "128")), "32"
            )
            found[width] += 1
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def defects(specimen: Specimen, entry: Entry) -> list[str]:
    """What the machine code should not be."""
    found = []
    if entry.stack_bytes:
        found.append(f"{entry.stack_bytes} bytes of stack: registers are spilled")
    if entry.shared_bytes > SHARED_LIMIT:
        found.append(f"{entry.shared_bytes} bytes of shared memory; {SHARED_LIMIT} are allowed")
    if specimen.needs_tensor_cores and not entry.tensor_core:
        found.append("no tensor-core instruction")
    if _NARROW in entry.tensor_core:
        found.append(f"{entry.tensor_core[_NARROW]} {_NARROW}, which Triton 3.6 has made wrongly")
    if entry.products_in_turn:
        found.append("each product of a warp group waits for the one before it")
    if entry.sums_differ:
        found.append("a product is fused into a sum of several threads, which get different bits")
    narrow = [bits for bits in entry.loads if int(bits) < specimen.narrowest_load_bits and int(bits) < 32]
    if narrow or (specimen.narrowest_load_bits and str(specimen.narrowest_load_bits) not in entry.loads):
        wanted = f"samples are to be loaded {specimen.narrowest_load_bits} bits at a time"
        found.append(f"{wanted}; loads by bits: {entry.loads}")
    return found


def worse(entry: Entry, recorded: Entry) -> list[str]:
    """What is worse than when the table was written.

    Resources that have grown; tensor-core instructions of a kind that have become fewer, each kind apart, for a product
    that falls back to single warps or to none takes another; loads and stores whose widest or narrowest is narrower.
    Where larger tensor-core instructions do the work of more, that is to be looked at and written anew.
    """
    fields = ("registers", "stack_bytes", "shared_bytes", "instructions")
    grown = [(name, getattr(entry, name), getattr(recorded, name)) for name in fields]
    kinds = [(kind, entry.tensor_core.get(kind, 0), count) for kind, count in recorded.tensor_core.items()]
    found = [f"{name} {now}, was {before}" for name, now, before in grown if now > before]
    found += [f"{kind} instructions {now}, were {before}" for kind, now, before in kinds if now < before]
    for name in ("loads", "stores"):
        now, before = ([int(bits) for bits in getattr(one, name)] for one in (entry, recorded))
        for word, end in (("widest", max), ("narrowest", min)):
            if now and before and end(now) < end(before):
                found.append(f"{word} of {name} {end(now)} bits, was {end(before)}")
    return found


def examine(number: int) -> tuple[Code | None, list[str]]:
    """Compile a specimen for every capability: its code for 9.0 if there is some, and where it does not compile."""
    specimen, found, problems = _specimens()[number], None, []
    for capability in (90, *capabilities(specimen)):
        try:
            compiled = compile_for(specimen, capability)
        except Exception as error:  # whatever a compiler raises is the finding
            problems.append(f"does not compile for {capability / 10}: {type(error).__name__}: {str(error)[:300]}")
            continue
        if capability == 90:
            found = code(compiled, digest(specimen))
        elif compiled.metadata.shared > SHARED_LIMITS[capability]:
            shared, limit = compiled.metadata.shared, SHARED_LIMITS[capability]
            problems.append(f"{shared} bytes of shared memory for {capability / 10}; {limit} are allowed")
    return found, problems


@functools.cache
def _specimens() -> list[Specimen]:
    found = list(specimens())
    ((name, count),) = collections.Counter(specimen.name for specimen in found).most_common(1)
    assert count == 1, f"{count} specimens are named {name}"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codegen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where an entry is worse than the committed table")
    parser.add_argument("--write", action="store_true", help="write this Triton's entries into the committed table")
    parser.add_argument("--changed", action="store_true", help="compile only what differs from what the table is of")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 makes kernels run in the interpreter; unset it to compile them")
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    entries = table.get(triton.__version__, {}) if options.check or options.changed else {}
    recorded = {name: Entry(**entry) for name, entry in entries.items()}
    known = {entry.made_from: entry for entry in recorded.values()} if options.changed else {}
    found = _examine_all(known)
    failed = _report(found, recorded if options.check else {})
    if options.check and set(recorded) != {name for name, _, _ in found}:
        print(f"the table's entries for Triton {triton.__version__} are not these; renew it with --write")
        failed = True
    if options.write and not failed:
        table[triton.__version__] = {name: dataclasses.asdict(entry) for name, entry, _ in found if entry}
        TABLE.write_text(_a_line_each(table))
    return int(failed)


def _a_line_each(table: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for each entry, so that a difference shows what has changed."""
    parts = []
    for version, entries in sorted(table.items()):
        lines = (f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
        parts.append(f" {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


Examined = tuple[str, Entry | None, list[str]]
"""Name of a specimen, its code for 9.0 unless there is none, and its problems."""


def _examine_all(known: Mapping[str, Entry]) -> list[Examined]:
    """Every specimen; of those whose digest is known, the entry that is known."""
    torch.set_num_threads(1)  # threads would not survive the fork
    specimens = _specimens()
    digests = [digest(specimen) for specimen in specimens]
    missing = [number for number, made_from in enumerate(digests) if made_from not in known]
    print(f"{len(missing)} of {len(specimens)} are compiled", flush=True)
    forked = multiprocessing.get_context("fork")  # with all modules and specimens, which take seconds
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=forked) as pool:
        examined = list(pool.map(examine, missing))
    codes = [found for found, _ in examined if found]
    compiled = inspect(codes) if codes else []
    entries = dict(known) | {entry.made_from: entry for entry in compiled}
    others = {number: problems for number, (_, problems) in zip(missing, examined, strict=True)}
    described: list[Examined] = []
    for number, (specimen, made_from) in enumerate(zip(specimens, digests, strict=True)):
        entry = entries.get(made_from)
        problems = defects(specimen, entry) if entry else []
        described.append((specimen.name, entry, problems + others.get(number, [])))
    return described


def _report(found: Sequence[Examined], recorded: Mapping[str, Entry]) -> bool:
    """Print a line for each entry and each problem; whether there is one."""
    width = max(len(name) for name, _, _ in found)
    failed = False
    print(f"Triton {triton.__version__}, compute capability 9.0")
    for name, entry, problems in found:
        if entry:
            problems = problems + (worse(entry, recorded[name]) if name in recorded else [])
            loads = " ".join(f"{count}x{bits}" for bits, count in entry.loads.items())
            kinds = " ".join(f"{count} {kind}" for kind, count in entry.tensor_core.items()) or "no tensor core"
            print(
                f"{name:<{width}}  {entry.registers:>3} registers  {entry.shared_bytes:>6} B shared  "
                f"{entry.instructions:>5} instructions  {kinds:<14}  loads {loads}"
            )
        else:
            print(name)
        for problem in problems:
            print(f"  FAILS  {problem}")
        failed |= bool(problems)
    return failed


if __name__ == "__main__":
    sys.exit(main())
