"""Whether a store's files are still what `prepare` wrote."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from physiofast.manifest import read_manifest
from physiofast.montage import Montage
from physiofast.store import StoreRecord, manifest_entry

_AGAIN = "run physiofast prepare again"


def verify_store(path: str | os.PathLike[str]) -> tuple[int, Iterator[tuple[str, str]]]:
    """Read every file of a store, and compare it with its SHA-256 and with the manifest.

    Nothing is changed. What is read is the whole store, so it takes as long as its disk does; while `prepare` works in
    it, files that it has replaced are not those of the manifest.

    Args:
        path: the store's folder; its recordings need not be there.

    Returns:
        How many records the manifest lists, and of each, as soon as it is known, its name and what is wrong with it,
        which is empty where nothing is.

    Raises:
        ValueError: not a store, a store of another version, or a damaged manifest.
        OSError: there is no manifest.
    """
    path = Path(path)
    manifest = read_manifest(path)
    return len(manifest["records"]), _verify(path, manifest)


def unlisted_records(path: str | os.PathLike[str]) -> list[str]:
    """Names of the files in a store's folder that are of no record of its manifest, as `prepare` may leave them."""
    listed = {str(entry["file"]) for entry in read_manifest(Path(path))["records"]}
    return sorted(file.stem for file in Path(path).glob("*.safetensors") if file.name not in listed)


def _verify(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    times = Counter(str(entry["file"]) for entry in manifest["records"])
    for entry in manifest["records"]:
        found, listed = _damage(path, entry, manifest), times[str(entry["file"])]
        if not found and listed > 1:
            found = f"{path / entry['file']}: is listed {listed} times in manifest.json; {_AGAIN}"
        yield str(entry["record"]), found


def _damage(path: Path, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """What is wrong with a record's file, or with what the manifest says of it."""
    try:
        record = StoreRecord(path / entry["file"], entry)
        provenance = record.provenance
    except (LookupError, TypeError, AttributeError) as error:
        return f"{path / 'manifest.json'} is damaged: the entry of {entry['record']} cannot be read ({error}); {_AGAIN}"
    except (ValueError, OSError) as error:
        return str(error)
    try:
        alone = StoreRecord(record.path, provenance)  # not by what the manifest says of it
        alone.check()
        written = manifest_entry(record.path, provenance, alone)
        others = {key for key in written.keys() | entry if written.get(key) != entry.get(key)}
        others |= {key for key in ("config", "physiofast") if provenance[key] != manifest.get(key)}
        channels = [(channel["name"], channel["modality"], channel["target_hz"]) for channel in provenance["channels"]]
    except (ValueError, OSError, MemoryError) as error:
        return str(error)
    except (LookupError, TypeError, AttributeError) as error:
        return f"{record.path}: its provenance lacks what prepare writes ({error!r}); {_AGAIN}"
    others |= {"montage"} if channels != _channels(manifest["montage"]) else set()
    return f"{record.path}: manifest.json says otherwise of: {', '.join(sorted(others))}; {_AGAIN}" if others else ""


def _channels(saved: Mapping[str, Any]) -> list[tuple[str, str, float]] | None:
    """Name, modality and samples per second of each channel of a montage; none where it cannot be read."""
    try:
        montage = Montage.from_dict(saved)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return [(channel.name, channel.modality, montage.channel_rate_hz(c)) for c, channel in enumerate(montage.channels)]
