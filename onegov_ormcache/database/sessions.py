"""The sessions of a scope: the tenant session, and run sessions that work in its transaction.

Tenant sessions are those that the application's factory makes, once it is observed. A run session
has objects of its own. It uses the connections of the tenant session, so it sees what that one has
flushed, and what it writes is committed or rolled back with the rest. This module does not know
what a scope does with what its sessions tell it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, PendingRollbackError, UnboundExecutionError
from sqlalchemy.orm import (
    ORMExecuteState,
    Session,
    SessionTransaction,
    UOWTransaction,
    sessionmaker,
)
from sqlalchemy.orm.attributes import instance_state

from ..errors import ConfigurationError, RunSessionError
from .loaded import Attached
from .names import SCOPE_OPTION
from .protocols import Scope
from .signals import Signals, related_tables, writes_one_table

#: Stands for tables of which it is only known that a statement changes some.
ANY_TABLE = '*'

#: Options of run sessions, which take precedence over the application's: a run session that is
#: closed refuses to be used, and never ends the transaction that it works in, nor begins one by
#: itself.
RUN_OPTIONS = {
    'autobegin': True,
    'twophase': False,
    'close_resets_only': False,
    'join_transaction_mode': 'rollback_only',
}


class SessionOwner(Scope, Protocol):
    """The part of a scope that its sessions use."""

    @property
    def run_sessions(self) -> Sequence[RunSession]:
        """The run sessions that are open, the innermost last."""

    def session_used(self) -> None:
        """Called when the tenant session is about to use its connection, or to look an object up.

        :raises ScopeClosedError: if the scope is closed.
        """

    def taint_run(self, reason: str) -> None:
        """Called when a run has got something that its statements do not show."""

    def changed_without_objects(self, tables: Collection[str]) -> None:
        """Called when a flush has changed these tables, and no object stands for the change."""

    def related(self, tables: Collection[str]) -> None:
        """Called when a flush has changed relationships between rows of these tables."""

    def last_flush_ended(self, session: ScopedSession) -> None:
        """Called when the tenant session has flushed what it is about to commit."""

    def session_emptied(self) -> None:
        """Called when the tenant session has removed all objects, and replaced their
        collections."""

    def session_ended(self) -> None:
        """Called when the tenant session's transaction was committed, rolled back or closed."""


#: The session that flushes in this thread; None if none does.
flushing: ContextVar[ScopedSession | None] = ContextVar('flushing', default=None)


class ScopedSession(Session):
    """A session that belongs to a scope; the base class of both kinds."""

    #: Those who observe it; set on a class of its own for each factory.
    sessions: Sessions

    #: Tables that statements of the present flush have changed; None outside of a flush.
    flushed_tables: set[str] | None = None

    #: Scopes of a host that have read values with it, whichever its transaction works for.
    readers: Collection[Any] = ()

    #: The connections of its transaction, and maybe of those before.
    connections: Collection[Connection] = ()

    #: True if the present flush is that of a commit, and its first statement tells all changes.
    tells_all = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        #: The engines of single mapped classes and tables that it was made with.
        self.given_binds = options.get('binds')
        #: Its objects that have values of elsewhere.
        self.attached_states = Attached()

    def flushed_on(self, connection: Connection | None) -> set[str] | None:
        """Return the tables that the present flush has changed, if it uses this connection."""
        return self.flushed_tables if connection in self.connections else None

    def flush(self, objects: Any = None) -> None:
        is_outermost = self.flushed_tables is None
        token = flushing.set(self)
        try:
            super().flush(objects)
        finally:
            flushing.reset(token)
            # if a `before_flush` listener of the application raises, or leaves nothing to
            # flush, SQLAlchemy calls neither `after_flush` nor `after_soft_rollback`
            if is_outermost and self.flushed_tables is not None:
                written, self.flushed_tables = self.flushed_tables, None
                owner_of(self).changed_without_objects(written)

    def _bulk_save_mappings(self, *arguments: Any, **options: Any) -> Any:
        # the unit of work's statements look the same, but these have no objects
        if self.flushed_tables is not None:
            owner_of(self).changed_without_objects({ANY_TABLE})
        return super()._bulk_save_mappings(*arguments, **options)

    def _merge(self, *arguments: Any, **options: Any) -> Any:
        merged = super()._merge(*arguments, **options)
        # without loading, it overwrites what the session has loaded, and there is no event
        if not options.get('load', True):
            self.attached_states.add(instance_state(merged))
        return merged


class TenantSession(ScopedSession):
    """The session of a scope.

    It tells the scope of what SQLAlchemy sends no event for. A rollback or close before the
    session's first statement ends no transaction, so there is no event. The scope must be told
    nevertheless, because what it has read so far must not be used any longer. There is no event
    for ``expunge_all()`` either.
    """

    #: True from the begin of a commit to the end of its flush.
    is_committing = False
    #: The error of a run session's flush, which has rolled back this session's transaction, too.
    failure: BaseException | None = None

    def own_connection(self, default: Engine | None = None) -> Connection:
        """Return the connection for questions of the package; begin a transaction if there is
        none.

        :param default: the engine, if the session chooses one by what it executes.
        """
        self.refuse_after_failure()
        bind = self.bind
        if bind is None:
            try:
                bind = super().get_bind()
            except UnboundExecutionError:
                bind = default
        return self.connection(bind_arguments={'bind': bind})

    def get_bind(self, mapper: Any = None, **arguments: Any) -> Any:
        # called before each use of the connection: queries, lazy loads and flushes
        self.refuse_after_failure()
        owner_of(self).session_used()
        return super().get_bind(mapper, **arguments)

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        # an object that is in memory needs no connection
        owner_of(self).session_used()
        return super().get(entity, ident, **options)

    def refuse_after_failure(self) -> None:
        """Raise ``PendingRollbackError`` until :meth:`rollback`, if the flush of a run session has
        failed, as if it had been a flush of this session."""
        if self.failure is not None:
            raise PendingRollbackError(
                "This Session's transaction has been rolled back due to an exception during the "
                "flush of a creator's session. To begin a new transaction with this Session, "
                f'first issue Session.rollback(). Original exception was: {self.failure}',
                code='7s2a',
            )

    def commit(self) -> None:
        self.refuse_after_failure()
        super().commit()

    def rollback(self) -> None:
        self.failure = None
        has_begun = self.in_transaction()
        super().rollback()
        if not has_begun:
            self.tell_end()

    def expunge_all(self) -> None:
        super().expunge_all()
        owner_of(self).session_emptied()

    def close(self) -> None:
        self.failure = None
        has_begun = self.in_transaction()
        super().close()
        if not has_begun:
            self.tell_end()

    def tell_end(self) -> None:
        """Tell the scopes that the transaction has ended, also one that had not begun."""
        for scope in {owner_of(self), *self.readers}:
            scope.session_ended()

    def follow_rollback(self, failure: BaseException | None) -> None:
        """Roll back the objects of this session, after a run session has rolled back the
        transaction of their connection.

        :param failure: the error of the run session's flush, if that is why.
        """
        self.failure = failure
        if self.flushed_tables is not None:
            return  # the flush in progress fails by `failure`, and SQLAlchemy rolls it back
        transaction = self.get_nested_transaction() or self.get_transaction()
        if transaction is None:
            return
        if transaction.nested:
            self.failure = None  # only the savepoint is lost
        # as in `SessionTransaction.rollback()`, which would warn about a connection that is
        # rolled back already
        transaction._restore_snapshot(dirty_only=transaction.nested)
        transaction.close()


class RunSession(ScopedSession):
    """A session that works in the transaction of a tenant session, with objects of its own.

    Made by a scope for one run of a creator, and closed for good at the end of the run.
    ``commit()`` and ``rollback()`` are those of the tenant session.
    """

    tenant_session: TenantSession
    _is_rolling_back = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # by engine, the connections of the tenant session that this one uses
        self._joined: dict[Any, Connection] = {}

    def get_bind(self, mapper: Any = None, **arguments: Any) -> Any:
        bind = super().get_bind(mapper, **arguments)
        if bind not in self._joined:
            self._join(bind)
        return bind

    def _join(self, bind: Any) -> None:
        """Use the tenant session's connection, as SQLAlchemy is about to use an engine.

        The session is not bound to the connection, because then ``get_bind()`` would return
        it, and not the engine that applications expect.
        """
        self.tenant_session.refuse_after_failure()
        connection = self.tenant_session.connection(bind_arguments={'bind': bind})
        super().connection(bind_arguments={'bind': connection})
        self._joined[bind] = connection
        scope = owner_of(self)
        if not self.sessions.observes(connection, scope.schema):
            scope.taint_run(f'it used {connection.engine!r}, which nobody observes')

    def connection(self, bind_arguments: Any = None, execution_options: Any = None) -> Connection:
        if execution_options:
            raise RunSessionError(
                f"connection(execution_options={dict(execution_options)!r}) in a creator would "
                "change the connection of its request, which the creator's session shares: give "
                'the options to the statement'
            )
        return super().connection(bind_arguments=bind_arguments)

    def commit(self) -> None:
        self.tenant_session.commit()

    def rollback(self) -> None:
        self.tenant_session.rollback()
        self.leave()

    def leave(self) -> None:
        """Leave the tenant session's transaction, which has ended; load all objects anew when
        they are next used."""
        if self._is_rolling_back:
            return
        while transaction := self.get_nested_transaction() or self.get_transaction():
            transaction.close()
        for obj in self.new:
            self.expunge(obj)
        self.expire_all()

    def transaction_left(self) -> None:
        """Forget the tenant session's connections, because the transaction has ended."""
        self._joined.clear()

    def rolled_back(self) -> None:
        """Tell the tenant session that a flush or a ``with`` block has rolled back."""
        tenant_session, connections = self.tenant_session, self._joined.values()
        if self.in_nested_transaction() or not connections:
            return
        if not tenant_session.in_nested_transaction() and all(
            connection.in_transaction() for connection in connections
        ):
            return  # a savepoint of an outer run, whose end that run notices
        failure = sys.exception() if self.flushed_tables is not None else None
        self._is_rolling_back = True
        try:
            tenant_session.follow_rollback(failure)
        finally:
            self._is_rolling_back = False


class Sessions:
    """Observes the sessions of one factory, and makes their run sessions.

    Made by an observer for each factory; lives as long.

    :param factory: makes observed sessions from now on.
    :param signals: the signals to send for the objects that a flush has changed.
    :param is_muted: tells whether this thread sends no signals now.
    :param find_owner: returns the scope of a session that was made for none.
    :param scope_of: returns the scope of a host's connection; None if each session is made for one
        scope.
    :param observes: tells whether the changes of a connection are those of a tenant, and seen.
    :raises ConfigurationError: if the factory is observed already.
    """

    def __init__(
        self,
        factory: sessionmaker[Any],
        signals: Signals,
        is_muted: Callable[[], bool],
        find_owner: Callable[[], SessionOwner],
        scope_of: Callable[[Connection], Any] | None,
        observes: Callable[[Connection, str], bool],
    ) -> None:
        if is_observed(factory):
            raise ConfigurationError(f'{factory!r} is observed already; observe it once')
        self._signals = signals
        self._is_muted = is_muted
        self.find_owner = find_owner
        self._scope_of = scope_of
        self.observes = observes
        own = {'sessions': self, '__module__': __name__}
        # run sessions are without what listens to the factory, which has a class of its own
        run_class = type('RunSession', (RunSession, factory.class_.__mro__[1]), own)
        self._make_run: sessionmaker[RunSession] = sessionmaker(
            **_run_options(factory.kw), class_=run_class
        )
        factory.class_ = type('TenantSession', (TenantSession, factory.class_), own)
        self._make = factory
        for make in self._make, self._make_run:
            event.listen(make, 'after_begin', _after_begin)
            event.listen(make, 'before_flush', _before_flush)
            event.listen(make, 'after_flush', self._after_flush)
            event.listen(make, 'do_orm_execute', _on_execute)
            event.listen(make, 'after_soft_rollback', _after_soft_rollback)
            event.listen(make, 'detached_to_persistent', _attached)
        if scope_of is not None:
            event.listen(self._make, 'after_begin', self._after_begin)
        event.listen(self._make, 'before_commit', _before_commit)
        event.listen(self._make, 'after_transaction_end', _after_transaction_end)
        event.listen(self._make_run, 'after_transaction_end', _after_run_transaction_end)
        event.listen(self._make_run, 'after_rollback', RunSession.rolled_back)

    def make(self, scope: SessionOwner, engine: Engine) -> TenantSession:
        """Return a new session of a scope; the caller closes it."""
        session: TenantSession = self._make(bind=engine, info={SCOPE_OPTION: scope})
        return session

    def make_run(self, tenant_session: TenantSession) -> RunSession:
        """Return a new session in the transaction of a tenant session; the caller closes it."""
        # what the application's own listeners, and its own get_bind(), may look at
        info = {**tenant_session.info, SCOPE_OPTION: owner_of(tenant_session)}
        binds = tenant_session.given_binds
        session = self._make_run(bind=tenant_session.bind, binds=binds, info=info)
        session.tenant_session = tenant_session
        return session

    def disown(self, session: TenantSession) -> None:
        """Forget the scope of a host's session, whose next transaction may be another tenant's."""
        if self._scope_of is not None:
            session.info.pop(SCOPE_OPTION, None)

    def _after_begin(
        self, session: TenantSession, transaction: object, connection: Connection
    ) -> None:
        assert self._scope_of is not None
        # a connection of an engine that nobody observes works for none
        if (scope := self._scope_of(connection)) is not None:
            session.info[SCOPE_OPTION] = scope

    def _after_flush(self, session: ScopedSession, context: UOWTransaction) -> None:
        scope = owner_of(session)
        written, session.flushed_tables = session.flushed_tables or set(), None
        if self._is_muted():
            with_objects: frozenset[str] = frozenset()
        else:
            with_objects = self._signals.send_flush(scope.schema, session, context.states)
        scope.related(related_tables(context.states))
        scope.changed_without_objects(written - with_objects)
        if isinstance(session, TenantSession) and session.is_committing:
            session.is_committing = session.tells_all = False
            scope.last_flush_ended(session)


def owner_of(session: ScopedSession) -> SessionOwner:
    """Return the scope that a session was made for, or works for at present."""
    owner: SessionOwner | None = session.info.get(SCOPE_OPTION)
    return session.sessions.find_owner() if owner is None else owner


def observed(session: Session) -> Any:
    """Return a session that is observed.

    :raises ConfigurationError: if nobody observes it.
    """
    if not isinstance(session, ScopedSession):
        raise ConfigurationError(
            f'{session!r} was made by a factory that nobody observes, or before it was observed, '
            'so its changes would go unnoticed: observe(sessions=...) the factory when it is made'
        )
    return session


def is_observed(factory: sessionmaker[Any]) -> bool:
    """Return whether the sessions of a factory are observed already."""
    return issubclass(factory.class_, TenantSession)


def close_session(session: Session) -> None:
    """Close a session; if its connection is lost, invalidate it."""
    try:
        session.close()
    except DBAPIError:
        session.invalidate()


def _run_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of run sessions."""
    run_options = {**options, **RUN_OPTIONS}
    if execution_options := dict(options.get('execution_options') or {}):
        # it can't be set within a transaction, and the shared connection has it already
        execution_options.pop('isolation_level', None)
        run_options['execution_options'] = execution_options
    return run_options


# listeners


def _after_begin(session: ScopedSession, transaction: object, connection: Connection) -> None:
    session.connections = WeakSet((connection, *session.connections))


def _before_flush(session: ScopedSession, context: object, instances: object) -> None:
    session.flushed_tables = set()
    if isinstance(session, TenantSession):
        session.tells_all = session.is_committing and writes_one_table(session)


def _on_execute(execution: ORMExecuteState) -> None:
    session: Any = execution.session
    if session.flushed_tables is not None and not execution.is_select:
        # an event listener executes it in the flush; no object stands for its changes
        owner_of(session).changed_without_objects({ANY_TABLE})


def _after_soft_rollback(session: ScopedSession, transaction: object) -> None:
    # SQLAlchemy does not send `after_flush` after a flush that failed
    session.flushed_tables = None
    session.tells_all = False


def _before_commit(session: TenantSession) -> None:
    for run_session in _run_sessions_of(session):
        run_session.flush()
    session.is_committing = not session.in_nested_transaction()


def _after_transaction_end(session: TenantSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.is_committing = False
        session.attached_states.transaction_ended(session)
        for run_session in _run_sessions_of(session):
            run_session.leave()
        session.tell_end()
        session.sessions.disown(session)


def _run_sessions_of(session: TenantSession) -> list[RunSession]:
    """Return the run sessions that work in a session's transaction, and not in that of another
    session which a host has for the same tenant."""
    return [each for each in owner_of(session).run_sessions if each.tenant_session is session]


def _after_run_transaction_end(session: RunSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.attached_states.transaction_ended(session)
        session.transaction_left()


def _attached(session: ScopedSession, instance: object) -> None:
    session.attached_states.add(instance_state(instance))
    if isinstance(session, RunSession):
        owner_of(session).taint_run(
            f'it added an object to its session that it had not loaded: {type(instance).__name__}'
        )
