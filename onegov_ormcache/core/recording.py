"""Events: they say what the cache did, for tests, demos and debugging.

This module does not know who records them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol, TypeAlias

from ..errors import ConfigurationError
from ..forks import OwnLock
from ..tags.snapshot import VALUE_TAG

Tier: TypeAlias = Literal['request', 'process', 'shared', 'creator']

Kind: TypeAlias = Literal['read', 'run', 'commit']

#: The most events that a recording keeps, unless another number is given.
LIMIT = 10_000


class CacheEvent(NamedTuple):
    """One read of a property, one run of a creator, or one commit; made only while somebody
    records."""

    kind: Kind
    schema: str
    #: The property that was read or computed, with its class; '' for a commit.
    name: str = ''
    #: The tier that a value which was read came from, ``'creator'`` if it was computed; else None.
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
    def run(cls, schema: str, name: str) -> CacheEvent:
        """Return the event of a creator's run that begins."""
        return cls('run', schema, name)

    @classmethod
    def commit(cls, schema: str, tags: Collection[str]) -> CacheEvent:
        """Return the event of a commit that changed these tags."""
        return cls('commit', schema, tags=frozenset(tags))


class RecordedEvents(list[CacheEvent]):
    """The latest events of one recording, the oldest first.

    :param limit: the most events that are kept.
    :raises ConfigurationError: if the limit is no whole number above 0.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ConfigurationError(
                f'recording: limit={limit!r}; expected a number of events, 1 or more'
            )
        super().__init__()
        self.limit = limit
        #: The number of older events that were dropped, because there were more than the limit.
        self.dropped = 0
        self._lock = OwnLock()

    def add(self, event: CacheEvent) -> None:
        """Add an event; drop the oldest one if there are too many."""
        with self._lock.present:
            if len(self) >= self.limit:
                del self[0]
                self.dropped += 1
            self.append(event)


class Listener(NamedTuple):
    """A function that is called with the events of some kinds."""

    receive: Callable[[CacheEvent], None]
    kinds: Collection[Kind]


class RecordedScope(Protocol):
    """The part of a request scope that this module uses."""

    def forget_hits(self) -> None:
        """Let the next read of each value be seen."""


class Recordings:
    """The listeners of a cache at present.

    Made by the cache. Blocks that listen may overlap, in one thread or in several, and end in any
    order.

    :param scopes: returns the open scopes of this thread.
    """

    def __init__(self, scopes: Callable[[], Iterable[RecordedScope]]) -> None:
        self._scopes = scopes
        # replaced and never changed, so that `_record` needs no lock
        self._listeners: tuple[Listener, ...] = ()
        self._lock = OwnLock()
        #: The function to call with each event; None if nobody listens.
        self.recorder: Callable[[CacheEvent], None] | None = None

    @contextmanager
    def recording(self, limit: int = LIMIT) -> Iterator[RecordedEvents]:
        """Record reads and commits while the block runs.

        :param limit: the most events that are kept; the oldest are dropped.
        :return: the events so far, oldest first.
        """
        events = RecordedEvents(limit)
        with self.listening(events.add, 'read', 'commit'):
            yield events

    @contextmanager
    def listening(
        self, receive: Callable[[CacheEvent], None], *kinds: Kind
    ) -> Iterator[None]:
        """Call a function with each event of these kinds while the block runs.

        :param receive: is called in the thread in which it happens.
        """
        listener = Listener(receive, kinds)
        with self._lock.present:
            self._listeners = (*self._listeners, listener)
            self.recorder = self._record
        try:
            for scope in self._scopes():
                scope.forget_hits()
            yield
        finally:
            with self._lock.present:
                # by identity, because two blocks may have equal listeners
                self._listeners = tuple(each for each in self._listeners if each is not listener)
                self.recorder = self._record if self._listeners else None

    def _record(self, event: CacheEvent) -> None:
        for receive, kinds in self._listeners:
            if event.kind in kinds:
                receive(event)
