"""The file of one prepared recording: safetensors, whose header says what it was made from and how."""

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
"""Samples; every plane starts at a multiple of it, and a record's samples are a multiple of it long."""
DIGEST_KEY = "content_sha256"
"""What a file's provenance calls the digest of all that the file holds."""

_METADATA_KEY = "physiofast"  # one key, because safetensors writes several in an order of its own
_DTYPES = {"I64": np.int64, "F32": np.float32, "I16": np.int16, "I8": np.int8, "U8": np.uint8}
_HEADER_LIMIT = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRecord:
    """What a store keeps of one recording; C channels of a montage, P whole patches, E whole windows."""

    samples: npt.NDArray[np.int16]
    """int16 [n], all planes one after the other, as `lay_out_planes` places them."""
    plane_start: npt.NDArray[np.int64]
    """int64 [C], first sample of each plane; -1 = absent."""
    plane_length: npt.NDArray[np.int64]
    """int64 [C], samples; 0 when absent."""
    scale: npt.NDArray[np.float32]
    """float32 [C]; robust z = sample * scale + shift."""
    shift: npt.NDArray[np.float32]
    """float32 [C]."""
    unit_scale: npt.NDArray[np.float32]
    """float32 [C]; physical value = sample * unit_scale + unit_shift."""
    unit_shift: npt.NDArray[np.float32]
    """float32 [C]."""
    valid: npt.NDArray[np.bool_]
    """bool [C, P], patch is free of faults, see `valid_share` of `ChannelInspection`."""
    stage: npt.NDArray[np.int8]
    """int8 [E], 0 to 4 as `labels.STAGES`, -1 unscored."""
    arousal: npt.NDArray[np.int8]
    """int8 [E], 1, 0, or -1 = not scored."""
    apnea: npt.NDArray[np.int8]
    """int8 [E], 1, 0, or -1 = not scored."""
    provenance: Mapping[str, Any]
    """JSON values: record, subject, age_years, sex, units, source files, config, version, drops."""

    def __post_init__(self) -> None:
        channels, windows = len(self.plane_start), len(self.stage)
        for name in ("plane_length", "scale", "shift", "unit_scale", "unit_shift", "valid"):
            assert len(getattr(self, name)) == channels, name
        assert len(self.arousal) == len(self.apnea) == windows


def lay_out_planes(lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], int]:
    """Where planes of these lengths start (int64 [C], -1 for length 0), and the samples they take in all."""
    stops = np.cumsum(padded(lengths))
    return np.where(lengths > 0, stops - padded(lengths), -1), int(stops[-1]) if len(stops) else 0


def padded(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What rows of these lengths take where each begins at a multiple of `PLANE_ALIGN`."""
    return -(-lengths // PLANE_ALIGN) * PLANE_ALIGN


def write_record(path: Path, record: PreparedRecord) -> None:
    """Write one prepared recording as a safetensors file, atomically and with the same bytes every time."""
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
    """Tensors (dtype, shape, byte offset in the file) and provenance of a record's file.

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
    """Of all that a record's file holds: its tensors by name, and its provenance but for this digest itself."""
    facts = {key: value for key, value in provenance.items() if key != DIGEST_KEY}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype.name} {values.shape}".encode())
        digest.update(values.data if values.size else b"")
    return digest.hexdigest()
