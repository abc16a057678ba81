"""Cases and providers: every provider is checked before it is timed, and all of a case are timed in turns."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

Role = Literal["ours", "peer", "also", "copy"]
Check = Callable[[Any], str | None]
"""Takes a result and says what is wrong with it, or None."""


_LOST = (
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "illegal address",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "launch timed out",
    "unspecified launch failure",
    "device-side assert",
    "hardware stack error",
    "uncorrectable ECC",
)


def device_is_lost(error: BaseException) -> bool:
    """Whether a process can do nothing more on its device: CUDA says the same of every later call."""
    return any(words in str(error) for words in _LOST)


SLOW_S, SLOW_TIMES = 0.02, 20.0
"""Who takes more seconds than this, and so many times as long as ours, is told apart from ours by a few turns."""


def wall_seconds(run: Callable[[], Any]) -> float:
    """Seconds on the wall that one call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """One way to do a case's job."""

    name: str
    run: Callable[[], Any]
    """Does the job and returns its result. It may return a buffer that it reuses, which is checked at once."""
    role: Role = "peer"
    """`also`: timed and shown, but not what the ratios are to, such as a peer on two threads. `copy`: moves the case's
    bytes and does nothing else."""
    threads: int = 1
    check: Check | None = None
    """In place of the case's, for a peer that computes something else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One job, those who can do it, and what is claimed of ours."""

    name: str
    title: str
    providers: Sequence[Provider]
    check: Check
    required: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Threads of ours -> smallest ratio, fastest peer's seconds over ours."""
    goal: Mapping[int, float] = dataclasses.field(default_factory=dict)
    calls: int = 1
    """Jobs that one `run` does; seconds are those of one job."""
    moved_bytes: int = 0
    """Bytes that one job has to read and write at least; 0 when unknown."""
    windows: int = 0
    """Windows that one job gives; 0 when it gives none."""
    seconds: Callable[[Callable[[], Any]], float] = wall_seconds
    """How one call is timed; a device's case waits for the device here."""
    idle: Callable[[], Any] | None = None
    """Does nothing: it has turns like a provider, and the median of its times is subtracted from every other."""
    wall: Callable[[Callable[[], Any]], float] | None = None
    """Seconds that one call costs a loop of Python, where `seconds` leaves the starting of work out."""
    statistic: Literal["min", "median"] = "min"
    """Which of its times is a provider's `seconds`, of which ratios, shares and rates are: the smallest on a CPU, where
    whatever disturbs a job adds to it; the median of captured graphs on a GPU."""
    turns_of_slow: int | None = None
    """Turns after which those far slower than ours (`SLOW_S`, `SLOW_TIMES`) have no more; None: all have all turns."""
    device: str = "cpu"
    shape: Mapping[str, int | str] = dataclasses.field(default_factory=dict)
    flops: int = 0
    """Floating-point operations of one job."""
    large_copy: float = 0.0
    """Bytes per second that a large copy on the device moves; 0 when unknown."""
    least_ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Peer -> how many times as fast ours has to be."""
    least_share: float | None = None
    """Of the speed of a copy of the same bytes, that ours has to reach."""
    most_seconds: float | None = None
    """That ours may take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """One thing that is required of ours."""

    text: str
    found: float | None
    """None: nobody could be timed to tell."""
    required: float
    holds: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of one provider; times are seconds of one job."""

    case: str
    title: str
    provider: str
    role: Role
    threads: int
    checked: bool
    """False: the result is wrong, and there is no time."""
    problem: str | None
    repeats: int
    """Turns that it had."""
    seconds_min: float | None = None
    seconds_median: float | None = None
    seconds_q20: float | None = None
    seconds_q80: float | None = None
    gb_per_s: float | None = None
    """10^9 bytes that have to be moved, over `seconds`."""
    windows_per_s: float | None = None
    peer: str | None = None
    """The peer of the case whose `seconds` are fewest."""
    ratio: float | None = None
    """`seconds` of that peer over those of ours."""
    required: float | None = None
    goal: float | None = None
    holds: bool | None = None
    """Whether the ratio reaches what is required; None where nothing is."""
    ratio_of_ours: float | None = None
    """Of `also`: its `seconds` over those of ours on as many threads; None where its job is another one."""
    device: str = "cpu"
    shape: Mapping[str, int | str] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    """The smallest time or the median, as `Case.statistic` says: what ratios, shares and rates are of."""
    wall_seconds: float | None = None
    """Median of what a call costs a loop of Python, starting the work included; None too of those far slower."""
    moved_bytes: int = 0
    flops: int = 0
    share_of_copy: float | None = None
    """`seconds` of a copy of the same bytes in the same turns, over these."""
    share_of_large_copy: float | None = None
    """Bytes that have to be moved per second, over those of a large copy."""
    demands: Sequence[Demand] = ()


def measure(case: Case, repeats: int) -> list[Row]:
    """Check every provider of a case, then time those that are right, in turns.

    Each round begins with another provider, so that nobody always follows the same one.

    Returns:
        One row per provider, in the case's order.
    """
    problems = [verify(case, provider) or _try_to_time(case, provider) for provider in case.providers]
    sound = [i for i, problem in enumerate(problems) if problem is None]
    seconds = _time(case, sound, repeats)
    wall = _wall(case, [i for i in sound if len(seconds[i]) == repeats], repeats)
    rows = [_row(case, p, problems[i], seconds.get(i, []), wall.get(i)) for i, p in enumerate(case.providers)]
    rows = [_judge(case, row, rows) for row in rows]
    return [_compare(row, provider, rows) for row, provider in zip(rows, case.providers, strict=True)]


def _time(case: Case, sound: Sequence[int], repeats: int) -> dict[int, list[float]]:
    seconds: dict[int, list[float]] = {i: [] for i in sound}
    idle: list[float] = []
    going = list(sound)
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            if turn == case.turns_of_slow:
                slow = _far_slower(case, _of_jobs(case, seconds, idle))
                going = [i for i in going if i not in slow]
            if case.idle:
                idle.append(case.seconds(case.idle))
            for i in np.roll(going, -turn).tolist():
                seconds[i].append(case.seconds(case.providers[i].run))
    finally:
        gc.enable()
    return _of_jobs(case, seconds, idle)


def _of_jobs(case: Case, seconds: Mapping[int, Sequence[float]], idle: Sequence[float]) -> dict[int, list[float]]:
    """Seconds of one job, without those of `idle`."""
    nothing = float(np.median(idle)) if idle else 0.0
    return {i: [max(found - nothing, 1e-9) / case.calls for found in each] for i, each in seconds.items()}


def _far_slower(case: Case, seconds: Mapping[int, Sequence[float]]) -> set[int]:
    """Providers that take so much longer than all of ours that more turns would tell nothing; none without ours."""
    medians = {i: float(np.median(each)) for i, each in seconds.items()}
    ours = [found for i, found in medians.items() if case.providers[i].role == "ours"]
    least = max(SLOW_S, SLOW_TIMES * max(ours, default=math.inf))
    return {i for i, found in medians.items() if found > least}


def _wall(case: Case, sound: Sequence[int], repeats: int) -> dict[int, float]:
    """Medians, where the case times walls."""
    if case.wall is None:
        return {}
    wall: dict[int, list[float]] = {i: [] for i in sound}
    for turn in range(min(repeats, 5)):
        for i in np.roll(sound, -turn).tolist():
            wall[i].append(case.wall(case.providers[i].run) / case.calls)
    return {i: float(np.median(each)) for i, each in wall.items()}


def verify(case: Case, provider: Provider) -> str | None:
    """What is wrong with a provider's result; an exception counts. None when it is right.

    Raises:
        Exception: the device is lost.
    """
    try:
        return (provider.check or case.check)(provider.run())
    except Exception as error:
        if device_is_lost(error):
            raise
        return f"{type(error).__name__}: {error}"


def _try_to_time(case: Case, provider: Provider) -> str | None:
    """Why a provider cannot be timed, where a device may refuse what it could compute; None when it can."""
    return verify(dataclasses.replace(case, check=lambda found: None), _timed(case, provider)) if case.idle else None


def _timed(case: Case, provider: Provider) -> Provider:
    return dataclasses.replace(provider, run=lambda: case.seconds(provider.run), check=None)


def _row(case: Case, provider: Provider, problem: str | None, seconds: Sequence[float], wall: float | None) -> Row:
    row = Row(
        case=case.name,
        title=case.title,
        provider=provider.name,
        role=provider.role,
        threads=provider.threads,
        checked=problem is None,
        problem=problem,
        repeats=len(seconds),
        device=case.device,
        shape=case.shape,
        moved_bytes=case.moved_bytes,
        flops=case.flops,
    )
    if not seconds:
        return row
    low, median, high = np.quantile(seconds, (0.2, 0.5, 0.8)).tolist()
    one = min(seconds) if case.statistic == "min" else median
    return dataclasses.replace(
        row,
        seconds_min=min(seconds),
        seconds_median=median,
        seconds_q20=low,
        seconds_q80=high,
        seconds=one,
        wall_seconds=wall,
        gb_per_s=case.moved_bytes / one / 1e9 if case.moved_bytes else None,
        share_of_large_copy=case.moved_bytes / one / case.large_copy if case.large_copy else None,
        windows_per_s=case.windows / one if case.windows else None,
    )


def _judge(case: Case, row: Row, rows: Sequence[Row]) -> Row:
    copy = next((other.seconds for other in rows if other.role == "copy"), None)
    row = dataclasses.replace(row, share_of_copy=_quotient(copy, row.seconds))
    if row.role != "ours":
        return row
    peer = fastest_peer(rows)
    required, goal = case.required.get(row.threads), case.goal.get(row.threads)
    ratio = _quotient(peer.seconds, row.seconds) if peer else None
    demands = _demands(case, row, rows)
    holds = [demand.holds for demand in demands]
    holds += [] if required is None else [ratio is not None and ratio >= required]
    return dataclasses.replace(
        row,
        peer=peer.provider if peer else None,
        ratio=ratio,
        required=required,
        goal=goal,
        demands=demands,
        holds=all(holds) if holds else None,
    )


def _demands(case: Case, row: Row, rows: Sequence[Row]) -> list[Demand]:
    """What is required besides the ratio to the fastest peer, each with what was found."""
    times = {other.provider: other.seconds for other in rows}
    found = [
        _at_least(f"times as fast as {peer}", _quotient(times.get(peer), row.seconds), least)
        for peer, least in case.least_ratios.items()
    ]
    if case.least_share is not None:
        found.append(_at_least("of the speed of a copy of the same bytes", row.share_of_copy, case.least_share))
    if case.most_seconds is not None:
        holds = row.seconds is not None and row.seconds <= case.most_seconds
        found.append(Demand(text="seconds at most", found=row.seconds, required=case.most_seconds, holds=holds))
    return found


def _at_least(text: str, found: float | None, required: float) -> Demand:
    return Demand(text=text, found=found, required=required, holds=found is not None and found >= required)


def _quotient(over: float | None, under: float | None) -> float | None:
    return over / under if over and under else None


def _compare(row: Row, provider: Provider, rows: Sequence[Row]) -> Row:
    """A provider with a check of its own does another job than the case's."""
    ours = next((mine for mine in rows if mine.role == "ours" and mine.threads == row.threads), None)
    if row.role != "also" or provider.check or ours is None:
        return row
    return dataclasses.replace(row, ratio_of_ours=_quotient(row.seconds, ours.seconds))


def fastest_peer(rows: Sequence[Row]) -> Row | None:
    """The peer whose `seconds` are fewest, if any has some."""
    timed = [row for row in rows if row.role == "peer" and row.seconds is not None]
    return min(timed, key=lambda row: row.seconds or math.inf, default=None)


def poisoned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A buffer to reuse, its pages touched, full of what no right result holds: one that nobody wrote shows."""
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else -12345, dtype)


def close_per_channel(found: np.ndarray, expected: np.ndarray, relative: float, axis: int = 1) -> str | None:
    """Compare arrays whose errors may be `relative` of their channel's largest value.

    Args:
        found: any float.
        expected: the same shape.
        relative: largest error over the channel's largest magnitude.
        axis: of the channels.

    Returns:
        What is wrong, or None.
    """
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    for channel in range(expected.shape[axis]):
        want = expected.take(channel, axis)
        largest = float(np.abs(want).max())
        error = float(np.abs(found.take(channel, axis) - want).max())
        if not error <= relative * largest:  # NaN is refused as well
            return f"channel {channel}: error {error:.3g}, allowed {relative:g} of {largest:.3g}"
    return None
