"""Records that cannot be prepared, known before any of them is: what their headers and their neighbours say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from physiofast import labels
from physiofast.io import RecordPath, open_recording
from physiofast.io.recording import Recording
from physiofast.prepare.treatment import PrepareConfig

BAD_RECORD = (ValueError, OSError, LookupError, ArithmeticError, MemoryError)
"""What a damaged record can raise in a reader; it is listed, and the run goes on."""


def refusals(records: Sequence[RecordPath], config: PrepareConfig) -> list[str | None]:
    """Why `prepare` would refuse each record before it reads any sample, or None.

    Headers are opened once, so that bad ones, subjects that occur twice and missing annotations are known.
    """
    looks: list[tuple[str | None, Recording | None]] = []
    first: dict[str, Path] = {}
    for found in records:
        try:
            recording = open_recording(found)
        except BAD_RECORD as error:
            looks.append((reason_of(error), None))
            continue
        earlier = first.setdefault(recording.subject_id, found.path)
        twice = config.unique_subjects and earlier != found.path
        looks.append((_twice(recording, earlier) if twice else None, recording))
    if config.labels != "auto":
        return [reason for reason, _ in looks]
    staged = {found.path.suffix for found, look in zip(records, looks, strict=True) if _may_hold_stages(look[1])}
    return [
        reason or (_without_stages(recording) if found.path.suffix in staged else None)
        for found, (reason, recording) in zip(records, looks, strict=True)
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
    if recording is None or _may_hold_stages(recording):
        return None
    try:  # without samples there is no record, and stages would not help
        recording.physical([i for i, signal in enumerate(recording.signals) if signal.num_samples], 0, 1)
    except BAD_RECORD as error:
        return reason_of(error)
    reasons = [*recording.warnings, *labels.notes(recording)] or [f"its .{recording.annotator} annotations hold none"]
    return (
        f"{recording.path}: no sleep stages ({'; '.join(reasons)}), while other "
        f"{recording.path.suffix} records of the source have them; `--labels optional` takes it unscored"
    )


def reason_of(error: BaseException) -> str:
    """What a report says about a record whose reading raised this error of `BAD_RECORD`."""
    text = str(error)
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
