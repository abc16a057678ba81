"""The kernels of attention in Triton's interpreter against the definition in float64, over lengths, masks and flags."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import ops
from physiofast.ops import Packing, reference
from physiofast.ops.triton import attention, attention_backward, attention_stats
from physiofast.ops.triton.launching import BoundLaunch, written_down
from tests.ops.attention import make_case
from tests.ops.attention_kernels import (
    Drawn,
    assert_equal_definition,
    assert_same_bits_rearranged,
    draw,
    in_float64,
    of_definition,
    of_kernels,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not interpreted")

SHORT = (0, 1, 5, 16, 17, 33, 40)
LONG = (0, 17, 63, 64, 65, 127, 129, 300)


short = st.lists(st.tuples(st.sampled_from(SHORT), st.sampled_from(SHORT)), min_size=1, max_size=3)
long = st.lists(st.tuples(st.sampled_from(LONG), st.sampled_from(LONG)), min_size=1, max_size=1)
options = st.fixed_dictionaries(
    {
        "kinds": st.integers(1, 5),
        "width": st.sampled_from([5, 8, 24]),
        "pairs": st.sampled_from(["any", "cross", "intra"]),
        "bias": st.booleans(),
        "decay": st.booleans(),
        "dtype": st.sampled_from([torch.float16, torch.float16, torch.float32, torch.float64]),
        "seed": st.integers(0, 2**16),
    }
)


def draw_windows(pairs_of_lengths, is_self, options):
    """As `draw`, of queries and keys that are as many, or the same."""
    lengths_q, lengths_k = zip(*pairs_of_lengths, strict=True)
    return draw(list(lengths_q), None if is_self else list(lengths_k), heads=1, **options)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(pairs_of_lengths=st.one_of(*[short] * 6, long), is_self=st.booleans(), options=options)
def test_equals_the_definition(pairs_of_lengths, is_self, options):
    """Most windows are short, for the interpreter's sake: one takes a program or two."""
    assert_equal_definition(draw_windows(pairs_of_lengths, is_self, options))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    pairs_of_lengths=short.map(lambda pairs: pairs[:2]),
    is_self=st.booleans(),
    options=options,
    tau_s=st.lists(st.sampled_from([0.0, 0.5, 3.0, 40.0]), max_size=4),
)
def test_statistics_equal_the_definition(pairs_of_lengths, is_self, options, tau_s):
    drawn = draw_windows(pairs_of_lengths, is_self, options)
    found = attention_stats.modality_attention_stats(*drawn.qkv[:2], *drawn.sides, tau_s)
    want = reference.modality_attention_stats(*in_float64(drawn.qkv[:2]), *in_float64(drawn.sides), tau_s)
    epsilon = torch.finfo(drawn.qkv[0].dtype).eps
    for got, expected in zip(found, want, strict=True):
        atol = 16 * epsilon * float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=8 * epsilon, atol=atol)


@pytest.mark.parametrize(("width", "kinds"), [(32, 6), (64, 32), (96, 2), (128, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_widths_and_modalities_that_users_have(width, kinds, dtype):
    assert_equal_definition(draw([20, 66], [31, 40], dtype, width=width, kinds=kinds, heads=1))


def test_many_modalities():
    assert_equal_definition(draw([20, 66], [31, 40], torch.float32, width=16, kinds=100, heads=1))


@pytest.mark.parametrize("length", [300, 1000])
def test_long_windows(length):
    assert_equal_definition(draw([length, 9], [9, length], torch.float16, heads=1))


def test_rows_of_a_fused_projection_are_read_where_they_lie():
    """Strides of a [T, 3, H, Dh] projection, and of one that has to be copied first."""
    drawn = draw([9, 20], None, torch.float32)
    fused = torch.stack(drawn.qkv, 1).unbind(1)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in drawn.qkv]
    assert not fused[0].is_contiguous()
    want = of_kernels(drawn)
    for qkv in (fused, turned):
        found = of_kernels(dataclasses.replace(drawn, qkv=tuple(qkv)))
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
        assert all(a.is_contiguous() for a in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("order", [(2, 0, 4, 3, 1), (3,), (1, 4), (0, 2)])
def test_bits_do_not_depend_on_order_neighbours_or_the_longest_window(order, dtype):
    lengths_q, lengths_k = [5, 70, 30, 140, 33], [20, 66, 31, 100, 64]
    if dtype == torch.float32:  # of smaller blocks
        lengths_q, lengths_k = [5, 30, 16, 50, 17], [10, 33, 12, 40, 14]
    drawn = draw(lengths_q, lengths_k, dtype, heads=1, tail=0)
    found = of_kernels(drawn)
    for longest in (max(max(lengths_q[b], lengths_k[b]) for b in order), 1000):
        assert_same_bits_rearranged(drawn, found, order, lengths_q, lengths_k, longest)


def test_a_window_of_nan_spoils_no_other():
    drawn = draw([9, 9, 40], None, torch.float32, heads=1)
    want = of_kernels(drawn)
    spoilt = [t.clone() for t in drawn.qkv]
    for t in spoilt:
        t[9:18] = float("nan")
    found = of_kernels(dataclasses.replace(drawn, qkv=tuple(spoilt)))
    for index in (0, 2, 3, 4):
        assert torch.equal(found[index][:9], want[index][:9])
        assert torch.equal(found[index][18:], want[index][18:])


@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [
        (torch.float16, ([9, 140, 0, 40, 150], [20, 70, 3, 130, 90])),  # 65 to 128 tokens take another form
        (torch.float32, ([9, 140, 0, 40, 100], [20, 70, 3, 130, 90])),
    ],
)
def test_without_a_decay_values_are_those_of_a_decay_of_zero(dtype, lengths):
    """Windows of one block and of several; what would be its gradient is not asked for."""
    drawn = draw(*lengths, dtype, heads=1, decay=False)
    *want, ddecay = of_kernels(drawn)
    *found, none = of_kernels(dataclasses.replace(drawn, sides=drawn.sides._replace(time_decay=torch.zeros(0))))
    assert all(map(torch.equal, found, want))
    assert ddecay.shape == (1,) and none.shape == (0,)


@pytest.mark.parametrize("decay", [True, False])
def test_gradients_of_biases_and_decay_are_found_where_they_are_needed(decay):
    drawn = draw([9, 70, 0, 40], None, torch.float16, heads=1)
    if not decay:
        drawn.sides = drawn.sides._replace(time_decay=torch.zeros(0))
    *want, _, _ = of_kernels(drawn)
    *found, dbias, ddecay = of_kernels(drawn, need_shared=False)
    assert all(map(torch.equal, found, want))
    assert dbias.shape == ddecay.shape == (0,)
    with written_down() as started:
        of_kernels(drawn, need_shared=False)
    assert "_sum_places" not in [one.kernel.__name__ for one in started]


@pytest.mark.parametrize("scale", [4e-6, 4.0])
def test_small_and_large_scales(scale):
    """Kernels divide by it."""
    drawn = draw([3, 20, 70], [9, 14, 150], torch.float32)
    drawn.sides = drawn.sides._replace(scale=scale)
    assert_equal_definition(drawn)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1e-9])
def test_scales_that_kernels_cannot_divide_by_are_left_to_the_definition(scale):
    drawn = draw([3, 20, 70], [9, 14, 150], torch.float32)
    drawn.sides = drawn.sides._replace(scale=scale)
    want = reference.modality_attention(*drawn.qkv, *drawn.sides)
    want += reference.modality_attention_backward(drawn.grad, *drawn.qkv, *want, *drawn.sides, True)
    assert all(map(torch.equal, of_kernels(drawn), want))
    args = (*drawn.qkv[:2], *drawn.sides, (1.0,))
    found = attention_stats.modality_attention_stats(*args)
    assert all(map(torch.equal, found, reference.modality_attention_stats(*args)))


def test_keys_and_values_may_lie_unlike_each_other():
    drawn = draw([20, 70], [14, 150], torch.float16)
    q, k, v = drawn.qkv
    wide = torch.stack([v, v], 1)[:, 0]
    assert wide.stride() != k.stride() and not wide.is_contiguous()
    want = of_kernels(drawn)
    drawn.qkv = (q, k, wide)
    assert all(map(torch.equal, of_kernels(drawn), want))


def test_a_rerun_gives_the_same_bits():
    drawn = draw([70, 20], [10, 90], torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(of_kernels(drawn), of_kernels(drawn), strict=True))


@pytest.mark.parametrize("lengths", [([3, 2], [2, 4]), ([18, 1], [3, 17])])
def test_gradcheck(lengths):
    """Both backward forms, of short and of long windows, by finite differences in float64."""
    case = make_case(*lengths, heads=1, width=2, kinds=2, pairs="cross", tail=0)

    def attend(q, k, v, pair_bias, time_decay):
        options = {"pair_bias": pair_bias, "time_decay": time_decay, "allowed": case.options["allowed"]}
        return ops.modality_attention(q, k, v, *case.packings, **options)

    with ops.backend("triton"):
        assert torch.autograd.gradcheck(attend, case.leaves(), fast_mode=True)


def test_gradient_of_the_bias_is_that_of_further_features():
    """The bias as M more features of every head, in plain scaled-dot-product attention: its gradient is the same."""
    kinds, heads, width, length = 3, 2, 8, 40
    case = make_case([length], None, heads=heads, width=width, kinds=kinds, tail=0)
    case.options["time_decay"] = torch.zeros(heads, dtype=torch.float64, requires_grad=True)
    hot = reference.one_hot(case.packings[0].modality, kinds, torch.float64)
    bias = case.options["pair_bias"]
    wide_q = torch.cat([case.q * width**-0.5, torch.einsum("tm,hmn->thn", hot, bias)], -1)
    wide_k = torch.cat([case.k, hot[:, None].expand(-1, heads, -1)], -1)
    qkv = (t.transpose(0, 1) for t in (wide_q, wide_k, case.v))
    out = torch.nn.functional.scaled_dot_product_attention(*qkv, scale=1.0).transpose(0, 1)
    probe = torch.randn_like(out)
    (want,) = torch.autograd.grad((out * probe).sum(), bias)
    with ops.backend("triton"):
        (found,) = torch.autograd.grad((case.run() * probe).sum(), bias)
    torch.testing.assert_close(found, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("logit", [1e4, -1e4, 0.0, 1e6])
def test_extreme_and_equal_logits_stay_finite(logit, dtype):
    """All logits are this one; in float16 no query or key could hold the product."""
    drawn = draw([9, 70], None, dtype, width=16, decay=False, tail=0)
    size = (abs(logit) * 16**0.5 / 16) ** 0.5
    qkv = (torch.full_like(drawn.qkv[0], size), torch.full_like(drawn.qkv[1], size if logit > 0 else -size))
    sides = drawn.sides._replace(pair_bias=torch.zeros_like(drawn.sides.pair_bias))
    found = of_kernels(Drawn((*qkv, drawn.qkv[2]), sides, drawn.grad))
    assert all(t.isfinite().all() for t in found)
    means = torch.cat([part.double().mean(0).expand_as(part) for part in drawn.qkv[2].split([9, 70])])
    torch.testing.assert_close(found[0].double(), means, atol=2 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_float16_that_overflows_gives_infinity_and_no_nan():
    drawn = draw([40, 70], None, torch.float16, heads=1, width=16, tail=0)
    q, k, v = drawn.qkv
    found = of_kernels(Drawn((q * 8, k * 8, v.clamp(-1, 1) * 6e4), drawn.sides, drawn.grad * 8))
    assert found[0].isfinite().all()
    assert not any(t.isnan().any() for t in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_no_allowed_key_gives_zeros(dtype):
    """Short windows and long ones, where every query and key are of one modality and pairs must differ."""
    drawn = draw([6, 140], [3, 130], dtype, kinds=2, pairs="cross", heads=1)
    for modality in (drawn.sides.modality_q, drawn.sides.modality_k):
        modality[modality >= 0] = 1
    found = of_kernels(drawn)
    assert (found[1] == -torch.inf).all()
    for t in (found[0], *found[2:]):
        assert (t == 0).all()


def test_a_batch_without_windows_and_windows_without_tokens():
    for lengths in ([], [0, 0]):
        found = of_kernels(draw(lengths, None, torch.float32, tail=40) if lengths else empty_batch())
        assert all((t == 0).all() for index, t in enumerate(found) if index != 1)
        assert (found[1] == -torch.inf).all()


def empty_batch():
    drawn = draw([0], None, torch.float32, tail=4)
    none = torch.zeros(1, dtype=torch.int32)
    return dataclasses.replace(drawn, sides=drawn.sides._replace(cu_q=none, cu_k=none))


def test_many_parts_of_shared_gradients_are_summed_in_groups():
    heads, kinds = 2, 3
    partial = torch.randn(700, heads * (kinds * kinds + 1), dtype=torch.float64)
    found = torch.empty(heads, kinds, kinds, dtype=torch.float64), torch.empty(heads, dtype=torch.float64)
    attention_backward.sum_in_order(partial, *found)
    want = partial.sum(0).split([heads * kinds * kinds, heads])
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got.flatten(), expected, atol=1e-12, rtol=0)


def test_nothing_of_all_pairs_is_stored(monkeypatch):
    """No tensor that the kernels are given is larger than the queries."""
    seen, original = [], BoundLaunch.__call__

    def start(kernel, inputs, outputs, *scalars):
        seen.extend((*inputs, *outputs))
        original(kernel, inputs, outputs, *scalars)

    monkeypatch.setattr(BoundLaunch, "__call__", start)
    drawn = draw([100, 60, 0, 110], None, torch.float16, width=64, heads=1, kinds=6)
    of_kernels(drawn)
    largest = drawn.qkv[0].numel() * 2
    assert len(seen) > 40
    assert all(t.numel() * t.element_size() <= largest for t in seen)


def test_wide_heads_take_the_definition():
    drawn = draw([3], None, torch.float32, width=160, heads=1)
    found, want = attention.modality_attention(*drawn.qkv, *drawn.sides), of_definition(drawn)
    torch.testing.assert_close(found[0].double(), want[0], atol=1e-5, rtol=0)


def test_packings_choose_nothing_that_bits_depend_on():
    """`max_len` may be any number that is large enough."""
    case = make_case([20, 3], None, heads=1, dtype=torch.float32)
    packing = case.packings[0]
    roomy: Packing = dataclasses.replace(packing, max_len=packing.max_len + 500)
    with ops.backend("triton"):
        first = ops.modality_attention(case.q, case.k, case.v, packing, packing, **case.options)
        second = ops.modality_attention(case.q, case.k, case.v, roomy, roomy, **case.options)
    assert torch.equal(first, second)
