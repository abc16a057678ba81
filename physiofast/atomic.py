"""Files that are there whole or not at all, also when a process or the machine stops while one is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path in the same folder to write to; at the end of the block what was written takes the place of `path`.

    When the block raises, `path` stays as it was and nothing else is left in the folder.

    Raises:
        OSError: nothing was written, or it cannot be moved.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")  # processes on two machines may have one number
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
