import pytest
import torch

from benchmarks.mixedbatch import Batch, make_batch, patch_of
from physiofast import ops
from physiofast.masking import hidden_weight
from physiofast.ops import arguments, registration

pytestmark = pytest.mark.usefixtures("each_backend")


def expected(batch: Batch, pred, weight, normalise):
    """(loss, sum, count), token by token in float64."""
    kinds = len(batch.montage.modalities)
    total, count = [torch.zeros((), dtype=torch.float64) for _ in range(kinds)], [0] * kinds
    hidden = batch.plan.hidden
    for t, (token, m) in enumerate(zip(hidden.ids.tolist(), hidden.modality.tolist(), strict=True)):
        if token < 0:
            continue
        target = patch_of(batch, token)
        if normalise[m]:
            target = (target - target.mean()) / (target.var(correction=0) + 1e-6).sqrt()
        total[m] = total[m] + (pred[t, : len(target)].double() - target).square().mean()
        count[m] += 1
    total = torch.stack(total)
    return (total * weight.double()).sum(), total, torch.tensor(count, dtype=torch.float64)


def prediction(batch: Batch, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    shape = (len(batch.plan.hidden.ids), max(batch.montage.patch_lengths))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
@pytest.mark.parametrize("normalise", [(False, False, False), (True, False, False), (True, True, False)])
def test_equals_the_definition(dtype, normalise):
    batch = make_batch(11, dtype=dtype, rates=(17, 16, 1))
    pred = prediction(batch, torch.float64 if dtype == torch.float64 else torch.float32)
    arguments = (pred, batch.rows, batch.plan.hidden, batch.weights)
    got = ops.masked_mse(*arguments, normalise)
    want = expected(batch, pred, batch.weights, normalise)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=0)
    (grad,) = torch.autograd.grad(got[0] * 1.5, pred)
    (want_grad,) = torch.autograd.grad(want[0] * 1.5, pred)
    torch.testing.assert_close(grad, want_grad, rtol=rtol, atol=rtol * want_grad.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_targets_are_as_exact_as_predictions(dtype):
    batch = make_batch(11, dtype=dtype, rates=(17, 16, 1))
    pred, normalise = prediction(batch), (True, False, False)
    got = ops.masked_mse(pred, batch.rows, batch.plan.hidden, batch.weights, normalise)
    torch.testing.assert_close(got, expected(batch, pred, batch.weights, normalise), rtol=1e-12, atol=0)


def test_gradcheck():
    batch = make_batch(12, patches=2, rates=(3, 2, 1), dtype=torch.float64)
    pred = prediction(batch)
    arguments = (batch.rows, batch.plan.hidden, batch.weights.double())
    assert torch.autograd.gradcheck(lambda p: ops.masked_mse(p, *arguments)[0], (pred,))


def test_columns_past_the_patch_and_the_tail_get_no_gradient():
    batch = make_batch(13)
    pred = prediction(batch, torch.float32)
    loss, *_ = ops.masked_mse(pred, batch.rows, batch.plan.hidden, batch.weights)
    (grad,) = torch.autograd.grad(loss, pred)
    lengths = torch.tensor([*batch.montage.patch_lengths, 0])[batch.plan.hidden.modality.long()]
    outside = torch.arange(grad.shape[1]) >= lengths[:, None]
    assert outside.any()
    assert (grad[outside] == 0).all()
    assert (grad[~outside] != 0).all()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_losses_and_gradients_of_parts_add_up_to_the_whole(parts):
    """Ranks and micro-batches use the weights of the global step; weights of each part alone would be wrong."""
    batches = [make_batch(20 + i, absent=0.5, dtype=torch.float64) for i in range(parts)]
    hidden = torch.stack([torch.bincount(b.plan.hidden.modality + 1, minlength=4)[1:] for b in batches])
    weight = torch.from_numpy(hidden_weight(hidden.sum(0).numpy())).double()
    total = count = loss = 0
    for batch in batches:
        pred = prediction(batch)
        part, part_sum, part_count = ops.masked_mse(pred, batch.rows, batch.plan.hidden, weight)
        loss, total, count = loss + part, total + part_sum, count + part_count
    whole = (total / count)[count > 0].mean()
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)  # weights are float32


def test_short_patches_refuse_normalisation():
    batch = make_batch(14)
    pred = prediction(batch)
    with pytest.raises(ValueError, match="patches of 7 samples are too short; at least 16"):
        ops.masked_mse(pred, batch.rows, batch.plan.hidden, batch.weights, (True, False, False))


def test_opcheck():
    batch = make_batch(15)
    pred, rows, packed = prediction(batch, torch.float32), batch.rows, batch.plan.hidden
    arguments = (rows.samples, rows.row_start, rows.row_scale, rows.row_shift, packed.ids, packed.modality, packed.slot)
    lengths = list(batch.montage.patch_lengths)
    torch.library.opcheck(
        torch.ops.physiofast.masked_mse.default, (pred, *arguments, batch.weights, lengths, [0, 1, 0], rows.align)
    )
    torch.library.opcheck(torch.ops.physiofast.take_patches.default, (*arguments, lengths))


def test_take_patches_equals_the_definition():
    batch = make_batch(16, dtype=torch.float64)
    got = ops.take_patches(batch.rows, batch.plan.hidden)
    for t, token in enumerate(batch.plan.hidden.ids.tolist()):
        want = patch_of(batch, token) if token >= 0 else torch.zeros(0, dtype=torch.float64)
        assert torch.equal(got[t, : len(want)], want)
        assert (got[t, len(want) :] == 0).all()


def test_autocast_of_the_caller_does_not_reach_the_sums():
    batch = make_batch(17)
    pred = prediction(batch, torch.float32)
    arguments = (pred, batch.rows, batch.plan.hidden, batch.weights)
    want = ops.masked_mse(*arguments)
    (want_grad,) = torch.autograd.grad(want[0], pred)
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.masked_mse(*arguments)
    (grad,) = torch.autograd.grad(got[0], pred)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert torch.equal(grad, want_grad)


def loss_of(batch: Batch, pred):
    return ops.masked_mse(pred, batch.rows, batch.plan.hidden, batch.weights)[0]


@pytest.fixture
def passes(monkeypatch):
    """Whether each backward pass could take the stored gradient over."""
    seen = []
    original = registration._is_last_use
    monkeypatch.setattr(registration, "_is_last_use", lambda *args: (seen.append(original(*args)), seen[-1])[1])
    return seen


def stored_gradient(loss):
    """What the forward pass left; in PyTorch 2.11 it lives as long as the loss, not as long as its node."""
    node = loss.grad_fn
    while "masked_mse" not in node.name():  # float16 has a quotient behind it
        node = node.next_functions[0][0]
    return node.saved_tensors[0].clone()


def unit_of(batch, pred):
    unit = arguments.gradient_unit(pred, batch.weights, min(batch.montage.patch_lengths))
    return 1.0 if unit is None else unit.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 0.0, -2.5, 3e4])
def test_the_gradient_is_scaled_in_place_when_nobody_needs_it_again(passes, dtype, factor):
    batch = make_batch(30, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    pred = prediction(batch, dtype)
    stored = stored_gradient(loss_of(batch, pred))
    (grad,) = torch.autograd.grad(loss_of(batch, pred) * factor, pred)
    assert passes == [True]  # a version of PyTorch that no longer tells would cost a pass over memory
    assert torch.equal(grad, (stored.double() / unit_of(batch, pred) * factor).to(dtype))


def test_a_retained_graph_gives_the_same_gradient_again(passes):
    batch = make_batch(31)
    pred = prediction(batch, torch.float32)
    loss = loss_of(batch, pred)
    first, second, third = (torch.autograd.grad(loss * c, pred, retain_graph=c < 4)[0] for c in (1, 3, 4))
    assert passes == [False, False, True]
    (want,) = torch.autograd.grad(loss_of(batch, pred), pred)
    for got, factor in ((first, 1), (second, 3), (third, 4)):
        assert torch.equal(got, want * factor)


def test_batched_gradients_are_scaled_each(passes):
    batch = make_batch(32)
    pred = prediction(batch, torch.float32)
    loss = loss_of(batch, pred)
    (want,) = torch.autograd.grad(loss, pred, retain_graph=True)
    (got,) = torch.autograd.grad(loss, pred, torch.tensor([1.0, 2.0]), is_grads_batched=True)
    assert passes == [False, False]
    assert torch.equal(got, torch.stack([want, 2 * want]))


def test_a_large_factor_does_not_overflow_half_precision():
    """As gradient scalers have it: the factor itself is beyond float16, its products are not."""
    batch = make_batch(33)
    batch.weights *= 2.0**-14
    pred = prediction(batch, torch.float16)
    stored = stored_gradient(loss_of(batch, pred)).double()
    loss = loss_of(batch, pred) * 2.0**17
    for retain in (True, False):
        (grad,) = torch.autograd.grad(loss, pred, retain_graph=retain)
        assert torch.equal(grad, (stored / unit_of(batch, pred) * 2.0**17).half())
        assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("deviation", [1.0, 0.03])
@pytest.mark.parametrize("weight", [1.0, 1e-9, 1e5])
def test_half_precision_keeps_the_gradient_of_a_scaled_loss(deviation, weight):
    """Weights of a large batch: the gradient of the loss is below what float16 holds, that of the scaled one is not."""
    batch = make_batch(35)
    batch.weights *= weight
    with torch.no_grad():
        near = ops.take_patches(batch.rows, batch.plan.hidden)
        pred = (near + deviation * prediction(batch, torch.float32)).half().requires_grad_()
    scale = 2.0**9 / weight
    exact = pred.detach().double().requires_grad_()
    want_loss = loss_of(batch, exact)
    (want,) = torch.autograd.grad(want_loss * scale, exact)
    loss = loss_of(batch, pred)
    (got,) = torch.autograd.grad(loss * scale, pred)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want_loss, rtol=1e-5, atol=0)
    assert (got.double() - want).norm() < 1e-3 * want.norm()


def test_half_precision_holds_what_short_patches_have():
    """Of a patch of one sample the gradient is as large as one of many samples has in all."""
    batch = make_batch(38, rates=(128, 16, 1))
    pred = (200 * prediction(batch, torch.float32).detach()).half().requires_grad_()
    exact = pred.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(loss_of(batch, exact), exact)
    (got,) = torch.autograd.grad(loss_of(batch, pred), pred)
    assert got.isfinite().all()
    assert (got.double() - want).norm() < 1e-3 * want.norm()


def test_weights_of_nothing_give_no_gradient_in_half_precision():
    batch = make_batch(36)
    batch.weights.zero_()
    pred = prediction(batch, torch.float16)
    loss = loss_of(batch, pred)
    (grad,) = torch.autograd.grad(loss, pred)
    assert loss == 0 and not grad.any()


def test_what_saved_tensor_hooks_keep_stays_as_it_was(passes):
    batch = make_batch(37)
    pred, kept = prediction(batch, torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append((x, x.clone())) or x, lambda x: x):
        loss = loss_of(batch, pred)
    (got,) = torch.autograd.grad(loss * 3, pred)
    assert kept and passes == []
    assert all(torch.equal(tensor, before) for tensor, before in kept)
    (want,) = torch.autograd.grad(loss_of(batch, pred) * 3, pred)
    assert torch.equal(got, want) and passes == [True]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_traced_backward_passes_leave_the_stored_gradient_alone(passes, backend):
    torch._dynamo.reset()
    batch = make_batch(34)
    pred = prediction(batch, torch.float32)
    (want,) = torch.autograd.grad(loss_of(batch, pred) * 3, pred)
    compiled = torch.compile(lambda p: loss_of(batch, p * 1) * 3, fullgraph=True, backend=backend)
    (got,) = torch.autograd.grad(compiled(pred), pred)
    assert passes == [True, backend == "eager"]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
