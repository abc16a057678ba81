"""Unpacks samples of the WFDB formats: the definition that `csrc/formats.cpp` is tested against.

Source: https://physionet.org/physiotools/wag/signal-5.htm. EDF stores format 16, BDF format 24.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.int16] | npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A storage format, in which groups of samples fill whole bytes."""

    number: int
    """The format's number in WFDB headers."""
    dtype: type[np.int16] | type[np.int32]
    """Smallest type that represents every sample."""
    part_bytes: tuple[int, ...]
    """Number of bytes that hold the first 0, 1, ... samples of a group, up to the whole group."""
    unpack: Callable[[Bytes], Stored]
    """Converts whole groups, uint8 [groups, bytes], to samples [groups, samples]; for format 8 to differences."""

    @property
    def group_samples(self) -> int:
        """Number of samples in a group."""
        return len(self.part_bytes) - 1

    @property
    def group_bytes(self) -> int:
        """Number of bytes in a group."""
        return self.part_bytes[-1]

    def num_bytes(self, samples: int) -> int:
        """Number of bytes that hold the first `samples` samples of a file."""
        groups, rest = divmod(samples, self.group_samples)
        return groups * self.group_bytes + self.part_bytes[rest]

    def num_samples(self, size: int) -> int:
        """Number of samples that `size` bytes hold."""
        groups, rest = divmod(size, self.group_bytes)
        part = max(count for count in range(self.group_samples) if self.part_bytes[count] <= rest)
        return groups * self.group_samples + part


def _view(stored: str, offset: int = 0) -> Callable[[Bytes], Stored]:
    def unpack(raw: Bytes) -> Stored:
        values = raw.view(stored).astype(np.int32) - offset
        return values if raw.shape[1] == 4 else values.astype(np.int16)

    return unpack


def _signed(values: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.int16]:
    """Interpret the low bits of each value as a two's complement number."""
    low = values & ((1 << bits) - 1)
    return (low - ((low >> (bits - 1)) << bits)).astype(np.int16)


def _unpack_8(raw: Bytes) -> Stored:
    return raw.view(np.int8).astype(np.int32)


def _unpack_24(raw: Bytes) -> Stored:
    low, middle, high = (raw[:, i : i + 1].astype(np.int32) for i in range(3))
    return low + (middle << 8) + ((high - ((high >> 7) << 8)) << 16)


def _unpack_212(raw: Bytes) -> Stored:
    first, middle, second = (raw[:, i].astype(np.int32) for i in range(3))
    return _signed(np.stack([first + (middle << 8), second + ((middle >> 4) << 8)], axis=1), 12)


def _unpack_310(raw: Bytes) -> Stored:
    low, high = (raw.view("<u2")[:, i].astype(np.int32) for i in range(2))
    return _signed(np.stack([low >> 1, high >> 1, (low >> 11) + ((high >> 11) << 5)], axis=1), 10)


def _unpack_311(raw: Bytes) -> Stored:
    word = raw.view("<u4")[:, 0].astype(np.int64)
    return _signed(np.stack([word, word >> 10, word >> 20], axis=1).astype(np.int32), 10)


FORMATS = {
    fmt.number: fmt
    for fmt in (
        Format(number=8, dtype=np.int32, part_bytes=(0, 1), unpack=_unpack_8),
        Format(number=16, dtype=np.int16, part_bytes=(0, 2), unpack=_view("<i2")),
        Format(number=24, dtype=np.int32, part_bytes=(0, 3), unpack=_unpack_24),
        Format(number=32, dtype=np.int32, part_bytes=(0, 4), unpack=_view("<i4")),
        Format(number=61, dtype=np.int16, part_bytes=(0, 2), unpack=_view(">i2")),
        Format(number=80, dtype=np.int16, part_bytes=(0, 1), unpack=_view("u1", 128)),
        Format(number=160, dtype=np.int16, part_bytes=(0, 2), unpack=_view("<u2", 32768)),
        Format(number=212, dtype=np.int16, part_bytes=(0, 2, 3), unpack=_unpack_212),
        Format(number=310, dtype=np.int16, part_bytes=(0, 2, 4, 4), unpack=_unpack_310),
        Format(number=311, dtype=np.int16, part_bytes=(0, 2, 3, 4), unpack=_unpack_311),
    )
}
"""Format number -> format."""


def unpack(fmt: Format, raw: Bytes, count: int) -> Stored:
    """Unpack samples from bytes that begin with a group and may end within one.

    Args:
        fmt: the format.
        raw: uint8 [fmt.num_bytes(count)].
        count: number of samples.

    Returns:
        `fmt.dtype` [count]; for format 8 the differences.
    """
    groups = -(-count // fmt.group_samples)
    whole = np.zeros(groups * fmt.group_bytes, np.uint8)
    whole[: raw.size] = raw
    return fmt.unpack(whole.reshape(groups, fmt.group_bytes)).reshape(-1)[:count]
