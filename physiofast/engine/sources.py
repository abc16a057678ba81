"""Sources that the engine reads samples from: arrays of channels, and signal files."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from physiofast.engine.native import native

if native:
    from physiofast import _native

if TYPE_CHECKING:
    from physiofast.engine.signalfile import SignalFile

Samples = npt.NDArray[Any]
Source: TypeAlias = "Samples | tuple[Samples, ...] | SignalFile"
"""An array [C, n] with any strides, a tuple of arrays [n] of one dtype, or a signal file; int16, int32, float32 or
float64."""
_DTYPES = (np.int16, np.int32, np.float32, np.float64)


def check_array(source: Samples) -> Samples:
    """Check an array of samples [C, n], and copy it if its byte order or alignment is not native.

    Raises:
        ValueError: another dtype or number of dimensions.
    """
    if source.ndim != 2 or source.dtype.newbyteorder("=") not in _DTYPES:
        raise ValueError(
            f"samples need int16, int32, float32 or float64 [C, n], found {source.dtype} {list(source.shape)}"
        )
    whole = all(stride % source.itemsize == 0 for stride in source.strides)
    if source.dtype.isnative and source.flags.aligned and whole:
        return source
    return np.array(source, source.dtype.newbyteorder("="))


def native_source(source: Source) -> Any:
    """The C++ object that reads a source."""
    if isinstance(source, np.ndarray):
        return _native.array_source(check_array(source))
    if isinstance(source, tuple):
        return _native.planes_source(tuple(np.ascontiguousarray(check_array(plane[None])[0]) for plane in source))
    return source._file


def num_channels(source: Source) -> int:
    """The number of channels in a source.

    Raises:
        ValueError: not a source.
    """
    _check_kind(source)
    return len(source) if isinstance(source, np.ndarray | tuple) else source.num_channels


def num_samples(source: Source, channels: Sequence[int]) -> int:
    """The number of samples that each of these channels has.

    Raises:
        ValueError: a channel that does not exist, or channels of different lengths.
    """
    total = num_channels(source)
    for i, channel in enumerate(map(operator.index, channels)):
        if not 0 <= channel < total:
            raise ValueError(f"channels {i}: expected 0 to {total - 1}, found {channel}")
    if isinstance(source, np.ndarray):
        return check_array(source).shape[1]
    if isinstance(source, tuple):
        sizes = {plane.size for plane in source}
    else:
        sizes = {source.num_samples(channel) for channel in channels}
    if len(sizes) > 1:
        raise ValueError(f"channels have different lengths {sorted(sizes)}; treat each rate by itself")
    return sizes.pop() if sizes else 0


def check_integers(source: Source) -> None:
    """Refuse a source whose samples are not integers.

    Raises:
        ValueError: an array of floats.
    """
    _check_kind(source)
    for array in source if isinstance(source, tuple) else (source,):
        if isinstance(array, np.ndarray) and array.dtype.newbyteorder("=") not in _DTYPES[:2]:
            raise ValueError(f"raw samples need int16 or int32, found {array.dtype}")


def _check_kind(source: Source) -> None:
    if isinstance(source, np.ndarray):
        check_array(source)
    elif isinstance(source, tuple):
        for i, plane in enumerate(source):
            if not isinstance(plane, np.ndarray) or plane.ndim != 1 or plane.dtype != source[0].dtype:
                found = f"{plane.dtype} {list(plane.shape)}" if isinstance(plane, np.ndarray) else type(plane).__name__
                raise ValueError(f"plane {i} of a source needs {source[0].dtype} [n] like plane 0, found {found}")
            check_array(plane[None])
    elif not hasattr(source, "num_channels"):
        raise ValueError(
            f"a source is an array [C, n], a tuple of arrays [n] or an engine.SignalFile; found {type(source).__name__}"
        )


def read(source: Source, channel: int) -> Samples:
    """Read all samples of one channel, as stored."""
    return source[channel] if isinstance(source, np.ndarray | tuple) else source.decode([channel])[0]
