"""Ambient scopes: the scopes of a host, which has sessions and transactions of its own.

A host opens no scopes. Each of its threads has one for each tenant, made when it is needed, and
used until the host begins its next request. Its snapshot ends with the host's transaction. This
module commits nothing, and does not know how a host finds its tenant or makes its sessions: it
asks, each time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util import ThreadLocalRegistry

from ..database.hosts import NOWHERE, HostObserver
from ..database.identity import is_missing
from ..database.names import SCOPE_OPTION
from ..database.protocols import Inquiry, View
from ..database.sessions import (
    RunSession,
    ScopedSession,
    TenantSession,
    close_session,
    flushing,
    observed,
)
from ..database.signals import pending_in
from ..database.transactions import current_scope
from ..errors import (
    ConfigurationError,
    OutsideScopeError,
    StoreUnreachable,
    UnknownSchemaError,
)
from ..tags.snapshot import UNREACHABLE
from .properties import Property
from .protocols import ScopeCache, Transaction
from .runs import Run
from .scope import NOTHING_PENDING, RequestScope

log = logging.getLogger('onegov_ormcache')

#: The number of scopes that a thread keeps between two requests.
KEPT_SCOPES = 64

#: Takes the place of a scope's hits while the host works for another tenant.
NO_HITS: dict[Any, Any] = {}


#: Takes the place of a session's pending objects if it is another session than before.
OTHER_SESSION: tuple[Collection[Any], ...] = ((None,), (), ())


class _Here:
    """What one thread has, or one task of an event loop: tasks take turns in one thread."""

    def __init__(self) -> None:
        self.scopes: dict[str, AmbientScope] = {}
        #: The function that was last called for this thread, see ``AmbientScopes.on_thread``.
        self.told: Any = None
        #: The scopes in which creators run, the innermost last.
        self.running: list[AmbientScope] = []
        #: The tenant that was entered last.
        self.entered: str | None = None


class _Heres(threading.local):
    """What one thread has, and each of the tasks that it runs."""

    def __init__(self) -> None:
        self.of_thread = _Here()
        self.of_tasks: WeakKeyDictionary[Any, _Here] = WeakKeyDictionary()

    def find(self) -> _Here:
        """Return what the present task has, or the thread if no task is running."""
        loop = asyncio._get_running_loop()
        task = None if loop is None else asyncio.current_task(loop)
        if task is None:
            return self.of_thread
        return self.of_tasks.setdefault(task, _Here())


class AmbientScopes:
    """The ambient scopes of one cache. Made by the cache and ended with it; used by all threads.

    :param cache: the cache whose values the scopes read.
    :param observer: tells of the host's transactions.
    :param session: returns the host's present session; by default the observer knows it.
    :param schema: returns the tenant that the host works for at present; by default the observer
        knows it, or it is the one that was entered last.
    :param shown: returns a mapping of the host that is shown the values of the request tier.
    """

    def __init__(
        self,
        cache: ScopeCache,
        observer: HostObserver,
        session: Callable[[], Session] | None = None,
        schema: Callable[[], str | None] | None = None,
        shown: Callable[[], MutableMapping[Any, Any]] | None = None,
    ) -> None:
        self.cache = cache
        self.observer = observer
        self._session = session or observer.session
        self._schema = schema or observer.present_schema
        self._shown = shown
        self._heres = _Heres()
        self.is_closed = False
        #: Called once in each thread that uses a scope, before it does.
        self.on_thread: Callable[[], object] | None = None
        if observer.attendant is not None:
            raise ConfigurationError(
                f'{observer!r} has a cache already; close that one, or observe once for each'
            )
        observer.attendant = self
        _ALL.add(self)

    def close(self) -> None:
        """Let all scopes refuse any further use."""
        self.is_closed = True
        self.observer.attendant = None
        current = current_scope.get()
        if isinstance(current, AmbientScope) and current._scopes is self:
            current_scope.set(None)

    def forget(self) -> None:
        """Forget the scopes of the parent; called in a forked child."""
        self._heres = _Heres()

    # scopes

    @property
    def _here(self) -> _Here:
        return self._heres.find()

    def scope(self, schema: str) -> AmbientScope:
        """Return this thread's scope of a tenant; make it if it is missing."""
        here = self._here
        if here.told is not self.on_thread:
            here.told = self.on_thread
            if self.on_thread is not None:
                self.on_thread()
        scopes = here.scopes
        found = scopes.get(schema)
        if found is None:
            self.cache.refuse_fork()
            if len(scopes) >= KEPT_SCOPES:
                self._drop_idle()
            found = scopes[schema] = AmbientScope(self, schema, self._shown)
        if not self.cache.is_reached and not found.is_store_lost:
            try:
                self.cache.reach_servers()
            except StoreUnreachable:
                # no reason for the host to fail: as if it were lost later, see `on_outage`
                log.warning('The tag store can not be reached yet', exc_info=True)
                found.store_lost()
        return found

    def present_schema(self) -> str | None:
        """Return the tenant that the host works for in this thread; None if there is none."""
        return self._schema() if self._schema is not None else self._here.entered

    def present(self) -> AmbientScope | None:
        """Return this thread's scope of the present tenant; None if there is none.

        It becomes the current scope, unless a scope of another cache is that.
        """
        schema = self.present_schema()
        if schema is None:
            return None
        scope = self.scope(self.observer.check_schema(schema))
        self.taint_others(scope)
        scope.follow_session()
        current = current_scope.get()
        if current is not scope and (current is None or isinstance(current, AmbientScope)):
            current_scope.set(scope)
        return scope

    def taint_others(self, scope: AmbientScope) -> None:
        """Taint the runs of this thread's other scopes, because they use this one."""
        for other in self._here.running:
            if other is not scope:
                other.taint_run(f'it used the scope of {scope.schema!r}')

    @contextmanager
    def running(self, scope: AmbientScope) -> Iterator[None]:
        """Note that a creator runs in a scope while the block runs."""
        running = self._here.running
        running.append(scope)
        try:
            yield
        finally:
            running.remove(scope)

    def enter(self, schema: str, session: Session | None = None) -> AmbientScope:
        """Work for a tenant from now on, in this thread.

        :param session: the host's session, if it has no registry of sessions.
        :raises InvalidSchemaError: if no tenant can have this name.
        :raises ConfigurationError: if nobody observes the session, or the host itself says that
            it works for another tenant.
        """
        self._here.entered = self.observer.check_schema(schema)
        scope = self.present()
        if scope is None or scope.schema != schema:
            raise ConfigurationError(
                f'enter_scope({schema!r}): the host works for {self.present_schema()!r}; switch '
                'its own schema first'
            )
        if session is not None:
            scope.entered_session = observed(session)
        return scope

    def begin_request(self) -> None:
        """Begin a request in this thread: forget all values of the one before."""
        self.unit_ended()
        for scope in self._here.scopes.values():
            scope.begin_request()
        self._drop_idle()

    def unit_ended(self) -> None:
        """End the snapshots of this thread, but for those of transactions that are open."""
        for scope in list(self._here.scopes.values()):
            scope.unit_ended()

    def _drop_idle(self) -> None:
        present = self._here.scopes.get(self.present_schema() or NOWHERE)
        for schema, scope in list(self._here.scopes.items()):
            if scope is not present and not scope.transactions and not scope.runs:
                del self._here.scopes[schema]

    # sessions

    def session(self, scope: AmbientScope) -> TenantSession:
        """Return the host's session of a scope.

        :raises ConfigurationError: if there is none, or nobody observes it.
        """
        if scope.entered_session is not None:
            return scope.entered_session
        if self._session is None:
            raise ConfigurationError(
                f'{scope.schema}: the session is not known, because the host has no '
                'scoped_session; give it: enter_scope(schema, session=...)'
            )
        self.check_present(scope)
        session: TenantSession = observed(self._session())
        return session

    def existing_session(self, scope: AmbientScope) -> ScopedSession | None:
        """Return the host's session of a scope, if there is one already."""
        if scope.entered_session is not None:
            return scope.entered_session
        registry = self.observer.registry
        if registry is None:
            # nobody but the host knows whether it has one
            is_known = self._session is not None and self.present_schema() == scope.schema
            return self.session(scope) if is_known else None
        if not registry.registry.has():
            return None
        session: ScopedSession = observed(registry())
        return session

    def check_present(self, scope: AmbientScope) -> None:
        """Raise an error if the host works for another tenant than a scope's.

        :raises ConfigurationError: then.
        """
        present = self.present_schema()
        if present != scope.schema:
            raise ConfigurationError(
                f'A value of {scope.schema!r} is read while the host works for {present!r}; '
                'switch back before'
            )

    @contextmanager
    def lend(self, run: Run, session: RunSession) -> Iterator[None]:
        """Let the host's registry have another session while the block runs."""
        assert self.observer.registry is not None
        place = _Place(self.observer.registry)
        before = place.get()
        place.put(session)
        try:
            yield
        finally:
            replaced = place.get()
            place.put(before)
            if replaced is not session:
                run.taint('it removed its session, or put another one in its place')
                run.session = None
                close_session(session)
                if replaced is not None and replaced is not before:
                    close_session(replaced)


class _Place:
    """The place of one session in a registry, wherever the registry would look later."""

    def __init__(self, registry: scoped_session[Any]) -> None:
        self._registry: Any = registry.registry
        is_local = isinstance(self._registry, ThreadLocalRegistry)
        self._key = None if is_local else self._registry.scopefunc()

    def get(self) -> Any:
        """Return the session; None if there is none."""
        if self._key is None:
            return getattr(self._registry.registry, 'value', None)
        return self._registry.registry.get(self._key)

    def put(self, session: Any) -> None:
        """Put a session there; None removes it."""
        values: Any = self._registry.registry
        if self._key is None:
            if session is None:
                del values.value
            else:
                values.value = session
        elif session is None:
            values.pop(self._key, None)
        else:
            values[self._key] = session


class AmbientScope(RequestScope):
    """The scope of one thread of a host, for one tenant. Made when it is first needed.

    :param scopes: those of its cache.
    :param shown: returns a mapping of the host that is shown the values.
    """

    def __init__(
        self,
        scopes: AmbientScopes,
        schema: str,
        shown: Callable[[], MutableMapping[Any, Any]] | None,
    ) -> None:
        self._scopes = scopes
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
        is_here = self._scopes._here.scopes.get(self.schema) is self
        is_present = is_here and self._scopes.present_schema() == self.schema
        return self._hits if is_present else NO_HITS

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
        session.readers.add(self)
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

    @property
    def is_store_lost(self) -> bool:
        """True until the end of a snapshot for which the tag store could not be reached."""
        return self._snapshot is UNREACHABLE

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
    def run(self, prop: Property) -> Iterator[Run]:
        with self._scopes.running(self), super().run(prop) as run:
            if prop.declaration.is_request_cached:
                yield run
            elif self._scopes.observer.registry is None or self.entered_session is not None:
                with self._in_place(run):
                    yield run
            else:
                with self._exchanged(run):
                    yield run
            session = run.session or self._scopes.existing_session(self)
            for connection in () if session is None else session.connections:
                if not self.observer.observes(connection, self.schema):
                    run.taint(f'it used {connection.engine!r}, which nobody observes')

    @contextmanager
    def _exchanged(self, run: Run) -> Iterator[None]:
        """Let the host's registry have the run's session while the block runs."""
        outermost, own = self._replaced is None, self._own_session()
        self._replaced = own
        try:
            run.session = self.observer.create_run_session(own)
            with self._scopes.lend(run, run.session):
                yield
        finally:
            if outermost:
                self._replaced = None

    @contextmanager
    def _in_place(self, run: Run) -> Iterator[None]:
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


#: The ambient scopes of all caches of this process, each of which is told of a fork.
_ALL: WeakSet[AmbientScopes] = WeakSet()


def scopes_of(instance: object) -> AmbientScopes | None:
    """Return the ambient scopes of the cache that an object's properties belong to.

    :return: None if there is no such cache, or if it has no host.
    """
    for scopes in list(_ALL):
        if not scopes.is_closed and scopes.cache.is_cache_of(instance):
            return scopes
    return None


def is_any_open() -> bool:
    """Return whether the process has a cache of a host."""
    return any(not scopes.is_closed for scopes in list(_ALL))


def _after_fork() -> None:
    for scopes in list(_ALL):
        scopes.forget()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
