"""A bound on memory that holds for C++ and for pages that nobody touches, neither of which tracemalloc sees.

And jobs that a process of its own runs, which imports this module alone.
"""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def little_memory(more: int) -> Iterator[None]:
    """In here the process gets no more address space than it has and `more` bytes; what asks for it fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def hoard(megabytes: int) -> Callable[[], int]:
    """A job that holds this much memory for a moment."""
    return lambda: np.ones(megabytes << 20, np.uint8).sum()


def refuse() -> Callable[[], int]:
    raise ValueError("no job today")
