"""Properties that are found once, and that a fork does not find locked."""

import functools
import subprocess
import sys

from physiofast import montage, store
from physiofast.support.lazy import lazy


class Counted:
    found = 0

    @lazy
    def value(self):
        """What it is."""
        self.found += 1
        return [self.found]


def test_it_is_found_once():
    one, other = Counted(), Counted()
    assert one.value is one.value
    assert one.value == other.value == [1]
    assert Counted.value.__doc__ == "What it is."
    one.value = [7]
    assert one.value == [7]


def test_stores_and_montages_have_none_that_locks():
    for kind in (store.Store, store.StoreRecord, montage.Montage):
        assert not any(isinstance(member, functools.cached_property) for member in vars(kind).values())


FORKS = """
import os, signal, threading
from physiofast.support.lazy import lazy

finding, forked = threading.Event(), threading.Event()

class Slow:
    @lazy
    def value(self):
        finding.set()
        forked.wait()
        return 3

thread = threading.Thread(target=lambda: Slow().value)
thread.start()
finding.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    forked.set()
    os._exit(int(Slow().value != 3))
status = os.waitpid(child, 0)[1]
forked.set()
thread.join()
print(status)
"""


def test_a_fork_while_a_thread_finds_one():
    """Of another object: `functools.cached_property` of Python 3.11 would lock the class, in the child for ever."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "0\n"
