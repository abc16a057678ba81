"""Random packed queries, keys and values for the tests of attention, and the definition with its own gradient."""

import dataclasses
import math

import torch

from physiofast import ops
from physiofast.ops import Packing, reference


def make_packing(lengths: list[int], kinds: int, tail: int, seed: int) -> Packing:
    """Windows of these lengths with random ascending modalities and random times; the op uses no slot and no order."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths) + tail
    modality = torch.full((total,), -1, dtype=torch.int32)
    time_s = torch.zeros(total)
    begin = 0
    for length in lengths:
        drawn = torch.randint(0, kinds, (length,), generator=generator, dtype=torch.int32)
        modality[begin : begin + length] = drawn.sort().values
        time_s[begin : begin + length] = torch.rand(length, generator=generator) * 30
        begin += length
    ids = torch.where(modality >= 0, torch.arange(total), -1).to(torch.int32)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    unused = torch.empty(len(lengths), 0, dtype=torch.int32)
    return Packing(ids, cu_seqlens, modality, time_s, unused, unused, unused, max(lengths))


class Twin(torch.autograd.Function):
    """The reference, differentiated by its own backward."""

    @staticmethod
    def forward(ctx, options, *tensors):
        ctx.options = options  # scale and the longest windows
        out, lse = reference.modality_attention(*tensors, *options)
        ctx.save_for_backward(*tensors[:3], out, lse, *tensors[3:])
        return out

    @staticmethod
    def backward(ctx, grad):
        found = reference.modality_attention_backward(grad, *ctx.saved_tensors, *ctx.options, True)
        dq, dk, dv, dbias, ddecay = found
        return None, dq, dk, dv, *[None] * 6, dbias, None, ddecay


@dataclasses.dataclass
class Case:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    packings: tuple[Packing, Packing]
    options: dict

    def leaves(self) -> list[torch.Tensor]:
        return [self.q, self.k, self.v, self.options["pair_bias"], self.options["time_decay"]]

    def run(self, implementation: str = "registered") -> torch.Tensor:
        if implementation == "registered":
            return ops.modality_attention(self.q, self.k, self.v, *self.packings, **self.options)
        a, b = self.packings
        sides = (a.cu_seqlens, b.cu_seqlens, a.modality, b.modality, a.time_s, b.time_s)
        options = (self.options["pair_bias"], self.options["allowed"], self.options["time_decay"])
        return Twin.apply((self.q.shape[-1] ** -0.5, a.max_len, b.max_len), self.q, self.k, self.v, *sides, *options)


def make_case(
    lengths_q, lengths_k, *, heads=3, width=4, kinds=3, dtype=torch.float64, pairs="any", tail=3, seed=0
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    packing_q = make_packing(lengths_q, kinds, tail, seed)
    packing_k = packing_q if lengths_k is None else make_packing(lengths_k, kinds, tail, seed + 1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    same = torch.eye(kinds, dtype=torch.bool)
    allowed = {"any": torch.ones_like(same), "cross": ~same, "intra": same}[pairs]
    options = {"pair_bias": draw(heads, kinds, kinds), "allowed": allowed, "time_decay": draw(heads)}
    q = draw(len(packing_q.ids), heads, width)
    k, v = draw(len(packing_k.ids), heads, width), draw(len(packing_k.ids), heads, width)
    for tensor, packing in ((q, packing_q), (k, packing_k), (v, packing_k)):
        tensor.data[packing.ids < 0] = math.nan  # nothing in the tail may be read
    return Case(q, k, v, (packing_q, packing_k), options)
