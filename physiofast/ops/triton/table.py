"""Launch geometry: blocks, warps and stages of every kernel as pure functions of shapes, never of a device.

So results are the same bits wherever a kernel runs. Every entry is compiled ahead of time in CI.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How a kernel is started."""

    blocks: dict[str, int]
    """Its `BLOCK_*` constants."""
    num_warps: int
    num_stages: int


LEAST_COLUMNS = 32
"""Of a product of 16-bit blocks: of 16 columns beside 64 rows and more Triton 3.6 makes an instruction of Hopper that
is wrong, and reads outside of shared memory. Columns that are not there are masked."""


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def tiles(size: int, block: int) -> int:
    """Blocks that cover `size` elements."""
    return -(-size // block)


def masked_mse(width: int, kinds: int, normalised: bool) -> Launch:
    """A tile of whole patches a program: with many small ones on a multiprocessor, loads hide each other's latency.

    Args:
        width: P_max.
        kinds: M.
        normalised: whether the patches of some modality are.
    """
    columns = next_power_of_2(max(width, 16))
    rows = max(1, 4096 // columns)
    blocks = {"BLOCK_T": rows, "BLOCK_P": columns, "BLOCK_M": next_power_of_2(kinds)}
    return Launch(blocks=blocks, num_warps=4 if normalised and columns <= 4096 else 8, num_stages=1)


def sum_partials(kinds: int) -> Launch:
    """One program that adds what the programs of `masked_mse` found."""
    columns = next_power_of_2(kinds)
    return Launch(
        blocks={"BLOCK_G": max(128, min(2048, 16384 // columns)), "BLOCK_M": columns}, num_warps=16, num_stages=1
    )


def scale_gradient() -> Launch:
    """Few programs: most often each has nothing to do but to read that the factor is 1."""
    return Launch(blocks={"BLOCK": 2048, "ROUNDS": 8}, num_warps=4, num_stages=2)


def rows(width: int, size: int) -> Launch:
    """Copies and sums of whole rows of D features.

    Args:
        width: D.
        size: bytes of an element.
    """
    columns = min(next_power_of_2(max(width, 16)), 1024 // size)
    return Launch(blocks={"BLOCK_T": 4096 // columns, "BLOCK_D": columns}, num_warps=4, num_stages=2)


def sum_rows(width: int) -> Launch:
    """Sums over windows, a token id and `BLOCK_D` features a program."""
    columns = min(next_power_of_2(max(width, 16)), 64)
    return Launch(blocks={"BLOCK_B": 2048 // columns, "BLOCK_D": columns}, num_warps=2, num_stages=2)


def embed_patches(length: int, width: int, size: int) -> Launch:
    """A tile of tokens of one modality times `BLOCK_D` columns of its weights.

    As many tokens as threads: with fewer, Triton has each thread find out where many rows begin, not one.

    Args:
        length: P_m.
        width: D.
        size: bytes of an element of the weights.
    """
    blocks = {"BLOCK_T": 32} | _embed_blocks(length, width, size)
    if size > 2:
        return Launch(blocks=blocks, num_warps=4, num_stages=1)
    blocks |= {"BLOCK_T": 128, "BLOCK_P": min(blocks["BLOCK_P"], 32), "BLOCK_D": min(blocks["BLOCK_D"], 64)}
    return Launch(blocks=blocks, num_warps=4, num_stages=3)


def embed_samples(length: int, width: int, size: int) -> Launch:
    """Gradient of dense samples."""
    blocks = {"BLOCK_T": 64 if size <= 2 else 32} | _embed_blocks(length, width, size)
    if size <= 2:
        blocks["BLOCK_P"] = max(blocks["BLOCK_P"], LEAST_COLUMNS)
    return Launch(blocks=blocks, num_warps=4, num_stages=2)


def embed_weights(length: int, width: int, size: int, unit: bool) -> Launch:
    """Gradients of a modality's weights and of the table: tokens are what is summed over.

    Args:
        length: P_m.
        width: D.
        size: bytes of an element of the weights.
        unit: whether samples are multiplied as they are stored; then they need no registers.
    """
    columns = min(next_power_of_2(max(width, 16)), 128)
    blocks = {"BLOCK_T": 64 if size <= 2 else 32} | _embed_blocks(length, width, size)
    blocks |= {"BLOCK_B": 4096 // columns, "BLOCK_W": columns}  # of the table's gradient, in the same start
    if unit or size > 2:
        blocks["BLOCK_D"] = min(blocks["BLOCK_D"], 64)
        return Launch(blocks=blocks, num_warps=4, num_stages=2)
    return Launch(blocks=blocks, num_warps=8, num_stages=3)


def _embed_blocks(length: int, width: int, size: int) -> dict[str, int]:
    samples = min(next_power_of_2(max(length, 16)), 128 if size <= 2 else 32)
    columns = next_power_of_2(max(width, LEAST_COLUMNS if size <= 2 else 16))
    return {"BLOCK_P": samples, "BLOCK_D": min(columns, 128 if size <= 2 else 64)}


def embed_rows(tokens: int) -> int:
    """Tokens whose products one program of `embed_weights` sums: partial sums cost memory, long sums cost time."""
    return max(128, min(1024, next_power_of_2(tokens // 64)))


def embed_indices(windows: int) -> Launch:
    """Where samples begin, a token a thread; the tokens of one id, from windows' slots."""
    return Launch(blocks={"BLOCK": 128, "BLOCK_B": max(16, min(windows, 1024))}, num_warps=4, num_stages=1)


def sum_groups_of_tokens() -> Launch:
    """Sum of what programs of `embed_weights` found, in order."""
    return Launch(blocks={"BLOCK_G": 8, "BLOCK": 512}, num_warps=4, num_stages=1)


def choose_visible(tokens: int) -> Launch:
    """One window's keys, sorted."""
    columns = next_power_of_2(max(tokens, 16))
    return Launch(blocks={"BLOCK_N": columns}, num_warps=4 if columns <= 1024 else 8, num_stages=1)


def count_before() -> Launch:
    """Running sums over windows."""
    return Launch(blocks={"BLOCK_B": 1024}, num_warps=4, num_stages=1)


def pack(tokens: int) -> Launch:
    """One window's tokens to their places, or a stretch of the tail."""
    columns = next_power_of_2(max(tokens, 16))
    return Launch(blocks={"BLOCK_N": columns}, num_warps=2 if columns <= 512 else 8, num_stages=1)


MAX_HEAD_WIDTH = 128
"""Features of a head that the kernels of attention have room for."""


def attention(width: int, kinds: int, size: int) -> Launch:
    """Forward: a block of queries over blocks of as many keys; short windows have one smaller block.

    Args:
        width: Dh.
        kinds: M.
        size: bytes of an element of the queries.
    """
    columns = _attention_columns(width, kinds)
    if size > 2:
        block = 32 if width <= 64 else 16
        blocks = {"BLOCK_SHORT": block, "BLOCK_LONG": block}
        return Launch(blocks=blocks | columns, num_warps=4, num_stages=1 if width <= 64 else 2)
    blocks = {"BLOCK_SHORT": 32, "BLOCK_LONG": 64}
    return Launch(blocks=blocks | columns, num_warps=4 if width <= 64 else 8, num_stages=1)


def attention_whole(width: int, kinds: int, size: int) -> tuple[list[tuple[int, Launch]], int]:
    """Backward of windows that fit one block, a window and head a program.

    Returns:
        (longest window that a start leaves to the ones before it, start) of each, and the longest that one does.
    """
    columns = _attention_columns(width, kinds)
    if size > 2:
        blocks = {"BLOCK_SHORT": 16, "BLOCK_LONG": 16}
        return [(0, Launch(blocks=blocks | columns, num_warps=4 if width <= 64 else 8, num_stages=1))], 16
    if width > 64:
        return [(0, Launch(blocks={"BLOCK_SHORT": 64, "BLOCK_LONG": 64} | columns, num_warps=8, num_stages=1))], 64
    first = Launch(blocks={"BLOCK_SHORT": 32, "BLOCK_LONG": 64} | columns, num_warps=4, num_stages=1)
    if kinds > 16:  # registers
        return [(0, first)], 64
    second = Launch(blocks={"BLOCK_SHORT": 128, "BLOCK_LONG": 128} | columns, num_warps=8, num_stages=1)
    return [(0, first), (64, second)], 128


def attention_queries(width: int, kinds: int, size: int) -> Launch:
    """First backward pass over longer windows: a block of queries a program, over blocks of keys."""
    columns = _attention_columns(width, kinds)
    if size > 2:
        return Launch(blocks={"BLOCK": 16, "BLOCK_K": 16} | columns, num_warps=4, num_stages=2)
    warps = 4 if width <= 64 and kinds <= 16 else 8
    return Launch(blocks={"BLOCK": 64, "BLOCK_K": 32} | columns, num_warps=warps, num_stages=1)


def attention_keys(width: int, kinds: int, size: int) -> Launch:
    """Second backward pass over longer windows: a block of keys a program."""
    columns = _attention_columns(width, kinds)
    if size > 2:
        return Launch(blocks={"BLOCK": 16} | columns, num_warps=4, num_stages=1)
    if width > 64:
        return Launch(blocks={"BLOCK": 32} | columns, num_warps=4, num_stages=2)
    return Launch(blocks={"BLOCK": 64} | columns, num_warps=4, num_stages=1)


def attention_stats(width: int, kinds: int, size: int) -> Launch:
    """Statistics of attention: sums of every kind stay in registers, so blocks are small."""
    block = {"BLOCK": 32 if size <= 2 else 16}
    return Launch(blocks=block | _attention_columns(width, kinds), num_warps=4, num_stages=1)


def attention_blocks(max_len: int, block: int) -> int:
    """Blocks that the longest window of a batch may have."""
    return max(1, tiles(max_len, block))


def sum_places() -> Launch:
    """Sum over programs of their parts of the gradients of biases and decay, in order."""
    return Launch(blocks={"BLOCK_G": 128, "BLOCK_C": 16}, num_warps=4, num_stages=2)


def sum_groups(places: int) -> int:
    """Groups that are summed side by side before their sums are."""
    return 1 if places <= 256 else min(32, tiles(places, 128))


def _attention_columns(width: int, kinds: int) -> dict[str, int]:
    return {"BLOCK_D": next_power_of_2(max(width, LEAST_COLUMNS)), "BLOCK_M": next_power_of_2(max(kinds, 16))}
