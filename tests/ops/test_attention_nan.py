"""NaN in what a query attends to is found in its result, in all forms of attention, and in no other window's.

Here the interpreter's maximum passes over NaN, as that of a GPU does.
"""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from physiofast.ops import cpu_attention, reference
from physiofast.ops.triton import attention, attention_backward, attention_stats
from tests.ops.attention_kernels import draw

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # infinity less itself, beside NaN
]

OUTPUTS = ("out", "lse", "dq", "dk", "dv", "dbias", "ddecay")
LENGTHS = {
    "slots": [9, 7, 20, 30],
    "a tile": [9, 60],
    "all keys at once": [9, 70],
    "keys stream by": [9, 131],
}
"""Of windows, by the form that serves them with 16 bits; every other one gets NaN."""
SOURCES = ("q", "k", "v", "pair_bias", "time_decay", "scale")


@pytest.fixture(autouse=True)
def _maximum_of_a_gpu(monkeypatch):
    """Which of these the interpreter asks numpy for depends on Triton's version."""
    from triton.runtime.interpreter import InterpreterBuilder

    def reduced(x, axis=None, keepdims=False):
        return np.fmax.reduce(x, axis=axis, keepdims=keepdims)

    monkeypatch.setattr(InterpreterBuilder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax))
    for name in ("max", "nanmax"):
        monkeypatch.setattr(np, name, reduced)


def spoilt(drawn, source):
    """The same arguments with NaN in one of them; of what windows do not share, in a token of every other one."""
    qkv, sides = [t.clone() for t in drawn.qkv], drawn.sides
    if source in ("q", "k", "v"):
        ends = sides.cu_q.tolist()
        for begin, end in zip(ends[1:-1:2], ends[2::2], strict=True):
            qkv["qkv".index(source)][(begin + end) // 2, 0, 1] = float("nan")
    elif source == "scale":
        sides = sides._replace(scale=float("nan"))
    else:
        of_heads = getattr(sides, source).clone()
        of_heads[0] = float("nan")
        sides = sides._replace(**{source: of_heads})
    return dataclasses.replace(drawn, qkv=tuple(qkv), sides=sides)


def results(forward, backward, drawn):
    found = forward(*drawn.qkv, *drawn.sides)
    return dict(zip(OUTPUTS, (*found, *backward(drawn.grad, *drawn.qkv, *found, *drawn.sides, True)), strict=True))


def of_kernels(drawn):
    return results(attention.modality_attention, attention_backward.modality_attention_backward, drawn)


def of_twin(drawn):
    return results(reference.modality_attention, reference.modality_attention_backward, drawn)


def of_engine(drawn):
    return results(cpu_attention.modality_attention, cpu_attention.modality_attention_backward, drawn)


def assert_spoilt_alike(found, want, clean):
    """NaN where the twin has it; and where a window has none, what it is without."""
    for name in OUTPUTS:
        assert torch.equal(found[name].isnan(), want[name].isnan()), name
        is_same = (
            ~want[name].isnan().any(-1, keepdim=True) if name in ("out", "dq", "dk", "dv") else ~want[name].isnan()
        )
        if name in ("out", "dv"):  # of which nothing else in a window depends on NaN
            assert torch.equal(torch.where(is_same, found[name], 0), torch.where(is_same, clean[name], 0)), name


@functools.cache
def drawn_for(form):
    """Arguments, and what the kernels make of them."""
    drawn = draw(LENGTHS[form], None, torch.float16, kinds=2, width=8)
    return drawn, of_kernels(drawn)


@pytest.mark.parametrize("form", LENGTHS)
@pytest.mark.parametrize("source", SOURCES)
def test_results_of_kernels_have_nan_where_the_twins_have(form, source):
    drawn, clean = drawn_for(form)
    bad = spoilt(drawn, source)
    want = of_twin(bad)
    assert any(found.isnan().any() for found in want.values())
    assert_spoilt_alike(of_kernels(bad), want, clean)


@pytest.mark.parametrize("source", SOURCES)
def test_results_of_the_engine_have_nan_where_the_twins_have(source):
    drawn = draw([9, 40, 17, 70], None, torch.float32, kinds=2, width=8)
    bad = spoilt(drawn, source)
    assert_spoilt_alike(of_engine(bad), of_twin(bad), of_engine(drawn))


@pytest.mark.parametrize("source", SOURCES)
def test_statistics_have_nan_in_the_sums_of_heads_where_the_twins_have(source):
    """Those of equal weights and the number of queries know nothing of it."""
    drawn = draw([9, 40], None, torch.float16, kinds=2, width=8)
    bad, taus = spoilt(drawn, source), [1.0]
    found, want = (
        module.modality_attention_stats(*bad.qkv[:2], *bad.sides, taus) for module in (attention_stats, reference)
    )
    assert torch.equal(found[0].isnan(), want[0].isnan())
    assert want[0].isnan().any() == (source != "v")
    even = attention_stats.modality_attention_stats(*drawn.qkv[:2], *drawn.sides, taus)
    assert torch.equal(found[0][-3:], even[0][-3:]) and torch.equal(found[1], even[1])


@pytest.mark.parametrize("lengths", [[9, 20], [40], [131]])
@pytest.mark.parametrize("pairs", ["cross", "intra"])
def test_nan_reaches_every_query_that_may_look_at_it(lengths, pairs):
    """A key that is NaN, where some may not look at it; a query that may look at nothing gives zeros."""
    drawn = draw(lengths, None, torch.float16, kinds=3, heads=1, pairs=pairs)
    drawn.sides.allowed[-1] = False
    out, _ = attention.modality_attention(*spoilt(drawn, "q").qkv, *drawn.sides)
    want, _ = reference.modality_attention(*spoilt(drawn, "q").qkv, *drawn.sides)
    assert (out.isnan() >= want.isnan()).all()
    assert (out.isnan().any(-1).any(-1) <= spoilt(drawn, "q").qkv[0].isnan().any(-1).any(-1)).all()
    bad = spoilt(drawn, "k")
    out, _ = attention.modality_attention(*bad.qkv, *bad.sides)
    want, _ = reference.modality_attention(*bad.qkv, *bad.sides)
    assert (out.isnan() >= want.isnan()).all()


@pytest.mark.parametrize("lengths", [[9, 20], [70], [131]])
def test_a_bias_far_below_zero_is_not_forbidden(lengths):
    """As masks by addition are: where all keys have it, their weights are equal, in all forms alike."""
    for dtype, forward in ((torch.float16, attention), (torch.float32, cpu_attention)):
        drawn = draw(lengths, None, dtype, heads=1, kinds=2)
        drawn.sides.pair_bias[:] = -3e37
        out, lse = forward.modality_attention(*drawn.qkv, *drawn.sides)
        want, want_lse = reference.modality_attention(*drawn.qkv, *drawn.sides)
        assert want[: sum(lengths)].abs().min() > 0
        torch.testing.assert_close(out, want, rtol=0, atol=4 * torch.finfo(dtype).eps)
        torch.testing.assert_close(lse, want_lse, rtol=1e-6, atol=0)
