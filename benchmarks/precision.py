"""How wrong a result may be, in each precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from physiofast.ops import reference

IEEE, TF32X3 = 1e-6, 4e-6
"""Largest error over the largest value of float32 results: of IEEE products, and of three products in TF32 each."""


def errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Of each result its largest error over its largest value; infinite where one is not finite or of another shape.

    A result that is zero but for rounding, such as a gradient that cancels, is compared with the largest of all.
    """
    largest = [float(want.detach().abs().max()) if want.numel() else 0.0 for want in exact]
    most = max(largest, default=0.0)
    scales = [own if own > 1e-6 * most else most for own in largest]
    return [_error(have, want, scale) for have, want, scale in zip(found, exact, scales, strict=True)]


def _error(found: Tensor, exact: Tensor, scale: float) -> float:
    found, exact = found.detach().double(), exact.detach().double()
    if found.shape != exact.shape or not found.isfinite().all():
        return float("inf")
    worst = float((found - exact).abs().max()) if exact.numel() else 0.0
    return worst / scale if scale else worst


def limit(dtype: torch.dtype, plain: float, tf32x3: bool = False, slack: float = 1.0) -> float:
    """Largest error that is allowed.

    In 16 bits: twice that of the same formula in PyTorch's arithmetic of that precision. Rounding an exact result is
    allowed always, and four units in the last place are the most, however badly plain arithmetic does.

    Args:
        dtype: of the result's inputs.
        plain: error of the formula in PyTorch's own arithmetic; see `plain_arithmetic`.
        tf32x3: whether products of float32 are three in TF32.
        slack: times the limit of IEEE products, in 32 and 64 bits; not that of 16 bits and of TF32.
    """
    if dtype in (torch.float16, torch.bfloat16):
        unit = torch.finfo(dtype).eps
        return min(max(2 * plain, unit / 2), 4 * unit)
    if dtype == torch.float64:
        return slack * 1e-12
    return TF32X3 if tf32x3 else slack * IEEE


@contextlib.contextmanager
def plain_arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Within it, definitions compute in `dtype` throughout, as plain PyTorch would, and not in wider sums."""
    before = reference.accumulator, reference.FORBIDDEN
    reference.accumulator = lambda *tensors: dtype
    reference.FORBIDDEN = max(reference.FORBIDDEN, torch.finfo(dtype).min)  # float16 has no number as low
    try:
        yield
    finally:
        reference.accumulator, reference.FORBIDDEN = before


@contextlib.contextmanager
def products(name: str) -> Iterator[None]:
    """Within it, float32 products of the kernels are IEEE (`highest`) or three in TF32 each (`high`)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
