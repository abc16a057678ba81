"""What per-op cases are built with: calls of providers, the check of their results, the figures required of a GPU."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import devices, traffic
from benchmarks.devices import GraphTimer
from benchmarks.harness import Case, Provider, Role, wall_seconds
from benchmarks.opbatch import Batch, PlanBatch, Setting

STORED = "physiofast, int16 samples as in a store"
OURS, TWIN, TWIN_COMPILED, COPY = "physiofast", "twin", "twin, torch.compile", "copy of the same bytes"
MAE, MAE_SHUFFLED, BEST = (
    "facebook/mae style",
    "facebook/mae style, with its two argsorts",
    "gather first, torch.compile",
)
MAE_EXPANDED = "facebook/mae style, its index expanded"
"""The index of its `gather` is no copy. What is required is required against what facebook/mae writes."""
BEST_COPIED = "gather first with a copy, torch.compile"
MULTIMAE, MULTIMAE_WHOLE = "MultiMAE's sampler", "MultiMAE's sampler, its quotas drawn too"
ARGSORTS = "two argsorts, as facebook/mae"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error over the largest value that a provider may have; ours is judged more strictly elsewhere."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a provider's call gave."""

    parts: tuple[Any, ...]
    as_defined: Callable[..., Sequence[Tensor]] = lambda *parts: parts
    """Of the parts: what the definition gives."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What is required of a GPU at the sizes of `opbatch.on_gpu`."""

    share: float | None = None
    ratios: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float | None = None


FIGURES = {
    "embed_patches": Figures(share=0.85, ratios={MAE: 12, BEST: 2.2}),
    "embed_patches_backward": Figures(share=0.70, ratios={MAE: 10, BEST: 1.7}),
    "assemble_tokens": Figures(share=0.85, ratios={MAE: 8, BEST: 1.2}),
    "masked_mse": Figures(share=0.88, ratios={MAE: 12, BEST: 2.0}),
    "sample_plan": Figures(ratios={MULTIMAE: 20}, seconds=60e-6),
}


class Job:
    """A provider's call, which is known by identity: a timer keeps what it captured of it."""

    def __init__(self, call: Callable[[], Any], as_defined: Callable[..., Sequence[Tensor]] | None = None) -> None:
        self._call, self._as_defined = call, as_defined

    def __call__(self) -> Outcome:
        found = self._call()
        parts = (found,) if isinstance(found, Tensor) else tuple(found)
        return Outcome(parts, self._as_defined) if self._as_defined else Outcome(parts)


def compiled(setting: Setting, function: Callable) -> Callable:
    """By torch.compile, for these sizes."""
    return torch.compile(function, backend=setting.compiler, mode=setting.compile_mode, dynamic=False)


def backward_only(forward: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor) -> Callable[[], Any]:
    """The gradients of what `forward` gives, which runs once."""
    # A compiled backward pass would write into what its forward saved, and could run once only.
    torch._functorch.config.donated_buffer = False
    kept: list[Tensor] = []

    def run() -> tuple[Tensor, ...]:
        if not kept:
            kept.append(forward())
        return torch.autograd.grad(kept[0], leaves, grad, retain_graph=True)

    return run


def quietly(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A call without gradients."""

    def run() -> Any:
        with torch.no_grad():
            return function(*arguments)

    return run


def autocast(setting: Setting, function: Callable) -> Callable:
    """The same within autocast to bfloat16, as the training program calls it."""
    return torch.autocast(setting.device.type, torch.bfloat16)(function)


def filled_rows(count: int, width: int) -> Callable[..., Sequence[Tensor]]:
    """The first `count` rows of features of a single result: those that tokens fill."""
    return lambda out: (out.reshape(-1, width)[:count],)


def copying(moved_bytes: int, device: str) -> Job:
    """Half of the bytes read, half written, and nothing to check."""
    return Job(devices.copying(max(moved_bytes // 2, 1), device))


def on_threads(run: Callable[[], Any], threads: int) -> Callable[[], Any]:
    """The same with as many of PyTorch's threads."""

    def call() -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(before)

    return call


def copy_on_cpu(moved_bytes: int, threads: int) -> Provider:
    """The provider that copies the bytes of a case."""
    run = on_threads(copying(moved_bytes, "cpu"), threads)
    return Provider(name=COPY, run=run, role="copy", threads=threads, check=lambda outcome: None)


def checked_against(expected: Sequence[Tensor], tolerance: float) -> Callable[[Outcome], str | None]:
    """Compare an outcome with the definition, part by part."""

    def check(outcome: Outcome) -> str | None:
        found = outcome.as_defined(*outcome.parts)
        if len(found) != len(expected):
            return f"{len(found)} results, {len(expected)} expected"
        for number, (have, want) in enumerate(zip(found, expected, strict=True)):
            if have.shape != want.shape:
                return f"result {number}: shape {tuple(have.shape)}, expected {tuple(want.shape)}"
            if not have.is_floating_point():
                if not torch.equal(have, want):
                    return f"result {number}: {int((have != want).sum())} of {want.numel()} numbers differ"
                continue
            largest = float(want.detach().abs().max())
            error = float((have.detach().double() - want.detach()).abs().max())
            if not error <= tolerance * largest:  # NaN is refused as well
                return f"result {number}: error {error:.3g}, allowed {tolerance:g} of {largest:.3g}"
        return None

    return check


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpCase:
    """What `build` has to know of a case beside its batch."""

    name: str
    title: str
    jobs: Mapping[str, Job]
    """By the name of the provider, which says what role it has."""
    check: Callable[[Any], str | None]
    checks: Mapping[str, Callable[[Any], str | None]] = dataclasses.field(default_factory=dict)
    """Of providers that do a job of their own."""
    moves: tuple[str, ...] = ()
    """Keys of `traffic.OPS` whose bytes and operations are the case's; that of its name where there are none."""
    twins_wait: bool = False
    """Whether the definition asks the device where tokens are, so that it cannot be captured."""


def build(case: OpCase, batch: Batch | PlanBatch, timer: GraphTimer | None) -> Case:
    """The case on a batch; without a timer of captured graphs, the wall is the clock."""
    setting, shape = batch.setting, batch.shape()
    moved = functools.reduce(operator.add, [traffic.OPS[op](shape) for op in case.moves or (case.name,)])
    roles: dict[str, Role] = dict.fromkeys((MAE, MAE_EXPANDED, BEST, BEST_COPIED, MULTIMAE), "peer")
    roles |= {OURS: "ours", COPY: "copy"}
    jobs = {**case.jobs, COPY: copying(moved.moved, setting.device.type)}
    checks = {**case.checks, COPY: lambda outcome: None}
    figures = FIGURES.get(case.name, Figures()) if setting.demanding else Figures()
    providers = [
        Provider(name=name, run=job, role=roles.get(name, "also"), threads=setting.threads, check=checks.get(name))
        for name, job in jobs.items()
    ]
    if timer and case.twins_wait:
        for name in {TWIN, TWIN_COMPILED} & set(jobs):
            timer.eager(jobs[name])
    return Case(
        name=case.name,
        title=case.title,
        providers=providers,
        check=case.check,
        moved_bytes=moved.moved,
        flops=moved.flops,
        device=setting.device.type,
        shape=dataclasses.asdict(shape) | {"dtype": str(setting.dtype).removeprefix("torch.")},
        seconds=timer or wall_seconds,
        idle=timer.nothing if timer else None,
        wall=timer.wall if timer else None,
        statistic="median" if timer else "min",
        large_copy=setting.large_copy,
        least_ratios=figures.ratios,
        least_share=figures.share,
        most_seconds=figures.seconds,
    )
