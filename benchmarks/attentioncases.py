"""Benchmark cases of attention alone: windows of one length or of a modality-dropout mix, with a pass or with both.

`modality_attention` joins the harness of the token ops: every provider is checked, captured and timed in turns with a
copy of the same bytes. A CPU has sizes of its own, and no figures that are required.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import allocation, attention, attentionpeers, traffic
from benchmarks.attention import MASKED, Inputs, Outcome
from benchmarks.attentionpeers import DENSE, FLEX, FLEX_FEATURED, UNBIASED, VARLEN
from benchmarks.devices import Device, GraphTimer, copying
from benchmarks.harness import Case, Provider, Role, Row, measure, wall_seconds
from benchmarks.opjobs import COPY, OURS, TWIN, TWIN_COMPILED, Figures, copy_on_cpu, on_threads
from physiofast import ops

if TYPE_CHECKING:  # it needs packages that a machine for the gate does not have
    from benchmarks.workspace import Workspace

MIX = "mix"
"""Lengths as modality dropout leaves them: mean 49, at most 82."""
FIXED = ("50", "100", "200", "300", "400")
"""Windows that all have as many tokens."""
TURNS_OF_SLOW = 3
"""Where graphs are timed: FlexAttention's backward pass took 0.24 to 0.66 s a run, and a section has 100."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes, and where the ops run."""

    device: Device
    dtype: torch.dtype = torch.bfloat16
    windows: int = 512
    heads: int = 8
    width: int = 64
    kinds: int = 6
    shrink: int = 1
    """Lengths are divided by it, where nothing is measured."""
    compiler: str = "inductor"
    compile_mode: str | None = None
    """Of torch.compile, where it is not the default."""
    threads: int = 1
    without: tuple[str, ...] = ()
    """Peers that are left out."""
    large_copy: float = 0.0
    """Bytes per second of a large copy on the device."""
    demanding: bool = True
    """Whether the figures that are required of a GPU are asked for."""

    def lengths(self, mix: str) -> list[int]:
        """Tokens of each window."""
        given = attention.FEW_LENGTHS if mix == MIX else (int(mix),)
        return [max(1, given[i % len(given)] // self.shrink) for i in range(self.windows)]

    def inputs(self, mix: str) -> Inputs:
        """Random numbers, the same in every process."""
        sizes = {"heads": self.heads, "width": self.width, "kinds": self.kinds}
        return attention.inputs(self.lengths(mix), device=self.device.type, dtype=self.dtype, **sizes)


def on_gpu(device: Device, large_copy: float) -> Setting:
    """B 512, 8 heads of 64 features, bfloat16."""
    return Setting(device=device, large_copy=large_copy)


def on_cpu(device: Device, threads: int, large_copy: float) -> Setting:
    """B 32, 4 heads of 32 features, float32, so that a pass takes milliseconds.

    FlexAttention is left out: uncompiled it stores all pairs of the batch, and compiled it has no gradients on a CPU.
    """
    sizes = {"windows": 32, "heads": 4, "width": 32, "threads": threads, "large_copy": large_copy}
    return Setting(device=device, dtype=torch.float32, without=(FLEX, FLEX_FEATURED), demanding=False, **sizes)


def tiny(device: Device) -> Setting:
    """Sizes at which Triton's interpreter takes milliseconds; long windows still take two backward passes."""
    return Setting(
        device=device, dtype=torch.float32, windows=2, heads=1, width=16, kinds=3, shrink=10, compiler="eager"
    )


def figures(mix: str, backward: bool) -> Figures:
    """What an H200 has to reach, forward and with the backward pass."""
    ratios = {FLEX: 8.0, DENSE: 5.0} if backward else {FLEX: 3.0, DENSE: 5.0}
    if mix in ("50", "100"):
        ratios |= {UNBIASED: 1.7, VARLEN: 2.0} if backward else {UNBIASED: 1.4, VARLEN: 1.6}
    if mix == MIX:
        ratios |= {MASKED: 3.0}
    share = {MIX: 0.75, "50": 0.75, "100": 0.75, "200": 0.6, "300": 0.6}.get(mix)
    return Figures(share=share, ratios=ratios)


def name_of(mix: str, backward: bool) -> str:
    """Of a case."""
    return f"attention_{mix}" + ("" if backward else "_forward")


class Job:
    """A provider's call, which is known by identity: a timer keeps what it captured of it.

    Args:
        make: gives the form that runs; it is asked once, when the job runs first.
        given: what the form is run on.
        backward: with the gradients.
    """

    def __init__(self, make: Callable[[], attention.Form], given: Inputs, backward: bool) -> None:
        self._make, self._given, self._backward = functools.cache(make), given, backward

    def __call__(self) -> Outcome:
        return attention.run(self._given, self._make(), self._backward)


def case(setting: Setting, given: Inputs, mix: str, backward: bool, timer: GraphTimer | None = None) -> Case:
    """Everybody's way to compute attention of these windows.

    Args:
        setting: sizes and device.
        given: `setting.inputs(mix)`, which a case of both passes may share.
        mix: lengths.
        backward: forward and backward, and not forward alone.
        timer: of captured graphs; without one, the wall is the clock.
    """
    shape = attention.shape_of(given)
    passes = (traffic.modality_attention(shape), traffic.modality_attention_backward(shape))[: 1 + backward]
    moved = sum(one.moved for one in passes)
    asked = figures(mix, backward) if setting.demanding else Figures()
    jobs: dict[str, Callable[[], Any]] = {
        name: functools.partial(call) for name, call in attention.providers(given, backward=backward).items()
    }
    is_cuda = setting.device.type == "cuda"
    for name, make in attentionpeers.forms(given, setting.compiler, setting.compile_mode).items():
        if name in setting.without or (backward and name in (FLEX, FLEX_FEATURED) and not is_cuda):
            continue  # on a CPU FlexAttention has no backward pass
        jobs[name] = Job(make, given, backward)
    jobs |= _twins(given, backward, setting.compiler)
    if timer:
        for name in (TWIN, TWIN_COMPILED):
            timer.eager(jobs[name])  # they ask the device where tokens are
    jobs[COPY] = copying(moved // 2, setting.device.type)
    return Case(
        name=name_of(mix, backward),
        title=f"attention with learned biases, {'forward and backward' if backward else 'forward'}",
        providers=[_provider(name, job, asked, setting) for name, job in jobs.items()],
        check=functools.partial(attention.check, given),
        moved_bytes=moved,
        flops=sum(one.flops for one in passes),
        windows=setting.windows,
        device=setting.device.type,
        shape=attention.told(shape, setting.dtype),
        seconds=timer or wall_seconds,
        idle=timer.nothing if timer else None,
        wall=timer.wall if timer else None,
        statistic="median" if timer else "min",
        turns_of_slow=TURNS_OF_SLOW if timer else None,
        large_copy=setting.large_copy,
        least_ratios=asked.ratios,
        least_share=asked.share,
    )


def _twins(given: Inputs, backward: bool, compiler: str) -> dict[str, Callable[[], Any]]:
    """The definition as it stands, and compiled for these sizes.

    It asks for the longest window, where the compiler begins a second graph, and would tell it in twenty lines.
    """
    logging.getLogger("torch._dynamo.variables.tensor").setLevel(logging.ERROR)
    compiled = functools.partial(torch.compile, backend=compiler, dynamic=False)
    return {
        TWIN: attention.by_definition(given, backward),
        TWIN_COMPILED: attention.by_definition(given, backward, compiled),
    }


def _provider(name: str, job: Callable[[], Any], asked: Figures, setting: Setting) -> Provider:
    """Peers are those that something is required against; where nothing is, all others but the definition."""
    is_peer = name in asked.ratios or not (setting.demanding or name in (TWIN, TWIN_COMPILED))
    role: Role = "peer" if is_peer else "also"
    role = "ours" if name == OURS else "copy" if name == COPY else role
    check = (lambda outcome: None) if name == COPY else None
    return Provider(name=name, run=job, role=role, threads=setting.threads, check=check)


def _named(mix: str, backward: bool) -> Callable[[Setting, GraphTimer | None], Case]:
    def make(setting: Setting, timer: GraphTimer | None) -> Case:
        with setting.device.stream():
            given = setting.inputs(mix)
        return case(setting, given, mix, backward, timer)

    return make


CASES = {name_of(mix, backward): _named(mix, backward) for mix in (MIX, *FIXED) for backward in (False, True)}
"""By name, as those of `opcases`."""


def measure_case(found: Case, repeats: int, without: Collection[str] = ()) -> list[Row]:
    """Check and time a case.

    Args:
        found: of `case`.
        repeats: turns.
        without: names of providers that are left out, of whom then nothing is asked.
    """
    kept = [provider for provider in found.providers if provider.name not in without]
    there = {provider.name for provider in kept}
    ratios = {name: ratio for name, ratio in found.least_ratios.items() if name in there}
    return measure(dataclasses.replace(found, providers=kept, least_ratios=ratios), repeats)


# ---- both passes on a CPU ----------------------------------------------------------------------------------------


def few_lengths(space: Workspace) -> Case:
    """Windows of 12 distinct lengths."""
    lengths = [attention.FEW_LENGTHS[i % len(attention.FEW_LENGTHS)] for i in range(attention.WINDOWS)]
    return _together("attention_few", "12 distinct lengths", lengths, space, 1.5)


def all_lengths(space: Workspace) -> Case:
    """Windows that all differ in length."""
    return _together("attention_all", "all lengths distinct", attention.ALL_LENGTHS, space, 1.1)


def _together(name: str, what: str, lengths: Sequence[int], space: Workspace, required: float) -> Case:
    """Peers are PyTorch's scaled-dot-product attention, which the figure is required against; others are beside.

    Padded to the longest of all windows, or of groups of like length.
    """
    allocation.keep_freed_memory()
    torch._dynamo.reset()
    threads, given = max(space.threads), attention.inputs(lengths)
    jobs: dict[str, Callable[[], Any]] = dict(attention.providers(given))
    jobs[DENSE] = Job(attentionpeers.forms(given, "inductor")[DENSE], given, True)
    jobs |= _twins(given, True, "inductor")
    roles: dict[str, Role] = {OURS: "ours", DENSE: "also", TWIN: "also", TWIN_COMPILED: "also"}
    found = [
        Provider(name=provider, run=on_threads(job, threads), role=roles.get(provider, "peer"), threads=threads)
        for provider, job in jobs.items()
    ]
    for provider, groups in attention.GROUPED.items():
        job = attention.Grouped(given, groups)
        found.append(Provider(name=provider, run=on_threads(job, threads), threads=threads, check=job.check))
    shape = attention.shape_of(given)
    moved = traffic.modality_attention(shape) + traffic.modality_attention_backward(shape)
    return Case(
        name=name,
        title=f"biased attention, forward and backward: B {given.windows}, H {attention.HEADS}, "
        f"Dh {attention.WIDTH}, {what}",
        providers=[*found, copy_on_cpu(moved.moved, threads)],
        check=functools.partial(attention.check, given),
        required={threads: required},
        moved_bytes=moved.moved,
        flops=moved.flops,
        windows=given.windows,
        shape=attention.told(shape, given.q.dtype),
    )


TOGETHER: dict[str, Callable[[Workspace], Case]] = {"attention_few": few_lengths, "attention_all": all_lengths}
"""By name."""


# ---- what is measured of ours alone ------------------------------------------------------------------------------


def without_bias_gradient(given: Inputs) -> Inputs:
    """The same, but that the biases are not learned."""
    return dataclasses.replace(given, pair_bias=given.pair_bias.detach())


def statistics(given: Inputs) -> Callable[[], Any]:
    """The statistics of the same attention, three distances near."""
    options = {"pair_bias": given.pair_bias.detach(), "allowed": given.allowed, "tau_s": (1.0, 4.0, 10.0)}
    packed = (given.q.detach(), given.k.detach(), given.packing, given.packing)
    return functools.partial(ops.modality_attention_stats, *packed, **options)


def results_bytes(given: Inputs) -> tuple[int, int]:
    """(bytes of the output and all gradients, of one tensor of queries)."""
    rows = given.q.numel() * given.q.element_size()
    return 4 * rows + given.pair_bias.numel() * given.pair_bias.element_size(), rows


def medians(jobs: Sequence[Callable[[], Any]], timer: GraphTimer, repeats: int) -> list[float]:
    """Seconds of each, in turns, without what the timer itself takes."""
    turns = torch.tensor([[timer(job) for job in (timer.nothing, *jobs)] for _ in range(repeats)]).double()
    nothing, *found = turns.median(0).values.tolist()
    return [max(seconds - nothing, 1e-9) for seconds in found]
