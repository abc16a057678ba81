"""Clean stops: a signal ends a loop after its current step, or ends a command with a message that says what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Yield a list to which the first SIGINT or SIGTERM within the block is appended; a second one acts as usual.

    Outside the main thread, where no handler can be set, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in old.items():
            if signal.getsignal(number) is stop:  # leave a handler that other code has set meanwhile
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
    """Within the block, raise KeyboardInterrupt at the first SIGTERM, as at SIGINT; a second one ends the process.

    Does nothing outside the main thread, or if another handler for SIGTERM is set.
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
    """Give a KeyboardInterrupt that leaves the block a message: what is kept, and how to continue.

    Args:
        advice: returns the message, when it is needed.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(advice()) from interrupt
