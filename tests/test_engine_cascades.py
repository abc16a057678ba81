"""Zeros of a cascade shared out among its sections: the same filter, and at least as exact."""

import numpy as np
import pytest
from scipy import signal

from physiofast import engine
from physiofast.engine.filters import _with_paired_zeros

pytestmark = pytest.mark.native
native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))
BAND = signal.butter(4, (0.3, 35), "bandpass", fs=200, output="sos")
NOTCH = signal.tf2sos(*signal.iirnotch(50, 30, fs=200))
SLOW = signal.butter(4, (0.1, 35), "bandpass", fs=512, output="sos")


def is_light(section):
    return section[1] == 0 and section[2] == -section[0]


@pytest.mark.parametrize(
    ("sos", "light"),
    [
        (BAND, 4),
        (np.concatenate([NOTCH, BAND]), 4),
        (signal.butter(3, (1, 40), "bandpass", fs=200, output="sos"), 3),
        (signal.butter(5, (1, 40), "bandpass", fs=200, output="sos"), 5),
        (signal.butter(4, 30, fs=200, output="sos"), 0),
        (signal.butter(4, 1, "highpass", fs=200, output="sos"), 0),
        (
            np.concatenate([signal.butter(2, f, kind, fs=200, output="sos") for f, kind in ((9, "high"), (30, "low"))]),
            2,
        ),
        (NOTCH, 0),
    ],
)
def test_the_zeros_are_those_of_the_filter(sos, light):
    found = _with_paired_zeros(sos)
    assert [bool(is_light(section)) for section in found] == [True] * light + [False] * (len(sos) - light)
    for have, want in zip(signal.sos2tf(found), signal.sos2tf(sos), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("others", [[], [NOTCH], [signal.butter(2, 20, fs=200, output="sos")], [BAND[:2]]])
def test_sections_of_a_group_equal_scipy_whatever_its_other_channels_have(others):
    """Kernels differ by how many sections of all channels have their zeros at 1 and -1; their bits do not."""
    x = np.random.default_rng(0).normal(size=(1 + len(others), 20_000))
    cascades = [np.concatenate([BAND, NOTCH]), *others]
    filters = [engine.ChannelFilter(channel=c, sos=sos) for c, sos in enumerate(cascades)]
    found = engine.condition(x, filters)
    for c, sos in enumerate(cascades):
        expected = signal.sosfiltfilt(sos, x[c])
        np.testing.assert_allclose(found[c], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    if engine.native:
        alone = engine.condition(x[:1], filters[:1])
        np.testing.assert_array_equal(alone[0], found[0])


@pytest.mark.parametrize("sos", [BAND, SLOW])
def test_an_offset_costs_less_precision_than_with_scipy(sos):
    x = 1e4 + np.random.default_rng(1).normal(size=200_000)
    expected = _exactly(sos, x)
    largest = np.abs(expected).max()
    error, scipys = (
        np.abs(y - expected).max() for y in (signal.sosfiltfilt(_with_paired_zeros(sos), x), signal.sosfiltfilt(sos, x))
    )
    assert error < 1e-9 * largest
    assert error < scipys / 10
    assert np.abs(engine.zero_phase(x[None], sos)[0] - expected).max() < 1e-6 * largest


def _exactly(sos, x):
    """`sosfiltfilt` in the 80 bits that SciPy filters in where it is given them."""
    edge = engine.padding(sos)
    x = np.pad(x.astype(np.longdouble), edge, "reflect", reflect_type="odd")
    gain, states = np.longdouble(1), []
    for b0, b1, b2, _, a1, a2 in sos.astype(np.longdouble):
        steady = gain * (b0 + b1 + b2) / (1 + a1 + a2)
        last = b2 * gain - a2 * steady
        states.append((b1 * gain - a1 * steady + last, last))
        gain = steady
    for _ in range(2):
        x = signal.sosfilt(sos.astype(np.longdouble), x, zi=np.array(states) * x[0])[0][::-1]
    return x[edge : x.size - edge]


@native_only
@pytest.mark.parametrize("width", [2, 3, 7, 8, 9, 13, 21])
def test_frames_give_the_bits_of_planes(width, tmp_path):
    """Frames of int16 are not taken apart where a group's channels are neighbours."""
    rng = np.random.default_rng(width)
    frames = np.ascontiguousarray(
        rng.integers(-32768, 32768, (9_001, width), np.int16)
    )  # its end is that of its memory
    (tmp_path / "x.dat").write_bytes(frames.tobytes())
    file = engine.SignalFile(tmp_path / "x.dat", 16, [1] * width, len(frames))
    gaps = np.array([[0, 3], [2047, 2050], [5000, 5001], [8990, 9001]])
    for chosen in (range(width), range(1, width), range(width)[::-1], [0, 0, width - 1]):
        filters = [
            engine.ChannelFilter(
                channel=c, sos=BAND, scale=0.01 * (i + 1), shift=i - 1.0, gaps=gaps if i % 5 == 1 else None
            )
            for i, c in enumerate(chosen)
        ]
        expected = engine.condition(np.ascontiguousarray(frames.T), filters)
        for source in (frames.T, file):
            np.testing.assert_array_equal(engine.condition(source, filters), expected)
        alone = np.concatenate([engine.condition(file, [item]) for item in filters])
        np.testing.assert_array_equal(alone, expected)


@native_only
def test_silence_has_no_sign():
    silence = np.zeros((9, 3000), np.int16)
    filters = [engine.ChannelFilter(channel=c, sos=BAND if c < 8 else NOTCH, scale=-1.0) for c in range(9)]
    assert not engine.condition(silence, filters).view(np.uint32).any()


@native_only
@pytest.mark.parametrize("order", [2, 3, 5, 6, 8, 10])
@pytest.mark.parametrize(("fs", "low", "high"), [(200, 0.1, 80), (1000, 0.1, 320), (500, 0.5, 160)])
def test_steep_band_passes_keep_float64(order, fs, low, high):
    """Sections whose gains take each other back stand next to each other."""
    sos = signal.butter(order, (low, high), "bandpass", fs=fs, output="sos")
    x = np.random.default_rng(order).standard_normal((1, 60_001))
    want = signal.sosfiltfilt(sos, x)
    assert np.abs(engine.zero_phase(x, sos) - want).max() <= 1e-6 * np.abs(want).max()
