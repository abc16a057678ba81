"""Attention: everybody compiled and checked, then timed in turns; memory, bias gradient and statistics of ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import attention, attentioncases, table
from benchmarks.attentioncases import FIXED, MIX, Setting, name_of
from benchmarks.attentionpeers import COMPILED
from benchmarks.devices import GraphTimer
from benchmarks.gate import verdicts
from benchmarks.gate.context import Context
from benchmarks.gate.machine import best_copy_bytes_per_s
from benchmarks.gate.timing import judge_demands, judge_providers
from benchmarks.gate.verdicts import Notebook
from benchmarks.harness import verify

REPEATS, COOL_DOWN_S, WALL_CALLS = 20, 0.003, 3
MOST_OF_BIAS_GRADIENT = 0.05
"""Of a forward and a backward pass."""
LENGTHS = {"short": (MIX, *FIXED[:2]), "long": FIXED[2:]}
"""Windows that one backward pass does, and longer ones."""


def rows(which: str) -> tuple[str, ...]:
    """What is told of each case."""
    found = []
    for mix in LENGTHS[which]:
        found += [_row(mix, backward) for backward in (False, True)]
        found.append(_row_of_ours(mix))
    return tuple(found)


def _row(mix: str, backward: bool) -> str:
    asked = attentioncases.figures(mix, backward)
    demands = [f"{ratio:g}x {peer}" for peer, ratio in asked.ratios.items()]
    demands += [f"at least {asked.share:.0%} of a copy"] if asked.share else []
    return f"{name_of(mix, backward)}, bfloat16: {', '.join(demands)}"


def _row_of_ours(mix: str) -> str:
    return f"attention_{mix}: memory, gradient of the biases at most {MOST_OF_BIAS_GRADIENT:.0%}, statistics"


def chosen(context: Context, which: str) -> tuple[str, ...]:
    """All; a rehearsal need not see the same code for each length."""
    return LENGTHS[which][: 1 if context.rehearses else None]


def setting_of(context: Context, large_copy: float = 0.0) -> Setting:
    """Sizes of the cases here."""
    if context.rehearses:
        return dataclasses.replace(attentioncases.tiny(context.device), large_copy=large_copy)
    return attentioncases.on_gpu(context.device, large_copy)


def _inputs(setting: Setting, mix: str) -> attention.Inputs:
    with setting.device.stream():
        return setting.inputs(mix)


def warm(context: Context, notebook: Notebook, which: str) -> None:
    """Check everybody, those last that have to be compiled, so that the timing finds them in caches."""
    setting = setting_of(context)
    for mix in chosen(context, which):
        given = _inputs(setting, mix)
        for backward in (False, True):
            what = name_of(mix, backward)
            job = functools.partial(_warm_case, setting, given, mix, backward, context, notebook)
            notebook.attempt(f"{what}, compiled", job)


def _warm_case(
    setting: Setting, given: attention.Inputs, mix: str, backward: bool, context: Context, notebook: Notebook
) -> None:
    torch._dynamo.reset()
    case = attentioncases.case(setting, given, mix, backward)
    with context.device.stream(), context.kernels(setting.dtype):
        for is_compiled in (False, True):
            mine = [provider for provider in case.providers if (provider.name in COMPILED) == is_compiled]
            problems = {provider.name: verify(case, provider) for provider in mine}
            judge_providers(case.name + ", compiled ones" * is_compiled, problems, notebook)
    notebook.keep("compiled_attention", [case.name])


def timing(context: Context, notebook: Notebook, which: str) -> None:
    """Every case: checked, captured, timed in turns; then what is asked of ours alone."""
    device = context.device
    with device.stream():
        large = best_copy_bytes_per_s(context)
    setting = setting_of(context, large)
    warmed = verdicts.read(context.folder / f"warm_attention_{which}.jsonl")[1].get("compiled_attention", [])
    for mix in chosen(context, which):
        given = _inputs(setting, mix)
        for backward in (False, True):
            what = name_of(mix, backward)
            # What was not compiled in time before would take the time of what matters now.
            without = () if what in warmed else COMPILED
            for name in without:
                notebook.skip(f"{what}, {name}", "was not compiled in time")
            job = functools.partial(_time_case, setting, given, mix, backward, without, context, notebook)
            notebook.attempt(what, job)
            notebook.told(_row(mix, backward))
        notebook.attempt(f"attention_{mix}, memory", functools.partial(_memory, given, mix, context, notebook))
        notebook.attempt(f"attention_{mix}, ours alone", functools.partial(_alone, given, mix, context, notebook))
        notebook.told(_row_of_ours(mix))


def _timer(context: Context) -> GraphTimer:
    return GraphTimer(context.device, 0.0 if context.rehearses else COOL_DOWN_S, 1 if context.rehearses else WALL_CALLS)


def _time_case(
    setting: Setting,
    given: attention.Inputs,
    mix: str,
    backward: bool,
    without: Sequence[str],
    context: Context,
    notebook: Notebook,
) -> None:
    torch._dynamo.reset()
    device, timer = context.device, _timer(context)
    before = device.clocks()
    case = attentioncases.case(setting, given, mix, backward, timer)
    with context.kernels(setting.dtype), device.stream():
        found = attentioncases.measure_case(case, 1 if context.rehearses else REPEATS, without)
    device.synchronize()
    print(table.details(found, setting.large_copy / 1e9), flush=True)
    notebook.keep("rows", [dataclasses.asdict(row) for row in found])
    notebook.keep("clocks", [{"case": case.name, "before": before, "after": device.clocks()}])
    judge_providers(case.name, {row.provider: row.problem for row in found}, notebook)
    for provider in case.providers:
        if provider.run in timer.refused:
            notebook.note(f"{case.name}, {provider.name}: not captured, so timed with its launches",
                          timer.refused[provider.run])  # fmt: skip
    judge_demands(case.name, found, notebook)


def _ours(given: attention.Inputs) -> Callable[[], Any]:
    return attention.providers(given)[attention.OURS]


def _memory(given: attention.Inputs, mix: str, context: Context, notebook: Notebook) -> None:
    """What both passes take besides their results is less than queries do: nothing of all pairs is stored."""
    text = f"attention_{mix}: both passes store nothing as large as the queries besides their results"
    results, queries = attentioncases.results_bytes(given)
    job = _ours(given)
    with context.kernels(given.q.dtype):
        job()
        peak = context.device.peak_bytes(job)
    if peak is None:
        notebook.skip(text, "a CPU rehearses")
        return
    notebook.keep("attention_memory", [{"mix": mix, "peak": peak, "results": results, "queries": queries}])
    more = peak - results
    notebook.judge(text, more < queries, f"{more / 2**20:.1f} MiB, queries {queries / 2**20:.1f} MiB")


def _alone(given: attention.Inputs, mix: str, context: Context, notebook: Notebook) -> None:
    """With and without a gradient of the biases, and with a decay; statistics beside both passes."""
    timer, repeats = _timer(context), 1 if context.rehearses else REPEATS
    fixed = attentioncases.without_bias_gradient(given)
    jobs = [_ours(given), _ours(fixed), attentioncases.statistics(given), _ours(attention.with_decay(given))]
    with context.kernels(given.q.dtype), context.device.stream():
        for job in jobs:
            job()
        learned_s, fixed_s, statistics_s, decayed_s = attentioncases.medians(jobs, timer, repeats)
    context.device.synchronize()
    data = {
        "mix": mix,
        "seconds": learned_s,
        "without_bias_gradient": fixed_s,
        "statistics": statistics_s,
        "with_decay": decayed_s,
    }
    notebook.keep("attention_alone", [data])
    share = statistics_s / learned_s
    notebook.note(
        f"attention_{mix}: statistics beside both passes", f"{statistics_s * 1e6:.0f} us, {share:.1%} of them"
    )
    notebook.note(
        f"attention_{mix}: with a decay, as the package trains",
        f"{decayed_s * 1e6:.0f} us, {learned_s * 1e6:.0f} without",
    )
    text = f"attention_{mix}: the gradient of the biases costs at most {MOST_OF_BIAS_GRADIENT:.0%}"
    cost = learned_s / fixed_s - 1
    notebook.judge_time(text, cost <= MOST_OF_BIAS_GRADIENT, f"{cost:+.1%}, {learned_s * 1e6:.0f} us with it")


warm_short, warm_long = (functools.partial(warm, which=which) for which in LENGTHS)
timing_short, timing_long = (functools.partial(timing, which=which) for which in LENGTHS)
