"""Reading of one step after another, on a GPU while the step before is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """A function of a step's number, whose result for the next step is found in a thread.

    Results are those of calls in turn, and so are errors: what the thread raises, `take` of that step raises.

    Args:
        read: called with the number of a step, from one thread at a time.
        stop: the first number that is not read.
        ahead: whether there is a thread; else each step is read when it is asked for.
    """

    def __init__(self, read: Callable[[int], T], stop: int, *, ahead: bool) -> None:
        self._read, self._stop = read, stop
        self._pool = ThreadPoolExecutor(1, "physiofast-read") if ahead else None
        self._next: tuple[int, Future[T]] | None = None

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def take(self, step: int) -> T:
        """What is read for a step; that of the one after it begins."""
        known, self._next = self._next, None
        if self._pool is None:
            return self._read(step)
        found = known[1] if known is not None and known[0] == step else self._pool.submit(self._read, step)
        result = found.result()
        if step + 1 < self._stop:
            self._next = step + 1, self._pool.submit(self._read, step + 1)
        return result
