"""The ambient scope: the scope of one thread of a host, for one tenant.

Its session, and the begin and end of its transactions, are the host's. This module does not know
how a thread's scopes are found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol
from weakref import WeakSet, ref

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from ..database.hosts import HostObserver
from ..database.identity import is_missing
from ..database.names import SCOPE_OPTION
from ..database.protocols import Inquiry, View
from ..database.sessions import ScopedSession, TenantSession, flushing
from ..database.signals import pending_in
from ..errors import ConfigurationError, OutsideScopeError, UnknownSchemaError
from .lending import lend
from .properties import Call
from .protocols import ScopeCache, Transaction
from .runs import Run
from .scope import NOTHING_PENDING, RequestScope

#: Takes the place of a scope's hits while the host works for another tenant.
NO_HITS: dict[Any, Any] = {}

#: Takes the place of a session's pending objects if it is another session than before.
OTHER_SESSION: tuple[Collection[Any], ...] = ((None,), (), ())


class HostScopes(Protocol):
    """The part of a host's scopes that each of them uses."""

    is_closed: bool

    @property
    def cache(self) -> ScopeCache:
        """The cache that the scopes belong to."""

    @property
    def observer(self) -> HostObserver:
        """The observer of the host."""

    def present(self) -> RequestScope | None:
        """Return this thread's scope of the present tenant; None if there is none."""

    def is_present(self, scope: AmbientScope) -> bool:
        """Return whether this thread is a scope's, and the host works for its tenant."""

    def session(self, scope: AmbientScope) -> TenantSession:
        """Return the host's session of a scope."""

    def existing_session(self, scope: AmbientScope) -> ScopedSession | None:
        """Return the host's session of a scope, if there is one already."""

    def registry_of(self, scope: AmbientScope) -> scoped_session[Any] | None:
        """Return the registry that has the host's session of a scope; None if the host keeps it
        elsewhere."""

    def running(self, scope: AmbientScope) -> AbstractContextManager[None]:
        """Note that a creator runs in a scope while a block runs."""

    def taint_others(self, scope: AmbientScope) -> None:
        """Taint the runs of this thread's other scopes, because they use this one."""


class AmbientScope(RequestScope):
    """The scope of one thread of a host, for one tenant. Made when it is first needed.

    :param scopes: those of its cache.
    :param home: stands for the thread, or task, that it belongs to.
    :param shown: returns a mapping of the host that is shown the values.
    """

    def __init__(
        self,
        scopes: HostScopes,
        home: object,
        schema: str,
        shown: Callable[[], MutableMapping[Any, Any]] | None,
    ) -> None:
        self._scopes = scopes
        self.home = home
        super().__init__(scopes.cache, schema, shown)
        #: The session that the host has entered the scope with.
        self.entered_session: TenantSession | None = None
        # the host's session, while a run has taken its place in the registry
        self._replaced: TenantSession | None = None
        self._memory_was_empty = False
        # True if the database has no such schema
        self._is_missing = False
        # refers to the session with which the last value was read; None: there was none yet
        self._session_before: ref[ScopedSession] | None = None
        # True if that session's transaction was another tenant's
        self._was_elsewhere = False

    def __repr__(self) -> str:
        return f'<AmbientScope {self.schema or "without tenant"}, {len(self.tier)} values>'

    # each of these is asked for by each read, and depends on what the host does meanwhile

    @property
    def hits(self) -> dict[Any, Any]:
        """The last hits; none while the host works for another tenant, or in another thread."""
        return self._hits if self._scopes.is_present(self) else NO_HITS

    @hits.setter
    def hits(self, hits: dict[Any, Any]) -> None:
        self._hits = hits

    @property
    def pending(self) -> tuple[Collection[Any], ...]:
        """The pending objects of the host's present session."""
        session = self._scopes.existing_session(self)
        if session is None:
            return NOTHING_PENDING
        return OTHER_SESSION if self._is_other(session) else pending_in(session)

    @pending.setter
    def pending(self, pending: tuple[Collection[Any], ...]) -> None:
        """Do nothing: they are asked for each time."""

    @property
    def session_manager(self) -> Any:
        """None: a host makes the sessions."""
        return None

    def present(self) -> RequestScope:
        scope = self._scopes.present()
        if scope is None:
            raise OutsideScopeError(
                'A property was read while the host works for no tenant; switch to one, or call '
                'enter_scope(schema)'
            )
        return scope

    def follow_session(self) -> None:
        """End the snapshot if the host has another session than at the last read.

        What was read before may be what only the other one sees, in its transaction. The scope is
        not told of changes by a session whose transaction is another tenant's.
        """
        if self.runs:
            return
        session = self._scopes.existing_session(self)
        if session is None:
            return
        if self._is_other(session):
            self._end_snapshot()
        self._session_before = ref(session)
        if self not in session.readers:
            session.readers = WeakSet((self, *session.readers))
        self._was_elsewhere = self._is_elsewhere(session)
        if self._was_elsewhere:
            self.connection()  # an error, unless its tenant is another one by now

    def _is_other(self, session: ScopedSession) -> bool:
        """Return whether a session is another one than at the last read, or does not work for
        the scope alone."""
        before = self._session_before
        if self._was_elsewhere or self._is_elsewhere(session):
            return True
        return before is not None and before() is not session

    def _is_elsewhere(self, session: ScopedSession) -> bool:
        return session.info.get(SCOPE_OPTION, self) is not self

    def check_open(self) -> None:
        if self._scopes.is_closed:
            self.is_closed = True
        super().check_open()

    # the sessions

    def _own_session(self) -> TenantSession:
        self.check_open()
        session = self._replaced or self._scopes.session(self)
        if session.bind is not None:
            self._check_observed(session, session.bind)
        return session

    def _check_observed(self, session: Session, bind: Engine | Connection) -> None:
        if not self.observer.observes(bind, self.schema):
            raise ConfigurationError(
                f'{self.schema}: {session!r} uses {bind.engine!r}, which nobody observes; give it '
                'to observe(engine=[...]), too'
            )

    def connection(self) -> Connection:
        session = self._own_session()
        connection = session.own_connection(self.observer.database.engine(self.schema))
        self._check_observed(session, connection)
        found = self._scopes.observer.scope_of(connection)
        if found is not self:
            raise ConfigurationError(
                f'A value of {self.schema!r} is read, and schema_of says that the connection of '
                f'{session!r} works for {found.schema!r}; both must be the same tenant'
            )
        if self._is_missing:
            raise UnknownSchemaError(
                f'The database has no schema {self.schema!r}, for which the host works; create '
                'it, or correct what schema_of returns'
            )
        return connection

    def flushed_on(self, connection: Connection | None) -> set[str] | None:
        session = flushing.get()
        return None if session is None else session.flushed_on(connection)

    def tells_all(self, connection: Connection | None) -> bool:
        session = flushing.get()
        return session is not None and session.tells_all and connection in session.connections

    @property
    def is_flushing(self) -> bool:
        session = flushing.get()
        return session is not None and session.flushed_tables is not None

    def _sessions(self) -> list[ScopedSession]:
        own = self._replaced or self._scopes.existing_session(self)
        return [] if own is None else [own, *self.run_sessions]

    def session_used(self) -> None:
        if self.computing is not None and not self._memory_was_empty:
            super().session_used()

    def flush(self) -> None:
        if self.is_flushing:
            return
        for session in self._sessions():
            if any(pending_in(session)):
                session.flush()

    # its transactions

    def identify(
        self, connection: Connection, beginning: Transaction, view: View, inquiry: Inquiry
    ) -> tuple[View, Inquiry]:
        self._is_missing = is_missing(view.identities.get(self.schema, ''))
        return super().identify(connection, beginning, view, inquiry)

    def blocks(self, tags: Collection[str]) -> bool:
        # a view that is older than the snapshot may not show what cached values show
        number = self.snapshot_number
        is_outdated = any(p.keeps_view and p.snapshot_number < number for p in self.transactions)
        return is_outdated or self._was_elsewhere or super().blocks(tags)

    def session_ended(self) -> None:
        if self.transactions and self._is_in_transaction():
            return
        # those that are still open are of other sessions and connections, maybe for ever
        self._end_snapshot()

    def _is_in_transaction(self) -> bool:
        """Return whether the session with which the last value was read is in a transaction."""
        session = None if self._session_before is None else self._session_before()
        return session is not None and session.in_transaction()

    def unit_ended(self) -> None:
        """End the snapshot, unless the host's session has a view that lasts.

        A host may leave a transaction of the database open when its own one ends.
        """
        for path in list(self.transactions):
            if path.is_gone:  # its connection was lost, and nobody has told of an end
                self.transactions.discard(path)
        if not (self.keeps_view and self._is_in_transaction()):
            self._end_snapshot()

    def begin_request(self) -> None:
        """Forget the values of the request before."""
        self.entered_session = None
        self.clear()

    # the runs of creators

    def _taint_other(self) -> None:
        super()._taint_other()
        self._scopes.taint_others(self)

    @contextmanager
    def run(self, *calls: Call) -> Iterator[Run]:
        with self._scopes.running(self), super().run(*calls) as run:
            with self._session_of(run):
                yield run
            session = run.session or self._scopes.existing_session(self)
            for connection in () if session is None else session.connections:
                if not self.observer.observes(connection, self.schema):
                    run.taint(f'it used {connection.engine!r}, which nobody observes')

    def _session_of(self, run: Run) -> AbstractContextManager[None]:
        """Return a context manager in which the host gives the run a session that it may use."""
        if run.prop.declaration.is_request_cached:
            return nullcontext()
        registry = None if self.entered_session else self._scopes.registry_of(self)
        return self._in_place() if registry is None else self._exchanged(run, registry)

    @contextmanager
    def _exchanged(self, run: Run, registry: scoped_session[Any]) -> Iterator[None]:
        """Let the host's registry have the run's session while the block runs."""
        outermost, own = self._replaced is None, self._own_session()
        self._replaced = own
        try:
            run.session = self.observer.create_run_session(own)
            with lend(registry, run, run.session):
                yield
        finally:
            if outermost:
                self._replaced = None

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Let a run use the host's own session, which can't be exchanged.

        What it had in memory before must not show in the value, so it must have had nothing.
        """
        before, own = self._memory_was_empty, self._own_session()
        self._memory_was_empty = len(self.runs) == 1 and (
            not len(own.identity_map) and not any(pending_in(own))
        )
        try:
            yield
        finally:
            self._memory_was_empty = before

    def _expire(self) -> None:
        super()._expire()
        self._scopes.observer.wrote(self._own_session())
