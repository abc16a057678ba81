"""Text fields of headers: their byte offsets, conversion to numbers, and how errors quote them.

This is the definition that `csrc/header_text.cpp` is tested against.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WHOLE = re.compile(rb"[+-]?[0-9]+")
_DECIMAL = re.compile(rb"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?")
_MOST_QUOTED = 40


class Field(NamedTuple):
    """A part of a header's text and its byte offset."""

    text: bytes
    offset: int

    def begin(self, start: int) -> Field:
        """The field without its first `start` bytes."""
        return Field(self.text[start:], self.offset + start)

    def strip(self, blanks: bytes) -> Field:
        """The field without bytes of `blanks` at either end."""
        kept = self.text.lstrip(blanks)
        return Field(kept.rstrip(blanks), self.offset + len(self.text) - len(kept))

    def cut(self, ends: bytes) -> tuple[Field, Field]:
        """Split before the first byte of `ends` into two fields; if there is none, the second one is empty."""
        end = next((i for i, byte in enumerate(self.text) if byte in ends), len(self.text))
        return Field(self.text[:end], self.offset), self.begin(end)


def quoted(text: bytes) -> str:
    """The first bytes of a text as a Python literal, for error messages."""
    return repr(text[:_MOST_QUOTED]) + ("..." if len(text) > _MOST_QUOTED else "")


def printable(text: bytes) -> str:
    """The first bytes of a text, with escapes but without quotes, for error messages."""
    return repr(text[:_MOST_QUOTED])[2:-1] + ("..." if len(text) > _MOST_QUOTED else "")


def decoded(text: bytes) -> str:
    """Decode bytes as UTF-8, or as Latin-1 if they are not valid UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def is_whole(text: bytes) -> bool:
    """Whether a text is an optional sign and one or more digits."""
    return _WHOLE.fullmatch(text) is not None


def whole_number(text: bytes) -> int | None:
    """Convert a text to int; None if it is not a whole number, or does not fit into 64 bits."""
    digits = text.lstrip(b"+-").lstrip(b"0")
    if not is_whole(text) or len(digits) > 19:  # Python refuses to convert some thousands of digits
        return None
    value = -int(digits or b"0") if text.startswith(b"-") else int(digits or b"0")
    return value if -(2**63) <= value < 2**63 else None


def decimal_number(text: bytes) -> float | None:
    """Convert a text to the nearest float, which may be infinite; None if it is no decimal number, such as nan."""
    return float(text) if _DECIMAL.fullmatch(text) else None
