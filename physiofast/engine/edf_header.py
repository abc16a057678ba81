"""Parses the text of EDF and BDF headers. Format: https://www.edfplus.info/specs/edfplus.html."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from physiofast.engine.header_text import Field, decimal_number, printable, quoted, whole_number
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

ENCODING = "latin-1"
"""The standard requires ASCII, but real headers contain `µV`."""
FIELD_WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
"""Width in bytes of each field of a signal header; a header has each field of all signals before the next field."""
_FIXED = 256
_BLANKS = b"\0 \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0"
_LABEL, _, _UNIT, _PHYSICAL_MIN, _PHYSICAL_MAX, _DIGITAL_MIN, _DIGITAL_MAX, _, _SAMPLES, _ = range(10)
_MOST = 2**63 - 1


class MemberFields(NamedTuple):
    """The header of one signal of a data record."""

    label: str
    unit: str
    gain: float
    """Digital steps per unit; meaningless for annotations, as is the baseline."""
    baseline: float
    digital_min: int
    """Digital minimum that the header states; 0 for annotations, as is the maximum."""
    digital_max: int
    samples_per_record: int
    is_annotation: bool
    unusable: str
    """The header's ranges, if no physical values follow from them; otherwise empty."""


class EdfFields(NamedTuple):
    """The fields of a header, checked against the size of its file."""

    patient: str
    recording: str
    start: str
    """Start date and time as the header states them: dd.mm.yyhh.mm.ss."""
    is_bdf: bool
    is_discontinuous: bool
    """Whether the header declares the file discontinuous (EDF+D or BDF+D)."""
    record_duration_s: float
    stated_records: int
    """Number of data records by the header; -1 if it states none."""
    num_records: int
    """Number of whole data records in the file."""
    rest_bytes: int
    """Number of bytes after the last whole data record."""
    data_offset: int
    members: tuple[MemberFields, ...]


def edf_header_bytes(fixed: bytes) -> int:
    """The size in bytes of a header, from its first 256 bytes; 256 if they do not state it."""
    return _FIXED * (1 + max(whole_number(fixed[252:256].strip(_BLANKS)) or 0, 0))


def parse_edf_header(text: bytes, file_size: int, path: str | os.PathLike[str]) -> EdfFields:
    """Parse a header.

    Args:
        text: the beginning of the file, at least its header.
        file_size: size of the whole file in bytes.
        path: the file, for error messages.

    Raises:
        FileError: not EDF or BDF, a file that is shorter than its header says, or an invalid field.
    """
    if not native:
        return parse_edf_header_reference(text, file_size, path)
    *fields, members = _native.parse_edf_header(text, file_size, os.fsencode(path))
    return EdfFields._make((*fields, tuple(map(MemberFields._make, members))))


def parse_edf_header_reference(text: bytes, file_size: int, path: str | os.PathLike[str]) -> EdfFields:
    """The twin of `parse_edf_header`."""
    return _Parser(text, file_size, os.fspath(path)).parse()


class _Parser:
    def __init__(self, text: bytes, file_size: int, path: str) -> None:
        self.raw, self.file_size, self.path = text, file_size, path

    def parse(self) -> EdfFields:
        self.check_kind()
        members = [self.member(i) for i in range(self.count)]
        duration_s = self.number(self.part(244, 8))
        if duration_s <= 0 and not all(member.is_annotation for member in members):
            found = quoted(self.part(244, 8).text)
            if self.is_discontinuous:
                found += " in a discontinuous file; convert it to EDF+C, with the gaps filled or as one file per part"
            raise FileError(self.path, 244, "the seconds that a data record lasts, more than 0", found)
        stated = self.whole(self.part(236, 8), -1)
        record_bytes = sum(member.samples_per_record for member in members) * (3 if self.is_bdf else 2)
        records, rest = self.count_records(record_bytes, stated)
        if not 0 <= duration_s * records <= MAX_DURATION_S:
            limit = f"0 to {MAX_DURATION_S / max(records, 1):g} seconds for each of {records} data records"
            raise self.error(self.part(244, 8), f"{limit}, {MAX_DURATION_S:g} in all")
        return EdfFields(
            patient=self.text(self.part(8, 80)),
            recording=self.text(self.part(88, 80)),
            start=self.raw[168:184].decode(ENCODING),
            is_bdf=self.is_bdf,
            is_discontinuous=self.is_discontinuous,
            record_duration_s=duration_s,
            stated_records=stated,
            num_records=records,
            rest_bytes=rest,
            data_offset=self.end,
            members=tuple(self.calibrated(i, member, duration_s) for i, member in enumerate(members)),
        )

    def check_kind(self) -> None:
        kind = self.raw[:8]
        self.is_bdf = kind == b"\xffBIOSEMI"
        is_edf = kind[:1] == b"0" and kind.strip(_BLANKS) == b"0"
        if len(self.raw) < _FIXED or not (is_edf or self.is_bdf):
            found = f"one that begins with {quoted(kind)}" if kind else "an empty file"
            raise FileError(self.path, 0, "an EDF or BDF file", found)
        self.count = self.whole(self.part(252, 4), 0)
        self.end = _FIXED * (1 + self.count)
        self.is_discontinuous = self.text(self.part(192, 44))[:5] in ("EDF+D", "BDF+D")
        if len(self.raw) < self.end:
            expected = f"{self.count} signal headers, which end at byte {self.end}"
            found = f"the end of the file at byte {len(self.raw)}"
            raise FileError(self.path, len(self.raw), expected, found)

    def member(self, i: int) -> MemberFields:
        label = self.text(self.column(_LABEL, i))
        is_annotation = label == ("BDF Annotations" if self.is_bdf else "EDF Annotations")
        samples = self.whole(self.column(_SAMPLES, i), 1)
        _, _, least, most = (0.0, 0.0, 0, 0) if is_annotation else self.ranges(i)
        unit = self.text(self.column(_UNIT, i))
        return MemberFields(label, unit, 1.0, 0.0, least, most, samples, is_annotation, "")

    def ranges(self, i: int) -> tuple[float, float, int, int]:
        """Physical and digital ends."""
        low, high = (self.number(self.column(field, i)) for field in (_PHYSICAL_MIN, _PHYSICAL_MAX))
        least, most = (self.whole(self.column(field, i)) for field in (_DIGITAL_MIN, _DIGITAL_MAX))
        return low, high, least, most

    def count_records(self, record_bytes: int, stated: int) -> tuple[int, int]:
        """The number of whole data records, at least as many as stated, and the number of bytes after them."""
        expected = min(self.end + max(stated, 0) * record_bytes, _MOST)
        fits = self.file_size >= expected and record_bytes > 0 and (self.file_size - expected) % record_bytes == 0
        self.check_stated_end(fits)
        if self.file_size < expected:
            raise FileError(
                self.path,
                self.file_size,
                f"{expected} bytes ({stated} data records of {record_bytes} bytes from byte {self.end}), "
                "as the header promises",
                f"{self.file_size} bytes: truncated. Fetch the file again",
            )
        present = self.file_size - self.end
        return divmod(present, record_bytes) if record_bytes else (0, present)

    def check_stated_end(self, fits: bool) -> None:
        """Refuse a header that states another size of itself than the standard's, which would shift every sample.

        Args:
            fits: whether the size of the file is that of the standard's header and whole data records.
        """
        field = self.part(184, 8)
        if self.whole(field) == self.end:
            return
        found = ": the header is damaged. Fetch or export the file again"
        if fits:
            found = (
                f". The size of the file fits {self.end}, so only this field is damaged: write {self.end} into it, in "
                "a copy of the file"
            )
        raise FileError(
            self.path,
            field.offset,
            f"{self.end}, the bytes of the header: 256 * (1 + the number of signals, {self.count})",
            quoted(field.text) + found,
        )

    def calibrated(self, i: int, member: MemberFields, duration_s: float) -> MemberFields:
        """A signal's header with gain and baseline computed from its ranges."""
        if member.is_annotation:
            return member
        low, high, least, most = self.ranges(i)
        gain = (most - least) / (high - low) if high != low else 0.0
        baseline = most - high * gain
        if MIN_GAIN <= abs(gain) <= MAX_GAIN and abs(baseline) <= MAX_BASELINE:
            member = member._replace(gain=gain, baseline=baseline)
        else:
            fields = (_PHYSICAL_MIN, _PHYSICAL_MAX, _DIGITAL_MIN, _DIGITAL_MAX)
            shown = "physical range {} to {}, digital range {} to {}"
            member = member._replace(unusable=shown.format(*(self.text(self.column(field, i)) for field in fields)))
        if not MIN_RATE_HZ <= member.samples_per_record / duration_s <= MAX_RATE_HZ:
            label = printable(self.column(_LABEL, i).strip(_BLANKS).text)
            raise FileError(
                self.path,
                self.column(_SAMPLES, i).offset,
                f"{MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} samples per second of signal {i} ({label})",
                f"{member.samples_per_record} in {duration_s:g} s",
            )
        return member

    def part(self, offset: int, length: int) -> Field:
        return Field(self.raw[offset : offset + length], offset)

    def column(self, field: int, i: int) -> Field:
        """A field of signal i."""
        width = FIELD_WIDTHS[field]
        return self.part(_FIXED + self.count * sum(FIELD_WIDTHS[:field]) + width * i, width)

    def text(self, field: Field) -> str:
        return field.strip(_BLANKS).text.decode(ENCODING)

    def whole(self, field: Field, least: int | None = None) -> int:
        value = whole_number(field.strip(_BLANKS).text)
        if value is None or (least is not None and value < least):
            raise self.error(field, "a whole number" + ("" if least is None else f" of {least} or more"))
        return value

    def number(self, field: Field) -> float:
        """Parse a number; a decimal comma, which some recorders write, is accepted."""
        value = decimal_number(field.strip(_BLANKS).text.replace(b",", b".", 1))
        if value is None or not math.isfinite(value):
            raise self.error(field, "a number")
        return value

    def error(self, field: Field, expected: str) -> FileError:
        return FileError(self.path, field.offset, expected, quoted(field.text))
