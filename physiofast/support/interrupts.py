"""Clean stops: a signal asks a loop to end after its current step; elsewhere it ends a command, saying what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
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
            if signal.getsignal(number) is stop:  # none that a second signal has put in its place
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


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Within, the first SIGTERM is a KeyboardInterrupt, as SIGINT is; the next one ends the process.

    Outside the main thread, and where somebody else handles it, it is left alone.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def says_how_to_go_on(advice: Callable[[], str]) -> Iterator[None]:
    """A KeyboardInterrupt that leaves the block says what is kept then, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(advice()) from interrupt
