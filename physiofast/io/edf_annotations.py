"""Parses annotations of EDF+ and BDF+ files: time-stamped annotation lists (TALs) and time stamps of data records.

Format: https://www.edfplus.info/specs/edfplus.html, section 2.2. These deviations from it are accepted: texts that are
not UTF-8, numbers that end with their decimal point, onsets without a sign, data records without a time stamp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from physiofast.engine.header_text import decoded, quoted
from physiofast.engine.limits import MAX_DURATION_S

_TAL = re.compile(rb"([+-]?\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?)?)?(?:\x14(.*))?", re.DOTALL)
MOST_DRIFT_S = 1.0
"""Largest total difference between time stamps and the data records' durations that is ignored, in seconds."""


class TimedText(NamedTuple):
    """An annotation with its time in seconds."""

    onset_s: float
    """Onset after the time in the file's header."""
    duration_s: float | None
    """Duration; None if not stated."""
    text: str


class AnnotationLists(NamedTuple):
    """The content of a file's annotation signals."""

    texts: list[TimedText]
    """Annotations in time order, without empty ones."""
    starts_s: list[float]
    """Start of each data record after the time in the header; NaN if not stated."""
    unreadable: list[str]
    """Descriptions (data record and bytes) of what is no TAL or has a time out of range."""


class Break(NamedTuple):
    """A gap or overlap between data records."""

    record: int
    """Index of the data record that follows it."""
    gap_s: float
    """Duration of the gap; negative for an overlap."""


def read_lists(records: Iterable[Sequence[bytes]]) -> AnnotationLists:
    """Parse the TALs of data records.

    Args:
        records: for each data record, the bytes of each annotation signal.
    """
    lists = AnnotationLists([], [], [])
    for number, signals in enumerate(records):
        start_s = float("nan")
        for place, raw in enumerate(signals):
            first = place == 0
            for piece in _pieces(raw):
                parts = _TAL.fullmatch(piece)
                if parts is None:
                    lists.unreadable.append(f"data record {number}, {quoted(piece)}")
                    continue
                onset_s, texts = float(parts[1]), (parts[3] or b"").split(b"\x14")
                if first and not texts[0] and math.isfinite(onset_s):
                    start_s = onset_s
                first = False
                duration_s = float(parts[2]) if parts[2] else None
                stripped = [text for text in (decoded(text).strip() for text in texts) if text]
                if stripped and max(abs(onset_s), duration_s or 0.0) > MAX_DURATION_S:
                    lists.unreadable.append(f"data record {number}, {quoted(piece)}: a time that cannot be")
                    continue
                lists.texts.extend(TimedText(onset_s, duration_s, text) for text in stripped)
        lists.starts_s.append(start_s)
    lists.texts.sort(key=lambda text: text.onset_s)
    return lists


def first_break(starts_s: Sequence[float], duration_s: float) -> Break | None:
    """The first gap or overlap between data records of `duration_s`, by their time stamps; None if there is none.

    Differences up to half a data record or half a second, whichever is less, are taken for rounding and clock drift.
    """
    records, gaps = _gaps(starts_s, duration_s)
    breaks = np.flatnonzero(np.abs(gaps) > min(duration_s, 1.0) / 2)
    return Break(int(records[breaks[0]]), float(gaps[breaks[0]])) if breaks.size else None


def drift_s(starts_s: Sequence[float], duration_s: float) -> float:
    """The sum of all gaps between data records of `duration_s`, in seconds; overlaps count as negative."""
    return float(_gaps(starts_s, duration_s)[1].sum())


def _gaps(starts_s: Sequence[float], duration_s: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Indices of the data records with a time stamp, without the first, and the gap before each in seconds."""
    stamps = np.asarray(starts_s)
    known = np.flatnonzero(~np.isnan(stamps))
    return known[1:], np.diff(stamps[known]) - np.diff(known) * duration_s


def _pieces(raw: bytes) -> Iterator[bytes]:
    """Split an annotation signal into its TALs, without their terminators and the NULs that pad the data record."""
    *whole, rest = raw.split(b"\x14\x00")
    rest = rest.rstrip(b"\x00").removesuffix(b"\x14")  # a TAL that fills the data record has no final NUL
    for piece in (*whole, rest):
        piece = piece.lstrip(b"\x00")
        if piece:
            yield piece
