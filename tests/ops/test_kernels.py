"""The Triton kernels against their twins: odd geometry, guarded memory, any order of programs, and mutants."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.mixedbatch import make_batch
from physiofast.ops import reference
from physiofast.ops.triton import attention_order, loss, plan, table
from physiofast.ops.triton.launching import written_down
from tests.ops.attention_kernels import LENGTHS, assert_in_order, draw
from tests.ops.kernels import (
    MODULES,
    OPS,
    Calls,
    assert_equals_twin,
    assert_scales,
    outputs,
    plan_arguments,
    shuffled_programs,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not interpreted")

geometries = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "channels": st.tuples(*[st.integers(1, 2)] * 3),
        "rates": st.tuples(*[st.sampled_from([1, 4, 7, 16, 17, 33])] * 3),
        "patches": st.integers(1, 5),
        "batch": st.integers(1, 4),
        "keep": st.floats(0.05, 1),
        "absent": st.floats(0, 0.9),
        "invalid": st.floats(0, 0.9),
        "dtype": st.sampled_from([torch.int16, torch.float16, torch.float32, torch.float64]),
    }
)


def dtypes(samples):
    """Weights for samples of a type: 64-bit ones are compared in 64 bits."""
    return [torch.float64] if samples == torch.float64 else [torch.float16, torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("op", [op for op, module in OPS.items() if not module.startswith("attention")])
@settings(max_examples=100, deadline=None)
@given(
    geometry=geometries,
    width=st.sampled_from([1, 5, 16, 63]),
    index=st.integers(0, 1),
    groups=st.sampled_from([1, 7, 48]),
)
def test_equals_twin_over_geometry(op, geometry, width, index, groups):
    if geometry["dtype"] == torch.int16:  # stored values of thousands: half precision has no room for their sums
        index = 1
    choices = dtypes(geometry["dtype"])
    batch = make_batch(**geometry)
    with mock.patch.object(table, "GROUPS", groups):
        assert_equals_twin(op, Calls(batch, width, choices[index % len(choices)]).arguments(op))


@pytest.fixture
def few_groups(monkeypatch):
    """Groups of several token ids, whose programs are fewer: the interpreter takes its time for each."""
    monkeypatch.setattr(table, "GROUPS", 6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("width", [1, 63, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_odd_widths(op, width, dtype, few_groups):
    batch = make_batch(1, rates=(100, 63, 1), patches=3, dtype=torch.float32)
    assert_equals_twin(op, Calls(batch, width, dtype).arguments(op))


@pytest.mark.parametrize("op", OPS)
def test_any_order_of_programs_gives_the_same_bits(op, monkeypatch, few_groups):
    """Programs neither wait for each other nor add to what another one writes."""
    arguments = Calls(make_batch(2, rates=(100, 63, 1), batch=6, patches=20), 300, torch.float32).arguments(op)
    first = assert_equals_twin(op, arguments)
    orders = shuffled_programs(monkeypatch)
    again = outputs(getattr(MODULES[OPS[op]], op), arguments)
    assert any(len(order) > 1 for order in orders.values())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def assert_plan_equals_twin(arguments, module=plan):
    found, want = module.sample_plan(*arguments), reference.sample_plan(*arguments)
    for got, expected in zip(found, want, strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    channels=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    patches=st.integers(1, 9),
    batch=st.integers(1, 4),
    density=st.floats(0, 1),
    extra=st.integers(0, 40),
)
def test_plans_equal_the_twins_bit_for_bit(seed, channels, patches, batch, density, extra):
    assert_plan_equals_twin(plan_arguments(seed, tuple(channels), patches, batch, density, extra))


def test_plan_of_a_night_of_thirteen_channels():
    assert_plan_equals_twin(plan_arguments(0, (6, 1, 1, 1, 3, 1), 30, 3, 0.9, 8))


def test_equal_random_words_are_ordered_by_token(tmp_path):
    """Were all words equal, the first valid tokens of each modality would be visible."""
    quotas, valid, *_ = arguments = plan_arguments(1, patches=20)
    even = mutant("plan", "word.to(tl.int64)", "(word * 0).to(tl.int64)", tmp_path)
    slot = even.sample_plan(*arguments)[4]
    for m, modality in enumerate(arguments[4].unique()):
        of_m = valid & (arguments[4] == modality)
        assert torch.equal((slot >= 0) & of_m, of_m & (of_m.cumsum(1) <= quotas[:, m : m + 1]))


@pytest.mark.parametrize("extra", [0, 1, 31, 32, 400])  # of programs that take 32 tokens each
@pytest.mark.parametrize("batch", [1, 3])
def test_windows_share_the_tail(batch, extra):
    assert_plan_equals_twin(plan_arguments(4, batch=batch, extra=extra))


def test_windows_longer_than_programs_have_registers_for_are_planned_by_definition():
    longest = table.choose_visible(plan.MAX_TOKENS)
    assert longest.blocks["BLOCK_N"] == plan.MAX_TOKENS
    assert longest.blocks["BLOCK_N"] <= 16 * 32 * longest.num_warps  # keys of a thread, of 64 bits each
    with written_down() as started:
        assert_plan_equals_twin(plan_arguments(3, (1, 1), plan.MAX_TOKENS // 2 + 1, batch=2))
        assert started == []
        plan.sample_plan(*plan_arguments(3, (1, 1), plan.MAX_TOKENS // 2, batch=2))
        assert len(started) == 3


def test_more_tokens_than_programs_have_registers_for(monkeypatch):
    monkeypatch.setattr(plan, "MAX_TOKENS", 29)
    monkeypatch.setattr(plan, "_kernels", None)
    plan.sample_plan.cache_clear()
    assert_plan_equals_twin(plan_arguments(2))  # 30 tokens
    with pytest.raises(TypeError):  # 25
        plan.sample_plan(*plan_arguments(2, channels=(2, 3)))
    plan.sample_plan.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 63, 40_000])
def test_scaling_in_place_equals_the_twin(dtype, size):
    assert_scales(loss, dtype, size)


def assert_several_modalities_of_a_channel_are_no_numbers(op, module):
    """What nobody can tell without waiting for a GPU is at least not silently wrong."""
    batch = make_batch(2, rates=(4, 4, 4), patches=20, batch=5, keep=0.9)
    arguments = list(Calls(batch, 20, torch.float32).arguments(op))
    if op == "embed_patches_backward":
        arguments[-1] = True
    place = 5 + (op == "embed_patches_backward")
    right = outputs(getattr(module, op), tuple(arguments))
    arguments[place] = arguments[place].clone()
    arguments[place][0] += 1
    found = outputs(getattr(module, op), tuple(arguments))
    rows, wanted = (found[1], right[1]) if op == "embed_patches_backward" else (found[0], right[0])
    of_group = rows.isnan().all(1)
    assert 1 < of_group.sum() < len(rows) // 2
    assert torch.equal(rows[~of_group], wanted[~of_group])
    if op == "embed_patches_backward":
        dweight, _, dsamples = found
        assert dweight.isnan().all()
        assert dsamples.isnan().any()


# None may write outside of what is its own: that would lead tests astray which come later in the same process.
MUTANTS = {
    "loss": [
        ("error = tl.where(inside, prediction.to(ACC) - target, 0)", "error = prediction.to(ACC) - target"),
        ("samples + first[:, None] + p[None, :]", "samples + first[:, None] + p[None, :] + 1"),
        ("(token_modality[:, None] == m[None, :])", "(token_modality[:, None] == m[None, :] + 1)"),
        ("begin + g < programs", "begin + g < programs - 1"),
        ("t = pid * BLOCK_T +", "t = (pid + 1) * BLOCK_T +"),
        ("select(token_modality, NORMALISE, N", "select(token_modality - 1, NORMALISE, N"),
        ("weight + token_modality, mask=real", "weight + 0 * token_modality, mask=real"),
        ("if by != 1.0:", "if by == 1.0:"),
        (".to(by.dtype) * by", ".to(by.dtype) * by * by"),
        ("* ROUNDS + r) * BLOCK +", "* ROUNDS + r + 1) * BLOCK +"),
        ("inside = real[:, None] & (p < P_MAX)[None, :]", "inside = real[:, None] & (p >= 0)[None, :]"),
        ("tl.load(row_shift + row, mask=real", "tl.load(row_scale + row, mask=real"),
        ("(ids % patches).to(tl.int64) * length", "(ids % patches).to(tl.int64) * 0"),
        ("tl.where(modality == m, VALUES[m], selected)", "tl.where(modality == m, VALUES[0], selected)"),
    ],
    "embed": [
        ("(select(modality, OFFSETS, NUM_MODALITIES) + p)", "(select(modality, OFFSETS, NUM_MODALITIES) + p + 1)"),
        ("* scale[:, None] + shift[:, None]", "* scale[:, None]"),
        ("pos_table + row[:, None]", "pos_table + (row ^ 1)[:, None]"),
        ("_fill(out, t, t < T, d, 0.0, D)", "_fill(out, t, t < 0, d, 0.0, D)"),
        ("mask = (j < count)[:, None]", "mask = (j < count - 1)[:, None]"),
        ("if select(modality, MEMBERS, NUM_MODALITIES) > 0:", "if select(modality, MEMBERS, NUM_MODALITIES) > 1:"),
        ("mine = (strip % strips) * BLOCK_T", "mine = 0 * strip"),
        ("weight + at_weight + sample * D", "weight + at_weight"),
        ("one_hot, added, total", "one_hot, 0 * added, total"),
        ('d, float("nan"), D)', "d, 0.0, D)"),
        ("number + begin", "number"),
        ("tl.where(modality == m, VALUES[m], selected)", "tl.where(modality == m, VALUES[0], selected)"),
    ],
    "embed_backward": [
        ("total *= tl.load(scale + j", "total *= 0 * tl.load(scale + j"),
        (
            "at_weight = (select(modality, OFFSETS, NUM_MODALITIES) + p)",
            "at_weight = (select(modality, OFFSETS, NUM_MODALITIES) + 0 * p)",
        ),
        ("* select(modality_tile, LENGTHS, NUM_MODALITIES)", "* (select(modality_tile, LENGTHS, NUM_MODALITIES) - 1)"),
        ("* scale[:, None] + shift[:, None]", "* scale[:, None]"),
        ("range(0, count, BLOCK_T)", "range(0, 0, BLOCK_T)"),
        ("mask=within, other=0", "mask=within | (j[:, None] >= 0), other=0"),
        ("(group * ROWS + p)", "(group * ROWS + (p ^ 1))"),
        ("(modality_tile == modality)", "(modality_tile == 0 * modality)"),
        ("select(modality, OFFSETS, NUM_MODALITIES) * D + i", "i"),
        ("tl.store(place + at, t", "tl.store(place + at, t ^ 1"),
        ("before += tl.sum(here.to(tl.int32))", "before = tl.sum(here.to(tl.int32))"),
        ("tl.store(number + at, n", "tl.store(number + at, n ^ 1"),
        ("tl.store(counts + group, before)", "tl.store(counts + group, before - 1)"),
        ("is_mine = (n < patches_per_group)", "is_mine = (n < patches_per_group - 1)"),
        (
            "patch = (group % groups_per_channel) * patches_per_group + n",
            "patch = (group % groups_per_channel) * BLOCK_N + n",
        ),
        ("(FIRST & (modality < 0))", "(FIRST & (modality < -2))"),
        ("sums = tl.dot(tl.trans(grad_tile), one_hot, sums", "sums = tl.dot(tl.trans(grad_tile), one_hot, 0 * sums"),
        ("(tl.program_id(1) == 0)", "(tl.program_id(1) == 1)"),
        ("(tl.program_id(0) % strips) * BLOCK_T", "(tl.program_id(0) % strips) * 0"),
        ("highest, SEVERAL)", "highest, highest)"),
        ("modality_tile == SEVERAL, float", "modality_tile == SEVERAL - 1, float"),
        ("FIRST and modality == SEVERAL", "FIRST and modality == SEVERAL - 1"),
    ],
    "assemble": [
        ("values = tl.load(x + row[:, None]", "values = tl.load(x + (row ^ 1)[:, None]"),
        ("row = tl.load(slots + token, mask=token >= 0", "row = tl.load(slots + token + 1, mask=token >= 0"),
        ("values = values.to(ACC) + tl.load(onto + place", "values = values.to(ACC) + 0 * tl.load(onto + place"),
        ("seen, unseen = slot >= 0, (token >= 0) & (slot < 0)", "seen, unseen = slot >= 0, slot < -1"),
        ("place = (token % N).to(tl.int64)", "place = ((token + 1) % N).to(tl.int64)"),
        ("seen_sum += tl.where(seen, grad_tile.to(ACC), 0)", "seen_sum += grad_tile.to(ACC)"),
        ("unseen_sum += tl.where(seen, 0, grad_tile.to(ACC))", "unseen_sum += tl.where(seen, grad_tile.to(ACC), 0)"),
        ("mask=(token < 0)[:, None] & width)", "mask=(token < -1)[:, None] & width)"),
    ],
    "attention": [
        ("row_sum = row_sum * alpha + tl.sum(weights, 1)", "row_sum = row_sum + tl.sum(weights, 1)"),
        ("acc *= alpha[:, None]", "acc *= 1"),
        ("tl.where(pair, logits, forbidden(scale))", "logits"),
        ("mask=known, other=1) != 0) & (m < NUM_MODALITIES)[None, :]", "mask=known, other=1) != 0)"),
        ("modality_tile, -1), NUM_MODALITIES)", "modality_tile, -1), 0)"),
        ("logits -= (decay / scale) * apart", "logits -= decay * apart"),
        ("other=0).to(ACC) * (1 / scale)", "other=0).to(ACC)"),
        ("tl.where(may & ~(bias < never), bias, never)", "bias"),
        (
            "place = query_modality[:, None] * NUM_MODALITIES + m[None, :]",
            "place = m[None, :] * NUM_MODALITIES + query_modality[:, None]",
        ),
        ("pair_bias + h * NUM_MODALITIES * NUM_MODALITIES + place", "pair_bias + place"),
        ("forbidden(scale) / 2)", "forbidden(scale) * 2)"),
        ("tl.exp2((row_max - new_max)", "tl.exp2((new_max - row_max)"),
        ("decay = tl.load(time_decay + h)", "decay = tl.load(time_decay)"),
        ("tail = tl.load(cu_q + B)", "tail = T_q"),
        ("row_max * scale + tl.log(", "row_max * scale - tl.log("),
        ("HAS_DECAY, UPTO == BLOCK_K, False", "HAS_DECAY, True, False"),
        ("begin.to(tl.int64) * stride + h * D", "begin.to(tl.int64) * stride"),
        ("return pair & (slot[:, None] == slot[None, :])", "return pair"),
        ("is_taken = is_taken | (alike & (first + s < b))", "is_taken = is_taken | (alike & (first + s <= b))"),
        ("begin_k - (s << bits), begins_k)", "begin_k, begins_k)"),
        ("mine = (slot == s) & alike", "mine = slot == s"),
        ("of_slot = tl.dot(weights, tl.where(slot == s, x, 0)", "of_slot = tl.dot(weights, tl.where(slot == 0, x, 0)"),
        ("length_q + (s << bits), ends_q)", "length_q, ends_q)"),
    ],
    "attention_backward": [
        (
            'tl.where(row_lse == float("-inf"), float("inf"), row_lse)',
            'tl.where(row_lse == float("-inf"), FORBIDDEN, row_lse)',
        ),
        ("(dlogits - tl.sum(product(weights, dlogits, IS_ALONE), 1)[:, None])", "dlogits"),
        ("(token // PER_PLACE + b)", "(token // PER_PLACE)"),
        ("m[:, None] * NUM_MODALITIES + n[None, :], dbias", "n[None, :] * NUM_MODALITIES + m[:, None], dbias"),
        (
            "one_hot = one_hot_rows(key_modality, OPERAND, BLOCK_W)",
            "one_hot = one_hot_rows(key_modality + 1, OPERAND, BLOCK_W)",
        ),
        ("sum_by_modality(query_modality, sums, tl.zeros", "sum_by_modality(query_modality + 1, sums, tl.zeros"),
        ("== query_modality[None, :]).to(OPERAND)", "== query_modality[None, :] + 1).to(OPERAND)"),
        ("one_hot, sums, input_precision", "one_hot, 0 * sums, input_precision"),
        ("weights = tl.exp2(below * 1.4426950408889634)", "weights = tl.exp2(below)"),
        ("weights = tl.exp(below)", "weights = tl.exp2(below)"),
        ("row_delta = tl.sum(output.to(ACC) * dout.to(ACC), 1)", "row_delta = tl.sum(output.to(ACC) * 0, 1)"),
        ("ddecay -= tl.sum(", "ddecay += tl.sum("),
        ("(is_there == 0) | (first >= length_k)", "(is_there == 0) | (first + BLOCK >= length_k)"),
        ("store_rows(dk, dkey * scale, begin_k, first", "store_rows(dk, dkey, begin_k, first"),
        ("range(group * per_group, end, BLOCK_G)", "range(group * per_group + BLOCK_G, end, BLOCK_G)"),
        ("zero_tail(dk, tl.load(cu_k + B)", "zero_tail(dk, T_k"),
        ("row_delta = tl.load(delta + of_head + begin_q + i", "row_delta = tl.load(delta + begin_q + i"),
        ("if (length > SHARED) & (length <= BLOCK):", "if (length > SHARED) & (length < BLOCK):"),
        ("dlogits = tl.where(pair, dlogits, 0)", "dlogits = dlogits * 2"),
        ("weights = tl.where(pair, weights, 0)", "weights = tl.where(pair, 0, weights)"),
        ("ends_q, ends_k, bits, begin_q, b, h", "ends_q, ends_k, bits, begin_q, 0, h"),
    ],
    "attention_stats": [
        ("row_sum * alpha + tl.sum(weights, 1)", "row_sum + tl.sum(weights, 1)"),
        ("sums[i] * alpha[:, None]", "sums[i]"),
        ("tl.where(apart <= TAUS[i - 2], weights, 0)", "tl.where(apart <= TAUS[0], weights, 0)"),
        ("tl.where(is_head, length_q, 0), tl.where(is_head, length_k, 0)", "length_q, length_k"),
        ("tl.where(is_head | (bias < forbidden(factor) / 2), bias, 0)", "bias"),
        (
            "tl.where(some[:, None], one_hot_rows(query_modality, ACC, BLOCK_M), 0)",
            "one_hot_rows(query_modality, ACC, BLOCK_M)",
        ),
        ("m[:, None] * NUM_MODALITIES + m[None, :]", "m[None, :] * NUM_MODALITIES + m[:, None]"),
        ("sums[2 * heads :]", "sums[heads:-heads]"),
        ("tl.store(row + columns + m, count", "tl.store(row + columns + m, count + 1"),
        ("(begin + i * step)", "(begin + step)"),
    ],
    "attention_order": [
        ("(length > (8 << c))", "(length >= (8 << c))"),
        ("number = (length > 0)", "number = (length > 4)"),
        ("tl.where(number < 6, one, 0), ", "tl.where(number < 5, one, 0), "),
        ("counters = low if c < 6 else high", "counters = low if c < 6 else high * 0"),
        ("longer = _counted(longer,", "_counted(longer,"),
        ("tl.cumsum(high, 0))", "tl.sum(high, 0) - tl.cumsum(high, 0) + high)"),
        ("longer = (total,) + longer", "longer = longer + (total,)"),
        ("return tl.maximum(queries, keys)", "return queries"),
    ],
    "plan": [
        ("(key <= last)", "(key < last)"),
        ("(1 - there.to(tl.int64))", "there.to(tl.int64)"),
        (
            "tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))",
            "tl.interleave(tl.interleave(w0, w1), tl.interleave(w2, w3))",
        ),
        ("carried + tl.cumsum(here)", "carried + tl.cumsum(here) - here"),
        ("token_state == which + 1", "token_state == 2 - which"),
        ("by_modality + shift + rank, place", "by_modality + place, place"),
        ("tl.where(fits, total, 0) + b * BLOCK_N", "tl.where(fits, total, 0) + 1 + b * BLOCK_N"),
        ("tl.num_programs(0) * BLOCK_N", "2 * tl.num_programs(0) * BLOCK_N"),
        ("end_of_m += tl.load(before + m * windows + B)\n", "pass\n"),
    ],
}


MUTABLE = MODULES | {"attention_order": attention_order}
PARTS = {
    "loss": ("parts",),
    "embed": ("parts", "embed_groups"),
    "embed_backward": ("parts", "embed_groups"),
    "attention": ("attention_parts", "attention_order"),
    "attention_backward": ("attention_parts", "attention_order", "attention_sums", "attention_backward_long"),
    "attention_stats": ("attention_parts", "attention_sums"),
}
"""Modules that hold what others are made of, each after those that it imports."""


def mutant(name, old, new, folder) -> object:
    """The module with one piece of its source changed, everywhere it stands, in its parts too."""
    package, texts = Path(MUTABLE[name].__file__).parent, {}
    for part in (*PARTS.get(name, ()), name):
        texts[part] = (package / f"{part}.py").read_text()
    assert any(old in text for text in texts.values()), f"{name} no longer has {old!r}; write the mutant anew"
    for part, text in texts.items():
        path, text = folder / f"mutant_{part}.py", text.replace(old, new)
        for other in texts:
            text = text.replace(f"from physiofast.ops.triton.{other} import", f"from mutant_{other} import")
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    return module


def attention_arguments(op) -> tuple:
    """Of windows of every form: several to a tile, one, and longer than a block; with a modality that may see none."""
    lengths = ([5, 0, 20, 140, 40, 70, 9, 30, 64, 16], [7, 3, 25, 150, 60, 80, 12, 31, 33, 2])
    drawn = draw(*lengths, torch.float32, width=40, tail=70, pairs="cross")
    drawn.sides.allowed[-1] = False
    if op == "modality_attention":
        return (*drawn.qkv, *drawn.sides)
    return (drawn.grad, *drawn.qkv, *reference.modality_attention(*drawn.qkv, *drawn.sides), *drawn.sides, True)


@pytest.fixture
def narrow_forms(monkeypatch):
    """Attention in float32, whose errors are small, takes the forms of 16 bits, of which there are more."""
    for name in ("attention", "attention_whole", "attention_queries", "attention_keys"):
        original = getattr(table, name)
        monkeypatch.setattr(table, name, lambda width, kinds, size, *more, of=original: of(width, kinds, 2, *more))


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Windows are listed in several rounds, and groups of token ids are few, of several each, shared by programs."""
    list_tokens = table.list_tokens

    def in_rounds(ids):
        launch = list_tokens(ids)
        return dataclasses.replace(launch, blocks=launch.blocks | {"BLOCK_B": 2})

    monkeypatch.setattr(table, "list_tokens", in_rounds)
    monkeypatch.setattr(table, "GROUPS", 12)
    monkeypatch.setattr(table, "embed_strips", lambda tokens, groups: 2)


def other_calls(name):
    """What the first batch does not have: one length of patches, no power of 2; tiles after a modality's first."""
    if name == "loss":
        return [Calls(make_batch(3, rates=(20, 20, 20), batch=3), 20, torch.float32, normalise=(1, 0, 0))]
    if name.startswith("embed"):
        many = make_batch(3, channels=(1, 1, 1), rates=(4, 70, 1), patches=22, batch=9, keep=0.9, absent=0, invalid=0)
        return [Calls(many, 40, torch.float32)]
    return []


def is_noticed(name, module) -> bool:
    """Whether some check fails."""
    if name == "plan":
        checks = [lambda: assert_plan_equals_twin(plan_arguments(1, extra=300), module)]
    elif name == "attention_order":  # alone: what it leads astray would read memory that is not there
        checks = [lambda: assert_in_order([*zip(LENGTHS, reversed(LENGTHS), strict=True), (3, 2)] * 2, module)]
    else:
        calls = Calls(make_batch(2, rates=(16, 16, 4), patches=4, batch=5), 20, torch.float32, normalise=(1, 0, 0))
        if name == "attention_stats":  # windows of one block of keys and queries and of several
            geometry = {"channels": (1, 1, 2), "rates": (1, 1, 1), "patches": 14, "absent": 0.3, "keep": 0.6}
            calls = Calls(make_batch(5, batch=5, **geometry), 72, torch.float32)
        arguments = attention_arguments if name in ("attention", "attention_backward") else calls.arguments
        ops = [op for op, of in OPS.items() if of == name]
        checks = [lambda op=op: assert_equals_twin(op, arguments(op), module) for op in ops]
        checks += [lambda of=of: assert_equals_twin(ops[0], of.arguments(ops[0]), module) for of in other_calls(name)]
        checks += [lambda: assert_scales(module)] * (name == "loss")
        if name.startswith("embed"):
            checks.append(lambda: assert_several_modalities_of_a_channel_are_no_numbers(ops[0], module))
    for check in checks:
        try:
            check()
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize(
    ("name", "old", "new"), [(name, *change) for name, found in MUTANTS.items() for change in found]
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # by a mutant, with Triton 3.9
@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning")  # by NaN that a mutant makes
def test_every_mutant_is_noticed(name, old, new, tmp_path, narrow_forms, few_at_a_time):
    assert is_noticed(name, mutant(name, old, new, tmp_path))


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_not_changed_passes(name, tmp_path, narrow_forms, few_at_a_time):
    assert not is_noticed(name, mutant(name, "import triton\n", "import triton\n", tmp_path))
