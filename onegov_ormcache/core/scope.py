"""The request scope: the state of one request, or of one ``with`` block.

Its schema, its session, its snapshot of the tag store and its request tier are kept here
and nowhere else, and end with the scope. This module knows no web framework.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from ..database.signals import pending_in
from ..database.statements import Statement
from ..database.transactions import current_scope
from ..errors import SnapshotConflict, StoreUnreachable
from ..steps import Step, about_to
from ..tags.snapshot import UNREACHABLE, Snapshot
from ..tiers.process import Slot
from ..tiers.request import RequestTier, TierEntry
from .eviction import WritePath
from .properties import Property
from .protocols import ScopeCache, Transaction
from .runs import Run

#: The pending objects of a scope that has no session: modified, new and deleted ones.
NOTHING_PENDING: tuple[Collection[Any], ...] = ((), (), ())

#: Seconds within which most commits in progress end.
COMMIT_TIME = 0.002


class RequestScope:
    """The state of one request, or of one ``with`` block, for one tenant.

    Made by the middleware, by ``app.request_scope`` or by a cache's ``scope``, which also
    close it. Used by one thread at a time.

    :param cache: the cache whose values the scope reads.
    :param schema: the tenant.
    :param request_tier: a host's own mapping for the values of this scope; by default the
        scope makes one.
    :param process_tier: a host's own mapping for the tenant's values of this process; by
        default the tenant's part of the cache's process tier.
    """

    def __init__(
        self,
        cache: ScopeCache,
        schema: str,
        request_tier: MutableMapping[Any, Any] | None = None,
        process_tier: MutableMapping[str, Slot] | None = None,
    ) -> None:
        self.cache = cache
        self.session_manager = cache.session_manager
        self.schema = schema
        self.outer: Any = None
        tier = RequestTier()
        self.tier: MutableMapping[Any, TierEntry] = tier if request_tier is None else request_tier
        #: The request tier's last hits, see :class:`RequestTier`. Empty while a creator runs,
        #: because what it reads must be recorded.
        self.hits = tier.hits
        self.process_tier = (
            cache.process_tier.of(f'{schema}|') if process_tier is None else process_tier
        )
        self.transactions: set[Transaction] = set()
        self.runs: list[Run] = []
        self.flushed_tables: set[str] | None = None
        #: The number of the present snapshot; it grows by one when a snapshot ends.
        self.snapshot_number = 0
        #: The versions, by tag, of the cached values that this transaction has read.
        self.returned: dict[str, str] = {}
        #: The versions, by tag, of what creators have read from the database in this
        #: transaction.
        self.computed: dict[str, str] = {}
        #: The session; None until it is first asked for.
        self.opened_session: Session | None = None
        #: The session's own collections of objects that are not flushed: modified, new and
        #: deleted ones.
        self.pending: tuple[Collection[Any], ...] = NOTHING_PENDING
        self._snapshot: Snapshot | None = None
        self._has_looked_again = False
        # the tags whose values this transaction must read from the database; None: all tags
        self._blocked: set[str] | None = set()
        # by tag, the keys of the orm-cached values in the request tier that depend on it
        self._dependents: dict[str, set[Any]] = {}

    def __repr__(self) -> str:
        state = 'with' if self.opened_session is not None else 'without'
        return f'<RequestScope {self.schema} {state} session, {len(self.tier)} values>'

    @property
    def on_replica(self) -> bool:
        """True if a transaction in progress reads from a replica, which may lag behind."""
        return any(path.on_replica for path in self.transactions)

    # the session

    def session(self) -> Session:
        """Return the scope's session, bound to its schema; make it at the first call."""
        if self.opened_session is None:
            self.opened_session = self.session_manager.create_session(self)
            self.session_emptied()
        return self.opened_session

    def session_emptied(self) -> None:
        """Take the session's present collections of pending objects.

        Called when the session is made, and after ``expunge_all()``, which replaces them.
        """
        session = self.opened_session
        self.pending = NOTHING_PENDING if session is None else pending_in(session)

    def classes_in_session(self) -> set[type]:
        """Return the classes of the objects in the session's identity map."""
        if self.opened_session is None:
            return set()
        return {type(obj) for obj in self.opened_session.identity_map.values()}

    def flush(self) -> None:
        """Flush pending changes, so that the next read sees them.

        Does nothing while a flush is in progress, or if the scope has no session.
        """
        if self.opened_session is not None and self.flushed_tables is None and any(self.pending):
            self.opened_session.flush()

    def remember_hit(
        self, descriptor: Any, instance: Any, value: Any, variant: str, role: Any
    ) -> None:
        """Remember a value for the next read of the descriptor on this instance.

        Does nothing while a creator runs or the cache records, because each read must be
        seen then, and with a host's own request tier, which can drop values unnoticed.

        :param variant: the end of the value's key.
        :param role: the role of the instance's identity; None if the descriptor has no
            variants.
        """
        if type(self.tier) is RequestTier and not self.runs and self.cache.recorder is None:
            self.hits[descriptor] = (instance, value, variant, role)

    def commit(self) -> None:
        """Commit the session. Without a session, end the snapshot as a commit would."""
        if self.opened_session is not None:
            self.opened_session.commit()
        else:
            self.session_ended()

    def reset(self) -> None:
        """Roll back, and drop the session, the snapshot and all values.

        The next attempt of a request then starts from the beginning.
        """
        session, self.opened_session = self.opened_session, None
        self.pending = NOTHING_PENDING
        if session is not None:
            try:
                session.close()
            except DBAPIError:
                session.invalidate()
        self.transactions.clear()
        self.tier.clear()
        self._dependents.clear()
        self.runs.clear()
        self.flushed_tables = None
        self._end_snapshot()

    # the snapshot

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this transaction; take it when it is first needed."""
        if self._snapshot is None:
            about_to(Step.SNAPSHOT)
            self._snapshot = self.cache.snapshot(self.schema)
        return self._snapshot

    def store_lost(self) -> None:
        """Treat the tag store as unreachable until the snapshot ends.

        So a transaction waits at most once for a store that does not answer.
        """
        self._snapshot = UNREACHABLE

    def transaction(self) -> WritePath:
        """Return the write path of a database transaction that is about to take its view.

        Takes the snapshot first, because it must be older than the view.
        """
        self.snapshot()
        return WritePath(self)

    def take_second_snapshot(self) -> None:
        """Take a second snapshot, after a view that lasts; block the tags that differ.

        The view was taken between the two snapshots, and may or may not show a change that
        only the second has. So values of tags that differ, or that are in doubt in the
        second, are read from the database in this transaction. If the store is lost or the
        tenant has a new birth, these are all tags.

        :raises SnapshotConflict: if a cached value of such a tag was already returned.
        """
        first = self.snapshot()
        if not first.reachable:
            return
        about_to(Step.SECOND_SNAPSHOT)
        second = self.cache.snapshot(self.schema)
        unsettled = second.unsettled(first) if second.reachable else None
        broken = self.returned if unsettled is None else self.returned.keys() & unsettled
        if broken:
            raise SnapshotConflict(
                f'{self.schema}: {min(broken)} changed between a cached value that was read '
                'and the begin of the database transaction'
            )
        if unsettled is None:
            self._blocked = None
        elif self._blocked is not None:
            self._blocked |= unsettled

    def blocks(self, tags: Collection[str]) -> bool:
        """Return whether values with these tags must be read from the database now.

        They must if the tag store can't be reached, while a flush is in progress, and if one
        of the tags is in doubt, was changed by this scope itself, or differs in the second
        snapshot.
        """
        snapshot = self.snapshot()
        if not snapshot.reachable or self._blocked is None or self.flushed_tables is not None:
            return True
        if not (self._blocked or snapshot.in_doubt or self.transactions):
            return False
        return not (
            self._blocked.isdisjoint(tags)
            and snapshot.in_doubt.isdisjoint(tags)
            and all(path.tags.isdisjoint(tags) for path in self.transactions)
        )

    def look_again(self, tags: Collection[str]) -> None:
        """Wait a moment and end the snapshot, if one of these tags is in doubt in it.

        The next snapshot may find that the other writer's commit has ended. Does nothing if
        the transaction has read a cached value or has begun in the database, because then it
        must keep its snapshot. Waits only once in a scope.
        """
        snapshot = self.snapshot()
        if snapshot.in_doubt.isdisjoint(tags) or self.returned or self.transactions:
            return
        if self._has_looked_again or not snapshot.reachable:
            return
        self._has_looked_again = True
        time.sleep(COMMIT_TIME)
        self._end_snapshot()

    def triggers_saw_changes(self) -> bool:
        """Return whether triggers saw a change in this transaction.

        The transaction's statements need not show such a change, so its tags may be unknown.
        A value that may contain uncommitted changes must not be stored for others.
        """
        if not any(path.may_have_changes() for path in self.transactions):
            return False
        return self.session_manager.database.has_changes(self.session().connection())

    def functions_that_may_read(self, names: Collection[str]) -> Collection[str]:
        """Return the database functions of these names that may read tables.

        If the database can't be asked, return all names.
        """
        try:
            return self.session_manager.database.may_read(self.session().connection(), names)
        except SQLAlchemyError:
            return names  # the transaction has failed, by an error that the creator has caught

    def settle(self, tags: Collection[str]) -> None:
        """Settle other writers' doubts of these tags; end the tenant's quarantine if it may end.

        The database is asked through this scope's connection; a replica is not asked.
        """
        snapshot = self.snapshot()
        quarantined = snapshot.quarantine is not None
        if not snapshot.reachable or (snapshot.in_doubt.isdisjoint(tags) and not quarantined):
            return
        oracle = self.session_manager.oracle(self.session().connection())
        if self.on_replica:
            return  # a replica does not know the outcome of the primary's transactions
        try:
            self.cache.settler.settle(self.schema, snapshot, tags, oracle)
            self.cache.settler.end_quarantine(self.schema, snapshot, oracle)
        except StoreUnreachable:
            self.store_lost()  # a later reader that reaches the store settles them

    def end_quarantine(self, connection: Connection, beginning: Transaction) -> None:
        """End the tenant's quarantine, if it may end, before the transaction reads anything.

        The snapshot ends too, unless it is in use: a cached value was read with it, or another
        transaction of the scope is open.

        :param connection: the connection of the transaction, by which the database is asked.
        :param beginning: the transaction, which is about to begin.
        """
        oracle = self.session_manager.oracle(connection)
        try:
            self.cache.settler.end_quarantine(self.schema, self.snapshot(), oracle)
        except StoreUnreachable:
            self.store_lost()
            return
        if not self.returned and not self.transactions - {beginning}:
            self._end_snapshot()

    def transaction_begun(self, transaction: Transaction) -> None:
        """Add a database transaction of this scope, which has taken its view."""
        self.transactions.add(transaction)

    def transaction_ended(self, transaction: Transaction) -> None:
        """Remove a database transaction that was committed, rolled back or lost.

        The snapshot ends with the last transaction of the scope.
        """
        self.transactions.discard(transaction)
        if self.transactions:
            # the view or the session of a transaction that is still open is older than the
            # changes of the one that ended, so the snapshot stays, and values that depend on
            # these changes are read from the database
            if self._blocked is not None:
                self._blocked |= transaction.tags
            self.drop(transaction.tags)
        else:
            self._end_snapshot()

    def session_ended(self) -> None:
        """End the snapshot after the session was committed, rolled back or closed.

        If a database transaction is still open, the snapshot ends with that one.
        """
        if not self.transactions:
            self._end_snapshot()

    def _end_snapshot(self) -> None:
        """End the snapshot, and with it the orm-cached values of the request tier."""
        if self._snapshot is None:
            return
        self._snapshot = None
        self._blocked = set()
        self.returned = {}
        self.computed = {}
        self.snapshot_number += 1
        for key, entry in list(self.tier.items()):
            # a host's own mapping may hold other values, too
            if isinstance(entry, TierEntry) and entry.encoded is not None:
                del self.tier[key]
        if isinstance(self.tier, RequestTier):
            self.tier.hits.clear()
        self._dependents.clear()

    # the request tier

    def keep(self, key: Any, entry: TierEntry) -> None:
        """Keep a value in the request tier.

        An orm-cached value is dropped when one of its tags changes or the snapshot ends; a
        request-cached one (its ``encoded`` is None) stays until the scope ends.
        """
        self.tier[key] = entry
        if entry.encoded is not None:
            for tag in entry.tags:
                self._dependents.setdefault(tag, set()).add(key)

    def drop(self, tags: Collection[str]) -> None:
        """Drop the orm-cached values of the request tier that depend on these tags."""
        for tag in tags:
            for key in self._dependents.pop(tag, ()):
                self.tier.pop(key, None)

    # the runs of creators

    @contextmanager
    def run(self, prop: Property) -> Iterator[Run]:
        """Record the reads of the block as one run of the property's creator."""
        run = Run(prop, self.snapshot_number)
        self.runs.append(run)
        hits, self.hits = self.hits, {}
        try:
            yield run
        finally:
            self.hits = hits
            self.runs.remove(run)

    def record(self, statement: Statement) -> None:
        """Add what a statement reads to the run in progress, before it is executed.

        If another scope is the current one and runs a creator, that run is marked: it reads
        through a transaction of this scope, whose view may be older than its own.
        """
        current = current_scope.get()
        if current is not self and current is not None and current.runs:
            current.runs[-1].through_another = True
        if self.runs:
            self.runs[-1].record(statement, self.session_manager.has_table)

    def changed_without_objects(self, tables: Collection[str]) -> None:
        """Collect the tags of all function policies, if a flush changed tables without objects.

        No object stands for the change, so no function policy can be asked about it, and all
        of them count as concerned.

        :param tables: the tables that were changed without an object; may be empty.
        """
        if tables:
            self.changed(self.cache.registry.function_tags)

    def changed(self, tags: Collection[str]) -> None:
        """Collect changed tags for every transaction in progress, and drop the values that
        depend on them."""
        for path in self.transactions:
            path.changed(tags)

    # how it opens and closes

    @contextmanager
    def active(self) -> Iterator[RequestScope]:
        """Make this the current scope while the block runs."""
        before, current = self.outer, current_scope.get()
        scope = current
        while scope is not None and scope is not self:
            scope = scope.outer
        if scope is None:  # otherwise it encloses the current one already, and keeps its place
            self.outer = current
        token = current_scope.set(self)
        try:
            yield self
        finally:
            current_scope.reset(token)
            self.outer = before

    def close(self) -> None:
        """Roll back uncommitted changes, and close the session."""
        self.reset()


def innermost_scope(cache: object) -> RequestScope | None:
    """Return the innermost current scope of a cache; None if there is none."""
    scope: RequestScope | None = current_scope.get()
    while scope is not None and scope.cache is not cache:
        scope = scope.outer
    return scope
