"""Run the demo as a user would and check what it has to show: `python -m benchmarks.demo [--out DIR]`.

Prints one line per claim with the number found and exits with 1 when any does not hold. Seconds and memory are those of
the machine it runs on; the claims are for two otherwise idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MOST_SECONDS, MOST_MEMORY_GB = 240, 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the demo's files; a temporary one when left out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="physiofast-demo-")) / "demo"
    seconds, memory_gb = run_demo(out, options.seed)
    lines = [
        (f"ends within {MOST_SECONDS} s", f"{seconds:.0f} s", seconds <= MOST_SECONDS),
        (f"stays within {MOST_MEMORY_GB} GB", f"{memory_gb:.2f} GB", memory_gb <= MOST_MEMORY_GB),
        *judge(json.loads((out / "summary.json").read_text())),
    ]
    for claim, found, holds in lines:
        print(f"{'holds' if holds else 'FAILS':<6} {claim}: {found}")
    return 0 if all(holds for _, _, holds in lines) else 1


def run_demo(out: Path, seed: int) -> tuple[float, float]:
    """(wall seconds, peak resident memory in GB, summed over the demo's processes)."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "physiofast", "demo", "--out", str(out), "--seed", str(seed)]
    demo = subprocess.Popen(command)
    peak, over = [0.0], threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(demo.pid, peak, over))
    watcher.start()
    status = demo.wait()
    over.set()
    watcher.join()
    if status:
        sys.exit(status)
    return time.perf_counter() - began, max(peak[0], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)


def watch_memory(pid: int, peak: list[float], over: threading.Event) -> None:
    """Sample the resident memory of a process and its descendants ten times a second (Linux)."""
    page_gb = os.sysconf("SC_PAGE_SIZE") / 2**30
    while not over.wait(0.1):
        total = 0.0
        for process in descendants(pid):
            try:
                total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * page_gb
            except (OSError, IndexError):
                continue  # it ended between listing and reading
        peak[0] = max(peak[0], total)


def descendants(pid: int) -> list[int]:
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in children.read_text().split():
                found += descendants(int(child))
        except OSError:
            continue
    return found


def judge(summary: dict) -> list[tuple[str, str, bool]]:
    """What the demo must show: (claim, what was found, whether it holds)."""
    lines = []
    for name, entry in summary["errors"].items():
        error, share = entry["error"], entry["predictable_share"]["total"]
        if share >= 0.1:
            lines.append(
                (f"{name} error at most 1 - half its predictable share", f"{error:.3f}", error <= 1 - share / 2)
            )
        elif share < 0.02:
            lines.append(
                (
                    f"{name} error within 0.03 of 1, for there is nothing to predict",
                    f"{error:.3f}",
                    abs(error - 1) <= 0.03,
                )
            )
        else:
            lines.append((f"{name} error (predictable share {share:.2f}: no claim)", f"{error:.3f}", True))
    stage = summary["probes"]["tasks"]["stage"]
    gain = stage["differences"]["pretrained - untrained"]["balanced_accuracy"]
    found = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    lines.append(("stage probe, trained minus untrained: the paired interval is above 0", found, gain["low"] > 0))
    band = stage["models"]["band_power"]["scores"]["balanced_accuracy"]["value"]
    lines.append(("band powers reach 0.75 to 0.90 balanced accuracy", f"{band:.3f}", 0.75 <= band <= 0.9))
    return lines


if __name__ == "__main__":
    sys.exit(main())
