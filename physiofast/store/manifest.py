"""Reads, checks and writes the manifest of a store, and writes files into its folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from physiofast.support.atomic import atomic_path
from physiofast.support.locks import hold_store

STORE_FORMAT = "physiofast-store"
STORE_VERSION = 1
PREPARE_AGAIN = "run physiofast prepare again"
"""What an error message advises where a file of a store is damaged or missing."""

_MANIFEST_KINDS = {"montage": dict, "config": dict, "records": list, "failed": list}

_MOST = 1 << 48
"""Bound on the numbers in a manifest; every count below it may be the size of an array."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MOST < value < _MOST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


_TEXT = ("a text", _is_text)
_COUNT = ("a count", _is_count)
_ENTRY_KINDS = {
    "records": {
        "file": ("the name of a file beside it", lambda value: _is_text(value) and Path(value).name == value != ""),
        "record": _TEXT,
        "subject": _TEXT,
        "age_years": ("a number or null", lambda value: value is None or _is_number(value)),
        "sex": ("a text or null", lambda value: value is None or _is_text(value)),
        "hours": ("a number", _is_number),
        "windows": _COUNT,
        "patches": _COUNT,
        "units": ("a list of texts", lambda value: isinstance(value, list) and all(map(_is_text, value))),
        "drops": (
            "an object of texts",
            lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
        ),
    },
    "failed": {"record": _TEXT, "reason": _TEXT},
}
"""Keys that an entry must have, by list of the manifest: a description of the value, and a check of it."""


class StoreWriteError(OSError):
    """A store's folder or a file in it cannot be written."""


def read_manifest(path: Path, *, entries: bool = True) -> dict[str, Any]:
    """Read the manifest of a store, and check its format, its version and the presence of all keys.

    Args:
        path: the store's folder.
        entries: whether to check the entries too; `entry_damage` checks a single one.

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
        raise ValueError(f"{file} is not JSON ({error}); {PREPARE_AGAIN}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != STORE_FORMAT:
        raise ValueError(f"{file}: expected format {STORE_FORMAT!r}, found {found!r}")
    if manifest.get("version") != STORE_VERSION:
        raise ValueError(
            f"{file}: this release reads stores of version {STORE_VERSION}, found version "
            f"{manifest.get('version')!r}; prepare the recordings again into a new folder"
        )
    damage = manifest_damage(manifest) if entries else _parts_damage(manifest)
    if damage:
        raise ValueError(f"{file} is damaged: {damage}; {PREPARE_AGAIN}")
    return manifest


def manifest_damage(manifest: Mapping[str, Any]) -> str:
    """Describe the first missing or unsuitable value of a manifest; empty if there is none."""
    damage = _parts_damage(manifest)
    if damage:
        return damage
    for part in _ENTRY_KINDS:
        for number, entry in enumerate(manifest[part]):
            damage = entry_damage(part, entry)
            if damage:
                return f"entry {number} of {part!r} {damage}"
    return ""


def entry_damage(part: str, entry: Any) -> str:
    """Describe the first missing or unsuitable value of an entry of "records" or "failed"; empty if there is none."""
    if not isinstance(entry, dict):
        return "is not an object"
    for name, (expected, holds) in _ENTRY_KINDS[part].items():
        if name not in entry:
            return f"has no {name!r}"
        if not holds(entry[name]):
            return f"has for {name!r} {reprlib.repr(entry[name])}, which is not {expected}"
    return ""


def _parts_damage(manifest: Mapping[str, Any]) -> str:
    for key, kind in _MANIFEST_KINDS.items():
        if not isinstance(manifest.get(key), kind):
            return f"it has no {'list' if kind is list else 'object'} {key!r}"
    return ""


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a store folder atomically."""
    document = {"format": STORE_FORMAT, "version": STORE_VERSION} | dict(manifest)
    write_atomic(path / "manifest.json", (json.dumps(document, indent=1) + "\n").encode())


_WHOLE = {"montage": "the montage", "config": "how it was prepared", "physiofast": "the version of physiofast"}
"""Keys besides the records that windows depend on, and how to name them in a message."""


def manifest_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe differences between two manifests of a store that windows depend on; empty if there are none.

    Failures, warnings and the order of keys in JSON do not count.
    """
    changes = [words for key, words in _WHOLE.items() if before.get(key) != now.get(key)]
    old, new = ({entry["record"]: _lasting(entry) for entry in manifest["records"]} for manifest in (before, now))
    for record in sorted(old.keys() | new.keys()):
        if record not in new or record not in old:
            changes.append(f"{record} is {'new' if record in new else 'gone'}")
            continue
        keys = sorted(key for key in old[record].keys() | new[record] if old[record].get(key) != new[record].get(key))
        if keys:
            changes.append(f"{record}: {', '.join(keys)}")
    if not changes and list(old) != list(new):
        changes.append("the order of records")
    more = f", and {len(changes) - 5} more" if len(changes) > 5 else ""
    return "; ".join(changes[:5]) + more


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of what windows depend on; equal for two manifests if and only if `manifest_changes` is empty."""
    facts = [manifest.get(key) for key in _WHOLE], [_lasting(entry) for entry in manifest["records"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _lasting(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("warnings", "prepared_sha256")}


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file of a store atomically.

    Raises:
        StoreWriteError: the file cannot be written; the message has its path and what to do.
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
    """Make a store's folder and hold its lock within the block, so that no other process prepares into it.

    Raises:
        StoreWriteError: the folder cannot be made or written to; the message has its path and what to do.
        ValueError: another process prepares into this folder.
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
