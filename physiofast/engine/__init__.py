"""The signal engine: C++ where the extension is there, twins in NumPy and SciPy everywhere else.

`native` says which one serves; `unavailable_reason` says why it is not the C++ one. `PHYSIOFAST_NATIVE=0`
chooses the twins. The C++ engine works on `threads()` threads without holding the GIL, so Python threads run beside
it and may call it at the same time.
"""

from physiofast.engine.filters import (
    ChannelFilter,
    Resampler,
    condition,
    condition_int16,
    condition_reference,
    padding,
    resample,
    zero_phase,
)
from physiofast.engine.flags import PatchExtremes, equal_runs, histograms, patch_extremes, runs
from physiofast.engine.formats import FORMATS
from physiofast.engine.gather import gather_rows, gather_rows_reference
from physiofast.engine.memory import empty
from physiofast.engine.native import FileError, instruction_set, native, set_threads, threads, unavailable_reason
from physiofast.engine.signalfile import Calibration, SignalFile, SignalFileReference, checksum, checksum_reference
from physiofast.engine.sources import Source, num_samples

__all__ = [
    "FORMATS",
    "Calibration",
    "ChannelFilter",
    "FileError",
    "PatchExtremes",
    "Resampler",
    "SignalFile",
    "SignalFileReference",
    "Source",
    "checksum",
    "checksum_reference",
    "condition",
    "condition_int16",
    "condition_reference",
    "empty",
    "equal_runs",
    "gather_rows",
    "gather_rows_reference",
    "histograms",
    "instruction_set",
    "native",
    "num_samples",
    "padding",
    "patch_extremes",
    "resample",
    "runs",
    "set_threads",
    "threads",
    "unavailable_reason",
    "zero_phase",
]
