"""A cache of results for the most recently used objects."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Recent(Generic[K, T]):
    """Caches a function's results for the `most()` most recently used objects, each while its object is alive."""

    def __init__(self, find: Callable[[K], T], most: Callable[[], int]) -> None:
        self._find, self._most = find, most
        self._found: OrderedDict[weakref.ref[K], T] = OrderedDict()  # most recently used object last

    def __call__(self, owner: K) -> T:
        """The cached result for an object, or else a new one."""
        key = weakref.ref(owner, self._forget)
        try:
            result = self._found[key] = self._found.pop(key)
            return result
        except KeyError:
            result = self._found[key] = self._find(owner)
        for _ in range(len(self._found) - self._most()):
            with suppress(KeyError):  # another thread may have removed it
                self._found.popitem(last=False)
        return result

    def _forget(self, key: weakref.ref[K]) -> None:
        self._found.pop(key, None)
