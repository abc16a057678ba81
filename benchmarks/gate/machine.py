"""The first minute: what the GPU itself can do, which every later number is to be seen against."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks import devices
from benchmarks.devices import GraphTimer
from benchmarks.gate.context import Context
from benchmarks.gate.verdicts import Notebook
from physiofast import ops
from physiofast.ops import reference


def machine(context: Context, notebook: Notebook) -> None:
    """Copies by size, the cost of a launch, the cost of a sort."""
    device = context.device
    notebook.keep("gpu", device.about() | {"torch": torch.__version__, "clocks": device.clocks()})
    notebook.keep("explain", ops.explain().splitlines())
    with device.stream():
        copies(context, notebook)
        launches(context, notebook)
        sorts(context, notebook)
    notebook.judge("the device answers", True, str(device.about().get("name")))


def copies(context: Context, notebook: Notebook) -> None:
    """Bytes per second by size. Beyond 128 MiB these are copies of slices, as in every case."""
    sizes = (16, 18) if context.rehearses else range(20, 32)
    rows = []
    for power in sizes:
        speed = devices.copy_bytes_per_s(context.device, 1 << power)
        rows.append({"bytes": 1 << power, "bytes_per_s": speed})
        notebook.note(f"copy of {(1 << power) / 2**20:g} MiB", f"{speed / 1e9:.0f} GB/s")
    notebook.keep("copies", rows)


def best_copy_bytes_per_s(context: Context) -> float:
    """What shares of a large copy are of: the fastest size, since the longest copies need not be."""
    powers = (16, 18) if context.rehearses else (27, 28, 30)
    return max(devices.copy_bytes_per_s(context.device, 1 << power) for power in powers)


def launches(context: Context, notebook: Notebook) -> None:
    """Seconds that a kernel without work takes on the device and on the host."""
    grad, one = torch.ones(16, device=context.device.type), torch.ones((), device=context.device.type)
    timer = GraphTimer(context.device)
    many = 3 if context.rehearses else 50
    with context.kernels(torch.float32):
        kernel = _scaling()

        def one_by_one() -> None:
            for _ in range(many):
                kernel(grad, one)

        each = [(timer(one_by_one) - timer(timer.nothing)) / many for _ in range(5)]
        context.device.synchronize()
        began = time.perf_counter()
        one_by_one()
        host = (time.perf_counter() - began) / many
        context.device.synchronize()
    device_us = statistics.median(each) * 1e6
    notebook.keep("launch", {"device_us": device_us, "host_us": host * 1e6})
    notebook.note("an empty kernel", f"{device_us:.2f} us in a CUDA graph, {host * 1e6:.1f} us to launch from Python")


def _scaling() -> object:
    """The kernel that finds a factor of 1 and does nothing; its definition where kernels cannot run."""
    try:
        from physiofast.ops.triton.loss import scale_gradient
    except ImportError:
        return reference.scale_gradient
    return scale_gradient


def sorts(context: Context, notebook: Notebook) -> None:
    """What plans are made of."""
    timer, rows = GraphTimer(context.device), []
    shapes = ((2, 32),) if context.rehearses else ((1024, 390), (512, 300), (1, 1 << 20))
    for shape in shapes:
        keys = torch.randint(0, 2**40, shape, device=context.device.type)
        job = lambda keys=keys: keys.sort(dim=1)  # noqa: E731
        found = statistics.median(timer(job) - timer(timer.nothing) for _ in range(5))
        rows.append({"shape": shape, "seconds": found})
        notebook.note(f"torch.sort of int64 {list(shape)}", f"{found * 1e6:.0f} us")
    notebook.keep("sorts", rows)
