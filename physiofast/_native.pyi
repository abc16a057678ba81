from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Calibrations = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]

class BoundsError(ValueError): ...

class SignalFile:
    def __init__(
        self,
        path: bytes,
        format: int,
        samples_per_frame: Sequence[int],
        num_frames: int,
        byte_offset: int,
        initial_values: Sequence[int],
    ) -> None: ...
    def read_planes(
        self,
        channels: npt.NDArray[np.int64],
        first: int,
        count: int,
        out: npt.NDArray[Any],
        calibrations: Calibrations | None,
    ) -> None: ...
    def read_runs(
        self,
        channels: npt.NDArray[np.int64],
        first: npt.NDArray[np.int64],
        out: Sequence[npt.NDArray[Any]],
        calibrations: Calibrations | None,
        checksums: npt.NDArray[np.uint16] | None,
    ) -> None: ...

def checksum(samples: npt.NDArray[Any]) -> int: ...
def gather_rows(
    planes: Sequence[npt.NDArray[np.int16]],
    plane: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    out: npt.NDArray[np.int16],
    out_start: npt.NDArray[np.int64],
) -> None: ...
