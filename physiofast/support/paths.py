"""Paths as users give them."""

from __future__ import annotations

import os
from pathlib import Path


def given_path(path: str | os.PathLike[str]) -> Path:
    """A path that somebody has written: `~` and `~name` at its beginning are home folders, as in a shell.

    One that is called `~` itself has to be given from the root on.
    """
    return Path(os.path.expanduser(path))
