"""Token ops and training steps that are wrong get no time: their checks see it in a loss, a gradient or a choice."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from benchmarks import alternatives, cases, steps, tokens
from benchmarks.workspace import Workspace
from physiofast import ops


def _of_blank_samples(embed):
    return lambda rows, *rest, **named: embed(
        dataclasses.replace(rows, samples=torch.zeros_like(rows.samples)), *rest, **named
    )


MUTANTS = {
    "embed_patches": _of_blank_samples,
    "assemble_tokens": lambda assemble: lambda seen, *rest: assemble(seen.flip(0), *rest),
    "with_hidden": lambda take: lambda x, plan: (x, take(x, plan)[1].roll(1, 0)),
}


# ---- token ops -------------------------------------------------------------------------------------------------

SIDES = {
    "ours": tokens.ours,
    "ours, head and loss apart": functools.partial(tokens.ours, in_one_pass=False),
    "mae": tokens.mae_style,
    "gather first": functools.partial(tokens.gather_first, compute=tokens.gathered),
}


@pytest.fixture
def few_tokens(monkeypatch):
    monkeypatch.setattr(tokens, "WINDOWS", 8)
    return tokens.Batch()


@pytest.mark.parametrize("side", SIDES)
def test_token_ops_of_all_sides_are_right(few_tokens, side):
    outcome = SIDES[side](few_tokens)
    assert tokens.check(outcome) is None
    assert "by definition" in tokens.check(dataclasses.replace(outcome, loss=outcome.loss * 1.001))
    for i, name in enumerate(tokens.NAMES):
        made_up = [*outcome.gradients]
        made_up[i] = torch.randn_like(made_up[i]) * made_up[i].std()
        assert f"the gradient of {name}: error" in tokens.check(dataclasses.replace(outcome, gradients=made_up))


@pytest.mark.parametrize("side", SIDES)
def test_a_choice_that_is_none_gets_no_time(few_tokens, side):
    outcome = SIDES[side](few_tokens)
    visible = outcome.visible()
    first = {"visible": lambda: visible[:1].expand_as(visible), "quotas": outcome.quotas[:1].expand_as(outcome.quotas)}
    assert tokens.check(dataclasses.replace(outcome, **first)) == "all windows see the same tokens"
    more = visible.clone()
    more[0, visible[0].logical_not().nonzero()[0]] = True
    assert "more or fewer" in tokens.check(dataclasses.replace(outcome, visible=lambda: more))


@pytest.mark.parametrize("op", [*MUTANTS, "linear_masked_mse"])
def test_a_wrong_op_gets_no_time(few_tokens, op, monkeypatch):
    mutants = MUTANTS | {"linear_masked_mse": lambda loss: lambda x, *rest: loss(x.roll(1, 0), *rest)}
    monkeypatch.setattr(ops, op, mutants[op](getattr(ops, op)))
    assert tokens.check(tokens.ours(few_tokens)) is not None


@pytest.mark.parametrize("side", ["mae", "gather first"])
def test_a_peer_that_takes_other_tokens_than_it_says_gets_no_time(few_tokens, side, monkeypatch):
    def one_off(*arguments):
        ids_keep, restore, mask = right(*arguments)
        return ids_keep, restore, mask.roll(1, 1)

    right = alternatives.mae_sample
    monkeypatch.setattr(alternatives, "mae_sample", one_off)
    assert tokens.check(SIDES[side](few_tokens)) is not None


def test_a_plan_with_a_token_in_both_packings_is_refused(few_tokens):
    _, plan, _, _ = few_tokens.planned(0)
    assert tokens.seen_by_plan(plan, 8, 390).sum(1).tolist() == [98] * 8
    plan.hidden.ids[0] = plan.visible.ids[0]
    with pytest.raises(ValueError, match="both visible and hidden"):
        tokens.seen_by_plan(plan, 8, 390)


# ---- training steps --------------------------------------------------------------------------------------------


def shrink_steps(monkeypatch):
    """Steps of three windows and a model that is tiny; what torch.compile makes of it is left to the benchmark."""
    sizes = dataclasses.replace(steps.SIZES, width=16, depth=1, decoder_width=8, decoder_depth=1)
    monkeypatch.setattr(steps, "SIZES", sizes)
    monkeypatch.setattr(steps, "WINDOWS", 3)
    monkeypatch.setattr(steps, "compiled", steps.GatherFirst)


@pytest.fixture
def small_steps(monkeypatch):
    shrink_steps(monkeypatch)


@pytest.mark.parametrize("name", cases.GROUPS["steps"])
def test_steps_of_all_sides_are_right(small_steps, name):
    sides = [p for p in cases.CASES[name](Workspace(Path(), threads=(1,))).providers if p.role != "copy"]
    assert {p.role for p in sides} == {"ours", "peer", "also"}
    for provider in sides:
        first, second = provider.run(), provider.run()
        assert steps.check(second) is None
        assert not torch.equal(first.loss, second.loss)  # parameters and mask are new


def one_step(side):
    return {"ours": lambda: steps.Ours("joint", 0.2), "mae": lambda: steps.MaeStyle(0.2)}[side]()()


@pytest.mark.parametrize("side", ["ours", "mae"])
def test_a_wrong_step_gets_no_time(small_steps, side):
    assert "loss nan" in steps.check(dataclasses.replace(one_step(side), loss=torch.tensor(torch.nan)))
    step = one_step(side)
    loss, seen, kept = step.of.passes()
    step.of.passes = lambda: (loss * 1.001, seen, kept)
    assert "by definition" in steps.check(step)
    step.of.passes = lambda: (loss, lambda: seen().roll(1, 0), kept.roll(1, 0))
    assert steps.check(step) is not None
    step.of.passes = lambda: (loss, seen, kept)
    next(step.of.model.parameters()).grad.neg_()
    assert "the gradient of" in steps.check(step)
    step = one_step(side)
    step.of.update = lambda: None
    assert "the update left" in steps.check(step)


@pytest.mark.parametrize("op", [*MUTANTS, "masked_mse", "modality_attention"])
def test_a_step_with_a_wrong_op_gets_no_time(small_steps, op, monkeypatch):
    mutants = MUTANTS | {
        "masked_mse": lambda loss: lambda pred, *rest, **named: loss(pred.roll(1, 0), *rest, **named),
        "modality_attention": lambda attend: lambda q, k, v, *rest, **named: attend(q, v, k, *rest, **named),
    }
    monkeypatch.setattr(ops, op, mutants[op](getattr(ops, op)))
    assert steps.check(steps.Ours("joint", 0.0)()) is not None


def test_a_peer_that_puts_tokens_back_in_wrong_places_gets_no_time(small_steps, monkeypatch):
    def wrong(*arguments):
        ids_keep, restore, mask = right(*arguments)
        return ids_keep, restore.roll(1, 0), mask

    right = alternatives.mae_masking
    monkeypatch.setattr(alternatives, "mae_masking", wrong)
    assert steps.check(steps.MaeStyle(0.0)()) is not None
