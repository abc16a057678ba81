"""Token ops by the C++ engine against the same by PyTorch, over sizes, strides, indices, instructions and threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.mixedbatch import make_batch
from physiofast import engine, ops
from physiofast.ops import cpu_loss, cpu_tokens, reference
from tests.ops.kernels import Calls
from tests.settings import INSTRUCTIONS, on_torch_threads, with_instructions

pytestmark = [pytest.mark.native, pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))]

SIZES = (0, 1, 2, 17, 700)
WIDTHS = (1, 3, 16, 100, 257)
LARGE = (900, 1300)
"""Rows and features of outputs that are written past the caches."""


def rows(count, width, generator, dense=True):
    wide = torch.randn(count, width if dense else 2 * width + 1, generator=generator)
    return wide[:, :width]


def indices(count, below, generator):
    """int32, -1 now and then; nothing else where there are no rows."""
    found = torch.randint(-1, below, (count,), generator=generator) if below else torch.full((count,), -1)
    return found.int()


def pick(values, index, through=None, onto=None):
    """Rows by the engine."""
    out = torch.full((len(index), values.shape[1]), torch.nan)
    given = [None if t is None else t.numpy() for t in (values, index, through, onto, out)]
    cpu_tokens._native.pick_rows(*given, cpu_tokens._native.Workers(torch.get_num_threads()))
    return out


def padded(values):
    """With a row of zeros, which -1 names."""
    return torch.cat([values, values.new_zeros(1, values.shape[1])])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from(WIDTHS), st.booleans(), st.integers(0, 2**31),
    st.sampled_from(INSTRUCTIONS), st.sampled_from([1, 3]),
)  # fmt: skip
def test_picked_rows_are_copies_and_sums(count, below, width, dense, seed, instructions, threads):
    check_picked(count, below, width, dense, seed, instructions, threads)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_rows_of_many_bytes_are_written_past_the_caches_and_equal(instructions):
    check_picked(LARGE[0], 40, LARGE[1], True, 0, instructions, 3)


def check_picked(count, below, width, dense, seed, instructions, threads):
    generator = torch.Generator().manual_seed(seed)
    values, onto = rows(below, width, generator, dense), rows(count, width, generator, dense)
    index, through = indices(count, 23, generator), indices(23, below, generator)
    direct = indices(count, below, generator)
    with with_instructions(instructions), on_torch_threads(threads):
        found = (pick(values, direct), pick(values, index, through), pick(values, index, through, onto))
    of_index = torch.where(index < 0, -1, through[index.long()]).long()
    want = (padded(values)[direct.long()], padded(values)[of_index], onto + padded(values)[of_index])
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


OPS = [
    "embed_patches", "embed_patches_backward", "take_tokens", "take_tokens_backward", "take_hidden",
    "take_hidden_backward", "assemble_tokens", "assemble_tokens_backward",
]  # fmt: skip


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("samples", [torch.float32, torch.int16])
@pytest.mark.parametrize("width", [1, 63, 700])
def test_the_same_bits_by_any_instructions_and_threads_and_near_the_twin(op, samples, width):
    batch = make_batch(3, rates=(40, 17, 1), batch=30, patches=20, dtype=samples)
    arguments = Calls(batch, width, torch.float32).arguments(op)
    exact = [arg.double() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in arguments]
    wanted = as_list(getattr(reference, op)(*exact))
    fused, rounded_twice = [], []  # the products of SSE2, which has no fused multiply-add
    for instructions in INSTRUCTIONS:
        results = rounded_twice if instructions == "sse2" and op.startswith("embed") else fused
        for threads in (1, 3):
            with with_instructions(instructions), on_torch_threads(threads):
                results.append(as_list(getattr(cpu_tokens, op)(*arguments)))
    for results in filter(None, (fused, rounded_twice)):
        for other in results[1:]:
            products = (2,) if op == "embed_patches_backward" else ()  # of samples' gradient, which are PyTorch's
            assert_same_bits(other, results[0], products)
        for found, want in zip(results[0], wanted, strict=True):
            assert found.shape == want.shape
            if want.numel():
                assert float((found - want).abs().max()) <= 4e-6 * float(want.abs().max())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("width", [1, 64, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [0, 1])
def test_features_of_16_bits_give_what_the_definition_gives(op, width, dtype, seed):
    batch = make_batch(3, rates=(40, 17, 1), batch=30, patches=20)
    arguments = Calls(batch, width, dtype, seed).arguments(op)
    found, wanted = (as_list(getattr(module, op)(*arguments)) for module in (cpu_tokens, reference))
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        if op.startswith("take") or op == "assemble_tokens":  # copies, and sums of two numbers
            assert torch.equal(got, want)
        else:  # sums of many, in float32 and in another order, and then rounded
            places = torch.finfo(got.dtype).eps if got.dtype == dtype else 0
            torch.testing.assert_close(got, want, rtol=places, atol=4e-6 * float(want.abs().max()))


@pytest.mark.parametrize("op", OPS)
def test_features_of_16_bits_leave_the_definition_alone(op, monkeypatch):
    arguments = Calls(make_batch(3, dtype=torch.int16), 8, torch.bfloat16).arguments(op)
    monkeypatch.setattr(reference, op, None)
    getattr(cpu_tokens, op)(*arguments)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("step", [10, 11, 20])
def test_rows_of_16_bits_that_begin_at_any_number(first, step):
    """Those at odd numbers are no rows of half as many of 32 bits. Bits of NaN are copied, too."""
    plan = make_batch(2).plan
    indices = (plan.hidden.ids, plan.present.ids, plan.hidden.slot, plan.present.slot)
    bits = torch.randint(-(2**15), 2**15, (len(plan.present.ids) * step + 1,), dtype=torch.int16)
    x = bits[first:].view(torch.bfloat16).as_strided((len(plan.present.ids), 10), (step, 1))
    found, want = (module.take_hidden(x, *indices) for module in (cpu_tokens, reference))
    assert torch.equal(found.view(torch.int16), want.view(torch.int16))


def test_encodings_of_16_bits_among_tables_of_32():
    """As autocast leaves them."""
    arguments = list(Calls(make_batch(4), 20, torch.float32).arguments("assemble_tokens"))
    arguments[0] = arguments[0].bfloat16()
    found, want = (module.assemble_tokens(*arguments) for module in (cpu_tokens, reference))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, want)


def assert_same_bits(found, wanted, products):
    """But of results by PyTorch's products, whose last bits depend on threads, and on where operands lie."""
    for number, (got, want) in enumerate(zip(found, wanted, strict=True)):
        if number in products and want.numel():
            torch.testing.assert_close(got, want, rtol=0, atol=4e-6 * float(want.abs().max()))
        else:
            assert torch.equal(got, want)


def as_list(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("op", OPS)
def test_tensors_that_do_not_lie_densely_give_the_same(op):
    batch = make_batch(4, rates=(16, 7, 1), patches=5)
    arguments = Calls(batch, 20, torch.float32).arguments(op)
    spread = [spread_out(arg) if isinstance(arg, torch.Tensor) else arg for arg in arguments]
    found, want = (as_list(getattr(cpu_tokens, op)(*args)) for args in (spread, arguments))
    products = (0, 1, 2) if op.startswith("embed") else ()  # such samples are left to the definition
    assert_same_bits(found, want, products)


def spread_out(x):
    """The same numbers, every other one of memory."""
    return torch.stack([x, x], -1)[..., 0]


@pytest.mark.parametrize("index", [[0, 3], [5, -1]])
def test_numbers_beyond_the_rows_are_refused(index):
    values, index = torch.zeros(3, 2), torch.tensor(index, dtype=torch.int32)
    with pytest.raises(cpu_tokens._native.BoundsError, match="expected a number below 3, found"):
        pick(values, index)
    with pytest.raises(cpu_tokens._native.BoundsError, match="expected a number below 3, found"):
        pick(values, torch.zeros(1, dtype=torch.int32), index.flip(0) if index[0] == 0 else index)
    with pytest.raises(cpu_tokens._native.BoundsError, match="expected a number below 2, found"):
        pick(values, index[:1] + 5, index)
    slots, place = index[None], torch.arange(3, dtype=torch.int32)
    given = (values, slots, place, torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(cpu_tokens._native.BoundsError, match="expected a number below 3, found"):
        cpu_tokens._native.order_gradients(*(t.numpy() for t in given), cpu_tokens.workers())


@pytest.mark.parametrize("wrong", [-1, 3])
def test_places_that_an_order_may_not_have_are_refused_before_they_are_written(wrong):
    """Where a place is none, `ids` say so; an order by modality has all of them."""
    guarded = torch.full((5, 2), 7.0)
    rows, ids, order = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), torch.tensor([0, wrong, 2]).int()
    patches = (torch.zeros(12), torch.tensor([0, 3], dtype=torch.int32), [4], torch.zeros(4, 2))
    calls = (
        ("embed_patches", (*patches, order, ids, rows, guarded[1:4])),
        ("order_gradients", (rows, ids[None, :1], order, guarded[1:4], torch.zeros(1, 2))),
    )
    for name, arguments in calls:
        given = [t.numpy() if isinstance(t, torch.Tensor) else t for t in arguments]
        with pytest.raises(cpu_tokens._native.BoundsError, match=f"place 1: expected 0 to 2, found {wrong}"):
            getattr(cpu_tokens._native, name)(*given, cpu_tokens._native.Workers(1))
        assert (guarded[[0, 4]] == 7).all()


def test_a_visible_token_that_is_not_present_has_gradient_zero():
    slots, gone = torch.tensor([[0, 1, -1]], dtype=torch.int32), torch.tensor([[-1, 0, 1]], dtype=torch.int32)
    arguments = (torch.randn(2, 4), torch.tensor([0, 1], dtype=torch.int32), slots, gone, torch.zeros(3, 4))
    found, want = cpu_tokens.assemble_tokens_backward(*arguments), reference.assemble_tokens_backward(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize(
    "form", [lambda x: x.clone(), lambda x: torch.view_as_complex(torch.stack([x, -x], -1)).conj().imag]
)
@pytest.mark.parametrize("width", [1, 5])
def test_features_that_lie_in_odd_ways(form, width):
    """One column whose elements are far apart, and numbers that are stored with the other sign."""
    batch = make_batch(2)
    plan = batch.plan
    indices = (plan.hidden.ids, plan.present.ids, plan.hidden.slot, plan.present.slot)
    x = form(torch.randn(width, len(plan.present.ids))).t()
    assert torch.equal(cpu_tokens.take_hidden(x, *indices), reference.take_hidden(x, *indices))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
@pytest.mark.parametrize("rates", [(8, 6, 4), (128, 100, 300), (1, 17, 33)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("normalise", [(0, 0, 0), (1, 0, 1)])
def test_loss_equals_the_definition_in_float64(dtype, rates, seed, normalise):
    batch = make_batch(seed, patches=4, rates=rates, dtype=dtype)
    hidden, at = batch.plan.hidden, batch.rows
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(len(hidden.ids), max(batch.montage.patch_lengths) + 3, generator=generator)[:, :-3]
    packed = (hidden.ids, hidden.modality, hidden.slot)
    weight = torch.rand(len(batch.montage.modalities), generator=generator)
    known = (batch.montage.patch_lengths, normalise, 1)
    samples = at.samples.double() if dtype.is_floating_point else at.samples
    wide = (samples, at.row_start, at.row_scale.double(), at.row_shift.double())
    want = reference.masked_mse(pred.double(), *wide, *packed, weight.double(), *known)
    results = []
    for instructions in INSTRUCTIONS:
        for threads in (1, 3):
            with with_instructions(instructions), on_torch_threads(threads):
                narrow = (at.samples, at.row_start, at.row_scale, at.row_shift)
                results.append(cpu_loss.masked_mse(pred, *narrow, *packed, weight, *known))
    largest = max(1.0, float(pred.abs().max()), float(want[1].max()))
    for found, wanted in zip(results[0], want, strict=True):
        assert float((found.double() - wanted).abs().max()) <= 1e-6 * largest
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("offset", [0.0, 30.0, -2000.0])
def test_normalised_targets_far_from_zero(offset):
    """As float32 has them: a sample is known to within half a unit in its last place."""
    generator, length, tokens = torch.Generator().manual_seed(0), 100, 40
    samples = torch.randn(tokens, length, generator=generator) + offset
    samples[3] = samples[3, 0]  # the same all along: its target is 0
    ids = torch.arange(tokens, dtype=torch.int32)
    rows = (samples.flatten(), torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), 0.5), torch.full((1, 1), 7.0))
    packed = (ids, torch.zeros(tokens, dtype=torch.int32), ids[None])
    pred = torch.randn(tokens, length, generator=generator)
    arguments = (*packed, torch.ones(1), [length], [1], 1)
    _, _, _, grad = cpu_loss.masked_mse(pred, *rows, *arguments)
    wide = (rows[0].double(), rows[1], *(x.double() for x in rows[2:]))
    want = reference.masked_mse(pred.double(), *wide, *packed, torch.ones(1).double(), [length], [1], 1)[3]
    error = (grad.double() - want).abs() * length / 2
    assert error.max() <= 1e-6 * (4 + abs(offset))
    assert torch.equal(grad[3], pred[3] * (2 / length))


CHANGES = {
    "modality of token": ("modality", 9, r"expected 0 to 2, found 9"),
    "token": ("ids", 10**6, "expected an id below"),
    "row of token": ("row_start", 2**63 - 1, r"expected a start from 0 to \d+, found 9223"),
    "an absent row": ("row_start", -1, r"expected a start from 0 to \d+, found -1"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("op", ["embed_patches", "embed_patches_backward", "masked_mse"])
def test_tokens_whose_samples_are_not_there_are_refused(op, change):
    where, value, message = CHANGES[change]
    batch = make_batch(5, rates=(16, 8, 4), patches=4)
    arguments = list(Calls(batch, 8, torch.float32, normalise=(0, 0, 0)).arguments(op))
    at = {"row_start": 1, "ids": 4, "modality": 5}[where] + (op != "embed_patches")
    arguments[at] = torch.full_like(arguments[at], value)
    module = cpu_loss if op == "masked_mse" else cpu_tokens
    with pytest.raises(cpu_tokens._native.BoundsError, match=message):
        getattr(module, op)(*arguments)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([1, 2, 3, 5], "begin of modality 0"),
        ([0, 3, 2, 5], "end of modality 1"),
        ([0, 3, 4, 99], "expected 4 to 5, found 99"),
        ([0, 1, 2, 3], "values"),
    ],
)
def test_an_order_by_modality_that_does_not_fit_is_refused(edges, message):
    token = torch.zeros(5, dtype=torch.int32)
    rows = (torch.zeros(40), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), torch.zeros(1, 1))
    patches = cpu_tokens.patches_of(rows, (token, token, torch.zeros(1, 4, dtype=torch.int32)), [2, 2, 2])
    ends = np.array(edges, np.int32)
    with pytest.raises(cpu_tokens._native.BoundsError, match=message):
        cpu_tokens._native.gather_patches(patches, token.numpy(), ends, np.zeros(10, np.float32), cpu_tokens.workers())


def test_predictions_narrower_than_a_patch_are_refused():
    batch = make_batch(6, rates=(16, 8, 4), patches=4)
    arguments = list(Calls(batch, 8, torch.float32, normalise=(0, 0, 0)).arguments("masked_mse"))
    arguments[0] = arguments[0][:, :15]
    with pytest.raises(cpu_tokens._native.BoundsError, match="at most 15 samples, found 16"):
        cpu_loss.masked_mse(*arguments)


def test_memory_that_an_op_has_seen_may_be_freed():
    """As sharded parameters are between their uses: an op leaves no mark on storages, of inputs or of its results."""
    batch = make_batch(3, dtype=torch.float32)
    width = 8
    weight = torch.randn(sum(batch.montage.patch_lengths), width, requires_grad=True)
    table = torch.randn(batch.montage.tokens, width, requires_grad=True)
    tokens = ops.embed_patches(batch.rows, batch.plan.visible, weight, table)
    q = tokens.view(-1, 2, 4)
    out = ops.modality_attention(q, q, q, batch.plan.visible, batch.plan.visible)
    full = ops.assemble_tokens(out.flatten(1), batch.plan, table, table)
    full.square().sum().backward()
    for tensor in (weight, table, tokens, out, full, weight.grad, table.grad, batch.rows.samples):
        assert tensor.untyped_storage().resizable()
