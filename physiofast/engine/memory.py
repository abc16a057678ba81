"""Memory for what the engine returns."""

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
    """A new array of any content, as `numpy.empty`, for an `out` or for work of your own.

    Fresh memory is cleared by the system page by page when it is first written, which takes longer than decoding
    into it. Arrays of 1 MB or more therefore take over memory of others that were freed before, of which up to 256 MB
    are kept; the system may take those back at any time. What the engine returns is made by this function.

    Args:
        shape: samples, or samples of each dimension.
        dtype: a type of plain numbers.

    Raises:
        ValueError: a negative number of samples, or a type of objects.
        MemoryError: there is not so much.
    """
    wanted = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise ValueError(f"empty needs a type of plain numbers, found {kind}")
    size = math.prod(map(int, wanted)) * kind.itemsize
    if not native or size < _LEAST_BYTES or size >= 2**62 or min(wanted) < 0:
        return np.empty(wanted, kind)
    return _native.empty(size).view(kind).reshape(wanted)
