"""Files that are there whole or not at all, also when a process or the machine stops while one is written."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path in the same folder to write to; at the end of the block what was written takes the place of `path`.

    When the block raises, `path` stays as it was and nothing else is left in the folder.

    Raises:
        OSError: nothing was written, or it cannot be moved.
    """
    # Processes on two machines may have one number; names may be no longer than 255 bytes.
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part), part):  # as writing to a full disk
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path, idle_s: float = 0.0) -> None:
    """Remove what killed processes left of files that `atomic_path` was to make in a folder.

    Args:
        folder: where they lie; it need not be there.
        idle_s: what has changed within so many seconds stays, for somebody may be writing it.
    """
    before = time.time() - idle_s
    for part in folder.glob(".*.part"):
        with suppress(FileNotFoundError):  # its writer was quicker
            if not idle_s or part.stat().st_mtime <= before:
                part.unlink()
