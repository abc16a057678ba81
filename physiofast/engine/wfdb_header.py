"""Parses the text of WFDB headers. Format: https://physionet.org/physiotools/wag/header-5.htm.

Where the format is ambiguous, or real headers deviate from it, this parser and `csrc/wfdb_header.cpp` decide:

- Lines end where `str.splitlines` ends ASCII lines, as in the wfdb package. A byte order mark is skipped.
- A description, which is the signal's name, ends at a tab, as in wfdb. A gain may be absent before a baseline or unit.
- Names of files and segments may have any characters except blanks, control characters and path separators. A file has
  one format.
- A gain of 0 means that a signal is not calibrated, as does an absent gain.
- Extra text after a field, extra fields and extra lines are refused, where wfdb skips them or takes them for a
  description. So are numbers out of range (`physiofast.engine.limits`).
- A base date of 0/0/0, as in old headers, means no date.
"""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from physiofast.engine.header_text import Field, decimal_number, is_whole, printable, quoted, whole_number
from physiofast.engine.limits import (
    MAX_BASELINE,
    MAX_DURATION_S,
    MAX_GAIN,
    MAX_RATE_HZ,
    MIN_GAIN,
    MIN_RATE_HZ,
)
from physiofast.engine.native import FileError, native

if native:
    from physiofast import _native

_BLANKS = b" \t"
_LINE = re.compile(rb"[^\n\r\v\f\x1c-\x1e]+")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FORMATS = (0, 8, 16, 24, 32, 61, 80, 160, 212, 310, 311, 508, 516, 524)
_NO_NAME = re.compile(rb"[\x00-\x1f/\x7f]")
_TIME = re.compile(rb"(?:(?:([0-9]{1,2}):)?([0-9]{1,2}):)?([0-9]{1,2})(?:\.([0-9]+))?")
_DATE = re.compile(rb"([0-9]{1,2})/([0-9]{1,2})/([0-9]{1,4})")
_MOST_WHOLE = 2**31 - 1


class SignalFields(NamedTuple):
    """The fields of a signal line, with defaults for absent ones."""

    file: str
    format: int
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float | None
    """Digital steps per unit; None if absent or 0, for which the caller assumes 200 and warns."""
    baseline: float
    """Digital value of physical 0; the ADC zero if not stated."""
    unit: str
    """Physical unit; empty means mV."""
    adc_resolution: int | None
    adc_zero: int | None
    initial_value: int | None
    checksum: int | None
    block_size: int | None
    description: str
    """Description, which is the signal's name; may be empty."""


class SegmentFields(NamedTuple):
    """The fields of a segment line."""

    name: str
    """Name of the segment's record; `~` for a gap."""
    num_frames: int


class HeaderFields(NamedTuple):
    """The fields of a header, with either signals or segments."""

    name: str
    has_segments: bool
    num_signals: int
    rate_hz: float
    counter_hz: float | None
    base_counter: float | None
    num_frames: int | None
    base_time_us: int | None
    """Start time in microseconds since midnight."""
    base_date: tuple[int, int, int] | None
    """Start date: day, month, year."""
    signals: tuple[SignalFields, ...]
    segments: tuple[SegmentFields, ...]
    comments: tuple[str, ...]
    """The comments, without the leading #."""


def parse_wfdb_header(text: bytes, path: str | os.PathLike[str]) -> HeaderFields:
    """Parse the text of a header.

    Args:
        text: the header, UTF-8 or else Latin-1.
        path: the file, for error messages.

    Raises:
        FileError: an invalid field; the message has the byte offset of the first.
    """
    if not native:
        return parse_wfdb_header_reference(text, path)
    *fields, signals, segments, comments = _native.parse_wfdb_header(text, os.fsencode(path))
    rows = tuple(map(SignalFields._make, signals)), tuple(map(SegmentFields._make, segments))
    return HeaderFields._make((*fields, *rows, comments))


def parse_wfdb_header_reference(text: bytes, path: str | os.PathLike[str]) -> HeaderFields:
    """The twin of `parse_wfdb_header`."""
    return _Parser(text, os.fspath(path)).parse()


class _Parser:
    """Parses the lines and fields of a header, and raises `FileError` at the first invalid one."""

    def __init__(self, text: bytes, path: str) -> None:
        self.text, self.path = text, path
        self.encoding = "utf-8" if _is_utf8(text) else "latin-1"
        self.has_segments, self.rate_hz = False, 250.0
        self.comments: list[str] = []
        self.formats: dict[bytes, int] = {}
        self.of = ""
        """What an error is about, such as ` of signal 2 (ECG)`."""

    def parse(self) -> HeaderFields:
        lines = self.lines()
        first = next(lines, None)
        if first is None:
            raise FileError(self.path, len(self.text), "a record line", "an empty WFDB header")
        record, (number, promised), length = self.record_line(first)
        kind = "segment" if self.has_segments else "signal"
        parsed: list[Any] = []
        for line in lines:
            if len(parsed) == number:
                self.of = ""
                self.fail(line, f"no line after the {number} {kind} lines")
            self.of = f" of {kind} {len(parsed)}"
            parsed.append(self.segment_line(line) if self.has_segments else self.signal_line(line))
        if len(parsed) < number:
            expected = f"{number} {kind} lines, as many as stated here"
            raise FileError(self.path, promised.offset, expected, f"{len(parsed)}")
        self.of = ""
        if self.has_segments:
            self.check_lengths(sum(segment.num_frames for segment in parsed), length)
        rows = ((), tuple(parsed)) if self.has_segments else (tuple(parsed), ())
        return HeaderFields._make((*record, *rows, tuple(self.comments)))

    def lines(self) -> Iterator[Field]:
        """Those that are neither empty nor comments, without blanks at their ends."""
        start = len(_BYTE_ORDER_MARK) if self.text.startswith(_BYTE_ORDER_MARK) else 0
        for match in _LINE.finditer(self.text, start):
            line = Field(match[0], match.start()).strip(_BLANKS)
            if line.text.startswith(b"#"):
                self.comments.append(line.text.strip(b" \t#").decode(self.encoding))
            elif line.text:
                yield line

    def record_line(self, line: Field) -> tuple[tuple[Any, ...], tuple[int, Field], Field]:
        """The record's own fields; how many lines follow, and where that stands; where its length stands."""
        first, signals, clock, length, time, date, extra = _split(line, 6)
        record, segments = first.cut(b"/")
        name = self.name(record, "record name")
        self.has_segments = bool(segments.text)
        num_signals = self.whole(signals, "number of signals", 0, _MOST_WHOLE)
        counter_hz, base_counter = self.clock(clock) if clock.text else (None, None)
        frames = self.frames(length, "number of samples per signal") if length.text else None
        time_us = self.base_time(time) if time.text else None
        day = self.base_date(date) if date.text else None
        if extra.text:
            self.fail(extra, "the end of the record line")
        promised = num_signals, signals
        if self.has_segments:
            segments = segments.begin(1)
            promised = self.whole(segments, "number of segments", 1, _MOST_WHOLE), segments
        fields = name, self.has_segments, num_signals, self.rate_hz, counter_hz, base_counter, frames, time_us, day
        return fields, promised, length

    def clock(self, field: Field) -> tuple[float | None, float | None]:
        """FREQUENCY[/COUNTER FREQUENCY[(BASE COUNTER)]]."""
        rate, field = field.cut(b"/")
        self.rate_hz = self.number(rate, "sampling rate")
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            self.fail(rate, f"sampling rate: {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz")
        if not field.text:
            return None, None
        counter, field = field.begin(1).cut(b"(")
        counter_hz = self.number(counter, "counter frequency")
        if not field.text:
            return counter_hz, None
        inside, field = self.in_parentheses(field, "base counter value")
        base_counter = self.number(inside, "base counter value")
        if field.text:
            self.fail(field, "the end of the field after the base counter value")
        return counter_hz, base_counter

    def base_time(self, field: Field) -> int:
        match = _TIME.fullmatch(field.text)
        hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3]) if match else (24, 0, 0)
        if match is None or hours > 23 or minutes > 59 or seconds > 59:
            self.fail(field, "base time: HH:MM:SS, with or without a fraction")
        fraction = int((match[4] or b"").ljust(6, b"0")[:6])
        return (hours * 3600 + minutes * 60 + seconds) * 1_000_000 + fraction

    def base_date(self, field: Field) -> tuple[int, int, int] | None:
        match = _DATE.fullmatch(field.text)
        day, month, year = (int(part) for part in match.groups()) if match else (0, 0, 1)
        if (day, month, year) == (0, 0, 0):
            return None
        try:
            if match is None or len(match[3]) != 4:
                raise ValueError
            datetime.date(year, month, day)
        except ValueError:
            self.fail(field, "base date: DD/MM/YYYY")
        return day, month, year

    def segment_line(self, line: Field) -> SegmentFields:
        name, length, extra = _split(line, 2)
        segment = SegmentFields(self.name(name, "name"), self.frames(length, "length"))
        if extra.text:
            self.fail(extra, "the end of the line" + self.of)
        return segment

    def check_lengths(self, total: int, stated: Field) -> None:
        most = int(MAX_DURATION_S * self.rate_hz)
        if total > most:
            limit = f"0 to {most}, which is {MAX_DURATION_S:g} s at {self.rate_hz:g} Hz"
            raise FileError(self.path, len(self.text), f"length of all segments: {limit}", f"{total}")
        if stated.text and whole_number(stated.text) != total:
            self.fail(stated, f"number of samples per signal: {total}, the sum of the segments' lengths")

    def signal_line(self, line: Field) -> SignalFields:
        file, fmt, calibration, resolution, zero, initial, checksum, block, rest = _split(line, 8)
        # wfdb, whose names users know, ends a description at a tab.
        description = rest.cut(b"\t")[0].strip(_BLANKS).text
        self.of += f" ({printable(description)})" if description else ""
        name = self.name(file, "file name")
        stored_as = self.format(fmt, file.text)
        gain, baseline, unit = self.calibration(calibration)
        adc_resolution = self.whole(resolution, "ADC resolution", 0, _MOST_WHOLE) if resolution.text else None
        adc_zero = self.stored_value(zero, "ADC zero")
        return SignalFields(
            name,
            *stored_as,
            gain,
            float(adc_zero or 0) if baseline is None else baseline,
            unit.decode(self.encoding),
            adc_resolution,
            adc_zero,
            self.stored_value(initial, "initial value"),
            self.stored_value(checksum, "checksum"),
            self.whole(block, "block size", 0, _MOST_WHOLE) if block.text else None,
            description.decode(self.encoding),
        )

    def format(self, field: Field, file: bytes) -> tuple[int, int, int, int]:
        """FORMAT[xSAMPLES PER FRAME][:SKEW][+BYTE OFFSET], as MATLAB files have 16+24."""
        number, field = field.cut(b"x:+")
        found = whole_number(number.text)
        if found not in _FORMATS:
            self.fail(number, f"format{self.of}: one of {', '.join(map(str, _FORMATS))}")
        per_frame, skew, byte_offset = 1, 0, 0
        if field.text.startswith(b"x"):
            part, field = field.begin(1).cut(b":+")
            most, note = int(MAX_RATE_HZ / self.rate_hz), f", at most {MAX_RATE_HZ:g} Hz"
            per_frame = self.whole(part, "samples per frame", 1, most, note)
        if field.text.startswith(b":"):
            part, field = field.begin(1).cut(b"+")
            skew = self.frames(part, "skew")
        if field.text.startswith(b"+"):
            part, field = field.begin(1).cut(b"")
            byte_offset = self.whole(part, "byte offset", 0, 2**63 - 1)
        if field.text:
            self.fail(field, "the end of the format" + self.of)
        if self.formats.setdefault(file, found) != found:
            self.fail(number, f"format{self.of}: {self.formats[file]}, which the signals before it have in that file")
        return found, per_frame, skew, byte_offset

    def calibration(self, field: Field) -> tuple[float | None, float | None, bytes]:
        """GAIN[(BASELINE)][/UNIT]."""
        gain = baseline = None
        number, field = field.cut(b"(/")
        if number.text:
            gain = decimal_number(number.text)
            if gain is None or not (gain == 0 or MIN_GAIN <= abs(gain) <= MAX_GAIN):
                limit = f"a number of magnitude {MIN_GAIN:g} to {MAX_GAIN:g} or 0 (uncalibrated)"
                self.fail(number, f"gain{self.of}: the digital steps per unit, {limit}")
        if field.text.startswith(b"("):
            inside, field = self.in_parentheses(field, "baseline")
            baseline = decimal_number(inside.text) if is_whole(inside.text) else None
            if baseline is None or abs(baseline) > MAX_BASELINE:
                self.fail(inside, f"baseline{self.of}: a whole number of magnitude up to {MAX_BASELINE:g}")
        if field.text and not field.text.startswith(b"/"):
            self.fail(field, f"unit{self.of}: a / and a name")
        return gain or None, baseline, field.text[1:]

    def stored_value(self, field: Field, what: str) -> int | None:
        """A sample, or a sum of samples, as the file has them."""
        return self.whole(field, what, -_MOST_WHOLE - 1, _MOST_WHOLE) if field.text else None

    def whole(self, field: Field, what: str, low: int, high: int, note: str = "") -> int:
        value = whole_number(field.text)
        if value is None or not low <= value <= high:
            self.fail(field, f"{what}{self.of}: a whole number of {low} to {high}{note}")
        return value

    def number(self, field: Field, what: str) -> float:
        value = decimal_number(field.text)
        if value is None or not math.isfinite(value):
            self.fail(field, f"{what}{self.of}: a number")
        return value

    def frames(self, field: Field, what: str) -> int:
        """A length or place in time, counted in frames."""
        note = f", which is {MAX_DURATION_S:g} s at {self.rate_hz:g} Hz"
        return self.whole(field, what, 0, int(MAX_DURATION_S * self.rate_hz), note)

    def name(self, field: Field, what: str) -> str:
        """Names become file names beside the header."""
        if field.text in (b"", b".", b"..") or _NO_NAME.search(field.text):
            self.fail(field, f"{what}{self.of}: a name without control characters and folders")
        return field.text.decode(self.encoding)

    def in_parentheses(self, field: Field, what: str) -> tuple[Field, Field]:
        """What stands between the parentheses with which `field` begins, and what comes after them."""
        inside, rest = field.begin(1).cut(b")")
        if not rest.text:
            self.fail(field, f"{what}{self.of}: in parentheses")
        return inside, rest.begin(1)

    def fail(self, field: Field, expected: str) -> NoReturn:
        raise FileError(self.path, field.offset, expected, quoted(field.text) if field.text else "nothing")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _split(line: Field, count: int) -> list[Field]:
    """The first fields of a line, empty at its end, and the rest of the line."""
    out = []
    for _ in range(count):
        field, line = line.strip(_BLANKS).cut(_BLANKS)
        out.append(field)
    return [*out, line.strip(_BLANKS)]
