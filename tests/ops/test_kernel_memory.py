"""What kernels read and write: tensors however they lie, between guards, by programs in any order."""

import dataclasses

import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast import ops
from physiofast.ops import reference
from physiofast.ops.triton import loss, plan
from physiofast.ops.triton.embed_groups import SEVERAL, Groups
from tests.ops.kernels import OPS, Calls, assert_scales, guarded, outputs, plan_arguments, shuffled_programs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not interpreted")


def spread(tensor):
    """The same numbers, every other one of a larger tensor whose rest spoils a result."""
    poison = float("nan") if tensor.is_floating_point() else tensor.numel() % 2
    return torch.stack([tensor, torch.full_like(tensor, poison)], -1)[..., 0]


def registered(op, arguments):
    return outputs(getattr(torch.ops.physiofast, op), arguments)


def assert_may_be_spread(op, arguments):
    with ops.backend("triton"):
        want = registered(op, arguments)
        found = registered(op, [spread(x) if isinstance(x, torch.Tensor) else x for x in arguments])
    assert all(map(torch.equal, found, want))


@pytest.mark.parametrize("op", OPS)
def test_tensors_may_lie_anyhow(op):
    batch = make_batch(1, channels=(1, 1, 1), rates=(4, 4, 1), patches=3, batch=2, empty_window=False)
    assert_may_be_spread(op, Calls(batch, 8, torch.float32).arguments(op))


def test_arguments_of_a_plan_may_lie_anyhow():
    assert_may_be_spread("sample_plan", plan_arguments(3, channels=(1, 2), batch=3))


def test_a_gradient_that_lies_anyhow_is_scaled_in_place():
    values = torch.randn(40, generator=torch.Generator().manual_seed(0))
    grad, factor = spread(values), torch.tensor(-0.3)
    assert loss.scale_gradient(grad, factor).data_ptr() == grad.data_ptr()
    assert torch.equal(grad, values * factor)


@pytest.fixture
def guards(monkeypatch):
    """Memory that outputs are allocated in, with more around them; calling it says whether that is as it was."""
    buffers, original = [], torch.Tensor.new_empty

    def allocate(like, *shape, dtype=None, device=None):
        if device is not None:  # the interpreter's own
            return original(like, *shape, device=device)
        shape = shape[0] if shape and not isinstance(shape[0], int) else shape
        size = torch.Size(shape).numel()
        buffer = original(like, size + 512, dtype=dtype).fill_(77)
        buffers.append((buffer, size))
        return buffer[256 : 256 + size].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", allocate)
    return lambda: bool(buffers) and all((b[:256] == 77).all() and (b[256 + n :] == 77).all() for b, n in buffers)


def guarded_plan(arguments):
    return (*map(guarded, arguments[:6]), arguments[6])


@pytest.mark.parametrize("may_share", [False, True])
def test_a_plan_is_drawn_within_its_memory(may_share, guards):
    arguments = plan_arguments(2, patches=7, extra=30)
    found = plan.sample_plan(*guarded_plan(arguments), may_share=may_share)
    assert guards()
    assert all(map(torch.equal, found, reference.sample_plan(*arguments)))


@pytest.mark.parametrize("missing", [1, 7, 1000])
@pytest.mark.parametrize("small", [0, 1, 2])
def test_a_packing_without_room_for_all_of_its_tokens_is_empty(small, missing, guards):
    """The twin raises; nobody looks on a device. The other two packings are whole."""
    *arguments, totals = guarded_plan(plan_arguments(2, patches=7))
    want = reference.sample_plan(*arguments, totals)
    total = totals[small] = max(totals[small] - missing, 0)
    found = plan.sample_plan(*arguments, totals)
    assert guards()
    ids, cu_seqlens, modality, time_s, slot, by_modality, cu_modality = found[7 * small : 7 * small + 7]
    assert all((x == -1).all() for x in (ids, modality, slot))
    assert not any(x.any() for x in (cu_seqlens, time_s, cu_modality))
    assert by_modality.tolist() == list(range(total))
    others = [i for i in range(21) if i // 7 != small]
    assert all(torch.equal(found[i], want[i]) for i in others)


@pytest.mark.parametrize("totals", [[0, 0, 0], [3, 0, 5]])
def test_a_plan_of_no_windows(totals):
    arguments = (*plan_arguments(0, batch=0)[:6], totals)
    assert all(map(torch.equal, plan.sample_plan(*arguments), reference.sample_plan(*arguments)))


def test_programs_of_a_plan_may_come_in_any_order(monkeypatch):
    arguments = guarded_plan(plan_arguments(1, batch=5, extra=40))
    want = reference.sample_plan(*arguments)
    orders = shuffled_programs(monkeypatch)
    found = plan.sample_plan(*arguments)
    assert sum(len(order) > 1 for order in orders.values()) == 3  # choice, counts and packings
    assert all(map(torch.equal, found, want))


def test_programs_that_scale_a_gradient_may_come_in_any_order(monkeypatch):
    orders = shuffled_programs(monkeypatch)
    assert_scales(loss)
    assert any(len(order) > 1 for order in orders.values())


def dense(channels, rates):
    """A batch in which nothing is absent."""
    return make_batch(5, channels=channels, rates=rates, patches=3, batch=2, absent=0, invalid=0, empty_window=False)


def without(rows, *places):
    """The rows, some of which are absent."""
    start = rows.row_start.clone()
    for place in places:
        start[place] = -1
    return dataclasses.replace(rows, row_start=start)


@pytest.mark.parametrize("is_unscaled", [True, False])
def test_nothing_is_read_of_an_absent_row_whose_tokens_are_visible(is_unscaled):
    """No sample stands before the first one. The groups of ids that such a token is in are no numbers."""
    batch = dense((2, 1), (16, 8))
    rows = without(batch.rows, (1, 2))
    ones = torch.ones_like(rows.row_scale)
    rows = rows.replace(row_scale=ones, row_shift=torch.zeros_like(ones), is_unscaled=is_unscaled)
    lengths, packing, where = batch.montage.patch_lengths, batch.plan.present, (rows.row_scale, rows.row_shift)
    weight, table = torch.ones(sum(lengths), 4, requires_grad=True), torch.zeros(9, 4, requires_grad=True)
    groups = Groups(rows.samples, rows.row_start, *where, packing.slot, weight, lengths, 1, is_unscaled)
    places, _, first, *_, counts, of_groups = groups.list(rows.row_start, *where, packing.modality, packing.slot)
    lost = torch.cat([places[g, : counts[g]] for g in (of_groups == SEVERAL.value).nonzero()[:, 0]]).long()
    assert all((first[g, : counts[g]] >= 0).all() for g in range(len(counts)))
    assert sorted(lost.tolist()) == sorted(packing.slot.view(2, 3, 3)[:, 2].flatten().tolist())
    with ops.backend("triton"):
        tokens = ops.embed_patches(rows, packing, weight, table, patch_lengths=lengths)
        dweight, dtable = torch.autograd.grad(tokens, (weight, table), torch.ones_like(tokens))
    spoilt = torch.zeros(len(tokens), dtype=torch.bool).index_fill(0, lost, True)
    assert tokens[spoilt].isnan().all() and tokens[~spoilt].isfinite().all()
    assert dweight.isnan().all() and dtable.isnan().all(1).tolist() == [False] * 6 + [True] * 3


def test_no_patch_is_read_of_fewer_samples_than_one_has():
    batch = dense((2, 1), (16, 8))
    rows, hidden, lengths = without(batch.rows, ...), batch.plan.hidden, batch.montage.patch_lengths
    rows = rows.replace(samples=rows.samples[:15])
    pred, said = torch.zeros(len(hidden.ids), max(lengths)), []
    for name in ("reference", "triton"):
        with ops.backend(name), pytest.raises(RuntimeError) as error:
            ops.masked_mse(pred, rows, hidden, torch.ones(2), patch_lengths=lengths)
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("flags", [None, [True, False]])
def test_an_absent_row_spoils_a_loss_and_the_gradients_of_its_tokens(flags):
    batch = dense((2, 1), (16, 8))
    rows, hidden, lengths = without(batch.rows, (0, 1), (1, 2)), batch.plan.hidden, batch.montage.patch_lengths
    found = []
    for name in ("reference", "triton"):
        pred = torch.zeros(len(hidden.ids), max(lengths), requires_grad=True)
        with ops.backend(name):
            loss, total, count = ops.masked_mse(pred, rows, hidden, batch.weights, flags, patch_lengths=lengths)
            found.append((loss.detach(), total, count, *torch.autograd.grad(loss, pred)))
    assert found[0][0].isnan() and 0 < found[0][3].isnan().any(1).sum() < (hidden.ids >= 0).sum()
    for want, have in zip(*found, strict=True):
        torch.testing.assert_close(have, want, equal_nan=True)
