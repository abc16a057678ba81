import math

import pytest
import torch
from torch._dynamo import compiled_autograd

from physiofast import ops
from physiofast.ops import Packing
from tests.ops.attention import Case, make_case, make_packing


def expected(case: Case) -> torch.Tensor:
    """The definition, window by window and head by head in float64."""
    packing_q, packing_k = case.packings
    heads, width = case.q.shape[1:]
    out = torch.zeros_like(case.q, dtype=torch.float64)
    spans = zip(packing_q.cu_seqlens.tolist(), packing_q.cu_seqlens.tolist()[1:], strict=False)
    key_spans = zip(packing_k.cu_seqlens.tolist(), packing_k.cu_seqlens.tolist()[1:], strict=False)
    for (a, b), (c, d) in zip(spans, key_spans, strict=True):
        mq, mk = packing_q.modality[a:b].long(), packing_k.modality[c:d].long()
        apart = (packing_q.time_s[a:b, None].double() - packing_k.time_s[None, c:d].double()).abs()
        may = case.options["allowed"][mq][:, mk]
        for h in range(heads):
            logits = case.q[a:b, h].double() @ case.k[c:d, h].double().T / math.sqrt(width)
            logits = logits + case.options["pair_bias"][h].double()[mq][:, mk]
            logits = logits - case.options["time_decay"][h].double() * apart
            some = may.any(1)
            weights = logits.masked_fill(~may, -torch.inf)[some].softmax(-1)
            out[a:b, h][some] = weights @ case.v[c:d, h].double()
    return out


LENGTHS = [
    ([5, 1, 0, 7], None),
    ([5, 5, 2, 5], None),
    ([1], None),
    ([17, 63], None),
    ([3, 4, 2], [6, 1, 5]),
    ([3, 4, 2], [0, 9, 1]),
    ([100], [65]),
]


@pytest.mark.parametrize("implementation", ["registered", "reference"])
@pytest.mark.parametrize("pairs", ["any", "cross", "intra"])
@pytest.mark.parametrize(("lengths_q", "lengths_k"), LENGTHS)
def test_value_and_gradients_equal_the_definition(lengths_q, lengths_k, pairs, implementation):
    case = make_case(lengths_q, lengths_k, pairs=pairs)
    out, want = case.run(implementation), expected(case)
    torch.testing.assert_close(out, want, atol=1e-11, rtol=0)
    probe = torch.randn_like(out)
    got = torch.autograd.grad((out * probe).sum(), case.leaves())
    wanted = torch.autograd.grad((want * probe).sum(), case.leaves(), allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("pairs", ["any", "cross"])
def test_gradcheck(pairs):
    case = make_case([3, 2], [2, 4], heads=2, width=2, kinds=2, pairs=pairs, tail=0)
    options = case.options

    def attend(q, k, v, pair_bias, time_decay):
        return ops.modality_attention(
            q, k, v, *case.packings, pair_bias=pair_bias, time_decay=time_decay, allowed=options["allowed"]
        )

    assert torch.autograd.gradcheck(attend, case.leaves())


def test_float32_is_close_to_the_definition():
    case = make_case([40, 90], None, heads=4, width=24, dtype=torch.float32)
    torch.testing.assert_close(case.run().double(), expected(case), atol=2e-6, rtol=2e-6)


def test_defaults_are_plain_attention(each_backend):
    case = make_case([4, 6], None, tail=0)
    out = ops.modality_attention(case.q, case.k, case.v, *case.packings)
    parts = [t.split([4, 6]) for t in (case.q, case.k, case.v)]
    want = [
        torch.nn.functional.scaled_dot_product_attention(*(t.transpose(0, 1) for t in qkv)).transpose(0, 1)
        for qkv in zip(*parts, strict=True)
    ]
    torch.testing.assert_close(out, torch.cat(want), atol=1e-12, rtol=0)
    probe = torch.randn_like(out)
    found = torch.autograd.grad((out * probe).sum(), (case.q, case.k, case.v))
    wanted = torch.autograd.grad((torch.cat(want) * probe).sum(), (case.q, case.k, case.v))
    for got, expected_grad in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected_grad, atol=1e-11, rtol=0)


@pytest.mark.parametrize("learned", [(), ("pair_bias",), ("time_decay",)])
def test_gradients_of_queries_do_not_depend_on_what_else_is_learned(learned, each_backend):
    case = make_case([5, 1, 0, 7], [3, 4, 2, 9])
    want = torch.autograd.grad(case.run().square().sum(), case.leaves())
    for name in ("pair_bias", "time_decay"):
        if name not in learned:
            case.options[name] = case.options[name].detach()
    leaves = [leaf for leaf in case.leaves() if leaf.requires_grad]
    found = torch.autograd.grad(case.run().square().sum(), leaves)
    shared = [want[3 + ("pair_bias", "time_decay").index(name)] for name in learned]
    assert len(found) == 3 + len(learned)
    assert all(map(torch.equal, found, [*want[:3], *shared]))


def test_query_without_an_allowed_key_gives_zero_and_no_gradient():
    case = make_case([6], [6], kinds=2, pairs="cross")
    case.packings[0].modality[:6] = 0
    case.packings[1].modality[:6] = 0
    out = case.run()
    assert (out == 0).all()
    grads = torch.autograd.grad(out.sum(), case.leaves())
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_stay_finite(size):
    case = make_case([9, 4], None, dtype=torch.float32)
    case.options["pair_bias"] = torch.full((3, 3, 3), size, requires_grad=True)
    out = case.run()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(g[: sum([9, 4])]).all() for g in torch.autograd.grad(out.sum(), case.leaves()))


def test_output_does_not_depend_on_neighbours_or_order():
    case = make_case([5, 9, 5], None, tail=0, dtype=torch.float32)
    whole = case.run().split([5, 9, 5])
    packing = case.packings[0]
    order = torch.tensor([*range(14, 19), *range(5), *range(5, 14)])
    moved = Packing(
        packing.ids[order],
        torch.tensor([0, 5, 10, 19], dtype=torch.int32),
        packing.modality[order],
        packing.time_s[order],
        packing.slot,
        packing.by_modality,
        packing.cu_modality,
        9,
    )
    out = ops.modality_attention(case.q[order], case.k[order], case.v[order], moved, moved, **case.options)
    for got, want in zip(out.split([5, 5, 9]), (whole[2], whole[0], whole[1]), strict=True):
        assert torch.equal(got, want)


def test_bad_arguments_are_named():
    case = make_case([4], None)
    with pytest.raises(ValueError, match="k is torch.float32 but q is torch.float64"):
        ops.modality_attention(case.q, case.k.float(), case.v, *case.packings)
    with pytest.raises(ValueError, match=r"pair_bias must have shape \[3, 2, 2\]"):
        ops.modality_attention(case.q, case.k, case.v, *case.packings, pair_bias=torch.zeros(2, 2, 2))
    other = make_packing([2, 2], 3, 3, 0)
    with pytest.raises(ValueError, match="queries are of 1 windows, keys of 2"):
        ops.modality_attention(case.q, case.k, case.v, case.packings[0], other)


def test_opcheck():
    case = make_case([4, 3], [2, 5], dtype=torch.float32, tail=0)
    a, b = case.packings
    sides = (a.cu_seqlens, b.cu_seqlens, a.modality, b.modality, a.time_s, b.time_s)
    options = (case.options["pair_bias"], case.options["allowed"], case.options["time_decay"])
    tail = (0.5, a.max_len, b.max_len)
    torch.library.opcheck(
        torch.ops.physiofast.modality_attention.default, (case.q, case.k, case.v, *sides, *options, *tail)
    )


@pytest.mark.parametrize("name", ["time_s", "modality", "cu_seqlens", "allowed"])
def test_what_the_backward_pass_needs_must_not_change_before_it(name, each_backend):
    """As PyTorch refuses it of what it saves; plans of static buffers are filled anew for each micro-batch."""
    case = make_case([5, 7], [4, 9], heads=2, width=16, dtype=torch.float32, tail=2)
    changed = case.options["allowed"] if name == "allowed" else getattr(case.packings[1], name)
    for _ in range(2):  # anew, and as an earlier call
        out = case.run()
        changed.copy_(changed.clone())
        with pytest.raises(RuntimeError, match="changed in place between the forward and the backward pass"):
            out.sum().backward()
        case.run().sum().backward()


def test_a_backward_pass_that_is_compiled_apart_is_no_change():
    case = make_case([5, 7], [4, 9], heads=2, width=16, dtype=torch.float32, tail=2)
    out = case.run()
    with compiled_autograd._enable(torch.compile(backend="eager")):
        out.sum().backward()
    assert case.q.grad.isfinite().all()
