"""Tells a listener what happens in each database transaction, and how it ends.

The outcome is told per connection, because a session does not know it. If a session uses two
connections and the second COMMIT fails, the session reports a rollback, though the first
transaction is durable; and an interrupt after a COMMIT was sent, but before its answer has
arrived, looks like a rollback, too. So this module listens to the engine's events, and wraps
the methods of the engine's dialect that end a transaction. A transaction that the text of a
statement has ended is noticed directly after that statement.

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

from ..errors import AutocommitError
from ..steps import Step, about_to
from .executions import Executions, Watched
from .inherited import guard_connections
from .names import INTERNAL_OPTION, SCOPE_OPTION
from .protocols import Dialect, Listener, Scope, Statement

#: The innermost current scope. A connection without :data:`~.names.SCOPE_OPTION` belongs to
#: it, or to the nearest scope around it that has the session manager of the connection.
current_scope: ContextVar[Any] = ContextVar(SCOPE_OPTION, default=None)


#: A statement that SQLAlchemy did not see.
UNSEEN = Statement(unclear="a cursor of the driver's own executed it")


class ReplacedMethods(NamedTuple):
    """The original methods of a dialect, which a :class:`Watch` replaces by its own."""

    do_commit: Callable[..., None]
    do_rollback: Callable[..., None]
    do_prepare_twophase: Callable[..., None]
    do_begin_twophase: Callable[..., None]
    do_commit_twophase: Callable[..., None]
    do_rollback_twophase: Callable[..., None]


class Watch(Executions):
    """Listens to the transactions of one engine.

    Made by an observer for each engine; lives as long as the engine.

    :param dialect: asked about the engine's database.
    :param scope_of: returns the scope of a connection; None for one that nobody watches.
    """

    def __init__(
        self,
        engine: Engine,
        dialect: Dialect,
        scope_of: Callable[[Connection], Scope | None],
    ) -> None:
        self._scope_of = scope_of
        guard_connections(engine)
        super().__init__(engine, dialect)
        # `do_commit` gets the pool's object for this checkout, and not the Connection; the
        # key is weak, so that nothing is left for the next user of the driver's connection
        self._checkouts: WeakKeyDictionary[Any, ref[Connection]] = WeakKeyDictionary()
        # the ids of the driver's connections that may have a transaction which SQLAlchemy takes
        # for ended
        self._left_open: set[int] = set()
        event.listen(engine, 'connect', self._connected)
        event.listen(engine, 'begin', self._begin)
        event.listen(engine, 'rollback', self._rollback)
        event.listen(engine, 'rollback_twophase', self._rollback_twophase)
        event.listen(engine, 'reset', self._reset)
        # the dialect's methods are wrapped, because no event fires between the DBAPI's commit
        # and the sessions' `after_commit`, `begin_twophase` fires before the begin, and other
        # listeners for `commit` may still execute statements
        names = ReplacedMethods._fields
        self._original = ReplacedMethods(*(getattr(engine.dialect, name) for name in names))
        for name in names:
            setattr(engine.dialect, name, getattr(self, name))

    def _begin(self, connection: Connection) -> None:
        with _closing_on_error(connection):
            if scope := self._scope(connection):
                if self._listener(connection) or self._was_left_open(connection):
                    self._abandon(connection)
                listener = scope.transaction(connection)
                self._watch(connection, scope, listener)

    def do_begin_twophase(self, connection: Connection, xid: Any) -> None:
        """Begin a two-phase transaction and tell its listener; replaces the dialect's method."""
        with _closing_on_error(connection):
            scope = self._scope(connection)
            listener = scope.transaction(connection) if scope else None
            self._original.do_begin_twophase(connection, xid)
            if scope and listener:
                self._watch(connection, scope, listener)

    def _scope(self, connection: Connection) -> Scope | None:
        """Return the scope that a connection belongs to; None for one that nobody watches, such
        as the package's own.

        :raises AutocommitError: if the connection is in AUTOCOMMIT.
        """
        if connection.get_execution_options().get(INTERNAL_OPTION):
            return None
        scope = self._scope_of(connection)
        if scope is not None and self._dialect.autocommits(connection):
            raise AutocommitError(
                'A connection in AUTOCOMMIT can have no search path of its own, and its '
                'changes are seen before anybody can be told of them; remove the isolation '
                'level AUTOCOMMIT from the engine, connection or session'
            )
        return scope

    def _watch(self, connection: Connection, scope: Scope, listener: Listener) -> None:
        about_to(Step.VIEW)
        view, inquiry = self._dialect.begin(connection, scope)
        self._listeners.put(connection, Watched(scope, listener))
        self._checkouts[connection.connection] = ref(connection)
        listener.begun(connection, view, inquiry)
        if self._listener(connection) is None:
            # a question of the listener has failed, which SQLAlchemy took for a failed begin: it
            # has rolled back, also what listeners of the application have set before
            connection.dispatch.begin(connection)
            return
        # weak, because the pool keeps the driver's connection, which keeps these two
        transaction, connection_of = ref(listener), ref(connection)

        def report() -> None:
            self._listeners.at_execution(connection_of())
            if (present := transaction()) is not None:
                present.executing(UNSEEN)

        def report_setting(setting: str) -> None:
            if (present := transaction()) is not None:
                present.set_by(setting)

        self._dialect.report_to(
            connection.connection.dbapi_connection, report, report_setting
        )

    def _rollback(self, connection: Connection) -> None:
        # if a COMMIT was sent, `do_commit` has told its outcome and removed the listener
        is_lost = connection.invalidated or connection.closed
        has_ended = not is_lost and self._dialect.has_ended(
            connection.connection.dbapi_connection
        )
        if not is_lost:
            self._left_open.add(id(connection.connection.dbapi_connection))
        if listener := self._pop(connection):
            if has_ended:  # by a cursor of the driver's own
                listener.ended_unseen()
            else:
                listener.rolled_back()

    def _rollback_twophase(self, connection: Connection, xid: object, is_prepared: bool) -> None:
        # an invalidated connection sends no rollback, so `do_rollback_twophase` is not
        # called; as PREPARE may have been sent, the outcome is not known
        if connection.invalidated and (listener := self._pop(connection)):
            listener.lost()

    def _connected(self, dbapi_connection: Any, record: object) -> None:
        # it may have the id of one that is gone
        self._left_open.discard(id(dbapi_connection))

    def _was_left_open(self, connection: Connection) -> bool:
        """Return whether the last transaction may still be open: its COMMIT was refused, or a
        listener prevented its rollback."""
        return id(connection.connection.dbapi_connection) in self._left_open

    def _abandon(self, connection: Connection) -> None:
        """Roll back a transaction that was left open when a listener prevented its end.

        SQLAlchemy takes that transaction for ended, and so would not roll it back: the next
        transaction on the connection would commit it together with its own changes.
        """
        listener = self._pop(connection)
        if not connection.invalidated:
            checkout = connection.connection
            self._left_open.discard(id(checkout.dbapi_connection))
            try:
                if self._dialect.in_transaction(checkout.dbapi_connection):
                    self.do_rollback(checkout)
            except Exception as error:
                connection.invalidate(error)
        if listener:
            listener.rolled_back()

    def _reset(self, dbapi_connection: Any, record: object, state: object) -> None:
        """Roll back a transaction that was left open, when its connection returns to the pool.

        This is for COMMITs that an event listener of the application prevented; after an
        error of the package's own listener, `_abandon` was called at once.
        """
        self._dialect.report_to(dbapi_connection, None)
        # `keyrefs()` is a copy, so other threads may change the dictionary meanwhile; to
        # iterate over `items()` would not be safe
        for checkout in [reference() for reference in self._checkouts.keyrefs()]:
            if checkout is not None and checkout.dbapi_connection is dbapi_connection:
                connection = self._checkouts.pop(checkout)()
                listener = self._pop(connection)
                try:
                    if self._dialect.in_transaction(dbapi_connection):
                        self.do_rollback(dbapi_connection)
                finally:
                    if listener:
                        listener.rolled_back()

    def do_commit(self, checkout: Any) -> None:
        """Commit and tell the listener the outcome; replaces the dialect's method."""
        connection = self._checkouts.get(checkout, lambda: None)()
        if connection is not None and (listener := self._listener(connection)):
            try:
                listener.committing()
            except BaseException:
                self._abandon(connection)
                raise
        self._checkouts.pop(checkout, None)

        def commit() -> None:
            with self._dialect.ending(checkout.dbapi_connection):
                self._original.do_commit(checkout)

        try:
            self._tell(self._pop(connection), commit)
        except BaseException:
            self._left_open.add(id(checkout.dbapi_connection))
            raise

    def do_rollback(self, checkout: Any) -> None:
        """Roll back; replaces the dialect's method."""
        dbapi_connection = getattr(checkout, 'dbapi_connection', checkout)
        with self._dialect.ending(dbapi_connection):
            self._original.do_rollback(checkout)
        self._left_open.discard(id(dbapi_connection))

    def do_prepare_twophase(self, connection: Connection, xid: Any) -> None:
        """Prepare a two-phase transaction; replaces the dialect's method."""
        # if this raises, SQLAlchemy does roll back, so there is no `_abandon` as in `do_commit`
        if listener := self._listener(connection):
            listener.committing()
        self._preparing.add(connection)
        self._original.do_prepare_twophase(connection, xid)

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
        if not is_prepared and (listener := self._listener(connection)):
            try:
                listener.committing()
            except BaseException:
                self.do_rollback_twophase(connection, xid, is_prepared=False)
                raise
        try:
            self._tell(
                self._pop(connection),
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
        listener = self._pop(connection)
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
