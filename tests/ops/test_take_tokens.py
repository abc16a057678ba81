import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast import ops

pytestmark = pytest.mark.usefixtures("each_backend")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 17, 300])
def test_value_and_gradient_equal_the_definition(dtype, width):
    batch = make_batch(1)
    x = torch.randn(4, batch.montage.tokens, width).to(dtype).requires_grad_()
    out = ops.take_tokens(x, batch.plan.visible)
    flat = x.flatten(0, 1)
    want = torch.stack([flat[i] if i >= 0 else torch.zeros_like(flat[0]) for i in batch.plan.visible.ids.tolist()])
    assert torch.equal(out, want)
    probe = torch.randn_like(out)
    (got,) = torch.autograd.grad((out * probe).sum(), x)
    assert torch.equal(got, torch.autograd.grad((want * probe).sum(), x)[0])


def test_gradcheck():
    batch = make_batch(2, patches=2, batch=2)
    x = torch.randn(2, batch.montage.tokens, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.take_tokens(x, batch.plan.hidden), x)


def test_features_that_do_not_lie_densely_are_taken_too():
    batch = make_batch(3)
    x = torch.randn(7, batch.montage.tokens, 4).transpose(0, 2)
    dense = x.contiguous()
    assert x.shape[0] == 4
    assert torch.equal(ops.take_tokens(x, batch.plan.visible), ops.take_tokens(dense, batch.plan.visible))


def test_bad_shapes_are_named():
    batch = make_batch(4)
    with pytest.raises(ValueError, match=r"x must have shape \[4, 30, any\]; found \[4, 29, 3\]"):
        ops.take_tokens(torch.zeros(4, 29, 3), batch.plan.visible)


def test_opcheck():
    batch = make_batch(5)
    x = torch.randn(4, batch.montage.tokens, 3, requires_grad=True)
    arguments = (x, batch.plan.visible.ids, batch.plan.visible.slot)
    torch.library.opcheck(torch.ops.physiofast.take_tokens.default, arguments)
