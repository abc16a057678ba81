"""The devices that ops are timed on. What only CUDA has is here and nowhere else: a CPU can rehearse the rest."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.harness import device_is_lost, wall_seconds

Job = Callable[[], Any]


class Device(Protocol):
    """A place where tensors live and work is started."""

    type: str
    """`cpu` or `cuda`."""

    def synchronize(self) -> None:
        """Wait for all work that was started."""

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """Work that is started within it runs where it can be captured, backward passes of its graphs as well."""

    def capture(self, job: Job) -> Job:
        """A job that repeats what `job` starts on the device, without its Python."""

    def elapsed(self, job: Job) -> float:
        """Seconds that the device works on what a job starts."""

    def peak_bytes(self, job: Job) -> int | None:
        """Most memory that tensors take while a job runs, above what they took before; None where nobody counts."""

    def cache_bytes(self) -> int:
        """Of the largest cache."""

    def about(self) -> dict[str, Any]:
        """Name, driver and what else a number depends on."""

    def clocks(self) -> dict[str, Any]:
        """Frequencies, temperature and power at present, where something can tell."""


class Cpu:
    """Rehearses: a job is its own capture, and the wall is the clock."""

    type = "cpu"

    def synchronize(self) -> None:
        pass

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def capture(self, job: Job) -> Job:
        job()
        return job

    def elapsed(self, job: Job) -> float:
        return wall_seconds(job)

    def peak_bytes(self, job: Job) -> int | None:
        job()
        return None

    def cache_bytes(self) -> int:
        return 1 << 20

    def about(self) -> dict[str, Any]:
        return {"name": "none: a CPU rehearses"}

    def clocks(self) -> dict[str, Any]:
        return {}


class Cuda:
    """The current CUDA device."""

    type = "cuda"
    WARM_UPS = 3

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._began, self._ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    @contextlib.contextmanager
    def stream(self) -> Any:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, job: Job) -> Job:
        with self.stream():
            for _ in range(self.WARM_UPS):
                job()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            kept = job()

        def replay(graph: Any = graph, kept: Any = kept) -> Any:
            graph.replay()
            return kept

        return replay

    def elapsed(self, job: Job) -> float:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._began.record()
            job()
            self._ended.record()
        self._ended.synchronize()
        return self._began.elapsed_time(self._ended) / 1e3

    def peak_bytes(self, job: Job) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = job()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before

    def cache_bytes(self) -> int:
        return torch.cuda.get_device_properties().L2_cache_size

    def about(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties()
        return {
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_gb": round(found.total_memory / 2**30, 1),
            "l2_mb": round(found.L2_cache_size / 2**20, 1),
            "cuda": torch.version.cuda,
            "driver": _nvidia_smi("driver_version").get("driver_version"),
        }

    def clocks(self) -> dict[str, Any]:
        return _nvidia_smi("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")


def _nvidia_smi(*fields: str) -> dict[str, str]:
    """What nvidia-smi says; nothing where it is not there or says nothing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = found.strip().splitlines() or [""]
    return dict(zip(fields, map(str.strip, lines[0].split(",")), strict=False))


def find(kind: str) -> Device:
    """The device of a type.

    Raises:
        RuntimeError: `cuda` where PyTorch sees none.
    """
    if kind == "cpu":
        return Cpu()
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no CUDA device")
    return Cuda()


class GraphTimer:
    """Times jobs as captured graphs whose caches are cold: each replay clears them first.

    Clearing has a time of its own, which is that of `nothing`; a case names it as `idle`, and the harness subtracts it.
    """

    def __init__(self, device: Device, cool_down_s: float = 0.0, wall_calls: int = 10) -> None:
        self.device, self.cool_down_s, self.wall_calls = device, cool_down_s, wall_calls
        self._replays: dict[Job, Job] = {}
        self.refused: dict[Job, str] = {}
        """Jobs that could not be captured, and why: they are timed with the starting of their work."""
        size = max(2 * device.cache_bytes(), 1 << 20)
        self._cache = torch.empty(size, dtype=torch.uint8, device=device.type)

    def nothing(self) -> None:
        """Starts no work."""

    def eager(self, job: Job) -> Job:
        """The same job, marked as one that cannot be captured, because it waits for the device."""
        self._replays[job] = lambda: (self._cache.zero_(), job())
        return job

    def __call__(self, job: Job) -> float:
        """Seconds of clearing the caches and of the job."""
        if job not in self._replays:
            self._capture(job)
        time.sleep(self.cool_down_s)
        return self.device.elapsed(self._replays[job])

    def _capture(self, job: Job) -> None:
        try:
            self._replays[job] = self.device.capture(lambda: (self._cache.zero_(), job()))
        except Exception as error:
            if device_is_lost(error):
                raise
            self.device.synchronize()
            self.refused[job] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.eager(job)

    def wall(self, job: Job) -> float:
        """Seconds that one of several calls costs a loop of Python, caches as they are."""
        self.device.synchronize()
        began = time.perf_counter()
        with self.device.stream():
            for _ in range(self.wall_calls):
                job()
        self.device.synchronize()
        return (time.perf_counter() - began) / self.wall_calls


_SLICE = 1 << 27
"""Bytes that are copied at once: on an H200 one copy of up to 256 MiB ran at 4.2 TB/s, and a longer one at 2.7."""


def copying(size: int, device: str) -> Job:
    """A copy of `size` bytes, in slices where one copy of all would be slower."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target: Tensor = torch.empty_like(source)
    pairs = list(zip(target.split(_SLICE), source.split(_SLICE), strict=True))

    def copy() -> Tensor:
        for part, original in pairs:
            part.copy_(original)
        return target

    return copy


def copy_bytes_per_s(device: Device, size: int, rounds: int = 10) -> float:
    """Bytes read and written per second by the median copy of `size` bytes, caches cold."""
    timer, copy = GraphTimer(device), copying(size, device.type)
    found = torch.tensor([[timer(copy), timer(timer.nothing)] for _ in range(rounds)]).median(0).values
    return 2 * size / max(float(found[0] - found[1]), 1e-9)
