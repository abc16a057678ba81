"""Stages of an EDF recording as text, `NAME.eannot` of `NAME.edf`: a line for each 30 s from its first sample on.

Format: Luna, https://zzz.bwh.harvard.edu/luna/ref/annotations/ (epoch annotation files).
"""

from __future__ import annotations

from pathlib import Path

from physiofast.engine.header_text import decoded
from physiofast.io.edf_annotations import AnnotationLists, TimedText
from physiofast.stages import EPOCH_S

SUFFIX = ".eannot"


def stages_of(path: Path) -> Path | None:
    """The file with the stages of an EDF file, if it lies beside that."""
    beside = path.with_suffix(SUFFIX)
    return beside if beside.is_file() else None


def read_stages(path: Path) -> AnnotationLists:
    """A text of 30 s for each line.

    Raises:
        OSError: no such file.
        ValueError: an empty line before others; the message has its number.
    """
    lines = [line.strip() for line in decoded(path.read_bytes()).removeprefix("\ufeff").rstrip().splitlines()]
    if "" in lines:
        raise ValueError(
            f"{path}, line {lines.index('') + 1}: expected the stage of an epoch of 30 s, found an empty line; write ? "
            "where nobody scored one"
        )
    return AnnotationLists([TimedText(float(i * EPOCH_S), EPOCH_S, text) for i, text in enumerate(lines)], [], [])


def notes(path: Path, stages: AnnotationLists, duration_s: float) -> tuple[str, ...]:
    """Whether there are more or fewer lines than epochs in a recording that lasts so long; the last may be begun."""
    found, whole = len(stages.texts), int(duration_s // EPOCH_S)
    if whole <= found <= whole + 1:
        return ()
    return (
        f"{path.name} has {found} lines, each for 30 s, and the recording lasts {duration_s:g} s, which is {whole} of "
        "them; does it belong to another one?",
    )
