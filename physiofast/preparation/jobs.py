"""Prepares the recordings of a folder into a store: one file per record, in parallel, resumable."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from physiofast import __version__
from physiofast.io import RecordPath, open_recording
from physiofast.io.finding import as_records
from physiofast.preparation.config import PrepareConfig
from physiofast.preparation.inspection import ABSENT
from physiofast.preparation.precheck import BAD_RECORD, reason_of, refusals
from physiofast.preparation.record import entry_if_current, prepare_record
from physiofast.store import manifest_entry, write_record
from physiofast.store.manifest import StoreWriteError, read_manifest, store_folder, write_manifest
from physiofast.support.atomic import remove_parts
from physiofast.support.messages import first_names
from physiofast.support.paths import given_path
from physiofast.workers import WHY_DIED, as_done

_POLICY = ("labels", "required", "unique_subjects")
"""Config keys that decide which records are accepted and do not affect their content."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordDone:
    """Progress of `prepare`: one record is done."""

    done: int
    """Number of records done so far, including this one."""
    total: int
    """Number of records in the source."""
    record: str
    status: str
    """`processed`, `skipped` (already in the store) or `failed`."""
    reason: str | None
    """Why the record failed; None if it did not."""
    hours: float
    """Duration of the recording; 0 if it failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """The result of `prepare`."""

    out: Path
    """The store's folder."""
    processed: tuple[str, ...]
    """Records that this call prepared."""
    skipped: tuple[str, ...]
    """Records that were in the store already, with the same sources, config and version."""
    failed: tuple[tuple[str, str], ...]
    """(record, reason) of each record that could not be prepared."""
    notes: tuple[tuple[str, str], ...]
    """(record, note) for what is missing or assumed in the store's records."""
    dropped: tuple[tuple[str, str, str], ...]
    """(record, channel, reason) for channels that the recordings have and the store's records do not."""
    unlisted: tuple[str, ...]
    """Files of records in the folder that the manifest does not list."""
    hours: float
    """Total duration of the store's records."""
    seconds: float
    """Time that the call took."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    record: str
    path: Path
    file: Path
    """The record's file in the store."""
    before: tuple[int, int] | None
    """The identity of that file when `prepare` was called, see `_file_identity`."""
    config: PrepareConfig
    problem: str | None
    """Why the record is refused, if that is known in advance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Outcome:
    job: _Job
    status: str
    reason: str | None = None
    entry: dict[str, Any] | None = None


def prepare(
    source: str | os.PathLike[str] | Sequence[RecordPath],
    out: str | os.PathLike[str],
    config: PrepareConfig | None = None,
    *,
    workers: int = 1,
    replace: bool = False,
    progress: Callable[[RecordDone], None] | None = None,
) -> PrepareReport:
    """Prepare recordings into a store: filter, resample, quantise and check every record of a source.

    A record that cannot be prepared is listed with its reason in the report and the manifest, and the others continue.
    A file is written whole or not at all. A second call resumes: it prepares only records that are missing, whose
    sources, channel names or labels have changed, or that another version prepared.

    Args:
        source: a record, a folder that is searched, or the result of `find_records`.
        out: the store's folder, which is made if it does not exist.
        config: the settings; the defaults if None.
        workers: number of processes. Each holds one record in memory, twice while it is written, and they share the
            engine's threads.
        replace: rewrite an existing store: drop records that are not in the source from the manifest (their files
            stay), and redo records that were prepared with other settings.
        progress: called in this process after each record.

    Returns:
        What was prepared, skipped, dropped and refused; `Store.open(out)` opens the store.

    Raises:
        ValueError: no record found, `workers` below 1, a store that another process is preparing into, or, without
            `replace`, a store of other recordings or with another config.
        OSError: the source does not exist.
        StoreWriteError: the store's folder or a file in it cannot be written, as on a full disk. Records that are done
            stay, and the next call resumes from them.
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more; found {workers}")
    started = time.monotonic()
    config, out = config or PrepareConfig(), given_path(out)
    records = as_records(source)
    if not records:
        raise ValueError("no record to prepare")
    with store_folder(out):
        if not replace:
            _check_same_store(out, records, config)
        kept, failed = _prepare_all(records, out, config, workers, progress)
    return _report(out, kept, failed, time.monotonic() - started)


def _prepare_all(
    records: Sequence[RecordPath],
    out: Path,
    config: PrepareConfig,
    workers: int,
    progress: Callable[[RecordDone], None] | None,
) -> tuple[list[_Outcome], list[_Outcome]]:
    """Write all records and the manifest; returns the outcomes that succeeded and those that failed, in order."""
    jobs = [
        _job(record, out / f"{record.record_id}.safetensors", config, problem)
        for record, problem in zip(records, refusals(records, config), strict=True)
    ]
    remove_parts(out)
    outcomes: dict[str, _Outcome] = {}
    failed: list[_Outcome] = []
    for done, outcome in enumerate(_run(jobs, workers), 1):
        if outcome.entry is None:
            failed.append(outcome)
        else:
            outcomes[outcome.job.record] = outcome
        if progress is not None:
            progress(_progress(outcome, done, len(jobs)))
    order = {id(job): number for number, job in enumerate(jobs)}
    failed.sort(key=lambda outcome: order[id(outcome.job)])
    kept = [outcomes[job.record] for job in jobs if job.record in outcomes and job.problem is None]
    _write_manifest(out, config, [outcome.entry for outcome in kept], failed)
    return kept, failed


def _run(jobs: Sequence[_Job], workers: int) -> Iterator[_Outcome]:
    for job, outcome in as_done(_work, jobs, workers):
        if outcome is None:
            reason = f"{job.path}: its worker process died, also with no other beside it; {WHY_DIED}"
            outcome = _Outcome(job=job, status="failed", reason=reason)
        yield dataclasses.replace(outcome, job=job)  # the one that was given, and not a worker's copy


def _job(record: RecordPath, file: Path, config: PrepareConfig, problem: str | None) -> _Job:
    before = _file_identity(file)
    return _Job(record=record.record_id, path=record.path, file=file, before=before, config=config, problem=problem)


def _work(job: _Job) -> _Outcome:
    """Prepare one record in a worker; an outcome without an entry gives the reason why it failed."""
    if job.problem is not None:
        return _Outcome(job=job, status="failed", reason=job.problem)
    try:
        recording = open_recording(job.path)
        present = entry_if_current(job.file, recording, job.config)
        if present is not None:  # possibly written by a worker of this call that died before it reported
            status = "skipped" if _file_identity(job.file) == job.before else "processed"
            return _Outcome(job=job, status=status, entry=present)
        prepared = prepare_record(recording, job.config)
        write_record(job.file, prepared)
    except StoreWriteError:  # the store is at fault, not the record: the next one would fail too
        raise
    except BAD_RECORD as error:
        return _Outcome(job=job, status="failed", reason=reason_of(error))
    return _Outcome(job=job, status="processed", entry=manifest_entry(job.file, prepared.provenance, prepared))


def _file_identity(file: Path) -> tuple[int, int] | None:
    """Inode and modification time, which change when a file is replaced; None if there is no file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _check_same_store(out: Path, records: Sequence[RecordPath], config: PrepareConfig) -> None:
    """Refuse a store with other settings or with records not in the source, which rewriting its manifest would lose."""
    if not (out / "manifest.json").is_file():
        return
    here = {record.record_id for record in records}
    try:
        manifest = read_manifest(out, entries=False)  # damage in an entry is mended by what follows
    except ValueError as error:
        raise ValueError(f"{error}; or write the manifest anew with --replace") from error
    before, now = manifest["config"], config.to_dict()
    changed = [key for key in now if key not in _POLICY and before.get(key) != now[key]]
    if manifest["records"] and changed:
        raise ValueError(
            f"{out} is a store that was prepared with other settings ({', '.join(changed)}), on which runs may have "
            "been trained; choose another folder, take the same settings, or make all its records anew with --replace"
        )
    listed = [str(entry["record"]) for entry in manifest["records"] if isinstance(entry, dict) and "record" in entry]
    others = [record for record in listed if record not in here]
    if others:
        raise ValueError(
            f"{out} is a store with records that are not in this source: {first_names(others)}; choose another "
            "folder, prepare all recordings from one folder, or drop them from the store with --replace"
        )


def _progress(outcome: _Outcome, done: int, total: int) -> RecordDone:
    hours = 0.0 if outcome.entry is None else outcome.entry["hours"]
    return RecordDone(
        done=done,
        total=total,
        record=outcome.job.record,
        status=outcome.status,
        reason=outcome.reason,
        hours=hours,
    )


def _write_manifest(
    out: Path, config: PrepareConfig, entries: Sequence[dict[str, Any] | None], failed: Sequence[_Outcome]
) -> None:
    failures = [{"record": f.job.record, "path": str(f.job.path), "reason": f.reason} for f in failed]
    manifest = {
        "montage": config.resolve_montage().to_dict(),
        "config": config.to_dict(),
        "physiofast": __version__,
        "records": list(entries),
        "failed": failures,
    }
    write_manifest(out, manifest)


def _report(out: Path, done: Sequence[_Outcome], failed: Sequence[_Outcome], seconds: float) -> PrepareReport:
    listed, entries = {outcome.job.record for outcome in done}, [o.entry for o in done if o.entry is not None]
    present = {file.stem for file in out.glob("*.safetensors")}
    return PrepareReport(
        out=out,
        processed=tuple(sorted(o.job.record for o in done if o.status == "processed")),
        skipped=tuple(sorted(o.job.record for o in done if o.status == "skipped")),
        failed=tuple((o.job.record, o.reason or "") for o in failed),
        notes=tuple(_notes(entries)),
        dropped=tuple(
            (entry["record"], channel, reason)
            for entry in entries
            for channel, reason in entry["drops"].items()
            if not reason.startswith(ABSENT)
        ),
        unlisted=tuple(sorted(present - listed)),
        hours=float(sum(entry["hours"] for entry in entries)),
        seconds=seconds,
    )


def _notes(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(record, note) for each entry's warnings, and for entries of identical files, which a split might divide."""
    first: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        yield from ((entry["record"], note) for note in entry["warnings"])
        largest = max(entry["sources"], key=lambda source: source["bytes"])  # the file of samples, not of annotations
        same = first.setdefault(largest["sha256"], entry)
        if same is not entry:
            yield (
                entry["record"],
                f"its file {largest['file']} is the same, to the byte, as one of {same['record']}; remove one of them, "
                "or one recording is in the store twice",
            )
