"""What kernels compute in: their sums, the operands of their products, and how float32 is multiplied."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from physiofast.ops.backends import float32_precision


def accumulate_in(*dtypes: torch.dtype) -> tl.dtype:
    """Triton's name of the accumulator's dtype, for arguments of some dtypes."""
    return tl.float64 if torch.float64 in dtypes else tl.float32


def is_exact() -> bool:
    """Whether PyTorch is set to multiply float32 in full."""
    return float32_precision() == "highest"


def products(operands: torch.dtype, exact: bool, *others: torch.dtype) -> dict[str, Any]:
    """Constants of a kernel that multiplies.

    Args:
        operands: the dtype that is multiplied, unless sums are of float64.
        exact: whether float32 is multiplied in full, or as three products of TF32.
        others: further dtypes of arguments that sums are made of.
    """
    acc = accumulate_in(operands, *others)
    return {
        "ACC": acc,
        "OPERAND": acc if acc == tl.float64 else _NAMES[operands],
        "PRECISION": "ieee" if exact else "tf32x3",
    }


_NAMES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
