"""Scoring of the National Sleep Research Resource (sleepdata.org), `NAME-nsrr.xml` of `NAME.edf`.

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
"""Folders of a dataset as the resource has them, of the same folders below."""
_START_OF_FILE = "Recording Start Time"
"""The concept of the one event that says how long the file is."""


class Scoring(NamedTuple):
    """What a file says."""

    events: AnnotationLists
    """By when they begin."""
    duration_s: float | None
    """How long the recording is that was scored, where it says so."""

    def notes(self, path: Path, duration_s: float) -> tuple[str, ...]:
        """Whether it is of a recording that lasts longer or shorter than this one, by an epoch or more."""
        if not self.duration_s or abs(self.duration_s - duration_s) < EPOCH_S:
            return ()
        return (
            f"{path.name} was made of a recording of {self.duration_s:g} s, and this one lasts {duration_s:g} s; does "
            "it belong to another one?",
        )


def scoring_of(path: Path) -> Path | None:
    """The scoring of an EDF file, beside it or in the folder of scorings of its dataset, if it is there."""
    name = path.stem + SUFFIX
    beside, parts = path.with_name(name), list(path.absolute().with_name(name).parts)
    if not beside.is_file() and SIGNALS in parts:
        parts[len(parts) - 1 - parts[::-1].index(SIGNALS)] = SCORING
        beside = Path(*parts)
    return beside if beside.is_file() else None


def read_scoring(path: Path) -> Scoring:
    """Every event of a file, by when it begins.

    Raises:
        OSError: no such file.
        ValueError: no XML, or XML of something else.
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
    """Where each element begins and ends."""
    try:
        yield from ElementTree.iterparse(path, events=("start", "end"))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two of encodings
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
    """Of any namespace, which a file may give."""
    return element.tag.rpartition("}")[2]


def _text(element: ElementTree.Element, child: str) -> str:
    return (element.findtext("{*}" + child) or "").strip()


def _event(concept: str, start: str, duration: str) -> TimedText | None:
    """None where it is none, or of no time that can be."""
    try:
        onset_s, duration_s = float(start), float(duration) if duration else None
    except ValueError:
        return None
    if not concept:
        return None
    if not abs(onset_s) <= MAX_DURATION_S or not 0 <= (duration_s or 0.0) <= MAX_DURATION_S:
        return None
    return TimedText(onset_s, duration_s, concept)
