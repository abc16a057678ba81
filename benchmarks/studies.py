"""Measurements without peers: memory, threads of Python, growth with hours and channels, `prepare`."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from benchmarks import chain, footprint, ours, peers
from benchmarks.harness import wall_seconds
from benchmarks.peers import RATE_HZ
from benchmarks.recordings import write_sized
from benchmarks.workspace import Workspace

HOURS, CHANNELS = (1, 2, 4, 8, 16, 24), (1, 2, 4, 8, 13, 16, 24, 32)
MOST_GROWTH = 1.25
"""Largest cost of one channel-hour over that of the 8 h, 13 channel record, from 4 h and 8 channels on: fewer
channels leave lanes of the zero-phase filter empty and cost as much as 8."""
LEAST_PYTHON_SCALING, LEAST_PYTHON_S = 1.6, 0.5
"""Times the work, and seconds that each thread works at least: starting one does not count then."""
SLOW_HZ = 0.05
"""Lower edge of a filter that rings for minutes."""
NIGHTS = 8


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that has to be so, or (`holds` is None) that is only noted."""

    text: str
    found: str
    holds: bool | None


@dataclasses.dataclass(frozen=True)
class Study:
    """What was measured (`rows`, JSON values), what the terminal shows of it, and what is claimed."""

    name: str
    title: str
    rows: list[dict[str, Any]]
    lines: list[str]
    claims: list[Claim]


def memory(space: Workspace, repeats: int) -> Study:
    """Memory beyond the output, each job in a process of its own."""
    night = space.night
    slow = signal.butter(chain.ORDER, [SLOW_HZ, chain.HIGH_HZ], "bandpass", fs=RATE_HZ, output="sos")
    rows, claims = [], []
    for threads in space.threads:
        for job, most_mb, make, arguments in (
            *(
                (
                    f"decode, resample {up}:{down}, windows",
                    32 * threads,
                    ours.windows,
                    (night, up, down, peers.scipy_taps(up, down), threads),
                )
                for up, down in ((1, 2), (16, 25))
            ),
            (f"decode, zero-phase filter from {chain.LOW_HZ} Hz on", 200, ours.zero_phase, (night, chain.SOS, threads)),
            (f"decode, zero-phase filter from {SLOW_HZ} Hz on", 200, ours.zero_phase, (night, slow, threads)),
            ("full chain", 200, ours.chain, (night, threads)),
        ):
            found = footprint.extra_megabytes(make, *arguments)
            rows.append({"job": job, "threads": threads, "extra_mb": round(found, 2), "most_mb": most_mb})
            text = f"{job}, {threads} thread{'s' * (threads > 1)}: at most {most_mb} MB"
            claims.append(Claim(text, f"{found:.1f} MB", found <= most_mb))
    found = footprint.extra_megabytes(chain.scipy_planes, night)
    rows.append({"job": "full chain with wfdb and scipy", "threads": 1, "extra_mb": round(found, 2), "most_mb": None})
    claims.append(Claim("full chain with wfdb and scipy by channel, for comparison", f"{found:.0f} MB", None))
    return Study("memory", f"extra memory beyond the output, {space.hours:g} h x 13 channels", rows, [], claims)


def python_threads(space: Workspace, repeats: int) -> Study:
    """Whether Python threads that call the engine run side by side: they do when the GIL is released.

    numpy's sort, which releases it, has turns in between: where that does not scale, the machine is not idle.
    """
    taps = peers.scipy_taps(1, 2)
    mine = [ours.windows(space.night, 1, 2, taps, 1, keep_open=True) for _ in range(2)]
    values = np.random.default_rng(3).standard_normal((2, 1 << 18))
    pairs = {"physiofast": mine, "numpy.sort": [functools.partial(np.sort, row) for row in values]}
    works = {name: _long_enough(jobs) for name, jobs in pairs.items()}
    with ThreadPoolExecutor(2) as pool:
        rounds = [[_alone_and_together(pool, jobs) for jobs in works.values()] for _ in range(repeats)]
    rows = [
        {"job": name, "one_seconds": one, "two_seconds": two, "scaling": 2 * one / two}
        for name, (one, two) in zip(works, np.min(rounds, axis=0).tolist(), strict=True)
    ]
    lines = [
        f"{row['job']}: on one Python thread {row['one_seconds'] * 1e3:.0f} ms, "
        f"twice as much on two {row['two_seconds'] * 1e3:.0f} ms"
        for row in rows
    ]
    found, control = (row["scaling"] for row in rows)
    enough = len(os.sched_getaffinity(0)) >= 2
    text = f"two Python threads do at least {LEAST_PYTHON_SCALING} times the work of one"
    claims = [
        Claim(text, f"{found:.2f}x", found >= LEAST_PYTHON_SCALING if enough else None),
        Claim("numpy.sort in the same minute", f"{control:.2f}x", None),
    ]
    return Study("python_threads", "decode, resample and windows, one engine thread each", rows, lines, claims)


def _long_enough(jobs: Sequence[Callable[[], Any]]) -> list[Callable[[], None]]:
    """Jobs of one size, each done so often that it takes `LEAST_PYTHON_S`."""
    calls = math.ceil(LEAST_PYTHON_S / min(wall_seconds(job) for job in [*jobs, *jobs]))  # the first call warms up

    def work(job: Callable[[], Any]) -> None:
        for _ in range(calls):
            job()

    return [functools.partial(work, job) for job in jobs]


def _alone_and_together(pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], None]]) -> tuple[float, float]:
    """Seconds of one of two jobs, in the mean, and of both on two threads."""

    def seconds(some: Sequence[Callable[[], None]]) -> float:
        return wall_seconds(lambda: list(pool.map(lambda job: job(), some)))

    first, both, second = seconds(jobs[:1]), seconds(jobs), seconds(jobs[1:])
    return (first + second) / 2, both


def scaling(space: Workspace, repeats: int) -> Study:
    """The full chain on one thread over hours (13 channels) and channels (8 h), or a share of `--hours`.

    Sizes take turns, so that a slow minute of the machine does not fall on one of them.
    """
    share = space.hours / 8
    sizes = [("hours", hours * share, 13) for hours in HOURS] + [("channels", space.hours, c) for c in CHANNELS]
    jobs = [_sized_job(space.folder, hours, channels) for _, hours, channels in sizes]
    rounds = [[wall_seconds(job) for job in jobs] for _ in range(repeats + 1)][1:]  # the first one warms up
    rows = [
        {
            "over": over,
            "hours": hours,
            "channels": channels,
            "seconds_min": least,
            "seconds_per_channel_hour": least / hours / channels,
        }
        for (over, hours, channels), least in zip(sizes, np.min(rounds, axis=0).tolist(), strict=True)
    ]
    base = next(row for row in rows if row["hours"] == space.hours)["seconds_per_channel_hour"]
    small = [row["hours"] < 4 * share or row["channels"] < 8 for row in rows]
    growth = np.array([row["seconds_per_channel_hour"] for row in rows]) / base
    worst, worst_small = float(growth[~np.array(small)].max()), float(growth[small].max())
    usual = f"{space.hours:g} h x 13 channels"
    text = f"from {4 * share:g} h and 8 channels on a channel-hour costs at most {MOST_GROWTH} times that of {usual}"
    claims = [
        Claim(text, f"{worst:.2f}x", worst <= MOST_GROWTH),
        Claim("below that, at most", f"{worst_small:.2f}x", None),
    ]
    lines = [
        f"{row['hours']:>5g} h x {row['channels']:>2} channels: {row['seconds_min'] * 1e3:8.1f} ms, "
        f"{row['seconds_per_channel_hour'] * 1e3:.3f} ms per channel-hour"
        for row in rows
    ]
    title = "full chain on one thread, by hours and by channels"
    return Study("scaling", title, rows, lines, claims)


def _sized_job(folder: Path, hours: float, channels: int) -> Callable[[], Any]:
    return ours.chain(write_sized(folder, hours, channels), 1)


def prepare(space: Workspace, repeats: int) -> Study:
    """`physiofast prepare` on synthetic nights, as a command, against reading the same files."""
    source, store = space.folder / "nights", space.folder / "store"
    _physiofast("synth", source, "--subjects", NIGHTS, "--hours", space.hours)
    files = sorted(source.rglob("*.mat"))
    signals = [path for path in files if not path.name.endswith("-arousal.mat")]
    read = min(wall_seconds(lambda: _read_all(signals)) for _ in range(3))
    began = time.perf_counter()
    _physiofast("prepare", source, store)
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in signals)
    share, rate_gb = read / seconds, size / read / 1e9
    row = {
        "records": len(signals),
        "hours": space.hours,
        "seconds": seconds,
        "records_per_minute": 60 * len(signals) / seconds,
        "bytes": size,
        "read_seconds": read,
        "share_of_read_bandwidth": share,
    }
    found = f"{row['records_per_minute']:.1f} records/minute, {size / seconds / 1e6:.0f} MB/s"
    claims = [
        Claim(f"{len(signals)} nights of {space.hours:g} h, the whole command", found, None),
        Claim("share of the read bandwidth of the same files, warm", f"{share:.2%} of {rate_gb:.1f} GB/s", None),
    ]
    return Study("prepare", "physiofast prepare with its default number of processes", [row], [], claims)


def _physiofast(*arguments: Any) -> None:
    command = [sys.executable, "-m", "physiofast", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} exits with {found.returncode}: {found.stderr[-2000:]}")


def _read_all(paths: Sequence[Path]) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
