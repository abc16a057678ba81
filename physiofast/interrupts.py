"""Clean stops: a signal asks a loop to end after its current step instead of ending the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Within, the first SIGINT or SIGTERM is appended to the list; the next one acts as it does outside.

    Outside the main thread signals are somebody else's, and the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in old.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def stop(number: int, _: object) -> None:
        received.append(number)
        restore_handlers()

    for number in old:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        restore_handlers()
