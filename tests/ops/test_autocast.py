"""Tensors whose dtypes autocast has made differ, as the features of a Linear beside parameters."""

import dataclasses

import pytest
import torch
from torch.nn.functional import linear

from benchmarks.mixedbatch import make_batch
from physiofast import ops
from physiofast.engine import native

BF16 = torch.bfloat16


def in_autocast(function, *given):
    with torch.autocast("cpu", BF16):
        return function(*given)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_head_of_parameters_takes_the_features_of_a_layer(compiles):
    batch = make_batch(3)
    head, bias = (
        torch.randn(size) for size in ((max(batch.montage.patch_lengths), 20), max(batch.montage.patch_lengths))
    )
    x = torch.randn(len(batch.plan.hidden.ids), 20).to(BF16)
    rest = (batch.rows, batch.plan.hidden, batch.weights)
    with pytest.raises(ValueError, match="head is torch.float32 but x is torch.bfloat16"):
        ops.linear_masked_mse(x, head, bias, *rest)
    torch._dynamo.reset()
    one_call = (
        torch.compile(ops.linear_masked_mse, backend="eager", fullgraph=True) if compiles else ops.linear_masked_mse
    )
    found = in_autocast(one_call, x, head, bias, *rest)
    assert all(map(torch.equal, found, in_autocast(lambda: ops.masked_mse(linear(x, head, bias), *rest))))


def test_a_table_of_a_layer_becomes_as_wide_as_the_other():
    batch = make_batch(4)
    samples, plan, tokens = batch.rows, batch.plan, batch.plan.visible.slot.shape[1]
    weight, table = torch.randn(sum(batch.montage.patch_lengths), 16), torch.randn(tokens, 16).to(BF16)
    wide = torch.randn(tokens, 16)  # which bfloat16 does not hold
    with pytest.raises(ValueError, match="table is torch.bfloat16 but weight is torch.float32"):
        ops.embed_patches(samples, plan.visible, weight, table)
    found = in_autocast(ops.embed_patches, samples, plan.visible, weight, table)
    assert torch.equal(found, ops.embed_patches(samples, plan.visible, weight, table.float()))
    encoded = torch.randn(len(plan.visible.ids), 16)
    with pytest.raises(ValueError, match="table_hidden is torch.float32 but table_visible is torch.bfloat16"):
        ops.assemble_tokens(encoded, plan, table, wide)
    for tables in ((table, wide), (wide, table)):
        found = in_autocast(ops.assemble_tokens, encoded, plan, *tables)
        assert torch.equal(found, ops.assemble_tokens(encoded, plan, *(each.float() for each in tables)))


def test_attention_of_two_dtypes_is_that_of_autocast_s():
    batch = make_batch(5)
    packing = batch.plan.visible
    q, k, v = (torch.randn(len(packing.ids), 2, 8, requires_grad=True) for _ in range(3))
    narrow = [tensor.to(BF16) for tensor in (q, k, v)]
    with pytest.raises(ValueError, match="v is torch.bfloat16 but q is torch.float32"):
        ops.modality_attention(q, k, narrow[2], packing, packing)
    found = in_autocast(ops.modality_attention, q, k, narrow[2], packing, packing)
    assert found.dtype == BF16 and torch.equal(found, ops.modality_attention(*narrow, packing, packing))
    assert all(grad is not None for grad in torch.autograd.grad(found.float().sum(), (q, k, v)))
    sums = in_autocast(lambda: ops.modality_attention_stats(q, narrow[1], packing, packing))
    assert all(map(torch.equal, sums, ops.modality_attention_stats(*narrow[:2], packing, packing)))
    with pytest.raises(ValueError, match="v is torch.float32 but q is torch.float64"):  # nor does PyTorch lower these
        in_autocast(ops.modality_attention, q.double(), k.double(), v, packing, packing)
    with pytest.raises(TypeError, match="k must be a tensor; found NoneType"):
        in_autocast(ops.modality_attention, q, None, v, packing, packing)


def test_autocast_leaves_float64_as_it_is():
    batch = make_batch(8)
    x, head = torch.randn(len(batch.plan.hidden.ids), 20).double(), torch.randn(max(batch.montage.patch_lengths), 20)
    rest = (batch.rows, batch.plan.hidden, batch.weights)
    with pytest.raises(ValueError, match="head is torch.float32 but x is torch.float64; cast them"):
        in_autocast(ops.linear_masked_mse, x, head, None, *rest)


@pytest.mark.parametrize("dtype", [torch.float16, BF16])
@pytest.mark.parametrize("apart", [0, 10**6])
def test_samples_of_16_bits_give_the_numbers_of_wider_ones(dtype, apart, monkeypatch):
    """Without the definition, but where they are few of many, as of a whole store."""
    batch = make_batch(6)
    x = torch.randn(len(batch.plan.present.slot), 2, 4 * 10).to(dtype)
    valid = torch.ones(len(x), 8, dtype=torch.bool)
    plan = ops.Plan.from_mask(torch.rand(len(x), 8) < 0.5, valid, torch.zeros(8).long(), torch.arange(4.0).repeat(2))
    narrow, wide = ops.Rows.from_dense(x, 4), ops.Rows.from_dense(x.float(), 4)
    if apart:
        narrow = dataclasses.replace(narrow, samples=torch.cat([narrow.samples, torch.zeros(apart, dtype=dtype)]))
    weight, table = torch.randn(10, 6, requires_grad=True), torch.randn(8, 6, requires_grad=True)
    pred = torch.randn(len(plan.hidden.ids), 10, requires_grad=True)

    def run(rows):
        tokens = ops.embed_patches(rows, plan.visible, weight, table, patch_lengths=(10,))
        loss = ops.masked_mse(pred, rows, plan.hidden, torch.ones(1), patch_lengths=(10,))[0]
        return tokens, loss, *torch.autograd.grad(tokens.square().sum() + loss, (weight, table, pred))

    want = run(wide)
    defined = set()
    for name in ("embed_patches", "embed_patches_backward", "masked_mse"):
        definition = getattr(ops.reference, name)
        noted = lambda *given, name=name, definition=definition: (defined.add(name), definition(*given))[1]  # noqa: E731
        monkeypatch.setattr(ops.reference, name, noted)
    for a, b in zip(run(narrow), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert defined == (set() if native and not apart else {"embed_patches", "embed_patches_backward", "masked_mse"})


def test_a_weight_that_is_to_be_learned_is_refused():
    batch = make_batch(7)
    weight = batch.weights.clone().requires_grad_()
    pred = torch.randn(len(batch.plan.hidden.ids), max(batch.montage.patch_lengths), requires_grad=True)
    given = (pred, batch.rows, batch.plan.hidden)
    with pytest.raises(
        ValueError, match=r"weight gets no gradient; pass weight\.detach\(\)\. To learn weights, compute"
    ):
        ops.masked_mse(*given, weight)
    with torch.no_grad():
        assert torch.equal(ops.masked_mse(*given, weight)[0], ops.masked_mse(*given, batch.weights)[0])
