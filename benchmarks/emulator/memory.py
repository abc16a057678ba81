"""Global and shared memory, where every access is looked at."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
WORDS = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}
POISON = 0xFF
"""Bytes that nobody has written: NaN in every format of floats, -1 in every one of ints."""


class FaultError(Exception):
    """What a GPU would refuse, or may answer with anything."""


class Space:
    """Bytes with addresses from 0 on.

    Args:
        size: bytes.
        what: its name, for errors.
    """

    def __init__(self, size: int, what: str) -> None:
        self.bytes = np.full(size + -size % 16, POISON, np.uint8)
        self.what = what
        self.views = {width: self.bytes.view(kind) for width, kind in WORDS.items()}

    def load(self, who: Array, addresses: Array, width: int, count: int) -> list[Array]:
        """`count` words of `width` bytes that lie side by side, at each address, for each of these threads."""
        self.check(addresses, width * count)
        first = addresses // width
        return [self.views[width][first + i] for i in range(count)]

    def store(self, who: Array, addresses: Array, words: Sequence[Array]) -> None:
        """The reverse of `load`."""
        width = words[0].dtype.itemsize
        self.check(addresses, width * len(words))
        first = addresses // width
        for i, word in enumerate(words):
            self.views[width][first + i] = word
            if np.any(self.views[width][first + i] != word):
                raise FaultError(f"threads store different values in one place of {self.what}")

    def check(self, addresses: Array, size: int) -> None:
        """Raises `FaultError` where bytes are not there, or do not begin at a multiple of their size."""
        if addresses.size == 0:
            return
        askew = addresses % size != 0
        if askew.any():
            wrong = int(addresses[askew][0])
            raise FaultError(f"{size} bytes of {self.what} at {wrong:#x}, which is no multiple of {size}")
        if addresses.min() < 0 or addresses.max() + size > len(self.bytes):
            raise FaultError(f"{size} bytes of {self.what} at {int(addresses.max()):#x}, of {len(self.bytes):#x}")


class Global(Space):
    """Copies of tensors, and nothing between them.

    Args:
        tensors: what a kernel is given; those of one storage stay as they lie to each other.
    """

    BASE = 1 << 40
    _GAP = 512

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        spans = {(one.data_ptr(), one.data_ptr() + one.nbytes()) for one in (t.untyped_storage() for t in tensors)}
        if any(end > begin for (_, end), (begin, _) in itertools.pairwise(sorted(spans))):
            raise ValueError("two tensors share memory by storages of their own, of which each would have a copy")
        begins: dict[int, int] = {}
        size = self._GAP
        self._storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        for address, storage in self._storages.items():
            size += -size % self._GAP + address % self._GAP  # as far from a multiple of 16 as it is
            begins[address] = size
            size += storage.nbytes() + self._GAP
        super().__init__(size, "global memory")
        self._begins = begins
        self.is_there = np.zeros(len(self.bytes), bool)
        for tensor in tensors:
            begin, size = self._place(tensor), _span(tensor)
            self.is_there[begin : begin + size] = True
        for address, storage in self._storages.items():
            begin = begins[address]
            self.bytes[begin : begin + storage.nbytes()] = _bytes(storage)

    def _place(self, tensor: Tensor) -> int:
        address = tensor.untyped_storage().data_ptr()
        return self._begins[address] + tensor.data_ptr() - address

    def pointer(self, tensor: Tensor) -> int:
        """What the kernel is given."""
        return self.BASE + self._place(tensor)

    def check(self, addresses: Array, size: int) -> None:
        super().check(addresses, size)
        outside = ~(self.is_there[addresses] & self.is_there[addresses + size - 1])
        if outside.any():
            wrong = int(addresses[np.flatnonzero(outside)[0]])
            raise FaultError(f"{size} bytes of global memory at {wrong:#x}, where no tensor is")

    def copy_back(self) -> None:
        """What was written goes into the tensors."""
        for address, storage in self._storages.items():
            begin = self._begins[address]
            _bytes(storage)[:] = self.bytes[begin : begin + storage.nbytes()]


def _span(tensor: Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _bytes(storage: torch.UntypedStorage) -> Array:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()  # type: ignore[call-overload, no-any-return]
