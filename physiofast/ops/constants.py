"""Cache of small constant tensors that stand for arguments which callers leave out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from physiofast.ops.watching import is_watched

_kept: dict[tuple[object, ...], Tensor] = {}
_MOST_KEPT = 1024
"""Most tensors that are kept. Later ones are made anew; those kept stay, since graphs may have captured them."""


def filled(value: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor filled with one value, which may be shared with other calls; nobody may write to it."""
    make = lambda: torch.full(shape, value, dtype=dtype, device=device)  # noqa: E731
    return shared((value, shape, dtype), make, device)


def shared(what: tuple[object, ...], make: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Return a constant tensor, which calls with the same `what` and device share where they may.

    Args:
        what: names the constant; equal names mean equal tensors.
        make: makes the tensor where none is kept. Nobody may write to it.
        device: of the tensor.
    """
    if torch.compiler.is_compiling() or is_watched():
        return make()
    kept = _kept.get((*what, device))
    if kept is None and len(_kept) >= _MOST_KEPT:
        return make()
    if kept is None:
        with torch.inference_mode(False):
            kept = make()
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():  # it is filled when the graph runs, and not before
                return kept
            torch.cuda.current_stream(device).synchronize()  # whoever reads it may be on another stream
        _kept[(*what, device)] = kept
    return kept
