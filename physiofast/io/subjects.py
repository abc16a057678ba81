"""Determines subject, age and sex from `age-sex.csv`, file names and headers."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from physiofast.engine.header_text import decoded
from physiofast.montage import nearest
from physiofast.support.messages import first_names

_SUBJECT_PATTERNS = (
    (re.compile(r"(S[CT]\d{3})\d[A-Z0-9]{2}(-PSG|-Hypnogram)?"), r"\1"),  # Sleep-EDFx: subject, then night
    (re.compile(r"(slp\d{2})[a-z]?"), r"\1"),  # MIT-BIH polysomnographic: subject, then part
    # National Sleep Research Resource: study, which of its visits, subject
    (re.compile(r"(shhs)[12]-(\d+)"), r"\1-\2"),
    (re.compile(r"([a-z]+)-visit-?\d+-([a-z]*\d+)(-nsrr)?"), r"\1-\2"),
    (re.compile(r"([a-z]+)-(?:baseline|followup|nonrandomized|month\d+)-(\d+)"), r"\1-\2"),
    (re.compile(r"([a-z]+)-(\d+)-(?:baseline|followup|month\d+)"), r"\1-\2"),
)
"""Patterns of file stems that name the subject, with the template of the subject id."""
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
_UNKNOWN = ("", "nan", "na", "n/a", "x", "u", "?", "unknown")
_OLDEST = 130
_NOBODY = (*_UNKNOWN, "anonymous", "anonymized", "anonymised")


class Person(NamedTuple):
    """The subject of a recording; age and sex are None if unknown."""

    subject: str
    age_years: float | None
    sex: str | None
    notes: tuple[str, ...]
    """Warnings to show the user."""


def demographics(path: Path, from_header: tuple[float | None, str | None], code: str | None = None) -> Person:
    """Determine subject, age and sex from a record's header, file name and table.

    `age-sex.csv` beside the record or one folder up takes precedence. An age outside 0 to 130 years
    in the header is taken as unknown.

    Args:
        path: the record; file names of Sleep-EDFx, MIT-BIH and several datasets of the NSRR name the subject.
        from_header: age in years and sex from the header.
        code: patient code from the header, which is the subject if the file name states none. `X`, zeros and words such
            as `unknown` are no codes; the subject is then the file's name.
    """
    names = (match.expand(who) for pattern, who in _SUBJECT_PATTERNS if (match := pattern.fullmatch(path.stem)))
    known = code if code is not None and code.strip("0") and code.lower() not in _NOBODY else path.stem
    subject = next(names, known)
    age, sex = from_header
    notes: list[str] = []
    if age is not None and not _is_age(age):
        notes.append(f"the header's age of {age:g} years is not within 0 to {_OLDEST}; taken as unknown")
        age = None
    folder = path.absolute().parent
    for table in (folder / "age-sex.csv", folder.parent / "age-sex.csv"):
        if table.is_file():
            row = _table_row(table, path.stem)
            if row is not None:
                age = age if row[1] is None else row[1]
                return Person(row[0] or subject, age, row[2] or sex, tuple(notes))
            notes.append(f"{table} has no row of record {path.stem}{_nearest_row(table, path.stem)}")
    return Person(subject, age, sex, tuple(notes))


def _nearest_row(table: Path, record_id: str) -> str:
    """The end of a message about a missing row: the record of the table with a similar name."""
    rows = _rows_of(table)
    alike = [name for name in rows if Path(name).stem.casefold() == record_id.casefold()]
    return f"; did you mean {alike[0]!r}?" if alike else f"; its rows are of {first_names(list(rows)) or 'nothing'}"


def _rows_of(table: Path) -> dict[str, list[tuple[int, dict[str, str]]]]:
    return _read_table(table, table.stat().st_mtime_ns)


def _table_row(table: Path, record_id: str) -> tuple[str, float | None, str | None] | None:
    rows = _rows_of(table).get(record_id, ())
    if len(rows) > 1:
        lines = " and ".join(str(number) for number, _ in rows)
        raise ValueError(f"{table}: record {record_id} is on lines {lines}; keep one of them")
    if not rows:
        return None
    number, row = rows[0]
    where = f"{table}, line {number}"
    return row.get("subject", ""), _age(row["age"], where), _sex(row["sex"], where)


@functools.lru_cache(maxsize=4)
def _read_table(table: Path, modified_ns: int) -> dict[str, list[tuple[int, dict[str, str]]]]:
    """Rows by record, with their line numbers; cached until the file is modified."""
    lines = _read_rows(table)
    columns = [name.strip().lower() for name in lines[0][1]] if lines else []
    missing = {"record", "age", "sex"} - set(columns)
    if missing:
        raise ValueError(
            f"{table}: no column {', '.join(sorted(missing))}; found {', '.join(columns) or 'nothing'}, where a comma "
            "ends a column"
        )
    rows: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, fields in lines[1:]:
        if not any(fields):
            continue
        if len(fields) != len(columns):
            raise ValueError(f"{table}, line {number}: {len(fields)} fields, expected {len(columns)}")
        row = dict(zip(columns, (field.strip() for field in fields), strict=True))
        if any(end in row[name] for name in ("record", "subject") if name in row for end in "\r\n"):
            raise ValueError(f"{table}, line {number}: a name goes over several lines; is a quote not closed?")
        rows.setdefault(row["record"], []).append((number, row))
    return rows


def _read_rows(table: Path) -> list[tuple[int, list[str]]]:
    """Read the fields of each row, with the number of its first line.

    Raises:
        ValueError: a quote that is not closed, so that a field would hold all lines that follow.
    """
    raw = table.read_bytes()
    is_wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = raw.decode("utf-16", "replace") if is_wide else decoded(raw).removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[tuple[int, list[str]]] = []
    while True:
        number = reader.line_num + 1
        try:
            found.append((number, next(reader)))
        except StopIteration:
            return found
        except csv.Error as error:
            raise ValueError(f"{table}, line {number}: cannot be read ({error}); is a quote not closed?") from error


def _age(text: str, where: str) -> float | None:
    if text.lower() in _UNKNOWN:
        return None
    try:
        age = float(text.removesuffix("+"))  # `90+` is 90 and older, as de-identified tables say
    except ValueError:
        raise ValueError(f"{where}: age {text!r} is not a number of years") from None
    if not _is_age(age):
        raise ValueError(f"{where}: age {text} is not within 0 to {_OLDEST} years")
    return age


def _is_age(years: float) -> bool:
    return 0 <= years <= _OLDEST


def _sex(text: str, where: str) -> str | None:
    if text.lower() in _UNKNOWN:
        return None
    if text.lower() not in _SEXES:
        raise ValueError(f"{where}: sex {text!r}{nearest(text, ('F', 'M'))}")
    return _SEXES[text.lower()]


def from_comments(comments: Iterable[str]) -> tuple[float | None, str | None]:
    """Parse age and sex from WFDB comments: `<age>: 25 <sex>: M`, `age: 81`, or MIT-BIH's `69 M 1085 1629 x1`."""
    age: float | None = None
    sex: str | None = None
    for comment in comments:
        leading = re.match(r"(\d{1,3}) ([MF])\b", comment)
        years = re.search(r"<?\bage>?\s*:\s*(\d{1,3}(?:\.\d+)?)\b", comment, re.IGNORECASE)
        word = re.search(r"<?\bsex>?\s*:\s*(female|male|f|m)\b", comment, re.IGNORECASE)
        if leading:
            age, sex = age or float(leading[1]), sex or leading[2]
        if years:
            age = age or float(years[1])
        if word:
            sex = sex or _SEXES[word[1].lower()]
    return age, sex
