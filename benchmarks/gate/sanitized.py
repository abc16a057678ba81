"""Every op on a small batch under compute-sanitizer, which sees reads and writes out of bounds, and races."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import subjects
from benchmarks.gate.context import Context
from benchmarks.gate.correctness import batches
from benchmarks.gate.verdicts import Notebook
from benchmarks.opbatch import PlanBatch
from benchmarks.subjects import SUBJECTS
from physiofast import ops

TOOLS = ("memcheck", "racecheck")
SECONDS = 170.0
"""That each may take; they run side by side."""
_FOUND, _PLACES = 9, ("/usr/local/cuda/bin", "/opt/cuda/bin")


def sanitized(context: Context, notebook: Notebook) -> None:
    """One process for each tool, without PyTorch's caching of memory, which would hide where tensors end."""
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *_PLACES]))
    if context.rehearses:
        run_small(context, (torch.float16,))
    for name in TOOLS if context.rehearses or tool is None else ():
        text = f"compute-sanitizer {name} finds nothing"
        notebook.skip(text, "a CPU rehearses" if context.rehearses else "compute-sanitizer is not there")
    if not context.rehearses and tool is not None:
        with concurrent.futures.ThreadPoolExecutor(len(TOOLS)) as pool:
            list(pool.map(functools.partial(_check, tool, notebook), TOOLS))


def _check(tool: str, notebook: Notebook, name: str) -> None:
    text = f"compute-sanitizer {name} finds nothing"
    options = ["--tool", name, "--error-exitcode", str(_FOUND), "--target-processes", "application-only"]
    command = [tool, *options, sys.executable, "-m", __name__]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return notebook.skip(text, f"not done within {SECONDS:g} s")
    last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-4:])
    refused = done.returncode not in (0, _FOUND) and "ERROR SUMMARY: 0" not in last
    if refused and "not supported" in last.lower():
        return notebook.skip(text, last[-300:])
    notebook.judge(text, done.returncode == 0, "" if done.returncode == 0 else last[-600:])


def run_small(context: Context, dtypes: Sequence[torch.dtype]) -> None:
    """Values and gradients of every op, and a plan."""
    for dtype in dtypes:
        for inputs in batches(context, dtype).values():
            with context.kernels(dtype):
                for subject in SUBJECTS:
                    subjects.run(subject, inputs, subjects.draw(subject, inputs, dtype))
    batch = PlanBatch(context.setting(128))
    ops.sample_plan(*batch.arguments, batch.sizes)
    context.device.synchronize()


def main() -> None:
    """What runs under the tool: the rehearsal's sizes, on the GPU."""
    run_small(dataclasses.replace(Context.on_gpu(Path()), rehearses=True), (torch.float32, torch.bfloat16))


if __name__ == "__main__":
    main()
