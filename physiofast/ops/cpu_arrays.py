"""Tensors as the arrays that the C++ engine takes, where they lie if they can."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.engine import native

if native:
    from physiofast import _native

_NAMES = ("bool", "uint8", "int16", "int32", "int64", "float32", "float64")
_TYPES = {getattr(torch, name): np.dtype(name) for name in _NAMES}


def lent(x: Tensor) -> np.ndarray[Any, Any]:
    """x as an array of the same memory, to read or to write.

    `Tensor.numpy` does so too, but tells the storage for good that it may not be resized, which whoever frees
    parameters between their uses has to do (`torch.distributed.fsdp.fully_shard`).
    """
    return _native.lend(x.data_ptr(), x.shape, x.stride(), _TYPES[x.dtype], x)


def array(x: Tensor) -> np.ndarray[Any, Any]:
    """x densely, as integers and what belongs to rows are taken."""
    return lent(x.detach().contiguous())


def features(x: Tensor) -> np.ndarray[Any, Any]:
    """x [n, D], where it lies if a row's features are side by side."""
    x = x.detach()
    return lent(x if x.stride(1) == 1 else x.contiguous())
