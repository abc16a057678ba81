"""A bias of -inf forbids its pair of modalities, in all forms of attention as `allowed` does."""

import dataclasses
import functools

import pytest
import torch

from physiofast.ops import cpu_attention, reference
from physiofast.ops.triton import attention, attention_backward, attention_stats
from tests.ops.attention_kernels import draw

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not interpreted")

LENGTHS = {"slots": [9, 7, 20], "a tile": [60], "all keys at once": [70], "keys stream by": [131]}
FORMS = {
    "kernels": (attention.modality_attention, attention_backward.modality_attention_backward),
    "engine": (cpu_attention.modality_attention, cpu_attention.modality_attention_backward),
    "definition": (reference.modality_attention, reference.modality_attention_backward),
}
STATS = {"kernels": attention_stats.modality_attention_stats, "definition": reference.modality_attention_stats}


def masked(lengths, dtype, value=-torch.inf):
    """(arguments with that bias for two pairs and all of the last modality's, the same with `allowed` False there)."""
    drawn = draw(lengths, None, dtype, kinds=3)
    by_bias = drawn.sides._replace(pair_bias=drawn.sides.pair_bias.clone())
    by_mask = drawn.sides._replace(allowed=drawn.sides.allowed.clone())
    for query, key in ((0, 1), (1, 0), (2, slice(None))):
        by_bias.pair_bias[:, query, key] = value
        by_mask.allowed[query, key] = False
    return tuple(dataclasses.replace(drawn, sides=sides) for sides in (by_bias, by_mask))


def results(form, drawn):
    forward, backward = FORMS[form]
    found = forward(*drawn.qkv, *drawn.sides)
    return (*found, *backward(drawn.grad, *drawn.qkv, *found, *drawn.sides, True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, -torch.inf), (torch.float32, -3e38)])
def test_a_bias_that_forbids_is_a_mask(form, lengths, dtype, value):
    by_bias, by_mask = (results(form, drawn) for drawn in masked(lengths, dtype, value))
    for found, want in zip(by_bias, by_mask, strict=True):
        assert not found.isnan().any()
        torch.testing.assert_close(found, want, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("form", STATS)
def test_statistics_know_it_as_a_mask(form):
    by_bias, by_mask = (
        STATS[form](*drawn.qkv[:2], *drawn.sides, [1.0, 5.0]) for drawn in masked([9, 7, 20, 40], torch.float32)
    )
    for found, want in zip(by_bias, by_mask, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", ["modality_attention", "modality_attention_backward", "modality_attention_stats"])
def test_autocast_does_not_lower_what_kernels_leave_to_the_definition(op):
    """Heads wider than kernels have room for."""
    drawn = draw([9, 20], None, torch.float32, width=136)
    found = reference.modality_attention(*drawn.qkv, *drawn.sides)
    call = {
        "modality_attention": functools.partial(attention.modality_attention, *drawn.qkv, *drawn.sides),
        "modality_attention_backward": functools.partial(
            attention_backward.modality_attention_backward, drawn.grad, *drawn.qkv, *found, *drawn.sides, True
        ),
        "modality_attention_stats": functools.partial(
            attention_stats.modality_attention_stats, *drawn.qkv[:2], *drawn.sides, [1.0]
        ),
    }[op]
    want = call()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, call(), want))
