"""Memory that is freed stays with the process, for what PyTorch allocates anew in each pass."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> bool:
    """Tell glibc to give no freed memory back to the system; whether it listens.

    Left alone it gives back what lies at the end of the heap. Whether anything large lies there after a pass is luck:
    one and the same pass took 0 or 35,000 page faults, and with them a fifth of its time. A program is asked for the
    same by MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ in its environment.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
