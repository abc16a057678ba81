"""Calls of the kernels' Python side next to their twins, on inputs between guards that no kernel may read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.mixedbatch import Batch
from physiofast.ops import reference
from physiofast.ops.contracts import AttentionSides
from physiofast.ops.triton import (
    assemble,
    attention,
    attention_backward,
    attention_stats,
    embed,
    embed_backward,
    loss,
    plan,
)

MODULES = {
    "assemble": assemble,
    "attention": attention,
    "attention_backward": attention_backward,
    "attention_stats": attention_stats,
    "embed": embed,
    "embed_backward": embed_backward,
    "loss": loss,
    "plan": plan,
}
HEADS = 2
_GUARD = 512


def guarded(tensor: Tensor) -> Tensor:
    """The same values amid memory that spoils a result: NaN, or for integers an index that exists."""
    poison = float("nan") if tensor.is_floating_point() else 1
    buffer = torch.full((tensor.numel() + 2 * _GUARD,), poison, dtype=tensor.dtype)
    inside = buffer[_GUARD : _GUARD + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor)


class Calls:
    """Every op of a batch, with arguments drawn anew.

    Args:
        batch: rows and plan.
        width: D.
        dtype: of weights, tables, features and predictions.
        seed: of these.
        normalise: flags of `masked_mse`; where patches are long enough when absent.
    """

    def __init__(
        self, batch: Batch, width: int, dtype: torch.dtype, seed: int = 0, normalise: Sequence[int] | None = None
    ) -> None:
        self.batch, self.width, self.dtype = batch, width, dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.lengths = list(batch.montage.patch_lengths)
        self.normalise = list(normalise or [int(length >= 16) for length in self.lengths])
        rows = batch.rows
        self.rows = tuple(map(guarded, (rows.samples, rows.row_start, rows.row_scale, rows.row_shift)))

    def draw(self, *shape: int) -> Tensor:
        """Normal numbers between guards."""
        return guarded(torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype))

    def arguments(self, op: str) -> tuple:
        """Those of the registered op."""
        return getattr(self, op)()

    def embed_patches(self) -> tuple:
        return (*self.rows, *self._embedded(), *self._weights(), self.lengths, 1, False)

    def embed_patches_backward(self) -> tuple:
        grad = self.draw(len(self.batch.plan.visible.ids), self.width)
        floating = self.rows[0].is_floating_point()
        return (grad, *self.rows, *self._embedded(), self._weights()[0], self.lengths, 1, False, floating)

    def take_tokens(self) -> tuple:
        packing = self.batch.plan.visible
        x = self.draw(*packing.slot.shape, self.width)
        return x, guarded(packing.ids), guarded(packing.slot)

    def take_tokens_backward(self) -> tuple:
        packing = self.batch.plan.visible
        return self.draw(len(packing.ids), self.width), guarded(packing.slot)

    def take_hidden(self) -> tuple:
        plan = self.batch.plan
        indices = (plan.hidden.ids, plan.present.ids, plan.hidden.slot, plan.present.slot)
        return self.draw(len(plan.present.ids), self.width), *map(guarded, indices)

    def take_hidden_backward(self) -> tuple:
        """On top of another gradient, but for every other seed."""
        plan, seed = self.batch.plan, self.generator.initial_seed()
        grad, onto = (self.draw(len(packing.ids), self.width) for packing in (plan.hidden, plan.present))
        return grad, onto[: 0 if seed % 2 else None], guarded(plan.present.ids), guarded(plan.hidden.slot)

    def assemble_tokens(self) -> tuple:
        plan, tokens = self.batch.plan, self.batch.montage.tokens
        indices = map(guarded, (plan.visible.ids, plan.present.ids, plan.visible.slot, plan.present.slot))
        tables = (self.draw(tokens, self.width), self.draw(tokens, self.width))
        return (self.draw(len(plan.visible.ids), self.width), *indices, *tables)

    def assemble_tokens_backward(self) -> tuple:
        plan = self.batch.plan
        indices = map(guarded, (plan.visible.ids, plan.visible.slot, plan.present.slot))
        grad = self.draw(len(plan.present.ids), self.width)
        return (grad, *indices, self.draw(self.batch.montage.tokens, self.width))

    def masked_mse(self) -> tuple:
        packing = self.batch.plan.hidden
        packed = map(guarded, (packing.ids, packing.modality, packing.slot))
        pred = self.draw(len(packing.ids), max(self.lengths))
        weight = guarded(self.batch.weights)
        return (pred, *self.rows, *packed, weight, self.lengths, self.normalise, 1)

    def modality_attention(self) -> tuple:
        q, k, v = self._heads()
        return (q, k, v, *self._sides())

    def modality_attention_backward(self) -> tuple:
        """What the twin of the forward pass leaves; gradients of the tail are poison."""
        q, k, v = self._heads()
        sides = self._sides()
        out, lse = map(guarded, reference.modality_attention(q, k, v, *sides))
        grad = torch.where((self.batch.plan.hidden.ids >= 0)[:, None, None], self.draw(*q.shape), float("nan"))
        return (guarded(grad), q, k, v, out, lse, *sides, True)

    def modality_attention_stats(self) -> tuple:
        q, k, _ = self._heads()
        return (q, k, *self._sides(), [1.0, 2.5, 4.0, 7.0])

    def _heads(self) -> list[Tensor]:
        """Queries of hidden tokens, keys and values of visible ones; heads of at most 100 features."""
        plan = self.batch.plan
        return [
            self.draw(len(packing.ids), HEADS, min(self.width, 100))
            for packing in (plan.hidden, plan.visible, plan.visible)
        ]

    def _sides(self) -> AttentionSides:
        a, b = self.batch.plan.hidden, self.batch.plan.visible
        kinds = len(self.lengths)
        allowed = torch.rand(kinds, kinds, generator=self.generator) < 0.7
        allowed[-1] = kinds == 1  # queries of the last modality have no allowed key
        biases = torch.float64 if self.dtype == torch.float64 else torch.float32
        shared = (self.draw(HEADS, kinds, kinds).to(biases), allowed, self.draw(HEADS).to(biases))
        tensors = (a.cu_seqlens, b.cu_seqlens, a.modality, b.modality, a.time_s, b.time_s, *shared)
        return AttentionSides(*map(guarded, tensors), scale=0.3, max_q=a.max_len, max_k=b.max_len)

    def _embedded(self) -> tuple[Tensor, ...]:
        packing = self.batch.plan.visible
        parts = (packing.ids, packing.modality, packing.slot, packing.by_modality, packing.cu_modality)
        return tuple(map(guarded, parts))

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self.draw(sum(self.lengths), self.width), self.draw(self.batch.montage.tokens, self.width)


OPS = {
    "embed_patches": "embed",
    "embed_patches_backward": "embed_backward",
    "take_tokens": "assemble",
    "take_tokens_backward": "assemble",
    "take_hidden": "assemble",
    "take_hidden_backward": "assemble",
    "assemble_tokens": "assemble",
    "assemble_tokens_backward": "assemble",
    "masked_mse": "loss",
    "modality_attention": "attention",
    "modality_attention_backward": "attention_backward",
    "modality_attention_stats": "attention_stats",
}
"""Op -> module; `sample_plan` is compared by itself."""


def outputs(function: Callable, arguments: tuple) -> list[Tensor]:
    """What an op returns, as a list."""
    found = function(*arguments)
    return [found] if isinstance(found, Tensor) else list(found)


def attention_terms(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *sides: Any) -> list[float]:
    """For (out, lse) and each gradient of attention, the largest sum of magnitudes of what one number is summed from.

    A log-sum-exp is a logit and the logarithm of a sum that is off by a share of itself.
    """
    grad, q, k, v, *wide = (
        x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in (grad, q, k, v, *sides)
    )
    sides = AttentionSides(*wide)
    weights, _, apart, (iq, ik), (real_q, _), (hot_q, hot_k) = reference.attention_weights(q, k, *sides)
    dout = torch.where(real_q[..., None, None], grad[iq], 0).abs()
    terms = weights * torch.einsum("bqhd,bkhd->bhqk", dout, v[ik].abs())
    terms += weights * terms.sum(-1, keepdim=True)
    scale, bias, decay = sides.scale, sides.pair_bias, sides.time_decay
    q_real = torch.where(real_q[..., None, None], q[iq], 0).abs()
    logits = torch.einsum("bqhd,bkhd->bhqk", q_real, k[ik].abs()) * scale
    logits += torch.einsum(
        "bqm,hmn,bkn->bhqk", hot_q, torch.where(bias > reference.FORBIDDEN / 2, bias, 0).abs(), hot_k
    )
    logits += decay.reshape(-1, 1, 1) * apart[:, None] if decay.numel() else 0
    sums = (
        torch.einsum("bhqk,bkhd->bqhd", weights, v[ik].abs()),
        torch.where(weights > 0, 1 + logits, 0),
        torch.einsum("bhqk,bkhd->bqhd", terms, k[ik].abs()) * scale,
        torch.einsum("bhqk,bqhd->bkhd", terms, q_real) * scale,
        torch.einsum("bhqk,bqhd->bkhd", weights, dout),
        torch.einsum("bqm,bhqk,bkn->hmn", hot_q, terms, hot_k),
        torch.einsum("bhqk,bqk->h", terms, apart),
    )
    return [float(found.max()) if found.numel() else 0.0 for found in sums]


def embedding_terms(grad: Tensor, *arguments: Any) -> list[float]:
    """For each gradient of `embed_patches`, as `attention_terms`."""
    *rows, ids, modality, slots, _, _, weight, lengths, _, _, need_samples = arguments
    patches = reference.take_patches(*rows, ids, modality, slots, lengths).double().abs()
    grad, scale = torch.where(ids[:, None] >= 0, grad.double().abs(), 0), rows[2].double().abs()
    of_weights = [patches[modality == m].T @ grad[modality == m] for m in range(len(lengths))]
    sums = [torch.cat(of_weights), reference.sum_by_token(grad, slots)]
    sums += [grad @ weight.double().abs().T * scale.max()] * need_samples
    return [float(found.max()) if found.numel() else 0.0 for found in sums] + [0.0] * (not need_samples)


def allowances(op: str, arguments: tuple, want: list[Tensor]) -> list[tuple[float, float]]:
    """(rounding of one number, largest magnitude among a sum's terms) of each output."""
    if op == "modality_attention_backward":  # products of 16-bit numbers, some summed to 32 bits; sums may cancel
        grad, q, k, v, _, _, *sides, _ = arguments
        epsilon = torch.finfo(q.dtype).eps
        return [(epsilon, largest) for largest in attention_terms(grad, q, k, v, *sides)[2:]]
    if op == "embed_patches_backward":  # some sums are of few terms, which may cancel
        epsilons = [torch.finfo(t.dtype).eps if t.numel() else 0.0 for t in want]
        return list(zip(epsilons, embedding_terms(*arguments), strict=True))
    if op == "modality_attention_stats":  # weights are as wide as queries
        return [(torch.finfo(arguments[0].dtype).eps, float(t.abs().max())) for t in want]
    return [
        (torch.finfo(t.dtype).eps, float(t.double().nan_to_num(0, 0, 0).abs().max())) if t.numel() else (0.0, 0.0)
        for t in want
    ]


def assert_equals_twin(op: str, arguments: tuple, module: ModuleType | None = None) -> list[Tensor]:
    """Compare a kernel with its twin: exact integers, and sums within a few roundings of their largest terms."""
    module = module or MODULES[OPS[op]]
    found = outputs(getattr(module, op), arguments)
    wanted = outputs(getattr(reference, op), arguments)
    for got, want, (epsilon, largest) in zip(found, wanted, allowances(op, arguments, wanted), strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        if got.numel():
            torch.testing.assert_close(got, want, rtol=8 * epsilon, atol=16 * epsilon * largest)
    return found


def shuffled_programs(monkeypatch):
    """From now on the interpreter runs programs in another order; returns that of each grid as it comes to run."""
    from triton.runtime.interpreter import interpreter_builder as builder

    orders = {}

    def set_grid_idx(x, y, z, original=builder.set_grid_idx):
        size = tuple(builder.grid_dim)
        if size not in orders:
            programs = list(itertools.product(*map(range, size)))
            orders[size] = dict(zip(programs, np.random.default_rng(0).permutation(programs).tolist(), strict=True))
        original(*orders[size][x, y, z])

    monkeypatch.setattr(builder, "set_grid_idx", set_grid_idx)
    return orders


def plan_arguments(seed, channels=(2, 1, 3), patches=5, batch=4, density=0.8, extra=0):
    """Quotas within what is valid, and totals of `extra` more places than are needed."""
    random = np.random.default_rng(seed)
    token_modality = np.repeat(np.arange(len(channels)), np.asarray(channels) * patches).astype(np.int32)
    valid = random.random((batch, len(token_modality))) < density
    capacity = np.stack([valid[:, token_modality == m].sum(1) for m in range(len(channels))], 1)
    quotas = random.integers(0, capacity + 1)
    used = (quotas.sum(), (capacity - quotas).sum(), capacity.sum())
    return (
        torch.from_numpy(quotas),
        torch.from_numpy(valid),
        torch.from_numpy(random.integers(0, 2**60, batch)),
        torch.from_numpy(random.integers(0, 2**60, 2)),
        torch.from_numpy(token_modality),
        torch.from_numpy(random.random(len(token_modality)).astype(np.float32)),
        [int(count) + extra for count in used],
    )


def assert_scales(module, dtype=torch.float32, size=40_000):
    """A gradient of more than one program, times a number and times 1; guards stay as they are."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    for factor in (1.0, -0.3):
        by = torch.tensor(factor, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        buffer = torch.full((size + 64,), 7.0, dtype=dtype)
        mine = buffer[32 : 32 + size].copy_(values)
        assert module.scale_gradient(mine, by).data_ptr() == mine.data_ptr()
        assert torch.equal(mine, reference.scale_gradient(values.clone(), by))
        assert torch.equal(mine, (values.double() * by.double()).to(dtype))
        assert (buffer[:32] == 7).all() and (buffer[32 + size :] == 7).all()
