"""What was found for the objects that were asked for last."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Recent(Generic[K, T]):
    """A function of objects that keeps its results for the `most()` asked for last, each while its object lives."""

    def __init__(self, find: Callable[[K], T], most: Callable[[], int]) -> None:
        self._find, self._most = find, most
        self._found: OrderedDict[weakref.ref[K], T] = OrderedDict()  # the object asked for last at the end

    def __call__(self, owner: K) -> T:
        """What was found for an object, or is found now."""
        key = weakref.ref(owner, self._forget)
        try:
            found = self._found[key] = self._found.pop(key)
            return found
        except KeyError:
            found = self._found[key] = self._find(owner)
        for _ in range(len(self._found) - self._most()):
            with suppress(KeyError):  # other threads forget as well
                self._found.popitem(last=False)
        return found

    def _forget(self, key: weakref.ref[K]) -> None:
        self._found.pop(key, None)
