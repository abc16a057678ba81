"""Attention of windows of every length in one batch: right, and each with the bits that it has alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import attention
from benchmarks.gate.context import Context
from benchmarks.gate.verdicts import Notebook
from physiofast.engine import native

LENGTHS = (1, 9, 16, 16, 2, 17, 32, 33, 3, 63, 64, 65, 100, 127, 128, 129, 200, 300, 5, 16, 31)
"""Either side of all that kernels tell apart; several short ones stand side by side."""
FEW = (3, 16, 9, 33, 2)
"""For a rehearsal."""


def lengths(context: Context, notebook: Notebook) -> None:
    """Every length, in each precision."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with context.kernels(dtype):
            notebook.attempt(f"windows of every length, {dtype}", functools.partial(compare, context, notebook, dtype))


def compare(context: Context, notebook: Notebook, dtype: torch.dtype) -> None:
    """A batch of all, against the definition and against each window alone; with a decay and, the first, without."""
    many = dtype == torch.bfloat16 and not context.rehearses  # each kernel compiles for a second or more
    chosen = FEW if context.rehearses else LENGTHS
    compare_one(context, notebook, dtype, 64, chosen, has_decay=True)
    if many:
        compare_one(context, notebook, dtype, 64, chosen, has_decay=False)
        compare_one(context, notebook, dtype, 96, chosen, has_decay=False)


def compare_one(
    context: Context, notebook: Notebook, dtype: torch.dtype, width: int, chosen: Sequence[int], *, has_decay: bool
) -> None:
    """Of windows of these lengths and heads of so many features."""
    kind = str(dtype).removeprefix("torch.")
    given = attention.inputs(chosen, heads=2, width=width, device=context.device.type, dtype=dtype)
    given = attention.with_decay(given) if has_decay else given
    found = attention.providers(given)[attention.OURS]()
    name = f"attention of windows of {min(chosen)} to {max(chosen)} tokens, {width} features, {kind}"
    name += ", with a decay" * has_decay
    wrong = attention.check(given, found)
    notebook.judge(f"{name}: by definition", wrong is None, wrong or "")
    text = f"{name}: each the same bits alone"
    if context.rehearses and dtype == torch.bfloat16 and not native:
        notebook.skip(text, "without the C++ extension the definition serves, which pads windows")
        return
    ends = given.packing.cu_seqlens.tolist()
    spans = [slice(begin, end) for begin, end in zip(ends[:-1], ends[1:], strict=True)]
    others = [span.stop - span.start for span in spans if not _is_alone(given, found, span)]
    notebook.judge(text, not others, f"those of {sorted(set(others))} tokens differ" if others else "")


def _is_alone(given: attention.Inputs, found: attention.Outcome, mine: slice) -> bool:
    """Whether output and gradients of a window's tokens are, to the bit, those of the window without others.

    Alone it stands first in a batch of as many windows and places, so that no kernel has to be compiled for it.
    """
    count = mine.stop - mine.start

    def alone(x: Tensor) -> Tensor:
        return torch.cat([x.detach()[mine], x.new_zeros(len(x) - count, *x.shape[1:])])

    packing = dataclasses.replace(
        given.packing,
        cu_seqlens=given.packing.cu_seqlens.clamp(0, 1) * count,
        modality=alone(given.packing.modality),
        time_s=alone(given.packing.time_s),
    )
    q, k, v = (alone(t).requires_grad_() for t in (given.q, given.k, given.v))
    outcome = attention.providers(dataclasses.replace(given, packing=packing, q=q, k=k, v=v, grad=alone(given.grad)))
    one = outcome[attention.OURS]()
    pairs = zip((one.out, *one.gradients[:3]), (found.out, *found.gradients[:3]), strict=True)
    return all(torch.equal(a[:count], b[mine]) for a, b in pairs)
