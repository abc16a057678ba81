import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.mixedbatch import make_montage
from physiofast import ops
from physiofast.masking import MaskingConfig, Planner
from physiofast.montage import MONTAGES
from physiofast.ops import cpu, philox, reference
from physiofast.ops.randomness import random_words


def draw(montage, config, seed, step, window_id, valid):
    planner = Planner(montage, config, seed)
    capacity = planner.capacity(valid)
    quotas = planner.quotas(step, window_id, capacity)
    return quotas, capacity, planner.plan(step, window_id, valid, quotas, capacity)


def chosen(packing, shape):
    mask = torch.zeros(shape, dtype=torch.bool).flatten()
    mask[packing.ids[packing.ids >= 0].long()] = True
    return mask.reshape(shape)


plans = st.fixed_dictionaries(
    {
        "channels": st.tuples(*[st.integers(1, 3)] * 3),
        "patches": st.integers(1, 12),
        "batch": st.integers(1, 5),
        "keep": st.floats(0.01, 1.0),
        "dropout": st.floats(0, 0.95),
        "alpha": st.sampled_from([0.1, 1.0, 10.0]),
        "sizes": st.integers(1, 8),
        "seed": st.integers(0, 2**62),
        "step": st.integers(0, 2**31),
        "density": st.floats(0, 1),
    }
)


def build(case):
    montage = make_montage(case["channels"], (4, 8, 2), case["patches"])
    random = np.random.default_rng(case["seed"] % 2**32)
    valid = torch.from_numpy(random.random((case["batch"], montage.tokens)) < case["density"])
    window_id = torch.from_numpy(random.integers(0, 2**60, case["batch"]))
    config = MaskingConfig(
        keep=case["keep"], modality_dropout=case["dropout"], alpha=case["alpha"], sizes=case["sizes"]
    )
    return montage, config, valid, window_id


@settings(max_examples=120, deadline=None)
@given(plans)
def test_plan_properties(case):
    montage, config, valid, window_id = build(case)
    quotas, capacity, plan = draw(montage, config, case["seed"], case["step"], window_id, valid)
    visible, hidden, present = (chosen(p, valid.shape) for p in (plan.visible, plan.hidden, plan.present))
    assert torch.equal(present, valid)  # absent and invalid tokens are in none, all others in one
    assert torch.equal(visible | hidden, valid)
    assert not (visible & hidden).any()
    # K is exact, and comes from whole modalities being kept.
    kept = quotas > 0
    total = quotas.sum(1)
    assert (quotas <= capacity).all()
    assert ((total >= 1) | (capacity.sum(1) == 0)).all()
    at_most = np.maximum(np.floor(config.keep * capacity.sum(1) + 0.5), 1)
    at_least = np.minimum(np.maximum(np.floor(config.keep * np.where(kept, capacity, 0).sum(1) + 0.5), 1), total)
    assert (total <= at_most).all()
    assert (total >= at_least).all()
    by_modality = np.asarray(montage.token_modality)
    for m in range(len(montage.modalities)):
        assert np.array_equal(visible[:, by_modality == m].sum(1).numpy(), quotas[:, m])
    for packing, mask in ((plan.visible, visible), (plan.hidden, hidden), (plan.present, present)):
        check_packing(packing, mask, montage, config)


def check_packing(packing, mask, montage, config):
    want = mask.flatten().nonzero()[:, 0].to(torch.int32)
    used = len(want)
    assert torch.equal(packing.ids[:used], want)
    assert (packing.ids[used:] == -1).all()
    assert (packing.modality[used:] == -1).all()
    token = (want.long() % montage.tokens).numpy()
    assert np.array_equal(packing.modality[:used], montage.token_modality[token])
    assert np.array_equal(packing.time_s[:used], montage.token_time_s[token])
    assert packing.cu_seqlens.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert packing.max_len >= int(mask.sum(1).max())
    slots = packing.slot.flatten()
    assert torch.equal(slots[want.long()], torch.arange(used, dtype=torch.int32))
    assert (slots[~mask.flatten()] == -1).all()


@settings(max_examples=120, deadline=None)
@given(plans, st.integers(-(2**63), 2**63 - 1))
def test_the_form_for_cpus_equals_the_definition(case, window):
    montage, config, valid, window_id = build(case)
    window_id[0] = window
    planner = Planner(montage, config, case["seed"])
    capacity = planner.capacity(valid)
    quotas = planner.quotas(case["step"], window_id, capacity)
    seed_step = torch.tensor([case["seed"] - 2**61, case["step"]])
    grid = (torch.from_numpy(montage.token_modality), torch.from_numpy(montage.token_time_s))
    arguments = (torch.from_numpy(quotas), valid, window_id, seed_step, *grid, planner.sizes(quotas, capacity).totals)
    for got, want in zip(cpu.sample_plan(*arguments), reference.sample_plan(*arguments), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_any_number_is_a_quota(dtype):
    """All where a modality has fewer, none where it is negative, whatever integer says so."""
    far = torch.iinfo(dtype).max
    quotas = torch.tensor([[3, -1, 2], [0, 2, 100], [-5, far, -far - 1], [far, far, far]], dtype=dtype)
    kinds = torch.tensor([0] * 18 + [1] * 6 + [2] * 6, dtype=torch.int32)
    valid = torch.ones(4, 30, dtype=torch.bool)
    valid[1, 25:28] = False
    seed_step, seconds = torch.tensor([5, 6]), torch.arange(30.0)
    sizes = ops.PlanSizes(totals=(120, 120, 120), max_lens=(30, 30, 30))
    plan = ops.sample_plan(quotas, valid, torch.arange(4), seed_step, kinds, seconds, sizes)
    capacity = torch.stack([(valid & (kinds == m)).sum(1) for m in range(3)], 1)
    fitting = torch.minimum(quotas.clamp(min=0), capacity)
    for packing, count in ((plan.visible, fitting), (plan.hidden, capacity - fitting), (plan.present, capacity)):
        assert packing.cu_seqlens.tolist() == [0, *count.sum(1).cumsum(0).tolist()]
        assert packing.cu_modality.tolist() == [0, *count.sum(0).cumsum(0).tolist()]
        real = packing.modality[packing.ids >= 0]
        assert torch.equal(real, kinds[packing.ids[packing.ids >= 0].long() % 30])
        assert len(real) == count.sum() == (packing.slot >= 0).sum()
    want = reference.sample_plan(quotas, valid, torch.arange(4), seed_step, kinds, seconds, [120, 120, 120])
    for got, expected in zip(torch.utils._pytree.tree_leaves(plan)[:6], want[:6], strict=True):
        assert torch.equal(got, expected)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("kinds", [63, 64, 65, 130])
def test_any_number_of_modalities(kinds):
    """Of three tokens each, in rows that are no power of 2 long."""
    random = np.random.default_rng(kinds)
    valid = torch.from_numpy(random.random((3, 3 * kinds)) < 0.8)
    grid = (torch.arange(kinds, dtype=torch.int32).repeat_interleave(3), torch.arange(3.0 * kinds))
    quotas = torch.from_numpy(random.integers(1, 3, (3, kinds)))
    arguments, places = (quotas, valid, torch.arange(3), torch.tensor([5, 6]), *grid), (valid.numel(),) * 3
    plan = ops.sample_plan(*arguments, ops.PlanSizes(places, (3 * kinds,) * 3))
    found = [part for part in torch.utils._pytree.tree_leaves(plan) if isinstance(part, torch.Tensor)]
    for got, want in zip(found, reference.sample_plan(*arguments, places), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("count", [1, 4, 6, 390])
def test_random_words_on_a_cpu_equal_the_definition(count):
    random = np.random.default_rng(count)
    for seed in (0, -1, 2**63 - 1, -(2**63), int(random.integers(2**62))):
        step, window_id = int(random.integers(2**40)), torch.from_numpy(random.integers(-(2**63), 2**63 - 1, 5))
        found = random_words(seed, step, window_id.numpy(), count, (0, 1, 3))
        for got, domain in zip(found, (0, 1, 3), strict=True):
            want = philox.random_words(torch.tensor([seed, step]), window_id, count, domain)
            assert np.array_equal(got, want.numpy().astype(np.uint64))


@settings(max_examples=100, deadline=None)
@given(plans, st.randoms(use_true_random=False))
def test_a_windows_plan_depends_on_nothing_else(case, random):
    """Neither neighbours nor the order of the batch change what is chosen in a window."""
    montage, config, valid, window_id = build(case)
    _, _, plan = draw(montage, config, case["seed"], case["step"], window_id, valid)
    whole = chosen(plan.visible, valid.shape)
    subset = random.sample(range(case["batch"]), random.randint(1, case["batch"]))
    _, _, part = draw(montage, config, case["seed"], case["step"], window_id[subset], valid[subset])
    assert torch.equal(chosen(part.visible, (len(subset), montage.tokens)), whole[subset])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 2**31))
def test_seed_step_and_window_each_change_the_plan(seed, step):
    montage = MONTAGES["cinc2018"]
    valid, window_id = torch.ones(1, montage.tokens, dtype=torch.bool), torch.tensor([seed % 2**50])
    config = MaskingConfig(keep=0.5, modality_dropout=0.0)

    def visible(seed, step, ids):
        return chosen(Planner(montage, config, seed).draw_for(ids, valid, step).visible, valid.shape)

    base = visible(seed, step, window_id)
    assert not torch.equal(base, visible(seed + 1, step, window_id))
    assert not torch.equal(base, visible(seed, step + 1, window_id))
    assert not torch.equal(base, visible(seed, step, window_id + 1))
    assert not torch.equal(base, visible(seed, step, window_id + 2**40))


def test_choice_within_a_modality_is_uniform():
    montage = make_montage((1, 1), (4, 4), 10)
    count = 20_000
    valid = torch.ones(count, montage.tokens, dtype=torch.bool)
    quotas = torch.tensor([[3, 7]]).expand(count, 2)
    seed_step, window_id = torch.tensor([5, 9]), torch.arange(count)
    visible = reference.choose_visible(quotas, valid, window_id, seed_step, torch.from_numpy(montage.token_modality))
    share = visible.double().mean(0)
    standard_error = (0.3 * 0.7 / count) ** 0.5
    assert ((share[:10] - 0.3).abs() < 4.5 * standard_error).all()
    assert ((share[10:] - 0.7).abs() < 4.5 * standard_error).all()
    together = visible[:, :10].double().T @ visible[:, :10].double() / count
    pair = together[~torch.eye(10, dtype=torch.bool)]
    expected = 0.3 * 2 / 9  # two of ten without replacement
    assert ((pair - expected).abs() < 5 * (expected / count) ** 0.5).all()


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, 0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_published_answers(counter, key, want):
    """Known answers of Random123 for Philox-4x32-10."""
    words = philox.philox((torch.tensor(counter),) * 4, (torch.tensor(key),) * 2)
    assert tuple(map(int, words)) == want


def test_philox_mixed_known_answer():
    counter = tuple(torch.tensor(c) for c in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344))
    words = philox.philox(counter, (torch.tensor(0xA4093822), torch.tensor(0x299F31D0)))
    assert tuple(map(int, words)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_what_may_be_pieces_of_one_tensor_equals_the_definition(batch, each_backend):
    """Of the public op, whose packings may share memory; sizes that end between 16 bytes."""
    montage = make_montage((2, 1), (4, 4), 5)
    valid = torch.rand(batch, montage.tokens, generator=torch.Generator().manual_seed(batch)) < 0.8
    quotas = torch.tensor([[2, 1]] * batch)
    grid = (torch.from_numpy(montage.token_modality), torch.from_numpy(montage.token_time_s))
    arguments, sizes = (quotas, valid, torch.arange(batch), torch.tensor([1, 2]), *grid), (13, 62, 64)
    want = reference.sample_plan(*arguments, sizes)
    for _ in range(2):
        plan = ops.sample_plan(*arguments, ops.PlanSizes(sizes, (15, 15, 15)))
        packings = (plan.visible, plan.hidden, plan.present)
        found = [part for packing in packings for part in vars(packing).values() if isinstance(part, torch.Tensor)]
        assert all(map(torch.equal, found, want)) and len(found) == len(want)
        assert all(part.is_contiguous() for part in found)
        for number, part in enumerate(found):
            part.fill_(number)
        assert all((part == number).all() for number, part in enumerate(found))  # nobody's memory is another's


def test_bad_shapes_are_named():
    montage = make_montage((1,), (4,), 3)
    valid = torch.ones(2, 3, dtype=torch.bool)
    grid = (torch.from_numpy(montage.token_modality), torch.from_numpy(montage.token_time_s))
    sizes = ops.PlanSizes((8, 8, 8), (8, 8, 8))
    with pytest.raises(ValueError, match=r"window_id must have shape \[2\]; found \[3\]"):
        ops.sample_plan(torch.ones(2, 1), valid, torch.arange(3), torch.tensor([0, 0]), *grid, sizes)


def test_opcheck(each_backend):
    montage = make_montage((2, 1), (4, 4), 6)
    valid = torch.rand(3, montage.tokens) < 0.8
    quotas = torch.tensor([[2, 1]] * 3)
    grid = (torch.from_numpy(montage.token_modality), torch.from_numpy(montage.token_time_s))
    arguments = (quotas, valid, torch.arange(3), torch.tensor([1, 2]), *grid, [16, 64, 64])
    torch.library.opcheck(torch.ops.physiofast.sample_plan.default, arguments)
