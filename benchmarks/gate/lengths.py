"""Attention of windows of every length in one batch: right, and each with the bits that it has alone."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from benchmarks import attention
from benchmarks.gate.context import Context
from benchmarks.gate.verdicts import Notebook
from physiofast.engine import native
from physiofast.ops import Packing

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
    """A batch of all, against the definition and against each window alone."""
    kind, device = str(dtype).removeprefix("torch."), context.device.type
    many = dtype == torch.bfloat16 and not context.rehearses  # each width compiles for a minute
    for width in (64, 96) if many else (64,):
        chosen = FEW if context.rehearses else LENGTHS
        given = attention.inputs(chosen, heads=2, width=width, device=device, dtype=dtype)
        found = attention.providers(given)[attention.OURS]()
        name = f"attention of windows of {min(chosen)} to {max(chosen)} tokens, {width} features, {kind}"
        wrong = attention.check(given, found)
        notebook.judge(f"{name}: by definition", wrong is None, wrong or "")
        text = f"{name}: each the same bits alone"
        if context.rehearses and dtype == torch.bfloat16 and not native:
            notebook.skip(text, "without the C++ extension the definition serves, which pads windows")
            continue
        ends = given.packing.cu_seqlens.tolist()
        spans = [slice(begin, end) for begin, end in zip(ends[:-1], ends[1:], strict=True)]
        others = [span.stop - span.start for span in spans if not _is_alone(given, found, span)]
        notebook.judge(text, not others, f"those of {sorted(set(others))} tokens differ" if others else "")


def _is_alone(given: attention.Inputs, found: attention.Outcome, mine: slice) -> bool:
    """Whether output and gradients of a window's tokens are, to the bit, those of the window without others."""
    q, k, v, grad = (t.detach()[mine].requires_grad_() for t in (given.q, given.k, given.v, given.grad))
    alone = dataclasses.replace(given, packing=_cut(given.packing, mine), q=q, k=k, v=v, grad=grad.detach())
    outcome = attention.providers(alone)[attention.OURS]()
    pairs = zip((outcome.out, *outcome.gradients[:3]), (found.out, *found.gradients[:3]), strict=True)
    return all(torch.equal(a, b[mine]) for a, b in pairs)


def _cut(packing: Packing, mine: slice) -> Packing:
    """Of one window."""
    count = mine.stop - mine.start
    ends = packing.cu_seqlens.new_tensor([0, count])
    modality: Tensor = packing.modality[mine]
    ids = torch.arange(count, dtype=torch.int32, device=modality.device)
    return dataclasses.replace(
        packing,
        ids=ids,
        cu_seqlens=ends,
        modality=modality,
        time_s=packing.time_s[mine],
        slot=packing.slot[:1],
        by_modality=ids,  # of no use to attention
        max_len=count,
    )
