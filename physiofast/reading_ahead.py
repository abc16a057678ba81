"""Reads the data of one step after another, for a GPU while it computes the step before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Calls a function of the step's number one step ahead, in a thread.

    Results and errors are those of plain calls in turn: `take` of a step raises what the thread raised for it.

    Args:
        read: called with the number of a step, from one thread at a time.
        stop: the first step that is not read.
        ahead: whether to read ahead in a thread; else `take` itself reads the step.
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
        """Return the result for a step, and begin to read the step after it."""
        ahead, self._next = self._next, None
        if self._pool is None:
            return self._read(step)
        future = ahead[1] if ahead is not None and ahead[0] == step else self._pool.submit(self._read, step)
        result = future.result()
        if step + 1 < self._stop:
            self._next = step + 1, self._pool.submit(self._read, step + 1)
        return result
