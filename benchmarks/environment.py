"""Where numbers were measured: machine, versions, commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import devices

PACKAGES = (
    *("physiofast", "numpy", "scipy", "wfdb", "edfio", "mne", "pyedflib", "h5py", "safetensors", "zarr"),
    *("torch", "triton"),
)


def describe() -> dict[str, Any]:
    """Machine, versions, commit and date as JSON values."""
    gpu = {"gpu": devices.find("cuda").about()} if torch.cuda.is_available() else {}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "kernel": platform.release(),
            "load": round(os.getloadavg()[0], 2),
            "copy_gb_per_s": round(copy_bandwidth() / 1e9, 1),
        }
        | gpu,
        "versions": {"python": platform.python_version()}
        | {name: found for name in PACKAGES if (found := _version(name))},
    }


def cpu_model() -> str:
    """Name of the processor, with family and model numbers where the name says little."""
    found = dict(
        [part.strip() for part in line.split(":", 1)]
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        if ":" in line
    )
    name = found.get("model name", platform.processor() or platform.machine())
    return f"{name} (family {found['cpu family']}, model {found['model']})" if "cpu family" in found else name


def git_commit() -> str | None:
    """Commit of the checkout that this file lies in, `+` when it has changes; None outside of one."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes read and written per second by one thread that copies an array larger than the caches."""
    source = np.ones(megabytes << 20, np.uint8)
    target = np.ones_like(source)
    best = min(_copy_seconds(source, target) for _ in range(5))
    return 2 * source.nbytes / best


def _copy_seconds(source: np.ndarray, target: np.ndarray) -> float:
    began = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - began


def _git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
