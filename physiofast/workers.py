"""Worker processes, which stop when their parent does, however it ends."""

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
"""Reason to give for a job without a result of `as_done`, whose process died."""


def as_done(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int
) -> Iterator[tuple[_Job, _Result | None]]:
    """Yield each job with its result, in the order in which worker processes finish them.

    A single job, and jobs for a single worker, are done in this process. The jobs that were in work when a process died
    are tried once more, one at a time, so that the job that kills it is known: its result is None. The others go on in
    new processes.

    Args:
        function: does a job.
        jobs: what it is called with.
        workers: number of processes.
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
    """Do jobs in a pool until none is left or a process dies; the jobs that were in work then are added to `lost`."""
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
    """Open a pool of processes that share this one's threads; an error or Ctrl-C drops the jobs that have not begun."""
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
    """End this worker with its parent: a killed parent cannot stop its workers, which would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
