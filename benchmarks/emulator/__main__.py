"""Run what Triton compiles for a GPU without one: `python -m benchmarks.emulator [--large] [--seed N] [--counts]`.

Every op, forward and backward in each precision, on random batches, against its definition; attention of windows of
many lengths; plans. The PTX of every kernel is executed on the tensors of a CPU. What a GPU would refuse, or may answer
with anything, is a failure: an address outside of the tensors or that is not aligned as a kernel was promised, shared
memory that nobody has waited for, or that threads access with no barrier between, registers and shared memory that are
not fenced for products, threads that part where they have to be together. Copies and products that go on in the
background end as late as they may.

What lies behind PTX, the assembler and time, is not looked at, nor in what order threads share global memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import attention, devices, opbatch, opcases
from benchmarks.emulator.launching import Emulation, emulated
from benchmarks.gate import contracts, correctness, lengths
from benchmarks.gate.context import Context
from benchmarks.gate.verdicts import Notebook, read, status
from benchmarks.opjobs import OURS
from physiofast import ops

_PRECISIONS = (
    (torch.float32, False),
    (torch.float32, True),
    (torch.float16, False),
    (torch.bfloat16, False),
)
_LONG = (70, 3, 130)
"""Of windows whose kernels the gate's rehearsal leaves to the GPU."""
_WINDOWS, _LENGTHS = 16, {16: 32, 50: 8, 100: 8, 300: 4}
"""Of ops that are counted; tokens of a window -> windows, of attention."""


class _Emulated(Context):
    """Kernels run wherever an op has some."""

    def kernels(self, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
        return ops.backend("triton")


def check(notebook: Notebook, is_large: bool) -> None:
    """Every op, every length, plans."""
    rehearsal = Context.rehearsal(notebook.path.parent)
    context = _Emulated(**vars(rehearsal) | {"rehearses": not is_large})
    for dtype, is_tf32x3 in _PRECISIONS:
        correctness.compare_all(context, notebook, correctness.batches(context, dtype), dtype, is_tf32x3)
    lengths.lengths(context, notebook)
    if not is_large:
        with context.kernels(torch.bfloat16):
            job = functools.partial(lengths.compare_one, context, notebook, torch.bfloat16, 64, _LONG, has_decay=False)
            notebook.attempt("long windows", job)
    with context.kernels(torch.float32):
        notebook.attempt("plans", functools.partial(contracts.plans, context, notebook))


def counted(emulation: Emulation) -> Iterator[str]:
    """A line for each start of a kernel: what it asks of a GPU."""
    emulation.counts = True
    setting = dataclasses.replace(
        opbatch.on_gpu(devices.find("cpu"), 0.0), windows=_WINDOWS, plan_windows=_WINDOWS, compiler="eager"
    )
    for name, make in opcases.OPCASES.items():
        (ours,) = (one for one in make(setting, None).providers if one.name == OURS)
        ours.run()
        yield from _lines(f"{name}, {_WINDOWS} windows", emulation)
    for count, windows in _LENGTHS.items():
        given = attention.inputs([count] * windows, heads=8, width=64, dtype=torch.bfloat16)
        attention.providers(given)[attention.OURS]()
        yield from _lines(f"attention, {windows} windows of {count} tokens", emulation)


def _lines(title: str, emulation: Emulation) -> Iterator[str]:
    yield title
    for name, blocks, counts in emulation.started:
        yield (
            f"  {name:<20} {blocks:>6} blocks  {counts.instructions / 1e3:>9.1f} thousand instructions  "
            f"{counts.sectors * 32 / 1e6:>7.2f} MB in sectors ({counts.least_sectors * 32 / 1e6:.2f} side by side)  "
            f"{counts.cycles / 1e3:>7.1f} thousand cycles of shared memory ({counts.least_cycles / 1e3:.1f} without "
            f"conflicts)  {counts.multiplications / 1e6:>7.1f} million multiplications of tensor cores"
        )
    emulation.started.clear()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.emulator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="batches as large as the gate's: some 20 minutes")
    parser.add_argument("--capability", type=int, default=90, choices=(80, 90), help="compute capability times ten")
    parser.add_argument("--seed", type=int, help="blocks, and warps one after the other, run in an order drawn from it")
    parser.add_argument("--counts", action="store_true", help="count what kernels ask of a GPU, and check nothing")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 makes kernels run in the interpreter; unset it to compile them")
    order = None if options.seed is None else random.Random(options.seed)
    emulation = Emulation(capability=options.capability, order=order)
    with emulated(emulation), tempfile.TemporaryDirectory() as folder, ops.backend("triton"):
        if options.counts:
            for line in counted(emulation):
                print(line, flush=True)
            return 0
        path = Path(folder, "verdicts")
        check(Notebook(f"sm_{options.capability}", path, measures=False), options.large)
        verdicts, _ = read(path)
    names = {name for name, _, _ in emulation.started}
    print(f"{len(names)} kernels, started {len(emulation.started)} times: {', '.join(sorted(names))}")
    return status(verdicts)


if __name__ == "__main__":
    sys.exit(main())
