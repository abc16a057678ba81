"""What headers may state; beyond, they are taken for damaged. `csrc/limits.hpp` has the same numbers."""

MIN_RATE_HZ, MAX_RATE_HZ = 1e-3, 1e5
"""Headers that state rates outside are taken for damaged: filters compute seconds of samples ahead."""
MAX_DURATION_S = 100 * 86400.0
"""Headers and annotations that reach further are taken for damaged: what looks at a recording needs memory for
each of its seconds, also where its rate is low."""
MIN_GAIN, MAX_GAIN, MAX_BASELINE = 1e-30, 1e30, 1e30
"""Magnitudes of gain and baseline outside are taken for damaged: float32 does not hold what they lead to."""
