"""Handles of signal files that are opened on first use; a bounded number of files stay open."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from physiofast.engine import SignalFile

MAX_OPEN = 64
"""Largest number of signal files that are kept open; the least recently used one is closed first."""

_recent: OrderedDict[int, weakref.ref[Handle]] = OrderedDict()
_lock = threading.RLock()  # reentrant, because a signal handler may open a file while its own thread does


def _forget_lock() -> None:
    """Replace the lock in a forked child, where the thread that may hold it does not exist."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_lock)


class Handle:
    """A signal file that is opened on first use. A pickled or copied handle is closed."""

    def __init__(
        self,
        path: Path,
        format: int,
        samples_per_frame: tuple[int, ...],
        num_frames: int,
        byte_offset: int,
        initial_values: tuple[int, ...] | None = None,
    ) -> None:
        self._arguments = (path, format, samples_per_frame, num_frames, byte_offset, initial_values)
        self._file: SignalFile | None = None
        weakref.finalize(self, _recent.pop, id(self), None)

    def open(self) -> SignalFile:
        """Return the open file; it stays open as long as the result is referenced.

        Raises:
            OSError: it cannot be opened.
            ValueError: it is shorter than its header says, or the header is inconsistent.
        """
        with _lock:
            file = self._file
            if file is None:
                path, format, counts, frames, offset, initial = self._arguments
                file = SignalFile(path, format, counts, frames, byte_offset=offset, initial_values=initial)
                self._file = file
            _recent[id(self)] = weakref.ref(self)
            _recent.move_to_end(id(self))
            while len(_recent) > MAX_OPEN:
                oldest = _recent.popitem(last=False)[1]()
                if oldest is not None:
                    oldest._file = None
            return file

    def check(self) -> None:
        """Check the file's size without keeping the file open; raises the errors of `open`."""
        path, format, counts, frames, offset, initial = self._arguments
        SignalFile(path, format, counts, frames, byte_offset=offset, initial_values=initial)

    def __reduce__(self) -> tuple[type[Handle], tuple[object, ...]]:
        return Handle, self._arguments
