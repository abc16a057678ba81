"""The token ops against what a masked autoencoder does without them, on a CPU.

The peer is the way of facebook/mae (He et al., CVPR 2022) in plain PyTorch: every patch embedded by one linear map, a
random order by two argsorts, kept tokens gathered, the full sequence put together again by concatenation and a second
gather, a prediction for every token, a loss on all of them that is masked at the end. There is no encoder and no
decoder: a random gradient of the full sequence stands for theirs. Both start from the same float32 samples [B, C, T]
and end with the gradients of all parameters. The tokens that each says it saw are counted, and its loss and every
gradient are compared with what those tokens give in float64 by `definitions`. Both run in one process that keeps freed
memory (`allocation`).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import allocation, alternatives, definitions, traffic
from benchmarks.harness import Case, Provider, Role
from benchmarks.opjobs import copy_on_cpu, on_threads
from benchmarks.workspace import Workspace
from physiofast import ops
from physiofast.masking import MaskingConfig, Planner
from physiofast.montage import MONTAGES

WINDOWS, WIDTH, KEEP = 64, 256, 0.25
NAMES = ("weight", "table", "mask_token", "decoder_table", "head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one forward and backward pass gives, and of what."""

    batch: Batch
    loss: Tensor
    parameters: Sequence[Tensor]
    """As `NAMES` names them."""
    gradients: Sequence[Tensor]
    visible: Callable[[], Tensor]
    """bool [B, N], asked for when the time is taken: whose tokens were seen; the others were predicted."""
    quotas: Tensor
    """int64 [B, G], how many had to be seen of each modality, or of all in one."""


class Batch:
    """Samples and parameters that both sides share."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.montage = MONTAGES["cinc2018"]
        channels, self.patches = len(self.montage.channels), self.montage.patches_per_window
        self.length = self.montage.patch_lengths[0]
        self.samples = torch.randn(WINDOWS, channels, self.patches * self.length, generator=generator)

        def parameter(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(size, generator=generator) * 0.05)

        tokens, kinds = self.montage.tokens, len(self.montage.modalities)
        self.weights = parameter(kinds * self.length, WIDTH)
        self.one_weight = parameter(self.length, WIDTH)
        self.table = parameter(tokens, WIDTH)
        self.mask_token = parameter(WIDTH)
        self.decoder_table = parameter(tokens, WIDTH)
        self.head = parameter(self.length, WIDTH)
        self.probe = torch.randn(tokens * WINDOWS, WIDTH, generator=generator)
        self.planner = Planner(self.montage, MaskingConfig(keep=KEEP, modality_dropout=0.0), seed=0)
        self.window_id = torch.arange(WINDOWS)
        self.capacity = np.stack([np.bincount(self.montage.token_modality, minlength=kinds)] * WINDOWS)

    def shape(self) -> traffic.Shape:
        """Sizes for the traffic of each op."""
        visible = round(KEEP * self.montage.tokens) * WINDOWS
        present = self.montage.tokens * WINDOWS
        return traffic.Shape(
            windows=WINDOWS,
            channels=len(self.montage.channels),
            tokens=self.montage.tokens,
            kinds=len(self.montage.modalities),
            visible=visible,
            hidden=present - visible,
            present=present,
            patch=self.length,
            width=WIDTH,
            sample_bytes=4,
            value_bytes=4,
        )

    def planned(self, step: int) -> tuple[ops.Rows, ops.Plan, Tensor, np.ndarray]:
        """Rows, a plan, the weights of the loss, and how many tokens of each modality are to be seen."""
        rows = ops.Rows.from_dense(self.samples, self.patches)
        quotas = self.planner.quotas(step, self.window_id, self.capacity)
        plan = self.planner.plan(step, self.window_id, rows.valid, quotas, self.capacity)
        hidden = (self.capacity - quotas).sum()
        return rows, plan, torch.full((len(self.montage.modalities),), 1.0 / float(hidden)), quotas


def ours(batch: Batch, in_one_pass: bool = True) -> Outcome:
    """Only visible patches are embedded and only hidden ones predicted, in one pass with their loss or before it."""
    rows, plan, weight, quotas = batch.planned(0)
    seen = ops.embed_patches(rows, plan.visible, batch.weights, batch.table)
    full = ops.assemble_tokens(seen, plan, batch.decoder_table, batch.decoder_table + batch.mask_token)
    full, of_hidden = ops.with_hidden(full, plan)
    if in_one_pass:
        loss, _, _ = ops.linear_masked_mse(of_hidden, batch.head, None, rows, plan.hidden, weight)
    else:
        loss, _, _ = ops.masked_mse(functional.linear(of_hidden, batch.head), rows, plan.hidden, weight)
    parameters = (batch.weights, batch.table, batch.mask_token, batch.decoder_table, batch.head)
    gradients = torch.autograd.grad((loss, full), parameters, (torch.ones_like(loss), batch.probe))
    return Outcome(
        batch=batch,
        loss=loss.detach(),
        parameters=parameters,
        gradients=gradients,
        visible=functools.partial(seen_by_plan, plan, WINDOWS, batch.montage.tokens),
        quotas=torch.from_numpy(quotas),
    )


def seen_by_plan(plan: ops.Plan, windows: int, tokens: int) -> Tensor:
    """bool [B, N], the visible tokens of a plan.

    Raises:
        ValueError: a token is not exactly one of visible and hidden.
    """
    times = torch.zeros(2, windows * tokens, dtype=torch.int64)
    for count, packing in zip(times, (plan.visible, plan.hidden), strict=True):
        ids = packing.ids[packing.ids >= 0].long()
        count.index_add_(0, ids, torch.ones_like(ids))
    if not bool((times.sum(0) == 1).all()):
        raise ValueError("a token is both visible and hidden, or neither, or several times")
    return times[0].bool().unflatten(0, (windows, tokens))


def mae_style(batch: Batch) -> Outcome:
    """Every token embedded, shuffled, put back and predicted."""
    patches = batch.samples.reshape(WINDOWS, -1, batch.length)
    count, spread = patches.shape[1], alternatives.expanded
    kept = round(KEEP * count)
    ids_keep, ids_restore, mask = alternatives.mae_sample(WINDOWS, count, kept, "cpu")
    seen = alternatives.mae_embed(patches, batch.one_weight, batch.table, ids_keep, spread)
    full = alternatives.mae_assemble(seen, batch.mask_token, batch.decoder_table, ids_restore, spread)
    loss = alternatives.mae_loss(functional.linear(full, batch.head), patches, mask, normalise=False)
    parameters = (batch.one_weight, batch.table, batch.mask_token, batch.decoder_table, batch.head)
    upstream = (torch.ones_like(loss), batch.probe.view_as(full))
    return Outcome(
        batch=batch,
        loss=loss.detach(),
        parameters=parameters,
        gradients=torch.autograd.grad((loss, full), parameters, upstream),
        visible=lambda: mask == 0,
        quotas=torch.full((WINDOWS, 1), kept),
    )


def gather_first(batch: Batch, compute: Callable[..., tuple[Tensor, Tensor]]) -> Outcome:
    """Visible tokens are gathered, then embedded, and hidden ones gathered, then predicted; `compute` is `gathered`."""
    patches = batch.samples.reshape(WINDOWS, -1, batch.length)
    count = patches.shape[1]
    kept = round(KEEP * count)
    ids_keep, _, mask = alternatives.mae_sample(WINDOWS, count, kept, "cpu")
    visible = (ids_keep + torch.arange(WINDOWS)[:, None] * count).flatten()
    hidden = mask.flatten().nonzero()[:, 0]
    parameters = (batch.one_weight, batch.table, batch.mask_token, batch.decoder_table, batch.head)
    loss, full = compute(patches.flatten(0, 1), visible, ids_keep.flatten(), hidden, *parameters)
    return Outcome(
        batch=batch,
        loss=loss.detach(),
        parameters=parameters,
        gradients=torch.autograd.grad((loss, full), parameters, (torch.ones_like(loss), batch.probe)),
        visible=lambda: mask == 0,
        quotas=torch.full((WINDOWS, 1), kept),
    )


def gathered(
    patches: Tensor,
    visible: Tensor,
    ids: Tensor,
    hidden: Tensor,
    weight: Tensor,
    table: Tensor,
    mask_token: Tensor,
    decoder_table: Tensor,
    head: Tensor,
) -> tuple[Tensor, Tensor]:
    """(loss, full sequence [B * N, D]) of patches [B * N, P]; `ids` are visible tokens' numbers in their windows."""
    seen = patches.index_select(0, visible) @ weight + table.index_select(0, ids)
    seen = seen + decoder_table.index_select(0, ids)
    full = (decoder_table + mask_token).repeat(WINDOWS, 1).index_copy(0, visible, seen)
    error = functional.linear(full.index_select(0, hidden), head) - patches.index_select(0, hidden)
    return error.square().mean(), full


def check(outcome: Any) -> str | None:
    """What is wrong with a pass: the tokens it saw are not as many as they should be, its loss, or a gradient."""
    batch, visible, modality = outcome.batch, outcome.visible(), torch.from_numpy(outcome.batch.montage.token_modality)
    groups = modality.long() if outcome.quotas.shape[1] > 1 else torch.zeros_like(modality).long()
    wrong = definitions.check_choice(visible, groups, outcome.quotas)
    if wrong:
        return wrong
    parameters = dict(zip(NAMES, outcome.parameters, strict=True))
    patches = batch.samples.reshape(len(visible), -1, batch.length)
    wanted = definitions.token_ops(patches, visible, groups, parameters, batch.probe.view(*visible.shape, -1))
    return definitions.compare(outcome.loss, dict(zip(NAMES, outcome.gradients, strict=True)), wanted)


def moved(shape: traffic.Shape) -> traffic.Traffic:
    """Of the whole chain: each op by its own least, so what one writes the next one reads."""
    chain = ("sample_plan", "embed_patches", "embed_patches_backward", "assemble_tokens", "assemble_tokens_backward")
    each = [*(traffic.OPS[op](shape) for op in (*chain, "take_hidden")), traffic.linear_masked_mse(shape)]
    return functools.reduce(operator.add, each)


def token_ops(space: Workspace) -> Case:
    """Plan, embedding, assembly, head and loss, forward and backward."""
    allocation.keep_freed_memory()
    batch, most = Batch(), max(space.threads)
    named: dict[str, tuple[Role, Callable[[], Outcome]]] = {
        "physiofast": ("ours", functools.partial(ours, batch)),
        "physiofast, head and loss apart": ("also", functools.partial(ours, batch, in_one_pass=False)),
        "facebook/mae style": ("peer", functools.partial(mae_style, batch)),
        "gather first": ("also", functools.partial(gather_first, batch, gathered)),
        "gather first, torch.compile": ("also", functools.partial(gather_first, batch, torch.compile(gathered))),
    }
    providers = [
        Provider(name=name, run=on_threads(run, most), role=role, threads=most) for name, (role, run) in named.items()
    ]
    shape = batch.shape()
    found = moved(shape)
    return Case(
        name="token_ops",
        title="plan, embed, assemble, predict, masked loss, forward and backward: B 64, 13 x 30 tokens, P 128, D 256",
        providers=[*providers, copy_on_cpu(found.moved, most)],
        check=check,
        required={most: 2.5},
        goal={most: 3.0},
        moved_bytes=found.moved,
        flops=found.flops,
        shape=dataclasses.asdict(shape) | {"dtype": "float32"},
        windows=WINDOWS,
    )
