"""Conversion of tensors to the arrays that the C++ engine takes, without a copy where possible."""

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
    """Return x as an array of the same memory, to read or to write.

    `Tensor.numpy` would do so too, but it forbids for good that the storage is resized, which
    `torch.distributed.fsdp.fully_shard` does to free parameters between their uses.
    """
    assert x.is_cpu, x.device
    return _native.lend(x.data_ptr(), x.shape, x.stride(), _TYPES[x.dtype], x)


def array(x: Tensor) -> np.ndarray[Any, Any]:
    """Return x as a contiguous array, as the engine takes everything but features."""
    return lent(x.detach().contiguous())


def features(x: Tensor) -> np.ndarray[Any, Any]:
    """Return features x [n, D] as an array, without a copy if the features of a row are contiguous."""
    x = x.detach()
    return lent(x if x.stride(1) == 1 else x.contiguous())
