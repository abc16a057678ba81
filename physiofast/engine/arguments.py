"""Checks of arguments that precede both the C++ engine and the twins, so that both raise the same errors."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_NO_VALUE = 2**62


def whole(name: str, value: Any) -> int:
    """Return `value` as int; reject anything without `__index__`, such as a float.

    Raises:
        ValueError: not a whole number; the message begins with `name`.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; found {value!r}") from None


def whole_or_none(name: str, value: Any) -> int | None:
    """Return `value` as int, or None if it is None; see `whole`."""
    return None if value is None else whole(name, value)


def invalid_values(name: str, values: Iterable[Any]) -> npt.NDArray[np.int64]:
    """Convert each channel's invalid value to int64 [n]; None becomes a number that no sample can have.

    Args:
        name: name of an entry in messages, with `{}` for the channel.
        values: for each channel the stored value that marks a missing sample, or None.

    Raises:
        ValueError: an entry that is neither a whole number nor None.
    """
    numbers = [whole_or_none(name.format(i), value) for i, value in enumerate(values)]
    return np.array([_NO_VALUE if x is None or abs(x) > _NO_VALUE else x for x in numbers], np.int64)


def whole_numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Convert whole numbers to a C-contiguous int64 [n].

    Raises:
        ValueError: not whole numbers, or not one-dimensional.
    """
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"{name}: expected whole numbers [n], found {given.dtype} {list(given.shape)}")
    return np.ascontiguousarray(given, np.int64)


def patch_lengths(values: Any, sizes: list[int]) -> list[int]:
    """Check the number of samples per patch of each channel, and limit it to the length of the channel's signal.

    Raises:
        ValueError: not a whole number, or below 1.
    """
    lengths = [whole(f"patch {c}", value) for c, value in enumerate(values)]
    for c, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"patch {c} must be 1 sample or more; found {length}")
    return [min(length, max(size, 1)) for length, size in zip(lengths, sizes, strict=True)]


def kept_patches(keep: Any, lengths: list[int], sizes: list[int]) -> list[npt.NDArray[np.bool_]]:
    """Convert each channel's mask of kept patches to C-contiguous bool [P], cut to the patches that have samples.

    Raises:
        ValueError: a mask that is not one-dimensional.
    """
    kept = []
    for c, (item, length, size) in enumerate(zip(keep, lengths, sizes, strict=True)):
        given = np.ascontiguousarray(item, np.bool_)
        if np.ndim(item) != 1:
            raise ValueError(f"keep {c} needs bool [P], found shape {list(np.shape(item))}")
        kept.append(given[: -(-size // length)])
    return kept
