"""Finds records: those that a folder's RECORDS lists, or else all files below the folder."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from physiofast.engine.header_text import decoded
from physiofast.io import wfdb
from physiofast.support.messages import first_names
from physiofast.support.paths import given_path

EDF_SUFFIXES = (".edf", ".bdf")
HYPNOGRAM = "-Hypnogram"
"""End of the stem of an EDF+ file that holds the sleep stages of another file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordPath:
    """A record that `find_records` found, or the reason why it cannot be opened."""

    record_id: str
    path: Path
    """Header (WFDB) or file (EDF, BDF)."""
    problem: str | None = None
    """Why `open_recording` will refuse the record, such as a second listing; None if nothing is known against it."""


def find_records(path: str | os.PathLike[str]) -> list[RecordPath]:
    """Find every record below a folder, or the one that a file belongs to.

    A folder's `RECORDS` says what belongs to it; without one it is searched, linked folders too. Segments of
    multi-segment records and hypnograms (`NAME-Hypnogram.edf`) are no records of their own. A record that is listed
    but missing, or found a second time, comes with its `problem`, so that one bad record does not hide the others.

    Args:
        path: a folder, a `.hea`, `.edf` or `.bdf` file, or a WFDB record's path without suffix.

    Returns:
        Records in the order of `RECORDS`, else by path.

    Raises:
        FileNotFoundError: no such path; the message gives the nearest names.
        ValueError: a folder without any record.
    """
    path = given_path(path)
    if not path.is_dir():
        header = record_file(path)
        return [RecordPath(record_id=header.stem, path=header)]
    found = _listed(path) if (path / "RECORDS").is_file() else _searched(path)
    if not found:
        entries = sorted(entry.name for entry in path.iterdir())
        raise ValueError(
            f"{path}: no record in this folder: looked for RECORDS and, in all folders below, for .hea, .edf "
            f"and .bdf files; found {first_names(entries) or 'nothing'}"
        )
    return flag_duplicates(found)


def as_records(source: str | os.PathLike[str] | Sequence[RecordPath]) -> list[RecordPath]:
    """The records of a source: what `find_records` finds at a path, or given records with duplicates flagged."""
    return find_records(source) if isinstance(source, str | os.PathLike) else flag_duplicates(source)


def record_file(path: Path) -> Path:
    """The header or EDF file of a record that is given by a path with or without a suffix.

    Raises:
        FileNotFoundError: no such record; the message gives the nearest names.
        ValueError: a file of another kind.
    """
    if path.suffix.lower() in (*EDF_SUFFIXES, ".hea") and path.is_file():
        return path
    for header in (path.with_name(path.name + ".hea"), path.with_suffix(".hea")):
        if header.is_file():
            return header
    if path.is_file():
        raise ValueError(
            f"{path}: not a record: expected .hea, .edf, .bdf, or a file with a .hea of its name beside it; the suffix "
            "decides, so give an EDF file of another one a link that ends in .edf"
        )
    raise FileNotFoundError(f"{path}: no such record or folder{nearest_entries(path)}")


def nearest_entries(path: Path) -> str:
    """The end of an error message about a missing path: entries of its folder with similar names."""
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    names = {entry.name for entry in path.parent.iterdir()} | {e.stem for e in path.parent.glob("*.hea")}
    close = difflib.get_close_matches(path.name, sorted(names), n=3, cutoff=0.5)
    return (
        f"; nearest in {path.parent}: {', '.join(close)}" if close else f"; nothing in {path.parent} is named like it"
    )


def _listed(folder: Path, within: frozenset[Path] = frozenset()) -> list[RecordPath]:
    """Read the records that a folder's RECORDS lists; `within` holds the folders whose lists lead here."""
    found: list[RecordPath] = []
    seen: dict[Path, int] = {}
    text = decoded((folder / "RECORDS").read_bytes()).removeprefix("\ufeff")
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        path = folder / entry
        if not entry or path.stem.endswith(HYPNOGRAM):
            continue
        where = f"{folder / 'RECORDS'}, line {number}"
        if path in seen:
            problem = f"{where}: {entry} is listed a second time, after line {seen[path]}; remove one"
            found.append(RecordPath(record_id=path.name, path=path, problem=problem))
            continue
        seen[path] = number
        found.extend(_resolve_entry(path, where, within | {folder.resolve()}))
    return found


def _resolve_entry(path: Path, where: str, within: frozenset[Path]) -> list[RecordPath]:
    """Resolve a line of RECORDS: a record's path, or a folder of records as PhysioNet's top level lists them."""
    problem = f"{where}: {path} holds no record"
    try:
        if not path.is_dir():
            header = record_file(path)
            return [RecordPath(record_id=header.stem, path=header)]
        own = path / f"{path.name}.hea"
        if own.is_file():
            return [RecordPath(record_id=own.stem, path=own)]
        inside: list[RecordPath] = []
        if path.resolve() in within:
            problem = f"{where}: {path} is the folder of this list, or of one that led here; name records in it"
        else:
            inside = _listed(path, within) if (path / "RECORDS").is_file() else _searched(path)
    except (OSError, ValueError) as error:
        inside, problem = [], f"{where}: {error}"
    return inside or [RecordPath(record_id=path.name, path=path, problem=problem)]


def _searched(folder: Path) -> list[RecordPath]:
    found: list[RecordPath] = []
    inner: set[Path] = set()
    for file in sorted(_files_below(folder, found)):
        problem = None
        try:
            if not file.exists():
                problem = f"{file}: a link to {os.readlink(file)}, which leads nowhere"
            elif file.suffix.lower() == ".hea":
                inner.update(file.with_name(f"{name}.hea") for name in wfdb.segment_names(file))
        except (OSError, ValueError) as error:
            problem = str(error)
        if not file.stem.endswith(HYPNOGRAM):
            found.append(RecordPath(record_id=file.stem, path=file, problem=problem))
    return sorted((record for record in found if record.path not in inner), key=lambda record: record.path)


def _files_below(folder: Path, unlisted: list[RecordPath]) -> Iterator[Path]:
    """Yield headers and EDF files below a folder, visiting each folder once even if several links lead to it.

    A folder that cannot be read is appended to `unlisted`.
    """

    def refuse(error: OSError) -> None:
        path = Path(error.filename)
        unlisted.append(RecordPath(record_id=path.name, path=path, problem=f"{path}: {error.strerror}"))

    seen: set[Path] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        resolved = Path(parent).resolve()
        if resolved in seen:
            folders.clear()
            continue
        seen.add(resolved)
        folders.sort()
        for name in files:
            if Path(name).suffix.lower() in (".hea", *EDF_SUFFIXES):
                yield Path(parent, name)


def flag_duplicates(records: Sequence[RecordPath]) -> list[RecordPath]:
    """Give each record whose name occurred before a `problem`: both would be written to one file of a store."""
    first: dict[str, Path] = {}
    out = []
    for record in records:
        earlier = first.get(record.record_id)
        if record.problem is None and earlier is not None:
            problem = (
                f"{record.path}: record {record.record_id} was already found as {earlier}, and a store has one record "
                "of a name; keep one of them, or rename one if they are two nights (where files may not be renamed, "
                "prepare a folder of links to them, with a name of its own for each)"
            )
            record = dataclasses.replace(record, problem=problem)
        elif record.problem is None:
            first[record.record_id] = record.path
        out.append(record)
    return out
