"""The request scope: the state of one request, or of one ``with`` block.

Its schema, its session, its snapshot of the tag store and its request tier are kept here
and nowhere else, and end with the scope. This module knows no web framework.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ..database.notes import Relation
from ..database.protocols import Statement
from ..database.session_manager import SessionManager
from ..database.sessions import RunSession, ScopedSession, TenantSession, close_session
from ..database.signals import pending_in
from ..database.transactions import current_scope
from ..forks import register
from ..tiers.process import Slot
from ..tiers.request import RequestTier, TierEntry
from .eviction import WritePath
from .policies import table_tags
from .properties import Call, Property
from .protocols import ScopeCache, Transaction
from .recording import CacheEvent
from .rows import RowPolicy
from .runs import Run
from .transactional import TransactionalScope

#: The pending objects of a scope that has no session: modified, new and deleted ones.
NOTHING_PENDING: tuple[Collection[Any], ...] = ((), (), ())


#: The most values of one property with arguments that the request tier keeps, so that a program
#: that reads all rows one by one does not keep them all.
MAX_VALUES = 1000

#: Stands, among the tags of a value in the request tier, for dependencies that are not known.
UNKNOWN = '#unknown'


class RequestScope(TransactionalScope):
    """The state of one request, or of one ``with`` block, for one tenant.

    Made by the middleware, by ``app.request_scope`` or by a cache's ``scope``, which also
    close it. Used by one thread at a time.

    :param cache: the cache whose values the scope reads.
    :param schema: the tenant.
    :param shown: returns a mapping of a host that is shown the values of the request tier;
        nothing is read from it.
    """

    #: False if what it computes is no part of the cache's work, and is not counted.
    is_counted = True

    #: The hits that the cache's auditor recomputes when it has closed.
    audited: tuple[Any, ...] = ()

    def __init__(
        self,
        cache: ScopeCache,
        schema: str,
        shown: Callable[[], MutableMapping[Any, Any]] | None = None,
    ) -> None:
        super().__init__(cache, schema)
        #: The scope that was current before this one; None if there was none.
        self.outer: Any = None
        #: The request tier.
        self.tier = RequestTier(shown)
        #: The request tier's last hits, see :class:`RequestTier`. Empty while a creator runs,
        #: because what it reads must be recorded.
        self.hits = self.tier.hits
        self.process_tier: MutableMapping[str, Slot] = cache.process_tier.of(f'{schema}|')
        self.runs: list[Run] = []
        #: The functions of instances that were used in it, by descriptor and the instance's id.
        self.functions: dict[tuple[Any, int], Any] = {}
        #: True while it holds the claims of several values.
        self.is_searching = False
        #: The innermost run of an orm-cached property's creator; None if there is none.
        self.computing: Run | None = None
        #: The scope's own session; None until it is first asked for.
        self.opened_session: TenantSession | None = None
        #: The session's own collections of objects that are not flushed: modified, new and
        #: deleted ones.
        self.pending: tuple[Collection[Any], ...] = NOTHING_PENDING
        # by tag, the keys of the orm-cached values in the request tier that depend on it
        self._dependents: defaultdict[str, set[Any]] = defaultdict(set)
        # the keys in the request tier of the values of each property with arguments, the oldest
        # first; some may have been dropped since
        self._keys: dict[Property, dict[Any, None]] = {}

    @property
    def session_manager(self) -> SessionManager:
        """The maker of its session."""
        return self.cache.session_manager

    def __repr__(self) -> str:
        state = 'with' if self.opened_session is not None else 'without'
        closed = 'closed ' if self.is_closed else ''
        return f'<RequestScope {closed}{self.schema} {state} session, {len(self.tier)} values>'

    # the sessions

    def session(self) -> Session:
        """Return the session, bound to the scope's schema; make it at the first call.

        While a creator of an orm-cached property runs, this is a session of its own, in the
        same transaction, so that the creator does not see what the request has in memory.

        :raises ScopeClosedError: after :meth:`close`.
        """
        run = self.computing
        if run is None:
            self._taint_other()
            return self._own_session()
        if run.session is None:
            run.session = self.observer.create_run_session(self._own_session())
        return run.session

    def _own_session(self) -> TenantSession:
        self.check_open()
        if self.opened_session is None:
            self.opened_session = self.session_manager.create_session(self)
            self.session_emptied()
        return self.opened_session

    def connection(self) -> Connection:
        """Return the connection of the scope's own session, for questions of the package."""
        session = self._own_session()
        session.refuse_after_failure()
        return session.connection(bind_arguments={'bind': session.bind})

    @property
    def run_sessions(self) -> list[RunSession]:
        """The sessions of the runs in progress, the innermost last."""
        runs = self.runs  # most often there is none
        return [run.session for run in runs if run.session is not None] if runs else []

    def flushed_on(self, connection: Connection | None) -> set[str] | None:
        """Return the tables that the present flush has changed, if it uses this connection.

        :return: None outside of a flush; another session may flush by a connection of its own.
        """
        run = self.computing
        session = self.opened_session if run is None else run.session
        return None if session is None else session.flushed_on(connection)

    def tells_all(self, connection: Connection | None) -> bool:
        """Return whether the statement that was just executed tells all that the session, which
        uses this connection, is about to commit."""
        session = self.opened_session
        return session is not None and session.tells_all and connection in session.connections

    @property
    def is_flushing(self) -> bool:
        """True if a session of the scope is in the middle of a flush."""
        own = self.opened_session
        if own is None or own.flushed_tables is not None:
            return own is not None
        return any(session.flushed_tables is not None for session in self.run_sessions)

    def _sessions(self) -> list[ScopedSession]:
        """Return all sessions that are open, the innermost last."""
        own = self.opened_session
        return [] if own is None else [own, *self.run_sessions]

    def session_used(self) -> None:
        """Refuse the scope's own session after :meth:`close`; taint a run that uses it."""
        self.check_open()
        if self.computing is not None:
            self.taint_run("it used the request's session, which has objects of its own in memory")

    def session_emptied(self) -> None:
        """Take the session's present collections of pending objects.

        Called when the session is made, and after ``expunge_all()``, which replaces them.
        """
        session = self.opened_session
        self.pending = NOTHING_PENDING if session is None else pending_in(session)

    def names_of(self, relation: Relation) -> frozenset[str]:
        """Return the metadata's names of a relation; none if it is not the tenant's."""
        return self.observer.names_of(relation, self.schema)

    def flush(self) -> None:
        """Flush pending changes, so that the next read sees them.

        Does nothing while a flush is in progress, or if the scope has no session.
        """
        if self.opened_session is None or self.is_flushing:
            return
        if any(self.pending):
            self.opened_session.flush()
        for session in self.run_sessions:
            if any(pending_in(session)):
                session.flush()

    def remember_hit(
        self,
        read: tuple[Any, tuple[Any, ...] | None, tuple[type, ...]],
        instance: Any,
        value: Any,
        variant: str,
        role: Any,
    ) -> None:
        """Remember a value for the next read on this instance.

        Does nothing while a creator runs, the cache records, or the scope counts the hits of its
        request tier, because each read must be seen then.

        :param read: the descriptor or the function of the instance, the function's arguments, and
            their types.
        :param variant: the end of the value's key.
        :param role: the role of the instance's identity; None if the descriptor has no
            variants.
        """
        if not (self.runs or self.weight or self.is_without_cache) and self.cache.recorder is None:
            what, arguments, types = read
            if arguments is None:
                self.hits[what] = (instance, value, variant, role)
            else:
                kinds = types[0] if len(types) == 1 else types
                self.hits.setdefault(what, {})[arguments] = (value, variant, role, kinds)

    def forget_hits(self) -> None:
        """Look into the request tier at the next read of each value, so that it is seen."""
        self.tier.hits.clear()

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
        sessions = self._sessions()
        self.opened_session = None
        self.pending = NOTHING_PENDING
        self.runs.clear()
        self.computing = None
        for session in reversed(sessions):
            close_session(session)
        self.transactions.clear()
        self.clear()
        self._end_snapshot()

    def transaction(self, connection: Connection) -> WritePath:
        """Return the write path of a database transaction that is about to take its view.

        Takes the snapshot first, because it must be older than the view.

        :param connection: the connection of the transaction.
        :raises ScopeClosedError: after :meth:`close`.
        """
        self.check_open()
        self.cache.refuse_fork()
        if self.snapshot().quarantine is not None:
            self.end_quarantine(connection)
        return WritePath(self)

    # the request tier

    def keep(self, call: Call, entry: TierEntry) -> None:
        """Keep a value in the request tier.

        Of a property with arguments, the latest :data:`MAX_VALUES` values are kept. An orm-cached
        value is dropped when one of its tags changes or the snapshot ends; a request-cached one
        (its ``encoded`` is None) stays until the scope ends. A scope that does without the cache
        keeps no orm-cached value.
        """
        if self.is_without_cache and entry.encoded is not None:
            return
        key = call.key
        if call.prop.takes_arguments:
            keys = self._keys.setdefault(call.prop, {})
            keys[key] = None
            if len(keys) > MAX_VALUES:
                self._forget(next(iter(keys)), keys)
        self.tier[key] = entry
        if entry.encoded is not None:
            for tag in entry.tags if entry.storable else (*entry.tags, UNKNOWN):
                self._dependents[tag].add(key)

    def _forget(self, key: Any, keys: dict[Any, None]) -> None:
        """Drop one value of a property with arguments.

        :param keys: those of its values in the request tier.
        """
        del keys[key]
        entry = self.tier.get(key)
        if entry is not None:
            del self.tier[key]
            for tag in (*entry.tags, UNKNOWN):
                if dependents := self._dependents.get(tag):
                    dependents.discard(key)

    def drop(self, tags: Collection[str]) -> None:
        """Drop the orm-cached values of the request tier that depend on these tags, and those
        whose dependencies are not known."""
        if not self._dependents:
            return
        for tag in (*tags, UNKNOWN):
            for key in self._dependents.pop(tag, ()):
                self.tier.pop(key, None)

    def drop_all(self) -> None:
        """Drop all orm-cached values of the request tier."""
        for key, entry in list(self.tier.items()):
            # an application may keep values of its own there
            if isinstance(entry, TierEntry) and entry.encoded is not None:
                del self.tier[key]
        self.tier.hits.clear()
        self._dependents.clear()
        self._keys.clear()

    def clear(self) -> None:
        """Drop all values of the request tier, request-cached ones too."""
        self.tier.clear()
        self._dependents.clear()
        self._keys.clear()
        for (descriptor, _), function in self.functions.items():
            descriptor.forget(function)
        self.functions.clear()
        self._has_looked_again = False

    # the runs of creators

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Hold the claims of several values while the block computes them.

        What their creators read is neither claimed nor waited for: another caller may hold its
        claim, and wait for one of these.
        """
        before, self.is_searching = self.is_searching, True
        try:
            yield
        finally:
            self.is_searching = before

    @contextmanager
    def run(self, *calls: Call) -> Iterator[Run]:
        """Record the reads of the block as one run of a property's creator.

        The run of an orm-cached property has a session of its own, which is flushed and closed
        at its end. What it writes belongs to the transaction of the scope's own session.

        :param calls: those of one property whose values it computes.
        """
        run = Run(calls, self.snapshot_number)
        depth, outer = len(self.runs), self.computing
        self.runs.append(run)
        if self.cache.recorder is not None:
            self.cache.recorder(CacheEvent.run(self.schema, run.prop.where))
        has_session = not run.prop.declaration.is_request_cached
        if has_session:
            self.computing = run
        hits, self.hits = self.hits, {}
        try:
            yield run
            if run.session is not None:
                run.session.flush()
            self._learn_reads(run)
        except BaseException:
            if depth:
                self._learn_reads(run)
                self.runs[depth - 1].inherit(run)
            raise
        finally:
            self.hits = hits
            del self.runs[depth:]
            self.computing = outer
            if run.session is not None:
                close_session(run.session)
            if run.has_written and has_session:
                self._expire()

    def _learn_reads(self, run: Run) -> None:
        """Let a run find out what it has read, while it is still in progress."""
        for path in list(self.transactions):
            path.take()
        run.ask(self.names_of)

    def _expire(self) -> None:
        """Let the objects of all sessions be loaded anew, after a run has changed the database."""
        if self.is_flushing:
            return
        for session in self._sessions():
            if not any(pending_in(session)):
                session.expire_all()

    def taint_run(self, reason: str) -> None:
        """Keep the values of the runs in progress from being stored.

        :param reason: what a run has got that its statements do not show, for the log.
        """
        for run in self.runs:
            run.taint(reason)

    def _taint_other(self) -> None:
        """Taint the runs of the current scope if that is another one: a run of it uses this
        scope, whose view may be older than its own."""
        current = current_scope.get()
        if current is not self and current is not None:
            current.taint_run(f'it used the scope of {self.schema}')

    def record(self, statement: Statement) -> None:
        """Add what a statement reads to the run in progress."""
        self._taint_other()
        if not self.runs:
            return
        self.runs[-1].record(statement)
        if statement.writes or statement.cascades or statement.writes_elsewhere:
            self.taint_run('it changed the database')
            for run in self.runs:
                run.has_written = True

    def unclear(self, transaction: Transaction, statement: Statement) -> None:
        """Let the run in progress find out what an unclear statement reads, before it is
        executed.

        What the statement changes is not known either, so no hit may be used until the
        database was asked.
        """
        self._taint_other()
        self.tier.hits.clear()
        if self.runs:
            self.runs[-1].watch(transaction, statement)

    def related(self, tables: Collection[str]) -> None:
        """Collect the tags of tables between whose rows a flush has changed relationships."""
        if tables:
            self.changed(table_tags(tables))

    def transaction_ended(self, transaction: Transaction) -> None:
        super().transaction_ended(transaction)
        self.taint_run('a transaction ended while it ran')

    def changed_without_objects(self, tables: Collection[str]) -> None:
        """Collect the tags of all function policies, and of all rows of these tables, if a flush
        changed tables without objects.

        No object stands for the change, so no policy can be asked about it.

        :param tables: the tables that were changed without an object; may be empty.
        """
        for path in self.transactions if tables else ():
            path.changed_without_objects(tables)

    def rows_changed(
        self, policy: RowPolicy, buckets: Collection[int] | None, loaded: Collection[int] = ()
    ) -> None:
        """Collect the tags of changed rows for every transaction in progress; see
        :meth:`.WritePath.rows_changed`."""
        for path in self.transactions:
            path.rows_changed(policy, buckets, loaded)

    def has_all_rows(self, policy: RowPolicy) -> bool:
        """Return whether all rows of a policy count as changed in each transaction in progress."""
        return all(path.has_all_rows(policy) for path in self.transactions)

    def changed(self, tags: Collection[str]) -> None:
        """Collect changed tags for every transaction in progress, and drop the values that
        depend on them."""
        for path in self.transactions:
            path.changed(tags)

    # how it opens and closes

    def present(self) -> RequestScope:
        """Return the scope in which a property is read while this is the current one: this."""
        return self

    @contextmanager
    def active(self) -> Iterator[RequestScope]:
        """Make this the current scope while the block runs.

        A run of another scope that does so uses what its own statements do not show.
        """
        before, current = self.outer, current_scope.get()
        scope = current
        while scope is not None and scope is not self:
            scope.taint_run(f'it used the scope of {self.schema}')
            scope = scope.outer
        if scope is None:  # otherwise it encloses the current one already, and keeps its place
            self.outer = current
        token = current_scope.set(self)
        try:
            yield self
        finally:
            current_scope.reset(token)
            self.outer = before

    @contextmanager
    def opened(self) -> Iterator[RequestScope]:
        """Make this the current scope while the block runs, and close it then."""
        with self.active():
            try:
                yield self
            finally:
                self.close()

    def close(self) -> None:
        """Roll back uncommitted changes, and close the session. The scope refuses any use then."""
        self.reset()
        self.is_closed = True
        if self.story is not None:
            self.story.closed()
        if self.audited and self.cache.auditor is not None:
            self.cache.auditor.recompute(self)


class CurrentScopes:
    """The current scopes of this thread, as a fork finds them."""

    def after_fork(self) -> None:
        """Let the current scopes refuse a child's next read, also of what they have read; what
        they have counted, the parent hands over."""
        scope: RequestScope | None = current_scope.get()
        while scope is not None:
            scope.hits.clear()
            scope.counts.clear()
            scope = scope.outer


CURRENT_SCOPES = CurrentScopes()
register(CURRENT_SCOPES)


def innermost_scope(cache: object) -> RequestScope | None:
    """Return the innermost current scope of a cache; None if there is none."""
    scope: RequestScope | None = current_scope.get()
    while scope is not None and scope.cache is not cache:
        scope = scope.outer
    return scope


def scopes_around(cache: object) -> Iterator[RequestScope]:
    """Yield the current scopes of a cache, the innermost first."""
    scope: RequestScope | None = current_scope.get()
    while scope is not None:
        if scope.cache is cache:
            yield scope
        scope = scope.outer
