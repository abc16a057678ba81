"""The signal engine: C++ where the extension is there, twins in NumPy and SciPy everywhere else.

`native` says which one serves; `unavailable_reason` says why it is not the C++ one. `PHYSIOFAST_NATIVE=0`
chooses the twins.
"""

from physiofast.engine.filters import (
    ChannelFilter,
    Resampler,
    condition,
    condition_int16,
    condition_reference,
    resample,
    zero_phase,
)
from physiofast.engine.flags import PatchExtremes, equal_runs, histograms, patch_extremes, runs
from physiofast.engine.gather import gather_rows, gather_rows_reference
from physiofast.engine.native import native, unavailable_reason
from physiofast.engine.signalfile import decode_interleaved, decode_interleaved_reference
from physiofast.engine.sources import Source, num_samples

__all__ = [
    "ChannelFilter",
    "PatchExtremes",
    "Resampler",
    "Source",
    "condition",
    "condition_int16",
    "condition_reference",
    "decode_interleaved",
    "decode_interleaved_reference",
    "equal_runs",
    "gather_rows",
    "gather_rows_reference",
    "histograms",
    "native",
    "num_samples",
    "patch_extremes",
    "resample",
    "runs",
    "unavailable_reason",
    "zero_phase",
]
