"""Zero-phase filters straight from SciPy, for tests that filter whole signals."""

import numpy as np
from scipy import signal

from physiofast import filter_design


def band_pass(x, rate_hz, low_hz, high_hz, order=4):
    return signal.sosfiltfilt(filter_design.butterworth(rate_hz, low_hz, high_hz, order), np.asarray(x, np.float64))


def notch(x, rate_hz, notch_hz, quality=30.0):
    return signal.sosfiltfilt(filter_design.notch(rate_hz, notch_hz, quality), np.asarray(x, np.float64))
