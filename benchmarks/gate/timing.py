"""The benchmark cases, and the figures that are required of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence

import torch

from benchmarks import table
from benchmarks.devices import GraphTimer
from benchmarks.gate import verdicts
from benchmarks.gate.context import Context
from benchmarks.gate.machine import best_copy_bytes_per_s
from benchmarks.gate.verdicts import Notebook
from benchmarks.harness import Row, verify
from benchmarks.opbatch import Setting
from benchmarks.opcases import OF_128, OPCASES, measure_case
from benchmarks.opjobs import FIGURES, TWIN_COMPILED

REPEATS, COOL_DOWN_S = 30, 0.005
_UNCOMPILED = ("InductorError", "BackendCompilerFailed")


def rows(patch: int) -> tuple[str, ...]:
    """What is told of each op."""
    return tuple(_row(op, patch) for op in _of(patch))


def _of(patch: int) -> tuple[str, ...]:
    """Cases of patches of this length."""
    return tuple(op for op in OPCASES if patch == 128 or op not in OF_128)


def _row(op: str, patch: int) -> str:
    figures = FIGURES.get(op)
    demands = []
    if figures and patch == 128:
        demands += [f"at least {figures.share:.0%} of a copy"] if figures.share else []
        demands += [f"at most {figures.seconds * 1e6:g} us"] if figures.seconds else []
        demands += [f"{ratio:g}x {peer}" for peer, ratio in figures.ratios.items()]
    kind = "float32, peers by autocast to bfloat16" if op in OF_128 else "bfloat16"
    return f"{op}, P {patch}, {kind}" + (": " + ", ".join(demands) if demands else "")


def cases(context: Context, patch: int) -> tuple[str, ...]:
    """All; a rehearsal need not see the same code twice."""
    return ("embed_patches", "masked_mse") if context.rehearses and patch == 100 else _of(patch)


def warm(context: Context, notebook: Notebook, patch: int) -> None:
    """Compile what will be timed, so that the timing finds it in caches; and check it.

    Compiled definitions come last: they take by far the longest, and nothing is required against them.
    """
    for compiled_twins in (False, True):
        for op in cases(context, patch):
            job = functools.partial(_warm_case, op, context, notebook, patch, compiled_twins)
            notebook.attempt(f"{op}, P {patch}", job)


def _warm_case(op: str, context: Context, notebook: Notebook, patch: int, compiled_twins: bool) -> None:
    setting = context.setting(patch)
    torch._dynamo.reset()
    with context.device.stream(), context.kernels(setting.dtype):
        case = OPCASES[op](setting, None)
        mine = [p for p in case.providers if (p.name == TWIN_COMPILED) == compiled_twins]
        problems = {provider.name: verify(case, provider) for provider in mine}
    if problems:
        judge_providers(f"{op}, P {patch}" + ", compiled definition" * compiled_twins, problems, notebook)
    if compiled_twins:
        notebook.keep("compiled_twins", [op])


def judge_providers(what: str, problems: Mapping[str, str | None], notebook: Notebook) -> None:
    """A red line for each that is wrong; what PyTorch cannot compile is no result that could be wrong."""
    uncompiled = {name: problem for name, problem in problems.items() if problem and problem.startswith(_UNCOMPILED)}
    wrong = {name: problem for name, problem in problems.items() if problem and name not in uncompiled}
    for name, problem in uncompiled.items():
        notebook.skip(f"{what}, {name}", f"PyTorch cannot compile it: {' '.join(problem.split())[:300]}")
    for name, problem in wrong.items():
        notebook.judge(f"{what}: {name} is right", False, " ".join(problem.split())[:400])
    if not wrong:
        notebook.judge(f"{what}: every provider is right", True)


def judge_demands(what: str, found: Sequence[Row], notebook: Notebook) -> None:
    """The figures of ours, and a line for each thing that is required of them."""
    for row in (row for row in found if row.role == "ours" and row.checked):
        share = f"{row.share_of_copy or 0:.0%} of a copy"
        peer = f", {table.ratio(row.ratio)} as fast as {row.peer}" if row.peer else ""
        notebook.note(what, f"{table.seconds(row.seconds)}, {share}{peer}")
        for demand in row.demands:
            line = table.demand_line(demand)
            text, told = line.split("  ", 1)[1].rsplit(": ", 1)
            if demand.found is None:  # ours has a time: it is the other that has none
                notebook.skip(f"{what}, {text}", "there is no time to compare with")
            else:
                notebook.judge_time(f"{what}, {text}", demand.holds, told)


def timing(context: Context, notebook: Notebook, patch: int) -> None:
    """Every case: checked, captured, timed in turns with its peers and a copy of the same bytes."""
    device = context.device
    with device.stream():
        large = best_copy_bytes_per_s(context)
    setting = context.setting(patch, large)
    notebook.keep("large_copy_bytes_per_s", large)
    warmed = verdicts.read(context.folder / f"warm_{patch}.jsonl")[1].get("compiled_twins", [])
    for op in cases(context, patch):
        # What was not compiled in time before would take the time of what matters now.
        without = () if op in warmed else (TWIN_COMPILED,)
        job = functools.partial(_time_case, op, setting, without, context, notebook, patch)
        notebook.attempt(f"{op}, P {patch}", job)
        notebook.told(_row(op, patch))


def _time_case(
    op: str, setting: Setting, without: Collection[str], context: Context, notebook: Notebook, patch: int
) -> None:
    device = context.device
    before = device.clocks()
    with context.kernels(setting.dtype):
        timer = GraphTimer(device, wall_calls=1) if context.rehearses else GraphTimer(device, COOL_DOWN_S)
        found = measure_case(op, setting, 1 if context.rehearses else REPEATS, timer, without)
    print(table.details(found, setting.large_copy / 1e9), flush=True)
    notebook.keep("rows", [dataclasses.asdict(row) for row in found])
    notebook.keep("clocks", [{"case": op, "patch": patch, "before": before, "after": device.clocks()}])
    judge_providers(f"{op}, P {patch}", {row.provider: row.problem for row in found}, notebook)
    judge_demands(f"{op}, P {patch}", found, notebook)


warm_128, warm_100 = (functools.partial(warm, patch=patch) for patch in (128, 100))
timing_128, timing_100 = (functools.partial(timing, patch=patch) for patch in (128, 100))
