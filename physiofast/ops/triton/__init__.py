"""Triton kernels of the ops, and whether they can run here. Importing this does not touch a device."""

from __future__ import annotations

import functools
import importlib.util
import os
import re

import torch

MIN_CAPABILITY = (8, 0)
"""Smallest compute capability of a GPU that the kernels are compiled and checked for."""


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, as `TRITON_INTERPRET=1` asks before they are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def version() -> tuple[int, ...]:
    """The installed Triton's version, such as (3, 7, 1), whatever kind of release it is."""
    import triton

    return tuple(map(int, re.findall(r"\d+", triton.__version__)[:3]))


@functools.cache
def refusal(device: str) -> str | None:
    """Why kernels cannot run on tensors of a device type, in one sentence; None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run: pip install triton"
    if device == "cpu":
        wanted = "kernels run on CPU tensors in Triton's interpreter only; set TRITON_INTERPRET=1 before they are used"
        return None if is_interpreted() else wanted
    if device != "cuda":
        return f"there are no kernels for {device} tensors"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    found, number = min((torch.cuda.get_device_capability(n), n) for n in range(torch.cuda.device_count()))
    if found < MIN_CAPABILITY:
        needed, has = (".".join(map(str, version)) for version in (MIN_CAPABILITY, found))
        return (
            f"the kernels need GPUs of compute capability {needed} or more; cuda:{number} has {has}: leave it out with "
            "CUDA_VISIBLE_DEVICES if there are others"
        )
    return None
