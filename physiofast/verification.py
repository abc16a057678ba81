"""Whether a store's files are still what `prepare` wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from physiofast.manifest import read_manifest
from physiofast.store import StoreRecord, manifest_entry


def verify_store(path: str | os.PathLike[str]) -> tuple[int, Iterator[tuple[str, str]]]:
    """Read every file of a store, and compare it with its SHA-256 and with the manifest.

    Nothing is changed. What is read is the whole store, so it takes as long as its disk does.

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
    records = [StoreRecord(path / entry["file"], entry) for entry in manifest["records"]]
    return len(records), ((record.record, _damage(record, manifest["config"])) for record in records)


def _damage(record: StoreRecord, config: dict[str, Any]) -> str:
    try:
        record.check()
        written = manifest_entry(record.path, record.provenance, record)
        others = sorted(key for key in written.keys() | record.entry if written.get(key) != record.entry.get(key))
        others += ["config"] * (record.provenance["config"] != config)
    except (ValueError, OSError) as error:
        return str(error)
    except (LookupError, TypeError) as error:
        return f"{record.path}: its provenance lacks what prepare writes ({error!r}); run physiofast prepare again"
    if not others:
        return ""
    return (
        f"{record.path}: the store's manifest.json says otherwise of: {', '.join(others)}; run physiofast prepare again"
    )
