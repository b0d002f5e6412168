"""The request scope: what one request (or one ``with`` block) has for its own.

Its schema, its session, its snapshot of the tag store and its request tier live
here and nowhere else; nothing of them survives the scope.
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

#: The pending objects of a scope that has no session.
NOTHING_PENDING: tuple[Collection[Any], ...] = ((), (), ())

#: Seconds after which most commits that were under way are over.
MOMENTS_OF_A_COMMIT = 0.002

class RequestScope:
    """Opened by the middleware, ``app.request_scope`` or a cache's ``scope``; used by one
    thread at a time, until it is closed.

    :param cache: whose values the scope reads.
    :param schema: the tenant.
    :param request_tier: where values of this scope are kept; a host may give its own.
    :param process_tier: this tenant's part of the process tier, or a host's own mapping.
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
        #: See :class:`RequestTier`; empty while a creator runs, which must be recorded.
        self.hits = tier.hits
        self.process_tier = (
            cache.process_tier.of(f'{schema}|') if process_tier is None else process_tier
        )
        self.transactions: set[Transaction] = set()
        self.runs: list[Run] = []
        self.flushed_tables: set[str] | None = None
        #: Counts the scope's snapshots.
        self.snapshot_number = 0
        #: Versions of the cached values that this transaction has read.
        self.returned: dict[str, str] = {}
        #: Versions of what creators have read from the database for this transaction.
        self.computed: dict[str, str] = {}
        #: The session, once somebody has asked for it.
        self.opened_session: Session | None = None
        #: What the session has not flushed: modified, new and deleted objects.
        self.pending: tuple[Collection[Any], ...] = NOTHING_PENDING
        self._snapshot: Snapshot | None = None
        self._has_looked_again = False
        # tags that this transaction must read from the database; None: all
        self._blocked: set[str] | None = set()
        self._dependents: dict[str, set[Any]] = {}

    def __repr__(self) -> str:
        state = 'with' if self.opened_session is not None else 'without'
        return f'<RequestScope {self.schema} {state} session, {len(self.tier)} values>'

    @property
    def on_replica(self) -> bool:
        """Whether a transaction in progress reads from a replica, which may lag behind."""
        return any(path.on_replica for path in self.transactions)

    # the session

    def session(self) -> Session:
        """The scope's session, bound to its schema; made when it is first asked for."""
        if self.opened_session is None:
            self.opened_session = self.session_manager.create_session(self)
            self.session_emptied()
        return self.opened_session

    def session_emptied(self) -> None:
        """The session has new collections of what it has not flushed."""
        session = self.opened_session
        self.pending = NOTHING_PENDING if session is None else pending_in(session)

    def remembered(self) -> set[type]:
        """The classes of the objects that the session has in memory."""
        if self.opened_session is None:
            return set()
        return {type(obj) for obj in self.opened_session.identity_map.values()}

    def flush(self) -> None:
        """Flush pending changes, so that what is read next shows them.

        A scope that has no session opens none.
        """
        if self.opened_session is not None and self.flushed_tables is None and any(self.pending):
            self.opened_session.flush()

    def remember_hit(
        self, descriptor: Any, instance: Any, value: Any, variant: str, role: Any
    ) -> None:
        """The next read of the descriptor on this instance gives this value."""
        if type(self.tier) is RequestTier and not self.runs and self.cache.recorder is None:
            self.hits[descriptor] = (instance, value, variant, role)

    def commit(self) -> None:
        """Commit what the session did; without one, what was read so far is over as well."""
        if self.opened_session is not None:
            self.opened_session.commit()
        else:
            self.session_ended()

    def reset(self) -> None:
        """Roll back and forget everything: the next attempt of a request begins anew."""
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
        """The snapshot of this transaction, taken when it is first needed."""
        if self._snapshot is None:
            about_to(Step.SNAPSHOT)
            self._snapshot = self.cache.snapshot(self.schema)
        return self._snapshot

    def store_lost(self) -> None:
        """The tag store was lost in between: do not wait for it again in this transaction."""
        self._snapshot = UNREACHABLE

    def transaction(self) -> WritePath:
        """A database transaction is about to take its view: the snapshot must be older."""
        self.snapshot()
        return WritePath(self)

    def take_second_snapshot(self) -> None:
        """The view lies between two snapshots: what differs is read from the database.

        :raises SnapshotConflict: if a value that differs was already returned.
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
        """Whether values with these tags must come from the database now: the tag store
        can't be reached, a flush is under way, or a tag is in doubt or changed by this
        scope itself."""
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
        """If tags are in another's doubt only, look once more, when its commit may be over.

        A new snapshot will do as long as this transaction has neither read a cached value
        nor begun in the database.
        """
        snapshot = self.snapshot()
        if snapshot.in_doubt.isdisjoint(tags) or self.returned or self.transactions:
            return
        if self._has_looked_again or not snapshot.reachable:
            return
        self._has_looked_again = True
        time.sleep(MOMENTS_OF_A_COMMIT)
        self._end_snapshot()

    def has_hidden_changes(self) -> bool:
        """Whether triggers saw a change in this transaction that may be known to nobody yet:
        what is not committed must not be stored, whoever has changed it."""
        if not any(path.may_have_changes() for path in self.transactions):
            return False
        return self.session_manager.database.has_changes(self.session().connection())

    def functions_that_may_read(self, names: Collection[str]) -> Collection[str]:
        """Those of the database's functions whose reads are not known."""
        try:
            return self.session_manager.database.may_read(self.session().connection(), names)
        except SQLAlchemyError:
            return names  # the creator has caught an error, and the transaction has failed

    def settle(self, tags: Collection[str]) -> None:
        """Settle what other writers have left behind, through this scope's connection."""
        snapshot = self.snapshot()
        quarantined = snapshot.quarantine is not None
        if not snapshot.reachable or (snapshot.in_doubt.isdisjoint(tags) and not quarantined):
            return
        oracle = self.session_manager.oracle(self.session().connection())
        if self.on_replica:
            return  # it can not tell what becomes of the primary's transactions
        try:
            self.cache.settler.settle(self.schema, snapshot, tags, oracle)
            self.cache.settler.end_quarantine(self.schema, snapshot, oracle)
        except StoreUnreachable:
            self.store_lost()  # who can reach it will settle it

    def end_quarantine(self, connection: Connection, beginning: Transaction) -> None:
        """End the tenant's quarantine, if it may end, before anything is read."""
        oracle = self.session_manager.oracle(connection)
        try:
            self.cache.settler.end_quarantine(self.schema, self.snapshot(), oracle)
        except StoreUnreachable:
            self.store_lost()
            return
        if not self.returned and not self.transactions - {beginning}:
            self._end_snapshot()

    def transaction_begun(self, transaction: Transaction) -> None:
        """A database transaction of this scope has its view."""
        self.transactions.add(transaction)

    def transaction_ended(self, transaction: Transaction) -> None:
        """A database transaction of this scope has ended, one way or another."""
        self.transactions.discard(transaction)
        if self.transactions:
            # its view, or what its session has in memory, is older than what ended just
            # now, so the snapshot must stay
            if self._blocked is not None:
                self._blocked |= transaction.tags
            self.drop(transaction.tags)
        else:
            self._end_snapshot()

    def session_ended(self) -> None:
        """The session was committed, rolled back or closed, with or without a connection."""
        if not self.transactions:
            self._end_snapshot()

    def _end_snapshot(self) -> None:
        if self._snapshot is None:
            return
        self._snapshot = None
        self._blocked = set()
        self.returned = {}
        self.computed = {}
        self.snapshot_number += 1
        for key, entry in list(self.tier.items()):
            # a host may keep values of its own there
            if isinstance(entry, TierEntry) and entry.encoded is not None:
                del self.tier[key]
        if isinstance(self.tier, RequestTier):
            self.tier.hits.clear()
        self._dependents.clear()

    # the request tier

    def keep(self, key: Any, entry: TierEntry) -> None:
        """Keep a value until its tags change, the transaction or the scope ends."""
        self.tier[key] = entry
        if entry.encoded is not None:
            for tag in entry.tags:
                self._dependents.setdefault(tag, set()).add(key)

    def drop(self, tags: Collection[str]) -> None:
        """Drop the orm-cached values that depend on these tags."""
        for tag in tags:
            for key in self._dependents.pop(tag, ()):
                self.tier.pop(key, None)

    # what creators use

    @contextmanager
    def run(self, prop: Property) -> Iterator[Run]:
        """Record what happens in the block as one run of the property's creator."""
        run = Run(prop, self.snapshot_number)
        self.runs.append(run)
        hits, self.hits = self.hits, {}
        try:
            yield run
        finally:
            self.hits = hits
            self.runs.remove(run)

    def record(self, statement: Statement) -> None:
        """A statement is about to be executed; the run in progress depends on it."""
        current = current_scope.get()
        if current is not self and current is not None and current.runs:
            current.runs[-1].through_another = True
        if self.runs:
            self.runs[-1].record(statement, self.session_manager.has_table)

    def changed_without_objects(self, tables: Collection[str]) -> None:
        """A flush changed these tables without an object that stands for the change, so no
        function policy can be asked: all of them count as concerned."""
        if tables:
            self.changed(self.cache.function_tags)

    def changed(self, tags: Collection[str]) -> None:
        """Collect tags for every transaction in progress, and drop what depends on them."""
        for path in self.transactions:
            path.changed(tags)

    # how it opens and closes

    @contextmanager
    def active(self) -> Iterator[RequestScope]:
        """Make this the current scope of the block."""
        before, current = self.outer, current_scope.get()
        scope = current
        while scope is not None and scope is not self:
            scope = scope.outer
        if scope is None:  # else it encloses the current one, and stays where it is
            self.outer = current
        token = current_scope.set(self)
        try:
            yield self
        finally:
            current_scope.reset(token)
            self.outer = before

    def close(self) -> None:
        """Roll back what was not committed, and give everything back."""
        self.reset()


def innermost_scope(cache: object) -> RequestScope | None:
    """Return the innermost current scope of a cache; None if there is none."""
    scope: RequestScope | None = current_scope.get()
    while scope is not None and scope.cache is not cache:
        scope = scope.outer
    return scope
