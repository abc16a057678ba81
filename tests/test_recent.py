import gc

from physiofast.support.recent import Recent


class Owner:
    def __init__(self, name):
        self.name = name


def test_another_thread_may_forget_meanwhile():
    a, b, inside = Owner("a"), Owner("b"), []

    def most():
        if not inside:
            inside.append(None)
            recent(b)  # what another thread does: nothing is left to forget
        return 0

    recent = Recent(lambda owner: owner.name, most)
    assert recent(a) == "a"


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
