"""Which engine serves: the C++ extension, or the twins in NumPy and SciPy.

`PHYSIOFAST_NATIVE=0` chooses the twins. Both refuse the same arguments.
"""

from __future__ import annotations

import os


class FileError(ValueError):
    """A signal file that is not what its header says."""

    def __init__(self, path: str, byte_offset: int, expected: str, found: str) -> None:
        super().__init__(path, byte_offset, expected, found)
        self.path = path
        """The file."""
        self.byte_offset = byte_offset
        """Where in it."""
        self.expected = expected
        """What should be there."""
        self.found = found
        """What is there."""

    def __str__(self) -> str:
        return f"{self.path}: byte {self.byte_offset}: expected {self.expected}, found {self.found}"


unavailable_reason: str | None = None
"""Why the C++ engine does not serve, or None when it does."""

if os.environ.get("PHYSIOFAST_NATIVE", "1") == "0":
    unavailable_reason = "PHYSIOFAST_NATIVE=0 chooses the twins in NumPy and SciPy"
else:
    try:
        from physiofast import _native  # noqa: F401
    except ImportError as error:
        unavailable_reason = f"physiofast._native does not import ({error}); build it with: pip install ."

native: bool = unavailable_reason is None
"""True when the C++ engine serves."""
