"""Recordings into a store: one file per record, made in parallel, resumed where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast import __version__, conditioning, labels
from physiofast.engine import ChannelFilter
from physiofast.io import RecordPath, find_records, open_recording
from physiofast.io.finding import flag_duplicates
from physiofast.io.recording import Recording
from physiofast.manifest import StoreWriteError, read_manifest, store_folder, write_manifest
from physiofast.montage import Montage
from physiofast.prepare.admission import BAD_RECORD, reason_of, refusals
from physiofast.prepare.examination import (
    ABSENT,
    ExaminedChannel,
    Survey,
    alike,
    examine,
    find_channels,
    summarise,
)
from physiofast.prepare.scanning import num_whole
from physiofast.prepare.treatment import PrepareConfig, unit_factor
from physiofast.store import (
    SOURCE_KEYS,
    PreparedRecord,
    StoreRecord,
    lay_out_planes,
    manifest_entry,
    read_header,
    write_record,
)
from physiofast.support.advice import first_names
from physiofast.support.atomic import remove_parts
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
    config, out = config or PrepareConfig(), Path(out)
    records = find_records(Path(source)) if isinstance(source, str | os.PathLike) else flag_duplicates(source)
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


def prepare_record(recording: Recording, config: PrepareConfig) -> PreparedRecord:
    """Condition one recording: every channel of the montage that is worth keeping, and the labels.

    Raises:
        ValueError: damaged files, or a record that the config refuses.
        OSError: missing files.
    """
    montage = config.resolve_montage()
    patches = num_whole(recording.duration_s, montage.patch_s)
    examined = examine(recording, config)
    found = summarise(recording, config, [channel.survey for channel in examined])
    if found.errors:
        raise ValueError(f"{recording.path}: {'; '.join(found.errors)}")
    lengths = np.array(
        [
            0 if channel.survey.drop else patches * montage.patch_lengths[modality]
            for channel, modality in zip(examined, montage.channel_modality, strict=True)
        ],
        np.int64,
    )
    starts, total = lay_out_planes(lengths)
    samples = np.zeros(total, np.int16)
    planes = [samples[start : start + length] for start, length in zip(starts.clip(0), lengths, strict=True)]
    quantised = _condition(examined, montage, planes)
    valid = np.zeros((len(examined), patches), np.bool_)
    for c in quantised:
        valid[c] = examined[c].valid

    def of_channels(name: str) -> npt.NDArray[np.float32]:
        """A number of each channel; 0 of one that is dropped."""
        return np.asarray(
            [getattr(quantised[c], name) if c in quantised else 0 for c in range(len(examined))], np.float32
        )

    return PreparedRecord(
        samples=samples,
        plane_start=starts,
        plane_length=lengths,
        scale=of_channels("scale"),
        shift=of_channels("shift"),
        unit_scale=of_channels("unit_scale"),
        unit_shift=of_channels("unit_shift"),
        valid=valid,
        **_codes(recording, montage),
        provenance=_provenance(recording, config, found, examined, patches),
    )


def _condition(
    examined: Sequence[ExaminedChannel], montage: Montage, planes: Sequence[npt.NDArray[np.int16]]
) -> dict[int, conditioning.Quantised]:
    """Fill the planes of the channels that are kept; those of one rate, length and type go together."""
    kept = {}
    for number, channel in enumerate(examined):
        if channel.survey.drop is None:
            assert channel.signal is not None and channel.digital is not None
            kept[number] = channel.signal, channel.digital
    found: dict[int, conditioning.Quantised] = {}
    for numbers in alike(kept):
        source = tuple(kept[n][1] for n in numbers)
        work = [_to_quantise(examined[n], c, montage, planes[n]) for c, n in enumerate(numbers)]
        found |= dict(zip(numbers, conditioning.quantise(source, work), strict=True))
    return found


def _to_quantise(
    channel: ExaminedChannel, source: int, montage: Montage, out: npt.NDArray[np.int16]
) -> conditioning.ToQuantise:
    signal, plan, valid = channel.signal, channel.plan, channel.valid
    assert signal is not None and plan is not None and valid is not None and channel.digital is not None
    factor, _ = unit_factor(channel.survey.modality, signal.unit)
    scale = factor / signal.gain
    resampler = plan.resampler(signal.rate_hz)
    return conditioning.ToQuantise(
        filter=ChannelFilter(
            channel=source,
            gaps=channel.gaps,
            scale=scale,
            shift=-signal.baseline * scale,
            sos=plan.sos(signal.rate_hz),
            resampler=resampler,
            outputs=min(resampler.num_outputs(channel.digital.size), out.size),
        ),
        raw_lsb=abs(scale),
        centred=plan.low_hz is not None,
        keep=valid,
        rests=channel.rests,
        patch=round(plan.target_hz * montage.patch_s),
        out=out,
    )


def _codes(recording: Recording, montage: Montage) -> dict[str, npt.NDArray[np.int8]]:
    """The labels of a record's windows."""
    windows, window_s = num_whole(recording.duration_s, montage.window_s), montage.window_s
    return {
        "stage": _fit(labels.stage_epochs(recording, window_s), windows),
        "arousal": _fit(labels.arousal_windows(recording, window_s), windows),
        "apnea": _fit(labels.apnea_windows(recording, window_s), windows),
    }


def _fit(codes: npt.NDArray[np.int8], windows: int) -> npt.NDArray[np.int8]:
    """One code per window; the annotation clock may round the last window away."""
    return np.pad(codes[:windows], (0, max(0, windows - codes.size)), constant_values=labels.UNSCORED)


def _provenance(
    recording: Recording,
    config: PrepareConfig,
    found: Survey,
    examined: Sequence[ExaminedChannel],
    patches: int,
) -> dict[str, Any]:
    kept = [channel for channel in examined if channel.survey.drop is None]
    return {
        "record": recording.record_id,
        "subject": recording.subject_id,
        "age_years": recording.age_years,
        "sex": recording.sex,
        "hours": found.hours,
        "windows": found.windows,
        "patches": patches,
        "units": ["" if channel.survey.drop else _unit(channel) for channel in examined],
        "drops": found.drops,
        "warnings": list(found.warnings),
        "filters": {channel.survey.name: _filters(channel) for channel in kept},
        "channels": [dataclasses.asdict(channel) for channel in found.channels],
        "config": config.to_dict(),
        "physiofast": __version__,
        "sources": _sources(recording),
    }


def _unit(channel: ExaminedChannel) -> str:
    assert channel.signal is not None
    return unit_factor(channel.survey.modality, channel.signal.unit)[1]


def _filters(channel: ExaminedChannel) -> dict[str, Any]:
    assert channel.plan is not None and channel.signal is not None
    rate_hz = channel.signal.rate_hz
    return dataclasses.asdict(channel.plan) | {"rate_hz": rate_hz, "support_s": channel.plan.support_s(rate_hz)}


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
        present = _current(job.file, recording, job.config)
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


def _current(file: Path, recording: Recording, config: PrepareConfig) -> dict[str, Any] | None:
    """The manifest's entry of a record's file when nothing that it depends on has changed."""
    if not file.is_file():
        return None
    sources = _sources(recording)
    try:  # a damaged file is made anew, whatever its damage
        _, provenance = read_header(file)
        same = provenance["config"] == config.to_dict() and provenance["physiofast"] == __version__
        same = same and provenance["subject"] == recording.subject_id
        same = same and (provenance["age_years"], provenance["sex"]) == (recording.age_years, recording.sex)
        same = same and provenance["sources"] == sources
        stored = StoreRecord(file, provenance)
        if not same or not _reads_alike(stored, recording, config):
            return None
        stored.check()
        return manifest_entry(file, provenance, stored)
    except (ValueError, LookupError, TypeError, AttributeError, OSError, MemoryError):
        return None


def _reads_alike(stored: StoreRecord, recording: Recording, config: PrepareConfig) -> bool:
    """Whether what was read of a record's names and annotations is what this release and montage read of them."""
    montage = config.resolve_montage()
    channels = [
        (channel.name, None if index is None else recording.names[index], montage.channel_rate_hz(c))
        for c, (channel, index) in enumerate(
            zip(montage.channels, find_channels(recording, config).source, strict=True)
        )
    ]
    if [(c["name"], c["source"], c["target_hz"]) for c in stored.provenance["channels"]] != channels:
        return False
    return all(np.array_equal(getattr(stored, name), now) for name, now in _codes(recording, montage).items())


def _sources(recording: Recording) -> list[dict[str, Any]]:
    return [_source(path) for path in recording.files]


def _source(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return dict(zip(SOURCE_KEYS, (path.name, path.stat().st_size, digest), strict=True))


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
