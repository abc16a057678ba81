"""File locks: at most one training in a run folder, and at most one `prepare` in a store."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from physiofast.support.atomic import remove_parts
from physiofast.support.messages import command

LOCK_NAME = ".training.lock"
STORE_LOCK_NAME = ".prepare.lock"
_IDLE_S = 3600.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder within the block; the folder is made if it does not exist.

    The lock is flock on a file in the folder. The kernel releases it when the process ends, also by kill -9, so a
    leftover file blocks nobody. It belongs to the open file: a process forked within the block holds it too, until that
    ends (an executed program does not). Over NFS, Linux asks the server, so two machines exclude each other, unless the
    mount says nolock or local_lock. On a file system without locks, such as Lustre without its option flock, nothing is
    held and nobody is refused.

    Temporary files of killed processes are removed first: checkpoints at once, since only the lock's holder writes
    them, others when they have not changed for an hour.

    Raises:
        ValueError: another process trains in this folder; the message says which.
        OSError: the folder cannot be made or written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK_NAME).open("a")
    except OSError as error:
        reason = "it is a file" if run.is_file() else error.strerror
        if isinstance(error, PermissionError) and run.is_dir() and os.path.exists(run / "config.json"):
            # A run that goes on has no other folder to choose.
            raise OSError(
                f"{run} cannot be written to: {reason}; allow writing there, or copy that folder elsewhere and go "
                f"on with `{command('train', '--resume', 'COPY')}`"
            ) from error
        raise OSError(f"{run} cannot be a run folder: {reason}; choose another with --out") from error
    then = f"then go on with `{command('train', '--resume', run)}`"
    with _hold(file, f"{run} is being trained by", f"wait until it ends or stop it with Ctrl-C, {then}"):
        remove_parts(run / "checkpoints")
        remove_parts(run, _IDLE_S)
        yield


@contextmanager
def hold_store(store: Path) -> Iterator[None]:
    """Hold the lock of a store's folder within the block, as `hold_run` does for a run folder.

    Args:
        store: the folder, which must exist.

    Raises:
        ValueError: another process prepares into this folder; the message says which.
        OSError: the folder cannot be written to.
    """
    then = "then run this again: it goes on from what is there"
    with _hold((store / STORE_LOCK_NAME).open("a"), f"{store} is being prepared by", f"wait until it ends, {then}"):
        yield


@contextmanager
def _hold(file: IO[str], busy: str, advice: str) -> Iterator[None]:
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = Path(file.name).read_text().strip() or "another process"
            raise ValueError(f"{busy} {holder}; {advice}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
