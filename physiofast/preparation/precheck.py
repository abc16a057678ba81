"""What can be told about records before any of them is prepared: which are refused, and what each one holds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from physiofast import labels
from physiofast.io import RecordPath, open_recording
from physiofast.io.finding import as_records
from physiofast.io.recording import Recording
from physiofast.preparation.config import PrepareConfig
from physiofast.preparation.inspection import Inspection, inspect_recording

BAD_RECORD = (ValueError, OSError, LookupError, ArithmeticError, MemoryError)
"""Exceptions that reading a damaged record may raise; such a record is reported and the run continues."""


def inspect(
    source: str | os.PathLike[str] | Sequence[RecordPath], config: PrepareConfig | None = None
) -> Iterator[Inspection]:
    """Inspect recordings: what each one holds, and what `prepare` would drop or refuse and why.

    Nothing is filtered or written. A record that cannot be read yields an inspection without channels, whose `errors`
    give the reason.

    Args:
        source: a record, a folder that is searched, or the result of `find_records`.
        config: the settings that `prepare` would be called with; the defaults if None.

    Returns:
        An iterator over inspections in the order of the records; each record is read when its turn comes.

    Raises:
        ValueError: no record in the folder.
        OSError: the source does not exist.
    """
    records, config = as_records(source), config or PrepareConfig()
    return (
        _inspect_record(record, refusal, config)
        for record, refusal in zip(records, refusals(records, config), strict=True)
    )


def _inspect_record(record: RecordPath, refusal: str | None, config: PrepareConfig) -> Inspection:
    try:
        inspection = inspect_recording(open_recording(record), config)
    except BAD_RECORD as error:
        return _unreadable(record.record_id, reason_of(error))
    if refusal is None or refusal in inspection.errors:
        return inspection
    return dataclasses.replace(inspection, errors=(refusal, *inspection.errors))


def _unreadable(record_id: str, reason: str) -> Inspection:
    return Inspection(
        record=record_id,
        subject=record_id,
        age_years=None,
        sex=None,
        hours=0.0,
        windows=0,
        channels=(),
        ignored=(),
        duplicates={},
        near={},
        stage_hours={},
        warnings=(),
        errors=(reason,),
    )


def refusals(records: Sequence[RecordPath], config: PrepareConfig) -> list[str | None]:
    """The reasons for which `prepare` refuses records before it reads their samples.

    Every header is opened once, to find damaged headers, subjects that occur twice and missing sleep stages.

    Returns:
        For each record the reason, or None if it may be prepared.
    """
    opened: list[tuple[str | None, Recording | None]] = []
    first: dict[str, Path] = {}
    for record in records:
        try:
            recording = open_recording(record)
        except BAD_RECORD as error:
            opened.append((reason_of(error), None))
            continue
        earlier = first.setdefault(recording.subject_id, record.path)
        twice = config.unique_subjects and earlier != record.path
        opened.append((_twice(recording, earlier) if twice else None, recording))
    if config.labels != "auto":
        return [reason for reason, _ in opened]
    staged = {
        record.path.suffix
        for record, (_, recording) in zip(records, opened, strict=True)
        if _may_hold_stages(recording)
    }
    return [
        reason or (_without_stages(recording) if record.path.suffix in staged else None)
        for record, (reason, recording) in zip(records, opened, strict=True)
    ]


def _twice(recording: Recording, earlier: Path) -> str:
    return (
        f"{recording.path}: subject {recording.subject_id} is already in {earlier}; if these are several "
        "nights of one person, take them all with --no-unique-subjects (splits keep them together); if they are of "
        "several persons, name them in a column `subject` of age-sex.csv; else remove one"
    )


def _may_hold_stages(recording: Recording | None) -> bool:
    if recording is None:
        return False
    return any(span.code != labels.UNSCORED for span in labels.stage_spans(recording))


def _without_stages(recording: Recording | None) -> str | None:
    """The refusal of a record without sleep stages where other records of the source have them; None if it has some."""
    if recording is None or _may_hold_stages(recording):
        return None
    try:  # a record without readable samples is refused for that, not for its missing stages
        recording.physical([i for i, signal in enumerate(recording.signals) if signal.num_samples], 0, 1)
    except BAD_RECORD as error:
        return reason_of(error)
    reasons = [*recording.warnings, *labels.notes(recording)] or [f"its .{recording.annotator} annotations hold none"]
    return (
        f"{recording.path}: no sleep stages ({'; '.join(reasons)}), while other "
        f"{recording.path.suffix} records of the source have them; `--labels optional` takes it unscored"
    )


def reason_of(error: BaseException) -> str:
    """The reason that a report gives for a record whose reading raised an exception of `BAD_RECORD`."""
    text = str(error)
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
