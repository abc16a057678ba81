"""Many windows of a signal file in one call: against `decode`, the NumPy twin and the written samples."""

import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast.engine import Calibration, FileError, SignalFile, SignalFileReference
from tests.signalfiles import BOTH, planes, signal_files, write_signal_file

pytestmark = pytest.mark.native


@settings(max_examples=200, deadline=None)
@given(signal_files(), st.data())
def test_windows_equal_twin_and_definition(case, data):
    fmt, counts, num_frames, _, flat, initial = case
    rate = data.draw(st.sampled_from(counts))
    channels = data.draw(st.lists(st.sampled_from([c for c, k in enumerate(counts) if k == rate]), max_size=6))
    length = data.draw(st.integers(0, min(rate * num_frames, 90)))
    starts = data.draw(st.lists(st.integers(0, rate * num_frames - length), max_size=40))
    dtype = data.draw(st.sampled_from(("int32", "float32", "float64") + (("int16",) if fmt not in (8, 24, 32) else ())))
    physical = data.draw(st.booleans()) and dtype.startswith("float")
    calibration = Calibration([-3.0] * len(counts), [7.5] * len(counts), [0] * len(counts)) if physical else None
    options = {"calibration": calibration, "dtype": dtype}
    whole = planes(fmt, flat, counts, initial)
    with tempfile.TemporaryDirectory() as folder:
        arguments, layout = write_signal_file(folder, case)
        file, twin = SignalFile(*arguments, **layout), SignalFileReference(*arguments, **layout)
        found = file.decode_windows(channels, starts, length, **options)
        assert found.shape == (len(starts), len(channels), length)
        np.testing.assert_array_equal(found, twin.decode_windows(channels, starts, length, **options))
        buffer = np.full(found.shape, 99, dtype)
        given = file.decode_windows(channels, np.array(starts, np.int64), length, calibration=calibration, out=buffer)
        assert given is buffer
        np.testing.assert_array_equal(buffer, found)
        for window, start in zip(found, starts, strict=True):
            expected = file.decode(channels, start, start + length, **options)
            np.testing.assert_array_equal(window, expected)
            if not physical:
                plain = [whole[c][start : start + length] for c in channels]
                np.testing.assert_array_equal(window, np.array(plain, dtype).reshape(window.shape))


@BOTH
def test_windows_that_are_refused(tmp_path, kind):
    (tmp_path / "x.dat").write_bytes(bytes(60))
    file = kind(tmp_path / "x.dat", 16, [1, 2, 1], 7)
    for arguments, message in (
        (([0], [0, 5], 3), "number of samples of channels 0: expected 0 to 2 from sample 5, found 3"),
        (([2, 0], [3, -1], 3), "first sample of channels 0: expected 0 to 7, found -1"),
        (([0], [8], 0), "first sample of channels 0: expected 0 to 7, found 8"),
        (([0, 3], [0], 3), "channels 1: expected 0 to 2, found 3"),
        (([0], [0], -1), "length: expected 0 or more, found -1"),
        (([0, 1], [0], 3), r"windows need channels of one rate; found \[1, 2\] samples per frame"),
        (([0], [0.5], 3), r"starts: expected whole numbers \[W\], found float64"),
        (([0], [2**64], 3), "starts: expected whole numbers|first sample"),
    ):
        with pytest.raises(ValueError, match=rf"x\.dat: .*{message}|x\.dat: {message}"):
            file.decode_windows(*arguments)
    for out in (np.empty((1, 1, 3), np.uint8), np.empty((1, 1, 4), np.int16), np.empty((1, 1, 6), np.int16)[..., ::2]):
        with pytest.raises(ValueError, match=r"out: expected writeable, contiguous int16, .* \[1, 1, 3\], found"):
            file.decode_windows([0], [0], 3, out=out)
    with pytest.raises(ValueError, match="physical values need float32 or float64"):
        file.decode_windows([0], [0], 3, calibration=Calibration([1.0] * 3, [0.0] * 3, [None] * 3), dtype=np.int16)
    wide = kind(tmp_path / "x.dat", 24, [1], 20)
    with pytest.raises(ValueError, match="int16 does not hold format 24"):
        wide.decode_windows([0], [0], 3, dtype=np.int16)
    with (tmp_path / "x.dat").open("r+b") as stream:
        stream.truncate(40)
    with pytest.raises(FileError, match=r"x\.dat: byte 40: expected .* found the end of the file"):
        file.decode_windows([0], [0, 4], 3)
