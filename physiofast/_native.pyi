from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

class BoundsError(ValueError): ...

class FileError(ValueError):
    path: str
    byte_offset: int
    expected: str
    found: str

def decode_interleaved(
    frames: npt.NDArray[np.int16],
    channels: npt.NDArray[np.int64],
    out: npt.NDArray[np.int16],
) -> None: ...
def gather_rows(
    planes: Sequence[npt.NDArray[np.int16]],
    plane: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    out: npt.NDArray[np.int16],
    out_start: npt.NDArray[np.int64],
) -> None: ...
