"""Memory beyond the output, of whole jobs in a process of their own, C++ and all, as docs/performance.md bounds it.

8 hours of 13 channels: what keeps all of them as float64 needs 600 MB, and SciPy, one channel after another, 300.
"""

import numpy as np
import pytest

from benchmarks.footprint import extra_megabytes
from physiofast import engine
from physiofast.conditioning import design_resampler, filter_sos
from tests.memory import little_memory

pytestmark = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))

CHANNELS, SAMPLES = 13, 8 * 3600 * 200
PER_THREAD_MB, FILTERED_MB = 32, 200


def make_job(path, threads, what):
    """The job, with its output touched."""
    engine.set_threads(threads)
    file = engine.SignalFile(path, 16, [1] * CHANNELS, SAMPLES)
    if what == "decode":
        out = np.ones((CHANNELS, SAMPLES), np.int16)
        return lambda: file.decode(range(CHANNELS), out=out)
    if what == "resample":
        resampler = design_resampler(200, 128, pass_hz=35)
        out = np.ones((CHANNELS, resampler.num_outputs(SAMPLES)), np.float32)
        return lambda: engine.resample(file, resampler, out=out)
    out, sos = np.ones((CHANNELS, SAMPLES), np.float32), filter_sos(200, 0.3, 35, notch_hz=50)
    return lambda: engine.zero_phase(file, sos, out=out)


@pytest.mark.parametrize(("what", "threads"), [("decode", 2), ("resample", 1), ("resample", 2), ("zero_phase", 2)])
def test_memory_beyond_the_output(tmp_path, what, threads):
    with (tmp_path / "x.dat").open("wb") as stream:
        stream.truncate(2 * CHANNELS * SAMPLES)
    most = FILTERED_MB if what == "zero_phase" else PER_THREAD_MB * threads
    assert extra_megabytes(make_job, tmp_path / "x.dat", threads, what) <= most


def test_a_large_allocation_is_noticed():
    """4 GB that nobody touches: more than what other tests have freed, which may serve again."""
    for empty in (np.empty, engine.empty):
        with little_memory(64 << 20), pytest.raises(MemoryError):
            empty(4 << 30, np.uint8)
        assert empty(4 << 30, np.uint8).size == 4 << 30
