"""Tensors as the arrays that the C++ engine takes, where they lie if they can."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def array(x: Tensor) -> np.ndarray[Any, Any]:
    """x densely, as integers and what belongs to rows are taken."""
    return x.detach().contiguous().numpy()


def features(x: Tensor) -> np.ndarray[Any, Any]:
    """x [n, D], where it lies if a row's features are side by side."""
    x = x.detach()
    return (x if x.stride(1) == 1 else x.contiguous()).numpy()
