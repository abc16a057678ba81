"""Reads and writes the file of one prepared recording: safetensors with the provenance in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from physiofast.store.manifest import STORE_FORMAT, STORE_VERSION, write_atomic

PLANE_ALIGN = 64
"""Alignment in samples: every plane starts at a multiple of it, and `samples` is a multiple of it long."""
DIGEST_KEY = "content_sha256"
"""Key of the provenance that holds the digest of the file's content."""

_METADATA_KEY = "physiofast"  # one key, because safetensors writes several in an order of its own
_DTYPES = {"I64": np.int64, "F32": np.float32, "I16": np.int16, "I8": np.int8, "U8": np.uint8}
_HEADER_LIMIT = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRecord:
    """The content of a record's file: C channels of a montage, P whole patches, E whole windows."""

    samples: npt.NDArray[np.int16]
    """int16 [n], the channels' planes one after another, as `lay_out_planes` places them."""
    plane_start: npt.NDArray[np.int64]
    """int64 [C], first sample of each channel's plane; -1 if the channel is absent."""
    plane_length: npt.NDArray[np.int64]
    """int64 [C], number of samples in each plane; 0 if the channel is absent."""
    scale: npt.NDArray[np.float32]
    """float32 [C]; robust z-score = sample * scale + shift."""
    shift: npt.NDArray[np.float32]
    """float32 [C], see `scale`."""
    unit_scale: npt.NDArray[np.float32]
    """float32 [C]; physical value = sample * unit_scale + unit_shift."""
    unit_shift: npt.NDArray[np.float32]
    """float32 [C], see `unit_scale`."""
    valid: npt.NDArray[np.bool_]
    """bool [C, P], whether each patch is free of faults, see `valid_share` of `ChannelInspection`."""
    stage: npt.NDArray[np.int8]
    """int8 [E], sleep stage of each window, 0 to 4 as in `labels.STAGES`; -1 if unscored."""
    arousal: npt.NDArray[np.int8]
    """int8 [E], 1 for a window with an arousal, else 0; -1 if unscored."""
    apnea: npt.NDArray[np.int8]
    """int8 [E], 1 for a window with an apnea or hypopnea, else 0; -1 if unscored."""
    provenance: Mapping[str, Any]
    """JSON values: record, subject, age_years, sex, units, source files, config, version, drops."""

    def __post_init__(self) -> None:
        channels, windows = len(self.plane_start), len(self.stage)
        for name in ("plane_length", "scale", "shift", "unit_scale", "unit_shift", "valid"):
            assert len(getattr(self, name)) == channels, name
        assert len(self.arousal) == len(self.apnea) == windows


def lay_out_planes(lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], int]:
    """Place planes of given lengths: the start of each (int64 [C], -1 for length 0), and the total length."""
    stops = np.cumsum(padded(lengths))
    return np.where(lengths > 0, stops - padded(lengths), -1), int(stops[-1]) if len(stops) else 0


def padded(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Round lengths up to multiples of `PLANE_ALIGN`."""
    return -(-lengths // PLANE_ALIGN) * PLANE_ALIGN


def write_record(path: Path, record: PreparedRecord) -> None:
    """Write one prepared recording as a safetensors file, atomically; equal records give equal bytes."""
    tensors = {
        field.name: np.ascontiguousarray(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if field.name not in ("valid", "provenance")
    }
    tensors["valid"] = np.packbits(record.valid, axis=1, bitorder="little")
    header = {"format": STORE_FORMAT, "version": STORE_VERSION} | dict(record.provenance)
    header[DIGEST_KEY] = content_sha256(tensors, header)
    write_atomic(path, save(tensors, {_METADATA_KEY: json.dumps(header, sort_keys=True)}))


def read_header(path: Path) -> tuple[dict[str, tuple[Any, list[int], int]], dict[str, Any]]:
    """Read the header of a record's file: for each tensor (dtype, shape, byte offset in the file), and the provenance.

    Raises:
        ValueError: not a record of a store, truncated, or of another version.
        OSError: no such file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        limit = min(size - 8, _HEADER_LIMIT)
        if not 2 <= length <= limit:
            raise ValueError(
                f"{path}: byte 0: expected a header of 2 to {limit} bytes, found {length}; "
                "the file is truncated or not a record of a store"
            )
        try:
            header = json.loads(file.read(length))
            provenance = json.loads(header.pop("__metadata__")[_METADATA_KEY])
            found = provenance.get("version")
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: byte 8: not the header of a physiofast record ({error!r})") from error
    if found != STORE_VERSION:
        raise ValueError(
            f"{path}: this release reads records of version {STORE_VERSION}, found "
            f"{found!r}; prepare the recordings again into a new folder"
        )
    return {name: _place(path, name, item, 8 + length, size) for name, item in header.items()}, provenance


def _place(path: Path, name: str, item: Mapping[str, Any], base: int, size: int) -> tuple[Any, list[int], int]:
    try:
        dtype, shape = _DTYPES[item["dtype"]], item["shape"]
        begin, end = item["data_offsets"]
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (LookupError, TypeError, AttributeError, ValueError):
        whole = False
    if not whole or end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path}: tensor {name!r}: {item} does not describe itself consistently")
    if not 0 <= begin <= end <= size - base:
        raise ValueError(
            f"{path}: tensor {name!r} ends at byte {base + end}, found {size} bytes in the file; it is truncated"
        )
    return dtype, shape, base + begin


def content_sha256(tensors: Mapping[str, npt.NDArray[Any]], provenance: Mapping[str, Any]) -> str:
    """The SHA-256 of a record file's content: its tensors, and its provenance without this digest."""
    facts = {key: value for key, value in provenance.items() if key != DIGEST_KEY}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype.name} {values.shape}".encode())
        digest.update(values.data if values.size else b"")
    return digest.hexdigest()
