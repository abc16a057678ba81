import dataclasses
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from physiofast import ops
from physiofast.masking import MaskingConfig, Planner, hidden_weight, keep_modalities, plan_weight, water_fill
from physiofast.montage import MONTAGES
from physiofast.windows import Batch


def assert_same(found, wanted):
    for got, want in zip(*(torch.utils._pytree.tree_leaves(plan) for plan in (found, wanted)), strict=True):
        assert torch.equal(torch.as_tensor(got), torch.as_tensor(want))


@settings(max_examples=200)
@given(st.data())
def test_water_fill_divides_exactly_within_capacity(data):
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6)))
    capacity = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 60)))
    share = data.draw(hnp.arrays(np.float64, shape, elements=st.floats(0, 10)))
    fraction = data.draw(st.floats(0, 1))
    total = np.floor(capacity.sum(1) * fraction).astype(np.int64)
    filled = water_fill(share, capacity, total)
    assert (filled.sum(1) == total).all()
    assert (filled >= 0).all()
    assert (filled <= capacity).all()


def test_water_fill_is_proportional_where_nothing_is_full():
    filled = water_fill(np.asarray([[1.0, 2.0, 5.0]]), np.asarray([[100, 100, 100]]), np.asarray([80]))
    assert filled.tolist() == [[10, 20, 50]]


def test_overflow_goes_to_the_others_in_proportion():
    filled = water_fill(np.asarray([[8.0, 1.0, 1.0]]), np.asarray([[10, 100, 100]]), np.asarray([50]))
    assert filled.tolist() == [[10, 20, 20]]


def test_dropout_rate_and_rescue():
    uniform = np.random.default_rng(0).random((40_000, 3))
    present = np.ones((40_000, 3), bool)
    present[:, 2] = False
    kept = keep_modalities(uniform, present, 0.5)
    assert not kept[:, 2].any()
    assert kept[:, :2].any(1).all()
    # Both of two would drop with chance 1/4; then one of them stays, each as often.
    assert kept[:, 0].mean() == pytest.approx(0.5 + 0.125, abs=0.01)
    assert kept[:, 1].mean() == pytest.approx(0.5 + 0.125, abs=0.01)


def test_dirichlet_shares_have_the_moments_of_alpha():
    """Symmetric Dirichlet over M: mean 1/M, variance (M - 1) / (M^2 (M alpha + 1))."""
    montage, count = MONTAGES["cinc2018"], 20_000
    capacity = np.full((count, 6), 10_000)
    for alpha in (0.5, 1.0, 4.0):
        config = MaskingConfig(keep=0.1, modality_dropout=0.0, alpha=alpha)
        quotas = Planner(montage, config, 1).quotas(0, torch.arange(count), capacity)
        share = quotas / quotas.sum(1, keepdims=True)
        assert share.mean(0) == pytest.approx(1 / 6, abs=0.01)
        assert share.var(0) == pytest.approx(5 / 36 / (6 * alpha + 1), rel=0.08)


@pytest.mark.parametrize("alpha", [0.01, 1e6])
def test_shares_are_right_up_to_the_least_and_the_greatest_alpha(alpha):
    capacity = np.full((20_000, 2), 10**9)  # so many that whole tokens round nothing away
    config = MaskingConfig(keep=0.1, modality_dropout=0.0, alpha=alpha)
    quotas = Planner(MONTAGES["cinc2018"], config, 1).quotas(0, torch.arange(len(capacity)), capacity)
    share = quotas / quotas.sum(1, keepdims=True)
    assert share.mean(0) == pytest.approx(1 / 2, abs=0.02)
    assert share.var(0) == pytest.approx(1 / 4 / (2 * alpha + 1), rel=0.05)


@pytest.mark.parametrize("alpha", [1e-4, 0.0099, 1.001e6, 1e301])
def test_an_alpha_that_breaks_the_shares_is_refused(alpha):
    message = f"masking.alpha must be at least 0.01 and at most 1000000; found {alpha}"
    with pytest.raises(ValueError, match=re.escape(message)):
        MaskingConfig(alpha=alpha)


def test_hidden_weight_makes_modalities_count_alike():
    assert hidden_weight(np.asarray([10, 0, 30])).tolist() == pytest.approx([1 / 20, 0, 1 / 60])
    assert hidden_weight(np.zeros(3, int)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("keep", [0.25, 0.4, 1.0])
def test_sizes_are_few_and_hold_every_batch(keep):
    montage = MONTAGES["cinc2018"]
    planner = Planner(montage, MaskingConfig(keep=keep, modality_dropout=0.4), 0)
    seen = set()
    for step in range(200):
        valid = torch.rand(8, montage.tokens) < 0.9
        capacity = planner.capacity(valid)
        quotas = planner.quotas(step, torch.arange(8) + 8 * step, capacity)
        sizes = planner.sizes(quotas, capacity)
        used = (quotas.sum(), (capacity - quotas).sum(), capacity.sum())
        assert all(size >= u for size, u in zip(sizes.totals, used, strict=True))
        seen.add(sizes.totals)
    assert all(len({s[i] for s in seen}) <= 8 for i in range(3))


def test_padding_share_counts_empty_places():
    montage = MONTAGES["cinc2018"]
    planner = Planner(montage, MaskingConfig(keep=0.25, modality_dropout=0.0), 0)
    valid = torch.ones(8, montage.tokens, dtype=torch.bool)
    capacity = planner.capacity(valid)
    quotas = planner.quotas(0, torch.arange(8), capacity)
    plan = planner.plan(0, torch.arange(8), valid, quotas, capacity)
    places = len(plan.visible.ids) + len(plan.hidden.ids) + len(plan.present.ids)
    assert planner.padding_share(quotas, capacity) == pytest.approx(1 - 2 * 8 * montage.tokens / places)


def test_a_draw_is_the_plan_of_its_quotas():
    montage = MONTAGES["cinc2018"]
    planner = Planner(montage, MaskingConfig(modality_dropout=0.4), seed=5)
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(8, montage.tokens, generator=generator) < 0.9
    valid[:, montage.token_modality == 3] = False
    window_id, capacity = torch.arange(8) * 2**40, planner.capacity(valid)
    quotas = planner.quotas(7, window_id, capacity)
    drawn, plan = planner.draw_for(window_id, valid, 7), planner.plan(7, window_id, valid, quotas, capacity)
    assert_same(drawn, plan)
    rows = ops.Rows.from_dense(torch.zeros(8, len(montage.channels), montage.patches_per_window), 30)
    batch = Batch(dataclasses.replace(rows, valid=valid.clone()), window_id, valid)
    assert_same(planner.draw(batch, 7), plan)
    assert_same(planner.draw(batch), planner.draw_for(window_id, valid))
    elsewhere = planner.draw(batch.to("meta"), 7)  # `batch.valid` stays on the host
    assert {leaf.device.type for leaf in vars(elsewhere.visible).values() if isinstance(leaf, torch.Tensor)} == {"meta"}
    assert np.array_equal(plan_weight(drawn).numpy(), planner.hidden_weight(quotas, capacity))
    assert plan_weight(drawn)[3] == 0


@pytest.mark.parametrize(
    ("window_id", "valid", "said"),
    [
        (torch.arange(2, dtype=torch.int32), torch.ones(2, 390) > 0, "window_id must be .* found torch.int32 \\[2\\]"),
        (torch.arange(3), torch.ones(2, 390) > 0, r"window_id must be int64 \[2\], .* found torch.int64 \[3\]"),
        (
            torch.arange(2),
            torch.ones(2, 380) > 0,
            r"valid must be bool \[B, 390\], of 13 channels; found .* \[2, 380\]",
        ),
        (torch.arange(2), torch.ones(2, 390), "valid must be bool .* found torch.float32"),
    ],
)
def test_a_draw_says_what_does_not_fit(window_id, valid, said):
    planner = Planner(MONTAGES["cinc2018"], MaskingConfig(), seed=5)
    with pytest.raises(ValueError, match=said):
        planner.draw_for(window_id, valid)


def test_a_draw_is_of_a_batch_or_of_tensors():
    planner = Planner(MONTAGES["cinc2018"], MaskingConfig(), seed=5)
    window_id, valid = torch.arange(2), torch.ones(2, 390) > 0
    with pytest.raises(TypeError, match=r"^batch must be a Batch; found Rows: planner\.draw_for\(window_id, valid\)"):
        planner.draw(ops.Rows.from_dense(torch.zeros(2, 13, 30), 30))
    for arguments, said in (
        (([0, 1], valid), "window_id must be a tensor; found list"),
        ((window_id, [True]), "^valid must"),
    ):
        with pytest.raises(TypeError, match=said):
            planner.draw_for(*arguments)
    with pytest.raises(TypeError, match=r"^step must be a whole number; found 1\.5"):
        planner.draw_for(window_id, valid, 1.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sleep", MaskingConfig(), 0), "^montage must be a Montage; found str: a store has one"),
        ((MONTAGES["cinc2018"], 0.25, 0), "^config must be a MaskingConfig; found float"),
        ((MONTAGES["cinc2018"], MaskingConfig(), None), "^seed must be a whole number; found None"),
        ((MONTAGES["cinc2018"], MaskingConfig(), 1.5), r"^seed must be a whole number; found 1\.5"),
    ],
)
def test_a_planner_says_what_it_is_not_made_of(arguments, said):
    with pytest.raises(TypeError, match=said):
        Planner(*arguments)


def test_a_draw_for_no_windows():
    planner = Planner(MONTAGES["cinc2018"], MaskingConfig(), seed=5)
    plan = planner.draw_for(torch.arange(0), torch.zeros(0, 390, dtype=torch.bool))
    assert (plan.visible.ids >= 0).sum() == 0 and plan.visible.slot.shape == (0, 390)


@pytest.mark.parametrize(
    ("field", "value"), [("keep", 0.0), ("keep", 1.1), ("modality_dropout", 1.0), ("alpha", 0.0), ("sizes", 9)]
)
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"masking.{field} must be"):
        MaskingConfig(**{field: value})
