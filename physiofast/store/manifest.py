"""A store's folder: its manifest, and how files in it are written."""

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
"""No number of a manifest is as large, and each smaller one is a count that arrays may have."""


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
"""What an entry has to have: in words, and whether a value is that."""


class StoreWriteError(OSError):
    """A store's folder cannot be made, or a file in it not be written."""


def read_manifest(path: Path, *, entries: bool = True) -> dict[str, Any]:
    """The manifest of a store folder, checked for format, version, and that it has what its readers need.

    Args:
        path: the folder.
        entries: whether an entry that is damaged is an error; `entry_damage` finds it else.

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
    """What is wrong with a manifest for its readers, in words; empty when nothing is."""
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
    """What is wrong with one entry of "records" or "failed", in words; empty when nothing is."""
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
"""What windows depend on besides the records, in words."""


def manifest_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of two manifests of a store differs that windows depend on, in words; empty when nothing does.

    Failures and notes do not count, nor in which order JSON lists the keys of an object.
    """
    found = [words for key, words in _WHOLE.items() if before.get(key) != now.get(key)]
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


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """Of what windows depend on: two manifests have the same one where `manifest_changes` finds nothing."""
    facts = [manifest.get(key) for key in _WHOLE], [_lasting(entry) for entry in manifest["records"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


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
