"""Worker processes that stop when their parent does, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait

from physiofast import engine


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
    wait([parent.sentinel])
    os._exit(1)
