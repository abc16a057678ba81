"""The threads on which the C++ forms of ops run, which are PyTorch's own.

After an op PyTorch's threads spin for milliseconds, waiting for the next one. A second pool would compete with them for
the cores: on two cores attention took a third longer.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from physiofast import _native


def workers() -> _native.Workers:
    """As many workers as PyTorch has threads: those of its OpenMP team if it has one, else threads of the engine."""
    return _workers(torch.get_num_threads())


@functools.cache
def _workers(count: int) -> _native.Workers:
    return _native.Workers(count, 0 if _is_fork else team_start())


def team_start() -> int:
    """Address of the function that starts a team, in the OpenMP library that PyTorch is linked with; 0 for none."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):  # a build that has no OpenMP, or another name
        return 0


_is_fork = False


def _leave_team() -> None:
    """Use the engine's own threads in a fork, which has none of its parent's: OpenMP would wait for them forever."""
    global _is_fork
    _is_fork = True
    _workers.cache_clear()


os.register_at_fork(after_in_child=_leave_team)
