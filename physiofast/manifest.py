"""A store's folder: its manifest, and how files in it are written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from physiofast.atomic import atomic_path
from physiofast.runlock import hold_store

STORE_FORMAT = "physiofast-store"
STORE_VERSION = 1

_MANIFEST_KINDS = {"montage": dict, "config": dict, "records": list, "failed": list}
_ENTRY_KEYS = {
    "records": ("file", "record", "subject", "age_years", "sex", "hours", "windows", "patches", "units", "drops"),
    "failed": ("record", "reason"),
}


class StoreWriteError(OSError):
    """A store's folder cannot be made, or a file in it not be written."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store folder, checked for format, version, and that no entry is missing.

    Raises:
        ValueError: not a physiofast store, one of another version, or a damaged manifest.
        OSError: there is no manifest.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a store: it has no manifest.json; make one with physiofast prepare")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); run physiofast prepare again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != STORE_FORMAT:
        raise ValueError(f"{file}: expected format {STORE_FORMAT!r}, found {found!r}")
    if manifest.get("version") != STORE_VERSION:
        raise ValueError(
            f"{file}: this release reads stores of version {STORE_VERSION}, found version "
            f"{manifest.get('version')!r}; prepare the recordings again into a new folder"
        )
    damage = manifest_damage(manifest)
    if damage:
        raise ValueError(f"{file} is damaged: {damage}; run physiofast prepare again")
    return manifest


def manifest_damage(manifest: Mapping[str, Any]) -> str:
    """What a manifest lacks that its readers need, in words; empty when nothing is missing."""
    for key, kind in _MANIFEST_KINDS.items():
        if not isinstance(manifest.get(key), kind):
            return f"it has no {'list' if kind is list else 'object'} {key!r}"
    for key, needed in _ENTRY_KEYS.items():
        for number, entry in enumerate(manifest[key]):
            if not isinstance(entry, dict):
                return f"entry {number} of {key!r} is not an object"
            missing = [name for name in needed if name not in entry]
            if missing:
                return f"entry {number} of {key!r} has no {missing[0]!r}"
    return ""


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a store folder atomically."""
    document = {"format": STORE_FORMAT, "version": STORE_VERSION} | dict(manifest)
    write_atomic(path / "manifest.json", (json.dumps(document, indent=1) + "\n").encode())


def manifest_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of two manifests of a store differs that windows depend on, in words; empty when nothing does.

    Failures and notes do not count, nor in which order JSON lists the keys of an object.
    """
    if "sources" in (now["records"] or [{}])[0] and any("sources" not in entry for entry in before["records"]):
        return "its manifest did not say then what was recorded, so nobody can tell whether it is the same"
    whole = {"montage": "the montage", "config": "how it was prepared", "physiofast": "the version of physiofast"}
    found = [words for key, words in whole.items() if before.get(key) != now.get(key)]
    old, new = ({entry["record"]: _lasting(entry) for entry in manifest["records"]} for manifest in (before, now))
    for record in sorted(old.keys() | new.keys()):
        if record not in new or record not in old:
            found.append(f"{record} is {'new' if record in new else 'gone'}")
            continue
        keys = sorted(key for key in old[record].keys() | new[record] if old[record].get(key) != new[record].get(key))
        if keys:
            found.append(f"{record}: {', '.join(keys)}")
    if not found and list(old) != list(new):
        found.append("the order of records")
    more = f", and {len(found) - 5} more" if len(found) > 5 else ""
    return "; ".join(found[:5]) + more


def _lasting(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("warnings", "prepared_sha256")}


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also when the machine stops in between.

    Raises:
        StoreWriteError: with the path, and what to do.
    """
    try:
        with atomic_path(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise StoreWriteError(
            f"{path}: {len(content)} bytes cannot be written: {error.strerror or error}; make room or allow writing "
            "there, then run the same command again: it goes on where it stopped"
        ) from error


@contextlib.contextmanager
def store_folder(path: Path) -> Iterator[None]:
    """A folder for a store, made with those above it, which no other process prepares recordings into meanwhile.

    Raises:
        StoreWriteError: with the path, and what to do.
        ValueError: another process does.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = "it is a file" if path.is_file() else error.strerror or str(error)
        raise StoreWriteError(
            f"{path}: the store needs a folder, which cannot be made there: {found}; choose another path for the store"
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_store(path))
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreWriteError(f"{path} cannot be written to: {reason}; allow writing there") from error
        yield
