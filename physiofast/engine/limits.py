"""Limits of values in headers, beyond which a header is refused as damaged; also in `csrc/limits.hpp`."""

MIN_RATE_HZ, MAX_RATE_HZ = 1e-3, 1e5
"""Range of sampling rates: filters allocate seconds of samples."""
MAX_DURATION_S = 100 * 86400.0
"""Longest recording and latest annotation: every second of a recording takes memory, even at a low sampling rate."""
MIN_GAIN, MAX_GAIN, MAX_BASELINE = 1e-30, 1e30, 1e30
"""Ranges of the magnitudes of gain and baseline: beyond them float32 cannot represent the values."""
