"""Benchmark cases of the token ops, one an op, on a CPU or a GPU.

All providers of a case do the same job on the same tensors and are compared with the same float64 definition. Their
results come with a function that brings them to the definition's form (an op has weights for each modality where an
alternative has one for all); it runs when results are checked and never when they are timed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import alternatives
from benchmarks.devices import GraphTimer
from benchmarks.harness import Case, Row, measure
from benchmarks.opbatch import Batch, PlanBatch, Setting
from benchmarks.opjobs import (
    ARGSORTS,
    BEST,
    BEST_COPIED,
    MAE,
    MAE_EXPANDED,
    MAE_SHUFFLED,
    MULTIMAE,
    MULTIMAE_WHOLE,
    OURS,
    STORED,
    TOLERANCE,
    TWIN,
    TWIN_COMPILED,
    Job,
    OpCase,
    Outcome,
    autocast,
    backward_only,
    build,
    checked_against,
    compiled,
    filled_rows,
    quietly,
)
from physiofast import ops
from physiofast.ops import reference


def _embed_arguments(batch: Batch) -> tuple[tuple[Any, ...], tuple[Tensor, ...], tuple[Any, ...]]:
    """(rows, packed and order, lengths and alignment) of the registered op."""
    rows, seen = batch.rows, batch.plan.visible
    where = (rows.samples, rows.row_start, rows.row_scale, rows.row_shift)
    packed = (seen.ids, seen.modality, seen.slot, seen.by_modality, seen.cu_modality)
    return where, packed, (list(batch.montage.patch_lengths), rows.align, rows.is_unscaled)


def embed_patches(setting: Setting, timer: GraphTimer | None = None, as_trained: bool = False) -> Case:
    """Forward.

    Args:
        setting: sizes and device.
        timer: of captured graphs.
        as_trained: in float32 within autocast to bfloat16, as the training program calls it. There the op multiplies in
            float32, and the products of alternatives are in bfloat16.
    """
    setting, lowered, allowed = _precision(setting, as_trained)
    batch = Batch(setting)
    where, packed, known = _embed_arguments(batch)
    count, width = len(batch.flat_visible), setting.width
    ours = functools.partial(ops.embed_patches, batch.rows, batch.plan.visible)
    twin = (*where, *packed, batch.weights, batch.table, *known)
    alternative = (batch.patches, batch.weight, batch.table)
    mae = lowered(alternatives.mae_embed)

    def with_argsorts() -> Tensor:
        kept = alternatives.mae_sample(setting.windows, batch.tokens, batch.kept, setting.device.type)[0]
        return mae(*alternative, kept)

    stored = functools.partial(ops.embed_patches, batch.stored, batch.plan.visible)
    jobs = {
        OURS: quietly(lowered(ours), batch.weights, batch.table),
        STORED: quietly(lowered(stored), batch.weights, batch.table),
        TWIN: quietly(reference.embed_patches, *twin),
        TWIN_COMPILED: quietly(compiled(setting, reference.embed_patches), *twin),
        MAE: quietly(mae, *alternative, batch.ids_keep),
        MAE_EXPANDED: quietly(mae, *alternative, batch.ids_keep, alternatives.expanded),
        MAE_SHUFFLED: quietly(with_argsorts),
        BEST: quietly(lowered(compiled(setting, alternatives.gather_embed)), *alternative, batch.flat_visible),
    }
    if as_trained:
        del jobs[TWIN_COMPILED]  # the same as of `embed_patches`, and it takes long to compile
    exact = (batch.weight.detach().double(), batch.table.detach().double(), batch.flat_visible)
    expected, of_stored = (
        [alternatives.gather_embed(patches, *exact)] for patches in (batch.patches.double(), batch.stored_patches)
    )
    checks = dict.fromkeys((MAE, MAE_EXPANDED, BEST), checked_against(expected, allowed))
    found = OpCase(
        name="embed_patches_float32" if as_trained else "embed_patches",
        title="samples of visible patches to tokens" + _AS_TRAINED * as_trained,
        jobs={name: Job(call, filled_rows(count, width)) for name, call in jobs.items()},
        check=checked_against(expected, TOLERANCE[setting.dtype]),
        checks=checks
        | {
            MAE_SHUFFLED: lambda outcome: None if outcome.parts[0].isfinite().all() else "not finite",
            STORED: checked_against(of_stored, TOLERANCE[setting.dtype]),
        },
        moves=("embed_patches",),
        twins_wait=True,
    )
    return build(found, batch, timer)


_AS_TRAINED = ", in float32, and alternatives' products in bfloat16 by autocast"


def _precision(setting: Setting, as_trained: bool) -> tuple[Setting, Callable[[Callable], Callable], float]:
    """(setting, what wraps calls, largest error of alternatives) where float32 is kept or lowered as in training."""
    if not as_trained:
        return setting, lambda function: function, TOLERANCE[setting.dtype]
    setting = dataclasses.replace(setting, dtype=torch.float32)
    return setting, functools.partial(autocast, setting), TOLERANCE[torch.bfloat16]


def embed_patches_backward(setting: Setting, timer: GraphTimer | None = None, as_trained: bool = False) -> Case:
    """Gradients of weights and table; see `embed_patches`."""
    setting, lowered, allowed = _precision(setting, as_trained)
    batch = Batch(setting)
    where, packed, known = _embed_arguments(batch)
    count, width = len(batch.flat_visible), setting.width
    grad = batch.draw(len(batch.plan.visible.ids), width)
    dense = grad[:count]
    kept = batch.ids_keep.shape
    alternative = (batch.patches, batch.weight, batch.table)
    arguments = (batch.rows, batch.plan.visible, batch.weights, batch.table)
    gathered = compiled(setting, alternatives.gather_embed)
    twin = (grad, *where, *packed, batch.weights, *known, False)

    def per_modality(dweights: Tensor, dtable: Tensor, *none: Tensor) -> Sequence[Tensor]:
        return dweights.view(batch.kinds, batch.length, width).double().sum(0), dtable

    ours = functools.partial(ops.embed_patches, *arguments)
    stored = functools.partial(ops.embed_patches, batch.stored, *arguments[1:])
    mae = functools.partial(alternatives.mae_embed, *alternative, batch.ids_keep)
    expanded = functools.partial(mae, spread=alternatives.expanded)
    best = functools.partial(gathered, *alternative, batch.flat_visible)
    weights, leaves, stacked = (batch.weights, batch.table), (batch.weight, batch.table), dense.view(*kept, width)
    jobs = {
        OURS: Job(backward_only(lowered(ours), weights, grad), per_modality),
        STORED: Job(backward_only(lowered(stored), weights, grad), per_modality),
        TWIN: Job(quietly(reference.embed_patches_backward, *twin), per_modality),
        TWIN_COMPILED: Job(quietly(compiled(setting, reference.embed_patches_backward), *twin), per_modality),
        MAE: Job(backward_only(lowered(mae), leaves, stacked)),
        MAE_EXPANDED: Job(backward_only(lowered(expanded), leaves, stacked)),
        BEST: Job(backward_only(lowered(best), leaves, dense)),
    }
    if as_trained:
        del jobs[TWIN_COMPILED]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]

    def gradients(patches: Tensor) -> Sequence[Tensor]:
        definition = alternatives.gather_embed(patches, exact[0], exact[1], batch.flat_visible)
        return torch.autograd.grad(definition, exact, dense.double())

    tolerance, expected = TOLERANCE[setting.dtype], gradients(batch.patches.double())
    checks = dict.fromkeys((MAE, MAE_EXPANDED, BEST), checked_against(expected, allowed))
    found = OpCase(
        name="embed_patches_float32_backward" if as_trained else "embed_patches_backward",
        title="gradients of weights and table from those of visible tokens" + _AS_TRAINED * as_trained,
        jobs=jobs,
        check=checked_against(expected, tolerance),
        checks=checks | {STORED: checked_against(gradients(batch.stored_patches), tolerance)},
        moves=("embed_patches_backward",),
        twins_wait=True,
    )
    return build(found, batch, timer)


def take_tokens(setting: Setting, timer: GraphTimer | None = None) -> Case:
    """Forward."""
    batch = Batch(setting)
    x, seen = batch.draw(setting.windows, batch.tokens, setting.width), batch.plan.visible
    count = len(batch.flat_visible)
    jobs = {
        OURS: quietly(ops.take_tokens, x, seen),
        TWIN: quietly(reference.take_tokens, x, seen.ids, seen.slot),
        TWIN_COMPILED: quietly(compiled(setting, reference.take_tokens), x, seen.ids, seen.slot),
        MAE: quietly(alternatives.mae_take, x, batch.ids_keep),
        MAE_EXPANDED: quietly(alternatives.mae_take, x, batch.ids_keep, alternatives.expanded),
        BEST: quietly(compiled(setting, alternatives.gather_take), x, batch.flat_visible),
    }
    found = OpCase(
        name="take_tokens",
        title="visible tokens of features of all",
        jobs={name: Job(call, filled_rows(count, setting.width)) for name, call in jobs.items()},
        check=checked_against([alternatives.gather_take(x.double(), batch.flat_visible)], 0.0),
    )
    return build(found, batch, timer)


def take_hidden(setting: Setting, timer: GraphTimer | None = None) -> Case:
    """Forward; and backward, beside a gradient that all present tokens have by another way."""
    batch = Batch(setting)
    plan, width = batch.plan, setting.width
    present, hidden = setting.windows * batch.tokens, len(batch.flat_hidden)
    x = batch.draw(len(plan.present.ids), width).requires_grad_()
    dense = x.detach()[:present].requires_grad_()
    upstream = (batch.draw(len(x), width), batch.draw(len(plan.hidden.ids), width))
    dense_upstream = (upstream[0][:present], upstream[1][:hidden])
    indices = (plan.hidden.ids, plan.present.ids, plan.hidden.slot, plan.present.slot)

    def both(forward: Callable[[], tuple[Tensor, Tensor]], leaf: Tensor, grads: Sequence[Tensor]) -> Job:
        def run() -> tuple[Tensor, ...]:
            found = forward()
            return (found[1].detach(), *torch.autograd.grad(found, leaf, grads))

        return Job(run, defined)

    def defined(of_hidden: Tensor, dx: Tensor) -> Sequence[Tensor]:
        return of_hidden[:hidden], dx[:present]

    def twin(forward: Callable = reference.take_hidden, back: Callable = reference.take_hidden_backward) -> Any:
        return forward(x.detach(), *indices), back(upstream[1], upstream[0], indices[1], indices[2])

    twins = [compiled(setting, f) for f in (reference.take_hidden, reference.take_hidden_backward)]
    gathered, copied = (compiled(setting, f) for f in (alternatives.gather_hidden, alternatives.gather_hidden_copied))
    jobs = {
        OURS: both(lambda: ops.with_hidden(x, plan), x, upstream),
        TWIN: Job(twin, defined),
        TWIN_COMPILED: Job(functools.partial(twin, *twins), defined),
        BEST: both(lambda: gathered(dense, batch.flat_hidden), dense, dense_upstream),
        BEST_COPIED: both(lambda: copied(dense, batch.flat_hidden), dense, dense_upstream),
    }
    exact = dense.detach().double().requires_grad_()
    definition = alternatives.gather_hidden(exact, batch.flat_hidden)
    dx = torch.autograd.grad(definition, exact, [grad.double() for grad in dense_upstream])
    found = OpCase(
        name="take_hidden",
        title="hidden tokens of features of all, forward and backward beside a gradient of all",
        jobs=jobs,
        check=checked_against((definition[1].detach(), *dx), TOLERANCE[setting.dtype]),
    )
    return build(found, batch, timer)


def assemble_tokens(setting: Setting, timer: GraphTimer | None = None) -> Case:
    """Forward and backward."""
    batch = Batch(setting)
    plan, width, windows = batch.plan, setting.width, setting.windows
    encoded = batch.draw(len(plan.visible.ids), width).requires_grad_()
    dense = encoded.detach()[: len(batch.flat_visible)].requires_grad_()
    stacked = dense.detach().view(windows, batch.kept, width).requires_grad_()
    hidden_table = (batch.decoder_table + batch.mask_token).detach().requires_grad_()
    slot = torch.where(plan.visible.slot >= 0, plan.visible.slot, -1).long()
    grad = batch.draw(len(plan.present.ids), width)
    full = grad[: windows * batch.tokens].view(windows, batch.tokens, width)
    tables = (batch.decoder_table, hidden_table)
    indices = (plan.visible.ids, plan.present.ids, plan.visible.slot, plan.present.slot)

    def both(forward: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor) -> Callable[[], Any]:
        def run() -> tuple[Tensor, ...]:
            out = forward()
            return (out.detach(), *torch.autograd.grad(out, leaves, upstream))

        return run

    def twin(forward: Callable = reference.assemble_tokens, back: Callable = reference.assemble_tokens_backward) -> Any:
        out = forward(encoded.detach(), *indices, *(table.detach() for table in tables))
        return (out, *back(grad, indices[0], *indices[2:], tables[0].detach()))

    gathered = compiled(setting, alternatives.gather_assemble)
    twins = [compiled(setting, f) for f in (reference.assemble_tokens, reference.assemble_tokens_backward)]

    def two_tables(out: Tensor, dencoded: Tensor, dvisible: Tensor, dhidden: Tensor) -> Sequence[Tensor]:
        tokens, kept = windows * batch.tokens, windows * batch.kept
        dtable = dvisible.double() + dhidden.double()
        return out.reshape(-1, width)[:tokens], dencoded.reshape(-1, width)[:kept], dtable, dhidden.double().sum(0)

    def one_table(out: Tensor, dencoded: Tensor, dmask: Tensor, dtable: Tensor) -> Sequence[Tensor]:
        return out.reshape(-1, width), dencoded.reshape(-1, width), dtable, dmask

    mae = functools.partial(
        alternatives.mae_assemble, stacked, batch.mask_token, batch.decoder_table, batch.ids_restore
    )
    expanded = functools.partial(mae, spread=alternatives.expanded)
    leaves = (stacked, batch.mask_token, batch.decoder_table)
    jobs = {
        OURS: Job(both(lambda: ops.assemble_tokens(encoded, plan, *tables), (encoded, *tables), grad), two_tables),
        TWIN: Job(twin, two_tables),
        TWIN_COMPILED: Job(functools.partial(twin, *twins), two_tables),
        MAE: Job(both(mae, leaves, full), one_table),
        MAE_EXPANDED: Job(both(expanded, leaves, full), one_table),
        BEST: Job(both(lambda: gathered(dense, *tables, slot), (dense, *tables), full), two_tables),
    }
    exact = [t.detach().double().requires_grad_() for t in (dense, *tables)]
    out = alternatives.gather_assemble(*exact, slot)
    expected = two_tables(out.detach(), *torch.autograd.grad(out, exact, full.double()))
    found = OpCase(
        name="assemble_tokens",
        title="encodings back among the hidden tokens, forward and backward",
        jobs=jobs,
        check=checked_against(expected, TOLERANCE[setting.dtype]),
        moves=("assemble_tokens", "assemble_tokens_backward"),
    )
    return build(found, batch, timer)


def masked_mse(setting: Setting, timer: GraphTimer | None = None, normalise: bool = False) -> Case:
    """Loss and gradient."""
    batch = Batch(setting)
    rows, hidden, flat = batch.rows, batch.plan.hidden, batch.flat_hidden
    pred, pred_all = batch.pred_hidden, batch.pred_all
    dense = pred.detach()[: len(flat)].requires_grad_()
    flags = [normalise] * batch.kinds
    mask = (batch.plan.visible.slot < 0).to(setting.dtype)
    where = (rows.samples, rows.row_start, rows.row_scale, rows.row_shift, hidden.ids, hidden.modality, hidden.slot)
    twin = (pred.detach(), *where, batch.loss_weight, list(batch.montage.patch_lengths), list(map(int, flags)), 1)
    gathered = compiled(setting, alternatives.gather_loss)

    def with_gradient(leaf: Tensor, loss_of: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        def run() -> tuple[Tensor, Tensor]:
            found = loss_of(*arguments)
            loss = found if isinstance(found, Tensor) else found[0]
            return loss.detach(), torch.autograd.grad(loss, leaf)[0]

        return run

    def filled(loss: Tensor, *others: Tensor) -> Sequence[Tensor]:
        return loss, others[-1][: len(flat)]

    def of_all(loss: Tensor, grad: Tensor) -> Sequence[Tensor]:
        return loss, grad.flatten(0, 1)[flat]

    ours = (hidden, batch.loss_weight, flags)
    jobs = {
        OURS: Job(with_gradient(pred, ops.masked_mse, pred, rows, *ours), filled),
        STORED: Job(with_gradient(pred, ops.masked_mse, pred, batch.stored, *ours), filled),
        TWIN: Job(quietly(reference.masked_mse, *twin), filled),
        TWIN_COMPILED: Job(quietly(compiled(setting, reference.masked_mse), *twin), filled),
        MAE: Job(with_gradient(pred_all, alternatives.mae_loss, pred_all, batch.patches, mask, normalise), of_all),
        BEST: Job(with_gradient(dense, gathered, dense, batch.patches, flat, normalise), filled),
    }
    exact = dense.detach().double().requires_grad_()

    def expected(patches: Tensor) -> Sequence[Tensor]:
        target = patches.flatten(0, 1)[flat]
        if normalise:
            variance, mean = torch.var_mean(target, -1, keepdim=True, correction=0)
            target = (target - mean) * (variance + 1e-6).rsqrt()
        loss = (exact - target).square().mean()
        return loss, *torch.autograd.grad(loss, exact)

    tolerance = TOLERANCE[setting.dtype]
    found = OpCase(
        name="masked_mse_normalised" if normalise else "masked_mse",
        title="loss of hidden patches and its gradient" + (", targets normalised" if normalise else ""),
        jobs=jobs,
        check=checked_against(expected(batch.patches.double()), tolerance),
        checks={STORED: checked_against(expected(batch.stored_patches), tolerance)},
        moves=("masked_mse",),
        twins_wait=True,
    )
    return build(found, batch, timer)


def sample_plan(setting: Setting, timer: GraphTimer | None = None) -> Case:
    """The visible tokens of each window, and the three packings; quotas are on the device.

    MultiMAE's sampler is given the same ones. Its users draw them on the device in each call, which stands beside it.
    """
    batch = PlanBatch(setting)
    device = setting.device.type
    arguments = (*batch.arguments, list(batch.sizes.totals))
    expected = [part.to(device) for part in reference.sample_plan(*(t.cpu() for t in batch.arguments), arguments[-1])]
    drawn = (batch.windows, batch.tokens, batch.kept, device)

    def tensors() -> list[Tensor]:
        plan = ops.sample_plan(*batch.arguments, batch.sizes)
        packings = (plan.visible, plan.hidden, plan.present)
        names = ("ids", "cu_seqlens", "modality", "time_s", "slot", "by_modality", "cu_modality")
        return [getattr(packing, name) for packing in packings for name in names]

    def permutes(outcome: Outcome) -> str | None:
        kept, restore, mask = outcome.parts
        order = torch.arange(batch.tokens, device=device).expand_as(restore)
        if not torch.equal(restore.sort(1).values, order):
            return "ids_restore is no permutation"
        places = restore.gather(1, kept)  # kept tokens come first
        if not torch.equal(places, order[:, : batch.kept]) or not ((mask == 0).sum(1) == batch.kept).all():
            return f"not {batch.kept} tokens of each window are kept"
        return None

    def keeps_quotas(outcome: Outcome) -> str | None:
        wrong = permutes(outcome)
        seen = [(part == 0).sum(1) for part in outcome.parts[2].split(batch.per_kind, 1)]
        return wrong or (None if torch.equal(torch.stack(seen, 1), quotas) else "a modality's quota is not kept")

    quotas = batch.arguments[0].long()
    multimae = functools.partial(alternatives.multimae_sample, per_kind=batch.per_kind, kept=batch.kept)

    def with_quotas() -> tuple[Tensor, Tensor, Tensor]:
        return multimae(alternatives.multimae_quotas(batch.windows, batch.kinds, batch.kept, 1.0, device))

    jobs = {
        OURS: Job(tensors),
        TWIN: Job(functools.partial(reference.sample_plan, *arguments)),
        TWIN_COMPILED: Job(functools.partial(compiled(setting, reference.sample_plan), *arguments)),
        MULTIMAE: Job(functools.partial(multimae, quotas)),
        MULTIMAE_WHOLE: Job(with_quotas),
        ARGSORTS: Job(functools.partial(alternatives.mae_sample, *drawn)),
    }
    found = OpCase(
        name="sample_plan",
        title="visible tokens of each window, packings of visible, hidden and present ones",
        jobs=jobs,
        check=checked_against(expected, 0.0),
        checks={MULTIMAE: keeps_quotas, MULTIMAE_WHOLE: permutes, ARGSORTS: permutes},
    )
    return build(found, batch, timer)


OPCASES: dict[str, Callable[[Setting, GraphTimer | None], Case]] = {
    "embed_patches": embed_patches,
    "embed_patches_backward": embed_patches_backward,
    "take_tokens": take_tokens,
    "take_hidden": take_hidden,
    "assemble_tokens": assemble_tokens,
    "masked_mse": masked_mse,
    "masked_mse_normalised": functools.partial(masked_mse, normalise=True),
    "sample_plan": sample_plan,
    "embed_patches_float32": functools.partial(embed_patches, as_trained=True),
    "embed_patches_float32_backward": functools.partial(embed_patches_backward, as_trained=True),
}
OF_128 = ("embed_patches_float32", "embed_patches_float32_backward")
"""Of patches of 128 samples alone, which keeps the gate short."""


def measure_case(
    op: str, setting: Setting, repeats: int, timer: GraphTimer | None = None, without: Collection[str] = ()
) -> list[Row]:
    """Check and time one case where its work can be captured.

    Args:
        op: name of the case.
        setting: sizes and device.
        repeats: turns.
        timer: of captured graphs.
        without: names of providers that are left out.
    """
    torch._dynamo.reset()
    with setting.device.stream():
        case = OPCASES[op](setting, timer)
        kept = [provider for provider in case.providers if provider.name not in without]
        rows = measure(dataclasses.replace(case, providers=kept), repeats)
    setting.device.synchronize()
    return rows
