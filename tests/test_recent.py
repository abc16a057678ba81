import gc
import sys
from concurrent.futures import ThreadPoolExecutor

from physiofast.recent import Recent


class Owner:
    def __init__(self, name):
        self.name = name


def test_threads_may_ask_at_once():
    owners = [Owner(str(i)) for i in range(6)]
    recent = Recent(lambda owner: owner.name, lambda: 1)

    def ask(owner):
        return all(recent(owner) == owner.name for _ in range(20_000))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(ask, owners))
    finally:
        sys.setswitchinterval(before)


def test_the_last_asked_for_are_kept_and_no_owner_is():
    found, limit = [], 2
    recent = Recent(lambda owner: found.append(owner.name) or owner.name, lambda: limit)
    a, b, c = Owner("a"), Owner("b"), Owner("c")
    assert [recent(owner) for owner in (a, b, a, c, a)] == ["a", "b", "a", "c", "a"]
    assert found == ["a", "b", "c"]
    assert recent(b) == "b"  # was asked for before a and c
    assert found == ["a", "b", "c", "b"]
    del a, b
    gc.collect()
    assert len(recent._found) == 0
    limit = 1
    assert [recent(c), recent(c)] == ["c", "c"]
    assert found == ["a", "b", "c", "b", "c"]
