"""The signal engine: C++ where the extension is there, twins in NumPy and SciPy everywhere else.

`native` says which one serves; `unavailable_reason` says why it is not the C++ one. `PHYSIOFAST_NATIVE=0`
chooses the twins.
"""

from physiofast.engine.formats import FORMATS
from physiofast.engine.gather import gather_rows, gather_rows_reference
from physiofast.engine.native import FileError, native, unavailable_reason
from physiofast.engine.signalfile import Calibration, SignalFile, SignalFileReference, checksum, checksum_reference

__all__ = [
    "FORMATS",
    "Calibration",
    "FileError",
    "SignalFile",
    "SignalFileReference",
    "checksum",
    "checksum_reference",
    "gather_rows",
    "gather_rows_reference",
    "native",
    "unavailable_reason",
]
