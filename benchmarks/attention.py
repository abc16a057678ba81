"""Modality-aware attention against what PyTorch offers for the same function; its cases on a CPU.

`inputs` draws packed queries, keys and values of windows of given lengths, with a learned bias per modality pair; and,
where ours is alone, `with_decay` adds a decay, which none but a dense mask could express. `providers` gives the ways
to compute attention that any device has and, with `backward`, gradients of q, k, v and the biases; those of a
GPU are in `attentionpeers`. Peers that pad are given padded tensors from the start and give padded ones: to pad is no
part of their time, and neither are one-hot modalities, which no step changes. `check` compares each with the
definition in float64.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import traffic
from benchmarks.opjobs import OURS, TOLERANCE
from physiofast import ops
from physiofast.ops import Packing, reference
from physiofast.ops.contracts import AttentionSides

HEADS, WIDTH, KINDS, WINDOWS = 4, 32, 6, 64
FEW_LENGTHS = tuple(range(16, 83, 6))
"""12 lengths of mean 49 and at most 82, as modality dropout leaves them."""
ALL_LENGTHS = tuple(range(18, 18 + WINDOWS))
MASKED, FEATURED = "sdpa, biases as mask", "sdpa, biases as features"
GROUPED: dict[str, int | None] = {"sdpa, a call for each length": None, "sdpa, 4 groups by length": 4}
"""Peers that sort windows first, and how many groups they make."""
_FORBIDDEN = -3e4
_TOGETHER = 64
"""Windows whose definition is computed at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every provider starts from; q, k, v [T, H, Dh] and pair_bias [H, M, M] take gradients."""

    packing: Packing
    q: Tensor
    k: Tensor
    v: Tensor
    pair_bias: Tensor
    grad: Tensor
    """[T, H, Dh], the gradient of the output."""
    padded: tuple[Tensor, Tensor, Tensor]
    """q, k, v as leaves [B, H, L, Dh]; zeros where there is no token."""
    padded_grad: Tensor
    time_decay: Tensor | None = None
    """[H] per second, which only ours and the definition know; takes a gradient, which is not among an outcome's."""

    @property
    def windows(self) -> int:
        return len(self.packing.cu_seqlens) - 1

    @functools.cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """`padded_index` of the packing."""
        return reference.padded_index(self.packing.cu_seqlens, self.packing.max_len)

    @functools.cached_property
    def hot(self) -> Tensor:
        """[T, M] as queries are typed, one at each token's modality."""
        return reference.one_hot(self.packing.modality, self.pair_bias.shape[1], self.q.dtype)

    @functools.cached_property
    def hot_padded(self) -> Tensor:
        """[B, L, M], the same of padded windows; zeros where there is no token."""
        index, real = self.places
        modality = torch.where(real, self.packing.modality[index], -1)
        return reference.one_hot(modality, self.pair_bias.shape[1], self.q.dtype)

    @functools.cached_property
    def allowed(self) -> Tensor:
        """bool [M, M]: every pair of modalities is."""
        return torch.ones(self.pair_bias.shape[1:], dtype=torch.bool, device=self.q.device)

    @functools.cached_property
    def truths(self) -> dict[bool, list[Tensor]]:
        """With biases or without: output and gradients by the definition, when they have been asked for."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Output and gradients (of q, k, v, pair_bias; empty without a backward pass), packed or padded."""

    out: Tensor
    gradients: tuple[Tensor, ...]
    is_padded: bool = False
    is_biased: bool = True


Run = Callable[[], Outcome]
Form = Callable[[Inputs], tuple[Tensor, bool, bool]]
"""Gives the output, whether it is padded, and whether it knows the biases."""


def inputs(
    lengths: Sequence[int],
    *,
    heads: int = HEADS,
    width: int = WIDTH,
    kinds: int = KINDS,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Windows of these lengths in random order, each of all modalities, drawn from the seed.

    Args:
        lengths: tokens of each window.
        heads: H.
        width: Dh.
        kinds: M.
        device: of all tensors.
        dtype: of queries, keys, values; biases are float32.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    packing = _packing([lengths[i] for i in order], kinds, generator)
    if device != "cpu":  # a GPU draws a thousand times as fast
        generator = torch.Generator(device).manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    q, k, v, grad = (normal((len(packing.ids), heads, width)).to(dtype) for _ in range(4))
    bias = normal((heads, kinds, kinds))
    packing = ops.to_device(packing, device)
    index, real = reference.padded_index(packing.cu_seqlens, packing.max_len)
    pad = [torch.where(real[..., None, None], t[index], 0).transpose(1, 2).contiguous() for t in (q, k, v, grad)]
    leaves = [t.requires_grad_() for t in (q, k, v, bias, *pad[:3])]
    return Inputs(
        packing=packing,
        q=leaves[0],
        k=leaves[1],
        v=leaves[2],
        pair_bias=leaves[3],
        grad=grad,
        padded=(leaves[4], leaves[5], leaves[6]),
        padded_grad=pad[3],
    )


def _packing(lengths: Sequence[int], kinds: int, generator: torch.Generator) -> Packing:
    """Of every window's tokens nearly as many are of each modality, in ascending order, at random times of 30 s."""
    modality = torch.cat([torch.arange(n, dtype=torch.int32) * kinds // n for n in lengths])
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    by_modality = modality.sort(stable=True).indices.to(torch.int32)
    of_each = torch.nn.functional.pad(modality.bincount(minlength=kinds).cumsum(0), (1, 0)).to(torch.int32)
    time_s = torch.rand(len(modality), generator=generator) * 30
    ids = torch.arange(len(modality), dtype=torch.int32)
    slot = torch.empty(len(lengths), 0, dtype=torch.int32)  # of no use to attention
    return Packing(ids, ends, modality, time_s, slot, by_modality, of_each, max(lengths))


def providers(given: Inputs, *, backward: bool = True) -> dict[str, Run]:
    """The ways to compute attention on any device, by name; ours is `physiofast`.

    Args:
        given: of `inputs`.
        backward: also the gradients.

    Returns:
        Functions that compute once; on CUDA they return before the device is done.
    """
    named: dict[str, Form] = {OURS: _ours, MASKED: _masked, FEATURED: _featured}
    return {name: functools.partial(run, given, form, backward) for name, form in named.items()}


def run(given: Inputs, form: Form, backward: bool) -> Outcome:
    """Compute once, with the gradients or without any being recorded."""
    with torch.set_grad_enabled(backward):
        out, is_padded, is_biased = form(given)
    gradients: tuple[Tensor, ...] = ()
    if backward:
        leaves = (*(given.padded if is_padded else (given.q, given.k, given.v)), given.pair_bias)
        grad = given.padded_grad if is_padded else given.grad
        is_learned = is_biased and given.pair_bias.requires_grad
        gradients = torch.autograd.grad(out, leaves[: 4 if is_learned else 3], grad)
    return Outcome(out=out.detach(), gradients=gradients, is_padded=is_padded, is_biased=is_biased)


def _ours(given: Inputs) -> tuple[Tensor, bool, bool]:
    options = {"pair_bias": given.pair_bias, "allowed": given.allowed, "time_decay": given.time_decay}
    return ops.modality_attention(given.q, given.k, given.v, given.packing, given.packing, **options), False, True


def _sides(given: Inputs, facts: Sequence[Tensor], bias: Tensor, decay: Tensor) -> AttentionSides:
    """Arguments of the definition after q, k, v, of windows that attend to themselves."""
    (cu, modality, time_s), longest = facts, given.packing.max_len
    scale = given.q.shape[2] ** -0.5
    return AttentionSides(
        cu, cu, modality, modality, time_s, time_s, bias, given.allowed, decay, scale, longest, longest
    )


def by_definition(given: Inputs, backward: bool, wrap: Callable[[Callable], Callable] = lambda f: f) -> Run:
    """The definition, which rounds to the inputs' type at the end; `wrap` may compile its functions."""
    forward, back = (wrap(f) for f in (reference.modality_attention, reference.modality_attention_backward))
    rows, bias = [t.detach() for t in (given.q, given.k, given.v)], given.pair_bias.detach()
    decay = bias.new_empty(0) if given.time_decay is None else given.time_decay.detach()
    packing = given.packing
    sides = _sides(given, (packing.cu_seqlens, packing.modality, packing.time_s), bias, decay)

    def run() -> Outcome:
        out, lse = forward(*rows, *sides)
        gradients = back(given.grad, *rows, out, lse, *sides, True)[:4] if backward else ()
        return Outcome(out=out, gradients=tuple(gradients))

    return run


def with_decay(given: Inputs) -> Inputs:
    """The same with a learned decay, another for each head."""
    heads = given.q.shape[1]
    decay = torch.linspace(0.02, 0.3, heads, device=given.q.device).requires_grad_()
    return dataclasses.replace(given, time_decay=decay)


def _masked(given: Inputs) -> tuple[Tensor, bool, bool]:
    """Padding and biases in one dense mask, the product of one-hot vectors with the biases."""
    real = given.places[1]
    mask = _biases(given.hot_padded, given.pair_bias).masked_fill(~real[:, None, None, :], -torch.inf)
    return torch.nn.functional.scaled_dot_product_attention(*given.padded, attn_mask=mask), True, True


def _biases(hot: Tensor, pair_bias: Tensor) -> Tensor:
    """[B, H, L, L] of modalities as one-hot vectors [B, L, M], by two products of matrices."""
    return (hot[:, None] @ pair_bias.to(hot.dtype)) @ hot[:, None].mT


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    """Windows of like length, padded to the longest of them."""

    windows: Tensor
    """[b], their numbers."""
    leaves: tuple[Tensor, Tensor, Tensor]
    """q, k, v [b, H, l, Dh]."""
    grad: Tensor
    hot: Tensor
    """[b, l, M]."""
    real: Tensor | None
    """bool [b, l]; None where all are of one length."""

    def attend(self, pair_bias: Tensor) -> Tensor:
        """[b, H, l, Dh]."""
        mask = _biases(self.hot, pair_bias)
        if self.real is not None:
            mask = mask.masked_fill(~self.real[:, None, None, :], -torch.inf)
        return torch.nn.functional.scaled_dot_product_attention(*self.leaves, attn_mask=mask)


class Grouped:
    """SDPA with biases as mask, a call for each group of windows of like length, and its gradients.

    As with other peers what is padded is given, and so are the groups and the one-hot vectors of their modalities.

    Args:
        given: of `inputs`.
        groups: of as many windows, nearly; where it is None, one for each length, so that nothing is padded.
    """

    def __init__(self, given: Inputs, groups: int | None) -> None:
        self._given = given
        lengths = given.packing.cu_seqlens.diff()
        order = lengths.argsort(stable=True)
        by_length = lengths[order].unique_consecutive(return_counts=True)[1].tolist()
        parts = order.split(by_length) if groups is None else order.tensor_split(groups)
        self._groups = [self._group(part, int(lengths[part].max())) for part in parts]

    def _group(self, windows: Tensor, longest: int) -> _Group:
        given, real = self._given, self._given.places[1][windows, :longest]
        leaves = [t.detach()[windows, :, :longest].contiguous().requires_grad_() for t in given.padded]
        return _Group(
            windows=windows,
            leaves=(leaves[0], leaves[1], leaves[2]),
            grad=given.padded_grad[windows, :, :longest].contiguous(),
            hot=given.hot_padded[windows, :longest],
            real=None if bool(real.all()) else real,
        )

    def __call__(self) -> tuple[Tensor, ...]:
        """Outputs of all groups, q's, k's and v's gradients of each, and those of the biases."""
        outs = [group.attend(self._given.pair_bias) for group in self._groups]
        leaves = [leaf for group in self._groups for leaf in group.leaves]
        grads = [group.grad for group in self._groups]
        return *outs, *torch.autograd.grad(outs, [*leaves, self._given.pair_bias], grads)

    def check(self, found: tuple[Tensor, ...]) -> str | None:
        """As the function of this name."""
        count = len(self._groups)
        padded = [torch.zeros_like(self._given.padded_grad) for _ in range(4)]
        for number, group in enumerate(self._groups):
            of_leaves = count + 3 * number
            for whole, part in zip(padded, (found[number], *found[of_leaves : of_leaves + 3]), strict=True):
                whole[group.windows, :, : part.shape[2]] = part.detach()
        out, *gradients = padded
        return check(self._given, Outcome(out=out, gradients=(*gradients, found[-1]), is_padded=True))


def _featured(given: Inputs) -> tuple[Tensor, bool, bool]:
    """Biases and padding as M + 1 more features of every head: no mask, so the fastest kernels serve."""
    q, k, v = given.padded
    heads, width = q.shape[1], q.shape[-1]
    hot, (_, real) = given.hot_padded, given.places
    of_query = hot[:, None] @ given.pair_bias.to(hot.dtype)
    ones = hot.new_ones(*of_query.shape[:-1], 1)
    outside = torch.where(real, 0.0, _FORBIDDEN).to(q.dtype)[:, None, :, None]
    of_key = torch.cat([hot[:, None], outside], -1).expand(-1, heads, -1, -1)
    room = -(width + of_key.shape[-1]) % 8
    pad = functools.partial(torch.nn.functional.pad, pad=(0, room))
    wide_q = pad(torch.cat([q * width**-0.5, of_query, ones], -1))
    wide_k = pad(torch.cat([k, of_key], -1))
    wide_v = torch.nn.functional.pad(v, (0, of_key.shape[-1] + room))
    out = torch.nn.functional.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=1.0)
    return out[..., :width], True, True


def check(given: Inputs, outcome: Outcome) -> str | None:
    """What is wrong with an outcome against the definition in float64; None when nothing is."""
    wide = given.q.element_size() > 2
    allowed = 100 * torch.finfo(given.q.dtype).eps if wide else TOLERANCE[given.q.dtype]
    names = ("out", "dq", "dk", "dv", "dpair_bias")
    found = [outcome.out, *outcome.gradients]
    if outcome.is_padded:
        index, real = given.places
        found[:4] = [_packed(t, index, real, len(given.q)) for t in found[:4]]
    for name, got, want in zip(names, found, _truth(given, outcome.is_biased), strict=False):
        error, largest = float((got.double() - want).abs().max()), float(want.abs().max())
        if not error <= allowed * largest:  # NaN is refused as well
            return f"{name}: error {error:.3g}, largest value {largest:.3g}"
    return None


def _packed(tile: Tensor, index: Tensor, real: Tensor, places: int) -> Tensor:
    out = tile.new_zeros(places, tile.shape[1], tile.shape[3])
    out[index[real]] = tile.transpose(1, 2)[real]
    return out


def _truth(given: Inputs, is_biased: bool) -> list[Tensor]:
    """Output and gradients, a few windows at a time: their definition stores all pairs in float64."""
    if is_biased not in given.truths:
        ends = given.packing.cu_seqlens.tolist()
        parts = [
            _truth_of(given, is_biased, ends[first : first + _TOGETHER + 1])
            for first in range(0, given.windows, _TOGETHER)
        ]
        *rows, biases = zip(*parts, strict=True)
        given.truths[is_biased] = [*(torch.cat(part) for part in rows), torch.stack(biases).sum(0)]
    return given.truths[is_biased]


def _truth_of(given: Inputs, is_biased: bool, ends: Sequence[int]) -> tuple[Tensor, ...]:
    packing, mine = given.packing, slice(ends[0], ends[-1])
    grad, *wide = (t.detach()[mine].double() for t in (given.grad, given.q, given.k, given.v))
    within = torch.tensor(ends, dtype=torch.int32, device=given.q.device) - ends[0]
    facts = (within, packing.modality[mine], packing.time_s[mine])
    bias, decay = given.pair_bias.detach().double() * is_biased, wide[0].new_zeros(given.q.shape[1])
    if given.time_decay is not None:
        decay = given.time_decay.detach().double()
    sides = _sides(given, facts, bias, decay)
    out, lse = reference.modality_attention(*wide, *sides)
    return out, *reference.modality_attention_backward(grad, *wide, out, lse, *sides, True)[:4]


def told(shape: traffic.AttentionShape, dtype: torch.dtype) -> dict[str, int | str]:
    """What a row says of its sizes."""
    return {
        "windows": len(shape.lengths),
        "tokens": round(sum(shape.lengths) / len(shape.lengths)),
        "longest": max(shape.lengths),
        "heads": shape.heads,
        "width": shape.width,
        "kinds": shape.kinds,
        "patch": 1,
        "dtype": str(dtype).removeprefix("torch."),
    }


def shape_of(given: Inputs) -> traffic.AttentionShape:
    """For the bytes and products of the op."""
    _, heads, width = given.q.shape
    return traffic.AttentionShape(
        lengths=tuple(given.packing.cu_seqlens.diff().tolist()),
        heads=heads,
        width=width,
        kinds=given.pair_bias.shape[1],
        value_bytes=given.q.element_size(),
    )
