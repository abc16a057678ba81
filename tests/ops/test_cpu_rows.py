"""Rows of features by the C++ engine against the same by PyTorch, over sizes, strides and indices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine
from physiofast.ops import cpu_loss, cpu_rows, reference
from tests.ops.geometry import make_batch
from tests.ops.test_cpu_attention import INSTRUCTIONS, on_threads
from tests.test_engine_filters import with_instructions

pytestmark = [pytest.mark.native, pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))]

SIZES = (0, 1, 2, 17, 700)
WIDTHS = (1, 3, 16, 100, 257)


def rows(count, width, generator, dense=True):
    wide = torch.randn(count, width if dense else 2 * width + 1, generator=generator)
    return wide[:, :width]


def indices(count, below, generator):
    """int32, -1 now and then; nothing else where there are no rows."""
    found = torch.randint(-1, below, (count,), generator=generator) if below else torch.full((count,), -1)
    return found.int()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from(WIDTHS), st.booleans(), st.integers(0, 2**31),
    st.sampled_from(INSTRUCTIONS), st.sampled_from([1, 3]),
)  # fmt: skip
def test_picked_rows_are_copies_and_sums(count, below, width, dense, seed, instructions, threads):
    generator = torch.Generator().manual_seed(seed)
    base, more = rows(below, width, generator, dense), rows(17, width, generator, dense)
    index, index_more = indices(count, below, generator), indices(count, 17, generator)
    with with_instructions(instructions), on_threads(threads):
        alone, both = cpu_rows.pick(base, index), cpu_rows.pick(base, index, more, index_more)
    base, more = (torch.cat([t, t.new_zeros(1, width)]) for t in (base, more))  # -1 is the last one
    assert torch.equal(alone, base[index.long()])
    assert torch.equal(both, base[index.long()] + more[torch.where(index < 0, -1, index_more).long()])


def test_rows_of_many_bytes_are_written_past_the_caches_and_equal():
    generator = torch.Generator().manual_seed(0)
    base, more = rows(900, 257, generator), rows(40, 257, generator)
    index, index_more = indices(5000, 900, generator), indices(5000, 40, generator)
    padded, added = (torch.cat([t, t.new_zeros(1, 257)]) for t in (base, more))
    want = padded[index.long()] + added[torch.where(index < 0, -1, index_more).long()]
    assert torch.equal(cpu_rows.pick(base, index, more, index_more), want)
    assert torch.equal(cpu_rows.pick(base, index), padded[index.long()])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(SIZES), st.sampled_from((0, 1, 9)), st.sampled_from(WIDTHS), st.booleans(), st.integers(0, 2**31),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_sums_of_named_rows_run_in_order(count, terms, width, dense, seed, threads):
    generator = torch.Generator().manual_seed(seed)
    values = rows(23, width, generator, dense)
    index = indices(count * terms, 23, generator).view(terms, count).mT
    with on_threads(threads):
        found = cpu_rows.sums(values, index)
    want = torch.zeros(count, width)
    for k in range(terms):
        named = index[:, k] >= 0
        want[named] += values[index[named, k].long()]
    assert torch.equal(found, want)


@pytest.mark.parametrize("index", [[0, 3], [5, -1]])
def test_numbers_beyond_the_rows_are_refused(index):
    values = torch.zeros(3, 2)
    with pytest.raises(cpu_rows._native.BoundsError, match="expected a number below 3, found"):
        cpu_rows.pick(values, torch.tensor(index, dtype=torch.int32))
    with pytest.raises(cpu_rows._native.BoundsError, match="expected a number below 3, found"):
        cpu_rows.sums(values, torch.tensor([index], dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
@pytest.mark.parametrize("rates", [(8, 6, 4), (128, 100, 300), (1, 17, 33)])
@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_the_definition_in_float64(dtype, rates, seed):
    batch = make_batch(seed, patches=4, rates=rates, dtype=dtype)
    hidden, at = batch.plan.hidden, batch.rows
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(len(hidden.ids), max(batch.montage.patch_lengths) + 3, generator=generator)[:, :-3]
    packed = (hidden.ids, hidden.modality, hidden.slot)
    weight = torch.rand(len(batch.montage.modalities), generator=generator)
    settings_ = (batch.montage.patch_lengths, [0] * len(weight), 1)
    samples = at.samples.double() if dtype.is_floating_point else at.samples
    wide = (samples, at.row_start, at.row_scale.double(), at.row_shift.double())
    want = reference.masked_mse(pred.double(), *wide, *packed, weight.double(), *settings_)
    results = []
    for instructions in INSTRUCTIONS:
        for threads in (1, 3):
            with with_instructions(instructions), on_threads(threads):
                narrow = (at.samples, at.row_start, at.row_scale, at.row_shift)
                results.append(cpu_loss.masked_mse(pred, *narrow, *packed, weight, *settings_))
    largest = max(1.0, float(pred.abs().max()), float(want[1].max()))
    for found, wanted in zip(results[0], want, strict=True):
        assert float((found.double() - wanted).abs().max()) <= 1e-6 * largest
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_patches_beyond_the_samples_are_refused():
    one, none = np.ones(1, np.float32), np.empty(0, np.float32)
    pred, grad = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)

    def errors(first, length):
        where = (np.array([first], np.int64), np.array([length], np.int32))
        outputs = (grad, one.copy(), cpu_loss._native.Workers(1))
        cpu_loss._native.squared_errors(pred, np.zeros(9, np.float32), *where, none, none, one, *outputs)

    errors(5, 4)
    with pytest.raises(cpu_rows._native.BoundsError, match="at most 5, found 6"):
        errors(6, 4)
    with pytest.raises(cpu_rows._native.BoundsError, match="1 to 4, found 5"):
        errors(0, 5)
