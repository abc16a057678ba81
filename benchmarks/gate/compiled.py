"""torch.compile and CUDA graphs: one graph for all batches, and captures that see new contents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks import subjects
from benchmarks.gate.context import Context
from benchmarks.gate.verdicts import Notebook
from benchmarks.mixedbatch import Batch, make_batch
from benchmarks.subjects import SUBJECTS, Inputs
from physiofast import ops
from physiofast.masking import MaskingConfig, Planner
from physiofast.montage import MONTAGES
from physiofast.ops import Plan, Rows, backends

MOST_GRAPHS = 8


class Chain:
    """Samples to loss through every differentiable op, with parameters of its own.

    Args:
        device: type.
        windows: of a batch.
        width: D.
        patches: of a channel's window.
    """

    def __init__(self, device: str, windows: int, width: int, patches: int) -> None:
        whole = MONTAGES["cinc2018-mixed"].select(("C3-M2", "C4-M1", "E1-M2", "ECG", "ABD", "SaO2"))
        self.montage = dataclasses.replace(whole, window_s=float(patches))
        self.device, self.windows, self.width = device, windows, width
        self.planner = Planner(self.montage, MaskingConfig(keep=0.25, modality_dropout=0.2), seed=0)
        generator = torch.Generator().manual_seed(0)
        lengths, tokens = self.montage.patch_lengths, self.montage.tokens
        shapes = ((sum(lengths), width), (tokens, width), (tokens, width), (tokens, width), (width, max(lengths)))
        drawn = [torch.randn(shape, generator=generator) * 0.1 for shape in shapes]
        self.parameters = [tensor.to(device).requires_grad_() for tensor in drawn]

    def loss(self, rows: Rows, plan: Plan, weight: Tensor) -> Tensor:
        """Of the hidden patches."""
        weights, table, seen, unseen, head = self.parameters
        x = ops.embed_patches(rows, plan.visible, weights, table)
        heads = x.unflatten(1, (2, -1))
        x = x + ops.modality_attention(heads, heads, heads, plan.visible, plan.visible).flatten(1)
        full = ops.assemble_tokens(x, plan, seen, unseen)
        place = plan.present.slot.flatten()[plan.hidden.ids.clamp(min=0)].clamp(min=0)
        pred = torch.nn.functional.embedding(place, full) @ head
        return ops.masked_mse(pred, rows, plan.hidden, weight)[0]

    def batches(self, count: int) -> Iterator[tuple[Rows, Plan, Tensor]]:
        """Windows that lack channels and patches at random, each batch with a plan of its own."""
        random = np.random.default_rng(0)
        channels = len(self.montage.channels)
        lengths = np.asarray(self.montage.row_lengths)
        starts = np.cumsum(np.tile(lengths, self.windows)) - np.tile(lengths, self.windows)
        for step in range(count):
            samples = random.integers(-999, 999, int(lengths.sum()) * self.windows).astype(np.int16)
            here = random.random((self.windows, channels, 1)) < 0.9
            valid = here & (random.random((self.windows, channels, self.montage.patches_per_window)) < 0.95)
            ones = torch.full((self.windows, channels), 0.01)
            bits = torch.from_numpy(valid.reshape(self.windows, -1))
            start = torch.from_numpy(starts.reshape(self.windows, channels))
            tensors = (torch.from_numpy(samples), start, ones, torch.zeros_like(ones), bits)
            rows = Rows(*tensors, align=8, patch_lengths=self.montage.patch_lengths)
            window_id = torch.arange(self.windows) + step * self.windows
            capacity = self.planner.capacity(bits)
            quotas = self.planner.quotas(step, window_id, capacity)
            with ops.backend("reference"):
                plan = self.planner.plan(step, window_id, bits, quotas, capacity)
            weight = torch.from_numpy(self.planner.hidden_weight(quotas, capacity))
            yield ops.to_device(rows, self.device), ops.to_device(plan, self.device), weight.to(self.device)


def compiles(context: Context, notebook: Notebook) -> None:
    """Without a graph break, few graphs, none of them for sizes that were seen, the numbers of the eager run.

    Sizes of a batch are six numbers, T and `max_len` of three packings, each out of at most eight. There are many
    combinations, and a graph is not compiled for each: when one of the six differs for the first time PyTorch compiles
    a graph that no longer knows it, and again where two happened to be equal. So no more than a handful are compiled,
    most of them in the first batches; `dynamic=True` compiles one or two.
    """
    small = context.rehearses
    chain = Chain(context.device.type, *((2, 8, 4) if small else (8, 64, 30)))
    counter = CompileCounterWithBackend(context.compiler)
    torch._dynamo.reset()
    compiled = torch.compile(chain.loss, fullgraph=True, backend=counter)
    sizes: set[tuple[int, ...]] = set()
    again, worst, built = 0, 0.0, []
    for step, batch in enumerate(chain.batches(context.many)):
        before, size = counter.frame_count, _sizes(batch[1])
        loss = compiled(*batch)
        gradients = torch.autograd.grad(loss, chain.parameters)
        again += size in sizes and counter.frame_count > before
        built += [{"batch": step, "sizes": size}] * (counter.frame_count - before)
        sizes.add(size)
        if step % max(1, context.many // 10) == 0:
            wanted = chain.loss(*batch)
            want = torch.autograd.grad(wanted, chain.parameters)
            pairs = zip((loss.detach(), *gradients), (wanted.detach(), *want), strict=True)
            worst = max(worst, *(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))
    found = f"{counter.frame_count} graphs for {len(sizes)} combinations of sizes"
    notebook.keep("graphs", built)
    notebook.judge(f"torch.compile({context.compiler}), fullgraph, {context.many} batches: no graph break", True)
    notebook.judge(f"at most {MOST_GRAPHS} compiled graphs", counter.frame_count <= MOST_GRAPHS, found)
    notebook.judge("no recompilation for sizes that were seen before", again == 0, f"{again} recompilations")
    notebook.judge("compiled losses and gradients equal eager ones within 1e-4", worst <= 1e-4, f"{worst:.1e}")


def _sizes(plan: Plan) -> tuple[int, ...]:
    packings = (plan.visible, plan.hidden, plan.present)
    return (*(len(packing.ids) for packing in packings), *(packing.max_len for packing in packings))


def captures(context: Context, notebook: Notebook) -> None:
    """A captured forward and backward pass, replayed on other contents, gives what an eager one gives, bit for bit."""
    device = context.device.type
    first, second = (Inputs.of(batch, device, 32) for batch in _alike(context))
    for subject in SUBJECTS:
        text = f"{subject.name} in a CUDA graph, on other contents"
        form = backends.form(subject.covers[0], device, False)
        if device == "cuda" and form.backend != "triton":
            notebook.skip(text, f"{form.backend} form: {form.reason}")
            continue
        with context.kernels(torch.float32):
            wrong = notebook.attempt(text, functools.partial(_replay, subject, first, second, context))
        if wrong is not None:
            notebook.judge(text, not wrong, f"results {wrong} differ" if wrong else "")


def _replay(subject: subjects.Subject, first: Inputs, second: Inputs, context: Context) -> list[int]:
    """Numbers of the results that differ; captured on the first batch, replayed on the second."""
    drawn, other = (subjects.draw(subject, part, torch.float32, seed=i) for i, part in enumerate((first, second)))
    static, mine = _copies(first), _leaves(drawn)
    replay = context.device.capture(lambda: subjects.run(subject, static, mine))
    _overwrite(static, second)
    _overwrite((mine.leaves, mine.upstream), (other.leaves, other.upstream))
    context.device.synchronize()
    found = replay()
    context.device.synchronize()
    want = subjects.run(subject, second, other)
    return [i for i, (a, b) in enumerate(zip(found, want, strict=True)) if not torch.equal(a, b)]


def _alike(context: Context) -> tuple[Batch, Batch]:
    """Two batches of the same sizes and other contents."""
    options = {"rates": (33, 16, 4), "patches": 3 if context.rehearses else 10, "batch": 2 if context.rehearses else 8}
    first = make_batch(0, **options)
    for seed in range(1, 1000):
        other = make_batch(seed, **options)
        if [t.shape for t in _tensors(first.plan)] == [t.shape for t in _tensors(other.plan)]:
            return first, other
    raise RuntimeError("no two batches of the same sizes")


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _copies(inputs: Inputs) -> Inputs:
    rows, plan = (torch.utils._pytree.tree_map_only(Tensor, torch.clone, part) for part in (inputs.rows, inputs.plan))
    return dataclasses.replace(inputs, rows=rows, plan=plan, weight=inputs.weight.clone())


def _leaves(drawn: subjects.Drawn) -> subjects.Drawn:
    return subjects.Drawn([leaf.detach().clone().requires_grad_() for leaf in drawn.leaves], drawn.upstream.clone())


def _overwrite(target: object, source: object) -> None:
    """The contents of tensors that stay where they are."""
    if isinstance(target, Inputs) and isinstance(source, Inputs):
        target, source = (target.rows, target.plan, target.weight), (source.rows, source.plan, source.weight)
    with torch.no_grad():
        for mine, theirs in zip(_tensors(target), _tensors(source), strict=True):
            mine.copy_(theirs)
