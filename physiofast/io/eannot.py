"""Reads sleep stages of `NAME.edf` from the text file `NAME.eannot`: one line per 30 s epoch from the first sample on.

Format: Luna, https://zzz.bwh.harvard.edu/luna/ref/annotations/ (epoch annotation files).
"""

from __future__ import annotations

from pathlib import Path

from physiofast.engine.header_text import decoded
from physiofast.io.edf_annotations import AnnotationLists, TimedText
from physiofast.stages import EPOCH_S

SUFFIX = ".eannot"


def stages_of(path: Path) -> Path | None:
    """The `.eannot` file beside an EDF file; None if there is none."""
    beside = path.with_suffix(SUFFIX)
    return beside if beside.is_file() else None


def read_stages(path: Path) -> AnnotationLists:
    """Read the lines of a file as texts that last one epoch each.

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
    """Warn if the number of lines is not that of a recording's epochs; the last epoch may be incomplete."""
    lines, epochs = len(stages.texts), int(duration_s // EPOCH_S)
    if epochs <= lines <= epochs + 1:
        return ()
    return (
        f"{path.name} has {lines} lines, each for 30 s, and the recording lasts {duration_s:g} s, which is {epochs} of "
        "them; does it belong to another one?",
    )
