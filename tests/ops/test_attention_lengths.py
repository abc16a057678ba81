"""Attention by lengths: the order of windows, and tiles that short ones share, on which no bit of a window depends."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast.ops.triton import attention, attention_backward, attention_order, table
from physiofast.ops.triton.launching import written_down
from tests.ops.attention_kernels import (
    LENGTHS,
    OUTPUTS,
    assert_equal_definition,
    assert_in_order,
    assert_same_bits_rearranged,
    draw,
    ends_of,
    of_kernels,
)
from tests.ops.kernels import guarded

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not interpreted")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from([0, 1, 15, 16, 17, 32, 33, 64, 65, 128, 2048, 2049, 9000])] * 2), max_size=40)
)
def test_windows_come_in_the_order_of_their_buckets(lengths):
    assert_in_order(lengths)


@pytest.mark.parametrize("batch", [1, 511, 512, 513, 1024, 1300])
@pytest.mark.parametrize("longest", [1, 100, 5000])
def test_windows_of_many_rounds_come_in_order(batch, longest):
    """Rounds of windows of one class, which fill its counter, and of several; the last may not be full."""
    lengths = torch.randint(longest // 2, longest + 1, (batch, 2), generator=torch.Generator().manual_seed(batch))
    blocks = {"BLOCK_B": table.attention(64, 6, 2, False).short.blocks["BLOCK_B"]}
    assert_in_order([tuple(pair) for pair in lengths.tolist()], blocks=blocks)


@triton.jit
def _report(cu_q, cu_k, found, taken, bits, B, BLOCK: tl.constexpr):
    """What the program of each window is told."""
    b = tl.program_id(0)
    begins_q, ends_q, begins_k, ends_k, is_taken = attention_order.rows_of_slots(cu_q, cu_k, b, B, bits, BLOCK)
    place = found + b * 4 * BLOCK + tl.arange(0, BLOCK)
    tl.store(place, begins_q)
    tl.store(place + BLOCK, ends_q)
    tl.store(place + 2 * BLOCK, begins_k)
    tl.store(place + 3 * BLOCK, ends_k)
    tl.store(taken + b, is_taken.to(tl.int32))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33, 70])] * 2), min_size=1, max_size=9),
    st.sampled_from([32, 64]),
)
def test_windows_side_by_side_share_a_tile_in_slots_of_their_own(lengths, block):
    """All tokens of windows of a length are rows of one tile, once; queries and keys of a window in the same slot."""
    ends, batch, rows = [ends_of(side) for side in zip(*lengths, strict=True)], len(lengths), torch.arange(block)
    for bits in (4, 5):
        alike = [(0 if bits == 4 else 16) < max(pair) <= 1 << bits for pair in lengths]
        found, taken = torch.empty(batch, 4, block, dtype=torch.int32), torch.empty(batch, dtype=torch.int32)
        _report[(batch,)](*map(guarded, ends), found, taken, bits, batch, BLOCK=block)
        share = block >> bits
        for b in filter(alike.__getitem__, range(batch)):
            group = [other for other in range(b // share * share, min((b // share + 1) * share, batch)) if alike[other]]
            assert bool(taken[b]) == (group[0] < b)
            for (begins, stops), cu in zip(found[b].view(2, 2, block), ends, strict=True):
                is_row, token = rows < stops, begins + rows
                assert token[is_row].tolist() == [t for other in group for t in range(cu[other], cu[other + 1])]
                for other in group:
                    mine = is_row & (token >= cu[other]) & (token < cu[other + 1])
                    assert set((rows[mine] >> bits).tolist()) <= {other % share}


def test_all_lengths_in_one_batch():
    assert_equal_definition(draw(LENGTHS, None, torch.float16, heads=1, width=16))


def test_queries_and_keys_of_different_lengths_in_one_batch():
    lengths_k = (16, 129, 3, 17, 31, 1, 15, 64, 0, 32, 33, 70, 127, 5)
    assert_equal_definition(draw(LENGTHS, lengths_k, torch.float16, heads=1, width=16, pairs="cross"))


def test_short_windows_of_float32():
    assert_equal_definition(draw((16, 0, 33, 1, 15, 32, 17, 31), None, torch.float32, heads=1, width=16))


def replaced(monkeypatch, **blocks):
    """Other blocks in the launch table, where an entry has such."""
    for name in ("attention", "attention_whole"):
        original = getattr(table, name)

        def changed(*shape, original=original):
            launches = original(*shape)
            by_length = (dataclasses.replace(one, launch=with_blocks(one.launch, blocks)) for one in launches.sorted)
            return dataclasses.replace(launches, short=with_blocks(launches.short, blocks), sorted=tuple(by_length))

        monkeypatch.setattr(table, name, changed)
    for module in (attention, attention_backward):
        module._kernels.cache_clear()


def with_blocks(launch, blocks):
    known = {name: size for name, size in blocks.items() if name in launch.blocks}
    return dataclasses.replace(launch, blocks=launch.blocks | known)


@pytest.fixture
def fresh():
    """Nothing that was made of another table is kept."""
    yield
    for module in (attention, attention_backward):
        module._kernels.cache_clear()


FORMS = {
    "slots of 32, too, share a tile": {"BLOCK_S": 64},
    "all queries at once with a decay, too": {"BLOCK_Q": 128},
    "keys stream by from 65 on": {"BLOCK_K": 64},
}


@pytest.mark.parametrize("form", FORMS)
def test_other_entries_of_the_table_serve_as_well(form, monkeypatch, fresh):
    """What a GPU may find faster is a line of the table."""
    replaced(monkeypatch, **FORMS[form])
    assert_equal_definition(draw((70, 16, 33, 1, 130, 32, 17, 9, 100), None, torch.float16, heads=1, width=16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_short_windows_have_the_same_bits_in_every_slot_and_beside_any_other(dtype):
    lengths_q, lengths_k = [5, 16, 30, 1, 7, 32, 12, 40, 3], [9, 2, 17, 14, 0, 20, 16, 64, 31]
    drawn = draw(lengths_q, lengths_k, dtype, heads=1, tail=0)
    found = of_kernels(drawn)
    for order in ((8, 6, 4, 3, 2, 1, 0, 7, 5), (3,), (0, 3, 4, 6, 1), (6, 2), (5,), (4, 1, 0)):
        longest = 400 if len(order) > 2 else max(max(lengths_q[b], lengths_k[b]) for b in order)
        assert_same_bits_rearranged(drawn, found, order, lengths_q, lengths_k, longest)


@pytest.mark.parametrize(("tile", "poison"), [(32, float("nan")), (64, float("inf"))])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_one_window_holds_spoils_none_that_shares_its_tile(tile, poison, monkeypatch, fresh):
    """A token of NaN or infinity in one window of at most 16 tokens and in one of at most 32."""
    replaced(monkeypatch, BLOCK_S=tile)
    lengths = [16, 9, 20, 32]
    drawn = draw(lengths, None, torch.float16, heads=1, width=16, tail=0)
    places = [slice(*place) for place in zip(ends_of(lengths).tolist(), ends_of(lengths).tolist()[1:], strict=False)]
    want = of_kernels(drawn)
    for which in ("q", "k", "v", "grad"):
        spoilt = dict(zip("qkv", drawn.qkv, strict=True)) | {"grad": drawn.grad}
        spoilt[which] = spoilt[which].clone()
        spoilt[which][[places[1].start + 1, places[3].start + 1]] = poison
        again = dataclasses.replace(drawn, qkv=tuple(spoilt[name] for name in "qkv"), grad=spoilt["grad"])
        for name, got, expected in zip(OUTPUTS, of_kernels(again), want, strict=False):
            for place in (places[0], places[2]):
                there = (slice(None), place) if name == "lse" else place
                assert torch.equal(got[there], expected[there]), (which, name)


@pytest.mark.parametrize(
    ("longest", "forward", "backward"), [(20, 1, 1), (64, 1, 1), (65, 2, 2), (128, 2, 2), (129, 3, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_starts_follow_from_the_longest_window_that_may_be(longest, forward, backward, dtype):
    """No length is asked for: the tensors have none yet. In float16 with a decay no window over 64 fits one block."""
    if dtype == torch.float16 and longest > 64:
        backward = 3
    drawn = draw([10, 5], None, dtype, heads=1, width=64)
    drawn.sides = drawn.sides._replace(max_q=longest, max_k=longest)
    with written_down() as started:
        out, lse = attention.modality_attention(*drawn.qkv, *drawn.sides)
        attention_backward.modality_attention_backward(drawn.grad, *drawn.qkv, out, lse, *drawn.sides, False)
    names = [one.kernel.__name__ for one in started if 0 not in one.grid]
    assert names[0] == "_attend_short"
    assert names.index("_backward_short") == forward
    assert len(names) == forward + backward
