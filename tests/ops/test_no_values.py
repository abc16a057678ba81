"""Tensors without values beside others that have some: refused, or the result has none either."""

import dataclasses
import re

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
    refused = set()
    with ops.backend(backend):
        calling.call(op, args, constants)
        for place, name in enumerate(names[: len(args)]):
            given = tuple(arg.to("meta") if i == place else arg for i, arg in enumerate(args))
            for run in (calling.call, lambda op, *args: getattr(torch.ops.physiofast, op)(*args[0], *args[1])):
                try:
                    results = as_list(run(op, given, constants))
                except ValueError as error:
                    results = []
                    refused.add((name, re.match(REFUSED.format(name), str(error)) is not None))
                assert all(result.is_meta or not result.numel() for result in results)
    assert refused
    assert all(is_named for _, is_named in refused)


def as_list(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


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


def test_tensors_of_two_devices_are_named():
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    checks.check_one_device(("x", "weight"), (here, here))
    with pytest.raises(ValueError, match=r"^weight is on meta but x is on cpu; move them to one device"):
        checks.check_one_device(("x", "patches", "weight"), (here, 3, there))
