"""Shared memory of blocks of threads, where every access is looked at, and what puts accesses in order.

Where different threads access one byte, and one of them writes something new there, they have to be in order. Threads
of a block are where all of them met in between (`bar.sync`), those of a warp also where it met (`bar.warp.sync`).
Nothing else counts: other instructions wait for a warp, too, but none promises that it sees what others wrote.

Products (`wgmma`) read shared memory by another way, the "async proxy", than everything else accesses it by, `cp.async`
included. What they read has to be fenced (`fence.proxy.async`) somewhere between (PTX ISA, "Causality Order"): by the
warp that wrote it, before the block met, or by the four warps of the product, after that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.emulator.memory import Array, FaultError, Space
from benchmarks.emulator.warps import WARP


class _Accesses:
    """When each byte was accessed last, and by whom."""

    def __init__(self, size: int) -> None:
        self.times, self.by = np.zeros(size, np.int32), np.zeros(size, np.int32)


class Shared(Space):
    """Of several blocks of threads, each with bytes of its own.

    Who accesses it is a thread's number, or one beyond these where threads do so together: `warp_of`, `block_of`.

    Args:
        blocks: how many.
        size: bytes of one.
        threads: of one.
    """

    def __init__(self, blocks: int, size: int, threads: int) -> None:
        self.size, self._step = size, size + -size % 1024
        super().__init__(blocks * self._step, "shared memory")
        self._writes, self._reads = _Accesses(len(self.bytes)), _Accesses(len(self.bytes))
        thread, warp, block = np.arange(blocks * threads), np.arange(blocks * threads // WARP), np.arange(blocks)
        self._threads, self._warps = len(thread), len(warp)
        # What all of a block do together is done by a warp of its own, behind those of threads.
        self._warp = np.concatenate([thread // WARP, warp, len(warp) + block])
        self._block = np.concatenate([thread // threads, warp * WARP // threads, block])
        self._now = 1
        """Rises where threads meet and where they fence."""
        self._met, self._met_in_warp = np.ones(blocks, np.int32), np.ones(len(warp) + blocks, np.int32)
        """When the threads of each block, and of each warp, met last."""
        self._fenced, self._fenced_and_met, self._met_and_fenced = np.ones((3, len(warp) + blocks), np.int32)
        """When each warp fenced last; when it had fenced last as its block met; when that had met as it fenced last."""

    def warp_of(self, threads: Array) -> Array:
        """Who the warps of these threads are."""
        return self._threads + self._warp[threads]  # type: ignore[no-any-return]

    def block_of(self, threads: Array) -> Array:
        """Who the blocks of these threads are."""
        return self._threads + self._warps + self._block[threads]  # type: ignore[no-any-return]

    def places(self, blocks: Array, addresses: Array, size: int) -> Array:
        """Where addresses within blocks are; `FaultError` where a block has not so many bytes."""
        local = addresses.astype(np.int64)
        outside = (local < 0) | (local + size > self.size)
        if outside.any():
            wrong = int(local[outside][0])
            raise FaultError(f"{size} bytes of shared memory at {wrong:#x}, of {self.size:#x}")
        return blocks * self._step + local

    def load(self, who: Array, addresses: Array, width: int, count: int) -> list[Array]:
        found = super().load(who, addresses, width, count)
        self.read(who, addresses, width * count)
        return found

    def read(self, who: Array, addresses: Array, size: int) -> None:
        """`FaultError` where the bytes at an address may not have what others wrote."""
        places, who = _bytes(addresses, size), who[..., None]
        if self._is_of_others(self._writes, places, who).any():
            raise FaultError("shared memory is read that another thread may not have written yet")
        last, who = self._reads, np.broadcast_to(who, places.shape)
        is_over = ~self._is_open(last, places, who)
        last.by[places[is_over]] = who[is_over]
        last.times[places] = self._now
        is_with_others = last.by[places] != who
        if is_with_others.any():
            places, who = places[is_with_others], who[is_with_others]
            is_of_warp = self._warp[last.by[places]] == self._warp[who]
            last.by[places[is_of_warp]] = self.warp_of(who[is_of_warp])
            last.by[places[~is_of_warp]] = self.block_of(who[~is_of_warp])

    def store(self, who: Array, addresses: Array, words: Sequence[Array]) -> None:
        width = words[0].dtype.itemsize
        self.check(addresses, width * len(words))
        places, who = _bytes(addresses, width * len(words)), who[..., None]
        if self._is_of_others(self._reads, places, who).any():
            raise FaultError("shared memory is written that another thread may not have read yet")
        again = self._is_of_others(self._writes, places, who).any(axis=-1)
        first = addresses[again] // width
        if any(np.any(self.views[width][first + i] != word[again]) for i, word in enumerate(words)):
            raise FaultError("shared memory is written that another thread may write with something else later")
        super().store(who, addresses, words)
        self._writes.times[places], self._writes.by[places] = self._now, who

    def meet(self, threads: Array) -> None:
        """All threads of some blocks."""
        self._now += 1
        self._met[self._block[threads]] = self._now
        has_met = self._met[self._block[self._threads :]] == self._now
        self._fenced_and_met[has_met] = self._fenced[has_met]

    def meet_in_warps(self, threads: Array) -> None:
        """All threads of some warps."""
        self._now += 1
        self._met_in_warp[self._warp[threads]] = self._now

    def fence(self, threads: Array) -> None:
        """Of whole warps."""
        self._now += 1
        warps = np.flatnonzero(np.bincount(self._warp[threads]) == WARP)
        self._fenced[warps] = self._now
        self._met_and_fenced[warps] = self._met[self._block[self._threads + warps]]

    def read_by_products(self, threads: Array, addresses: Array, size: int) -> None:
        """By [groups, 128] threads that start a product of what is at [groups, *] addresses.

        Raises:
            FaultError: the bytes may not have what others wrote, or not as products see them.
        """
        self.read(self.block_of(threads[:, :1]), addresses, size)
        places = _bytes(addresses, size)
        by_readers = self._met_and_fenced[self._warp[threads]].min(axis=1)[:, None, None]
        by_writers = self._fenced_and_met[self._warp[self._writes.by[places]]]
        if np.any(self._writes.times[places] >= np.maximum(by_readers, by_writers)):
            raise FaultError("a product reads shared memory that was written with no fence.proxy.async since")

    def _is_open(self, last: _Accesses, places: Array, who: Array) -> Array:
        """Whether nothing put what was done there in order with what these do now."""
        times = last.times[places]
        is_open: Array = times >= self._met[self._block[who]]
        if is_open.any():
            warp = self._warp[who]
            is_open &= (self._warp[last.by[places]] != warp) | (times >= self._met_in_warp[warp])
        return is_open

    def _is_of_others(self, last: _Accesses, places: Array, who: Array) -> Array:
        """Whether that is so of what others did; threads that do something together are others to each other."""
        is_open = self._is_open(last, places, who)
        if is_open.any():
            is_open &= (last.by[places] != who) | (who >= self._threads)
        return is_open


def _bytes(addresses: Array, size: int) -> Array:
    return addresses[..., None] + np.arange(size)  # type: ignore[no-any-return]
