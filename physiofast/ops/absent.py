"""Small constant tensors that stand for arguments which were left out."""

from __future__ import annotations

import torch
from torch import Tensor

from physiofast.ops.calling import is_watched

_kept: dict[tuple[object, ...], Tensor] = {}


def filled(value: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of one value, to be read and never written: calls with the same arguments share it where they may."""
    if torch.compiler.is_compiling() or is_watched():
        return torch.full(shape, value, dtype=dtype, device=device)
    key = (value, shape, dtype, device)
    found = _kept.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = torch.full(shape, value, dtype=dtype, device=device)
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():  # it is filled when the graph runs, and not before
                return found
            torch.cuda.current_stream(device).synchronize()  # whoever reads it may be on another stream
        _kept[key] = found
    return found
