"""Modality-aware attention against what PyTorch offers for the same function, on a CPU or a GPU.

`inputs` draws packed queries, keys and values of windows of given lengths, with a learned bias per modality pair and no
decay, which none of the peers but a dense mask could express. `providers` gives every way to compute attention and,
with `backward`, the gradients of q, k, v and the biases. Peers that pad are given padded tensors from the start and
give padded ones: to pad is no part of their time. `check` compares each with the definition in float64.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import traffic
from benchmarks.harness import Case, Provider
from benchmarks.workspace import Workspace
from physiofast import attention, ops
from physiofast.attention import Options
from physiofast.ops import Packing, reference

HEADS, WIDTH, KINDS, WINDOWS = 4, 32, 6, 64
FEW_LENGTHS = tuple(range(16, 83, 6))
"""12 lengths of mean 49 and at most 82, as modality dropout leaves them."""
ALL_LENGTHS = tuple(range(18, 18 + WINDOWS))
_FORBIDDEN = -3e4


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

    @property
    def windows(self) -> int:
        return len(self.packing.cu_seqlens) - 1

    @functools.cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """`attention.padded_places` of the packing."""
        return attention.padded_places(self.packing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Output and gradients (of q, k, v, pair_bias; empty without a backward pass), packed or padded."""

    out: Tensor
    gradients: tuple[Tensor, ...]
    is_padded: bool = False
    is_biased: bool = True


Run = Callable[[], Outcome]


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
    shape = (len(packing.ids), heads, width)
    q, k, v, grad = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4))
    bias = torch.randn(heads, kinds, kinds, generator=generator).to(device)
    packing = ops.to_device(packing, device)
    index, real = attention.padded_places(packing)
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
    """Every way to compute attention on the device of the inputs, by name; ours is `physiofast`.

    Args:
        given: of `inputs`.
        backward: also the gradients.

    Returns:
        Functions that compute once; on CUDA they return before the device is done.
    """
    named = {"physiofast": _ours, "sdpa, biases as mask": _masked, "sdpa, biases as features": _featured}
    if given.q.device.type == "cuda":
        named["eager dense, compiled"] = torch.compile(_dense)
        mask = attention.flex_block_mask(given.packing, given.packing, _all(given))
        named["flex_attention, mask kept"] = functools.partial(_flex, mask=mask)
        if attention.varlen_refusal(given.q) is None:
            named |= {"varlen_attn, biases as features": _varlen, "varlen_attn without biases": _unbiased}
    return {name: functools.partial(_run, given, function, backward) for name, function in named.items()}


def _run(given: Inputs, function: Callable[[Inputs], tuple[Tensor, bool, bool]], backward: bool) -> Outcome:
    with torch.set_grad_enabled(backward):
        out, is_padded, is_biased = function(given)
    gradients: tuple[Tensor, ...] = ()
    if backward:
        leaves = (*(given.padded if is_padded else (given.q, given.k, given.v)), given.pair_bias)
        grad = given.padded_grad if is_padded else given.grad
        gradients = torch.autograd.grad(out, leaves[: 4 if is_biased else 3], grad)
    return Outcome(out=out.detach(), gradients=gradients, is_padded=is_padded, is_biased=is_biased)


def _all(given: Inputs) -> Tensor:
    """Every pair of modalities is allowed."""
    return torch.ones(given.pair_bias.shape[1:], dtype=torch.bool, device=given.q.device)


def _ours(given: Inputs) -> tuple[Tensor, bool, bool]:
    out = ops.modality_attention(given.q, given.k, given.v, given.packing, given.packing, pair_bias=given.pair_bias)
    return out, False, True


def _hot(given: Inputs, dtype: torch.dtype) -> Tensor:
    """[B, L, M], one at each token's modality; zeros where there is no token."""
    index, real = given.places
    modality = torch.where(real, given.packing.modality[index], -1)
    return reference.one_hot(modality, given.pair_bias.shape[1], dtype)


def _masked(given: Inputs) -> tuple[Tensor, bool, bool]:
    """Padding and biases in one dense mask, the product of one-hot vectors with the biases."""
    hot, (_, real) = _hot(given, given.q.dtype), given.places
    # Two products of matrices; the mask of padding is added to the smaller factor's result at once.
    biases = (hot[:, None] @ given.pair_bias.to(hot.dtype)) @ hot[:, None].mT
    mask = biases.masked_fill(~real[:, None, None, :], -torch.inf)
    return torch.nn.functional.scaled_dot_product_attention(*given.padded, attn_mask=mask), True, True


def _featured(given: Inputs) -> tuple[Tensor, bool, bool]:
    """Biases and padding as M + 1 more features of every head: no mask, so the fastest kernels serve."""
    q, k, v = given.padded
    heads, width = q.shape[1], q.shape[-1]
    hot, (_, real) = _hot(given, q.dtype), given.places
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


def _dense(given: Inputs) -> tuple[Tensor, bool, bool]:
    """The formula, written out over padded windows; compiled where it is timed."""
    q, k, v = given.padded
    hot, (_, real) = _hot(given, q.dtype), given.places
    logits = q @ k.mT * q.shape[-1] ** -0.5
    logits = logits + (hot[:, None] @ given.pair_bias.to(hot.dtype)) @ hot[:, None].mT
    return logits.masked_fill(~real[:, None, None, :], -torch.inf).softmax(-1) @ v, True, True


def _flex(given: Inputs, mask: Any) -> tuple[Tensor, bool, bool]:
    options = Options(given.pair_bias, _all(given))
    packed = (given.q, given.k, given.v, given.packing, given.packing)
    return attention.flex_with(mask, *packed, options), False, True


def _varlen(given: Inputs) -> tuple[Tensor, bool, bool]:
    options = Options(given.pair_bias, _all(given))
    return attention.varlen(given.q, given.k, given.v, given.packing, given.packing, options), False, True


def _unbiased(given: Inputs) -> tuple[Tensor, bool, bool]:
    """Another function, without what there is no room for: the floor of what FlashAttention takes."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = given.packing.cu_seqlens, given.packing.max_len
    out = varlen_attn(given.q, given.k, given.v, ends, ends, longest, longest)
    assert isinstance(out, Tensor)
    return out, False, False


def check(given: Inputs, outcome: Outcome) -> str | None:
    """What is wrong with an outcome against the definition in float64; None when nothing is."""
    epsilon = torch.finfo(given.q.dtype).eps
    names = ("out", "dq", "dk", "dv", "dpair_bias")
    found = [outcome.out, *outcome.gradients]
    if outcome.is_padded:
        index, real = given.places
        found[:4] = [_packed(t, index, real, len(given.q)) for t in found[:4]]
    for name, got, want in zip(names, found, _truth(given, outcome.is_biased), strict=False):
        error, largest = float((got.double() - want).abs().max()), float(want.abs().max())
        if not error <= 100 * epsilon * largest:  # NaN is refused as well
            return f"{name}: error {error:.3g}, largest value {largest:.3g}"
    return None


def _packed(tile: Tensor, index: Tensor, real: Tensor, places: int) -> Tensor:
    out = tile.new_zeros(places, tile.shape[1], tile.shape[3])
    out[index[real]] = tile.transpose(1, 2)[real]
    return out


def _truth(given: Inputs, is_biased: bool) -> list[Tensor]:
    packing, wide = given.packing, [t.detach().double() for t in (given.q, given.k, given.v)]
    facts = (packing.cu_seqlens, packing.modality, packing.time_s)
    bias, decay = given.pair_bias.detach().double() * is_biased, wide[0].new_zeros(given.q.shape[1])
    sides = (*(fact for fact in facts for _ in range(2)), bias, _all(given), decay)
    sides += (given.q.shape[2] ** -0.5, packing.max_len, packing.max_len)
    out, lse = reference.modality_attention(*wide, *sides)
    gradients = reference.modality_attention_backward(given.grad.double(), *wide, out, lse, *sides)
    return [out, *gradients[:4]]


# ---- cases on a CPU ----------------------------------------------------------------------------------------------


def few_lengths(space: Workspace) -> Case:
    """Windows of 12 distinct lengths."""
    lengths = [FEW_LENGTHS[i % len(FEW_LENGTHS)] for i in range(WINDOWS)]
    return _case("attention_few", "12 distinct lengths", inputs(lengths), space, 1.5)


def all_lengths(space: Workspace) -> Case:
    """Windows that all differ in length."""
    return _case("attention_all", "all lengths distinct", inputs(ALL_LENGTHS), space, 1.1)


def _case(name: str, what: str, given: Inputs, space: Workspace, required: float) -> Case:
    threads = max(space.threads)
    found = [
        Provider(
            name=provider,
            run=_with_threads(run, threads),
            role="ours" if provider == "physiofast" else "peer",
            threads=threads,
        )
        for provider, run in providers(given).items()
    ]
    shape = shape_of(given)
    parts = (traffic.modality_attention(shape), traffic.modality_attention_backward(shape))
    return Case(
        name=name,
        title=f"biased attention, forward and backward: B {given.windows}, H {HEADS}, Dh {WIDTH}, {what}",
        providers=found,
        check=functools.partial(check, given),
        required={threads: required},
        moved_bytes=sum(part.moved for part in parts),
        windows=given.windows,
    )


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


def _with_threads(run: Run, threads: int) -> Run:
    def call() -> Outcome:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(before)

    return call


CASES: Mapping[str, Callable[[Workspace], Case]] = {"attention_few": few_lengths, "attention_all": all_lengths}
