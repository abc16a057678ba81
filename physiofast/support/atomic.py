"""Atomic writes: a file is complete or absent, even if the process or the machine stops while it is written."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; when the block ends, the file written there replaces `path`.

    If the block raises, `path` is left as it was and the temporary file is removed.

    Raises:
        OSError: nothing was written, or the file cannot be moved to `path`.
    """
    # Random, since processes on two machines may share an id; short, since a name may have at most 255 bytes.
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part), part):  # such as a full disk
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path, idle_s: float = 0.0) -> None:
    """Remove the temporary files that killed processes left in a folder within `atomic_path`.

    Args:
        folder: the folder; it need not exist.
        idle_s: keep files changed within this many seconds, which another process may be writing.
    """
    before = time.time() - idle_s
    for part in folder.glob(".*.part"):
        with suppress(FileNotFoundError):  # its writer has just moved it
            if not idle_s or part.stat().st_mtime <= before:
                part.unlink()
