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
    return (length // 8).bit_length() - 1 if length else 0


@triton.jit
def _longer_side(cu_q, cu_k, b, B):
    """Queries or keys of windows b, whichever are more; -1 of none."""
    there = b < B
    queries = tl.load(cu_q + b + 1, mask=there, other=-1) - tl.load(cu_q + b, mask=there, other=0)
    keys = tl.load(cu_k + b + 1, mask=there, other=-1) - tl.load(cu_k + b, mask=there, other=0)
    return tl.maximum(queries, keys)


@triton.jit
def put_in_order(
    cu_q,  # [B + 1]
    cu_k,  # [B + 1]
    order,  # [B + BOUNDS]: windows, the longest first by powers of two; how many are longer than each bound
    B,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A counting sort by one program: how many windows are longer than each bound, then the place of each window."""
    c = tl.arange(0, BLOCK_C)[None, :]
    bound = tl.where(c == 0, 0, 8 << tl.minimum(c, _BOUNDS))
    least = tl.where(c == 0, -1, tl.where(c == 1, 0, bound // 2))  # longer ones have the bound, if not longer than it
    is_last = c == _BOUNDS - 1
    longer = tl.zeros([1, BLOCK_C], tl.int32)
    for begin in range(0, B, BLOCK_B):
        length = _longer_side(cu_q, cu_k, begin + tl.arange(0, BLOCK_B), B)[:, None]
        longer += tl.sum(((length > bound) & ~is_last).to(tl.int32), 0)[None, :]
    tl.store(order + B + c, longer, mask=c < _BOUNDS)

    for begin in range(0, B, BLOCK_B):
        b = begin + tl.arange(0, BLOCK_B)
        length = _longer_side(cu_q, cu_k, b, B)[:, None]
        here = ((length > least) & ((length <= bound) | is_last) & (c < _BOUNDS)).to(tl.int32)
        place = longer + tl.cumsum(here, 0) - 1
        tl.store(order + tl.sum(here * place, 1), b, mask=b < B)
        longer += tl.sum(here, 0)[None, :]


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
    """Of windows that share a tile of BLOCK with window b, as rows of the tile see them, [BLOCK] each.

    First query, where queries end, first key, where keys end: row i of the tile is token begin + i where i < end. They
    lie side by side with b, in slots of 2^bits tokens; one of other lengths has no rows. Then whether an earlier window
    has this tile.
    """
    slot = tl.arange(0, BLOCK) >> bits
    longest = 1 << bits
    first = b - b % (BLOCK >> bits)
    is_taken = first < 0
    begins_q, ends_q, begins_k, ends_k = slot * 0, slot * 0, slot * 0, slot * 0
    for s in tl.static_range(BLOCK // 16):  # numbers: blocks of them would be loaded anew wherever rows lie otherwise
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
