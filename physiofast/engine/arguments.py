"""Checks of arguments, before the C++ engine or a twin sees them, so that both refuse the same in the same words."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_NO_VALUE = 2**62


def whole(name: str, value: Any) -> int:
    """A whole number; one that NumPy would have to round is none.

    Raises:
        ValueError: something else.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; found {value!r}") from None


def whole_or_none(name: str, value: Any) -> int | None:
    """As `whole`, where None says that there is no such number."""
    return None if value is None else whole(name, value)


def invalid_values(name: str, values: Iterable[Any]) -> npt.NDArray[np.int64]:
    """int64 [n], for each channel the stored value that is no sample; a number that no sample has where there is none.

    `name` has a `{}` for the channel.

    Raises:
        ValueError: an entry that is neither a whole number nor None.
    """
    found = [whole_or_none(name.format(i), value) for i, value in enumerate(values)]
    return np.array([_NO_VALUE if x is None or abs(x) > _NO_VALUE else x for x in found], np.int64)


def whole_numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """C-contiguous int64 [n].

    Raises:
        ValueError: other numbers, or another shape.
    """
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"{name}: expected whole numbers [n], found {given.dtype} {list(given.shape)}")
    return np.ascontiguousarray(given, np.int64)


def patch_lengths(values: Any, sizes: list[int]) -> list[int]:
    """Samples of a patch for each channel. One that is longer than its signal holds all of it, as one of its length.

    Raises:
        ValueError: no whole number, or less than 1 sample.
    """
    lengths = [whole(f"patch {c}", value) for c, value in enumerate(values)]
    for c, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"patch {c} must be 1 sample or more; found {length}")
    return [min(length, max(size, 1)) for length, size in zip(lengths, sizes, strict=True)]


def kept_patches(keep: Any, lengths: list[int], sizes: list[int]) -> list[npt.NDArray[np.bool_]]:
    """C-contiguous bool [P] for each channel, of patches that have samples.

    Raises:
        ValueError: another shape.
    """
    kept = []
    for c, (item, length, size) in enumerate(zip(keep, lengths, sizes, strict=True)):
        given = np.ascontiguousarray(item, np.bool_)
        if np.ndim(item) != 1:
            raise ValueError(f"keep {c} needs bool [P], found shape {list(np.shape(item))}")
        kept.append(given[: -(-size // length)])
    return kept
