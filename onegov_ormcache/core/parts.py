"""The parts of a cache: its properties, its tag store and its tiers, and the way to the servers.

This module does not know scopes, nor who makes the sessions.
"""

from __future__ import annotations

import logging
import os
import time
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import NoReturn

from blinker import Signal
from sqlalchemy.exc import SQLAlchemyError

from ..database.hosts import HostObserver
from ..database.observer import Observer
from ..errors import (
    DatabaseUnreachable,
    RetryableConflict,
    SecondProcessError,
    StoreUnreachable,
)
from ..forks import OwnLock, check
from ..redis_client.client import connect
from ..statistics.collector import Statistics
from ..statistics.redis import RedisStatistics
from ..statistics.stores import MemoryStatistics, StatisticsStore
from ..tags.memory import MemoryTagStore
from ..tags.redis import RedisTagStore
from ..tags.settling import Settler
from ..tags.snapshot import UNREACHABLE, Snapshot, Stamp, TagStore
from ..tiers.claims import Claim
from ..tiers.process import ProcessTier
from ..tiers.serializer import Serializer
from ..tiers.shared import Fill, MemoryTier, RedisTier, SharedTier
from .policies import table_tags
from .published_tags import PublishedTags
from .recording import LIMIT, CacheEvent, RecordedEvents, Recordings
from .recovery import Recovery
from .registry import Registry
from .settings import OrmCacheSettings
from .story import Stories
from .versions import Versions

log = logging.getLogger(__name__)


class CacheParts:
    """What a cache consists of; the base class of :class:`.OrmCache`."""

    settings: OrmCacheSettings
    #: Tells of the transactions and knows the tables.
    observer: Observer
    #: Tells what the cache does, to whoever listens.
    recordings: Recordings

    def _make_parts(self) -> None:
        database = self.observer.database
        outboxes = database.outboxes()
        settings = self.settings = self.settings.on(database.address, has_outbox=bool(outboxes))
        self.serializer = Serializer(
            settings.types,
            ChainMap(*(metadata.tables for metadata in self.observer.metadatas)),
        )
        self.process_tier = ProcessTier(settings.process_cache_size)
        #: Its properties.
        self.registry = Registry(self.observer, settings.release)
        tags: TagStore
        tags, self.shared_tier = _stores(settings, self.serializer)
        #: The tag store, with the rules for times when it can't be reached.
        self.versions = Versions(
            tags,
            self.registry.shared_tables,
            lambda: self.registry.known_tags,
            lambda: table_tags(self.observer.tables) | self.registry.own_tags,
        )
        #: Tells which tags have got new versions.
        self.published = self.versions.published = PublishedTags(self.registry, self.keys_of)
        #: What must be done after an outage; None if nothing can be lost.
        self.recovery: Recovery | None = None
        if not tags.single_process:
            # also if this process leaves nothing there: one with other settings may
            self.recovery = self.versions.recovery = Recovery(
                self.versions, outboxes, settings.namespace
            )
        self.settler = Settler(self.tags, settings.lease, told=self.published)
        #: What it has done, in numbers, summed over all processes.
        self.statistics = Statistics(
            _statistics_store(tags, settings.namespace),
            None if tags.single_process else settings.statistics_interval,
            self.versions.places('')[1:],
        )
        self.versions.told = self.statistics.told
        #: Makes the stories of scopes, for a log and for traces.
        self.stories = Stories()
        self._pid = os.getpid()
        self._is_reached = False
        # when the database could not be reached, and why
        self._failed = 0.0, ''
        self._reaching = OwnLock()

    # the servers, and the process

    @property
    def is_reached(self) -> bool:
        """True once the servers were reached."""
        return self._is_reached

    def start(self) -> None:
        """Connect to the servers when the cache is made. If they can't be reached, that is tried
        again before the first scope, unless the setting ``require_servers`` is on.

        :raises ConfigurationError: if Redis can be reached, and the setting is wrong.
        :raises DatabaseUnreachable: if the database can't be reached, and must be; or if it does
            not let us in.
        :raises StoreUnreachable: if Redis can't be reached, and must be.
        :raises SecondProcessError: see :meth:`reach_servers`.
        """
        must = self.settings.require_servers
        self.tags.inspect()
        if must:
            self.tags.check()
        try:
            self.reach_servers()
        except DatabaseUnreachable as error:
            if must or not error.is_temporary:
                raise
            log.warning('The database can not be reached yet: %s', error)

    def reach_servers(self) -> None:
        """Connect to the servers, if that was not done yet.

        With the setting ``lazy``, and if the database could not be reached at the start, this is
        called before each scope. A Redis that can't be reached is an outage, see ``on_outage``.

        :raises DatabaseUnreachable: if the database can't be reached.
        :raises SecondProcessError: if another process uses the database without Redis.
        """
        if not self._is_reached:
            came = time.monotonic()
            with self._reaching.present:
                self._raise_again(came)
                if not self._is_reached:
                    try:
                        self._reach_servers()
                    except DatabaseUnreachable as error:
                        self._failed = time.monotonic(), str(error)
                        raise
                    self._is_reached = True

    def _raise_again(self, came: float) -> None:
        """Raise the error of another caller's attempt, for which this one has waited."""
        at, problem = self._failed
        if at >= came:
            error = DatabaseUnreachable(problem)
            error.is_temporary = True
            raise error

    def _reach_servers(self) -> None:
        database = self.observer.database
        database.check()
        with suppress(StoreUnreachable):  # the breaker has logged it
            self.tags.check()
            if self.recovery is not None:
                self.recovery.look()
        if self.tags.single_process and not database.claim():
            self._refuse_second()
        if isinstance(self.observer, HostObserver):
            self.observer.unattended.report_to(self._renew_unattended)

    def _refuse_second(self) -> NoReturn:
        raise SecondProcessError(
            f'Another process or application uses {self.observer.database.address!r} without '
            'Redis, and versions would live in its memory alone: set redis_url in the '
            'settings section orm_cache, or end the other one'
        )

    def _keep_claim(self) -> bool:
        """Claim the database again, if it has given the claim up; return False if it can't be
        asked.

        Another process may have had the claim meanwhile, so all tenants get a new birth.

        :raises SecondProcessError: if another process has it.
        """
        observer = self.observer
        if not observer.database.has_lost_claim():
            return True
        with self._reaching.present:
            try:
                if observer.database.has_lost_claim():
                    schemas = {*observer.list_schemas(), *observer.shared_schemas}
                    if not observer.database.claim_again():
                        self._refuse_second()
                    self.renew_later(*filter(observer.is_place, schemas))
            except SQLAlchemyError:
                log.warning('%s: the claim was lost', observer.database.address, exc_info=True)
                return False
        return True

    def _renew_unattended(self, schemas: Collection[str | None]) -> bool:
        """Give a new birth to schemas that a host has changed before the cache was set up, or in
        a transaction that it has begun before.

        :param schemas: None among them stands for all.
        :return: True if it was done at once.
        """
        observer = self.observer
        named = {schema for schema in schemas if schema is not None}
        if None in schemas:
            named.update(observer.list_schemas(), observer.shared_schemas)
        places = set(filter(observer.is_place, named))
        try:
            for place, identity in observer.database.identities(places).items():
                self.tags.identify(place, identity, self.tags.unidentified(place).identities)
        except Exception:
            # a live cache renews them as soon as they can be reached
            log.warning('The tag store or the database is lost', exc_info=True)
        return self.renew_later(*places)

    def refuse_fork(self) -> None:
        """Raise an error in a fork of the process that keeps versions in its memory.

        :raises SecondProcessError: there.
        """
        check()
        if self.tags.single_process and os.getpid() != self._pid:
            raise SecondProcessError(
                'This process was forked from one that keeps versions in its memory, and '
                'would not see its changes: set redis_url in the settings section orm_cache, '
                'or set the application up after the fork'
            )

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether an error, or one that it was raised from, is a conflict that a new
        attempt of the transaction may resolve.

        These are a :class:`.RetryableConflict`, and the database's serialization failures and
        deadlocks; on SQLite, that the database is locked.
        """
        database = self.observer.database
        return any(
            isinstance(cause, RetryableConflict) or database.is_conflict(cause)
            for cause in _causes(error)
        )

    # the tag store and the shared tier

    @property
    def tags(self) -> TagStore:
        """The tag store."""
        return self.versions.tags

    def snapshot(self, schema: str) -> Snapshot:
        """Return the tenant's present snapshot; one that is not ``reachable`` if the tag store
        can't be reached.

        :raises SecondProcessError: if another process now uses the database without Redis.
        """
        if self.tags.single_process and not self._keep_claim():
            return UNREACHABLE
        return self.versions.snapshot(schema)

    def places(self, schema: str) -> tuple[str, ...]:
        """Return the places of a tenant's tags: the schemas that their versions belong to."""
        return self.versions.places(schema)

    def by_place(self, schema: str, tags: Collection[str]) -> dict[str, list[str]]:
        """Return a tenant's tags by their places."""
        return self.versions.by_place(schema, tags)

    def renew_later(self, *schemas: str) -> bool:
        """Give these schemas a new birth, as soon as the tag store can be reached.

        :return: True if it was done at once.
        """
        return self.versions.renew_later(*schemas)

    def identify(
        self, schema: str, identities: Mapping[str, str], snapshot: Snapshot, *, replica: bool
    ) -> bool:
        """Work with the versions of these identities, see :meth:`.Versions.identify`."""
        return self.versions.identify(schema, identities, snapshot, replica=replica)

    def claim(self, schema: str, key: str, tags: Collection[str], snapshot: Snapshot) -> Claim:
        """Return a claim to compute a value with these tags; see :meth:`.SharedTier.claim`."""
        elsewhere = snapshot.stamp(self.versions.tags_elsewhere)
        return self.shared_tier.claim(schema, key, snapshot.stamp(tags), elsewhere)

    def fill_many(self, schema: str, fills: Sequence[Fill], holding: Stamp) -> list[bool]:
        """Store several values in the shared tier, each if its stamp holds.

        :param fills: the values with their claims; the part of a stamp that is compared is
            found here.
        :param holding: other versions that must hold for each, too.
        :return: for each whether it was stored.
        :raises StoreUnreachable: if the tag store or the shared tier can't be reached.
        """
        stamps = [{**fill.stored.stamp, **holding} for fill in fills]
        own_parts = self.versions.own_parts(schema, stamps)
        held = {number: own for number, own in enumerate(own_parts) if own is not None}
        chosen = [fills[number]._replace(stamp=own) for number, own in held.items()]
        stored = dict(zip(held, self.shared_tier.fill_many(schema, chosen), strict=True))
        return [stored.get(number, False) for number in range(len(fills))]

    # events

    @property
    def on_tags_published(self) -> Signal:
        """The signal that tags of a tenant have changed: ``handler(schema, tags, properties,
        keys)``, called after the commit.

        ``schema`` is the tenant, or the schema of tables that tenants share, whose tags have
        changed: one call for each. ``tags`` are the changed tags; ``'#code'`` stands for all.
        ``properties`` are the names of the orm-cached properties that have them, and ``keys`` the
        keys by which a CDN knows them (:doc:`cdn`); all are frozensets.

        The handler is called in the thread that has committed, before its commit returns. It must
        not use that transaction's session. What it raises is logged.
        """
        return self.published.signal

    def keys_of(self, place: str, tags: Collection[str]) -> frozenset[str]:
        """Return the keys by which others know values with these tags; here, none.

        :param place: the schema that the tags belong to.
        """
        return frozenset()

    @property
    def recorder(self) -> Callable[[CacheEvent], None] | None:
        """The function to call with each event; None if nobody records."""
        return self.recordings.recorder

    def recording(self, limit: int = LIMIT) -> AbstractContextManager[RecordedEvents]:
        """Record what the cache does in all threads while a ``with`` block runs.

        Blocks may overlap. Each has a list of its own. Not seen is what a scope of another thread
        reads again in a transaction in which it has read the same before the block.

        :param limit: the most events that are kept. The oldest are dropped, and counted in the
            list's attribute ``dropped``.
        :return: a context manager; ``as`` gives the list of the events so far, oldest first.
        :raises ConfigurationError: if the limit is no whole number above 0.
        """
        return self.recordings.recording(limit)


def _stores(
    settings: OrmCacheSettings, serializer: Serializer
) -> tuple[TagStore, SharedTier]:
    """Return the tag store and the shared tier: both in memory, or both on Redis."""
    limits = settings.lifetime, settings.lock_timeout, settings.max_value_size
    kept = settings.shared_lifetime
    if settings.redis_url is None:
        memory = MemoryTagStore()
        return memory, MemoryTier(memory, serializer, settings.process_cache_size, *limits, kept)
    client = connect(settings.redis_url, settings.redis_timeout)
    redis = RedisTagStore(client, settings.namespace, quarantined=True)
    return redis, RedisTier(redis, serializer, settings.namespace, *limits, kept)


def _statistics_store(tags: TagStore, namespace: str) -> StatisticsStore:
    """Return where the numbers are kept: where the versions are."""
    if isinstance(tags, RedisTagStore):
        return RedisStatistics(tags.client, namespace)
    return MemoryStatistics()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, then the errors that it was raised from or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
