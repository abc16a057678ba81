"""Calls of attention's kernels, and of their definition in float64, with the same arguments between guards."""

import dataclasses

import torch

from physiofast.ops import reference
from physiofast.ops.contracts import AttentionSides
from physiofast.ops.triton import attention, attention_backward, attention_order
from tests.ops.attention import make_case
from tests.ops.kernels import attention_terms, guarded

OUTPUTS = ("out", "lse", "dq", "dk", "dv")
BLOCKS = {"BLOCK_B": 16}
LENGTHS = (129, 16, 0, 33, 1, 64, 15, 300, 32, 17, 65, 31, 127, 63)


@dataclasses.dataclass
class Drawn:
    """Arguments of the registered op, and an upstream gradient that is poison in the tail."""

    qkv: tuple
    sides: AttentionSides
    grad: torch.Tensor


def draw(lengths_q, lengths_k, dtype, *, kinds=3, heads=2, width=8, pairs="any", bias=True, decay=True, tail=3, seed=0):
    case = make_case(lengths_q, lengths_k, heads=heads, width=width, kinds=kinds, pairs=pairs, tail=tail, seed=seed)
    a, b = case.packings
    of_shared = torch.float64 if dtype == torch.float64 else torch.float32
    pair_bias = (case.options["pair_bias"].detach() * bias).to(of_shared)
    time_decay = (case.options["time_decay"].detach().abs() * 0.3 * decay).to(of_shared)
    tensors = (a.cu_seqlens, b.cu_seqlens, a.modality, b.modality, a.time_s, b.time_s, pair_bias)
    tensors = map(guarded, (*tensors, case.options["allowed"], time_decay))
    sides = AttentionSides(*tensors, scale=width**-0.5, max_q=a.max_len, max_k=b.max_len)
    qkv = tuple(guarded(t.detach().to(dtype)) for t in (case.q, case.k, case.v))
    grad = torch.randn(case.q.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    grad[a.ids < 0] = float("nan")
    return Drawn(qkv, sides, guarded(grad))


def in_float64(values):
    return [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in values]


def of_kernels(drawn, need_shared=True):
    """(out, lse, gradients...)."""
    found = attention.modality_attention(*drawn.qkv, *drawn.sides)
    backward = attention_backward.modality_attention_backward
    return [*found, *backward(drawn.grad, *drawn.qkv, *found, *drawn.sides, need_shared)]


def of_definition(drawn):
    """The same in float64."""
    qkv, sides, grad = in_float64(drawn.qkv), drawn.sides, drawn.grad.double()
    sides = sides._replace(pair_bias=sides.pair_bias.double(), time_decay=sides.time_decay.double())
    found = reference.modality_attention(*qkv, *sides)
    return [*found, *reference.modality_attention_backward(grad, *qkv, *found, *sides, True)]


def assert_equal_definition(drawn):
    found, want = of_kernels(drawn), of_definition(drawn)
    epsilon = torch.finfo(drawn.qkv[0].dtype).eps
    terms = attention_terms(drawn.grad, *drawn.qkv, *drawn.sides)
    for got, expected, largest in zip(found, want, terms, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=8 * epsilon, atol=16 * epsilon * largest)
    return found


def rearranged(drawn, order, lengths_q, lengths_k, longest):
    """The same windows in another order, or some of them, in a batch whose longest window may be `longest`."""
    (q, k, v), sides = drawn.qkv, drawn.sides
    rows_q, rows_k = (
        torch.cat([torch.arange(int(cu[b]), int(cu[b + 1])) for b in order]) for cu in (sides.cu_q, sides.cu_k)
    )
    sides = sides._replace(
        cu_q=ends_of(lengths_q),
        cu_k=ends_of(lengths_k),
        modality_q=sides.modality_q[rows_q],
        modality_k=sides.modality_k[rows_k],
        time_q=sides.time_q[rows_q],
        time_k=sides.time_k[rows_k],
        max_q=longest,
        max_k=longest,
    )
    return Drawn((q[rows_q], k[rows_k], v[rows_k]), sides, drawn.grad[rows_q])


def assert_same_bits_rearranged(drawn, found, order, lengths_q, lengths_k, longest):
    """Every window of `order` has the bits in a batch of those alone that it has in the whole one, as `found`."""
    chosen = [[lengths[b] for b in order] for lengths in (lengths_q, lengths_k)]
    again = of_kernels(rearranged(drawn, order, *chosen, longest))
    for name, whole, part in zip(OUTPUTS, found, again, strict=False):  # those of the biases are of all windows
        of_all, lengths = (lengths_k, chosen[1]) if name in ("dk", "dv") else (lengths_q, chosen[0])
        axis = 1 if name == "lse" else 0
        pieces = whole.split(of_all, axis)
        for b, piece in zip(order, part.split(lengths, axis), strict=True):
            assert torch.equal(piece, pieces[b]), (name, order, b)


def ends_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def bucket(length):
    """Number of the first bound that it is not longer than."""
    bounds = [0, *(8 << c for c in range(1, attention_order.BOUNDS - 1))]
    return next((c for c, bound in enumerate(bounds) if length <= bound), attention_order.BOUNDS - 1)


def assert_in_order(lengths, module=attention_order, blocks=BLOCKS):
    """For (queries, keys) of windows."""
    sides = [guarded(ends_of(side)) for side in (zip(*lengths, strict=True) if lengths else ([], []))]
    order = guarded(torch.full((len(lengths) + attention_order.BOUNDS,), -1, dtype=torch.int32))
    module.put_in_order[(1,)](*sides, order, len(lengths), **blocks)
    buckets = [bucket(max(pair)) for pair in lengths]
    windows, longer = order.tolist()[: len(lengths)], order.tolist()[len(lengths) :]
    assert windows == sorted(range(len(lengths)), key=lambda b: -buckets[b])  # windows of a bucket as they stand
    assert longer == [sum(found > c for found in buckets) for c in range(attention_order.BOUNDS)]
