"""Counts what a process does, and adds it to the numbers of all processes.

A scope counts into a dictionary of its own, without a lock, and hands it over when its snapshot
ends. A thread sends what has come together to the store, every few seconds, so that nobody who
reads a property waits for it. A process that dies loses what it has not sent.

This module does not know what is counted, nor where the store is.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import count
from threading import Event, Thread
from types import MappingProxyType
from weakref import finalize, ref

from ..errors import StoreUnreachable
from ..forks import OwnLock, check, register
from .fields import (
    COMMITS,
    Counts,
    Delta,
    add_counts,
    field_of,
    has_room,
    slot_properties,
    tenant_statistics,
    text_of_commit,
    text_of_run,
)
from .results import Commit, LastRun, Slot, TenantStatistics
from .stores import ALL_TENANTS, HOUR, MAX_TENANTS, MemoryStatistics, StatisticsStore

log = logging.getLogger(__name__)

#: Of so many snapshots, one counts what the request tier answers. A hit there costs less than to
#: count it, so the others do not, and each hit of that one stands for so many.
SAMPLING = 64

#: The name of the thread that sends them.
THREAD = 'onegov_ormcache: statistics'

_COMMITS = field_of('tenant', 'commits')
_CHANGED = field_of('tenant', 'changed_tags')
_DOUBTED = field_of('tenant', 'doubted_tags')


class Statistics:
    """What a cache has done, in numbers. Made by the cache, ended with it; used by all threads.

    The numbers are sums over all processes that use the same Redis and namespace. They lag behind
    by the setting ``statistics_interval``. Numbers of a tenant that nobody uses are gone after a
    week.

    :param store: keeps the sums.
    :param interval: seconds between two times that this process sends its numbers; None: only
        :meth:`flush` does.
    :param shared: the schemas of tables that tenants share.
    """

    def __init__(
        self, store: StatisticsStore, interval: float | None, shared: Collection[str] = ()
    ) -> None:
        self._store = store
        self._interval = interval
        self._shared = shared
        self._lock, self._sending = OwnLock(), OwnLock()
        self._pending: dict[str, Delta] = {}
        # nothing is sent to a store in memory until somebody reads, which may be hours later
        self._memory = store if isinstance(store, MemoryStatistics) else None
        self._hour = _present_hour()
        # what is sent now, or could not be sent
        self._unsent: dict[str, Delta] = {}
        # what this process has counted since its begin, over all tenants
        self._own: Counts = {}
        self._snapshots = count(1)
        #: See :data:`SAMPLING`; 1: each scope counts the hits of its request tier.
        self.sampling = SAMPLING
        self._has_thread = self._is_closed = False
        self._wake = Event()
        register(self)
        if interval is not None:
            atexit.register(_flush_at_exit, ref(self))

    def __repr__(self) -> str:
        return f'<Statistics, {len(self._pending)} tenants to be sent>'

    # counting

    def weight(self) -> int:
        """Return how many hits each hit of a request tier stands for, while a snapshot lasts.

        :return: 0 if they are not counted.
        """
        return 0 if next(self._snapshots) % self.sampling else self.sampling

    def take(self, tenant: str, counts: Counts) -> None:
        """Take over what a scope has counted, and empty it."""
        check()
        self._end_hour()
        with self._lock.present:
            add_counts(self._delta(tenant).counts, counts)
        counts.clear()

    def ran(self, tenant: str, where: str, run: LastRun) -> None:
        """Take notice of a run of a property's creator.

        :param where: the property's name, with its class.
        """
        text = text_of_run(run)
        with self._lock.present:
            self._tell(tenant, field_of('property', 'last_run', where), text)

    def committed(
        self,
        tenant: str,
        changed: Collection[str],
        doubted: Collection[str],
        shared: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        """Take notice of a commit that has changed tags.

        :param doubted: those that were put in doubt before, of this tenant.
        :param shared: of the changed tags, those of tables that tenants share, by schema.
        """
        counts, at = {_COMMITS: 1, _CHANGED: len(changed), _DOUBTED: len(doubted)}, time.time()
        self._changed(tenant, Commit(at, tuple(changed)), counts)
        for schema, tags in shared.items():
            self._changed(schema, Commit(at, tuple(tags)), {})

    def told(self, tenant: str, changed: Collection[str]) -> None:
        """Take notice of tags that were changed, but not by a commit of this process."""
        self._changed(tenant, Commit(time.time(), tuple(changed), is_outside=True), {})

    def _changed(self, tenant: str, commit: Commit, counts: Mapping[str, float]) -> None:
        text = text_of_commit(commit)
        with self._lock.present:
            delta = self._delta(tenant)
            add_counts(delta.counts, counts)
            add_counts(
                delta.counts, {field_of('tag', 'changes', tag): 1 for tag in commit.tags}
            )
            for tag in commit.tags:
                self._tell(tenant, field_of('tag', 'last_change', tag), f'{commit.at:.3f}')
            delta.commits.append(text)
            del delta.commits[:-COMMITS]

    def _tell(self, tenant: str, field: str, text: str) -> None:
        texts = self._delta(tenant).texts
        if has_room(texts, field):
            texts[field] = text

    def _delta(self, tenant: str) -> Delta:
        """Return what is to be sent of a tenant. The caller has the lock."""
        if not self._has_thread:
            self._start()
        delta = self._pending.get(tenant)
        if delta is None:
            if len(self._pending) >= MAX_TENANTS:  # nobody takes it
                self._pending.pop(next(iter(self._pending)))
            delta = self._pending[tenant] = Delta.empty()
        return delta

    # sending

    def flush(self) -> None:
        """Send what this process has counted.

        :raises StoreUnreachable: if the store can't be reached. What was not sent is sent later.
        """
        check()
        self._end_hour()
        with self._sending.present:
            self._gather()
            self._store.add(self._unsent)

    def _end_hour(self) -> None:
        """Add to a store in memory what was counted in an hour that is over."""
        if self._memory is None or self._hour == _present_hour():
            return
        with self._sending.present:
            ended, self._hour = self._hour, _present_hour()
            self._gather()
            self._memory.add(self._unsent, ended)

    def _gather(self) -> None:
        """Get what was counted ready to be sent. The caller sends, or keeps others from it."""
        with self._lock.present:
            deltas, self._pending = self._pending, {}
        for tenant, delta in deltas.items():
            self._unsent_of(tenant).add(delta)
            for sums in self._unsent_of(ALL_TENANTS).counts, self._own:
                add_counts(sums, delta.counts)

    def _unsent_of(self, tenant: str) -> Delta:
        """Return what is sent of a tenant now. The caller sends."""
        if tenant not in self._unsent and len(self._unsent) > MAX_TENANTS:  # nobody takes it
            self._unsent.pop(next(name for name in self._unsent if name != ALL_TENANTS))
        return self._unsent.setdefault(tenant, Delta.empty())

    def send(self) -> None:
        """Send what this process has counted, if that is possible now; log what goes wrong."""
        try:
            self.flush()
        except StoreUnreachable:
            pass  # the breaker has logged it
        except Exception:
            log.exception('The numbers of this process could not be sent')

    def close(self) -> None:
        """End the thread, and send the rest."""
        self._is_closed = True
        self._wake.set()
        if self._pending or self._unsent:
            self.send()

    # reading

    def tenants(self) -> list[str]:
        """Return the tenants of which anything was counted, in order.

        :raises StoreUnreachable: if the store can't be reached.
        """
        self.flush()
        return [name for name in self._store.tenants() if name not in self._shared]

    def of(self, tenant: str) -> TenantStatistics:
        """Return the numbers of a tenant; those of one that is unknown are empty.

        Among its tags and last commits are those of tables that it shares with other tenants,
        whoever has changed them.

        :raises StoreUnreachable: if the store can't be reached.
        """
        self.flush()
        fields, commits = self._store.fields(tenant)
        found = tenant_statistics(tenant, fields, commits)
        for schema in self._shared if tenant != ALL_TENANTS else ():
            found = found.beside(tenant_statistics(schema, *self._store.fields(schema)))
        return found

    def total(self) -> TenantStatistics:
        """Return the sums over all tenants, without runs and commits. They go on counting when the
        numbers of a tenant expire.

        :raises StoreUnreachable: if the store can't be reached.
        """
        return self.of(ALL_TENANTS)

    def own(self) -> TenantStatistics:
        """Return the sums over all tenants of what this process has counted since its begin,
        without runs and commits. Needs no store."""
        check()
        with self._sending.present:
            self._gather()
            return tenant_statistics(ALL_TENANTS, self._own, ())

    def history(self, tenant: str) -> list[Slot]:
        """Return the numbers of a tenant by the hour: the last 24 hours that have any, the oldest
        first.

        :raises StoreUnreachable: if the store can't be reached.
        """
        self.flush()
        return [
            Slot(start, slot_properties(fields)) for start, fields in self._store.slots(tenant)
        ]

    # the thread

    def after_fork(self) -> None:
        """Count anew in a child: what the parent has counted, the parent sends."""
        self._pending, self._unsent, self._own = {}, {}, {}
        self._has_thread = False
        self._wake = Event()

    def _start(self) -> None:
        """Start the thread of this process. The caller has the lock."""
        self._has_thread = True
        if self._interval is None or self._is_closed:
            return
        finalize(self, self._wake.set).atexit = False
        arguments = ref(self), self._wake, self._interval
        with suppress(RuntimeError):  # no more threads
            Thread(target=_send, args=arguments, name=THREAD, daemon=True).start()


def _present_hour() -> int:
    return int(time.time() // HOUR)


def _send(
    statistics: Callable[[], Statistics | None], wake: Event, interval: float
) -> None:
    """Send numbers again and again, until they are closed or nobody has them any more."""
    while not wake.wait(interval):
        found = statistics()
        if found is None:
            return
        found.send()
        del found


def _flush_at_exit(statistics: Callable[[], Statistics | None]) -> None:
    found = statistics()
    if found is not None and not found._is_closed:
        found.close()
