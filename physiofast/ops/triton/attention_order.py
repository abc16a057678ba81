"""Which windows a program of attention takes.

How a window is computed follows from its own length alone; what is here says only which program does it. Those of at
most a block are taken where they stand, the shortest with those beside them. Longer ones come in the order of their
lengths, by powers of two, which a program of the first kernel of a pass finds while the others do the short windows: so
nothing waits for it, neither another start nor the host.
"""

from __future__ import annotations

import triton
import triton.language as tl

BOUNDS = 10
"""Windows are counted by whether they have more tokens than 0, 16, 32, 64, ... 2,048; of the last bound none has."""
_BOUNDS = tl.constexpr(BOUNDS)


@triton.constexpr_function
def _bound(length):
    """Number of a bound: of 0, or of a power of two from 16 on."""
    assert length in (0, *(8 << c for c in range(1, BOUNDS - 1))), length
    return (length // 8).bit_length() - 1 if length else 0


@triton.jit
def _longer_side(cu_q, cu_k, b, B):
    """Queries or keys of windows b, whichever are more; -1 of none."""
    there = b < B
    queries = tl.load(cu_q + b + 1, mask=there, other=-1) - tl.load(cu_q + b, mask=there, other=0)
    keys = tl.load(cu_k + b + 1, mask=there, other=-1) - tl.load(cu_k + b, mask=there, other=0)
    return tl.maximum(queries, keys)


@triton.jit
def _class_of(length):
    """How many bounds windows are longer than."""
    number = (length > 0).to(tl.int32)
    for c in tl.static_range(1, _BOUNDS - 1):
        number += (length > (8 << c)).to(tl.int32)
    return number


@triton.jit
def _ones(number):
    """A one in the counter of each window's class: classes 0 to 5 in the first of two numbers, 10 bits each."""
    one = tl.full(number.shape, 1, tl.int64) << _shift(number)
    return tl.where(number < 6, one, 0), tl.where(number < 6, 0, one)


@triton.jit
def _shift(number):
    """Where the counter of a class begins."""
    return (number % 6 * 10).to(tl.int64)


@triton.jit
def _counted(counts, low, high):
    """counts, one of each class, and what these counters hold."""
    updated = ()
    for c in tl.static_range(_BOUNDS):
        counters = low if c < 6 else high
        updated = updated + (counts[c] + ((counters >> (c % 6 * 10)) & 1023).to(tl.int32),)  # type: ignore[assignment]  # noqa: RUF005
    return updated


@triton.jit
def put_in_order(
    cu_q,  # [B + 1]
    cu_k,  # [B + 1]
    order,  # [B + BOUNDS]: windows, the longest first by powers of two; how many are longer than each bound
    B,
    BLOCK_B: tl.constexpr,
):
    """A counting sort by one program: how many windows are of each class, then the place of each window.

    BLOCK_B windows at a time, fewer than a counter of 10 bits holds. Those from B on are of the class that comes last.
    """
    tl.static_assert(BLOCK_B < 1024)
    counts = ()
    for _ in tl.static_range(_BOUNDS):
        counts = counts + (tl.full([], 0, tl.int32),)  # type: ignore[assignment]  # noqa: RUF005
    for begin in range(0, B, BLOCK_B):
        low, high = _ones(_class_of(_longer_side(cu_q, cu_k, begin + tl.arange(0, BLOCK_B), B)))
        counts = _counted(counts, tl.sum(low, 0), tl.sum(high, 0))

    longer = ()
    total = tl.full([], 0, tl.int32)
    for c in tl.static_range(_BOUNDS):
        longer = (total,) + longer  # type: ignore[assignment]  # noqa: RUF005
        tl.store(order + B + _BOUNDS - 1 - c, total)
        total += counts[_BOUNDS - 1 - c]

    for begin in range(0, B, BLOCK_B):
        b = begin + tl.arange(0, BLOCK_B)
        number = _class_of(_longer_side(cu_q, cu_k, b, B))
        low, high = _ones(number)
        counters = tl.where(number < 6, tl.cumsum(low, 0), tl.cumsum(high, 0))
        place = ((counters >> _shift(number)) & 1023).to(tl.int32) - 1
        for c in tl.static_range(_BOUNDS):
            place += tl.where(number == c, longer[c], 0)
        tl.store(order + place, b, mask=b < B)
        longer = _counted(longer, tl.sum(low, 0), tl.sum(high, 0))


@triton.jit
def longer_than(order, B, LENGTH: tl.constexpr):
    """Windows of more tokens than this bound; in `order` they come before the others."""
    return tl.load(order + B + _bound(LENGTH))


@triton.jit
def window_between(order, B, place, ABOVE: tl.constexpr, UPTO: tl.constexpr):
    """(the window at a place among those of more than ABOVE and at most UPTO tokens, whether there is one).

    With UPTO 0 they may have any number of tokens.
    """
    if UPTO > 0:
        place += longer_than(order, B, UPTO)
    is_there = place < longer_than(order, B, ABOVE)
    return tl.load(order + place, mask=is_there, other=0), is_there


@triton.jit
def rows_of_slots(cu_q, cu_k, b, B, bits, BLOCK: tl.constexpr):
    """For each row of the tile that window b shares [BLOCK]: begin and end of its window's queries, and of its keys.

    Row i is token begin + i where i < end. The tile has slots of 2^bits tokens for b and the windows beside it; a
    window that needs slots of another size has no rows. Last: whether an earlier window already owns the tile.
    """
    tl.static_assert(BLOCK >= 32)  # of slots of 16 or 32
    slot = tl.arange(0, BLOCK) >> bits
    longest = 1 << bits
    first = b - b % (BLOCK >> bits)
    is_taken = first < 0
    begins_q, ends_q, begins_k, ends_k = slot * 0, slot * 0, slot * 0, slot * 0
    for s in tl.static_range(BLOCK // 16):  # scalars: blocks would be loaded again for each layout
        there = (first + s < B) & (s < BLOCK >> bits)
        begin_q = tl.load(cu_q + first + s, mask=there, other=0)
        begin_k = tl.load(cu_k + first + s, mask=there, other=0)
        length_q = tl.load(cu_q + first + s + 1, mask=there, other=0) - begin_q
        length_k = tl.load(cu_k + first + s + 1, mask=there, other=0) - begin_k
        length = tl.maximum(length_q, length_k)
        alike = (length <= longest) & (length > tl.where(bits > 4, longest // 2, 0))
        is_taken = is_taken | (alike & (first + s < b))
        mine = (slot == s) & alike
        begins_q = tl.where(mine, begin_q - (s << bits), begins_q)
        begins_k = tl.where(mine, begin_k - (s << bits), begins_k)
        ends_q = tl.where(mine, length_q + (s << bits), ends_q)
        ends_k = tl.where(mine, length_k + (s << bits), ends_k)
    return begins_q, ends_q, begins_k, ends_k, is_taken
