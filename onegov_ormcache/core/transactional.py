"""The part of a request scope that follows its transactions: its snapshot, and when it ends.

This module knows the tag store's snapshots and the scope's database transactions. It does
not know properties, creators or how a session is made.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Collection, Hashable

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..database.protocols import Inquiry, Listener, View
from ..database.sessions import ScopedSession
from ..errors import (
    InheritedTransactionError,
    ScopeClosedError,
    SnapshotConflict,
    StoreUnreachable,
)
from ..forks import check
from ..statistics.fields import Counts, add_counts
from ..steps import Step, about_to
from ..tags.snapshot import CATALOG_TAG, CODE_TAG, UNREACHABLE, Snapshot
from .protocols import ScopeCache, Transaction
from .story import Story
from .torn_pages import TornPages

log = logging.getLogger(__name__)

#: Seconds within which most commits in progress end.
COMMIT_TIME = 0.002

#: The tags of all that a process knows of the database.
DEFINITIONS = frozenset({CATALOG_TAG, CODE_TAG})

#: The number of times that a transaction is begun at most, to find an identity that does not
#: change meanwhile.
IDENTIFY_ATTEMPTS = 3


class TransactionalScope:
    """A scope as its transactions see it: the base class of :class:`.RequestScope`.

    :param cache: the cache whose values the scope reads.
    :param schema: the tenant.
    """

    #: What it has handed over of its counts; None if nobody asks for it.
    counted: Counts | None = None

    def __init__(self, cache: ScopeCache, schema: str) -> None:
        self.cache = cache
        self.observer = cache.observer
        self.schema = schema
        self.is_closed = False
        #: True while the body of the response is sent, when nobody can try the request again. Then
        #: no :class:`.SnapshotConflict` is raised for a transaction that begins.
        self.is_streaming = False
        # True if a streamed body may use cached values only after a transaction has begun
        self._begins_first = True
        check()
        self._process = os.getpid()
        #: The database transactions that are open.
        self.transactions: set[Transaction] = set()
        #: The number of the present snapshot; it grows by one when a snapshot ends.
        self.snapshot_number = 0
        #: The versions, by tag, of the cached values that this transaction has read.
        self.returned: dict[str, str] = {}
        #: The versions, by tag, of what creators have read from the database in this
        #: transaction.
        self.computed: dict[str, str] = {}
        #: What it has counted since it last handed that over.
        self.counts: Counts = defaultdict(int)
        #: How many hits each hit of its request tier stands for; 0: they are not counted.
        self.weight = 0
        #: What the cache does for it; None if nobody listens.
        self.story: Story | None = None
        #: The check that all values of a transaction belong to one moment.
        self.torn_pages = TornPages(self)
        self._snapshot: Snapshot | None = None
        # the token of the definitions, with the snapshot that it is made of
        self._defined: tuple[Snapshot, Hashable] | None = None
        self._has_looked_again = False
        # the tags whose values this transaction must read from the database; None: all tags
        self._blocked: set[str] | None = set()
        #: True until the snapshot ends, if the cache was disabled meanwhile: nothing is kept then.
        self.is_without_cache = False

    def counted_so_far(self) -> Counts:
        """Return what it has counted, if :attr:`counted` is set; else since the last snapshot."""
        counts = dict(self.counted or {})
        add_counts(counts, self.counts)
        return counts

    # what the request scope adds

    @property
    def is_flushing(self) -> bool:
        """True if a session of the scope is in the middle of a flush."""
        raise NotImplementedError

    def connection(self) -> Connection:
        """Return the connection of the scope's own session."""
        raise NotImplementedError

    def transaction(self, connection: Connection) -> Listener:
        """Return the write path of a database transaction that is about to take its view."""
        raise NotImplementedError

    def drop(self, tags: Collection[str]) -> None:
        """Drop the orm-cached values of the request tier that depend on these tags."""
        raise NotImplementedError

    def drop_all(self) -> None:
        """Drop all orm-cached values of the request tier."""
        raise NotImplementedError

    @property
    def on_replica(self) -> bool:
        """True if a transaction in progress reads from a replica, which may lag behind."""
        return any(path.on_replica for path in self.transactions)

    @property
    def is_in_transaction(self) -> bool:
        """True if the scope holds a connection of the database."""
        return bool(self.transactions)

    @property
    def is_in_one_transaction(self) -> bool:
        """True if exactly one database transaction is open."""
        return len(self.transactions) == 1

    @property
    def has_strayed(self) -> bool:
        """True if a transaction in progress may use and store no value."""
        return bool(self.transactions) and any(path.strayed for path in self.transactions)

    @property
    def was_unclear(self) -> bool:
        """True if a transaction in progress may see definitions that it has changed itself."""
        return any(path.was_unclear for path in self.transactions)

    @property
    def keeps_view(self) -> bool:
        """True if a transaction in progress has one view for all its statements."""
        return any(path.keeps_view for path in self.transactions)

    def check_open(self) -> None:
        """Raise an error if the scope must not be used any longer.

        :raises ScopeClosedError: after the scope was closed.
        :raises SecondProcessError: in a fork of the process that keeps versions in its memory.
        :raises InheritedTransactionError: in a fork within a transaction of the scope.
        """
        if self.is_closed:
            raise ScopeClosedError(
                f'The scope of {self.schema!r} is closed, so its session, its connections and '
                'properties can not be used any longer; open another: '
                'with app.request_scope(schema): ...'
            )
        if self._process != os.getpid():
            check()
            self.cache.refuse_fork()
            if self.transactions:
                raise InheritedTransactionError(
                    f'The scope of {self.schema!r} is in a transaction of the process '
                    f'{self._process}, of which this one is a fork; open another scope here: '
                    'with app.request_scope(schema): ...'
                )

    # the snapshot

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this transaction; take it when it is first needed."""
        if self._snapshot is None:
            about_to(Step.SNAPSHOT)
            self._snapshot = self.cache.snapshot(self.schema)
            if self.cache.is_disabled:
                self._do_without_cache()
            self.weight = self.cache.statistics.weight()
            self.story = self.cache.stories.begin(self.schema, self._snapshot, self.story)
        return self._snapshot

    def cache_disabled(self) -> None:
        """Read all values from the database until the snapshot ends.

        Also after the cache is enabled again: the snapshot may be older than what was read.
        """
        if self._snapshot is not None:
            self._do_without_cache()
        self.drop_all()

    def _do_without_cache(self) -> None:
        self._blocked = None
        self.is_without_cache = True

    def store_lost(self) -> None:
        """Treat the tag store as unreachable until the snapshot ends.

        So a transaction waits at most once for a store that does not answer.
        """
        self._snapshot = UNREACHABLE

    def identify(
        self, connection: Connection, beginning: Transaction, view: View, inquiry: Inquiry
    ) -> tuple[View, Inquiry]:
        """Go on with the versions of the database that a transaction has begun in.

        If the snapshot is one of another identity, or of none, it ends. A view that lasts was
        taken before the next snapshot then, so the transaction begins again. If it can't, or
        another transaction of the scope is open, all values are read from the database.

        :param connection: the connection of the transaction.
        :param beginning: the transaction, which has read nothing yet.
        :param view: the view that it has taken.
        :param inquiry: asks the database about it.
        :return: both, with which the transaction goes on.
        :raises SnapshotConflict: if a cached value of another identity was already returned,
            unless :attr:`is_streaming`.
        """
        for _ in range(IDENTIFY_ATTEMPTS):
            if not self._identify(view):
                return view, inquiry
            if self.returned:
                self._refuse_mixture(
                    'the database is not the one, or not in the state, whose values were read '
                    'from the cache before: it was replaced, restored or recovered meanwhile'
                )
                break
            if self.transactions - {beginning}:
                break
            self._end_snapshot()
            if self.snapshot().quarantine is not None:
                self.end_quarantine(connection, beginning)
            elif self.snapshot().identified and not view.lasts:
                return view, inquiry
            about_to(Step.VIEW)
            again = self.observer.database.begin_again(connection, self)
            if again is None:
                break
            view, inquiry = again
        self.store_lost()
        return view, inquiry

    def _identify(self, view: View) -> bool:
        """Tell the cache the identities that a view has; return False if the snapshot can be
        kept, because it is one of these, or because the store can't be reached."""
        snapshot = self.snapshot()
        try:
            return self.cache.identify(
                self.schema, view.identities, snapshot, replica=view.replica
            )
        except StoreUnreachable:
            self.store_lost()
            return False

    def take_second_snapshot(self) -> None:
        """Take a second snapshot, after a view that lasts; block the tags that differ.

        The view was taken between the two snapshots, and may or may not show a change that
        only the second has. So values of tags that differ, or that are in doubt in the
        second, are read from the database in this transaction. If the store is lost or the
        tenant has a new birth, these are all tags.

        :raises SnapshotConflict: if a cached value of such a tag was already returned, unless
            :attr:`is_streaming`.
        """
        first = self.snapshot()
        if not first.usable:
            if self.returned:
                self._refuse_mixture(
                    'the tag store was lost between a cached value that was read and the begin of '
                    'the database transaction, so they may not belong to one moment'
                )
            return
        about_to(Step.SECOND_SNAPSHOT)
        second = self.cache.snapshot(self.schema)
        unsettled = second.unsettled(first) if second.usable else None
        broken = self.returned if unsettled is None else self.returned.keys() & unsettled
        if broken:
            self._refuse_mixture(
                f'{min(broken)} changed between a cached value that was read and the begin of the '
                'database transaction'
            )
        if unsettled is None:
            self._blocked = None
        elif self._blocked is not None:
            self._blocked |= unsettled

    def _refuse_mixture(self, reason: str) -> None:
        """Refuse to mix cached values that were read with a later view of the database.

        :raises SnapshotConflict: unless :attr:`is_streaming`. Then the values that were read are
            sent already, and what is read from now on is of the view.
        """
        if not self.is_streaming:
            raise SnapshotConflict(f'{self.schema}: {reason}')
        self.drop_all()

    def blocks(self, tags: Collection[str]) -> bool:
        """Return whether values with these tags must be read from the database now.

        They must if the tag store can't be reached, while a flush is in progress, and if one
        of the tags is in doubt, was changed by this scope itself, or differs in the second
        snapshot. They must also if a transaction has strayed from its settings. If the database
        must be asked for its identity first, a transaction begins.
        """
        if self.is_flushing:
            return True
        try:
            self.ask()
        except DBAPIError:
            return True  # the transaction has failed, or the connection is lost
        if self.has_strayed:
            return True
        tags = {*tags, CODE_TAG}
        snapshot = self.snapshot()
        if not (snapshot.identified or self.transactions):
            self.connection()
            snapshot = self.snapshot()
        elif self.is_streaming and not self.transactions:
            self._begin_first()
            snapshot = self.snapshot()
        if not snapshot.usable or self._blocked is None:
            return True
        if not (self._blocked or snapshot.in_doubt or self.transactions):
            return False
        return not (
            self._blocked.isdisjoint(tags)
            and snapshot.in_doubt.isdisjoint(tags)
            and not any(path.has_changed(tags) for path in self.transactions)
        )

    def why_blocked(self, tags: Collection[str]) -> str:
        """Return why :meth:`blocks` says so, in a word or two, to be counted."""
        if self.is_flushing:
            return 'flush'
        if self.has_strayed:
            return 'strayed'
        if self.is_without_cache:
            return 'disabled'
        tags, snapshot = {*tags, CODE_TAG}, self._snapshot
        if snapshot is None or not snapshot.reachable:
            return 'outage'
        if not snapshot.identified:
            return 'not identified'
        if any(path.has_changed(tags) for path in self.transactions):
            return 'own change'
        if not snapshot.in_doubt.isdisjoint(tags):
            return 'doubt'
        if self._blocked is None or not self._blocked.isdisjoint(tags):
            return 'later view'
        return 'failed transaction'

    def _begin_first(self) -> None:
        """Begin a transaction before the first cached value of a streamed body, if its view lasts.

        A transaction that began later would have a view that one of these values may not
        belong to. If the database can't be reached, values are used without a transaction.
        """
        if not self._begins_first or not self.observer.views_last:
            return
        try:
            self.connection()
        except SQLAlchemyError:
            self._begins_first = False

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

    def ask(self) -> None:
        """Ask the database what this scope's unclear statements have changed so far."""
        for path in list(self.transactions):
            path.ask()

    def definitions(self) -> Hashable:
        """Return a token that changes when somebody changes the definitions of tables."""
        snapshot = self.snapshot()
        if not DEFINITIONS.isdisjoint(snapshot.in_doubt):
            return self.schema, self.snapshot_number, id(self)
        if self._defined is None or self._defined[0] is not snapshot:
            parts = snapshot.parts or ((self.schema, snapshot),)
            versions = tuple(
                part.version(tag) for _, part in parts for tag in (CATALOG_TAG, CODE_TAG)
            )
            self._defined = snapshot, versions
        return self._defined[1]

    def settle(self, tags: Collection[str]) -> None:
        """Settle other writers' doubts of these tags; end the tenant's quarantine if it may end.

        The database is asked through this scope's connection; a replica is not asked. If the
        question fails, a later reader asks again.
        """
        snapshot = self.snapshot()
        quarantined = snapshot.quarantine is not None
        if not snapshot.reachable or (snapshot.in_doubt.isdisjoint(tags) and not quarantined):
            return
        try:
            oracle = self.observer.oracle(self.connection())
            if self.on_replica:
                return  # a replica does not know the outcome of the primary's transactions
            self.cache.settler.settle(self.schema, snapshot, tags, oracle)
            self.cache.settler.end_quarantine(self.schema, snapshot, oracle)
        except StoreUnreachable:
            self.store_lost()  # a later reader that reaches the store settles them
        except SQLAlchemyError as error:
            raise_if_lost(error)
            log.warning('%s: the database can not be asked', self.schema, exc_info=True)

    def end_quarantine(
        self, connection: Connection, beginning: Transaction | None = None
    ) -> None:
        """End the tenant's quarantine, if it may end, before a transaction takes its view.

        The transaction then uses a snapshot that is taken now, so it is older than the view and
        than all that the transaction will have in memory. The present snapshot stays if it is
        in use: a cached value was read with it, or another transaction of the scope is open.

        :param connection: the connection of the transaction, by which the database is asked.
        :param beginning: the transaction, if it has begun; it must begin again then.
        """
        database = self.observer.database
        oracle = database.oracle(connection)
        has_left = True
        try:
            if oracle is None or not database.is_replica(connection):
                self.cache.settler.end_quarantine(self.schema, self.snapshot(), oracle)
        except StoreUnreachable:
            self.store_lost()
            return
        except SQLAlchemyError as error:
            raise_if_lost(error)
            log.warning('%s: the database can not be asked', self.schema, exc_info=True)
            return
        finally:
            if oracle is not None:
                # the questions have taken a view, which must not be that of the transaction
                has_left = database.leave(connection)
        if not has_left and beginning is None:
            self.store_lost()  # all values are read from the database
            return
        if not self.returned and not self.transactions - {beginning}:
            self._end_snapshot()
            self.snapshot()

    def transaction_begun(self, transaction: Transaction) -> None:
        """Add a database transaction of this scope, which has taken its view."""
        self.transactions.add(transaction)
        self.observer.views_last = transaction.keeps_view

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

    def last_flush_ended(self, session: ScopedSession) -> None:
        """Let the transactions that a session is about to commit send their doubts."""
        for path in self.transactions:
            if path.works_on(session.connections):
                path.last_flush_ended()

    def session_ended(self) -> None:
        """End the snapshot after the session was committed, rolled back or closed.

        If a database transaction is still open, the snapshot ends with that one.
        """
        if not self.transactions:
            self._end_snapshot()

    def _end_snapshot(self) -> None:
        """End the snapshot, and with it the orm-cached values of the request tier."""
        if self._snapshot is not None:
            for path in self.transactions:
                path.hold({**self.computed, **self.returned})
            self._snapshot = None
            self._blocked = set()
            self.is_without_cache = False
            self.returned = {}
            self.computed = {}
            self.torn_pages.snapshot_ended()
            self.snapshot_number += 1
            self.drop_all()
        # last: an interrupt in it must leave nothing of the snapshot
        if self.counts:
            if self.counted is not None:
                add_counts(self.counted, self.counts)
            self.cache.statistics.take(self.schema, self.counts)


def raise_if_lost(error: SQLAlchemyError) -> None:
    """Raise the error of a question to the database, if it says that the connection is lost.

    The transaction is lost with it, and the first error says why; later ones do not.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        raise error
