"""Paths as users give them."""

from __future__ import annotations

import os
from pathlib import Path


def given_path(path: str | os.PathLike[str]) -> Path:
    """Convert a path that a user gave: a leading `~` or `~name` is expanded to a home folder, as a shell does.

    A folder that is really called `~` has to be given by its absolute path.
    """
    return Path(os.path.expanduser(path))
