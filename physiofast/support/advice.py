"""What messages share: commands to give, the first of many names, what makes an argument, numbers that nearly agree."""

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


def told_apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with six digits, or with as many as it takes to see that they differ."""
    texts = [(f"{a:.{digits}g}", f"{b:.{digits}g}") for digits in range(6, 18)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])
