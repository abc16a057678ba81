"""Text fields of headers: their place, the numbers that they are, and how errors quote them.

The definition that `csrc/header_text.cpp` is tested against.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WHOLE = re.compile(rb"[+-]?[0-9]+")
_DECIMAL = re.compile(rb"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?")
_MOST_QUOTED = 40


class Field(NamedTuple):
    """A piece of a header and the byte at which it begins."""

    text: bytes
    offset: int

    def begin(self, start: int) -> Field:
        """Without its first bytes."""
        return Field(self.text[start:], self.offset + start)

    def strip(self, blanks: bytes) -> Field:
        """Without any of `blanks` at either end."""
        kept = self.text.lstrip(blanks)
        return Field(kept.rstrip(blanks), self.offset + len(self.text) - len(kept))

    def cut(self, ends: bytes) -> tuple[Field, Field]:
        """The part before the first of `ends`, and the rest, which begins with that; all of it where none is."""
        end = next((i for i, byte in enumerate(self.text) if byte in ends), len(self.text))
        return Field(self.text[:end], self.offset), self.begin(end)


def quoted(text: bytes) -> str:
    """The first bytes as Python writes them."""
    return repr(text[:_MOST_QUOTED]) + ("..." if len(text) > _MOST_QUOTED else "")


def printable(text: bytes) -> str:
    """The same without b and quotes."""
    return repr(text[:_MOST_QUOTED])[2:-1] + ("..." if len(text) > _MOST_QUOTED else "")


def decoded(text: bytes) -> str:
    """As UTF-8, or as Latin-1, in which any bytes are a text, where it is not that."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def is_whole(text: bytes) -> bool:
    """True for an optional sign and one or more digits."""
    return _WHOLE.fullmatch(text) is not None


def whole_number(text: bytes) -> int | None:
    """None unless `text` is whole and fits into 64 bits."""
    digits = text.lstrip(b"+-").lstrip(b"0")
    if not is_whole(text) or len(digits) > 19:  # Python refuses to convert some thousands of digits
        return None
    value = -int(digits or b"0") if text.startswith(b"-") else int(digits or b"0")
    return value if -(2**63) <= value < 2**63 else None


def decimal_number(text: bytes) -> float | None:
    """The nearest double; infinite where there is none. None for what is no decimal number, such as nan."""
    return float(text) if _DECIMAL.fullmatch(text) else None
