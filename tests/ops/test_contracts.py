"""Rows and plans that users make of tensors of their own."""

import dataclasses
import io
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data._utils.pin_memory import pin_memory

from benchmarks.mixedbatch import make_batch
from physiofast import engine, ops
from physiofast.masking import MaskingConfig, Planner
from physiofast.montage import MONTAGES
from physiofast.ops import checks, contracts

PATCHES, LENGTHS, CHANNELS, BATCH = 5, (12, 8, 3), (2, 1, 3), 4
TOKENS = PATCHES * sum(CHANNELS)
MODALITY = torch.arange(3).repeat_interleave(torch.tensor(CHANNELS) * PATCHES)
TIME_S = torch.arange(PATCHES).repeat(sum(CHANNELS)) + 0.5


def samples(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, channels, PATCHES * length) for channels, length in zip(CHANNELS, LENGTHS, strict=True)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def mask(seed=0):
    random = np.random.default_rng(seed)
    return (torch.from_numpy(random.random((BATCH, TOKENS)) < share) for share in (0.3, 0.8))


def patches_of(parts):
    """[B, N, P_max], the samples of every token, zero from its P_m on."""
    cut = [part.unflatten(2, (PATCHES, -1)).flatten(1, 2) for part in parts]
    return torch.cat([torch.nn.functional.pad(each, (0, max(LENGTHS) - each.shape[2])) for each in cut], 1)


# ---- plans of a mask ---------------------------------------------------------------------------------------------


def test_a_plan_of_a_mask_has_its_tokens():
    visible, valid = mask()
    plan = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S)
    for packing, wanted in ((plan.visible, visible & valid), (plan.hidden, valid & ~visible), (plan.present, valid)):
        assert torch.equal(packing.slot >= 0, wanted)
        assert torch.equal(packing.ids.long(), wanted.flatten().nonzero()[:, 0])
        assert packing.max_len == int(wanted.sum(1).max())
        assert torch.equal(packing.modality, MODALITY[packing.ids.long() % TOKENS].int())
        assert torch.equal(packing.time_s, TIME_S[packing.ids.long() % TOKENS])


def test_a_plan_of_a_drawn_mask_is_the_drawn_plan():
    montage = MONTAGES["cinc2018"]
    planner = Planner(montage, MaskingConfig(sizes=8), seed=3)
    valid = torch.from_numpy(np.random.default_rng(0).random((3, montage.tokens)) < 0.9)
    drawn = planner.draw_for(torch.arange(3), valid, step=7)
    kinds, seconds = torch.from_numpy(montage.token_modality), torch.from_numpy(montage.token_time_s)
    plan = ops.Plan.from_mask(drawn.visible.slot >= 0, valid, kinds, seconds)
    for mine, theirs in ((plan.visible, drawn.visible), (plan.hidden, drawn.hidden), (plan.present, drawn.present)):
        used = len(mine.ids)
        for name in ("ids", "modality", "time_s", "by_modality"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)[:used]), name
        for name in ("cu_seqlens", "slot", "cu_modality"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


def test_a_window_may_have_nothing():
    visible, valid = mask()
    valid[1], visible[2] = False, False
    plan = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S)
    assert plan.visible.cu_seqlens.diff()[1:3].tolist() == [0, 0]
    x = torch.randn(len(plan.present.ids), 2, 4)
    assert ops.modality_attention(x, x, x, plan.present, plan.present).isfinite().all()


def test_a_batch_may_have_no_windows():
    none = torch.zeros(0, TOKENS, dtype=torch.bool)
    plan = ops.Plan.from_mask(none, none, MODALITY, TIME_S)
    for packing in (plan.visible, plan.hidden, plan.present):
        assert packing.slot.shape == (0, TOKENS) and packing.cu_seqlens.tolist() == [0] and packing.max_len == 0
        assert packing.ids.shape == (0,) and packing.cu_modality.tolist() == [0, 0, 0, 0]
    embedded = ops.embed_patches(
        [part[:0] for part in samples()],
        plan.visible,
        torch.randn(sum(LENGTHS), 4),
        torch.randn(TOKENS, 4),
        patch_lengths=LENGTHS,
    )
    assert embedded.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"visible": torch.ones(BATCH, TOKENS)}, r"visible must be bool, .* pass mask == 0\); found torch.float32"),
        ({"valid": torch.ones(BATCH, TOKENS)}, "valid must be bool, True for valid tokens; found torch.float32"),
        ({"valid": torch.ones(2, TOKENS, dtype=torch.bool)}, r"one shape \[B, N\]; found \[4, 30\] and \[2, 30\]"),
        ({"valid": torch.ones(BATCH, 0, dtype=torch.bool)}, r"valid must have shape \[B, N\] of some tokens"),
        ({"token_modality": MODALITY - 1}, "whole numbers from 0 on; found -1"),
        ({"token_modality": MODALITY.double()}, "whole numbers from 0 on; found torch.float64"),
        ({"token_time_s": TIME_S[:-1]}, r"token_time_s must have shape \[30\]; found \[29\]"),
    ],
)
def test_masks_that_do_not_fit_are_refused(change, said):
    visible, valid = mask()
    given = {"visible": visible, "valid": valid, "token_modality": MODALITY, "token_time_s": TIME_S} | change
    with pytest.raises(ValueError, match=said):
        ops.Plan.from_mask(**given)


# ---- rows of several rates ---------------------------------------------------------------------------------------


def test_samples_of_several_rates_are_read_as_they_are():
    parts = samples()
    parts[1][2, 0, 9] = torch.nan
    visible, valid = mask()
    rows = ops.Rows.from_dense(parts, PATCHES)
    assert rows.valid.logical_not().nonzero().tolist() == [[2, 2 * PATCHES + 1]]
    plan = ops.Plan.from_mask(visible, valid & rows.valid, MODALITY, TIME_S)
    want = patches_of(parts).flatten(0, 1)[plan.hidden.ids.long()]
    assert torch.equal(ops.take_patches(parts, plan.hidden, patch_lengths=LENGTHS), want)
    assert torch.equal(ops.take_patches(rows, plan.hidden, patch_lengths=LENGTHS), want)


def test_rows_know_the_lengths_of_their_patches():
    """They need not be given. Each call of an op refuses other ones: rows of equal shapes may have others."""
    visible, valid = mask()
    plan = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S)
    weight, table, factors = torch.zeros(sum(LENGTHS), 4), torch.zeros(TOKENS, 4), torch.ones(len(LENGTHS))
    tokens, most = len(plan.hidden.ids), max(LENGTHS)
    pred, x, head = torch.zeros(tokens, most), torch.zeros(tokens, 4), torch.zeros(most, 4)
    known = ops.Rows.from_dense(samples(), PATCHES)
    assert known.patch_lengths == LENGTHS
    turned = LENGTHS[::-1]
    calls = (
        lambda rows, lengths: ops.take_patches(rows, plan.hidden, patch_lengths=lengths),
        lambda rows, lengths: ops.embed_patches(rows, plan.visible, weight, table, patch_lengths=lengths),
        lambda rows, lengths: ops.masked_mse(pred, rows, plan.hidden, factors, patch_lengths=lengths),
        lambda rows, lengths: ops.linear_masked_mse(x, head, None, rows, plan.hidden, factors, patch_lengths=lengths),
    )
    for call in calls:
        wanted, found = call(known, LENGTHS), call(known, None)
        assert all(map(torch.equal, found, wanted))
        unknown = dataclasses.replace(known, patch_lengths=())
        call(unknown, LENGTHS)
        for rows in (unknown, samples(), samples()[0]):
            with pytest.raises(TypeError, match=r"^patch_lengths is missing: plain tensors, and Rows without"):
                call(rows, None)
        with pytest.raises(
            ValueError, match=r"^these rows have patches of .* found patch_lengths .* need rows of their"
        ):
            call(known, turned)
        with pytest.raises(ValueError, match=r"^these rows have patches of"):
            call(dataclasses.replace(known, patch_lengths=turned), LENGTHS)
    one_rate = ops.Rows.from_dense(torch.zeros(BATCH, sum(CHANNELS), PATCHES * 8), PATCHES)
    want = ops.take_patches(one_rate, plan.hidden, patch_lengths=(8, 8, 8))
    assert want.shape == (tokens, 8)
    assert torch.equal(ops.take_patches(one_rate, plan.hidden), want)
    with pytest.raises(ValueError, match=r"^these rows have patches of 8 samples; found patch_lengths \[8, 8, 4\]\."):
        ops.take_patches(one_rate, plan.hidden, patch_lengths=(8, 8, 4))
    of_each = dataclasses.replace(one_rate, patch_lengths=[8, 8, 8])
    merged = ops.Plan.from_mask(visible, valid, torch.zeros_like(MODALITY), TIME_S)  # one tokeniser for all channels
    assert torch.equal(ops.take_patches(of_each, merged.hidden, patch_lengths=(8,)), want)
    assert torch.equal(ops.take_patches(of_each, merged.hidden), want)


def test_a_compiled_graph_is_given_rows_that_know_their_patches():
    visible, valid = mask()
    plan, rows = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S), ops.Rows.from_dense(samples(), PATCHES)
    take = torch.compile(ops.take_patches, fullgraph=True, backend="eager")
    assert torch.equal(take(rows, plan.hidden), ops.take_patches(rows, plan.hidden, patch_lengths=LENGTHS))


def test_no_windows_and_no_samples():
    assert ops.Rows.from_dense(torch.zeros(0, 3, 20), 4).valid.shape == (0, 12)
    assert ops.Rows.from_dense([part[:0] for part in samples()], PATCHES).row_start.shape == (0, 6)
    assert ops.Rows.from_dense(torch.zeros(2, 3, 0), 4).valid.shape == (2, 12)
    with pytest.raises(ValueError, match="found none"):
        ops.Rows.from_dense([], PATCHES)


@pytest.mark.parametrize("lengths", [(12, 8, 3), (64, 64, 64), (100, 4, 100), (1, 1, 7), (96, 32, 64)])
def test_no_more_alignment_is_promised_than_rows_have(lengths):
    parts = [torch.zeros(3, channels, PATCHES * length) for channels, length in zip(CHANNELS, lengths, strict=True)]
    rows = ops.Rows.from_dense(parts, PATCHES)
    of_channel = torch.tensor(lengths).repeat_interleave(torch.tensor(CHANNELS))
    assert (rows.row_start % torch.gcd(torch.tensor(rows.align), of_channel) == 0).all()
    assert ops.Rows.from_dense(parts[0], PATCHES).align == 64


@pytest.mark.parametrize("several", [True, False])
def test_windows_of_any_length_are_one_graph(several):
    """The alignment of rows is decided where a graph knows lengths by name only."""
    torch._dynamo.reset()

    def starts(parts):
        rows = ops.Rows.from_dense(parts if several else parts[0], PATCHES)
        return rows.row_start + 0, rows.align

    compiled = torch.compile(starts, fullgraph=True, backend="eager", dynamic=True)
    for factor in (1, 3, 4):
        parts = [part.repeat(1, 1, factor) for part in samples()]
        (got, got_align), (want, align) = compiled(parts), starts(parts)
        assert torch.equal(got, want)
        assert align % got_align == 0


def test_rows_are_float32_whatever_the_default(each_dtype_by_default):
    rows = ops.Rows.from_dense([part.float() for part in samples()], PATCHES)
    assert rows.row_scale.dtype == rows.row_shift.dtype == torch.float32
    plan = ops.Plan.from_mask(torch.rand(rows.valid.shape) < 0.5, rows.valid, MODALITY, TIME_S)
    weight = torch.ones(sum(LENGTHS), 4, dtype=torch.float32)
    table = torch.zeros(TOKENS, 4, dtype=torch.float32)
    got = ops.embed_patches(rows, plan.visible, weight, table, patch_lengths=LENGTHS)
    patches = patches_of([part.float() for part in samples()]).flatten(0, 1).sum(1)
    torch.testing.assert_close(got, patches[plan.visible.ids.long()][:, None].expand(-1, 4))


@pytest.mark.parametrize("as_rows", [False, True])
def test_modalities_in_another_order_than_their_samples_are_refused(as_rows):
    """Patches of one length would be cut where another's begin, and windows would be mixed."""
    visible, valid = mask()
    x, swapped = samples(), torch.tensor([1, 0, 2])[MODALITY]
    good, bad = (ops.Plan.from_mask(visible, valid, kinds, TIME_S) for kinds in (MODALITY, swapped))
    lengths = (LENGTHS[1], LENGTHS[0], LENGTHS[2])
    rows = ops.Rows.from_dense(x, PATCHES) if as_rows else x
    embed = torch.randn(sum(LENGTHS), 4), torch.randn(TOKENS, 4)
    pred, head, weight = torch.randn(len(bad.hidden.ids), 12), torch.randn(12, 4), torch.full((3,), 0.1)
    said = "patches of channel 0 have 12 samples, but its tokens in the packing are of modality 1, whose patches have 8"
    for call in (
        lambda plan: ops.take_patches(rows, plan.hidden, patch_lengths=LENGTHS),
        lambda plan: ops.embed_patches(rows, plan.visible, *embed, patch_lengths=LENGTHS),
        lambda plan: ops.masked_mse(pred, rows, plan.hidden, weight, patch_lengths=LENGTHS),
        lambda plan: ops.linear_masked_mse(pred[:, :4], head, None, rows, plan.hidden, weight, patch_lengths=LENGTHS),
    ):
        call(good)
        for _ in range(2):
            with pytest.raises(ValueError, match=said):
                call(bad)
        call(good)
    with pytest.raises(ValueError, match="patches of|these rows have patches"):
        ops.take_patches(rows, bad.hidden, patch_lengths=lengths)


@pytest.mark.parametrize("as_rows", [False, True])
def test_tokens_that_go_through_the_channels_second_by_second_are_refused(as_rows):
    """Also after plans in the right order, whose packings have a tail or lack some channels."""
    channels = torch.arange(3).repeat_interleave(torch.tensor(CHANNELS))
    x, (visible, valid) = torch.randn(BATCH, len(channels), PATCHES * 8), mask()
    rows, lengths = (ops.Rows.from_dense(x, PATCHES) if as_rows else x), (8, 8, 8)
    embed, head, weight = (torch.randn(24, 4), torch.randn(TOKENS, 4)), torch.randn(8, 4), torch.full((3,), 0.1)
    some, sizes = visible & (MODALITY == 2), ops.PlanSizes((60, 100, 120), (TOKENS,) * 3)
    good = [ops.Plan.from_mask(chosen, valid, MODALITY, TIME_S, 3, sizes) for chosen in (some, visible)]
    by_second = ops.Plan.from_mask(visible, valid, channels.repeat(PATCHES), TIME_S.sort().values, 3, sizes)
    pred = torch.randn(100, 8)
    for call in (
        lambda plan: ops.take_patches(rows, plan.hidden, patch_lengths=lengths),
        lambda plan: ops.embed_patches(rows, plan.visible, *embed, patch_lengths=lengths),
        lambda plan: ops.masked_mse(pred, rows, plan.hidden, weight, patch_lengths=lengths),
        lambda plan: ops.linear_masked_mse(pred[:, :4], head, None, rows, plan.hidden, weight, patch_lengths=lengths),
    ):
        for plan in (*good, *good):
            call(plan)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"tokens of channel \d are of modalities .*repeat_interleave\(S\)$"):
                call(by_second)
        call(good[0])


def test_the_orders_that_were_right_are_few(monkeypatch):
    monkeypatch.setattr(checks, "_ordered", {})
    monkeypatch.setattr(checks, "_MOST_ORDERED", 2)
    for patches in range(2, 9):
        valid, channels = torch.ones(1, 2 * patches, dtype=torch.bool), torch.tensor([0, 1])
        plan = ops.Plan.from_mask(valid, valid, channels.repeat_interleave(patches), torch.zeros(2 * patches))
        ops.take_patches(torch.zeros(1, 2, 3 * patches), plan.visible, patch_lengths=(3, 3))
        assert 0 < len(checks._ordered) <= 2


def test_a_part_of_the_channels_has_no_order_of_all():
    """Rows of channels 1, 3 and 4, as a script that drops some makes them."""
    kept, x = [1, 2, 3], samples()
    tokens = torch.cat([torch.arange(PATCHES) + c * PATCHES for c in kept])
    rows = ops.Rows.from_dense(x, PATCHES)
    parts = {name: getattr(rows, name)[:, kept] for name in ("row_start", "row_scale", "row_shift")}
    part = rows.replace(**parts, valid=rows.valid[:, tokens])
    plan = ops.Plan.from_mask(part.valid, part.valid, MODALITY[tokens], TIME_S[tokens])
    found = ops.take_patches(part, plan.visible, patch_lengths=LENGTHS).view(BATCH, len(tokens), -1)
    assert torch.equal(found, patches_of(x)[:, tokens])
    turned = rows.replace(row_start=rows.row_start.flip(1))
    plan = ops.Plan.from_mask(rows.valid, rows.valid, MODALITY.flip(0), TIME_S)
    with pytest.raises(ValueError, match=r"take rows\.replace\(channel_lengths=\(\)\)"):
        ops.take_patches(turned, plan.visible, patch_lengths=LENGTHS)
    unknown = turned.replace(channel_lengths=())
    assert torch.equal(
        ops.take_patches(unknown, plan.visible, patch_lengths=LENGTHS)[:PATCHES], patches_of(x)[0, -PATCHES:]
    )


def test_rows_promise_only_what_holds():
    """Kernels rely on promises and look at nothing: as seen here, where gains would not reach an embedding."""
    x, weight, table = torch.randn(2, 3, 4 * 16), torch.randn(16, 8), torch.zeros(12, 8)
    rows = ops.Rows.from_dense(x, 4)
    gain, delay = torch.rand(2, 3) + 1, rows.row_start + 3
    louder = rows.replace(row_scale=gain)
    assert (louder.is_unscaled, louder.align) == (False, rows.align)
    assert rows.replace(samples=x.flatten()).is_unscaled
    valid = torch.ones(2, 12, dtype=torch.bool)
    plan = ops.Plan.from_mask(valid, valid, torch.arange(3).repeat_interleave(4), torch.zeros(12))
    of_louder = ops.Rows.from_dense(x * gain[:, :, None], 4)
    want, weights = ops.take_patches(of_louder, plan.visible) @ weight, weight.repeat(3, 1)
    for backend in ("auto", "reference", "triton"):
        with ops.backend(backend):
            found = ops.embed_patches(louder, plan.visible, weights, table, patch_lengths=(16,) * 3)
        torch.testing.assert_close(found, want)
    later = rows.replace(row_start=torch.where(delay < x.numel() - 64, delay, -1))
    assert (later.is_unscaled, later.align) == (True, 1)
    assert rows.replace(patch_lengths=()).align == 1
    assert later.replace(align=1, is_unscaled=False, row_shift=rows.row_shift + 1).align == 1
    for change, said in (
        ({"row_scale": gain}, "is_unscaled promises .* method `replace`"),
        ({"row_shift": rows.row_shift + 1}, "is_unscaled promises"),
        ({"row_start": delay}, r"align=64 promises that rows begin at multiples of gcd\(align, P\), here 16; found"),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(rows, **change)
    mixed = ops.Rows.from_dense((torch.zeros(2, 1, 4 * 16), torch.zeros(2, 1, 4 * 12)), 4)
    dataclasses.replace(mixed, row_start=mixed.row_start + torch.tensor([16, 4]))
    dataclasses.replace(mixed, row_start=torch.full_like(mixed.row_start, -1))
    with pytest.raises(ValueError, match="multiples of .* here 4, 16; found others"):
        dataclasses.replace(mixed, row_start=mixed.row_start + 4)


@pytest.mark.parametrize("strict", [True, False])
def test_a_module_that_takes_rows_is_exported(strict):
    class Embedding(torch.nn.Module):
        def forward(self, rows, plan, weight, table):
            return ops.embed_patches(rows, plan.visible, weight, table)

    rows, valid = ops.Rows.from_dense(torch.randn(2, 3, 4 * 16), 4), torch.ones(2, 12, dtype=torch.bool)
    plan = ops.Plan.from_mask(valid, valid, torch.zeros(12).int(), torch.zeros(12))
    arguments = rows, plan, torch.randn(16, 8), torch.zeros(12, 8)
    exported = torch.export.export(Embedding(), arguments, strict=strict).module()
    torch.testing.assert_close(exported(*arguments), Embedding()(*arguments), rtol=0, atol=0)
    assert torch.utils._pytree.tree_map(lambda leaf: None, rows).align is None
    with torch.device("meta"):
        assert rows.replace(samples=rows.samples * 2).align == rows.align


def test_what_is_moved_is_not_asked_for_values_that_may_be_on_their_way():
    rows, plan = ops.Rows.from_dense(torch.zeros(1, 1, 8), 2), None
    valid = torch.ones(1, 2, dtype=torch.bool)
    plan = ops.Plan.from_mask(valid, valid, torch.zeros(2).int(), torch.zeros(2))
    with torch.no_grad():
        rows.row_scale[:] = 7  # as memory that a copy has not reached
        plan.present.cu_seqlens[:] = torch.tensor([0, 2**20])
    moved_rows, moved = ops.to_device([rows, {"plan": plan}], "cpu")
    assert moved_rows.is_unscaled and moved["plan"].present.max_len == 2
    assert rows.to("meta").samples.is_meta and plan.to("meta").hidden.ids.is_meta


def test_a_gpu_is_waited_for_until_the_order_is_right(monkeypatch):
    """As a CPU can tell: its tensors are taken for those of a GPU."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(checks, "_ordered", {})
    visible, valid = mask()
    rows, swapped = ops.Rows.from_dense(samples(), PATCHES), torch.tensor([1, 0, 2])[MODALITY]
    good, bad = (ops.Plan.from_mask(visible, valid, kinds, TIME_S).hidden for kinds in (MODALITY, swapped))
    for _ in range(2):
        with pytest.raises(ValueError, match="patches of channel 0 have 12 samples"):
            checks.check_order(rows, bad, LENGTHS)
    for _ in range(2):
        checks.check_order(rows, good, LENGTHS)
    assert list(checks._ordered) == [(sum(CHANNELS), TOKENS, rows.channel_lengths, LENGTHS, torch.device("cpu"))]
    checks.check_order(rows, bad, LENGTHS)  # is not looked at again


def test_modalities_of_equal_patches_may_be_numbered_at_will():
    """Such as one tokeniser for all channels of a rate: no sample is another's."""
    x = [torch.randn(BATCH, channels, PATCHES * 8) for channels in CHANNELS]
    rows, (visible, valid) = ops.Rows.from_dense(x, PATCHES), mask()
    for kinds in (MODALITY, 2 - MODALITY, torch.zeros_like(MODALITY)):
        plan = ops.Plan.from_mask(visible, valid, kinds, TIME_S)
        lengths = (8,) * (int(kinds.max()) + 1)
        wanted = torch.cat(x, 1).view(-1, 8)[plan.visible.ids.long()]
        assert torch.equal(ops.take_patches(rows, plan.visible, patch_lengths=lengths), wanted)


def test_what_is_no_tensor_is_named():
    visible, valid = mask()
    for given, said in (
        ((visible, None, MODALITY, TIME_S), "valid must be a tensor; found NoneType: torch.as_tensor makes tensors"),
        ((visible.numpy(), valid, MODALITY, TIME_S), "visible must be a tensor; found ndarray"),
        ((visible, valid, MODALITY.tolist(), TIME_S), "token_modality must be a tensor; found list"),
        ((visible, valid, MODALITY, TIME_S.numpy()), "token_time_s must be a tensor; found ndarray"),
    ):
        with pytest.raises(TypeError, match=said):
            ops.Plan.from_mask(*given)
    plan, head = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S), torch.nn.Linear(4, 12)
    h, weight = torch.zeros(len(plan.hidden.ids), 4), torch.ones(3)
    with pytest.raises(TypeError, match="head must be a tensor; found Linear"):
        ops.linear_masked_mse(h, head, None, samples(), plan.hidden, weight, patch_lengths=LENGTHS)
    quotas, seed_step = torch.ones(BATCH, 3, dtype=torch.int64), (0, 1)
    sizes = ops.PlanSizes((9, 9, 9), (9, 9, 9))
    drawn = (quotas, valid, torch.arange(BATCH), seed_step, MODALITY.int(), TIME_S.float(), sizes)
    with pytest.raises(TypeError, match="seed_step must be a tensor; found tuple"):
        ops.sample_plan(*drawn)
    with pytest.raises(TypeError, match="found a dict: give a list of its values"):
        ops.Rows.from_dense({"eeg": torch.zeros(2, 3, 20)}, 4)
    for name in ("int32", "uint8", "complex64"):
        with pytest.raises(ValueError, match=f"expected samples of int16, float32, .*; found {name}"):
            ops.Rows.from_dense(torch.zeros(2, 3, 20, dtype=getattr(torch, name)), 4)
    with pytest.raises(ValueError, match=r"patches, those of a channel, must be a whole number, 1 or more; found 4\.0"):
        ops.Rows.from_dense(torch.zeros(2, 3, 20), 4.0)


def test_a_plan_may_lack_the_last_modalities():
    visible, valid = mask()
    of_two = MODALITY.clamp(max=1)
    plan = ops.Plan.from_mask(visible, valid, of_two, TIME_S, num_modalities=3)
    assert [len(each.cu_modality) for each in (plan.visible, plan.hidden, plan.present)] == [4] * 3
    assert plan.visible.cu_modality[2] == plan.visible.cu_modality[3] == int((visible & valid).sum())
    with pytest.raises(ValueError, match="token_modality has a 2, but num_modalities is 2"):
        ops.Plan.from_mask(visible, valid, MODALITY, TIME_S, num_modalities=2)


SIZES = ops.PlanSizes((40, 110, 118), (30, 30, 30))


def test_sizes_of_a_plan_may_be_given():
    """What tokens do not fill is a tail."""
    visible, valid = mask()
    exact = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S)
    padded = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S, num_modalities=3, sizes=SIZES)
    for name, total in zip(("visible", "hidden", "present"), SIZES.totals, strict=True):
        small, large = getattr(exact, name), getattr(padded, name)
        assert len(large.ids) == total and large.max_len == 30 and (large.ids[len(small.ids) :] == -1).all()
        for part in ("ids", "modality", "time_s", "by_modality"):
            assert torch.equal(getattr(large, part)[: len(small.ids)], getattr(small, part))
        for part in ("cu_seqlens", "slot", "cu_modality"):
            assert torch.equal(getattr(large, part), getattr(small, part))
    for sizes, said in (
        (ops.PlanSizes((40, 1, 118), (30, 30, 30)), r"sizes.totals must be at least \(\d+, \d+, \d+\) for these masks"),
        (ops.PlanSizes((40, 110, 118), (30, 30, 3)), r"sizes.max_lens must be at least .*; found \(30, 30, 3\)"),
    ):
        with pytest.raises(ValueError, match=said):
            ops.Plan.from_mask(visible, valid, MODALITY, TIME_S, sizes=sizes)


def test_a_plan_of_given_sizes_is_part_of_one_graph():
    torch._dynamo.reset()

    def step(visible, valid):
        plan = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S, num_modalities=3, sizes=SIZES)
        return ops.take_tokens(torch.ones(BATCH, TOKENS, 2), plan.hidden), plan.visible.ids

    counter = CompileCounter()
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for seed in range(4):
        visible, valid = mask(seed)
        for found, wanted in zip(compiled(visible, valid), step(visible, valid), strict=True):
            assert torch.equal(found, wanted)
    assert counter.frame_count == 1


def test_masks_of_more_tokens_than_ids_are_refused():
    valid = torch.ones(1, 1, dtype=torch.bool).expand(1 << 20, 1 << 11)
    with pytest.raises(ValueError, match="1048576 windows of 2048 tokens do not fit 32-bit token ids"):
        ops.Plan.from_mask(valid, valid, torch.zeros(2048).int(), torch.zeros(2048))


@pytest.mark.parametrize("most", [64, None])
@pytest.mark.parametrize("strict", [False, True])
def test_a_plan_of_given_sizes_is_exported_for_any_number_of_windows(strict, most):
    class Step(torch.nn.Module):
        def forward(self, visible, valid):
            return ops.Plan.from_mask(visible, valid, MODALITY, TIME_S, num_modalities=3, sizes=SIZES)

    visible, valid = mask()
    windows = {0: torch.export.Dim("windows", min=2, max=most)}
    exported = torch.export.export(Step(), (visible, valid), dynamic_shapes=(windows, windows), strict=strict).module()
    for count in (2, 3, BATCH):
        found, wanted = (step(visible[:count], valid[:count]) for step in (exported, Step()))
        for name in ("visible", "hidden", "present"):
            mine, theirs = (vars(getattr(plan, name)) for plan in (found, wanted))
            assert all(torch.equal(mine[part], theirs[part]) for part in theirs if part != "max_len"), name


def test_whole_numbers_are_finite():
    rows = ops.Rows.from_dense(torch.full((2, 3, 20), -(2**15), dtype=torch.int16), 4)
    assert rows.valid.shape == (2, 12) and rows.valid.all()


@dataclasses.dataclass
class Held:
    of: torch.Tensor


def test_rows_and_plans_are_moved_and_pinned_as_tensors_are(monkeypatch):
    """There may be no memory to pin here: a stand-in says which tensors were asked."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (pinned.append(tensor), tensor.clone())[1])
    visible, valid = mask()
    rows, plan = ops.Rows.from_dense(samples(), PATCHES), ops.Plan.from_mask(visible, valid, MODALITY, TIME_S)
    leaves = torch.utils._pytree.tree_leaves
    for contract in (rows, plan, plan.visible):
        wanted = [leaf for leaf in leaves(contract) if isinstance(leaf, torch.Tensor)]
        pinned.clear()
        for copy in (pin_memory(contract), contract.pin_memory(), contract.to("cpu")):
            assert type(copy) is type(contract)
            assert all(
                a is b or torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
                for a, b in zip(leaves(copy), leaves(contract), strict=True)
            )
        assert len(pinned) == 2 * len(wanted) and all(a is b for a, b in zip(pinned, wanted * 2, strict=True))
        moved = contract.to("meta", non_blocking=True)
        assert all(leaf.is_meta for leaf in leaves(moved) if isinstance(leaf, torch.Tensor))
        assert moved != contract and contract == contract and len({contract, moved}) == 2


def test_rows_and_plans_are_printed_as_shapes():
    visible, valid = mask()
    rows, plan = ops.Rows.from_dense(samples(), PATCHES), ops.Plan.from_mask(visible, valid, MODALITY, TIME_S)
    assert "samples=float32[820], row_start=int64[4, 6], " in repr(rows) and "patch_lengths=(12, 8, 3)" in repr(rows)
    assert repr(plan).startswith(f"Plan(visible=Packing(ids=int32[{len(plan.visible.ids)}], cu_seqlens=int32[5], ")
    assert f"max_len={plan.present.max_len}))" in repr(plan) and "tensor" not in repr(plan)


def test_what_cannot_be_moved_is_refused_by_its_name():
    plan, rows = ops.Plan.from_mask(*mask(), MODALITY, TIME_S), ops.Rows.from_dense(samples(), PATCHES)
    names = np.asarray(["a"])
    moved = ops.to_device(
        {"plan": plan, "of": [rows, 3, None, "text", np.int64(3), names], "x": torch.zeros(2)}, "meta"
    )
    assert moved["of"][1:] == [3, None, "text", 3, names]
    for tensor in (moved["plan"].visible.ids, moved["of"][0].samples, moved["x"]):
        assert tensor.is_meta
    with pytest.raises(TypeError, match="to_device moves Rows, Packing, Plan, tensors and .*; found a Held of tensors"):
        ops.to_device([Held(torch.zeros(2))], "meta")


@pytest.mark.parametrize("several", [False, True])
def test_ops_read_no_other_dense_samples_than_those_of_their_tokens(several, monkeypatch):
    """Nor do they ask which patches are valid; and what they share from call to call is of one shape."""
    visible, valid = mask()
    plan, weight = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S), torch.full((3,), 0.1)
    for batch in (BATCH, BATCH - 1, BATCH):
        if several:
            x, lengths = [part[:batch] for part in samples()], LENGTHS
        else:
            x, lengths = torch.randn(batch, sum(CHANNELS), PATCHES * 8), (8, 8, 8)
        plan = ops.Plan.from_mask(visible[:batch], valid[:batch], MODALITY, TIME_S)
        rows = ops.Rows.from_dense(x, PATCHES)
        embed = torch.randn(sum(lengths), 4), torch.randn(TOKENS, 4)
        pred = torch.randn(len(plan.hidden.ids), max(lengths))
        wanted = (
            ops.take_patches(rows, plan.hidden),
            ops.embed_patches(rows, plan.visible, *embed),
            *ops.masked_mse(pred, rows, plan.hidden, weight),
        )
        with monkeypatch.context() as patched:
            patched.setattr(contracts, "_are_finite", lambda *_: pytest.fail("looked at all samples"))
            found = (
                ops.take_patches(x, plan.hidden, patch_lengths=lengths),
                ops.embed_patches(x, plan.visible, *embed, patch_lengths=lengths),
                *ops.masked_mse(pred, x, plan.hidden, weight, patch_lengths=lengths),
            )
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16])
def each_dtype_by_default(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


def test_tokens_of_an_absent_row_are_no_numbers():
    rows = ops.Rows.from_dense([part.float() for part in samples()], PATCHES)
    plan = ops.Plan.from_mask(torch.ones_like(rows.valid), rows.valid, MODALITY, TIME_S)
    rows.row_start[1, 2] = -1
    patches = ops.take_patches(rows, plan.visible, patch_lengths=LENGTHS)
    lost = plan.visible.slot[1].view(-1, PATCHES)[2].long()
    assert patches[lost, : LENGTHS[1]].isnan().all()
    patches[lost] = 0
    assert patches.isfinite().all()
    weight, table = torch.ones(sum(LENGTHS), 4), torch.zeros(TOKENS, 4)
    with ops.backend("reference"):
        tokens = ops.embed_patches(rows, plan.visible, weight, table, patch_lengths=LENGTHS)
    assert tokens[lost].isnan().all() and tokens.isfinite().all(1).sum() == len(tokens) - PATCHES
    if engine.native:
        with pytest.raises(ValueError, match="row of token 40: expected a start from 0 to 812, found -1"):
            ops.embed_patches(rows, plan.visible, weight, table, patch_lengths=LENGTHS)


def test_scales_and_shifts_of_64_bits_are_not_rounded_before_they_cancel(each_backend):
    """Samples about 12345, which shifts take off again, are as those about 0."""
    batch, generator = make_batch(4, dtype=torch.int16), torch.Generator().manual_seed(0)
    lengths, plan = batch.montage.patch_lengths, batch.plan
    weight, table, pred = (
        torch.randn(shape, generator=generator, requires_grad=True)
        for shape in ((sum(lengths), 6), (batch.montage.tokens, 6), (len(plan.hidden.ids), max(lengths)))
    )
    scale = torch.rand(batch.rows.row_scale.shape, generator=generator, dtype=torch.float64) + 0.5
    found = []
    for zero in (0, 12345):
        samples = batch.rows.samples.clamp(-3, 3) + zero
        rows = dataclasses.replace(batch.rows, samples=samples, row_scale=scale, row_shift=-zero * scale)
        tokens = ops.embed_patches(rows, plan.visible, weight, table, patch_lengths=lengths)
        loss, *_ = ops.masked_mse(pred, rows, plan.hidden, batch.weights, patch_lengths=lengths)
        gradients = torch.autograd.grad(tokens.sum() + loss, (weight, pred))
        found.append(
            (ops.take_patches(rows, plan.hidden, patch_lengths=lengths), tokens.detach(), loss.detach(), *gradients)
        )
    assert found[0][0].dtype == torch.float32
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6 * want.abs().max().item(), rtol=0)


def test_gradients_reach_samples_of_several_rates():
    parts = [part.requires_grad_() for part in samples(dtype=torch.float64)]
    visible, valid = mask()
    plan = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(length, 6, generator=generator, dtype=torch.float64) for length in LENGTHS]
    table = torch.randn(TOKENS, 6, generator=generator, dtype=torch.float64)
    ops.embed_patches(parts, plan.visible, torch.cat(weights), table, patch_lengths=LENGTHS).square().sum().backward()
    found = [part.grad for part in parts]
    again = [part.detach().requires_grad_() for part in parts]
    cut = [part.unflatten(2, (PATCHES, -1)).flatten(1, 2) @ weight for part, weight in zip(again, weights, strict=True)]
    tokens = (torch.cat(cut, 1) + table).flatten(0, 1)[plan.visible.ids.long()]
    tokens.square().sum().backward()
    for got, part in zip(found, again, strict=True):
        torch.testing.assert_close(got, part.grad)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: parts[:2], "one \\[B, C_m, T_m\\] for each of 3 patch_lengths"),
        (
            lambda parts: [parts[0], parts[1], parts[2][:, :, 1:]],
            "of modality 2 must be torch.float32 and T = 5",
        ),
        (lambda parts: [parts[0], parts[1].double(), parts[2]], "samples of modality 1 must be torch.float32"),
        (lambda parts: [parts[0], parts[1][:1], parts[2]], "several of one batch"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change, said):
    visible, valid = mask()
    plan = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S)
    with pytest.raises(ValueError, match=said):
        ops.take_patches(change(samples()), plan.hidden, patch_lengths=LENGTHS)


@pytest.mark.parametrize(
    ("change", "patches", "error", "said"),
    [
        (
            lambda parts: [parts[0], parts[1].half(), parts[2]],
            PATCHES,
            ValueError,
            "float32, torch.float16, torch.float",
        ),
        (lambda parts: [part.numpy() for part in parts], PATCHES, TypeError, "found ndarray: torch.as_tensor makes"),
        (lambda parts: parts[0].numpy(), PATCHES, TypeError, "found ndarray"),
        (lambda parts: parts[0].tolist(), PATCHES, TypeError, "found list"),
        (lambda parts: parts, 0, ValueError, "patches, those of a channel, must be a whole number, 1 or more; found 0"),
        (lambda parts: parts, -3, ValueError, "a whole number, 1 or more; found -3"),
    ],
)
def test_what_rows_are_not_made_of(change, patches, error, said):
    with pytest.raises(error, match=said):
        ops.Rows.from_dense(change(samples()), patches)


# ---- what is kept, traced, or mistaken ---------------------------------------------------------------------------


def test_plans_and_rows_are_loaded_as_tensors_are():
    visible, valid = mask()
    kept = (ops.Plan.from_mask(visible, valid, MODALITY, TIME_S), ops.Rows.from_dense(samples(), PATCHES))
    present = kept[0].present
    kept += (ops.modality_attention_stats(*torch.ones(2, len(present.ids), 1, 4), present, present),)
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    plan, rows, stats = torch.load(file)  # weights_only, as is the default
    assert torch.equal(stats.mass, kept[2].mass)
    assert torch.equal(plan.hidden.ids, kept[0].hidden.ids)
    assert torch.equal(rows.samples, kept[1].samples)


def test_samples_without_values_have_shapes():
    with FakeTensorMode() as mode:
        rows = ops.Rows.from_dense(mode.from_tensor(torch.zeros(2, 3, 20)), 4)
    assert rows.valid.shape == (2, 12)


def given_to_every_op(bad):
    """Calls with it in place of a packing: with rows, whose ops need nothing else of it before they are checked."""
    batch = make_batch(1)
    lengths = batch.montage.patch_lengths
    x, q, weight = torch.zeros(9, 8), torch.zeros(9, 2, 4), torch.ones(len(lengths))
    return {
        "take_patches": partial(ops.take_patches, batch.rows, bad),
        "embed_patches": partial(ops.embed_patches, batch.rows, bad, x, x),
        "take_tokens": partial(ops.take_tokens, x, bad),
        "modality_attention": partial(ops.modality_attention, q, q, q, bad, bad),
        "modality_attention_stats": partial(ops.modality_attention_stats, q, q, bad, bad),
        "masked_mse": partial(ops.masked_mse, x, batch.rows, bad, weight),
        "linear_masked_mse": partial(ops.linear_masked_mse, x, x, None, batch.rows, bad, weight),
    }


@pytest.mark.parametrize("op", given_to_every_op(None))
def test_what_is_no_packing_is_named_by_every_op(op):
    plan = make_batch(1).plan
    for bad, hint in ((plan, r"its \.visible; found a Plan"), (None, r"plan\.visible; found a NoneType")):
        with pytest.raises(TypeError, match=rf"^expected a Packing, such as {hint}$"):
            given_to_every_op(bad)[op]()


@pytest.mark.parametrize("has_gradient", [False, True])
def test_what_is_no_plan_is_named_by_every_op(has_gradient):
    hidden = make_batch(1).plan.hidden
    x = torch.zeros(len(hidden.ids), 8, requires_grad=has_gradient)
    for call in (ops.take_hidden, ops.with_hidden, partial(ops.assemble_tokens, table_visible=x, table_hidden=x)):
        with pytest.raises(TypeError, match=r"^expected a Plan.*found a Packing$"):
            call(x, hidden)


def test_what_is_no_packing_is_named():
    visible, valid = mask()
    plan, parts = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S), samples()
    x, pred = torch.zeros(BATCH, TOKENS, 3), torch.zeros(len(plan.hidden.ids), max(LENGTHS))
    with pytest.raises(TypeError, match=r"^expected a Packing, such as its \.visible; found a Plan$"):
        ops.take_tokens(x, plan)
    with pytest.raises(TypeError, match=r"^expected a Packing, such as one of `Plan\.from_mask`; found a Tensor$"):
        ops.take_tokens(x, visible)
    with pytest.raises(TypeError, match=r"expected a Packing.*found a Plan"):
        ops.modality_attention(x, x, x, plan, plan)
    with pytest.raises(TypeError, match=r"^expected Rows, a tensor \[B, C, T\] or .* each modality; found a NoneType$"):
        ops.take_patches(None, plan.hidden, patch_lengths=LENGTHS)
    with pytest.raises(TypeError, match=r"^weight must be a tensor \[M\]; found a list$"):
        ops.masked_mse(pred, parts, plan.hidden, [1.0, 1.0, 1.0], patch_lengths=LENGTHS)
    with pytest.raises(TypeError, match=r"^patch_lengths needs P_m for each modality, such as \(100,\); found 12$"):
        ops.masked_mse(pred, parts, plan.hidden, torch.ones(3), patch_lengths=12)
    with pytest.raises(TypeError, match=r"^normalise needs a bool for each modality, such as \[True, True, True\]"):
        ops.masked_mse(pred, parts, plan.hidden, torch.ones(3), True, patch_lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"found \[7, 23\]: transpose that of a Linear$"):
        ops.embed_patches(parts, plan.visible, torch.zeros(7, 23), torch.zeros(30, 7), patch_lengths=LENGTHS)


def test_a_packing_whose_longest_window_has_no_room_is_refused():
    visible, valid = mask()
    packing = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S).present
    longest = int(packing.cu_seqlens.diff().max())
    joined = packing.cu_seqlens.clone()
    joined[1:-1] = 0  # the last window has all tokens
    for change in ({"max_len": longest - 1}, {"cu_seqlens": joined}):
        with pytest.raises(ValueError, match=r"^max_len must be at least \d+, the tokens of the .*; found \d+$"):
            dataclasses.replace(packing, **change)
    for max_len in (longest, longest + 500):
        assert ops.to_device(dataclasses.replace(packing, max_len=max_len), "cpu").max_len == max_len
    empty = dataclasses.replace(packing, cu_seqlens=packing.cu_seqlens[:1], max_len=0)
    assert empty.max_len == 0
    unfilled = torch.full_like(packing.cu_seqlens, 2**30)  # such as `torch.empty_like` gives
    unfilled[1] = -5
    assert dataclasses.replace(packing, cu_seqlens=unfilled).max_len == packing.max_len


def test_a_packing_whose_numbers_are_not_at_hand_is_taken():
    """Of another device, of a trace or of what is no tensor at all: whoever gives one warrants that it fits."""
    visible, valid = mask()
    packing = ops.Plan.from_mask(visible, valid, MODALITY, TIME_S).present
    small = {"max_len": 1}
    assert dataclasses.replace(ops.to_device(packing, "meta"), **small).max_len == 1
    with FakeTensorMode() as mode:
        assert dataclasses.replace(packing, cu_seqlens=mode.from_tensor(packing.cu_seqlens), **small).max_len == 1
    fits = torch.utils._pytree.tree_map(lambda part: isinstance(part, torch.Tensor), packing)
    assert fits.cu_seqlens and not fits.max_len

    def double(x, packing):
        x = ops.take_tokens(x, packing)
        twice = dataclasses.replace(packing, cu_seqlens=packing.cu_seqlens * 2, max_len=2 * packing.max_len)
        return x * twice.max_len, twice.cu_seqlens

    x = torch.randn(BATCH, TOKENS, 3)
    found, wanted = torch.compile(double, fullgraph=True, backend="eager")(x, packing), double(x, packing)
    assert all(map(torch.equal, found, wanted))


def test_a_plan_whose_longest_window_has_no_room_is_refused():
    quotas, valid = torch.full((2, 1), 3), torch.ones(2, 8, dtype=torch.bool)
    grid = (torch.zeros(8, dtype=torch.int32), torch.zeros(8))
    for name, max_lens in (("visible", (2, 5, 8)), ("hidden", (3, 4, 8)), ("present", (3, 5, 7))):
        sizes = ops.PlanSizes((6, 10, 16), max_lens)
        with pytest.raises(ValueError, match=rf"^sizes\.max_lens of {name} must be at least "):
            ops.sample_plan(quotas, valid, torch.arange(2), torch.tensor([0, 0]), *grid, sizes)
