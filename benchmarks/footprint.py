"""Memory that a job needs beyond its output: a fresh process does it while another one watches (Linux)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import chain, ours, peers
from benchmarks.recordings import WfdbNight

RUNS = 3

JOBS: dict[str, Callable[[WfdbNight, int], Callable[[], Any]]] = {
    "decode, resample, windows": lambda night, threads: ours.windows(night, 1, 2, peers.scipy_taps(1, 2), threads),
    "zero-phase filter": lambda night, threads: ours.zero_phase(night, threads),
    "full chain": lambda night, threads: ours.chain(night, threads),
}
MOST_MB = {"decode, resample, windows": 32, "zero-phase filter": 200, "full chain": 200}
PER_THREAD = ("decode, resample, windows",)


def extra_megabytes(job: str, night: WfdbNight, threads: int) -> float:
    """Peak of anonymous resident memory during the job, less that before, in 2^20 bytes.

    Output buffers are there and touched before. The job is one of `JOBS`, or "scipy", and runs `RUNS` times.

    Raises:
        RuntimeError: the process ended before the job did.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_work, args=(job, night, threads, there))
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
        raise RuntimeError(f"the process that was to do {job!r} on {threads} threads failed") from error
    finally:
        here.close()
        child.join()
    return (peak - before) / 1024


def _work(job: str, night: WfdbNight, threads: int, connection: Connection) -> None:
    run = chain.scipy_planes(night) if job == "scipy" else JOBS[job](night, threads)
    connection.send("ready")
    connection.recv()
    for _ in range(RUNS):
        run()
    connection.send("done")


def _anonymous_kb(pid: int | None) -> int:
    """Pages of mapped files are the page cache's and do not count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no RssAnon")
