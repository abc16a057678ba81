"""Commands that messages tell users to give, and the first of many names that they have."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def command(*words: object) -> str:
    """A command line of `physiofast` as a shell takes it, whatever is in a path."""
    return shlex.join(["physiofast", *map(str, words)])


def first_of(names: Sequence[str], shown: int = 3) -> str:
    """The first names, with a sign where that is not all."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def first_names(names: Sequence[str], shown: int = 5) -> str:
    """The same, and how many there are where that is not all."""
    return first_of(names, shown) + (f" ({len(names)} in all)" if len(names) > shown else "")


def need(kind: type, name: str, found: object, way: str) -> None:
    """Refuse an argument of another kind.

    Raises:
        TypeError: with what makes one.
    """
    if not isinstance(found, kind):
        raise TypeError(f"{name} must be a {kind.__name__}; found {type(found).__name__}: {way}")
