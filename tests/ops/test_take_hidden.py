"""`take_hidden`, and `with_hidden`, whose gradient is that of indexing and of the tensor itself, added up."""

import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast import ops

pytestmark = pytest.mark.usefixtures("each_backend")


def by_definition(x, plan):
    """Hidden tokens one by one."""
    present = plan.present.ids.tolist()
    return torch.stack([x[present.index(i)] if i >= 0 else torch.zeros_like(x[0]) for i in plan.hidden.ids.tolist()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_definition(dtype, seed):
    batch = make_batch(seed, patches=9)
    assert batch.plan.hidden.ids[-1] == -1
    x = torch.randn(len(batch.plan.present.ids), 17).to(dtype).requires_grad_()
    out, want = ops.take_hidden(x, batch.plan), by_definition(x, batch.plan)
    assert torch.equal(out, want)
    probe = torch.randn_like(out)
    (got,) = torch.autograd.grad((out * probe).sum(), x)
    assert torch.equal(got, torch.autograd.grad((want * probe).sum(), x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("used", ["both", "all", "hidden"])
def test_beside_all_present_tokens(dtype, used):
    batch = make_batch(4, patches=9)
    x = torch.randn(len(batch.plan.present.ids), 17).to(dtype).requires_grad_()
    found, want = ops.with_hidden(x, batch.plan), (x * 1, by_definition(x, batch.plan))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    chosen = {"both": [0, 1], "all": [0], "hidden": [1]}[used]
    probes = [torch.randn_like(want[i]) for i in chosen]
    (got,) = torch.autograd.grad([found[i] for i in chosen], x, probes)
    (expected,) = torch.autograd.grad([want[i] for i in chosen], x, probes)
    assert torch.equal(got, expected)


def test_beside_all_present_tokens_that_are_expanded_or_spread_out():
    batch = make_batch(5, patches=9)
    places = len(batch.plan.present.ids)
    x = torch.randn(places, 6).mT.contiguous().mT.requires_grad_()
    full, of_hidden = ops.with_hidden(x, batch.plan)
    (got,) = torch.autograd.grad(full.sum() + 2 * of_hidden.sum(), x)  # of sums, gradients are one number, expanded
    (want,) = torch.autograd.grad(x.sum() + 2 * by_definition(x, batch.plan).sum(), x)
    assert torch.equal(got, want)


def test_gradcheck():
    batch = make_batch(2, patches=2, batch=2)
    x = torch.randn(len(batch.plan.present.ids), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.take_hidden(x, batch.plan), x)
    assert torch.autograd.gradcheck(lambda x: ops.with_hidden(x * 2, batch.plan), x)


@pytest.mark.parametrize("places", [0, 16])
def test_nothing_is_hidden(places):
    kinds = torch.tensor([0, 0, 1], dtype=torch.int32)
    quotas, valid = torch.tensor([[2, 1], [2, 1]]), torch.ones(2, 3, dtype=torch.bool)
    grid = (torch.arange(2), torch.zeros(2, dtype=torch.int64), kinds, torch.arange(3.0))
    plan = ops.sample_plan(quotas, valid, *grid, ops.PlanSizes((6, places, 6), (3, places, 3)))
    x = torch.randn(6, 5, requires_grad=True)
    full, of_hidden = ops.with_hidden(x, plan)
    assert of_hidden.shape == (places, 5)
    assert not of_hidden.any()
    (got,) = torch.autograd.grad(full.sum() + of_hidden.sum(), x)
    assert (got == 1).all()
    (got,) = torch.autograd.grad(ops.take_hidden(x, plan).sum(), x)
    assert not got.any()


def test_its_own_part_cannot_be_differentiated_twice():
    batch = make_batch(6)
    x = torch.randn(len(batch.plan.present.ids), 5, requires_grad=True)
    full, of_hidden = ops.with_hidden(x * 1, batch.plan)
    (once,) = torch.autograd.grad(full.pow(3).sum() + of_hidden.sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(once.sum(), x)
    torch.testing.assert_close(twice, 6 * x.detach())
    full, of_hidden = ops.with_hidden(x * 1, batch.plan)
    (once,) = torch.autograd.grad(full.sum() + of_hidden.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="take_hidden_backward cannot be differentiated twice"):
        once.sum().backward()


def test_compiled_it_is_the_same():
    batch = make_batch(7)
    x = torch.randn(len(batch.plan.present.ids), 5, requires_grad=True)

    def both(x):
        full, of_hidden = ops.with_hidden(x * 2, batch.plan)
        return full.sin().sum() + of_hidden.cos().sum()

    (want,) = torch.autograd.grad(both(x), x)
    (got,) = torch.autograd.grad(torch.compile(both, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(got, want)


def test_many_gradients_at_once():
    batch = make_batch(8)
    x = torch.randn(len(batch.plan.present.ids), 5, requires_grad=True)
    found = ops.with_hidden(x, batch.plan)
    probes = [torch.randn(3, *part.shape) for part in found]
    options = {"retain_graph": True, "is_grads_batched": True}
    (got,) = torch.autograd.grad(found, x, probes, **options)
    want = [torch.autograd.grad(found, x, each, retain_graph=True)[0] for each in zip(*probes, strict=True)]
    torch.testing.assert_close(got, torch.stack(want))


def test_bad_shapes_are_named():
    batch = make_batch(4)
    for function in (ops.take_hidden, ops.with_hidden):
        for requires_grad in (False, True):
            with pytest.raises(ValueError, match=r"x must have shape \[\d+, any\]; found \[3, 4\]"):
                function(torch.zeros(3, 4, requires_grad=requires_grad), batch.plan)


def test_opcheck():
    batch = make_batch(5)
    plan = batch.plan
    x = torch.randn(len(plan.present.ids), 3, requires_grad=True)
    indices = (plan.hidden.ids, plan.present.ids, plan.hidden.slot, plan.present.slot)
    torch.library.opcheck(torch.ops.physiofast.take_hidden.default, (x, *indices))
    grad = torch.randn(len(plan.hidden.ids), 3)
    for onto in (grad[:0], torch.randn(len(plan.present.ids), 3)):
        torch.library.opcheck(torch.ops.physiofast.take_hidden_backward.default, (grad, onto, *indices[1:3]))
