"""The signal engine: decoding, filtering and gathering in C++, or in NumPy and SciPy if the extension is missing.

`native` is True if the C++ extension is used; otherwise `unavailable_reason` says why not. `PHYSIOFAST_NATIVE=0`
selects the twins in NumPy and SciPy, which define the results. The C++ engine works on `threads()` threads without
holding the GIL, so other Python threads run meanwhile and may call it at the same time.
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
