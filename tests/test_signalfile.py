"""Signal files: every format against the wfdb package and the NumPy twin; damaged and lying ones are refused."""

import gc
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine
from physiofast.engine import Calibration, FileError, SignalFile, SignalFileReference
from physiofast.io.wfdb_samples import call_wfdb
from tests.memory import little_memory
from tests.signalfiles import (
    BOTH,
    FORMATS,
    INVALID,
    planes,
    signal_files,
    write_signal_file,
)

pytestmark = pytest.mark.native
native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))


def read_by_wfdb(path, fmt, first, last):
    options = {"sampfrom": first, "sampto": last, "smooth_frames": False}
    if fmt == 61:  # wfdb cannot name the type of big-endian samples, so it gives no digital ones
        physical = call_wfdb("rdrecord", str(path), **options).e_p_signal
        return [np.where(np.isnan(x), INVALID[61], np.round(x * 200)) for x in physical]
    return call_wfdb("rdrecord", str(path), physical=False, return_res=32, **options).e_d_signal


@settings(max_examples=300, deadline=None)
@given(signal_files(), st.data())
def test_every_format_equals_wfdb(case, data):
    fmt, counts, num_frames, _, flat, initial = case
    first = data.draw(st.integers(0, num_frames - 1))
    last = data.draw(st.integers(first + 1, num_frames))
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=8))
    with tempfile.TemporaryDirectory() as folder:
        arguments, options = write_signal_file(folder, case)
        # wfdb decodes format 8 rightly from the beginning only.
        start = 0 if fmt == 8 else first
        read = read_by_wfdb(Path(folder) / "x", fmt, start, last)
        for kind in (SignalFile, SignalFileReference):
            file = kind(*arguments, **options)
            found = file.decode_runs(chosen, [first * counts[c] for c in chosen], [last * counts[c] for c in chosen])
            for channel, values in zip(chosen, found, strict=True):
                expected = read[channel][(first - start) * counts[channel] :]
                np.testing.assert_array_equal(values, expected)
                plain = planes(fmt, flat, counts, initial)[channel]
                np.testing.assert_array_equal(values, plain[first * counts[channel] : last * counts[channel]])
                assert values.dtype == file.dtype


@st.composite
def runs_of(draw, counts, num_frames):
    channels = draw(st.lists(st.integers(0, len(counts) - 1), max_size=10))
    first = [draw(st.integers(0, counts[c] * num_frames)) for c in channels]
    last = [draw(st.integers(f, counts[c] * num_frames)) for f, c in zip(first, channels, strict=True)]
    return channels, first, last


@settings(max_examples=300, deadline=None)
@given(signal_files(), st.data())
def test_runs_of_any_range_and_type_equal_twin_and_definition(case, data):
    fmt, counts, num_frames, _, flat, initial = case
    runs = data.draw(runs_of(counts, num_frames))
    dtype = data.draw(st.sampled_from(("int32", "float32", "float64") + (("int16",) if fmt not in (8, 24, 32) else ())))
    with tempfile.TemporaryDirectory() as folder:
        arguments, options = write_signal_file(folder, case)
        sums, twin_sums = (np.full(len(runs[0]), 77, np.uint16) for _ in range(2))
        found = SignalFile(*arguments, **options).decode_runs(*runs, dtype=dtype, checksums=sums)
        twin = SignalFileReference(*arguments, **options).decode_runs(*runs, dtype=dtype, checksums=twin_sums)
    whole = planes(fmt, flat, counts, initial)
    expected = [int(whole[c][f:e].sum(dtype=np.int64)) % 65536 for c, f, e in zip(*runs, strict=True)]
    assert sums.tolist() == twin_sums.tolist() == expected
    for channel, first, last, a, b in zip(*runs, found, twin, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, whole[channel][first:last].astype(dtype))


@settings(max_examples=200, deadline=None)
@given(signal_files(), st.data())
def test_physical_values_equal_twin_and_definition(case, data):
    fmt, counts, num_frames, _, flat, initial = case
    runs = data.draw(runs_of(counts, num_frames))
    gains = st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6)
    calibration = Calibration(
        [data.draw(gains) for _ in counts],
        [data.draw(st.floats(-1e6, 1e6) | st.integers(-32768, 32767)) for _ in counts],
        [data.draw(st.sampled_from((None, INVALID.get(fmt, -(2**31)), 0))) for _ in counts],
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments, options = write_signal_file(folder, case)
        file, twin = SignalFile(*arguments, **options), SignalFileReference(*arguments, **options)
        exact = file.decode_runs(*runs, calibration=calibration, dtype=np.float64)
        single = file.decode_runs(*runs, calibration=calibration)
        for a, b in zip(exact, twin.decode_runs(*runs, calibration=calibration, dtype=np.float64), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(single, twin.decode_runs(*runs, calibration=calibration), strict=True):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(a, b)
    whole = planes(fmt, flat, counts, initial)
    for channel, first, last, a, b in zip(*runs, exact, single, strict=True):
        stored = whole[channel][first:last]
        expected = (stored - np.float64(calibration.baseline[channel])) / calibration.gain[channel]
        expected[stored == calibration.invalid[channel]] = np.nan
        np.testing.assert_array_equal(a, expected)
        np.testing.assert_array_max_ulp(b[~np.isnan(b)], expected[~np.isnan(b)].astype(np.float32), maxulp=1)
        np.testing.assert_array_equal(np.isnan(b), np.isnan(expected))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    ("counts", "num_frames"),
    [
        ([1] * 13, 20_011),  # many blocks of interleaved samples
        ([4, 4, 2, 1, 1, 1], 9_007),
        ([3000, 30, 5000, 1, 2500, 60], 17),  # data records, some of which are skipped
        ([150_001, 1, 90_000], 3),  # a frame of many blocks
        ([1], 200_003),
    ],
)
def test_many_blocks(tmp_path, fmt, counts, num_frames):
    """Random bytes: also the bits that a format does not use."""
    rng = np.random.default_rng(fmt)
    path = tmp_path / "x.dat"
    path.write_bytes(rng.bytes(7 + 4 * num_frames * sum(counts)))
    arguments, options = (path, fmt, counts, num_frames), {"byte_offset": 7, "initial_values": [3] * len(counts)}
    file, twin = SignalFile(*arguments, **options), SignalFileReference(*arguments, **options)
    for channels in ([0], list(range(len(counts))), [len(counts) - 1, 0, 0], [len(counts) // 2]):
        totals = [file.num_samples(c) for c in channels]
        first = [int(rng.integers(0, n // 2 + 1)) for n in totals]
        last = [int(rng.integers(n // 2, n + 1)) for n in totals]
        for begin, end in (([0] * len(channels), totals), (first, last)):
            expected = twin.decode_runs(channels, begin, end)
            for a, b in zip(file.decode_runs(channels, begin, end), expected, strict=True):
                np.testing.assert_array_equal(a, b)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 700), st.data())
def test_interleaved_planes(width, num_frames, data):
    """Format 16 with one sample per frame, which has a path of its own: subsets, orders, repeats, ranges."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    samples = rng.integers(-(2**15), 2**15, (num_frames, width)).astype("<i2")
    channels = data.draw(st.permutations(range(width)))[: data.draw(st.integers(1, width))]
    if data.draw(st.booleans()):
        channels = [*channels, channels[0]]
    first = data.draw(st.integers(0, num_frames))
    last = data.draw(st.integers(first, num_frames))
    dtype = data.draw(st.sampled_from(("int16", "int32", "float32", "float64")))
    calibration = Calibration([3.0] * width, [7.0] * width, [-(2**15)] * width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.dat"
        path.write_bytes(b"q" + samples.tobytes())
        file = SignalFile(path, 16, [1] * width, num_frames, byte_offset=1)
        twin = SignalFileReference(path, 16, [1] * width, num_frames, byte_offset=1)
        found = file.decode(channels, first, last, dtype=dtype)
        np.testing.assert_array_equal(found, samples[first:last, channels].T.astype(dtype))
        sums = np.empty(len(channels), np.uint16)
        runs = channels, [first] * len(channels), [last] * len(channels)
        for values, expected in zip(file.decode_runs(*runs, checksums=sums), found, strict=True):
            np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(sums, samples[first:last, channels].sum(axis=0, dtype=np.int64) % 65536)
        options = {"calibration": calibration, "dtype": "float64" if dtype == "float64" else "float32"}
        exact = twin.decode(channels, first, last, **options)
        np.testing.assert_array_equal(file.decode(channels, first, last, **options), exact)


@BOTH
def test_planes_into_a_buffer(tmp_path, kind):
    samples = np.random.default_rng(1).integers(-(2**15), 2**15, (500, 4)).astype("<i2")
    (tmp_path / "x.dat").write_bytes(b"abc" + samples.tobytes())
    file = kind(tmp_path / "x.dat", 16, [1] * 4, 500, byte_offset=3)
    np.testing.assert_array_equal(file.decode([2, 0, 2]), samples[:, [2, 0, 2]].T)
    np.testing.assert_array_equal(file.decode([3], 17, 401), samples[17:401, [3]].T)
    wide = np.full((3, 600), -1.5, np.float32)
    out = wide[:, 10:20]
    assert file.decode([1, 3, 0], 100, 110, out=out) is out
    np.testing.assert_array_equal(out, samples[100:110, [1, 3, 0]].T)
    assert (np.delete(wide, np.s_[10:20], axis=1) == -1.5).all()
    assert file.decode([], 5, 9).shape == (0, 4)
    assert file.decode([1], 500, 500).shape == (1, 0)
    assert file.decode_runs([], [], []) == []
    ranges = [0, 1, 2, 3], [9, 9, 9, 9], [400, 389, 400, 17]  # that begin together
    for channel, last, values in zip(ranges[0], ranges[2], file.decode_runs(*ranges), strict=True):
        np.testing.assert_array_equal(values, samples[9:last, channel])
    given = [np.zeros(4, np.int32), np.zeros(9, np.int32)]
    read = file.decode_runs([3, 1], [5, 7], [9, 16], out=given)
    assert read[0] is given[0] and read[1] is given[1]
    np.testing.assert_array_equal(read[0], samples[5:9, 3])
    np.testing.assert_array_equal(read[1], samples[7:16, 1])
    for wrong in ([given[0]], [given[1], given[0]], [given[0], np.zeros(9)], [given[0], np.zeros(18, np.int32)[::2]]):
        with pytest.raises(ValueError, match=r"out.*: expected .*, found"):
            file.decode_runs([3, 1], [5, 7], [9, 16], out=wrong)
    assert file.num_samples(1) == 500


@BOTH
def test_planes_of_different_rates(tmp_path, kind):
    (tmp_path / "x.dat").write_bytes(bytes(range(90)))
    file = kind(tmp_path / "x.dat", 80, [4, 2, 3], 10)
    with pytest.raises(ValueError, match="channels of different rates have no common end; give last"):
        file.decode([0, 1])
    np.testing.assert_array_equal(file.decode([0, 1], 1, 5), [[-127, -126, -125, -119], [-123, -115, -114, -106]])


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 17}, "format: expected one of 8, 16, .* found 17"),
        ({"samples_per_frame": []}, "samples_per_frame: expected 1 channel or more, found none"),
        ({"samples_per_frame": [1, 0]}, "samples_per_frame of channel 1: expected 1 to .*, found 0"),
        ({"samples_per_frame": [-3]}, "samples_per_frame of channel 0: expected 1 to .*, found -3"),
        ({"samples_per_frame": [2**62, 2**62]}, f"samples_per_frame of channel 0: .* found {2**62}"),
        ({"samples_per_frame": [2**60, 1]}, "samples_per_frame of channel 1: expected 1 to 0, found 1"),
        ({"samples_per_frame": [2**63]}, f"expected sizes of 64 bits, found {2**63}"),
        ({"num_frames": -1}, "num_frames for a width of 3: expected 0 to .*, found -1"),
        ({"num_frames": 2**62}, f"num_frames for a width of 3: .* found {2**62}"),
        ({"byte_offset": -1}, "byte_offset of format 16: expected 0 to .*, found -1"),
        ({"byte_offset": 2**62}, f"byte_offset of format 16: .* found {2**62}"),
        ({"initial_values": [1]}, "initial_values: expected one for each of 2 channels, found 1"),
        ({"initial_values": [1, 2**31]}, f"expected initial values of 32 bits, found {2**31}"),
        ({"num_frames": 2**40}, rf"x\.dat: byte 60: expected {6 * 2**40} bytes \({2**40} frames of 3 samples in "),
        ({"num_frames": 11}, r"in format 16 from byte 0\), found 60 bytes"),
        ({"byte_offset": 1}, r"x\.dat: byte 60: expected 61 bytes .* from byte 1\), found 60 bytes"),
        ({"format": 16.7}, r"format must be a whole number; found 16\.7"),
        ({"num_frames": 2.5}, r"num_frames must be a whole number; found 2\.5"),
        ({"initial_values": np.array([1.5, 2])}, r"initial_values must be a whole number; found .*1\.5"),
        ({"format": 24}, r"x\.dat: byte 60: expected 90 bytes .* found 60 bytes"),
    ],
)
def test_lying_headers(tmp_path, kind, change, message):
    (tmp_path / "x.dat").write_bytes(bytes(60))
    layout = {"format": 16, "samples_per_frame": [1, 2], "num_frames": 10, "byte_offset": 0, "initial_values": None}
    tracemalloc.start()
    with little_memory(64 << 20), pytest.raises(ValueError, match=message):
        kind(tmp_path / "x.dat", **layout | change)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2], 0, 5), "channels 1: expected 0 to 1, found 2"),
        (([-1], 0, 5), "channels 0: expected 0 to 1, found -1"),
        (([0], -1, 5), "first sample of channels 0: expected 0 to 10, found -1"),
        (([0], 11, 12), "first sample of channels 0: expected 0 to 10, found 11"),
        (([0], 3, 11), "number of samples of channels 0: expected 0 to 7 from sample 3, found 8"),
        (([1, 0], 3, 2), "number of samples of channels 0: expected 0 to 17 from sample 3, found -1"),
        (([1], 2, 2**62), "number of samples of channels 0: expected 0 to 18 from sample 2, found"),
    ],
)
def test_ranges_outside_the_file(tmp_path, kind, arguments, message):
    (tmp_path / "x.dat").write_bytes(bytes(60))
    file = kind(tmp_path / "x.dat", 16, [1, 2], 10)
    with pytest.raises(ValueError, match=rf"x\.dat: {message}"):
        file.decode(*arguments)
    channels, first, last = arguments
    with pytest.raises(ValueError, match=message):
        file.decode_runs(channels, [first] * len(channels), [last] * len(channels))
    if 0 <= last - first < 100:
        with pytest.raises(ValueError, match=message):
            file.decode(*arguments, out=np.empty((len(channels), last - first), np.int16))


@BOTH
def test_types_and_outputs_that_are_refused(tmp_path, kind):
    (tmp_path / "x.dat").write_bytes(bytes(60))
    for fmt in (24, 32):
        file = kind(tmp_path / "x.dat", fmt, [1, 2], 5)
        with pytest.raises(ValueError, match=f"int16 does not hold format {fmt}"):
            file.decode([0], dtype=np.int16)
    with pytest.raises(ValueError, match="dtype: expected int16, int32, float32 or float64, found uint8"):
        file.decode([0], dtype=np.uint8)
    for out in (np.empty((1, 4), np.int32), np.empty((2, 5), np.int32), np.empty((1, 10), np.int32)[:, ::2]):
        with pytest.raises(ValueError, match="out needs one contiguous row of count samples per channel"):
            file.decode([0], 0, 5, out=out)
    read_only = np.empty((1, 5), np.int32)
    read_only.flags.writeable = False
    for out in (read_only, np.empty((1, 5), np.int64), np.empty((1, 5), ">i4")):
        with pytest.raises(ValueError, match="out needs writeable int16, int32, float32 or float64"):
            file.decode([0], 0, 5, out=out)
    calibration = Calibration([1.0, 1.0], [0.0, 0.0], [None, None])
    with pytest.raises(ValueError, match="physical values need float32 or float64"):
        file.decode([0], calibration=calibration, dtype=np.int32)
    with pytest.raises(ValueError, match="calibrations: expected one for each of 2 channels, found 1"):
        file.decode([0], calibration=Calibration([1.0], [0.0], [None]))


@BOTH
@pytest.mark.parametrize(
    "sums",
    [
        np.zeros(1, np.uint16),
        np.zeros(2, np.int64),
        np.zeros((1, 2), np.uint16),
        np.zeros(4, np.uint16)[::2],
        np.broadcast_to(np.uint16(0), 2),
    ],
)
def test_sums_that_do_not_fit(tmp_path, kind, sums):
    np.arange(20, dtype="<i2").tofile(tmp_path / "x.dat")
    file = kind(tmp_path / "x.dat", 16, [1, 1], 10)
    out = [np.zeros(5, np.int16), np.zeros(5, np.int16)]
    with pytest.raises(ValueError, match=r"checksums: expected writeable, contiguous uint16 \[2\], found"):
        file.decode_runs([0, 1], [0, 0], [5, 5], out=out, checksums=sums)
    assert not np.any(out)


@BOTH
def test_arrays_of_initial_values_and_channels_that_do_not_exist(tmp_path, kind):
    (tmp_path / "x.dat").write_bytes(bytes([1, 2, 1, 2]))
    file = kind(tmp_path / "x.dat", np.int64(8), np.array([1, 1]), np.int64(2), initial_values=np.array([4, 5]))
    np.testing.assert_array_equal(file.decode([0, 1]), [[5, 6], [7, 9]])
    assert file.num_samples(1) == 2
    for channel in (-1, 2):
        with pytest.raises(ValueError, match=f"expected channel 0 to 1, found {channel}"):
            file.num_samples(channel)


@BOTH
def test_names_with_a_null_character(tmp_path, kind):
    (tmp_path / "x.dat").write_bytes(bytes(4))
    for name in (f"{tmp_path}/x.dat\0.evil", os.fsencode(f"{tmp_path}/x.dat\0.evil")):
        with pytest.raises(ValueError, match="found a null character in it"):
            kind(name, 16, [1], 2)


@pytest.mark.parametrize("invalid", [2.5, "3"])
def test_invalid_values_that_are_none(invalid):
    with pytest.raises(ValueError, match="invalid 1 of a calibration must be a whole number; found"):
        Calibration([1.0, 1.0], [0.0, 0.0], [None, invalid])
    assert Calibration([1.0], [0.0], [2**80]).columns[2] == 2**62


@pytest.mark.parametrize("gain", [0.0, -0.0, np.nan, np.inf])
def test_gains_that_are_none(gain):
    with pytest.raises(ValueError, match="calibration of channel 1: expected a finite gain other than 0"):
        Calibration([1.0, gain], [0.0, 0.0], [None, None])
    with pytest.raises(ValueError, match="calibration of 1 gains, 2 baselines, 1 invalids"):
        Calibration([1.0], [0.0, 0.0], [None])


@BOTH
def test_format_8_beyond_int16(tmp_path, kind):
    (tmp_path / "x.dat").write_bytes(bytes([1, 100, 1, 100, 1, 100]))
    file = kind(tmp_path / "x.dat", 8, [1, 1], 3, initial_values=[0, 32_500])
    np.testing.assert_array_equal(file.decode([0, 1]), [[1, 2, 3], [32_600, 32_700, 32_800]])
    np.testing.assert_array_equal(file.decode([0, 1], 0, 2, dtype=np.int16), [[1, 2], [32_600, 32_700]])
    with pytest.raises(FileError, match=r"byte 5: expected a sample that int16 holds .*, found 32800"):
        file.decode([1], dtype=np.int16)


@BOTH
def test_format_8_beyond_int16_names_the_sample_that_comes_first(tmp_path, kind):
    """In the file, not in the order of channels."""
    steps = np.random.default_rng(0).choice([100, 120], (4000, 2)).astype(np.int8)
    steps.tofile(tmp_path / "x.dat")
    file = kind(tmp_path / "x.dat", 8, [1, 1], 4000, initial_values=[-30_000, 20_000])
    values = file.decode([0, 1])
    first = min(2 * int(np.argmax(values[c] >= 2**15)) + c for c in (0, 1))
    for channels in ([0, 1], [1, 0]):
        with pytest.raises(FileError, match=f"byte {first}: expected a sample that int16 holds"):
            file.decode(channels, dtype=np.int16)


@BOTH
def test_format_8_wraps_like_int32(tmp_path, kind):
    (tmp_path / "x.dat").write_bytes(bytes([127, 1]))
    file = kind(tmp_path / "x.dat", 8, [1], 2, initial_values=[2**31 - 100])
    np.testing.assert_array_equal(file.decode([0])[0], [-(2**31) + 27, -(2**31) + 28])


def test_format_8_goes_on_from_checkpoints(tmp_path):
    counts, num_frames = [3, 1, 700], 3_000
    (tmp_path / "x.dat").write_bytes(np.random.default_rng(8).bytes(num_frames * sum(counts)))
    twin = SignalFileReference(tmp_path / "x.dat", 8, counts, num_frames, initial_values=[5, -5, 9])
    whole = [twin.decode([c])[0] for c in range(3)]
    file = SignalFile(tmp_path / "x.dat", 8, counts, num_frames, initial_values=[5, -5, 9])
    rng = np.random.default_rng(9)
    for _ in range(60):
        channel = int(rng.integers(3))
        first, last = sorted(rng.integers(0, whole[channel].size + 1, 2).tolist())
        np.testing.assert_array_equal(file.decode([channel], first, last)[0], whole[channel][first:last])


@BOTH
@pytest.mark.parametrize("fmt", FORMATS)
def test_a_file_that_shrinks_while_open(tmp_path, kind, fmt):
    path = tmp_path / "x.dat"
    path.write_bytes(bytes(5 + 4 * 3000))
    file = kind(path, fmt, [1, 2], 1000, byte_offset=5)
    os.truncate(path, 5 + 800)
    with pytest.raises(
        FileError, match=r"x\.dat: byte 805: expected [0-9]+ more bytes, found the end of the file"
    ) as e:
        file.decode_runs([0, 1], [0, 0], [1000, 2000])
    assert (e.value.path, e.value.byte_offset, e.value.found) == (str(path), 805, "the end of the file")
    assert file.decode([1], 0, 100).shape == (1, 100)


@BOTH
def test_what_is_no_regular_file(tmp_path, kind):
    with pytest.raises(FileNotFoundError) as e:
        kind(tmp_path / "none.dat", 16, [1], 1)
    assert e.value.filename == str(tmp_path / "none.dat")
    with pytest.raises(IsADirectoryError):
        kind(tmp_path, 16, [1], 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe: byte 0: expected a regular file, found a device, pipe or socket"):
        kind(tmp_path / "pipe", 16, [1], 1)


@BOTH
def test_names_that_are_not_utf8(tmp_path, kind):
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xe9.dat")
    with open(path, "wb") as file:
        file.write(bytes(4))
    assert kind(path, 16, [1], 2).decode([0]).tolist() == [[0, 0]]
    with pytest.raises(FileError) as e:
        kind(os.fsdecode(path), 16, [1], 3)
    assert e.value.path == os.fsdecode(path)


@BOTH
def test_a_copy_by_pickle_opens_the_file_again(tmp_path, kind):
    (tmp_path / "x.dat").write_bytes(bytes(range(20)))
    file = kind(tmp_path / "x.dat", 8, [1, 2], 6, byte_offset=2, initial_values=[7, 9])
    copy = pickle.loads(pickle.dumps(file))
    assert type(copy) is kind
    np.testing.assert_array_equal(copy.decode([1]), file.decode([1]))
    assert repr(copy) == repr(file)


def test_files_are_closed(tmp_path):
    (tmp_path / "x.dat").write_bytes(bytes(20))
    for kind in (SignalFile, SignalFileReference):
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            kind(tmp_path / "x.dat", 16, [1], 10).decode([0])
            with pytest.raises(FileError):
                kind(tmp_path / "x.dat", 16, [1], 11)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before


def test_threads_share_a_file(tmp_path):
    samples = np.random.default_rng(4).integers(-2000, 2000, (40_000, 3)).astype("<i2")
    (tmp_path / "x.dat").write_bytes(samples.tobytes())
    (tmp_path / "y.dat").write_bytes(np.diff(samples % 60, axis=0, prepend=0).astype(np.int8).tobytes())
    file, differences = (
        SignalFile(tmp_path / "x.dat", 16, [1] * 3, 40_000),
        SignalFile(tmp_path / "y.dat", 8, [1] * 3, 40_000),
    )
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            first, last = sorted(rng.integers(0, 40_001, 2).tolist())
            part = samples[first:last].T
            if not (file.decode(range(3), first, last) == part).all():
                wrong.append(("16", first, last))
            if not (differences.decode(range(3), first, last) == part % 60).all():
                wrong.append(("8", first, last))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@native_only
@pytest.mark.parametrize(
    "layout",
    ["16, [1] * 13, 1_000_000", "212, [1] * 13, 1_000_000", "8, [1] * 13, 1_000_000", "24, [6_000_000, 1, 2], 1"],
)
def test_memory_beyond_the_output(tmp_path, layout):
    """The highest resident size grows by no more than the stated bound, here doubled for the allocator."""
    code = f"""
import resource, numpy as np
from physiofast.engine import SignalFile
file = SignalFile("x.dat", {layout}, byte_offset=1)
last = min(100, file.num_samples(1))
file.decode([1], 0, last)
outs = [np.ones((1, file.num_samples(c)), np.float32) for c in range(2)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for c in range(2):
    file.decode([c], out=outs[c])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    with (tmp_path / "x.dat").open("wb") as file:
        file.truncate(30_000_000)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 1024


@native_only
def test_the_gil_is_released(tmp_path):
    with (tmp_path / "x.dat").open("wb") as stream:
        stream.truncate(2 * 16 * 3_000_000)
    file = SignalFile(tmp_path / "x.dat", 16, [1] * 16, 3_000_000)
    out = np.empty((16, 3_000_000), np.float32)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    begin = time.perf_counter()
    for _ in range(3):
        file.decode(range(16), out=out)
    end = time.perf_counter()
    done.set()
    ticker.join()
    # Held, the other thread would get its turn between calls only: about three times.
    during = sum(begin < t < end for t in ticks)
    assert during >= 10, f"another thread ran {during} times in {end - begin:.3f} s"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5000), st.sampled_from((np.int16, np.int32)), st.integers(0, 2**31))
def test_checksum(count, dtype, seed):
    limits = np.iinfo(dtype)
    samples = np.random.default_rng(seed).integers(limits.min, limits.max, count, endpoint=True, dtype=dtype)
    expected = sum(samples.tolist()) % 65536
    assert engine.checksum(samples) == engine.checksum_reference(samples) == expected
    assert engine.checksum(samples[::2]) == sum(samples[::2].tolist()) % 65536


@pytest.mark.parametrize("samples", [np.zeros(3, np.int64), np.zeros((2, 2), np.int16), np.zeros(3, np.float32)])
def test_checksum_refuses(samples):
    with pytest.raises(ValueError, match=r"samples: expected int16 or int32 \[n\], found"):
        engine.checksum(samples)
