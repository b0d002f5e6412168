"""Tells a listener what happens in each database transaction, and how it ends.

The outcome is told per connection, because a session does not know it. If a session uses two
connections and the second COMMIT fails, the session reports a rollback, though the first
transaction is durable; and an interrupt after a COMMIT was sent, but before its answer has
arrived, looks like a rollback, too. So this module listens to the engine's events, and wraps
the COMMIT of the engine's dialect.

It does not know what the listeners do: a :class:`Scope` makes a :class:`Listener` for each
transaction that begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExecutionContext

from ..errors import AutocommitError, OutsideScopeError
from ..steps import Step, about_to
from .names import INTERNAL_OPTION, SCOPE_OPTION
from .protocols import Dialect, Listener, Scope
from .statements import StatementAnalyzer

#: The innermost current scope. A connection without :data:`~.names.SCOPE_OPTION` belongs to
#: it, or to the nearest scope around it that has the session manager of the connection.
current_scope: ContextVar[Any] = ContextVar(SCOPE_OPTION, default=None)


class ReplacedMethods(NamedTuple):
    """The original methods of a dialect, which a :class:`Watch` replaces by its own."""

    do_commit: Callable[..., None]
    do_begin_twophase: Callable[..., None]
    do_commit_twophase: Callable[..., None]
    do_rollback_twophase: Callable[..., None]


class Watch:
    """Listens to the transactions of one engine.

    Made by a session manager, together with each engine; lives as long as the engine.

    :param dialect: asked about the engine's database.
    :param analyzer: analyzes the statements for the listeners.
    :param find_scope: returns the scope of connections that do not name one, or None.
    """

    def __init__(
        self,
        engine: Engine,
        dialect: Dialect,
        analyzer: StatementAnalyzer,
        find_scope: Callable[[], Scope | None],
    ) -> None:
        self._find_scope = find_scope
        self._dialect = dialect
        self._analyzer = analyzer
        self._listeners: WeakKeyDictionary[Connection, Listener] = WeakKeyDictionary()
        # `do_commit` gets the pool's object for this checkout, and not the Connection; the
        # key is weak, so that nothing is left for the next user of the driver's connection
        self._checkouts: WeakKeyDictionary[Any, ref[Connection]] = WeakKeyDictionary()
        event.listen(engine, 'begin', self._begin)
        event.listen(engine, 'before_cursor_execute', self._execute)
        event.listen(engine, 'rollback_savepoint', self._rollback_savepoint)
        event.listen(engine, 'rollback', self._rollback)
        event.listen(engine, 'commit', self._commit)
        event.listen(engine, 'prepare_twophase', self._prepare)
        event.listen(engine, 'rollback_twophase', self._rollback_twophase)
        event.listen(engine, 'reset', self._reset)
        # the dialect's methods are wrapped, because no event fires between the DBAPI's commit
        # and the sessions' `after_commit`, and `begin_twophase` fires before the begin
        names = ReplacedMethods._fields
        self._original = ReplacedMethods(*(getattr(engine.dialect, name) for name in names))
        for name in names:
            setattr(engine.dialect, name, getattr(self, name))

    def _begin(self, connection: Connection) -> None:
        with _closing_on_error(connection):
            if scope := self._scope(connection):
                self._abandon(connection)
                listener = scope.transaction()
                self._watch(connection, scope, listener)

    def do_begin_twophase(self, connection: Connection, xid: Any) -> None:
        """Begin a two-phase transaction and tell its listener; replaces the dialect's method."""
        with _closing_on_error(connection):
            scope = self._scope(connection)
            listener = scope.transaction() if scope else None
            self._original.do_begin_twophase(connection, xid)
            if scope and listener:
                self._watch(connection, scope, listener)

    def _scope(self, connection: Connection) -> Scope | None:
        """Return the scope that a connection belongs to; None for the package's own.

        :raises OutsideScopeError: if there is no scope.
        :raises AutocommitError: if the connection is in AUTOCOMMIT.
        """
        options = connection.get_execution_options()
        if options.get(INTERNAL_OPTION):
            return None
        scope: Scope | None = options.get(SCOPE_OPTION) or self._find_scope()
        if scope is None:
            raise OutsideScopeError(
                'A connection was used outside of a request scope, so it has no tenant; '
                'open a scope: with app.request_scope(schema): ...'
            )
        if self._dialect.autocommits(connection):
            raise AutocommitError(
                'A connection in AUTOCOMMIT can have no search path of its own, and its '
                'changes are seen before anybody can be told of them; remove the isolation '
                'level AUTOCOMMIT from the engine, connection or session'
            )
        return scope

    def _watch(self, connection: Connection, scope: Scope, listener: Listener) -> None:
        about_to(Step.VIEW)
        view = self._dialect.begin(connection, scope.schema)
        self._listeners[connection] = listener
        self._checkouts[connection.connection] = ref(connection)
        listener.begun(connection, view)

    def _execute(
        self,
        connection: Connection,
        cursor: object,
        statement: str,
        parameters: object,
        context: ExecutionContext | None,
        executemany: bool,
    ) -> None:
        listener = self._listeners.get(connection)
        if listener is None:
            return
        if context is not None and context.execution_options.get(INTERNAL_OPTION):
            return
        listener.executing(self._analyzer.analyze(statement, context))

    def _rollback_savepoint(self, connection: Connection, name: str, context: None) -> None:
        if listener := self._listeners.get(connection):
            listener.savepoint_lost()

    def _commit(self, connection: Connection) -> None:
        if listener := self._listeners.get(connection):
            try:
                listener.committing(lambda: self._transaction_id(connection, listener))
            except BaseException:
                self._abandon(connection)
                raise

    def _transaction_id(self, connection: Connection, listener: Listener) -> str | None:
        written = self._dialect.written(connection)
        if written.tables:
            listener.triggered(written.tables)
        return written.transaction_id

    def _prepare(self, connection: Connection, xid: object) -> None:
        # if this raises, SQLAlchemy does roll back, so there is no `_abandon` as in `_commit`
        if listener := self._listeners.get(connection):
            listener.committing(lambda: self._transaction_id(connection, listener))

    def _rollback(self, connection: Connection) -> None:
        # if a COMMIT was sent, `do_commit` has told its outcome and removed the listener
        if listener := self._listeners.pop(connection, None):
            listener.rolled_back()

    def _rollback_twophase(self, connection: Connection, xid: object, is_prepared: bool) -> None:
        # an invalidated connection sends no rollback, so `do_rollback_twophase` is not
        # called; as PREPARE may have been sent, the outcome is not known
        if connection.invalidated and (listener := self._listeners.pop(connection, None)):
            listener.lost()

    def _abandon(self, connection: Connection) -> None:
        """Roll back a transaction that was left open when an event listener prevented COMMIT.

        SQLAlchemy takes that transaction for ended, and so would not roll it back: the next
        transaction on the connection would commit it together with its own changes.
        """
        if not connection.invalidated:
            checkout = connection.connection
            try:
                if self._dialect.in_transaction(checkout.dbapi_connection):
                    checkout.rollback()
            except Exception as error:
                connection.invalidate(error)
        if listener := self._listeners.pop(connection, None):
            listener.rolled_back()

    def _reset(self, dbapi_connection: Any, record: object, state: object) -> None:
        """Roll back a transaction that was left open, when its connection returns to the pool.

        This is for COMMITs that an event listener of the application prevented; after an
        error of the package's own listener, `_abandon` was called at once.
        """
        # `keyrefs()` is a copy, so other threads may change the dictionary meanwhile; to
        # iterate over `items()` would not be safe
        for checkout in [reference() for reference in self._checkouts.keyrefs()]:
            if checkout is not None and checkout.dbapi_connection is dbapi_connection:
                connection = self._checkouts.pop(checkout)()
                listener = self._listeners.pop(connection, None) if connection else None
                try:
                    if self._dialect.in_transaction(dbapi_connection):
                        dbapi_connection.rollback()
                finally:
                    if listener:
                        listener.rolled_back()

    def do_commit(self, checkout: Any) -> None:
        """Commit and tell the listener the outcome; replaces the dialect's method."""
        connection = self._checkouts.pop(checkout, lambda: None)()
        listener = self._listeners.pop(connection, None) if connection else None
        self._tell(listener, lambda: self._original.do_commit(checkout))

    def do_commit_twophase(
        self, connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False
    ) -> None:
        """Commit a two-phase transaction and tell its listener the outcome.

        Replaces the dialect's method.
        """
        if recover:
            commit = self._original.do_commit_twophase
            self._recover(connection, lambda: commit(connection, xid, True, True))
            return
        if not is_prepared and (listener := self._listeners.get(connection)):
            try:
                listener.committing(lambda: self._transaction_id(connection, listener))
            except BaseException:
                self.do_rollback_twophase(connection, xid, is_prepared=False)
                raise
        try:
            self._tell(
                self._listeners.pop(connection, None),
                lambda: self._original.do_commit_twophase(connection, xid, is_prepared, False),
                # an error of COMMIT PREPARED proves nothing: if there is no such transaction
                # any more, somebody else has ended it, maybe by a commit
                may_be_refused=not is_prepared,
            )
        except BaseException as error:
            connection.invalidate(error)  # the driver can't leave the two-phase transaction
            raise

    def do_rollback_twophase(
        self, connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False
    ) -> None:
        """Roll back a two-phase transaction and tell its listener the outcome.

        Replaces the dialect's method.
        """
        if recover:
            roll_back = self._original.do_rollback_twophase
            self._recover(connection, lambda: roll_back(connection, xid, True, True))
            return
        listener = self._listeners.pop(connection, None)
        try:
            self._original.do_rollback_twophase(connection, xid, is_prepared, recover)
        except BaseException as error:
            connection.invalidate(error)
            if listener:
                listener.lost()  # a prepared transaction may still be committed
            raise
        if listener:
            listener.rolled_back()

    def _recover(self, connection: Connection, end: Callable[[], None]) -> None:
        """End a transaction that another connection has prepared.

        The driver first rolls back this connection's own transaction, and SQLAlchemy goes on
        without the event `begin`: so tell the listener, and begin again.

        :param end: commits or rolls back the prepared transaction.
        """
        self._rollback(connection)
        end()
        if connection.in_transaction():
            self._begin(connection)

    def _tell(
        self, listener: Listener | None, commit: Callable[[], None], may_be_refused: bool = True
    ) -> None:
        """Run a COMMIT and tell the listener its outcome.

        :param commit: runs the COMMIT.
        :param may_be_refused: False if no error of this COMMIT proves that nothing was
            committed.
        """
        try:
            if listener:
                about_to(Step.COMMIT)
            commit()
        except BaseException as error:
            if listener and may_be_refused and self._dialect.refused(error):
                listener.rolled_back()
            elif listener:
                listener.lost()
            raise
        if listener:
            listener.committed()


@contextmanager
def _closing_on_error(connection: Connection) -> Iterator[None]:
    """Close a connection whose begin failed: SQLAlchemy would use it without a new begin."""
    try:
        yield
    except BaseException:
        connection.close()
        raise
