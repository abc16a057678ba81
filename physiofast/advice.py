"""Commands that messages tell users to give."""

from __future__ import annotations

import shlex


def command(*words: object) -> str:
    """A command line of `physiofast` as a shell takes it, whatever is in a path."""
    return shlex.join(["physiofast", *map(str, words)])
