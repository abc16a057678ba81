"""The package's band-pass, run over whole signals by SciPy, for tests."""

import numpy as np
from scipy import signal

from physiofast.conditioning import filter_sos


def band_pass(x, rate_hz, low_hz, high_hz):
    return signal.sosfiltfilt(filter_sos(rate_hz, low_hz, high_hz), np.asarray(x, np.float64))
