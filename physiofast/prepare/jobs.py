"""Recordings into a store: one file per record, made in parallel, resumed where it stopped."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from physiofast import __version__
from physiofast.io import RecordPath, find_records, open_recording
from physiofast.io.finding import flag_duplicates
from physiofast.prepare.admission import BAD_RECORD, reason_of, refusals
from physiofast.prepare.examination import ABSENT
from physiofast.prepare.recording import entry_if_current, prepare_record
from physiofast.prepare.treatment import PrepareConfig
from physiofast.store import manifest_entry, write_record
from physiofast.store.manifest import StoreWriteError, read_manifest, store_folder, write_manifest
from physiofast.support.advice import first_names
from physiofast.support.atomic import remove_parts
from physiofast.support.paths import given_path
from physiofast.workers import WHY_DIED, as_done

_POLICY = ("labels", "required", "unique_subjects")
"""Keys of a config that decide which records are taken, and nothing of what is in them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordDone:
    """One record is done."""

    done: int
    """Records done so far, this one included."""
    total: int
    record: str
    status: str
    """`processed`, `skipped` (it was there already) or `failed`."""
    reason: str | None
    """Why it failed."""
    hours: float
    """Length of the recording; 0 when it failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What `prepare` did."""

    out: Path
    processed: tuple[str, ...]
    skipped: tuple[str, ...]
    """Records that were there already: same sources, config and version."""
    failed: tuple[tuple[str, str], ...]
    """(record, reason)."""
    notes: tuple[tuple[str, str], ...]
    """(record, what is missing or assumed in it) of those in the store."""
    dropped: tuple[tuple[str, str, str], ...]
    """(record, channel, why it was not kept) of those in the store, for channels that the recordings have."""
    unlisted: tuple[str, ...]
    """Record files in the folder that are not of this run and not in the manifest."""
    hours: float
    """Of all prepared records."""
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    record: str
    path: Path
    file: Path
    """The store's file of the record."""
    before: tuple[int, int] | None
    """What was there when the command began, by `_file_now`."""
    config: PrepareConfig
    problem: str | None
    """Why it cannot be prepared, when that is known beforehand."""


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
    """Prepare every recording below a folder.

    A record that cannot be prepared is listed with its reason in the report and the manifest; the others go
    on. Files are complete or absent. A second run redoes what is missing, changed, or made by another version, and what
    names and annotations are read otherwise than they were.

    Args:
        source: a record, a folder that is searched, or what `find_records` gave.
        out: the store's folder.
        config: defaults when absent.
        workers: processes; each holds one record in memory, twice while it is written, and they share the engine's
            threads.
        replace: write the manifest anew although it lists records that are not in the source, whose files stay, and
            make records anew that were prepared with another config.
        progress: called in this process after each record.

    Raises:
        ValueError: no record found, less than one worker, a store of other recordings or made with another config and
            not `replace`, or one that another process prepares into.
        OSError: the source does not exist.
        StoreWriteError: the store's folder cannot be made, or a file in it not be written, as on a full disk. Records
            that were done stay, and the next run goes on from them.
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more; found {workers}")
    started = time.monotonic()
    config, out = config or PrepareConfig(), given_path(out)
    records = find_records(given_path(source)) if isinstance(source, str | os.PathLike) else flag_duplicates(source)
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
    """Records and the manifest; what the store now has, and what failed, in the records' order."""
    jobs = [
        _job(found, out / f"{found.record_id}.safetensors", config, problem)
        for found, problem in zip(records, refusals(records, config), strict=True)
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


def _job(found: RecordPath, file: Path, config: PrepareConfig, problem: str | None) -> _Job:
    return _Job(
        record=found.record_id, path=found.path, file=file, before=_file_now(file), config=config, problem=problem
    )


def _work(job: _Job) -> _Outcome:
    """Prepare one record, or say why not; runs in a worker."""
    if job.problem is not None:
        return _Outcome(job=job, status="failed", reason=job.problem)
    try:
        recording = open_recording(job.path)
        present = entry_if_current(job.file, recording, job.config)
        if present is not None:  # also what a worker wrote that died before it could say so
            status = "skipped" if _file_now(job.file) == job.before else "processed"
            return _Outcome(job=job, status=status, entry=present)
        prepared = prepare_record(recording, job.config)
        write_record(job.file, prepared)
    except StoreWriteError:  # no fault of the record, and the next one fares no better
        raise
    except BAD_RECORD as error:
        return _Outcome(job=job, status="failed", reason=reason_of(error))
    return _Outcome(job=job, status="processed", entry=manifest_entry(job.file, prepared.provenance, prepared))


def _file_now(file: Path) -> tuple[int, int] | None:
    """What tells a file from the one that was at its place before, None for no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _check_same_store(out: Path, records: Sequence[RecordPath], config: PrepareConfig) -> None:
    """Refuse to forget, or to make anew by other settings, what a store has: its manifest is written whole."""
    if not (out / "manifest.json").is_file():
        return
    here = {found.record_id for found in records}
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
    """(record, note) of a store's entries; also where two are of one recording, which a split might divide."""
    first: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        yield from ((entry["record"], note) for note in entry["warnings"])
        largest = max(entry["sources"], key=lambda source: source["bytes"])  # the samples, and not what was scored
        same = first.setdefault(largest["sha256"], entry)
        if same is not entry:
            yield (
                entry["record"],
                f"its file {largest['file']} is the same, to the byte, as one of {same['record']}; remove one of them, "
                "or one recording is in the store twice",
            )
