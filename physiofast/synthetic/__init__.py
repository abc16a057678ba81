"""A synthetic cohort with known physiology, written as real WFDB records in the Challenge 2018 layout.

`sleep` draws a night's stages and events, `waveforms` renders the signals of brain, eyes, chin, heart, breathing and
oxygen, `cohort` adds faults, and `challenge2018` writes the files.
"""

from physiofast.synthetic.cohort import (
    ABSENT_CANDIDATES,
    BOUNDS,
    SIMPLIFICATIONS,
    CohortConfig,
    Night,
    record_name,
    simulate_night,
    write_cohort,
)

__all__ = [
    "ABSENT_CANDIDATES",
    "BOUNDS",
    "SIMPLIFICATIONS",
    "CohortConfig",
    "Night",
    "record_name",
    "simulate_night",
    "write_cohort",
]
