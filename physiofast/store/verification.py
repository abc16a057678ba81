"""Verifies that a store's files are still what `prepare` wrote."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from physiofast.montage import Montage
from physiofast.store.manifest import PREPARE_AGAIN, entry_damage, read_manifest
from physiofast.store.records import StoreRecord, manifest_entry
from physiofast.support.paths import given_path


@dataclasses.dataclass(frozen=True)
class Verification:
    """Result of `verify_store`: counts known up front, damage per record found lazily."""

    total: int
    """Number of records that the manifest lists."""
    unlisted: tuple[str, ...]
    """Names of record files that the manifest does not list; they are not verified."""
    records: Iterator[tuple[str, str]]
    """(record, damage) of each record, which is read when its turn comes; the damage is "" if there is none."""


def verify_store(path: str | os.PathLike[str]) -> Verification:
    """Verify every file of a store by its SHA-256 and by the manifest; nothing is changed.

    The whole store is read. While `prepare` is running, files that it has replaced do not match the manifest.

    Args:
        path: the store's folder; the recordings that it was prepared from are not needed.

    Raises:
        ValueError: not a store, a store of another version, or a damaged manifest.
        OSError: there is no manifest.
    """
    path = given_path(path)
    manifest = read_manifest(path, entries=False)
    times = Counter(_file_of(entry) for entry in manifest["records"])
    unlisted = sorted(file.stem for file in path.glob("*.safetensors") if file.name not in times)
    return Verification(len(manifest["records"]), tuple(unlisted), _verify(path, manifest, times))


def _verify(path: Path, manifest: Mapping[str, Any], times: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    whole = {key: manifest.get(key) for key in ("config", "physiofast")} | {"montage": _channels(manifest["montage"])}
    for number, entry in enumerate(manifest["records"]):
        damage, listed = entry_damage("records", entry), times[_file_of(entry)]
        if damage:
            found = f"{path / 'manifest.json'} is damaged: entry {number} of 'records' {damage}; {PREPARE_AGAIN}"
        else:
            found = _damage(path, entry, whole)
        if not found and listed > 1:
            found = f"{path / entry['file']}: is listed {listed} times in manifest.json; {PREPARE_AGAIN}"
        yield str(entry.get("record", number) if isinstance(entry, dict) else number), found


def _file_of(entry: Any) -> str:
    return str(entry.get("file")) if isinstance(entry, dict) else ""


def _damage(path: Path, entry: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Describe how a record's file is damaged, or disagrees with the manifest; "" if it does not."""
    try:
        record = StoreRecord(path / entry["file"], entry)
        provenance = record.provenance
    except (ValueError, OSError) as error:
        return str(error)
    try:
        alone = StoreRecord(record.path, provenance)  # checked independently of the manifest's entry
        alone.check()
        written = manifest_entry(record.path, provenance, alone)
        others = {key for key in written.keys() | entry if written.get(key) != entry.get(key)}
        channels = [(channel["name"], channel["modality"], channel["target_hz"]) for channel in provenance["channels"]]
        others |= {key for key, said in whole.items() if said != (provenance | {"montage": channels})[key]}
    except (ValueError, OSError, MemoryError) as error:
        return str(error)
    except (LookupError, TypeError, AttributeError) as error:
        return f"{record.path}: its provenance lacks what prepare writes ({error!r}); {PREPARE_AGAIN}"
    if not others:
        return ""
    return f"{record.path}: manifest.json says otherwise of: {', '.join(sorted(others))}; {PREPARE_AGAIN}"


def _channels(saved: Mapping[str, Any]) -> list[tuple[str, str, float]] | None:
    """Name, modality and sampling rate of each channel of a saved montage; None if it cannot be read."""
    try:
        montage = Montage.from_dict(saved)
    except ValueError:
        return None
    return [(channel.name, channel.modality, montage.channel_rate_hz(c)) for c, channel in enumerate(montage.channels)]
