"""Attention on a GPU, rehearsed: every peer computes what it is timed for, and what is asked of ours is judged."""

import dataclasses
import functools

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks import attention, attentioncases, attentionpeers, devices
from benchmarks.attentioncases import FIXED, MIX
from benchmarks.attentionpeers import DENSE, FLEX, FLEX_FEATURED, UNBIASED, VARLEN
from benchmarks.devices import GraphTimer
from benchmarks.opjobs import TWIN, TWIN_COMPILED
from tests.varlen import pretend_varlen

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def tiny(**changes):
    return dataclasses.replace(attentioncases.tiny(devices.find("cpu")), **changes)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("mix", [MIX, "200"])
def test_every_provider_is_right(mix, backward):
    setting = tiny()
    case = attentioncases.case(setting, setting.inputs(mix), mix, backward)
    rows = attentioncases.measure_case(case, 1)
    assert {row.provider: row.problem for row in rows if not row.checked} == {}
    there = {row.provider for row in rows}
    assert {DENSE, attention.MASKED, attention.FEATURED, TWIN, TWIN_COMPILED} < there
    assert {row.role for row in rows if row.provider in (TWIN, TWIN_COMPILED)} == {"also"}
    assert (FLEX in there) is (FLEX_FEATURED in there) is not backward
    assert rows[0].role == "ours"
    assert rows[0].moved_bytes == case.moved_bytes > 0


@pytest.mark.parametrize("groups", [None, 1, 3])
def test_attention_by_groups_of_like_length_is_the_same_function(groups):
    given = attention.inputs((5, 20, 9, 20, 5, 11), heads=2, width=16, kinds=3)
    job = attention.Grouped(given, groups)
    found = job()
    assert len(found) == 4 * (4 if groups is None else groups) + 1
    assert job.check(found) is None
    for number in range(len(found)):
        wrong = (*found[:number], found[number] * 1.01, *found[number + 1 :])
        assert "error" in job.check(wrong)


@pytest.mark.parametrize("width", [16, 64])
def test_flash_attention_over_packed_tokens_is_given_the_same_function(width, monkeypatch):
    pretend_varlen(monkeypatch)
    given = attention.inputs((5, 20, 9), heads=2, width=width, kinds=3)
    for form in (attentionpeers.varlen, attentionpeers.unbiased):
        outcome = attention.run(given, form, True)
        assert len(outcome.gradients) == (4 if form is attentionpeers.varlen else 3)
        assert attention.check(given, outcome) is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("make", [attentionpeers.flex, attentionpeers.flex_featured])
def test_flex_attention_compiled_has_the_gradients_of_the_definition(make, monkeypatch):
    """Where it runs for real it is a kernel of a GPU; traced, its own definition computes the same on a CPU."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    given = attention.inputs((5, 200, 9, 50, 130), heads=2, width=16, kinds=3)
    form = make(given, "aot_eager")
    for backward in (False, True):
        outcome = attention.run(given, form, backward)
        assert len(outcome.gradients) == 4 * backward
        assert attention.check(given, outcome) is None


@pytest.mark.parametrize("lengths", [(5, 200, 9), (128, 256), (300, 1, 84, 400), (1,)])
def test_the_mask_of_windows_is_that_of_all_pairs(lengths):
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    found = attentionpeers.window_mask(ends)
    places = int(ends[-1])
    wanted = create_block_mask(found.mask_mod, None, None, places, places, device="cpu")
    assert found.shape == wanted.shape
    assert torch.equal(found.to_dense(), wanted.to_dense())
    for counts, blocks in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices"),
                           ("q_num_blocks", "q_indices"), ("full_q_num_blocks", "full_q_indices")):  # fmt: skip
        mine, theirs = getattr(found, counts), getattr(wanted, counts)
        if counts.startswith("full") and places % 128:  # the last block is never called full: no pair is lost by it
            assert (mine <= theirs).all()
            continue
        if places % 128 == 0:
            assert torch.equal(mine, theirs)
            used = torch.arange(mine.shape[-1]) < mine[..., None]
            assert torch.equal(getattr(found, blocks)[used], getattr(wanted, blocks)[used])


def test_what_no_step_changes_is_made_once(monkeypatch):
    """One-hot modalities, of everybody: a second call makes none."""
    pretend_varlen(monkeypatch)
    given, made = attention.inputs((5, 20, 9), heads=2, width=16, kinds=3), []
    ways, one_hot = attention.providers(given), attention.reference.one_hot
    assert attention.check(given, ways.pop(attention.OURS)()) is None  # and the definition is known from now on
    monkeypatch.setattr(attention.reference, "one_hot", lambda *known: made.append(known) or one_hot(*known))
    flexible = attentionpeers.flex_featured(given, None)
    packed = [functools.partial(attention.run, given, form, False) for form in (attentionpeers.varlen, flexible)]
    for job in (*ways.values(), *packed) * 2:
        assert attention.check(given, job()) is None
    assert len(made) == 2  # padded and packed


def test_sizes_and_figures_are_those_that_are_asked_for():
    setting = attentioncases.Setting(device=devices.find("cpu"))
    assert (setting.windows, setting.heads, setting.width, setting.dtype) == (512, 8, 64, torch.bfloat16)
    mixed = setting.lengths(MIX)
    assert (len(mixed), max(mixed)) == (512, 82)
    assert abs(sum(mixed) / 512 - 49) < 0.5
    assert [set(setting.lengths(mix)) for mix in FIXED] == [{50}, {100}, {200}, {300}, {400}]
    forward, both = (attentioncases.figures("50", backward) for backward in (False, True))
    assert forward.ratios == {UNBIASED: 1.4, VARLEN: 1.6, FLEX: 3, DENSE: 5}
    assert both.ratios == {UNBIASED: 1.7, VARLEN: 2.0, FLEX: 8, DENSE: 5}
    assert attentioncases.figures(MIX, True).ratios == {FLEX: 8, DENSE: 5, attention.MASKED: 3}
    assert [attentioncases.figures(mix, True).share for mix in FIXED] == [0.75, 0.75, 0.6, 0.6, None]


def test_of_who_is_left_out_nothing_is_asked():
    setting = tiny()
    case = attentioncases.case(setting, setting.inputs("50"), "50", False, GraphTimer(setting.device))
    assert {FLEX, DENSE, UNBIASED, VARLEN} == set(case.least_ratios)
    assert FLEX_FEATURED in {provider.name for provider in case.providers}
    ours, *others = attentioncases.measure_case(case, 1, (FLEX,))
    assert FLEX not in {row.provider for row in others}
    assert [demand.text for demand in ours.demands] == [
        f"times as fast as {DENSE}",
        "of the speed of a copy of the same bytes",
    ]


def test_ours_alone_without_a_gradient_of_biases():
    setting = tiny()
    given = setting.inputs(MIX)
    fixed = attentioncases.without_bias_gradient(given)
    (learned, not_learned) = (attention.providers(each)["physiofast"]() for each in (given, fixed))
    assert (len(learned.gradients), len(not_learned.gradients)) == (4, 3)
    torch.testing.assert_close(learned.gradients[:3], not_learned.gradients)
    assert attentioncases.statistics(given)().queries.sum() == len(given.q)
    results, queries = attentioncases.results_bytes(given)
    assert results == sum(t.numel() * 4 for t in (learned.out, *learned.gradients))
    assert queries == given.q.numel() * 4
