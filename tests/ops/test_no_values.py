"""Tensors without values: refused beside others that have some; results and gradients of none but such have none."""

import dataclasses

import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast import ops
from physiofast.attention import ModalityAttention
from physiofast.ops import calling, checks
from tests.ops.kernels import OPS, Calls

REFUSED = r"^{} has no values \(it is on the meta device\); load them, or make them by to_empty and reset_parameters"


@pytest.fixture(scope="module")
def batch():
    return make_batch(3, rates=(33, 16, 4), patches=4, dtype=torch.float32)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("op", [*OPS, "take_patches", "linear_masked_mse", "sample_plan"])
def test_no_memory_that_nobody_wrote_comes_back(op, backend, batch):
    args, constants = arguments(op, batch)
    names = [argument.name for argument in getattr(torch.ops.physiofast, op).default._schema.arguments]
    with ops.backend(backend):
        calling.call(op, args, constants)
        for place, name in enumerate(names[: len(args)]):
            given = tuple(arg.to("meta") if i == place else arg for i, arg in enumerate(args))
            for run in (calling.call, lambda op, *args: getattr(torch.ops.physiofast, op)(*args[0], *args[1])):
                with pytest.raises(ValueError, match=REFUSED.format(name)):
                    run(op, given, constants)


def arguments(op, batch):
    """(tensors, constants) as `call` takes them."""
    calls, tokens = Calls(batch, 8, torch.float32), batch.montage.tokens
    if op == "sample_plan":
        valid, quotas, windows = batch.rows.valid, torch.ones(4, 1, dtype=torch.int64), torch.arange(4)
        of_tokens = (torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens))
        return (quotas, valid, windows, torch.zeros(2, dtype=torch.int64), *of_tokens), ((4, 4 * tokens, 4 * tokens),)
    if op == "take_patches":
        given = (*calls.embed_patches()[:7], calls.lengths)
    elif op == "linear_masked_mse":
        pred, *others = calls.masked_mse()
        given = (calls.draw(len(pred), 8), calls.draw(pred.shape[1], 8), calls.draw(pred.shape[1]), *others, True)
    else:
        given = calls.arguments(op)
    tensors = tuple(arg for arg in given if isinstance(arg, torch.Tensor))
    return tensors, tuple(tuple(arg) if isinstance(arg, list) else arg for arg in given[len(tensors) :])


@pytest.mark.parametrize("form", ["packed", "sdpa", "flex"])
@pytest.mark.parametrize("has_gradient", [True, False])
def test_a_parameter_that_no_state_dict_had_is_named(form, has_gradient, batch):
    with torch.device("meta"):
        module = ModalityAttention(8, 2, 3, decay=False, attention=form)
    found = module.load_state_dict(
        {name: torch.randn(t.shape) for name, t in module.state_dict().items() if name != "pair_bias"},
        strict=False,
        assign=True,
    )
    assert found.missing_keys == ["pair_bias"]
    packing = batch.plan.visible
    for backend in ("auto", "reference"):
        with ops.backend(backend), pytest.raises(ValueError, match=REFUSED.format("pair_bias")):
            module(torch.randn(len(packing.ids), 8, requires_grad=has_gradient), packing)


def test_like_calls_before_do_not_hide_it(batch):
    packing = batch.plan.visible
    q, bias = torch.randn(len(packing.ids), 2, 8), torch.zeros(2, 3, 3)
    times = dataclasses.replace(packing, time_s=packing.time_s.to("meta"))
    for _ in range(2):
        ops.modality_attention(q, q, q, packing, packing, pair_bias=bias)
        with pytest.raises(ValueError, match=REFUSED.format("pair_bias")):
            ops.modality_attention(q, q, q, packing, packing, pair_bias=bias.to("meta"))
        with pytest.raises(ValueError, match=REFUSED.format("time_q")):
            ops.modality_attention(q, q, q, times, times, pair_bias=bias)


@pytest.mark.parametrize("form", ["packed", "sdpa", "flex"])
def test_a_module_without_values_takes_no_packing_that_has_some(form, batch):
    with torch.device("meta"):
        module = ModalityAttention(8, 2, 3, attention=form)
    packing = batch.plan.visible
    with pytest.raises(ValueError, match=REFUSED.format("q")):
        module(torch.randn(len(packing.ids), 8, device="meta"), packing)


@pytest.mark.parametrize("op", ["masked_mse", "linear_masked_mse"])
def test_a_loss_without_values_has_gradients_without_values(op, batch):
    rows, hidden, weight = (ops.to_device(part, "meta") for part in (batch.rows, batch.plan.hidden, batch.weights))
    shapes = {"masked_mse": [(len(hidden.ids), 33)], "linear_masked_mse": [(len(hidden.ids), 8), (33, 8), (33,)]}[op]
    leaves = [torch.randn(shape, device="meta", requires_grad=True) for shape in shapes]
    loss, *_ = getattr(ops, op)(*leaves, rows, hidden, weight, patch_lengths=batch.montage.patch_lengths)
    loss.backward()
    assert all(leaf.grad.is_meta and leaf.grad.shape == leaf.shape for leaf in leaves)


def test_a_linear_head_without_values_is_named(batch):
    hidden, lengths = batch.plan.hidden, batch.montage.patch_lengths
    x, head = torch.randn(len(hidden.ids), 8), torch.randn(33, 8)
    for given, name in (((x.to("meta"), head), "x"), ((x, head.to("meta")), "head")):
        with pytest.raises(ValueError, match=REFUSED.format(name)):
            ops.linear_masked_mse(*given, None, batch.rows, hidden, batch.weights, patch_lengths=lengths)


def test_tensors_of_two_devices_are_named():
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    checks.check_one_device(("x", "weight"), (here, here))
    with pytest.raises(ValueError, match=r"^weight is on meta but x is on cpu; move them to one device"):
        checks.check_one_device(("x", "patches", "weight"), (here, 3, there))
