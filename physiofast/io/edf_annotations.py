"""Annotations of EDF+ and BDF+ data records: time-stamped annotation lists (TALs) and the records' own time stamps.

Format: https://www.edfplus.info/specs/edfplus.html, section 2.2. Some writers are further from it than others, and what
can be understood is read: texts that are not UTF-8, numbers that end with their point, onsets without a sign, data
records without a time stamp.
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
"""What time stamps may run away from the data records' durations in all before that is said, or refused."""


class TimedText(NamedTuple):
    """An annotation."""

    onset_s: float
    """After the time in the file's header."""
    duration_s: float | None
    text: str


class AnnotationLists(NamedTuple):
    """What the annotation signals of a file say."""

    texts: list[TimedText]
    """In time order. Empty ones, which say nothing, are left out."""
    starts_s: list[float]
    """When each data record begins, after the time in the header; NaN where that is not stated."""
    unreadable: list[str]
    """What is no TAL, or none of a time that can be: in which data record, and its bytes."""


class Break(NamedTuple):
    """Where data records do not follow each other."""

    record: int
    """The first data record after it."""
    gap_s: float
    """From the end of the record before it that has a time stamp; negative where they overlap."""


def read_lists(records: Iterable[Sequence[bytes]]) -> AnnotationLists:
    """Read the TALs of data records.

    Args:
        records: the bytes of each annotation signal, for each data record.
    """
    found = AnnotationLists([], [], [])
    for number, signals in enumerate(records):
        start_s = float("nan")
        for place, raw in enumerate(signals):
            first = place == 0
            for piece in _pieces(raw):
                parts = _TAL.fullmatch(piece)
                if parts is None:
                    found.unreadable.append(f"data record {number}, {quoted(piece)}")
                    continue
                onset_s, texts = float(parts[1]), (parts[3] or b"").split(b"\x14")
                if first and not texts[0] and math.isfinite(onset_s):
                    start_s = onset_s
                first = False
                duration_s = float(parts[2]) if parts[2] else None
                stripped = [text for text in (decoded(text).strip() for text in texts) if text]
                if stripped and max(abs(onset_s), duration_s or 0.0) > MAX_DURATION_S:
                    found.unreadable.append(f"data record {number}, {quoted(piece)}: a time that cannot be")
                    continue
                found.texts.extend(TimedText(onset_s, duration_s, text) for text in stripped)
        found.starts_s.append(start_s)
    found.texts.sort(key=lambda text: text.onset_s)
    return found


def first_break(starts_s: Sequence[float], duration_s: float) -> Break | None:
    """The first place where data records of `duration_s` do not follow each other by their time stamps.

    Stamps are rounded, and clocks drift; half a data record or half a second, the less of the two, is more than that.
    """
    records, gaps = _gaps(starts_s, duration_s)
    breaks = np.flatnonzero(np.abs(gaps) > min(duration_s, 1.0) / 2)
    return Break(int(records[breaks[0]]), float(gaps[breaks[0]])) if breaks.size else None


def drift_s(starts_s: Sequence[float], duration_s: float) -> float:
    """What the gaps between data records come to, negative where they overlap."""
    return float(_gaps(starts_s, duration_s)[1].sum())


def _gaps(starts_s: Sequence[float], duration_s: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Data records with a time stamp but the first one, and seconds from the end of the one before it to each."""
    stamps = np.asarray(starts_s)
    known = np.flatnonzero(~np.isnan(stamps))
    return known[1:], np.diff(stamps[known]) - np.diff(known) * duration_s


def _pieces(raw: bytes) -> Iterator[bytes]:
    """TALs without what ends them, as far as they are one; NULs fill the rest of a data record."""
    *whole, rest = raw.split(b"\x14\x00")
    rest = rest.rstrip(b"\x00").removesuffix(b"\x14")  # where the data record ends with a list
    for piece in (*whole, rest):
        piece = piece.lstrip(b"\x00")
        if piece:
            yield piece
