"""Parts of messages: commands and flags, the first of many names, counted nouns, two distinct numbers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any


def command(*words: object) -> str:
    """A `physiofast` command line for a shell, with paths quoted where needed."""
    return shlex.join(["physiofast", *map(str, words)])


def flag(key: str, value: Any) -> str:
    """The flag of the command line that gives a config key such as `model.heads` a value."""
    *sections, field = key.replace("_", "-").split(".")
    if isinstance(value, bool):
        return "--" + ".".join([*sections, field if value else f"no-{field}"])
    words = value if isinstance(value, tuple) else (value,)
    return shlex.join(["--" + ".".join([*sections, field]), *map(str, words)])


def first_names(names: Sequence[str], shown: int = 5) -> str:
    """Join the first names, and append "and N more" if that is not all of them."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """A number and its noun, which gets an s unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_distinct(a: float, b: float) -> tuple[str, str]:
    """Format two numbers with six significant digits, or with as many as it takes to tell them apart."""
    texts = [(f"{a:.{digits}g}", f"{b:.{digits}g}") for digits in range(6, 18)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])
