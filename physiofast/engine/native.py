"""Selects the engine, the C++ extension or the twins in NumPy and SciPy, and its number of threads.

`PHYSIOFAST_NATIVE=0` chooses the twins. Both refuse the same arguments.
"""

from __future__ import annotations

import os
import sys
from typing import Any

MAX_THREADS = 1024
"""Largest number of threads that can be set."""


class FileError(ValueError):
    """A signal file that does not agree with its header."""

    def __init__(self, path: str, byte_offset: int, expected: str, found: str) -> None:
        super().__init__(path, byte_offset, expected, found)
        self.path = path
        """The file."""
        self.byte_offset = byte_offset
        """Where in it."""
        self.expected = expected
        """What should be there."""
        self.found = found
        """What is there."""

    def __str__(self) -> str:
        return f"{self.path}: byte {self.byte_offset}: expected {self.expected}, found {self.found}"


unavailable_reason: str | None = None
"""Why the C++ engine is not used, or None if it is."""

_ON, _OFF = ("", "1", "true", "yes", "on"), ("0", "false", "no", "off")
_switch = os.environ.get("PHYSIOFAST_NATIVE", "").strip()
if _switch.lower() not in _ON + _OFF:
    raise ValueError(
        "PHYSIOFAST_NATIVE needs 1 (also true, yes, on) for the C++ engine, 0 (false, no, off) for the twins in NumPy "
        f"and SciPy; found {_switch!r}"
    )

requested: bool = _switch.lower() in _ON
"""False if `PHYSIOFAST_NATIVE` selects the twins."""

if not requested:
    unavailable_reason = f"PHYSIOFAST_NATIVE={_switch} chooses the twins in NumPy and SciPy"
else:
    try:
        from physiofast import _native
    except ImportError as error:
        unavailable_reason = f"physiofast._native does not import ({error}); build it with: pip install ."

native: bool = unavailable_reason is None
"""Whether the C++ engine is used."""

_chosen: tuple[int, int] | None = None
"""The argument of `set_threads` and the id of the process that called it; None before any call."""


def threads() -> int:
    """The number of threads that one call of the C++ engine uses at most, including the calling thread.

    It is the first of these that applies: the number given to `set_threads`; 1 inside a worker of a torch `DataLoader`,
    whose siblings use the other CPUs; the environment variable `PHYSIOFAST_THREADS`; the number of CPUs that this
    process may run on.

    Raises:
        ValueError: `PHYSIOFAST_THREADS` is not a whole number from 1 to 1024.
    """
    return threads_and_why()[0]


def threads_and_why() -> tuple[int, str]:
    """The result of `threads()`, and a phrase that says where the number comes from."""
    in_worker = _in_data_loader_worker()
    if _chosen is not None and (not in_worker or _chosen[1] == os.getpid()):
        return _chosen[0], "set_threads"
    if in_worker:
        return 1, "a torch DataLoader worker uses one thread"
    text = os.environ.get("PHYSIOFAST_THREADS", "").strip()
    if text:
        return _check(text, "PHYSIOFAST_THREADS"), "PHYSIOFAST_THREADS"
    return min(len(os.sched_getaffinity(0)), MAX_THREADS), "the CPUs that this process may run on"


def set_threads(number: int | None) -> None:
    """Choose how many threads a call of the C++ engine works on, in this process and those it forks later.

    A forked worker of a torch `DataLoader` uses one thread all the same, unless it calls this itself, such as in
    `worker_init_fn`.

    Args:
        number: 1 to 1024; None goes back to the default.

    Raises:
        ValueError: another number.
    """
    global _chosen
    _chosen = None if number is None else (_check(number, "threads"), os.getpid())


def _check(value: str | int, name: str) -> int:
    try:
        number = int(value) if isinstance(value, str) else value.__index__()
    except (ValueError, AttributeError):
        number = 0
    if not 1 <= number <= MAX_THREADS:
        raise ValueError(f"{name} needs a whole number from 1 to {MAX_THREADS}; found {value!r}")
    return number


def _in_data_loader_worker() -> bool:
    data: Any = sys.modules.get("torch.utils.data")  # a worker has imported it
    return data is not None and data.get_worker_info() is not None


def instruction_set() -> str | None:
    """The instruction set that the C++ engine's kernels use; None if the engine is not used."""
    return _native.instruction_set() if native else None
