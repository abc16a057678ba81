"""Gathers rows (parts of channels) of many records into one buffer that the caller owns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.engine.native import native, threads

if native:
    from physiofast import _native

Int16Array = npt.NDArray[np.int16]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Output = Int16Array | Float32Array | npt.NDArray[np.float16]
_OUTPUTS = (np.dtype(np.int16), np.dtype(np.float32), np.dtype(np.float16))


def gather_rows(
    planes: Sequence[Int16Array],
    plane: Int64Array,
    start: Int64Array,
    length: Int64Array,
    out: Output,
    out_start: Int64Array,
    scale: Float32Array | None = None,
    shift: Float32Array | None = None,
) -> None:
    """Copy rows of many planes into one buffer that the caller owns and reuses, as stored or dequantised.

    Row r is `planes[plane[r]][start[r] : start[r] + length[r]]`; it goes to `out` from `out_start[r]`. In an int16
    `out` samples are as stored. In a float32 or float16 one they are `sample * scale[r] + shift[r]`, computed in
    float32 with two roundings, then rounded to float16 once (to nearest, ties to even; infinite from 65520 on).

    A row with `start[r] < 0` is absent: zeros are written, and `plane[r]` is not looked at. Samples of `out`
    outside every row stay as they are. Every row is checked before anything is written. Rows that follow one another
    in `out` are written by `threads()` threads; where rows overlap, the later one stays.

    `out` may be any memory that NumPy sees. For a copy to a GPU that runs beside the next gather, give it pinned
    memory of torch and reuse it: `buffer = torch.empty(n, dtype=torch.int16, pin_memory=True)`, `out=buffer.numpy()`.
    Fresh memory costs a page fault for every 4 KB, which takes longer than the copy itself.

    Args:
        planes: int16 1-D arrays, C-contiguous, such as the memory-mapped samples of records.
        plane: int64 [R], index in `planes` of each row.
        start: int64 [R], first sample of each row in its plane; negative if the row is absent.
        length: int64 [R], number of samples in each row.
        out: int16, float32 or float16 1-D, C-contiguous; shares no memory with a plane.
        out_start: int64 [R], where each row begins in `out`, in samples.
        scale: float32 [R], with a float `out` only.
        shift: float32 [R], with a float `out` only.

    Raises:
        ValueError: wrong type or shape; a row that leaves its plane or `out` (its number, what is allowed
            and what was found).
    """
    _check_arrays(planes, out)
    columns = [_column(plane, "plane"), _column(start, "start"), _column(length, "length")]
    target = _column(out_start, "out_start")
    factors = _factors(out, scale, shift)
    if not native:
        gather_rows_reference(planes, columns[0], columns[1], columns[2], out, target, *(factors or ()))
    elif factors is None:
        _native.gather_rows(planes, columns[0], columns[1], columns[2], out, target, threads())
    else:
        _native.gather_values(planes, columns[0], columns[1], columns[2], out, target, *factors, threads())


def gather_rows_reference(
    planes: Sequence[Int16Array],
    plane: Int64Array,
    start: Int64Array,
    length: Int64Array,
    out: Output,
    out_start: Int64Array,
    scale: Float32Array | None = None,
    shift: Float32Array | None = None,
) -> None:
    """The NumPy twin of `gather_rows`."""
    _check_arrays(planes, out)
    factors = _factors(out, scale, shift)
    _check_rows(planes, plane, start, length, out, out_start, factors)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for row in range(plane.size):
            target = out[out_start[row] : out_start[row] + length[row]]
            if start[row] < 0:
                target[:] = 0
                continue
            samples = planes[plane[row]][start[row] : start[row] + length[row]]
            target[:] = samples if factors is None else samples.astype(np.float32) * factors[0][row] + factors[1][row]


def _factors(
    out: Output, scale: Float32Array | None, shift: Float32Array | None
) -> tuple[Float32Array, Float32Array] | None:
    """Check `scale` and `shift`, which a float output needs and an int16 one must not have; returns them or None."""
    if out.dtype == np.int16:
        if scale is not None or shift is not None:
            raise ValueError("scale and shift need a float32 or float16 out, found int16")
        return None
    if scale is None or shift is None:
        raise ValueError(f"a {out.dtype} out needs scale and shift; an int16 one takes samples as stored")
    return _column(scale, "scale", np.float32), _column(shift, "shift", np.float32)


def _check_arrays(planes: Sequence[Int16Array], out: Output) -> None:
    if out.ndim != 1 or out.dtype not in _OUTPUTS or not out.flags.carray:
        raise ValueError(
            f"out needs writeable, aligned, C-contiguous int16, float32 or float16 [n], found {out.dtype} "
            f"{list(out.shape)}, contiguous {out.flags.c_contiguous}, writeable {out.flags.writeable}, "
            f"aligned {out.flags.aligned}"
        )
    for i, plane in enumerate(planes):
        if plane.dtype != np.int16 or plane.ndim != 1 or not plane.flags.c_contiguous:
            raise ValueError(
                f"planes {i}: needs C-contiguous int16 [n], found {plane.dtype} {list(plane.shape)}, "
                f"contiguous {plane.flags.c_contiguous}"
            )
        if np.may_share_memory(plane, out):
            raise ValueError(f"planes {i}: shares memory with out; give out a buffer of its own")


def _column(column: npt.NDArray[Any], name: str, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
    if column.dtype != dtype or column.ndim != 1:
        raise ValueError(f"{name} needs {np.dtype(dtype)} [R], found {column.dtype} {list(column.shape)}")
    return np.ascontiguousarray(column)


def _check_rows(
    planes: Sequence[Int16Array],
    plane: Int64Array,
    start: Int64Array,
    length: Int64Array,
    out: Output,
    out_start: Int64Array,
    factors: tuple[Float32Array, Float32Array] | None,
) -> None:
    named: dict[str, npt.NDArray[Any]] = {"start": start, "length": length, "out_start": out_start}
    if factors is not None:
        named |= {"scale": factors[0], "shift": factors[1]}
    for name, column in named.items():
        if column.shape != plane.shape:
            raise ValueError(f"{name} needs shape [{plane.size}] like plane, found size {column.size}")
    for row in range(plane.size):
        count = int(length[row])
        if count < 0:
            raise ValueError(f"length of row {row}: expected 0 or more, found {count}")
        _check_range("out_start", row, int(out_start[row]), count, out.size)
        if start[row] < 0:
            continue
        if not 0 <= plane[row] < len(planes):
            raise ValueError(f"plane of row {row}: expected 0 to {len(planes) - 1}, found {plane[row]}")
        _check_range("start", row, int(start[row]), count, planes[plane[row]].size)


def _check_range(what: str, row: int, start: int, length: int, size: int) -> None:
    if length > size:
        raise ValueError(f"length of row {row}: expected 0 to {size}, found {length}")
    if start < 0 or length > size - start:
        raise ValueError(
            f"{what} of row {row}: expected a start from 0 to {size - length} for {length} samples "
            f"of {size}, found {start}"
        )
