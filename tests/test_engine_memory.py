"""Arrays that take over memory of others."""

import gc

import numpy as np
import pytest

from physiofast import engine

native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))
native = pytest.mark.native  # but not where a sanitizer's own allocator would be what is tested
MB = 1 << 20


@native
@pytest.mark.parametrize("shape", [0, 5, (3, 4), (2, 0), (2, MB), (1, 3 * MB + 1)])
@pytest.mark.parametrize("dtype", ["int16", "float32", np.float64])
def test_empty_is_an_array_like_any_other(shape, dtype):
    found = engine.empty(shape, dtype)
    expected = np.empty(shape, dtype)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.flags.carray
    found[...] = 7
    assert (found == 7).all()


@native
def test_arrays_that_live_share_nothing():
    arrays = [engine.empty(n, np.int16) for n in (MB, MB, MB + 1, 2 * MB, MB)]
    for i, array in enumerate(arrays):
        array[:] = i
    view = arrays[1][5:]
    del arrays[1], array
    gc.collect()
    other = engine.empty(MB, np.int16)
    other[:] = 99
    assert [int(x.min()) for x in arrays] == [int(x.max()) for x in arrays] == [0, 2, 3, 4]
    assert (view == 1).all()  # a view keeps the memory of its array


@native_only
def test_memory_of_a_freed_array_serves_again_and_is_bounded():
    place = engine.empty(8 * MB, np.int16).ctypes.data
    assert engine.empty(8 * MB - 100, np.int16).ctypes.data == place
    many = [engine.empty(16 * MB, np.uint8) for _ in range(40)]
    for array in many:
        array[:] = 1
    before = _resident()
    del many, array
    assert before - _resident() > 640 * MB - 256 * MB - 32 * MB


@pytest.mark.parametrize(
    ("shape", "dtype"), [(-1, np.int16), ((2, -1), np.int16), ((2 * MB, -1), np.int16), (3, object)]
)
def test_empty_refuses(shape, dtype):
    with pytest.raises(ValueError, match="negative|plain numbers"):
        engine.empty(shape, dtype)


@pytest.mark.parametrize("size", [2**45, 2**60, 2**70])
def test_more_than_there_is(size):
    with pytest.raises((MemoryError, ValueError)):
        engine.empty(size, np.float64)


def _resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
