"""Launch geometry: blocks, warps and stages of every kernel as functions of shapes, never of a device.

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
    max_registers: int | None = None
    """Register cap per thread: set where the compiler would take slightly more and lose a resident program; may cause
    spills."""

    @property
    def options(self) -> dict[str, int]:
        """What Triton is told beside constants."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages} | limit


LEAST_COLUMNS = 32
"""Fewest columns N of a product. With Triton 3.6 an H200 gave wrong results of 16-bit products by wgmma with N = 16, of
64 rows and more, and read outside of shared memory. Their PTX is right in the emulator, so the cause may lie behind
Triton. N is therefore padded to 32 and masked. Eight warps halve the columns of 64 rows, so they need N = 64."""


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def tiles(size: int, block: int) -> int:
    """Blocks that cover `size` elements."""
    return -(-size // block)


def masked_mse(width: int, num_modalities: int, normalised: bool, align: int) -> Launch:
    """A tile of whole patches a program: with many small ones on a multiprocessor, loads hide each other's latency.

    Args:
        width: P_max.
        num_modalities: M.
        normalised: whether the patches of some modality are.
        align: samples that a thread has side by side; of one alone it has more tokens, and their statistics.
    """
    columns = next_power_of_2(max(width, 16))
    rows = max(1, 4096 // columns)
    blocks = {"BLOCK_T": rows, "BLOCK_P": columns, "BLOCK_M": next_power_of_2(num_modalities)}
    few_warps = normalised and align > 1 and columns <= 4096
    return Launch(blocks=blocks, num_warps=4 if few_warps else 8, num_stages=1)


def sum_partials(num_modalities: int) -> Launch:
    """One program that adds what the programs of `masked_mse` found."""
    columns = next_power_of_2(num_modalities)
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


def embed_patches(length: int, width: int, size: int, ids: int, sample_size: int) -> Launch:
    """Tiles of a group's tokens times `BLOCK_D` columns of its modality's weights.

    Args:
        length: P_m.
        width: D.
        size: bytes of an element of the weights.
        ids: token ids of a group, each with a row of the table.
        sample_size: bytes of a sample.
    """
    blocks = {"BLOCK_T": 64 if size <= 2 else 32} | _embed_blocks(length, width, size)
    blocks["BLOCK_N"] = next_power_of_2(max(ids, 16))
    if size > 2:
        return Launch(blocks=blocks, num_warps=4, num_stages=1)
    if length > blocks["BLOCK_P"]:  # weights pass with the samples; more of both has no registers
        blocks |= {"BLOCK_P": 64, "BLOCK_D": min(blocks["BLOCK_D"], 64)}
        return Launch(blocks=blocks, num_warps=4, num_stages=3)
    # Five stages copy two tiles ahead, for where a tile lies is loaded too. Larger blocks have no room for them.
    is_small = sample_size <= 2 and blocks["BLOCK_N"] <= 16
    return Launch(blocks=blocks, num_warps=4, num_stages=5 if is_small else 3)


def embed_strips(tokens: int, groups: int) -> int:
    """Programs that share the tokens of a group, some hundred each."""
    return max(1, tiles(tokens, 384 * groups))


def embed_samples(length: int, width: int, size: int) -> Launch:
    """Gradient of dense samples."""
    blocks = {"BLOCK_T": 64 if size <= 2 else 32} | _embed_blocks(length, width, size)
    if size <= 2:
        blocks["BLOCK_P"] = max(blocks["BLOCK_P"], LEAST_COLUMNS)
    return Launch(blocks=blocks, num_warps=4, num_stages=2)


def embed_weights(length: int, width: int, size: int, ids: int, sample_size: int) -> Launch:
    """Gradients of a modality's weights and of rows of the table: tokens are what is summed over.

    Args:
        length: P_m.
        width: D.
        size: bytes of an element of the weights.
        ids: token ids of a group, each with a row of the table.
        sample_size: bytes of a sample.
    """
    blocks = {"BLOCK_T": 32} | _embed_blocks(length, width, size)
    blocks["BLOCK_N"] = next_power_of_2(max(ids, LEAST_COLUMNS if size <= 2 else 16))
    if size > 2:  # fewer features than 64, so that no instruction of Hopper has 16 columns
        blocks |= {"BLOCK_P": 2 * blocks["BLOCK_P"], "BLOCK_D": LEAST_COLUMNS}
        return Launch(blocks=blocks, num_warps=4, num_stages=2)
    warps = 8 if blocks["BLOCK_P"] == blocks["BLOCK_D"] == 128 else 4  # eight would halve the columns of fewer rows
    stages, most = 5 if sample_size <= 2 else 3, 128 if warps == 8 else None  # stages as in `embed_patches`
    return Launch(blocks=blocks, num_warps=warps, num_stages=stages, max_registers=most)


def _embed_blocks(length: int, width: int, size: int) -> dict[str, int]:
    samples = min(next_power_of_2(max(length, 16)), 128 if size <= 2 else 32)
    columns = next_power_of_2(max(width, LEAST_COLUMNS if size <= 2 else 16))
    return {"BLOCK_P": samples, "BLOCK_D": min(columns, 128 if size <= 2 else 64)}


def groups_of_channel(channels: int, patches: int, size: int) -> tuple[int, int]:
    """(groups that a channel's patches come in, patches of a group) for `embed_patches` and its gradients.

    A group's sums for the weights cost memory and time, so there are only as many as fill a device, or one a channel.

    Args:
        channels: C.
        patches: S.
        size: bytes of an element of the weights.
    """
    most = min(max(tiles(GROUPS, channels), tiles(patches, MOST_IDS if size <= 2 else MOST_IDS // 2)), patches)
    each = tiles(patches, most)
    return tiles(patches, each), each


GROUPS = 48
"""About so many groups of token ids, where there are so many ids and no more channels."""
MOST_IDS = 32
"""Token ids of a group; half as many beside 32-bit weights, whose blocks take more registers."""


def list_tokens(ids: int) -> Launch:
    """The tokens of a group of so many ids, of some windows at a time."""
    columns = next_power_of_2(ids)
    return Launch(blocks={"BLOCK_N": columns, "BLOCK_B": 4096 // columns}, num_warps=16, num_stages=1)


def sum_groups_of_tokens() -> Launch:
    """Sum of what programs of `embed_weights` found, in order."""
    return Launch(blocks={"BLOCK_G": 8, "BLOCK": 512}, num_warps=4, num_stages=1)


def choose_visible(tokens: int) -> Launch:
    """One window's keys, sorted: by one warp, which waits for no other, where it has registers for them."""
    columns = next_power_of_2(max(tokens, 16))
    warps = 1 if columns <= 512 else 4 if columns <= 1024 else 8
    return Launch(blocks={"BLOCK_N": columns}, num_warps=warps, num_stages=1)


def count_before() -> Launch:
    """Running sums over windows."""
    return Launch(blocks={"BLOCK_B": 1024}, num_warps=4, num_stages=1)


def pack(tokens: int) -> Launch:
    """One window's tokens to their places, and a share of the tail."""
    columns = next_power_of_2(max(tokens, 16))
    return Launch(blocks={"BLOCK_N": columns}, num_warps=2 if columns <= 512 else 8, num_stages=1)


MAX_HEAD_WIDTH = 128
"""Features of a head that the kernels of attention have room for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SortedLaunch:
    """A launch of attention's kernel for windows in the order of their lengths."""

    above: int
    """The longest window that is left to the launches before this one."""
    upto: int
    """The longest window that it does; 0: any."""
    launch: Launch

    @property
    def constants(self) -> dict[str, int]:
        """What a kernel is compiled for."""
        return {"ABOVE": self.above, "UPTO": self.upto}

    def blocks(self, max_q: int, max_k: int) -> int:
        """Blocks of queries that the longest of its windows may have, if they may have so many queries and keys."""
        if max(max_q, max_k) <= self.above:
            return 0
        return attention_blocks(min(max_q, self.upto or max_q), self.launch.blocks["BLOCK_Q"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionLaunches:
    """How attention's kernels are launched, each for windows of some lengths."""

    short: Launch
    """For windows of at most `BLOCK` tokens, in the order of the batch; program 0 sorts all windows by length."""
    shared: int
    """Windows of at most so many tokens share tiles of `BLOCK_S`, in slots of 16 or 32."""
    sorted: tuple[SortedLaunch, ...]

    @property
    def longest(self) -> int:
        """The longest window whose keys are one block."""
        return max(self.short.blocks["BLOCK"], *(one.upto for one in self.sorted), 0)


def attention(width: int, num_modalities: int, size: int, has_decay: bool) -> AttentionLaunches:
    """Forward.

    Windows of one block of queries, of one block of keys and of many have kernels of their own: registers are those of
    the largest, and decide how many programs a multiprocessor holds.

    Args:
        width: Dh.
        num_modalities: M.
        size: bytes of an element of the queries.
        has_decay: whether seconds are to be kept, too.
    """
    columns = _attention_columns(width, num_modalities)
    if size > 2:
        block = 32 if width <= 64 else 16
        warps, most = (8, 192) if width <= 64 else (4, None)
        blocks, limit = {"BLOCK": block, "BLOCK_S": block} | _ORDER | columns, None if width <= 64 else 255
        short = Launch(blocks=blocks, num_warps=warps, num_stages=1, max_registers=limit)
        blocks = {"BLOCK_Q": block, "BLOCK_K": block} | columns
        long = Launch(blocks=blocks, num_warps=warps, num_stages=1, max_registers=most)
        streams = SortedLaunch(above=block, upto=0, launch=long)
        return AttentionLaunches(short=short, shared=16 if block > 16 else 0, sorted=(streams,))
    warps = 4 if width <= 64 else 8
    blocks, most = {"BLOCK": 64, "BLOCK_S": 32} | _ORDER | columns, 128 if width > 64 and num_modalities <= 16 else None
    short = Launch(blocks=blocks, num_warps=warps, num_stages=1, max_registers=most)
    # All pairs of 64 queries and 128 keys in 168 registers of 128 threads: three programs on a multiprocessor.
    blocks = {"BLOCK_Q": 64 if width <= 64 else 128, "BLOCK_K": 128} | columns
    most = 168 if width <= 64 and num_modalities <= 16 and has_decay else None
    wide = Launch(blocks=blocks, num_warps=warps, num_stages=1, max_registers=most)
    # Two stages copy keys and values ahead, past the registers; with seconds Triton 3.6 makes more instructions.
    blocks = {"BLOCK_Q": 64, "BLOCK_K": 64} | columns
    long = Launch(blocks=blocks, num_warps=warps, num_stages=1 if has_decay else 2)
    by_length = (SortedLaunch(above=64, upto=128, launch=wide), SortedLaunch(above=128, upto=0, launch=long))
    return AttentionLaunches(short=short, shared=32, sorted=by_length)


_ORDER = {"BLOCK_B": 512}
"""Windows that the program which puts them in order takes at a time."""


def attention_whole(width: int, num_modalities: int, size: int, is_large: bool) -> AttentionLaunches:
    """Backward of windows that fit one block, by a program for each head; the others take two passes.

    Args:
        width: Dh.
        num_modalities: M.
        size: bytes of an element of the queries.
        is_large: whether seconds are to be kept beside biases that are split for tf32.
    """
    columns = _attention_columns(width, num_modalities)
    warps = 4 if width <= 64 else 8
    if size > 2:
        blocks = {"BLOCK": 16, "BLOCK_S": 16} | _ORDER | columns
        most = 128 if width <= 32 else None if width <= 64 else 168  # without, Triton 3.7 takes 80, and spills
        short = Launch(blocks=blocks, num_warps=warps, num_stages=1, max_registers=most)
        return AttentionLaunches(short=short, shared=0, sorted=())
    short = Launch(blocks={"BLOCK": 64, "BLOCK_S": 32} | _ORDER | columns, num_warps=warps, num_stages=1)
    if width > 64 or num_modalities > 16 or is_large:  # registers
        return AttentionLaunches(short=short, shared=32, sorted=())
    wide = Launch(blocks={"BLOCK_Q": 128} | columns | _columns_of_sums(num_modalities, size), num_warps=8, num_stages=1)
    return AttentionLaunches(short=short, shared=32, sorted=(SortedLaunch(above=64, upto=128, launch=wide),))


def attention_queries(width: int, num_modalities: int, size: int, has_decay: bool) -> Launch:
    """First backward pass over longer windows: a block of queries a program, over blocks of keys."""
    columns = _attention_columns(width, num_modalities) | _columns_of_sums(num_modalities, size)
    if size > 2:
        return Launch(blocks={"BLOCK": 16, "BLOCK_K": 16} | columns, num_warps=4, num_stages=2)
    if width > 64:  # of each query's sums as well there are more than registers
        columns["BLOCK_W"] = 0
    narrow = width <= 64 and num_modalities <= 16
    blocks = {"BLOCK": 64, "BLOCK_K": 32} | columns
    return Launch(blocks=blocks, num_warps=4, num_stages=1, max_registers=168 if has_decay and narrow else None)


def attention_keys(width: int, num_modalities: int, size: int, has_decay: bool) -> Launch:
    """Second backward pass over longer windows: a block of keys a program."""
    columns = _attention_columns(width, num_modalities)
    if size > 2:
        warps = 8 if width > 64 and num_modalities > 16 else 4
        return Launch(blocks={"BLOCK": 16} | columns, num_warps=warps, num_stages=1)
    # Left to themselves the assemblers of some Tritons take 168 registers for wide heads, and spill.
    most = 255 if width > 64 and not (has_decay and num_modalities > 16) else None
    block = 32 if width > 64 else 64
    # Two stages copy queries ahead, where that costs no program; with seconds it would take the last registers.
    stages = 2 if 32 < width <= 64 and num_modalities <= 16 and not has_decay else 1
    return Launch(blocks={"BLOCK": block} | columns, num_warps=4, num_stages=stages, max_registers=most)


def attention_stats(width: int, num_modalities: int, size: int) -> Launch:
    """Statistics of attention: sums of every kind stay in registers, so blocks are small."""
    columns = _attention_columns(width, num_modalities)
    if size > 2:
        return Launch(blocks={"BLOCK": 16} | columns, num_warps=4, num_stages=1)
    if width > 64 or num_modalities > 16:
        return Launch(blocks={"BLOCK": 16} | columns, num_warps=2 if width > 64 else 4, num_stages=1)
    return Launch(blocks={"BLOCK": 32} | columns, num_warps=4, num_stages=1)


def attention_blocks(max_len: int, block: int) -> int:
    """Blocks that the longest window of a batch may have."""
    return max(1, tiles(max_len, block))


def sum_places() -> Launch:
    """Sum over programs of their parts of the gradients of biases and decay, in order."""
    return Launch(blocks={"BLOCK_G": 128, "BLOCK_C": 16}, num_warps=4, num_stages=2)


def sum_groups(places: int) -> int:
    """Groups that are summed side by side before their sums are."""
    return 1 if places <= 256 else min(32, tiles(places, 128))


def _attention_columns(width: int, num_modalities: int) -> dict[str, int]:
    return {"BLOCK_D": next_power_of_2(max(width, LEAST_COLUMNS)), "BLOCK_M": next_power_of_2(max(num_modalities, 16))}


def _columns_of_sums(num_modalities: int, size: int) -> dict[str, int]:
    """Columns of the per-query sums; 0: keep only sums over all queries, which need few registers."""
    return {"BLOCK_W": next_power_of_2(max(num_modalities, LEAST_COLUMNS)) if size <= 2 else 0}
