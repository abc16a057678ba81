"""The `Store` and its records, whose arrays are read or mapped on first use."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.engine import FileError
from physiofast.montage import Montage
from physiofast.store.manifest import PREPARE_AGAIN, read_manifest
from physiofast.store.record_file import DIGEST_KEY, PreparedRecord, content_sha256, lay_out_planes, read_header
from physiofast.support.lazy import lazy
from physiofast.support.messages import first_names
from physiofast.support.paths import given_path
from physiofast.support.recent import Recent

_REDO = f"{PREPARE_AGAIN}, it prepares this record anew"
_ENTRY_KEYS = ("record", "subject", "age_years", "sex", "hours", "windows", "patches", "units", "drops", "warnings")
SOURCE_KEYS = ("file", "bytes", "sha256")
"""Keys that describe each source file of a record."""


class StoreRecord:
    """One prepared recording of a store; its file is opened when an array is first used.

    Samples are memory-mapped. If the file is truncated while it is mapped, reading past its end kills the process
    (SIGBUS), so every access to `samples` checks the size first; truncation after that check cannot be caught.
    `prepare` never truncates a file, but replaces it, which leaves the mapped one intact. Pickling keeps only the path
    and the manifest's entry, so data-loader workers map the file themselves. A mapped file counts against the process's
    limit of open files: the `most_maps()` most recently used records stay mapped, and others as long as their samples
    are referenced.
    """

    def __init__(self, path: Path, entry: Mapping[str, Any]) -> None:
        self.path = path
        self.entry = dict(entry)
        """The record's entry in the manifest."""
        self.record: str = entry["record"]
        self.subject: str = entry["subject"]
        self.age_years: float | None = entry["age_years"]
        self.sex: str | None = entry["sex"]
        self.hours: float = entry["hours"]
        self.num_windows: int = entry["windows"]
        """E, number of whole windows."""
        self.num_patches: int = entry["patches"]
        """P, number of whole patches of each channel."""
        self.units: tuple[str, ...] = tuple(entry["units"])
        """Unit of each channel's physical values; "" if the channel is absent."""
        self.drops: dict[str, str] = dict(entry["drops"])
        """Absent channel -> reason."""

    def __repr__(self) -> str:
        return f"StoreRecord({self.record!r}, subject={self.subject!r}, windows={self.num_windows})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "entry": self.entry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["entry"])  # type: ignore[misc]

    @property
    def samples(self) -> npt.NDArray[np.int16]:
        """Samples of all planes, int16 [n], as a read-only memory map.

        Raises:
            FileError: the file has been truncated; all other arrays raise it too.
        """
        samples, end = _mapped(self)
        mapped: Any = samples.base
        if mapped is not None:
            # The size of the mapped file: the path may name another one by now.
            self._check_size(mapped.size(), end, "samples")
        return samples

    @property
    def num_samples(self) -> int:
        """Length of `samples`, known without mapping them."""
        return int(self._place("samples", np.int16, 1)[0][0])

    def _map(self) -> tuple[npt.NDArray[np.int16], int]:
        """Map the samples; returns the map, and the byte offset in the file at which it ends."""
        shape, begin = self._place("samples", np.int16, 1)
        count = math.prod(shape)
        end = begin + 2 * count
        if not count:
            return np.empty(0, np.int16), end
        self._check_size(self.path.stat().st_size, end, "samples")
        return np.memmap(self.path, np.int16, "r", begin, (count,)), end

    @lazy
    def plane_start(self) -> npt.NDArray[np.int64]:
        """First sample of each channel's plane, int64 [C]; -1 if the channel is absent.

        Raises:
            ValueError: planes are not where their lengths place them.
        """
        starts, lengths = self._tensor("plane_start", np.int64, 1), self.plane_length
        places, total = lay_out_planes(lengths)
        if not np.array_equal(starts, places) or total != self.num_samples:
            raise self._damaged(
                f"planes of {lengths.tolist()} samples begin at {places.tolist()} of {total} samples",
                f"them at {starts.tolist()} of {self.num_samples}",
            )
        return starts

    @lazy
    def plane_length(self) -> npt.NDArray[np.int64]:
        """Number of samples in each channel's plane, int64 [C]; 0 if the channel is absent."""
        return self._tensor("plane_length", np.int64, 1)

    @lazy
    def scale(self) -> npt.NDArray[np.float32]:
        """Scale of each channel's robust z-score, sample * scale + shift, float32 [C]; 0 if the channel is absent."""
        return self._factor("scale")

    @lazy
    def shift(self) -> npt.NDArray[np.float32]:
        """Shift of each channel's robust z-score, see `scale`, float32 [C]; 0 if the channel is absent."""
        return self._factor("shift")

    @lazy
    def unit_scale(self) -> npt.NDArray[np.float32]:
        """Scale of each channel's values in its unit, sample * unit_scale + unit_shift, float32 [C]; 0 if absent."""
        return self._factor("unit_scale")

    @lazy
    def unit_shift(self) -> npt.NDArray[np.float32]:
        """Shift of each channel's values in its unit, see `unit_scale`, float32 [C]; 0 if the channel is absent."""
        return self._factor("unit_shift")

    @lazy
    def valid(self) -> npt.NDArray[np.bool_]:
        """Which patches are valid, bool [C, P]; patch p covers the seconds [p, p + 1) * patch_s of the recording."""
        packed = self._tensor("valid", np.uint8, 2)
        return np.unpackbits(packed, axis=1, count=self.num_patches, bitorder="little").astype(np.bool_)

    @lazy
    def stage(self) -> npt.NDArray[np.int8]:
        """Sleep stage of each window, int8 [E], 0 to 4 as in `labels.STAGES`; -1 if unscored."""
        return self._tensor("stage", np.int8, 1)

    @lazy
    def arousal(self) -> npt.NDArray[np.int8]:
        """Whether each window has an arousal, int8 [E], 1 or 0; -1 if unscored."""
        return self._tensor("arousal", np.int8, 1)

    @lazy
    def apnea(self) -> npt.NDArray[np.int8]:
        """Whether each window has an apnea or hypopnea, int8 [E], 1 or 0; -1 if unscored."""
        return self._tensor("apnea", np.int8, 1)

    @property
    def provenance(self) -> dict[str, Any]:
        """How the record was prepared: source files with hashes, config, version, record, subject, drops."""
        return self._header[1]

    def check(self) -> None:
        """Read the whole file, and compare its SHA-256 with the one that it was written with.

        Raises:
            ValueError: the file is damaged.
            OSError: there is no such file, or it cannot be read.
        """
        for name in ("plane_start", "scale", "shift", "unit_scale", "unit_shift", "valid"):
            getattr(self, name)
        tensors, provenance = self._header
        end = max(begin + math.prod(shape) * np.dtype(kind).itemsize for kind, shape, begin in tensors.values())
        if self.path.stat().st_size != end:
            raise self._damaged(f"{end} bytes", str(self.path.stat().st_size))
        # Samples are read here, not mapped: an input error in a mapped page would kill the process.
        arrays = {name: self._tensor(name, kind, len(shape)) for name, (kind, shape, _) in tensors.items()}
        noted, found = provenance.get(DIGEST_KEY), content_sha256(arrays, provenance)
        if found != noted:
            raise self._damaged(f"{DIGEST_KEY} {noted}", found)

    def plane(self, channel: int) -> npt.NDArray[np.int16]:
        """A view of one channel's samples, int16 [plane_length]; empty if the channel is absent."""
        if isinstance(channel, str):
            raise TypeError(f"channel must be a number; store.montage.index({channel!r}) gives that of a name")
        start = max(int(self.plane_start[channel]), 0)
        return self.samples[start : start + int(self.plane_length[channel])]

    def physical(self, channel: int, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Values of one channel in its unit, samples `start` to `stop` of its plane, float32."""
        values = self.plane(channel)[start:stop].astype(np.float32)
        return values * self.unit_scale[channel] + self.unit_shift[channel]

    @lazy
    def _header(self) -> tuple[dict[str, tuple[Any, list[int], int]], dict[str, Any]]:
        tensors, provenance = read_header(self.path)
        expected = self.entry.get("prepared_sha256")
        if expected is not None and expected != prepared_sha256(provenance):
            raise ValueError(
                f"{self.path}: prepared otherwise than the store's manifest.json says, by a `physiofast prepare` that "
                "has not finished; run it again, it resumes"
            )
        return tensors, provenance

    def _factor(self, name: str) -> npt.NDArray[np.float32]:
        values = self._tensor(name, np.float32, 1)
        of_planes, positive = values[self.plane_start >= 0], name.endswith("scale")
        if not np.isfinite(of_planes).all() or (positive and (of_planes <= 0).any()):
            expected = f"a finite {name}{' above 0' if positive else ''} for each plane"
            raise self._damaged(expected, str(values.tolist()))
        return values

    def _damaged(self, expected: str, found: str) -> ValueError:
        return ValueError(f"{self.path}: expected {expected}, found {found}; the file is damaged: {_REDO}")

    def _tensor(self, name: str, dtype: type, ndim: int) -> npt.NDArray[Any]:
        shape, begin = self._place(name, dtype, ndim)
        values: npt.NDArray[Any] = np.fromfile(self.path, dtype, math.prod(shape), offset=begin)
        end = begin + math.prod(shape) * np.dtype(dtype).itemsize
        self._check_size(min(self.path.stat().st_size, begin + values.nbytes), end, name)
        return values.reshape(shape)

    def _place(self, name: str, dtype: type, ndim: int) -> tuple[list[int], int]:
        """Shape and byte offset of a tensor, whose dtype and number of dimensions are checked."""
        tensors, _ = self._header
        found = tensors.get(name)
        if found is None or found[0] is not dtype or len(found[1]) != ndim:
            raise ValueError(
                f"{self.path}: expected tensor {name!r} as {np.dtype(dtype)} with {ndim} dimensions, "
                f"found {found and (np.dtype(found[0]).name, found[1])}"
            )
        return found[1], found[2]

    def _check_size(self, found: int, end: int, name: str) -> None:
        if found < end:
            raise FileError(
                str(self.path),
                found,
                f"{end} bytes or more, where tensor {name!r} ends",
                f"{found} bytes: the file has been truncated since it was opened; prepare the recording again",
            )


def most_maps() -> int:
    """Largest number of records kept mapped: three quarters of the process's limit of open files, at most 4096."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else min(max(soft * 3 // 4, 1), 4096)


_mapped = Recent(StoreRecord._map, most_maps)


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of prepared recordings that share one montage; `Store.open` opens it."""

    path: Path
    montage: Montage
    records: tuple[StoreRecord, ...]
    config: Mapping[str, Any]
    """The `PrepareConfig` of the store, as plain data."""
    failed: tuple[tuple[str, str], ...] = ()
    """(record, reason) of each record that could not be prepared."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """Open a store; files are mapped when a record's arrays are first used.

        Raises:
            ValueError: not a store, a store of another version, a damaged manifest, or a store without records.
            OSError: the manifest or a record's file is missing.
        """
        path = given_path(path)
        manifest = read_manifest(path)
        records = tuple(StoreRecord(path / entry["file"], entry) for entry in manifest["records"])
        missing = [record.path.name for record in records if not record.path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{path}: {len(missing)} of {len(records)} record files are missing "
                f"({first_names(missing)}); {PREPARE_AGAIN}, it resumes"
            )
        if not records:
            raise ValueError(f"{path}: the store holds no record; physiofast prepare says why each one failed")
        return cls(
            path=path,
            montage=_read_montage(path / "manifest.json", manifest["montage"]),
            records=records,
            config=manifest["config"],
            failed=tuple((entry["record"], entry["reason"]) for entry in manifest["failed"]),
        )


def _read_montage(file: Path, saved: Mapping[str, Any]) -> Montage:
    try:
        return Montage.from_dict(saved)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: its montage cannot be read ({error}); {PREPARE_AGAIN}") from error


def prepared_sha256(provenance: Mapping[str, Any]) -> str:
    """The SHA-256 of how a record was prepared: its sources, the config and the version."""
    facts = [provenance[key] for key in ("sources", "config", "physiofast")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def manifest_entry(file: Path, provenance: Mapping[str, Any], scored: PreparedRecord | StoreRecord) -> dict[str, Any]:
    """A record's entry in the manifest; identical whether the record was just prepared or read back from its file."""
    # JSON in a record's file has sorted keys, so drops are put back into the montage's order.
    drops = {c["name"]: c["drop"] for c in provenance["channels"] if c["drop"] is not None}
    digest = hashlib.sha256(b"".join(codes.tobytes() for codes in (scored.stage, scored.arousal, scored.apnea)))
    entry = {"file": file.name} | {key: provenance[key] for key in _ENTRY_KEYS} | {"drops": drops}
    sources = [{key: source[key] for key in SOURCE_KEYS} for source in provenance["sources"]]
    return entry | {
        "sources": sources,
        "labels_sha256": digest.hexdigest(),
        "prepared_sha256": prepared_sha256(provenance),
    }
