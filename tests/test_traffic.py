"""The byte model against tensors: what it says of an op is what the op's arguments and results hold."""

import dataclasses

import pytest
import torch

from benchmarks import attention, tokens, traffic
from physiofast import ops


@pytest.fixture(scope="module")
def batch():
    return tokens.Batch()


@pytest.fixture(scope="module")
def planned(batch):
    return batch.planned(0)


def nbytes(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def used(packing):
    """Places that a token fills."""
    return int((packing.ids >= 0).sum())


def shape_of(batch, plan):
    """Of what the plan really holds."""
    filled = {name: used(getattr(plan, name)) for name in ("visible", "hidden", "present")}
    return dataclasses.replace(batch.shape(), **filled)


def test_the_nominal_shape_is_that_of_a_plan(batch, planned):
    assert shape_of(batch, planned[1]) == batch.shape()


def test_embed_patches(batch, planned):
    rows, plan, _ = planned
    shape, packing = shape_of(batch, plan), plan.visible
    count = used(packing)
    samples = nbytes(ops.take_patches(rows, packing, batch.montage.patch_lengths)[:count])
    where = nbytes(rows.row_start, rows.row_scale, rows.row_shift)
    order = nbytes(packing.ids[:count], packing.modality[:count], packing.by_modality[:count])
    out = ops.embed_patches(rows, packing, batch.weights, batch.table, batch.montage.patch_lengths)[:count]
    found = traffic.embed_patches(shape)
    assert found.bytes_read == samples + where + order + nbytes(batch.weights, batch.table)
    assert found.bytes_written == nbytes(out)
    assert found.flops == 2 * count * batch.length * tokens.WIDTH
    back = traffic.embed_patches_backward(shape)
    order = nbytes(packing.ids[:count], packing.by_modality[:count], packing.slot)
    assert back.bytes_read == nbytes(out) + samples + where + order
    assert back.bytes_written == nbytes(batch.weights, batch.table)


def test_rows_of_features(batch, planned):
    _, plan, _ = planned
    shape = shape_of(batch, plan)
    seen, full = (torch.empty(used(packing), tokens.WIDTH) for packing in (plan.visible, plan.present))
    tables, slots = (batch.table, batch.decoder_table), (plan.slot_visible, plan.slot_present)
    taken = traffic.take_tokens(shape)
    assert (taken.bytes_read, taken.bytes_written) == (nbytes(seen) + 4 * len(seen), nbytes(seen))
    hidden, taken = torch.empty(used(plan.hidden), tokens.WIDTH), traffic.take_hidden(shape)
    indices = 4 * (len(hidden) + len(full)) + nbytes(plan.hidden.slot, plan.slot_present)
    assert taken.bytes_read == nbytes(hidden, full, hidden) + indices
    assert taken.bytes_written == nbytes(hidden, full)
    forward, backward = traffic.assemble_tokens(shape), traffic.assemble_tokens_backward(shape)
    assert forward.bytes_read == nbytes(seen, *tables, slots[0]) + 4 * len(full)
    assert forward.bytes_written == nbytes(full)
    assert backward.bytes_read == nbytes(full, *slots) + 4 * len(seen)
    assert backward.bytes_written == nbytes(seen, *tables)


def test_masked_mse(batch, planned):
    rows, plan, weight = planned
    count = used(plan.hidden)
    samples = nbytes(ops.take_patches(rows, plan.hidden, batch.montage.patch_lengths)[:count])
    where = nbytes(rows.row_start, rows.row_scale, rows.row_shift)
    pred = torch.empty(count, batch.length)
    found = traffic.masked_mse(shape_of(batch, plan))
    assert found.bytes_read == nbytes(pred) + samples + where + 8 * count + nbytes(weight)
    assert found.bytes_written == nbytes(pred) + 4 + 2 * nbytes(weight)


def test_sample_plan(batch, planned):
    rows, plan, weight = planned
    written = 0
    for packing in (plan.visible, plan.hidden, plan.present):
        count = used(packing)
        per_place = (packing.ids, packing.modality, packing.time_s, packing.by_modality)
        written += nbytes(packing.slot, packing.cu_seqlens, packing.cu_modality, *(x[:count] for x in per_place))
    found = traffic.sample_plan(shape_of(batch, plan))
    assert found.bytes_written == written
    grid = 8 * batch.montage.tokens
    assert found.bytes_read == nbytes(rows.valid, batch.window_id) + 8 * tokens.WINDOWS * len(weight) + grid + 16


def test_both_sides_of_the_benchmark_pass_their_check(batch):
    for side in (tokens.ours, tokens.mae_style):
        assert tokens.check(side(batch)) is None


def test_a_wrong_loss_or_a_missing_gradient_is_noticed(batch):
    right = tokens.ours(batch)
    assert "by definition" in tokens.check(dataclasses.replace(right, loss=right.loss * 1.001))
    lost = (torch.zeros_like(right.gradients[0]), *right.gradients[1:])
    assert "gradient" in tokens.check(dataclasses.replace(right, gradients=lost))


def test_modality_attention():
    given = attention.inputs((5, 20, 9), heads=2, width=8, kinds=3)
    packing, shape = given.packing, attention.shape_of(given)
    facts = 2 * nbytes(packing.cu_seqlens, packing.modality, packing.time_s)
    decay, allowed, log_sums = torch.empty(2), torch.empty(3, 3, dtype=torch.bool), torch.empty(2, 34)
    shared = nbytes(given.pair_bias, decay)
    found = traffic.modality_attention(shape)
    assert found.bytes_read == nbytes(given.q, given.k, given.v, allowed) + facts + shared
    assert found.bytes_written == nbytes(given.q, log_sums)
    assert found.flops == 4 * 8 * 2 * (5**2 + 20**2 + 9**2)
    back = traffic.modality_attention_backward(shape)
    assert back.bytes_read == nbytes(given.grad, given.q, given.k, given.v, allowed, log_sums) + facts + shared
    assert back.bytes_written == nbytes(given.q, given.k, given.v) + shared
    assert back.flops == (10 * 8 + 2 * 3) * 2 * (5**2 + 20**2 + 9**2)


def test_every_form_of_attention_in_the_benchmark_is_right():
    given = attention.inputs((5, 20, 9), heads=2, width=8, kinds=3)
    for backward in (False, True):
        for name, run in attention.providers(given, backward=backward).items():
            assert attention.check(given, run()) is None, name
    right = attention.providers(given)[attention.OURS]()
    assert "out: error" in attention.check(given, dataclasses.replace(right, out=right.out * 1.001))
    biases = (*right.gradients[:3], right.gradients[3] * 1.001)
    assert "dpair_bias: error" in attention.check(given, dataclasses.replace(right, gradients=biases))


def test_the_definition_is_computed_some_windows_at_a_time(monkeypatch):
    lengths, sizes = (5, 20, 9, 1, 7), {"heads": 2, "width": 8, "kinds": 3}
    whole = attention._truth(attention.inputs(lengths, **sizes), True)
    monkeypatch.setattr(attention, "_TOGETHER", 2)
    torch.testing.assert_close(attention._truth(attention.inputs(lengths, **sizes), True), whole)


def test_lengths_of_the_benchmark_are_those_that_are_named():
    assert len(set(attention.FEW_LENGTHS)) == 12
    assert len(set(attention.ALL_LENGTHS)) == attention.WINDOWS == 64
    assert max(attention.FEW_LENGTHS) == 82
    assert sum(attention.FEW_LENGTHS) / 12 == 49
