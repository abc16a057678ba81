import gc
import importlib.util
import os
import signal
from pathlib import Path

if os.environ.get("PYTEST_XDIST_WORKER"):  # workers share the cores; threads that wait for each other would spin
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # before NumPy and SciPy load theirs; in processes too
        os.environ.setdefault(name, "1")

import pytest
import torch

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before kernels are imported: they run on CPU tensors then
    if importlib.util.find_spec("triton"):
        from benchmarks.interpreter import patch_once

        patch_once()


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs and all their children do
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Modules and tests stay: no collection of garbage looks at their million objects again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings; its absence skips a test, and fails it where the data is required."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
    folder = Path(os.environ.get("PHYSIOFAST_REAL_DATA", beside))
    if not (folder / "SOURCES.md").is_file():
        message = f"no real recordings in {folder}; set PHYSIOFAST_REAL_DATA to their folder"
        if os.environ.get("CI") or os.environ.get("PHYSIOFAST_REQUIRE_REAL_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def poisoned_memory():
    """Uninitialised tensors hold NaN (or the largest int), so that an output that nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small store of random signals."""
    from tests.cohort import write_store

    return write_store(tmp_path_factory.mktemp("store"))
