"""Signal files: decoding of interleaved samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from physiofast.engine.gather import _output
from physiofast.engine.native import native

if native:
    from physiofast import _native

Int16Array = npt.NDArray[np.int16]


def decode_interleaved(frames: Int16Array, channels: Sequence[int], out: Int16Array | None = None) -> Int16Array:
    """Pick channels out of interleaved samples, as one plane each.

    Args:
        frames: int16 [n, K], sample-interleaved; usually a memory map, which is read once, in order.
        channels: which of the K channels, in the order wanted; repeats are allowed.
        out: int16 [len(channels), n] to write into, C-contiguous; a new array when absent.

    Returns:
        int16 [len(channels), n] with `out[i, t] = frames[t, channels[i]]`.

    Raises:
        ValueError: wrong type or shape, or a channel outside 0 to K - 1.
    """
    frames = _check_frames(frames)
    if not native:
        return decode_interleaved_reference(frames, channels, out)
    chosen = np.array(channels, np.int64, ndmin=1)
    out = _output(out, (chosen.size, frames.shape[0]))
    _native.decode_interleaved(frames, chosen, out)
    return out


def decode_interleaved_reference(
    frames: Int16Array, channels: Sequence[int], out: Int16Array | None = None
) -> Int16Array:
    """The NumPy twin of `decode_interleaved`."""
    frames = _check_frames(frames)
    for i, channel in enumerate(channels):
        if not 0 <= channel < frames.shape[1]:
            raise ValueError(f"channels {i}: expected 0 to {frames.shape[1] - 1}, found {channel}")
    out = _output(out, (len(channels), frames.shape[0]))
    for i, channel in enumerate(channels):
        out[i] = frames[:, channel]
    return out


def _check_frames(frames: Int16Array) -> Int16Array:
    if frames.dtype != np.int16 or frames.ndim != 2:
        raise ValueError(f"frames needs int16 [n, K], found {frames.dtype} {list(frames.shape)}")
    adjacent = frames.shape[1] < 2 or frames.strides[1] == frames.itemsize
    native_order = frames.flags.aligned and frames.dtype.isnative
    forward = frames.strides[0] >= 0 and frames.strides[0] % frames.itemsize == 0
    if adjacent and native_order and forward:
        return frames
    return np.ascontiguousarray(frames, np.int16)
