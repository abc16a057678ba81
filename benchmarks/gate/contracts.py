"""What registered ops promise: schemas, the same bits every time, and plans that are the definition's."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from torch import Tensor

from benchmarks import subjects
from benchmarks.gate.context import Context
from benchmarks.gate.correctness import batches
from benchmarks.gate.verdicts import Notebook
from benchmarks.mixedbatch import make_batch
from benchmarks.opbatch import PlanBatch
from benchmarks.subjects import SUBJECTS
from physiofast import ops
from physiofast.ops import reference, registration


def contracts(context: Context, notebook: Notebook) -> None:
    """opcheck, plans, reproducibility."""
    inputs = next(iter(batches(context, torch.float32).values()))
    if context.rehearses:
        inputs = subjects.Inputs.of(make_batch(1, rates=(17, 4, 2), patches=2, batch=2), context.device.type, 8)
    with warnings.catch_warnings(), context.kernels(torch.float32):
        warnings.simplefilter("ignore")
        notebook.attempt("opcheck", lambda: opcheck(inputs, context, notebook))
        notebook.attempt("plans", lambda: plans(context, notebook))
        for subject in SUBJECTS:
            job = functools.partial(again, subject, inputs, context, notebook)
            notebook.attempt(f"{subject.name}: the same bits in every run", job)


def opcheck(inputs: subjects.Inputs, context: Context, notebook: Notebook) -> None:
    """Schema, fake tensors, autograd registration and tracing of every op, with the arguments of a real call."""
    calls = subjects.registered_calls(inputs, torch.float32)
    with subjects.Calls() as other:
        ops.take_patches(inputs.rows, inputs.plan.hidden, patch_lengths=inputs.lengths)
        ops.sample_plan(*_plan_arguments(PlanBatch(context.setting(128))))
    for name in registration.OPS:
        op, arguments = calls.get(name) or other.found.get(name) or (None, ())
        if op is None:
            notebook.judge(f"opcheck of {name}", False, "no call of benchmarks/subjects.py leads to it")
            continue
        job = functools.partial(torch.library.opcheck, op, arguments)
        if notebook.attempt(f"opcheck of {name}", job):
            notebook.judge(f"opcheck of {name}", True)


def _plan_arguments(batch: PlanBatch) -> tuple[object, ...]:
    return (*batch.arguments, batch.sizes)


def plans(context: Context, notebook: Notebook) -> None:
    """Random words, and all tensors of a plan, are those of the definition on a CPU, bit for bit."""
    random = np.random.default_rng(0)
    shapes = ((3, (2, 1), 3), (7, (6, 1, 1, 1, 3, 1), 30), (1024, (6, 1, 1, 1, 3, 1), 30), (2, (1,) * 20, 100))
    for windows, channels, patches in shapes[: 1 if context.rehearses else None]:
        kind = np.repeat(np.arange(len(channels)), np.asarray(channels) * patches).astype(np.int32)
        valid = random.random((windows, len(kind))) < 0.9
        capacity = np.stack([valid[:, kind == m].sum(1) for m in range(len(channels))], 1)
        quotas = random.integers(0, capacity + 1)
        seeds = (random.integers(0, 2**62, windows), random.integers(0, 2**62, 2))
        times = random.random(len(kind)).astype(np.float32)
        tensors = [torch.from_numpy(part) for part in (quotas, valid, *seeds, kind, times)]
        used = (quotas.sum(), (capacity - quotas).sum(), capacity.sum())
        totals = [int(count) + 9 for count in used]
        want = reference.sample_plan(*tensors, totals)
        found = torch.ops.physiofast.sample_plan(*(t.to(context.device.type) for t in tensors), totals)
        wrong = [i for i, (a, b) in enumerate(zip(found, want, strict=True)) if not torch.equal(a.cpu(), b)]
        text = f"Philox words, sort and packings of {windows} windows of {len(kind)} tokens equal the definition's"
        notebook.judge(text, not wrong, f"tensors {wrong} differ" if wrong else "")


def again(subject: subjects.Subject, inputs: subjects.Inputs, context: Context, notebook: Notebook) -> None:
    """Values and gradients have the same bits in every run, whatever lies in the memory that they are written to."""
    rounds = 2 if context.rehearses else 20
    drawn = subjects.draw(subject, inputs, torch.float32)
    first = [tensor.clone() for tensor in subjects.run(subject, inputs, drawn)]
    same = all(_same_bits(first, _run_on_noise(subject, inputs, drawn, i)) for i in range(rounds))
    notebook.judge(f"{subject.name}: the same bits in {rounds} runs", same)


def _run_on_noise(subject: subjects.Subject, inputs: subjects.Inputs, drawn: subjects.Drawn, seed: int) -> list[Tensor]:
    """With freed memory full of large numbers, and once every few rounds of NaN."""
    device = inputs.rows.row_start.device
    noise = [torch.full((1 << size,), float("nan") if seed % 3 == 0 else 1e9, device=device) for size in range(8, 20)]
    del noise
    return subjects.run(subject, inputs, drawn)


def _same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(map(_flat, first), map(_flat, second), strict=True)
    )


def _flat(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1)
