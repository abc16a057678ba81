"""The signal engine: C++ where the extension is there, twins in NumPy and SciPy everywhere else.

`native` says which one serves; `unavailable_reason` says why it is not the C++ one. `PHYSIOFAST_NATIVE=0`
chooses the twins. The C++ engine works on `threads()` threads without holding the GIL, so Python threads run beside
it and may call it at the same time.
"""

from physiofast.engine.gather import gather_rows, gather_rows_reference
from physiofast.engine.native import instruction_set, native, set_threads, threads, unavailable_reason
from physiofast.engine.signalfile import decode_interleaved, decode_interleaved_reference

__all__ = [
    "decode_interleaved",
    "decode_interleaved_reference",
    "gather_rows",
    "gather_rows_reference",
    "instruction_set",
    "native",
    "set_threads",
    "threads",
    "unavailable_reason",
]
