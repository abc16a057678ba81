"""Reads scoring of the National Sleep Research Resource (sleepdata.org), `NAME-nsrr.xml` of `NAME.edf`.

`<PSGAnnotation>` holds a `<ScoredEvent>` for each stage, arousal, respiratory event and artefact: an `<EventConcept>`
such as `Stage 2 sleep|2`, and `<Start>` and `<Duration>` in seconds, from the start of the EDF file.
Format: https://github.com/nsrr/edf-editor-translator/wiki.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from physiofast.engine.limits import MAX_DURATION_S
from physiofast.io.edf_annotations import AnnotationLists, TimedText
from physiofast.stages import EPOCH_S

SUFFIX = "-nsrr.xml"
SIGNALS, SCORING = "edfs", "annotations-events-nsrr"
"""The two folders of a dataset of the resource, with the same subfolders, for EDF files and their scoring."""
_START_OF_FILE = "Recording Start Time"
"""Concept of the event whose duration is the recording's."""


class Scoring(NamedTuple):
    """The content of a scoring file."""

    events: AnnotationLists
    """The events, sorted by onset."""
    duration_s: float | None
    """Duration of the recording that was scored; None if the file does not state it."""

    def notes(self, path: Path, duration_s: float) -> tuple[str, ...]:
        """Warn if the recording that was scored is longer or shorter than a given one by an epoch or more."""
        if not self.duration_s or abs(self.duration_s - duration_s) < EPOCH_S:
            return ()
        return (
            f"{path.name} was made of a recording of {self.duration_s:g} s, and this one lasts {duration_s:g} s; does "
            "it belong to another one?",
        )


def scoring_of(path: Path) -> Path | None:
    """The scoring file of an EDF file, beside it or in the dataset's folder of scorings; None if there is none."""
    name = path.stem + SUFFIX
    beside, parts = path.with_name(name), list(path.absolute().with_name(name).parts)
    if not beside.is_file() and SIGNALS in parts:
        parts[len(parts) - 1 - parts[::-1].index(SIGNALS)] = SCORING
        beside = Path(*parts)
    return beside if beside.is_file() else None


def read_scoring(path: Path) -> Scoring:
    """Read the events of a scoring file.

    Raises:
        OSError: no such file.
        ValueError: not XML, or XML of another kind.
    """
    texts: list[TimedText] = []
    unreadable: list[str] = []
    root = duration_s = None
    for what, element in _elements(path):
        if root is None:
            root = _need_root(element, path)
        if what == "start" or _name(element) != "ScoredEvent":
            continue
        concept, start, duration = (_text(element, child) for child in ("EventConcept", "Start", "Duration"))
        event = _event(concept, start, duration)
        if concept == _START_OF_FILE:
            duration_s = event and event.duration_s
        elif event is None:
            unreadable.append(f"{concept[:40]!r}, from {start[:20]!r} for {duration[:20]!r}")
        else:
            texts.append(event)
        element.clear()
    return Scoring(AnnotationLists(sorted(texts, key=lambda event: event.onset_s), [], unreadable), duration_s)


def _elements(path: Path) -> Iterator[tuple[str, ElementTree.Element]]:
    """Yield ("start" or "end", element) while the file is parsed."""
    try:
        yield from ElementTree.iterparse(path, events=("start", "end"))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # encodings raise the last two
        raise ValueError(f"{path}: not XML that can be read: {error}") from error


def _need_root(element: ElementTree.Element, path: Path) -> ElementTree.Element:
    if _name(element) == "PSGAnnotation":
        return element
    of = "Profusion's scoring; " if _name(element) == "CMPStudyConfig" else ""
    raise ValueError(
        f"{path}: expected scoring as the National Sleep Research Resource has it, <PSGAnnotation>, found "
        f"<{_name(element)}>: {of}the resource has every dataset's in {SCORING}, as NAME{SUFFIX}"
    )


def _name(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]


def _text(element: ElementTree.Element, child: str) -> str:
    return (element.findtext("{*}" + child) or "").strip()


def _event(concept: str, start: str, duration: str) -> TimedText | None:
    """An event from its fields; None if it has no concept, or a time that is no number or out of range."""
    try:
        onset_s, duration_s = float(start), float(duration) if duration else None
    except ValueError:
        return None
    if not concept:
        return None
    if not abs(onset_s) <= MAX_DURATION_S or not 0 <= (duration_s or 0.0) <= MAX_DURATION_S:
        return None
    return TimedText(onset_s, duration_s, concept)
