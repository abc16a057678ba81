"""Reads the official targets of a Challenge 2018 record, `-arousal.mat`, to compare derived labels with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from physiofast.montage import nearest
from physiofast.stages import UNSCORED
from physiofast.support.paths import given_path

CHALLENGE_STAGES = {"wake": 0, "nonrem1": 1, "nonrem2": 2, "nonrem3": 3, "rem": 4, "undefined": UNSCORED}
"""Code of each stage array of a Challenge 2018 `-arousal.mat`."""

Labels = npt.NDArray[np.int8]


def read_official_arousal(path: str | os.PathLike[str]) -> Labels:
    """Read the official per-sample arousal target of a Challenge 2018 `-arousal.mat`.

    Returns:
        int8 [n] in {-1, 0, 1}, the file's samples unchanged.

    Raises:
        OSError: missing, or not a MATLAB 7.3 (HDF5) file.
        ValueError: no `data/arousals`, or other values in it.
    """
    values = _read_official(given_path(path), ("data/arousals",))["data/arousals"]
    if not np.isin(values, (-1, 0, 1)).all():
        raise ValueError(f"{path}: data/arousals holds {np.unique(values)[:5].tolist()}; allowed: -1, 0, 1")
    return values.astype(np.int8)


def read_official_stages(path: str | os.PathLike[str]) -> Labels:
    """Read the official per-sample stages of a Challenge 2018 `-arousal.mat`, shifted onto the `.arousal` clock.

    The file's arrays change one sample early (at 6000k - 1) and end undefined, so they are shifted one sample later.

    Returns:
        int8 [n], codes as in `STAGES`, -1 where undefined.

    Raises:
        OSError: missing, or not a MATLAB 7.3 (HDF5) file.
        ValueError: a stage array is missing, or samples that are in no stage or in several.
    """
    keys = {name: f"data/sleep_stages/{name}" for name in CHALLENGE_STAGES}
    arrays = _read_official(given_path(path), tuple(keys.values()))
    total = np.sum([array.astype(np.int8) for array in arrays.values()], axis=0)
    if not np.all(total == 1):
        first = int(np.flatnonzero(total != 1)[0])
        raise ValueError(f"{path}: sample {first} is in {int(total[first])} stages; expected exactly one")
    stages = np.full(total.size, UNSCORED, np.int8)
    for name, code in CHALLENGE_STAGES.items():
        stages[1:][arrays[keys[name]][:-1] == 1] = code
    return stages


def _read_official(path: Path, keys: tuple[str, ...]) -> dict[str, npt.NDArray[np.generic]]:
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise OSError(f"{path}: not a MATLAB 7.3 (HDF5) file that can be read: {error}") from error
    with file:
        present: list[str] = []
        file["/"].visit(present.append)
        for key in keys:
            if key not in present:
                raise ValueError(f"{path}: no {key}{nearest(key, present)}")
        return {key: file[key][()].ravel() for key in keys}
