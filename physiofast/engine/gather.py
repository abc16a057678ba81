"""Windows of many planes into one buffer that the caller owns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from physiofast.engine.native import native

if native:
    from physiofast import _native

Int16Array = npt.NDArray[np.int16]
Int64Array = npt.NDArray[np.int64]


def gather_rows(
    planes: Sequence[Int16Array],
    plane: Int64Array,
    start: Int64Array,
    length: Int64Array,
    out: Int16Array,
    out_start: Int64Array,
) -> None:
    """Copy rows of many planes into one buffer that the caller owns and reuses.

    Row r is `planes[plane[r]][start[r] : start[r] + length[r]]`; it goes to `out` from `out_start[r]`.
    A row with `start[r] < 0` is absent: zeros are written, and `plane[r]` is not looked at. Samples of `out`
    outside every row stay as they are. Every row is checked before anything is written.

    Args:
        planes: int16 1-D arrays, C-contiguous, such as the memory-mapped samples of records.
        plane: int64 [R].
        start: int64 [R], samples.
        length: int64 [R], samples.
        out: int16 1-D, C-contiguous.
        out_start: int64 [R], samples.

    Raises:
        ValueError: wrong type or shape; a row that leaves its plane or `out` (its number, what is allowed
            and what was found).
    """
    _check_planes(planes, out)
    columns = [_column(plane, "plane"), _column(start, "start"), _column(length, "length")]
    columns.append(_column(out_start, "out_start"))
    if native:
        _native.gather_rows(planes, columns[0], columns[1], columns[2], out, columns[3])
    else:
        gather_rows_reference(planes, columns[0], columns[1], columns[2], out, columns[3])


def gather_rows_reference(
    planes: Sequence[Int16Array],
    plane: Int64Array,
    start: Int64Array,
    length: Int64Array,
    out: Int16Array,
    out_start: Int64Array,
) -> None:
    """The NumPy twin of `gather_rows`."""
    _check_planes(planes, out)
    _check_rows(planes, plane, start, length, out, out_start)
    for p, begin, count, target in zip(
        plane.tolist(), start.tolist(), length.tolist(), out_start.tolist(), strict=True
    ):
        out[target : target + count] = 0 if begin < 0 else planes[p][begin : begin + count]


def _output(out: Int16Array | None, shape: tuple[int, ...]) -> Int16Array:
    if out is None:
        return np.empty(shape, np.int16)
    if out.dtype != np.int16 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"out needs writeable, C-contiguous int16 {list(shape)}, found {out.dtype} {list(out.shape)}, "
            f"contiguous {out.flags.c_contiguous}, writeable {out.flags.writeable}"
        )
    return out


def _check_planes(planes: Sequence[Int16Array], out: Int16Array) -> None:
    for i, plane in enumerate(planes):
        if plane.dtype != np.int16 or plane.ndim != 1 or not plane.flags.c_contiguous:
            raise ValueError(
                f"planes {i}: needs C-contiguous int16 [n], found {plane.dtype} {list(plane.shape)}, "
                f"contiguous {plane.flags.c_contiguous}"
            )
    if out.ndim != 1:
        raise ValueError(f"out needs int16 [n], found {out.dtype} {list(out.shape)}")
    _output(out, out.shape)


def _column(column: Int64Array, name: str) -> Int64Array:
    if column.dtype != np.int64 or column.ndim != 1:
        raise ValueError(f"{name} needs int64 [R], found {column.dtype} {list(column.shape)}")
    return np.ascontiguousarray(column)


def _check_rows(
    planes: Sequence[Int16Array],
    plane: Int64Array,
    start: Int64Array,
    length: Int64Array,
    out: Int16Array,
    out_start: Int64Array,
) -> None:
    for name, column in (("start", start), ("length", length), ("out_start", out_start)):
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
    if start < 0 or length > size - start:
        raise ValueError(
            f"{what} of row {row}: expected a start from 0 to {size - length} for {length} samples "
            f"of {size}, found {start}"
        )
