"""All sections in their order, with the seconds that each may take on a GPU."""

from __future__ import annotations

from benchmarks import precision
from benchmarks.gate import attention, compiled, contracts, correctness, host, lengths, machine, sanitized, step, timing
from benchmarks.gate.runner import Section
from benchmarks.subjects import SUBJECTS

_WIDER = {s.name: ", ".join(f"result {i} {x * precision.IEEE:g}" for i, x in s.slack.items()) for s in SUBJECTS}
_IEEE = f"{precision.IEEE:g}" + "".join(f"; of {name}, {wider}" for name, wider in _WIDER.items() if wider)
_PRECISIONS = {
    "float32": (correctness.float32, f"float32 with IEEE products: error at most {_IEEE}"),
    "tf32x3": (correctness.tf32x3, f"float32 with products of three TF32 ones: error at most {precision.TF32X3:g}"),
    "float16": (correctness.float16, "float16: error at most twice PyTorch's"),
    "bfloat16": (correctness.bfloat16, "bfloat16: error at most twice PyTorch's"),
}
_ALL = (
    Section(
        name="machine",
        run=machine.machine,
        seconds=60,
        phase=0,
        rows=("copy by size", "cost of a launch", "cost of a sort"),
    ),
    *(
        Section(name=name, run=run, seconds=200, phase=1, rows=(f"values and gradients of every op, {text}",))
        for name, (run, text) in _PRECISIONS.items()
    ),
    Section(
        name="contracts",
        run=contracts.contracts,
        seconds=200,
        phase=1,
        rows=("opcheck of every op", "plans equal to the definition's, bit for bit", "the same bits in every run"),
    ),
    Section(
        name="lengths",
        run=lengths.lengths,
        seconds=200,
        phase=1,
        rows=("attention of windows of 1 to 300 tokens: by definition, and each the same bits alone",),
    ),
    Section(
        name="compile",
        run=compiled.compiles,
        seconds=200,
        phase=1,
        rows=("torch.compile: no graph break, at most 8 graphs, no late recompilation in 1,000 batches",),
    ),
    Section(
        name="capture",
        run=compiled.captures,
        seconds=200,
        phase=1,
        rows=("every op in a CUDA graph, on other contents",),
    ),
    Section(
        name="sanitizer",
        run=sanitized.sanitized,
        seconds=sanitized.SECONDS + 30,  # for what is imported before and after the tools run
        phase=1,
        rows=tuple(f"compute-sanitizer {tool}" for tool in sanitized.TOOLS),
    ),
    Section(name="warm_128", run=timing.warm_128, seconds=260, phase=1, rows=()),
    Section(name="warm_100", run=timing.warm_100, seconds=210, phase=1, rows=()),
    Section(name="warm_attention_short", run=attention.warm_short, seconds=260, phase=1, rows=()),
    Section(name="warm_attention_long", run=attention.warm_long, seconds=260, phase=1, rows=()),
    Section(
        name="host",
        run=host.host,
        seconds=40,
        phase=2,
        rows=(f"host time of each op at most {host.MOST_US:g} us above its bare Triton launches",),
    ),
    Section(name="timing_128", run=timing.timing_128, seconds=110, phase=3, rows=timing.rows(128)),
    Section(name="attention_short", run=attention.timing_short, seconds=80, phase=5, rows=attention.rows("short")),
    Section(name="attention_long", run=attention.timing_long, seconds=100, phase=6, rows=attention.rows("long")),
    Section(
        name="step",
        run=step.step,
        seconds=60,
        phase=7,
        rows=("a whole training step, kernels against definitions, joint and cross decoder; statistics in it",),
    ),
    Section(name="timing_100", run=timing.timing_100, seconds=100, phase=8, rows=timing.rows(100)),
)
SECTIONS = {section.name: section for section in _ALL}
"""By name, in their order."""
