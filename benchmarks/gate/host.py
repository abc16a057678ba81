"""What an op costs Python beyond the kernels that it starts.

There are two ways to start the same kernels with the same arguments, and neither alone tells everything:

- *bare Triton launches*, `kernel[grid](...)`, as anybody writes who has these kernels and nothing else. Triton binds
  and specialises the arguments in every call. What is required of an op is required above these.
- *the package's own starts*, `launching.BoundLaunch`, which skip that. An op goes through them, so it can take less
  than the bare Triton launches; only what it takes above its own starts is what checks, allocation, dispatch and
  autograd cost.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import subjects
from benchmarks.gate.context import Context
from benchmarks.gate.correctness import batches
from benchmarks.gate.verdicts import Notebook
from benchmarks.opbatch import PlanBatch
from benchmarks.subjects import SUBJECTS
from physiofast import ops
from physiofast.ops import backends
from physiofast.ops.calling import call

MOST_US = 8.0
"""Above bare Triton launches."""


def host(context: Context, notebook: Notebook) -> None:
    """Forward by the public function, with gradients recorded; backward by what PyTorch's engine has called."""
    with context.kernels(torch.float32):
        for name, job in jobs(context).items():
            with torch.set_grad_enabled(not name.endswith("_backward")):
                notebook.attempt(name, functools.partial(measure, name, job, context, notebook))
        notebook.attempt("linear_masked_mse", functools.partial(measure_linear, context, notebook))


def measure_linear(context: Context, notebook: Notebook) -> None:
    """`linear_masked_mse`, whose product is PyTorch's own: that is called before the bare Triton launches, too."""
    inputs = next(iter(batches(context, torch.float32).values()))
    x, head, bias, *_ = subjects.registered_calls(inputs, torch.float32)["linear_masked_mse"][1]
    arguments = (inputs.rows, inputs.plan.hidden, inputs.weight)
    job = functools.partial(ops.linear_masked_mse, x, head, bias, *arguments, patch_lengths=inputs.lengths)
    product = functools.partial(torch.nn.functional.linear, x, head, bias)
    measure("linear_masked_mse", job, context, notebook, product)


def jobs(context: Context) -> dict[str, Callable[[], Any]]:
    """Every op with kernels."""
    inputs = next(iter(batches(context, torch.float32).values()))
    found: dict[str, Callable[[], Any]] = {}
    for subject in SUBJECTS:
        if "scale_gradient" not in subject.covers:  # it multiplies the loss, by PyTorch
            drawn = subjects.draw(subject, inputs, torch.float32)
            found[subject.name] = lambda s=subject, d=drawn: s.call(inputs, *d.leaves)
    batch = PlanBatch(context.setting(128))
    found["sample_plan"] = lambda: ops.sample_plan(*batch.arguments, batch.sizes)
    for name, (_, arguments) in subjects.registered_calls(inputs, torch.float32).items():
        if name.endswith("_backward"):
            tensors = tuple(argument for argument in arguments if isinstance(argument, torch.Tensor))
            known = (tuple(arg) if isinstance(arg, list) else arg for arg in arguments[len(tensors) :])
            found[name] = functools.partial(call, name, tensors, tuple(known))
    grad, one = (torch.ones(shape, device=context.device.type) for shape in ((64,), ()))
    found["scale_gradient"] = functools.partial(backends.run, "scale_gradient", grad, one)
    return found


def measure(
    name: str,
    job: Callable[[], Any],
    context: Context,
    notebook: Notebook,
    first: Callable[[], Any] = lambda: None,
) -> None:
    """One line: what is required is above Triton's own call; what is above the package's starts stands beside it.

    Ops without kernels have nothing to be compared with.

    Args:
        name: of the op.
        job: calls it.
        context: device and rounds.
        notebook: gets the line.
        first: what of PyTorch's the op calls beside its kernels, and so does whoever starts them without it.
    """
    from physiofast.ops.triton.launching import written_down

    with written_down() as started:
        job()
    text = f"{name}: host time at most {MOST_US:g} us above its {len(started)} bare Triton launches"
    if not started:
        form = backends.form(name.split(",")[0], context.device.type, False)
        notebook.skip(text, f"its {form.backend} form starts no kernel of ours")
        return
    starts = (functools.partial(_by_triton, started), functools.partial(_by_package, started))
    jobs = (job, *(functools.partial(_one_after_the_other, first, start) for start in starts))
    whole, bare, own = _microseconds(jobs, context)
    found = {"op_us": whole, "bare_triton_us": bare, "package_starts_us": own}
    notebook.keep("host", [{"op": name, "launches": len(started)} | found])
    above = (
        f"bare Triton launches {bare:.1f}, {whole - bare:+.1f}; the package's own starts {own:.1f}, {whole - own:+.1f}"
    )
    notebook.judge_time(text, whole - bare <= MOST_US, f"{whole:.1f} us; {above}")


def _one_after_the_other(*jobs: Callable[[], Any]) -> None:
    for job in jobs:
        job()


def _by_triton(started: Sequence[Any]) -> None:
    """The same kernels with the same arguments by Triton's own call, as a user writes it."""
    for one in started:
        one.kernel[one.grid](*one.args, **one.constants, **one.launch.options, enable_fp_fusion=True)


def _by_package(started: Sequence[Any]) -> None:
    """The same by the starts that the op itself goes through."""
    for one in started:
        one.again()


def _microseconds(jobs: Sequence[Callable[[], Any]], context: Context) -> list[float]:
    """Of each, in turns; small work, so that the device is never what is waited for."""
    rounds, calls = (2, 1) if context.rehearses else (15, 30)
    found: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for times, job in zip(found, jobs, strict=True):
            context.device.synchronize()
            began = time.perf_counter()
            for _ in range(calls):
                job()
            times.append((time.perf_counter() - began) / calls * 1e6)
            context.device.synchronize()
    return [statistics.median(times) for times in found]
