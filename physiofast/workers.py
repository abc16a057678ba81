"""Worker processes that stop when their parent does, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

from physiofast import engine

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
WHY_DIED = "it was killed or ran out of memory"
"""For messages about a process whose job `as_done` has no result of."""


def as_done(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int
) -> Iterator[tuple[_Job, _Result | None]]:
    """Each job with its result, in the order in which they are done by processes; here, where one would do.

    A job in work when a process dies is tried once more with no other beside it, so that the one that kills is known:
    its result is None. The others go on in new processes.
    """
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, function(job)
        return
    waiting = deque(jobs)
    while waiting:
        lost: list[_Job] = []
        yield from _together(function, waiting, min(workers, len(waiting)), lost)
        for job in lost:
            yield job, _alone(function, job)


def _together(
    function: Callable[[_Job], _Result], waiting: deque[_Job], workers: int, lost: list[_Job]
) -> Iterator[tuple[_Job, _Result]]:
    """Take jobs into a pool until all are done or one of its processes dies; those in work then are lost."""
    with worker_pool(workers) as pool:
        working: dict[Future[_Result], _Job] = {}
        while working or (waiting and not lost):
            while waiting and not lost and len(working) < workers:  # no more, so that few are lost
                job = waiting.popleft()
                try:
                    working[pool.submit(function, job)] = job
                except BrokenProcessPool:
                    lost.append(job)
            done, _ = wait(working, return_when=FIRST_COMPLETED)
            for future in done:
                job = working.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    lost.append(job)


def _alone(function: Callable[[_Job], _Result], job: _Job) -> _Result | None:
    with worker_pool(1) as pool:
        try:
            return pool.submit(function, job).result()
        except BrokenProcessPool:
            return None


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that share this one's threads; an error or Ctrl-C drops the jobs not begun."""
    # spawn: a fork would copy the caller's threads' locks, held or not.
    context = multiprocessing.get_context("spawn")
    threads = max(1, engine.threads() // workers)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    engine.set_threads(threads)


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers to stop, and they would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
