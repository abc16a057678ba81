import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from physiofast.support.locks import LOCK_NAME, hold_run, hold_store

HOLD = """
import os, sys, time
from pathlib import Path
from physiofast.support.locks import hold_run
with hold_run(Path(sys.argv[1])):
    forked = os.fork() if "fork" in sys.argv else 1
    if forked:
        print(forked, flush=True)
    time.sleep(100)
"""


def holder(run, *words):
    """A process that holds a folder, and the number that it prints."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run), *words], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def assert_refused(run):
    with pytest.raises(ValueError, match="is being trained by process"), hold_run(run):
        pass


def test_a_second_process_is_refused_and_kill_leaves_no_lock_behind(tmp_path):
    run = tmp_path / "new" / "run"
    process, _ = holder(run)
    try:
        with pytest.raises(ValueError, match=rf"process {process.pid} on .*go on with .* --resume"), hold_run(run):
            pass
    finally:
        kill(process)
    with hold_run(run):
        assert (run / LOCK_NAME).read_text().startswith(f"process {os.getpid()} on ")
        assert_refused(run)
    with hold_run(run), hold_run(tmp_path):
        pass


def test_a_forked_process_holds_it_on(tmp_path):
    process, forked = holder(tmp_path, "fork")
    kill(process)
    try:
        assert_refused(tmp_path)
    finally:
        os.kill(forked, signal.SIGKILL)
    for _ in range(100):  # it is no child of ours, so there is nothing to wait for but the lock itself
        try:
            with hold_run(tmp_path):
                return
        except ValueError:
            subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail("the lock outlives its holders")


def test_a_file_system_without_locks_refuses_nobody(tmp_path, monkeypatch):
    def fail(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    fail(errno.ENOSYS)
    with hold_run(tmp_path), hold_run(tmp_path):
        pass
    fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), hold_run(tmp_path):
        pass


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    part = ".{}.0123456789abcdef.part"
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    kept = [checkpoints / "step-00000003.safetensors", tmp_path / part.format("probe.json"), tmp_path / "mine.part"]
    gone = [checkpoints / part.format("step-00000006.safetensors"), tmp_path / part.format("reconstruction.npz")]
    for file in kept + gone:
        file.write_text("half")
    long_ago = time.time() - 2 * 3600
    os.utime(gone[1], (long_ago, long_ago))
    with hold_run(tmp_path):
        assert [file.exists() for file in kept] == [True] * 3  # a probe may be writing its result
        assert [file.exists() for file in gone] == [False] * 2
        gone[0].write_text("being written")
        assert_refused(tmp_path)
        assert gone[0].exists()


def test_a_path_with_braces_is_named(tmp_path):
    run = tmp_path / "a{b}"
    with hold_run(run), pytest.raises(ValueError, match=r"a\{b\} is being trained by process"), hold_run(run):
        pass
    with hold_store(run), pytest.raises(ValueError, match=r"a\{b\} is being prepared by process"), hold_store(run):
        pass


def test_a_run_that_may_not_be_written_to_is_copied_rather_than_put_elsewhere_with_out(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(type(tmp_path), "open", refuse)  # root may write anywhere
    with pytest.raises(OSError, match="cannot be written to: Permission denied; allow .* copy that folder") as caught:
        hold_run(tmp_path).__enter__()
    assert "--out" not in str(caught.value) and "physiofast train --resume COPY" in str(caught.value)
