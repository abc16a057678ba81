"""The byte model against tensors: what it says of an op is what the op's arguments and results hold."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from benchmarks import attention, attentioncases, devices, opbatch, tokens, traffic
from physiofast import ops
from physiofast.ops import backends


@pytest.fixture(scope="module")
def batch():
    return tokens.Batch()


@pytest.fixture(scope="module")
def planned(batch):
    return batch.planned(0)[:3]


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
    samples = nbytes(ops.take_patches(rows, packing)[:count])
    where = nbytes(rows.row_start, rows.row_scale, rows.row_shift)
    order = nbytes(packing.ids[:count], packing.modality[:count], packing.by_modality[:count])
    out = ops.embed_patches(rows, packing, batch.weights, batch.table)[:count]
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
    tables, slots = (batch.table, batch.decoder_table), (plan.visible.slot, plan.present.slot)
    taken = traffic.take_tokens(shape)
    assert (taken.bytes_read, taken.bytes_written) == (nbytes(seen) + 4 * len(seen), nbytes(seen))
    back = traffic.take_tokens_backward(shape)
    assert (back.bytes_read, back.bytes_written) == (nbytes(seen, plan.visible.slot), nbytes(full))
    hidden, taken = torch.empty(used(plan.hidden), tokens.WIDTH), traffic.take_hidden(shape)
    indices = 4 * (len(hidden) + len(full)) + nbytes(plan.hidden.slot, plan.present.slot)
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
    samples = nbytes(ops.take_patches(rows, plan.hidden)[:count])
    where = nbytes(rows.row_start, rows.row_scale, rows.row_shift)
    pred = torch.empty(count, batch.length)
    found = traffic.masked_mse(shape_of(batch, plan))
    assert found.bytes_read == nbytes(pred) + samples + where + 8 * count + nbytes(weight)
    assert found.bytes_written == nbytes(pred) + 4 + 2 * nbytes(weight)
    scaled = traffic.scale_gradient(shape_of(batch, plan))
    assert (scaled.bytes_read, scaled.bytes_written) == (nbytes(pred, torch.ones(())), nbytes(pred))


def test_linear_masked_mse(batch, planned):
    rows, plan, weight = planned
    count = used(plan.hidden)
    samples = nbytes(ops.take_patches(rows, plan.hidden)[:count])
    where = nbytes(rows.row_start, rows.row_scale, rows.row_shift)
    x, leaves = torch.empty(count, tokens.WIDTH), (batch.head,)
    found = traffic.linear_masked_mse(shape_of(batch, plan))
    assert found.bytes_read == nbytes(x, *leaves) + samples + where + 8 * count + nbytes(weight)
    assert found.bytes_written == nbytes(x, *leaves) + 4 + 2 * nbytes(weight)
    assert found.flops == 3 * 2 * count * batch.head.numel() + 4 * count * batch.length


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
    for side in (tokens.ours, functools.partial(tokens.ours, in_one_pass=False), tokens.mae_style):
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


def test_modality_attention_across():
    """Queries of the hidden tokens, keys and values of the visible ones."""
    shape = traffic.AttentionShape(lengths=(5, 20), key_lengths=(9, 2), heads=2, width=8, kinds=3, value_bytes=4)
    q, k, v = torch.empty(25, 2, 8), torch.empty(11, 2, 8), torch.empty(11, 2, 8)
    facts = 4 * (2 * 25 + 3) + 4 * (2 * 11 + 3)
    bias, decay, allowed = torch.empty(2, 3, 3), torch.empty(2), torch.empty(3, 3, dtype=torch.bool)
    log_sums, shared = torch.empty(2, 25), nbytes(bias, decay)
    forward, back = traffic.modality_attention(shape), traffic.modality_attention_backward(shape)
    assert forward.bytes_read == nbytes(q, k, v, allowed) + facts + shared
    assert forward.bytes_written == nbytes(q, log_sums)
    assert back.bytes_read == nbytes(q, q, k, v, allowed, log_sums) + facts + shared
    assert back.bytes_written == nbytes(q, k, v) + shared
    pairs = 2 * (5 * 9 + 20 * 2)
    assert (forward.flops, back.flops) == (4 * 8 * pairs, (10 * 8 + 2 * 3) * pairs)


@pytest.mark.parametrize("tau_s", [(), (1.0, 4.0, 10.0)])
def test_modality_attention_stats(tau_s):
    given = attention.inputs((5, 20, 9), heads=2, width=8, kinds=3)
    packing, allowed, decay = given.packing, torch.empty(3, 3, dtype=torch.bool), torch.empty(2)
    facts = 2 * nbytes(packing.cu_seqlens, packing.modality, packing.time_s)
    options = {"pair_bias": given.pair_bias.detach(), "tau_s": tau_s}
    sums = ops.modality_attention_stats(given.q.detach(), given.k.detach(), packing, packing, **options)
    found = traffic.modality_attention_stats(attention.shape_of(given), len(tau_s))
    assert found.bytes_read == nbytes(given.q, given.k, given.pair_bias, decay, allowed) + facts
    assert found.bytes_written == nbytes(*sums)
    pairs = 5**2 + 20**2 + 9**2
    assert found.flops == 2 * 2 * pairs * 8 + 3 * pairs * (2 + len(tau_s)) * 2 * 3


def test_the_table_is_of_every_op_at_the_sizes_that_are_required_of_a_gpu():
    setting = opbatch.on_gpu(devices.find("cpu"), 0.0)
    for shape, montage, windows in (
        (traffic.TOKENS, setting.montage, setting.windows),
        (traffic.PLAN, setting.plan_montage, setting.plan_windows),
    ):
        assert (shape.windows, shape.channels, shape.tokens) == (windows, len(montage.channels), montage.tokens)
        assert (shape.kinds, shape.patch) == (len(montage.modalities), montage.patch_lengths[0])
        assert shape.visible == windows * round(setting.keep * montage.tokens)
        assert shape.visible + shape.hidden == shape.present == windows * montage.tokens
        assert (shape.width, shape.value_bytes, shape.sample_bytes) == (setting.width, 2, 2)
    sizes, attended = attentioncases.on_gpu(setting.device, 0.0), traffic.ATTENTION
    assert attended.lengths == tuple(sizes.lengths("100"))
    assert (attended.heads, attended.width, attended.kinds) == (sizes.heads, sizes.width, sizes.kinds)
    lines = traffic.markdown().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(traffic.OPS)
    assert set(backends.kernels()) - {"take_hidden_backward"} == set(traffic.OPS)
    assert traffic.markdown() in (Path(__file__).parents[1] / "benchmarks/README.md").read_text()


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
