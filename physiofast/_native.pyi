from collections.abc import Sequence
from typing import Any

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
    out: npt.NDArray[Any],
    out_start: npt.NDArray[np.int64],
    num_threads: int,
) -> None: ...
def gather_values(
    planes: Sequence[npt.NDArray[np.int16]],
    plane: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    out_start: npt.NDArray[np.int64],
    scale: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
    num_threads: int,
) -> None: ...
