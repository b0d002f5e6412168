"""Settles what writers leave behind: doubts, and the quarantine after a birth.

The next reader that meets a doubt settles it: it asks the database whether the writer's
transaction has ended. No other process is needed for that, and it is harmless to settle a
doubt twice, or while its writer, which has ended, is about to publish. This module decides when
to ask and what follows from the answer. It has no connection to the database: the
caller passes an :class:`Oracle`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from cachetools import TTLCache

from ..forks import OwnLock, register
from ..steps import Step, about_to
from .snapshot import Doubt, Snapshot, TagStore

#: The least number of seconds between two questions about the same doubt or quarantine.
PATIENCE = 0.05


class Oracle(Protocol):
    """Answers questions about a database's transactions; see ``database/postgres.py``."""

    def is_open(self, transaction_key: str) -> bool:
        """Return whether the outcome of a doubt's transaction is still open."""

    def writers_in_progress(self, schema: str, awaited: Collection[str] = ()) -> Collection[str]:
        """Return the ids of the writing transactions that have not ended, and may have put tags
        of this schema in doubt: all others, or those of the awaited ones."""


class Told(Protocol):
    """Is told which tags have got new versions."""

    @property
    def has_receivers(self) -> bool:
        """True if anybody wants to know."""

    def tell(self, places: Mapping[str, Collection[str]]) -> None:
        """Tell of changed tags, by place."""


class Settler:
    """Settles the doubts of one tag store, and ends its quarantines.

    Made by a cache, lives as long; used by all threads.

    :param lease: seconds after which a writer without a transaction's key counts as ended.
    :param clock: returns seconds.
    :param told: is told of the tags of doubts that are settled.
    """

    def __init__(
        self,
        store: TagStore,
        lease: float,
        clock: Callable[[], float] = time.monotonic,
        told: Told | None = None,
    ) -> None:
        self._told = told
        self._store = store
        self._lease = lease
        self._clock = clock
        self._lock = OwnLock()
        self._asked: TTLCache[str, None] = TTLCache(10_000, PATIENCE, timer=clock)
        self._births: TTLCache[str, float] = TTLCache(10_000, 10 * lease, timer=clock)
        # by birth, the lock of the caller that asks whether its quarantine may end
        self._asking: dict[str, Any] = {}
        register(self)

    def after_fork(self) -> None:
        """Wait for no caller of the parent."""
        self._asking.clear()

    def settle(
        self, schema: str, snapshot: Snapshot, tags: Collection[str], oracle: Oracle | None
    ) -> None:
        """Settle the snapshot's doubts of these tags, if their transactions have ended.

        :param schema: the tenant.
        :param oracle: None if the database has no transaction ids: doubts are then settled
            when they are older than the lease.
        """
        for place, part in snapshot.parts or ((schema, snapshot),):
            for writer, doubt in part.doubts.items():
                if not doubt.tags.isdisjoint(tags) and self._may_ask(f'{place} {writer}'):
                    self._settle(place, writer, doubt, oracle)

    def end_quarantine(self, schema: str, snapshot: Snapshot, oracle: Oracle | None) -> None:
        """End the tenant's quarantine, if all writers in progress at its birth have ended.

        If only some have, the store is told which are left. A caller that comes while another
        one asks waits for it: its next snapshot then has the end of the quarantine, too, and
        all callers agree on the versions.

        :param schema: the tenant.
        :param oracle: None if the database has no transaction ids: the quarantine then ends a
            lease after this settler first heard of it.
        """
        for place, part in snapshot.parts or ((schema, snapshot),):
            if part.quarantine is not None:
                self._ask_for_end(place, part, oracle)

    def _ask_for_end(self, schema: str, snapshot: Snapshot, oracle: Oracle | None) -> None:
        birth = snapshot.birth
        with self._lock.present:
            asking = self._asking.setdefault(birth, threading.Lock())
        with asking:
            try:
                if self._may_ask(birth):
                    self._end_quarantine(schema, snapshot, oracle)
                    with self._lock.present:
                        # those who have waited need not ask, however long the answer took
                        self._asked[birth] = None
            finally:
                with self._lock.present:
                    self._asking.pop(birth, None)

    def _settle(self, schema: str, writer: str, doubt: Doubt, oracle: Oracle | None) -> None:
        about_to(Step.SETTLE)
        if oracle is None or not doubt.transaction_key:
            self._store.settle(schema, writer, self._lease)
        elif not oracle.is_open(doubt.transaction_key):
            self._store.settle(schema, writer, None)
        else:
            return
        # within the lease, nothing was settled
        told = self._told
        if told is None or not told.has_receivers:
            return
        if writer not in self._store.snapshot(schema).of_place(schema).doubts:
            told.tell({schema: doubt.tags})

    def _end_quarantine(self, schema: str, snapshot: Snapshot, oracle: Oracle | None) -> None:
        if oracle is None:
            with self._lock.present:
                since = self._births.setdefault(snapshot.birth, self._clock())
            waiting: tuple[str, ...] = ('lease',) if self._clock() - since < self._lease else ()
        else:
            waiting = self._writers(schema, snapshot, oracle)
        if not waiting:
            about_to(Step.END_QUARANTINE)
        if not waiting or tuple(waiting) != snapshot.quarantine:
            self._store.quarantine(schema, snapshot.birth, waiting)

    def _writers(self, schema: str, snapshot: Snapshot, oracle: Oracle) -> tuple[str, ...]:
        """Return the ids of the transactions that a quarantine still waits for.

        If nobody has asked for them yet, these are all that are in progress now.
        """
        writers = oracle.writers_in_progress(schema, snapshot.quarantine or ())
        return tuple(each for each in snapshot.quarantine or writers if each in writers)

    def _may_ask(self, what: str) -> bool:
        """Return whether nobody has asked this within the last :data:`PATIENCE` seconds.

        If so, the caller must ask now.
        """
        with self._lock.present:
            if what in self._asked:
                return False
            self._asked[what] = None
            return True
