"""Allocates the arrays that the engine returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.engine.native import native

if native:
    from physiofast import _native

_LEAST_BYTES = 1 << 20


def empty(shape: int | Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Allocate an uninitialised array, as `numpy.empty` does, but reusing memory of freed arrays.

    The system clears fresh memory page by page on first use, which takes longer than decoding into it. Arrays of 1 MB
    or more therefore reuse the memory of freed ones, of which up to 256 MB are kept; the system may reclaim it at any
    time. The engine allocates its results with this function.

    Args:
        shape: number of samples, or of samples in each dimension.
        dtype: a numeric type.

    Raises:
        ValueError: a negative number of samples, or a dtype of Python objects.
        MemoryError: not enough memory.
    """
    wanted = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise ValueError(f"empty needs a type of plain numbers, found {kind}")
    size = math.prod(map(int, wanted)) * kind.itemsize
    if not native or size < _LEAST_BYTES or size >= 2**62 or min(wanted) < 0:
        return np.empty(wanted, kind)
    return _native.empty(size).view(kind).reshape(wanted)
