"""Events: they say what the cache did, for tests, demos and debugging.

This module does not know who records them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeAlias

from ..forks import OwnLock
from ..tags.snapshot import VALUE_TAG

Tier: TypeAlias = Literal['request', 'process', 'shared', 'creator']


class CacheEvent(NamedTuple):
    """One read of a property or one commit; made only while somebody records."""

    kind: Literal['read', 'commit']
    schema: str
    #: The property that was read, with its class; '' for a commit.
    name: str = ''
    #: The tier that the value came from, ``'creator'`` if it was computed; None for a commit.
    tier: Tier | None = None
    #: The tags that the value depends on, or those that the commit has changed.
    tags: frozenset[str] = frozenset()

    @classmethod
    def read(cls, schema: str, name: str, tier: Tier, tags: Collection[str]) -> CacheEvent:
        """Return the event of a read."""
        # those by which the application evicts by hand say nothing about it
        known = (tag for tag in tags if not tag.startswith(VALUE_TAG))
        return cls('read', schema, name, tier, frozenset(known))

    @classmethod
    def commit(cls, schema: str, tags: Collection[str]) -> CacheEvent:
        """Return the event of a commit that changed these tags."""
        return cls('commit', schema, tags=frozenset(tags))


class Recordings:
    """The blocks of a cache that record at present, each with a list of its own.

    Made by the cache. Blocks may overlap, in one thread or in several, and end in any order.
    """

    def __init__(self) -> None:
        # replaced and never changed, so that `_record` needs no lock
        self._lists: tuple[list[CacheEvent], ...] = ()
        self._lock = OwnLock()
        #: The function to call with each event; None if nobody records.
        self.recorder: Callable[[CacheEvent], None] | None = None

    @contextmanager
    def recording(self) -> Iterator[list[CacheEvent]]:
        """Record while the block runs.

        :return: the events so far, oldest first.
        """
        events: list[CacheEvent] = []
        with self._lock.present:
            self._lists = (*self._lists, events)
            self.recorder = self._record
        try:
            yield events
        finally:
            with self._lock.present:
                # by identity, because two lists of the same events are equal
                self._lists = tuple(each for each in self._lists if each is not events)
                self.recorder = self._record if self._lists else None

    def _record(self, event: CacheEvent) -> None:
        for events in self._lists:
            events.append(event)
