"""The C++ form of attention against the definition in float64, over lengths, widths, masks and flags."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine
from physiofast.ops import cpu_attention, reference
from tests.ops.attention_kernels import draw, of_definition
from tests.ops.kernels import attention_terms
from tests.settings import INSTRUCTIONS, on_torch_threads, with_instructions

pytestmark = [pytest.mark.native, pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))]

LENGTHS = (0, 1, 7, 15, 16, 17, 33, 47, 48, 49, 64, 65, 97, 130)


def of_engine(drawn):
    """(out, lse, gradients...)."""
    found = cpu_attention.modality_attention(*drawn.qkv, *drawn.sides)
    grads = cpu_attention.modality_attention_backward(drawn.grad, *drawn.qkv, *found, *drawn.sides, True)
    return [*found, *grads]


def assert_equals_definition(drawn, relative):
    """Errors are shares of the largest sum of magnitudes of what a number is summed from, for sums may cancel."""
    wanted = of_definition(drawn)
    terms = attention_terms(drawn.grad, *drawn.qkv, *drawn.sides)
    for found, want, largest in zip(of_engine(drawn), wanted, terms, strict=True):
        there = want.isfinite()
        assert torch.equal(found.isfinite(), there)
        error = (found.double() - want)[there].abs()
        assert error.numel() == 0 or float(error.max()) <= relative * largest


@settings(max_examples=150, deadline=None)
@given(
    windows=st.lists(st.tuples(st.sampled_from(LENGTHS), st.sampled_from(LENGTHS)), min_size=1, max_size=4),
    kinds=st.sampled_from([1, 3, 6, 64]),
    heads=st.sampled_from([1, 3]),
    width=st.sampled_from([1, 5, 16, 24, 32, 64, 96]),
    pairs=st.sampled_from(["any", "cross", "intra"]),
    flags=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition(windows, kinds, heads, width, pairs, flags, seed):
    lengths_q, lengths_k = map(list, zip(*windows, strict=True))
    options = {"kinds": kinds, "heads": heads, "width": width, "pairs": pairs, "bias": flags[0], "decay": flags[1]}
    drawn = draw(lengths_q, lengths_k, torch.float32, **options, seed=seed)
    with on_torch_threads(1 + seed % 3):
        assert_equals_definition(drawn, 2e-6)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_instruction_set_equals_the_definition(name):
    with with_instructions(name):
        assert_equals_definition(draw([65, 0, 18], [17, 3, 130], torch.float32, kinds=4, width=40), 2e-6)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_sixteen_bits_are_those_of_inputs_and_results(dtype, relative):
    assert_equals_definition(draw([33, 7], [16, 65], dtype, width=32), relative)


def test_seconds_of_64_bits_are_rounded_as_the_definition_rounds_them():
    drawn = draw([65, 0, 18], [17, 3, 130], torch.float32)
    wide = {name: getattr(drawn.sides, name).double() for name in ("time_q", "time_k")}
    for found, want in zip(
        of_engine(dataclasses.replace(drawn, sides=drawn.sides._replace(**wide))), of_engine(drawn), strict=True
    ):
        assert torch.equal(found, want)


def test_bits_depend_on_neither_threads_nor_neighbours_nor_instruction_sets():
    lengths = [65, 1, 17, 130, 33]
    drawn = draw(lengths, lengths, torch.float32, kinds=4, heads=3, width=24, seed=2)
    with on_torch_threads(1):
        first = of_engine(drawn)
    with on_torch_threads(3):
        assert all(map(torch.equal, first, of_engine(drawn)))
    fused = [name for name in INSTRUCTIONS if name != "sse2"]
    for name in fused:
        with with_instructions(name):
            assert all(map(torch.equal, first, of_engine(drawn)))
    begin = sum(lengths[:3])
    mine = slice(begin, begin + lengths[3])
    cu = torch.tensor([0, lengths[3]], dtype=torch.int32)
    of_tokens = {name: getattr(drawn.sides, name)[mine] for name in ("modality_q", "modality_k", "time_q", "time_k")}
    alone = drawn.sides._replace(cu_q=cu, cu_k=cu, **of_tokens)
    out, lse = cpu_attention.modality_attention(*(t[mine] for t in drawn.qkv), *alone)
    assert torch.equal(out, first[0][mine]) and torch.equal(lse, first[1][:, mine])
    rows = (t[mine] for t in (drawn.grad, *drawn.qkv))
    for found, whole in zip(
        cpu_attention.modality_attention_backward(*rows, out, lse, *alone, True), first[2:5], strict=False
    ):
        assert torch.equal(found, whole[mine])


def test_nan_stays_in_its_window():
    lengths = [20, 31, 9]
    drawn = draw(lengths, lengths, torch.float32, tail=0)
    clean = of_engine(drawn)
    for tensor in drawn.qkv:
        tensor[25] = float("nan")
    spoiled = of_engine(drawn)
    others = torch.ones(sum(lengths), dtype=torch.bool)
    others[20:51] = False
    for i in (0, 2, 3, 4):
        assert torch.equal(spoiled[i][others], clean[i][others])
        assert spoiled[i][~others].isnan().any()
    assert spoiled[0][20:51].isnan().all() and spoiled[1][:, 20:51].isnan().all()


def test_logits_of_any_size():
    """Ties of huge logits share the weight; logits far below the largest have none."""
    drawn = draw([18], [18], torch.float32, width=16, bias=False, decay=False, tail=0)
    for q in (0.0, 1e3, -1e3):
        qkv = (torch.full_like(drawn.qkv[0], q), torch.full_like(drawn.qkv[1], 1e3), drawn.qkv[2])
        out, _ = cpu_attention.modality_attention(*qkv, *drawn.sides)
        torch.testing.assert_close(out, qkv[2].mean(0).expand_as(out), rtol=1e-5, atol=1e-6)
    qkv[1][0] = -1e3
    out, lse = cpu_attention.modality_attention(*qkv, *drawn.sides)
    torch.testing.assert_close(out, qkv[2][:1].expand_as(out), rtol=1e-6, atol=0)
    assert lse.isfinite().all()


def test_modalities_without_a_bias_attend_freely():
    """Without pair_bias and mask the op knows one modality, and tokens may be of any."""
    drawn = draw([40], [40], torch.float32, kinds=6, tail=0)
    sides = drawn.sides._replace(pair_bias=torch.zeros(2, 1, 1), allowed=torch.ones(1, 1, dtype=torch.bool))
    found, _ = cpu_attention.modality_attention(*drawn.qkv, *sides)
    of_one = torch.zeros_like(sides.modality_q)
    sides = sides._replace(modality_q=of_one, modality_k=of_one)
    torch.testing.assert_close(found, cpu_attention.modality_attention(*drawn.qkv, *sides)[0], rtol=0, atol=0)


def test_a_fused_projection_is_read_where_it_lies():
    drawn = draw([33, 20], [33, 20], torch.float32, heads=2, width=16, tail=0)
    fused = torch.stack(drawn.qkv, 1)  # [T, 3, H, Dh]
    q, k, v = fused.unbind(1)
    assert np.shares_memory(cpu_attention._rows(k), fused.numpy())
    for found, want in zip(
        cpu_attention.modality_attention(q, k, v, *drawn.sides),
        cpu_attention.modality_attention(*drawn.qkv, *drawn.sides),
        strict=True,
    ):
        assert torch.equal(found, want)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"cu_q": torch.tensor([0, 50]).int()}, r"packing_q\.cu_seqlens: .* the packing's 9 places, found 0 to 50"),
        ({"cu_k": torch.tensor([-1, 9]).int()}, r"packing_k\.cu_seqlens: .* the packing's 9 places, found -1 to 9"),
        (
            {"cu_q": torch.tensor([0, 5, 3]).int(), "cu_k": torch.tensor([0, 5, 9]).int()},
            r"packing_q\.cu_seqlens 2: expected at least 5, the end before it, found 3",
        ),
        ({"cu_k": torch.tensor([0, 5, 9], dtype=torch.int32)}, "cu_seqlens"),
        ({"pair_bias": torch.zeros(2, 2, 3)}, "pair_bias"),
        ({"allowed": torch.ones(2, 3, dtype=torch.bool)}, "allowed"),
        ({"time_decay": torch.zeros(5)}, "time_decay"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(change, what):
    drawn = draw([9], [9], torch.float32, tail=0)
    with pytest.raises(ValueError, match=what):
        cpu_attention.modality_attention(*drawn.qkv, *drawn.sides._replace(**change))


def test_the_definition_serves_where_the_engine_does_not():
    drawn = draw([9, 0], [9, 4], torch.float64)
    for found, want in zip(of_engine(drawn), of_definition(drawn), strict=True):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    wide = draw([5], [5], torch.float32, kinds=65)
    want = reference.modality_attention(*wide.qkv, *wide.sides)
    assert torch.equal(cpu_attention.modality_attention(*wide.qkv, *wide.sides)[0], want[0])
