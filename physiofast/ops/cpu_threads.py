"""The threads that the C++ forms of ops work on: PyTorch's own.

After an op PyTorch's threads wait for the next one spinning, for milliseconds. A second pool would get what they leave
of the cores: on two cores attention took a third longer.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import torch

from physiofast import _native


def workers() -> Any:
    """As many threads as PyTorch works on: its team's if it has one by OpenMP, or else the engine's."""
    return _workers(torch.get_num_threads())


@functools.cache
def _workers(count: int) -> Any:
    return _native.Workers(count, _team_start())


def _team_start() -> int:
    """Address of the function that starts a team in the very OpenMP library that PyTorch is linked with; 0: none."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):  # a build that has no OpenMP, or another name
        return 0
