"""One training at a time in a run folder, and one `prepare` in a store."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from physiofast.support.advice import command
from physiofast.support.atomic import remove_parts

LOCK_NAME = ".training.lock"
STORE_LOCK_NAME = ".prepare.lock"
_IDLE_S = 3600.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Within, no other call of this function for the same folder succeeds; the folder is made where it is not there.

    It is flock on a file in the folder. The kernel lets go of it when the process ends, also by kill -9, so the file
    that stays behind blocks nobody. What holds it is the open file: a process that was forked within holds it too,
    until it ends as well (a program that is executed does not). Over NFS, Linux asks the server, so two machines see
    each other, unless the mount says nolock or local_lock; where a file system has no locks at all, such as Lustre
    without its option flock, nothing is held and nobody is refused.

    Files that a killed process left half written are removed first: checkpoints at once, since only who holds the
    folder writes those, others when nothing has been written to them for an hour.

    Raises:
        ValueError: another process trains in this folder; the message says which.
        OSError: the folder cannot be made, or not be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK_NAME).open("a")
    except OSError as error:
        reason = "it is a file" if run.is_file() else error.strerror
        raise OSError(f"{run} cannot be a run folder: {reason}; choose another with --out") from error
    then = f"then go on with `{command('train', '--resume', run)}`"
    with _hold(file, f"{run} is being trained by", f"wait until it ends or stop it with Ctrl-C, {then}"):
        remove_parts(run / "checkpoints")
        remove_parts(run, _IDLE_S)
        yield


@contextmanager
def hold_store(store: Path) -> Iterator[None]:
    """The same of a folder that is there, for those who prepare recordings into it.

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
