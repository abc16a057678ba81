"""Plans by the C++ engine against their definition, bit for bit: sizes, strides, quotas, threads, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine, ops
from physiofast.ops import cpu_plan, philox, reference
from tests.settings import on_torch_threads

pytestmark = [pytest.mark.native, pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))]

INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Arrays hold numbers that no plan has, until they are written."""
    make = cpu_plan._packing

    def packing(*sizes):
        arrays = make(*sizes)
        for array in arrays:
            array.fill(-77)
        return arrays

    monkeypatch.setattr(cpu_plan, "_packing", packing)


def draw(windows, tokens, kinds, density=0.8, seed=0, slack=0):
    """Arguments of `sample_plan`: quotas from below 0 to above what is there; `slack` places more than are needed."""
    random = np.random.default_rng(seed)
    valid = random.random((windows, tokens)) < density
    quotas = random.integers(-1, 2 * tokens // kinds + 2, (windows, kinds))
    quotas[random.random((windows, kinds)) < 0.2] = 0
    modality = np.sort(random.integers(0, kinds, tokens)).astype(np.int32)
    window_id, seed_step = (random.integers(-(2**63), 2**63 - 1, size) for size in (windows, 2))
    arrays = (quotas, valid, window_id, seed_step, modality, random.random(tokens).astype(np.float32))
    tensors = tuple(map(torch.from_numpy, arrays))
    visible = reference.choose_visible(*tensors[:5])
    used = (int(visible.sum()), int((tensors[1] & ~visible).sum()), int(valid.sum()))
    return (*tensors, [size + slack * bool(tokens) for size in used])


def assert_equals_definition(arguments):
    found, wanted = cpu_plan.sample_plan(*arguments), reference.sample_plan(*arguments)
    for i, (got, want) in enumerate(zip(found, wanted, strict=True)):
        assert (got.dtype, got.shape) == (want.dtype, want.shape), i
        assert torch.equal(got, want), i


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([0, 1, 2, 9]), st.sampled_from([0, 1, 2, 3, 5, 64, 389, 2100]), st.sampled_from([1, 2, 7, 32, 40]),
    st.sampled_from([0, 0.02, 0.6, 1]), st.integers(0, 2**31), st.sampled_from([0, 1, 17]), st.sampled_from([1, 3]),
    INT64, INT64,
)  # fmt: skip
def test_every_size_equals_the_definition(windows, tokens, kinds, density, seed, slack, threads, word, step):
    arguments = list(draw(windows, tokens, kinds, density, seed, slack))
    assert_equals_definition(arguments)
    quotas, valid, _, seed_step, *_ = arguments
    seed_step.copy_(torch.tensor([word, step]))
    quotas.clamp_(min=0)
    arguments[-1] = [valid.numel() + slack * bool(tokens)] * 3
    with on_torch_threads(threads):
        assert_equals_definition(arguments)


def test_equal_words_are_ordered_by_token():
    """Among so many tokens some words are equal; quotas end between two of them."""
    tokens = 2**18
    window_id, seed_step = torch.tensor([3]), torch.tensor([1, 2])
    words = philox.random_words(seed_step, window_id, tokens)[0]
    ascending = words.sort().values
    ties = (ascending[1:] == ascending[:-1]).nonzero()[:, 0]
    assert len(ties) >= 3
    valid, grid = torch.ones(1, tokens, dtype=torch.bool), (torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens))
    for rank in ties.tolist():
        quotas = torch.tensor([[rank + 1]])
        slot = cpu_plan.sample_plan(quotas, valid, window_id, seed_step, *grid, [tokens] * 3)[4][0]
        first, second = (words == ascending[rank]).nonzero()[:, 0].tolist()
        assert slot[first] >= 0
        assert slot[second] == -1
        assert torch.equal(slot >= 0, reference.choose_visible(quotas, valid, window_id, seed_step, grid[0])[0])


def test_many_tokens_of_many_modalities():
    """Of four tokens of each modality the one of the least word; the definition compares all with all."""
    kinds, tokens = 2**15, 2**17
    window_id, seed_step = torch.tensor([7, -7]), torch.tensor([-1, 2**40])
    modality = torch.arange(kinds, dtype=torch.int32).repeat_interleave(4)
    quotas, valid = torch.ones(2, kinds, dtype=torch.int64), torch.ones(2, tokens, dtype=torch.bool)
    seconds = torch.arange(tokens, dtype=torch.float32)
    totals = [2 * kinds, 6 * kinds, 8 * kinds]
    found = cpu_plan.sample_plan(quotas, valid, window_id, seed_step, modality, seconds, totals)
    least = philox.random_words(seed_step, window_id, tokens).view(2, kinds, 4).argmin(2)
    token = torch.arange(0, tokens, 4) + least
    assert torch.equal(found[0].view(2, kinds).long(), token + torch.tensor([[0], [tokens]]))
    assert torch.equal(found[3].view(2, kinds), token.float())
    assert torch.equal(found[5], torch.arange(2 * kinds, dtype=torch.int32).view(2, kinds).T.flatten())
    assert torch.equal(found[6], torch.arange(0, 2 * kinds + 1, 2, dtype=torch.int32))


@pytest.mark.parametrize("by", ["team", "pool", "alone"])
def test_who_works_changes_no_bit(by, monkeypatch):
    from physiofast import _native
    from physiofast.ops import cpu_threads

    start = cpu_threads.team_start() if by == "team" else 0
    monkeypatch.setattr(cpu_plan, "workers", lambda: _native.Workers(1 if by == "alone" else 3, start))
    for _ in range(3):
        assert_equals_definition(draw(64, 390, 6))
        assert_equals_definition(draw(3, 20_000, 5))


def test_other_dtypes_and_strides_equal_the_definition():
    quotas, valid, window_id, seed_step, modality, seconds, totals = draw(9, 60, 4, slack=3)
    twice = window_id.repeat_interleave(2)[::2]
    assert_equals_definition((quotas.int(), valid.T.contiguous().T, twice, seed_step, modality, seconds, totals))
    assert_equals_definition((quotas[:1].expand(9, 4), valid, window_id, seed_step, modality, seconds, [999] * 3))
    assert_equals_definition((quotas.float() + 0.75, valid, window_id, seed_step, modality, seconds, [999] * 3))
    for other in (modality.long(), modality.to(torch.uint8)):
        assert_equals_definition((quotas, valid, window_id, seed_step, other, seconds, totals))
    assert_equals_definition((quotas, valid, window_id, seed_step, modality, seconds.double(), totals))
    assert_equals_definition((quotas, valid, window_id.int(), seed_step.int(), modality, seconds, totals))


def test_extreme_quotas_are_none_or_all():
    quotas, *rest, _ = draw(5, 100, 3)
    for extreme in (-(2**63), -1, 0, 100, 2**63 - 1):
        assert_equals_definition((torch.full_like(quotas, extreme), *rest, [500] * 3))


either_form = pytest.mark.parametrize("backend", ["auto", "reference"])


@either_form
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("missing", [1, 2, 5])
def test_too_few_places_are_refused(which, missing, backend):
    *tensors, totals = draw(9, 60, 4)
    used = totals[which]
    totals[which] -= missing
    message = rf"^sizes.totals {which}: expected at least {used}, found {used - missing}$"
    with ops.backend(backend), pytest.raises(ValueError, match=message):
        ops.sample_plan(*tensors, ops.PlanSizes(tuple(totals), (60, 60, 60)))


@either_form
@pytest.mark.parametrize(
    ("modality", "said"),
    [
        ([0, 0, 1, 2], "token_modality 3: expected 1 to 1, found 2"),
        ([-1, 0, 1, 1], "token_modality 0: expected 0 to 1, found -1"),
        ([0, 1, 0, 1], "token_modality 2: expected 1 to 1, found 0"),
        ([-(2**31), 0, 0, 0], "token_modality 0: expected 0 to 1, found -2147483648"),
    ],
)
def test_modalities_that_do_not_ascend_are_refused(modality, said, backend):
    quotas, valid, window_id, seed_step, _, seconds, _ = draw(2, 4, 2)
    kind = torch.tensor(modality, dtype=torch.int32)
    with ops.backend(backend), pytest.raises(ValueError, match=said):
        ops.sample_plan(quotas, valid, window_id, seed_step, kind, seconds, ops.PlanSizes((8, 8, 8), (4, 4, 4)))


def test_misuse_of_the_binding_is_refused():
    from physiofast import _native

    quotas, valid, window_id, _, modality, seconds, _ = (getattr(t, "numpy", lambda: None)() for t in draw(2, 6, 3))
    fitting = {"quotas": quotas, "valid": valid, "window_id": window_id, "modality": modality, "seconds": seconds}

    def call(grid=(2, 6), kinds=3, **other):
        packings = [_native.PackingArrays(*cpu_plan._packing(grid, kinds, 12)) for _ in range(3)]
        parts = fitting | other
        _native.sample_plan(
            parts["quotas"], parts["valid"], parts["window_id"], 0, 0, parts["modality"], parts["seconds"], *packings,
            _native.Workers(2),
        )  # fmt: skip

    call()
    for name, array in fitting.items():
        with pytest.raises(ValueError, match="does not fit the other arguments"):
            call(**{name: array[..., :-1].copy()})
        with pytest.raises(TypeError):
            call(**{name: array.astype(np.float64)})
    for sizes in ({"grid": (3, 6)}, {"grid": (2, 5)}, {"kinds": 4}):
        with pytest.raises(ValueError, match="does not fit the other arguments"):
            call(**sizes)
    with pytest.raises(TypeError):
        _native.PackingArrays(*(array.astype(np.int64) for array in cpu_plan._packing((2, 6), 3, 12)))
