"""`linear_masked_mse` against `masked_mse` of a linear map, over sizes, dtypes, instructions and threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from benchmarks.mixedbatch import Batch, make_batch
from physiofast import engine, ops
from physiofast.ops import cpu_loss, reference
from tests.settings import INSTRUCTIONS, on_torch_threads, with_instructions

is_native = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))


def leaves_of(batch: Batch, width, dtype=torch.float32, seed=5):
    """Features, head and bias."""
    generator = torch.Generator().manual_seed(seed)
    samples = max(batch.montage.patch_lengths)
    shapes = ((len(batch.plan.hidden.ids), width), (samples, width), (samples,))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def targets(batch: Batch, normalise=None):
    return batch.rows, batch.plan.hidden, batch.weights, normalise


def composed(leaves, *about):
    return ops.masked_mse(torch.nn.functional.linear(*leaves), *about)


def with_gradients(function, leaves, *about, factor=1.0):
    loss, total, count = function(*leaves, *about)
    return [loss.detach(), total, count, *torch.autograd.grad(loss * factor, leaves)]


def assert_near(found, wanted, rtol):
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        if want.numel():
            limit = rtol * float(want.detach().abs().max())
            torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=limit)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([1, 3, 16, 33, 130, 257]), st.sampled_from([1, 17, 40, 300]),
    st.sampled_from([torch.float32, torch.int16]), st.booleans(), st.sampled_from([1, 9, 40]),
    st.sampled_from(INSTRUCTIONS), st.sampled_from([1, 3]),
)  # fmt: skip
@pytest.mark.native
def test_equals_the_definition(seed, width, longest, samples, normalise, patches, instructions, threads):
    rates = (longest, min(longest, 17), 1)
    batch = make_batch(seed, rates=rates, patches=patches, dtype=samples)
    leaves, about = leaves_of(batch, width, seed=seed), targets(batch, [normalise and rate >= 16 for rate in rates])
    with with_instructions(instructions), on_torch_threads(threads):
        found = with_gradients(ops.linear_masked_mse, leaves, *about, factor=-1.5)
    with ops.backend("reference"):
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        wanted = with_gradients(lambda *given: composed(given[:3], *given[3:]), exact, *about, factor=-1.5)
        sizes = sizes_of_terms(exact, *about, factor=1.5)
    assert_near(found[:3], wanted[:3], 4e-6)
    for got, want, size in zip(found[3:], wanted[3:], sizes, strict=True):
        assert ((got - want).abs() <= 2e-6 * size).all()


def sizes_of_terms(leaves, *about, factor):
    """What each gradient would be if no term of any sum took away from another: what roundings are measured by."""
    x, head, bias = (leaf.detach().abs() for leaf in leaves)

    def gradient(pred):
        return torch.autograd.grad(ops.masked_mse(pred.requires_grad_(), *about)[0] * factor, pred)[0]

    pred = torch.nn.functional.linear(x, head, bias)
    of_targets = gradient(torch.zeros_like(pred))
    grad = of_targets.abs() + (gradient(pred) - of_targets).abs()
    return grad @ head, grad.mT @ x, grad.sum(0)


@is_native
@pytest.mark.native
def test_no_bit_depends_on_threads():
    """Of 6,000 tokens and more: stretches whose sums are added up, and gradients written past the caches."""
    batch = make_batch(3, rates=(40, 17, 1), batch=60, patches=80)
    leaves, about = leaves_of(batch, 200), targets(batch)
    assert len(batch.plan.hidden.ids) > 6000
    for instructions in INSTRUCTIONS:
        with with_instructions(instructions):
            found = []
            for threads in (1, 2, 3):
                with on_torch_threads(threads):
                    found.append(with_gradients(ops.linear_masked_mse, leaves, *about))
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


@pytest.mark.native
def test_a_tail_that_holds_infinities_is_in_no_sum_and_gets_no_gradient():
    batch = make_batch(4)
    tail = batch.plan.hidden.ids < 0
    assert tail.any()
    leaves = leaves_of(batch, 20)
    wanted = with_gradients(ops.linear_masked_mse, leaves, *targets(batch))
    leaves[0].data[tail] = torch.tensor([float("nan"), float("inf")]).repeat(10)
    found = with_gradients(ops.linear_masked_mse, leaves, *targets(batch))
    assert all(map(torch.equal, found, wanted))
    assert not found[3][tail].any()


@pytest.mark.native
def test_a_token_that_is_no_number_spreads_to_what_reads_it_alone():
    batch = make_batch(5, absent=0, invalid=0)
    x, head, bias = leaves_of(batch, 20)
    place = 7
    x.data[place, 3] = float("nan")
    loss, total, _ = ops.linear_masked_mse(x, head, bias, *targets(batch))
    dx, dhead, dbias = torch.autograd.grad(loss, (x, head, bias))
    kind = batch.plan.hidden.modality[place]
    length = batch.montage.patch_lengths[kind]
    assert loss.isnan()
    assert (total.isnan() == (torch.arange(3) == kind)).all()
    assert dx[place].isnan().all()
    assert dx.isfinite().sum() == dx.numel() - dx.shape[1]
    assert (dbias.isnan() == (torch.arange(len(dbias)) < length)).all()
    assert dhead[:length].isnan().all()
    others = torch.arange(20) != 3  # zero times that feature is no number either
    assert dhead[length:, others].isfinite().all()


@pytest.mark.native
def test_features_that_do_not_lie_densely_and_no_bias_give_the_same():
    batch = make_batch(6)
    x, head, _ = leaves_of(batch, 24)
    apart = [torch.stack([t, t], -1).detach()[..., 0].requires_grad_() for t in (x, head)]
    rows_apart = torch.cat([x, x], 1).detach()[:, :24].requires_grad_()
    zero = torch.zeros(head.shape[0])
    wanted = [*ops.linear_masked_mse(x, head, zero, *targets(batch))]
    for features in (x, apart[0], rows_apart):
        found = ops.linear_masked_mse(features, apart[1], None, *targets(batch))
        assert all(map(torch.equal, found, wanted))


@pytest.mark.native
def test_a_retained_graph_gives_the_same_gradients_again():
    batch = make_batch(7)
    leaves = leaves_of(batch, 20)
    first = with_gradients(ops.linear_masked_mse, leaves, *targets(batch))[3:]
    loss, *_ = ops.linear_masked_mse(*leaves, *targets(batch))
    for factor, keeps in ((1.0, True), (3.0, True), (4.0, False)):
        again = torch.autograd.grad(loss * factor, leaves, retain_graph=keeps)
        assert all(torch.equal(got, want * factor) for got, want in zip(again, first, strict=True))


def test_gradcheck():
    batch = make_batch(8, patches=2, rates=(3, 2, 1), dtype=torch.float64)
    leaves, about = leaves_of(batch, 4, torch.float64), targets(batch)
    assert torch.autograd.gradcheck(lambda *leaves: ops.linear_masked_mse(*leaves, *about)[0], leaves)


@is_native
@pytest.mark.native
def test_without_a_gradient_none_is_computed(monkeypatch):
    batch = make_batch(9)
    leaves = leaves_of(batch, 20)
    wanted = ops.linear_masked_mse(*leaves, *targets(batch))
    written = []
    original = cpu_loss._native.linear_errors
    monkeypatch.setattr(cpu_loss._native, "linear_errors", lambda *args: (written.append(args[6]), original(*args))[1])
    with torch.no_grad():
        found = ops.linear_masked_mse(*leaves, *targets(batch))
    found_detached = ops.linear_masked_mse(*(leaf.detach() for leaf in leaves), *targets(batch))
    assert written == [None, None]
    assert all(map(torch.equal, found, wanted))
    assert all(map(torch.equal, found_detached, wanted))
    assert not found[0].requires_grad


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_of_some_alone(wanted):
    batch = make_batch(10)
    leaves = leaves_of(batch, 20)
    every = with_gradients(ops.linear_masked_mse, leaves, *targets(batch))[3:]
    for leaf, is_wanted in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(is_wanted)
    ops.linear_masked_mse(*leaves, *targets(batch))[0].backward()
    for leaf, is_wanted, gradient in zip(leaves, wanted, every, strict=True):
        assert torch.equal(leaf.grad, gradient) if is_wanted else leaf.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_and_autocast_are_the_map_and_then_the_loss(dtype):
    batch = make_batch(11)
    leaves = leaves_of(batch, 20, dtype)
    found = with_gradients(ops.linear_masked_mse, leaves, *targets(batch))
    assert all(map(torch.equal, found, with_gradients(lambda *a: composed(a[:3], *a[3:]), leaves, *targets(batch))))
    leaves = leaves_of(batch, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.linear_masked_mse(*leaves, *targets(batch))
        assert all(map(torch.equal, found, composed(leaves, *targets(batch))))


@pytest.mark.parametrize("need_gradient", [True, False])
def test_opcheck(need_gradient):
    batch = make_batch(12)
    leaves, rows, packed = leaves_of(batch, 20), batch.rows, batch.plan.hidden
    about = (rows.samples, rows.row_start, rows.row_scale, rows.row_shift, packed.ids, packed.modality, packed.slot)
    known = (batch.weights, list(batch.montage.patch_lengths), [0, 1, 0], rows.align, need_gradient)
    if not need_gradient:
        leaves = [leaf.detach() for leaf in leaves]
    torch.library.opcheck(torch.ops.physiofast.linear_masked_mse.default, (*leaves, *about, *known))


def test_one_graph_for_batches_of_many_sizes():
    torch._dynamo.reset()
    counts = CompileCounter()
    function = torch.compile(
        lambda *given: ops.linear_masked_mse(*given)[0], backend=counts, fullgraph=True, dynamic=True
    )
    for seed in range(3):
        batch = make_batch(20 + seed, batch=2 + seed)
        leaves = leaves_of(batch, 20)
        loss = function(*leaves, *targets(batch)[:-1])
        (want, *_) = ops.linear_masked_mse(*leaves, *targets(batch))
        assert torch.equal(loss, want)
        loss.backward()
        assert all(leaf.grad is not None for leaf in leaves)
    assert counts.frame_count <= 2


def test_a_second_derivative_is_refused():
    batch = make_batch(13)
    leaves = leaves_of(batch, 20)
    loss, *_ = ops.linear_masked_mse(*leaves, *targets(batch))
    with pytest.raises(RuntimeError, match=r"linear_masked_mse cannot be differentiated twice|masked_mse cannot be"):
        torch.autograd.grad(loss, leaves, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, head, bias: (x[1:], head, bias), r"x must have shape \["),
        (lambda x, head, bias: (x, head.T, bias), r"head must have shape \[16, 20\]; found \[20, 16\]"),
        (lambda x, head, bias: (x, head, bias[1:]), r"bias must have shape \[16\]; found \[15\]"),
        (lambda x, head, bias: (x, head.double(), bias), r"head is torch.float64 but x is torch.float32"),
        (lambda x, head, bias: (x, head, bias.double()), r"bias is torch.float64 but x is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    batch = make_batch(14, rates=(16, 7, 1))
    with pytest.raises(ValueError, match=message):
        ops.linear_masked_mse(*change(*leaves_of(batch, 20)), *targets(batch))
    with pytest.raises(TypeError, match=r"weight must be a tensor \[M\]; found a list"):
        ops.linear_masked_mse(*leaves_of(batch, 20), *targets(batch)[:2], [1.0, 1.0, 1.0])


@is_native
def test_the_engine_serves_it():
    batch = make_batch(15)
    assert "linear_masked_mse, cpu: cpu" in ops.explain()
    arguments = (*leaves_of(batch, 20), *targets(batch))
    with ops.backend("reference"):
        wanted = ops.linear_masked_mse(*arguments)
    assert_near(ops.linear_masked_mse(*arguments), wanted, 2e-6)
    assert reference.linear_masked_mse is not cpu_loss.linear_masked_mse
