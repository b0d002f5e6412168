"""The switch by which a test turns a cache off.

While it is off, all values are read from the database, as in an outage of the tag store, and none
is stored. Commits evict as ever, so what was stored before is right when the cache is on again.
This module does not know how values are read and stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ..forks import OwnLock


class SwitchedScope(Protocol):
    """The part of a request scope that this module uses."""

    def cache_disabled(self) -> None:
        """Read all values from the database until the snapshot ends."""


class Switch:
    """The switch of one cache; made by the cache. Blocks that turn it off may overlap.

    :param scopes: returns the open scopes of this thread.
    """

    def __init__(self, scopes: Callable[[], Iterable[SwitchedScope]]) -> None:
        self._scopes = scopes
        self._lock = OwnLock()
        self._blocks = 0
        #: True while the cache is off.
        self.is_off = False

    @contextmanager
    def off(self) -> Iterator[None]:
        """Turn the cache off while the block runs."""
        self._count(1)
        try:
            for scope in self._scopes():
                scope.cache_disabled()
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock.present:
            self._blocks += change
            self.is_off = self._blocks > 0
