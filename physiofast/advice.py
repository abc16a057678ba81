"""Commands that messages tell users to give, and the first of many names that they have."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def command(*words: object) -> str:
    """A command line of `physiofast` as a shell takes it, whatever is in a path."""
    return shlex.join(["physiofast", *map(str, words)])


def first_of(names: Sequence[str]) -> str:
    """Three names at most, with a sign that there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
