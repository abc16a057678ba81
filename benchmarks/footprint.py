"""Memory that a job needs beyond its output: a fresh process does it while another one watches (Linux)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RUNS = 3


def extra_megabytes(make: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """Peak of anonymous resident memory during a job, less that before, in 2^20 bytes.

    Args:
        make: a function of a module; `make(*arguments)` gives the job, which runs `RUNS` times. Output buffers
            that it makes and touches do not count.
        arguments: what can be pickled.

    Raises:
        RuntimeError: the process ended before the job did.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_work, args=(there, make, arguments))
    child.start()
    there.close()
    try:
        here.recv()
        before = peak = _anonymous_kb(child.pid)
        here.send("begin")
        while not here.poll():
            peak = max(peak, _anonymous_kb(child.pid))
        here.recv()
    except EOFError as error:
        raise RuntimeError(f"the process that was to run {make.__qualname__} failed; it says above why") from error
    finally:
        here.close()
        child.join()
    return (peak - before) / 1024


def _work(connection: Connection, make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    job = make(*arguments)
    connection.send("ready")
    connection.recv()
    for _ in range(RUNS):
        job()
    connection.send("done")


def _anonymous_kb(pid: int | None) -> int:
    """Pages of mapped files are the page cache's and do not count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise EOFError  # a process that has ended has no memory
