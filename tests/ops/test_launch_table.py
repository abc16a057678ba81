"""The launch table is pure arithmetic: blocks that kernels accept, for every shape that users have."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physiofast.ops.triton import table

sizes = st.sampled_from([2, 4, 8])
lengths = st.integers(1, 4000)
widths = st.integers(1, 2048)


def is_power_of_2(n):
    return n >= 1 and n & (n - 1) == 0


@given(lengths, widths, sizes, st.integers(1, 32), st.integers(1, 4096))
def test_blocks_are_powers_of_two_that_fit(length, width, size, kinds, tokens):
    launches = {
        "mse": table.masked_mse(length, kinds, normalised=kinds % 2 == 0, align=math.gcd(length, 8)),
        "partials": table.sum_partials(kinds),
        "scale": table.scale_gradient(),
        "rows": table.rows(width, size),
        "sums": table.sum_rows(width),
        "embed": table.embed_patches(length, width, size, kinds, size),
        "weights": table.embed_weights(length, width, size, kinds, size),
        "samples": table.embed_samples(length, width, size),
        "listed": table.list_tokens(kinds),
        "groups": table.sum_groups_of_tokens(),
        "choose": table.choose_visible(tokens),
        "before": table.count_before(),
        "pack": table.pack(tokens),
    }
    for name, launch in launches.items():
        assert all(is_power_of_2(block) for block in launch.blocks.values()), name
        assert launch.num_warps in (1, 2, 4, 8, 16)
        assert launch.num_stages >= 1
    if size <= 2:  # Triton 3.6 compiles fewer columns wrongly
        assert launches["embed"].blocks["BLOCK_D"] >= 32
        assert launches["weights"].blocks["BLOCK_D"] >= 32
        assert launches["samples"].blocks["BLOCK_P"] >= 32
    for name in ("embed", "weights", "samples"):  # tl.dot wants 16 and more along each axis
        assert min(launches[name].blocks.values()) >= 16
    assert launches["mse"].blocks["BLOCK_P"] >= length
    assert launches["mse"].blocks["BLOCK_M"] >= kinds
    assert launches["choose"].blocks["BLOCK_N"] >= tokens


@given(st.integers(1, table.MAX_HEAD_WIDTH), st.integers(1, 32), sizes, st.booleans(), st.booleans())
def test_blocks_of_attention_suit_matrix_products_and_leave_no_length_out(width, kinds, size, has_decay, is_large):
    of_windows = (table.attention(width, kinds, size, has_decay), table.attention_whole(width, kinds, size, is_large))
    launches = [entry.short for entry in of_windows]
    launches += [one.launch for entry in of_windows for one in entry.sorted]
    launches.append(table.attention_stats(width, kinds, size))
    launches += [f(width, kinds, size, has_decay) for f in (table.attention_queries, table.attention_keys)]
    for launch in launches:
        columns = launch.blocks.get("BLOCK_W", 0)
        assert columns == 0 or columns >= max(kinds, 32)
        assert all(is_power_of_2(block) and block >= 16 for name, block in launch.blocks.items() if name != "BLOCK_W")
        assert launch.blocks["BLOCK_D"] >= max(width, 32)  # Triton 3.6 compiles fewer columns wrongly
        assert launch.blocks["BLOCK_M"] >= kinds
        assert launch.num_warps in (2, 4, 8)
    forward, backward = of_windows
    assert all(entry.shared <= entry.short.blocks["BLOCK_S"] <= entry.short.blocks["BLOCK"] for entry in of_windows)
    lengths = set(range(1, 200))
    assert all(len(list(forms_of(forward, length))) == 1 for length in lengths)
    assert all(len(list(forms_of(backward, length))) == (length <= backward.longest) for length in lengths)


def forms_of(entry, length):
    """What does windows of so many tokens."""
    if length <= entry.short.blocks["BLOCK"]:
        yield entry.short
    for one in entry.sorted:
        if one.above < length and (length <= one.upto or not one.upto):
            yield one


def test_registers_are_bounded_where_the_table_says_so():
    known = {"blocks": {"BLOCK": 32}, "num_warps": 4, "num_stages": 2}
    assert table.Launch(**known).options == {"num_warps": 4, "num_stages": 2}
    assert table.Launch(**known, max_registers=168).options == {"num_warps": 4, "num_stages": 2, "maxnreg": 168}


@pytest.mark.parametrize(
    ("longest", "block", "blocks"), [(0, 64, 1), (1, 64, 1), (64, 64, 1), (65, 64, 2), (400, 64, 7)]
)
def test_blocks_of_the_longest_window(longest, block, blocks):
    assert table.attention_blocks(longest, block) == blocks


@given(st.integers(0, 10**6))
def test_groups_of_places_are_few(places):
    assert 1 <= table.sum_groups(places) <= 32


@pytest.mark.parametrize(("n", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (128, 128), (129, 256)])
def test_next_power_of_two(n, power):
    assert table.next_power_of_2(n) == power


@given(st.integers(1, 400), st.integers(1, 400), sizes)
def test_groups_of_token_ids(channels, patches, size):
    parts, each = table.groups_of_channel(channels, patches, size)
    most = table.MOST_IDS if size <= 2 else table.MOST_IDS // 2
    assert 1 <= each <= most
    assert (parts - 1) * each < patches <= parts * each  # none is empty
    groups = channels * parts
    assert groups <= max(2 * channels, 2 * table.GROUPS) or each > most // 2
    assert groups >= min(channels * patches, table.GROUPS) // 2


@given(st.integers(1, 4000), st.integers(1, 2048), st.integers(1, 32), st.sampled_from([2, 4]))
def test_eight_warps_have_columns_for_two_groups_of_four(length, width, ids, sample_size):
    launch = table.embed_weights(length, width, 2, ids, sample_size)
    assert min(launch.blocks["BLOCK_D"], launch.blocks["BLOCK_N"]) >= table.LEAST_COLUMNS
    assert launch.num_warps == 4 or min(launch.blocks["BLOCK_P"], launch.blocks["BLOCK_D"]) >= 128
