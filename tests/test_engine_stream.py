"""Output that is larger than the caches is written past them: the same bits as its definition gives."""

import numpy as np
import pytest

from physiofast import engine

pytestmark = pytest.mark.native
RATES = (200, 64, 25, 1)


def recording(path, format, frames, samples_per_frame=RATES):
    """Random bytes, which every format but 8 reads as samples."""
    kind = engine.FORMATS[format]
    size = kind.num_bytes(frames * sum(samples_per_frame)) + 7
    path.write_bytes(np.random.default_rng(format).integers(0, 256, size, np.uint8).tobytes())
    return [
        cls(path, format, samples_per_frame, frames, byte_offset=7)
        for cls in (engine.SignalFile, engine.SignalFileReference)
    ]


@pytest.mark.parametrize("format", [16, 24, 61, 80, 212, 311])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_large_decode_equals_the_definition(tmp_path, format, dtype, threads):
    file, reference = recording(tmp_path / "night.dat", format, 9001)
    known = None
    if np.dtype(dtype).kind == "f":
        known = engine.Calibration([3.0, -7.5, 1e4, 0.1], [0.0, 12.5, -3.0, 100.0], [None, -32768, 5, 0])
    channels, first, last = (0, 1, 2, 3, 0), (3, 0, 20, 0, 77), (9001 * 200, 9001 * 64 - 5, 9001 * 25, 9001, 9000 * 200)
    kind, sums = {"dtype": dtype, "calibration": known}, np.zeros((2, 5), np.uint16)
    expected = reference.decode_runs(channels, first, last, checksums=sums[0], **kind)
    out = [np.full(x.size + 3, -1, dtype)[3:] for x in expected]  # lines do not begin with the first sample
    engine.set_threads(threads)
    try:
        found = file.decode_runs(channels, first, last, out=out, checksums=sums[1], **kind)
    finally:
        engine.set_threads(None)
    assert sum(x.nbytes for x in out) > 8 << 20
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(have, want)
    np.testing.assert_array_equal(*sums)


@pytest.mark.parametrize("channels", [3, 13])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_large_interleaved_decodes_and_windows(tmp_path, channels, dtype):
    file, reference = recording(tmp_path / "night.dat", 16, 6_000_000 // channels, [1] * channels)
    known = engine.Calibration([3.0] * channels, [0.5] * channels, [None] * channels) if dtype == np.float32 else None
    kind = {"dtype": dtype, "calibration": known}
    every, starts = range(channels), np.arange(0, 5_000_000 // channels, 1000)
    np.testing.assert_array_equal(file.decode(every, 5, **kind), reference.decode(every, 5, **kind))
    found = file.decode_windows(every, starts, 1001, **kind)
    assert found.nbytes > 8 << 20
    np.testing.assert_array_equal(found, reference.decode_windows(every, starts, 1001, **kind))


@pytest.mark.parametrize("window", [None, 997, 3000])
def test_large_resampled_windows_equal_small_ones(window):
    samples = np.random.default_rng(0).normal(size=(5, 1_300_000)).astype(np.float32)
    resampler = engine.Resampler(1, 2, np.hanning(21) / 10)
    found = engine.resample(samples, resampler, window=window)
    assert found.nbytes > 8 << 20
    for c in range(5):  # each of them is small
        np.testing.assert_array_equal(
            found[..., c : c + 1, :], engine.resample(samples[c : c + 1], resampler, window=window)
        )
