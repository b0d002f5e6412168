"""Tells the listener of a transaction which statements are executed in it.

It notices a statement whose text has ended the transaction. It does not know how a transaction
begins and ends otherwise: :mod:`.transactions` does.
"""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext, ExecutionContext
from sqlalchemy.sql.elements import RollbackToSavepointClause

from ..errors import InheritedTransactionError, TextualControlError
from .names import INTERNAL_OPTION
from .protocols import Dialect, Listener, Scope


class Watched:
    """A transaction that is watched."""

    __slots__ = 'is_understood', 'listener', 'process', 'scope'

    def __init__(self, scope: Scope, listener: Listener) -> None:
        self.scope = scope
        self.listener = listener
        #: True if the statement that is being executed is understood: it has no effect on the
        #: transaction as a whole.
        self.is_understood = False
        #: The process that has begun it.
        self.process = os.getpid()


class WatchedTransactions:
    """The transactions of one engine's connections that are watched, by connection.

    Made with a :class:`~.transactions.Watch`. Each connection itself keeps its transaction. In a
    weak dictionary, a transaction would keep its connection alive, because it refers to the
    scope, and the scope to the connection; a scope that nobody closes would never give its
    connection back.
    """

    def __init__(self) -> None:
        # the name differs from that of another watch, whose engine has the same pool
        self._name = f'_onegov_ormcache_watched_{id(self)}'
        self._connections: WeakSet[Connection] = WeakSet()

    def get(self, connection: Connection | None) -> Watched | None:
        """Return the transaction of a connection; None if none is watched.

        A transaction that a child has inherited is not watched there: the child does not know how
        it ends.
        """
        found: Watched | None = getattr(connection, self._name, None)
        return None if found is None or found.process != os.getpid() else found

    def at_execution(self, connection: Connection | None) -> Watched | None:
        """Return the transaction in which a statement is about to be executed.

        :raises InheritedTransactionError: if the parent of this process has begun it.
        """
        found: Watched | None = getattr(connection, self._name, None)
        if found is not None and found.process != os.getpid():
            raise InheritedTransactionError(
                'The transaction was begun by another process, of which this one is a fork; '
                'begin one here, with a connection or scope of its own'
            )
        return found

    def put(self, connection: Connection, watched: Watched) -> None:
        """Watch the transaction of a connection."""
        setattr(connection, self._name, watched)
        self._connections.add(connection)

    def pop(self, connection: Connection | None) -> Watched | None:
        """Return the transaction of a connection, and do not watch it any longer."""
        found = self.get(connection)
        if connection is not None and hasattr(connection, self._name):
            delattr(connection, self._name)
            self._connections.discard(connection)
        return found

    def __len__(self) -> int:
        return len(self._connections)


class Executions:
    """Listens to the statements of one engine; the base class of :class:`~.transactions.Watch`.

    :param dialect: asked about the engine's database.
    """

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self._dialect = dialect
        self._listeners = WatchedTransactions()
        # those whose PREPARE is being executed; if it fails, that ends the transaction
        self._preparing: WeakSet[Connection] = WeakSet()
        event.listen(engine, 'before_cursor_execute', self._executing)
        event.listen(engine, 'after_cursor_execute', self._executed)
        event.listen(engine, 'handle_error', self._failed)
        event.listen(engine, 'rollback_savepoint', self._rollback_savepoint)

    def _listener(self, connection: Connection | None) -> Listener | None:
        found = self._listeners.get(connection)
        return found.listener if found is not None else None

    def _pop(self, connection: Connection | None) -> Listener | None:
        """Return the listener of a transaction that ends, and remove it."""
        found = self._listeners.pop(connection)
        if found is None or connection is None:
            return None
        self._preparing.discard(connection)
        if not connection.invalidated and not connection.closed:
            self._dialect.report_to(connection.connection.dbapi_connection, None)
        return found.listener

    # statements

    def _executing(
        self,
        connection: Connection,
        cursor: object,
        sql: str,
        parameters: object,
        context: ExecutionContext | None,
        executemany: bool,
    ) -> None:
        found = self._listeners.at_execution(connection)
        # SQLAlchemy 2.0 prepares by a text
        if found is None or _is_internal(context) or connection in self._preparing:
            return
        found.is_understood = False
        if statement := self._dialect.executing(connection, found.scope, sql, context):
            found.listener.executing(statement)
            found.is_understood = statement.unclear is None

    def _executed(
        self,
        connection: Connection,
        cursor: Any,
        sql: str,
        parameters: object,
        context: ExecutionContext | None,
        executemany: bool,
    ) -> None:
        found = self._listeners.get(connection)
        if found is None or _is_internal(context) or connection in self._preparing:
            return
        listener = found.listener
        if found.is_understood:
            # not for long: a listener may have executed it while it executes another one
            found.is_understood = False
            listener.executed(_changed_rows(context, cursor))
            return
        dbapi_connection = connection.connection.dbapi_connection
        if statement := self._dialect.executed(connection, context):
            listener.executing(statement)
        rows = _changed_rows(context, cursor)
        listener.executed(rows if rows or self._dialect.counts_all else None)
        if self._dialect.lost_savepoint(dbapi_connection) and not _is_savepoint(context):
            listener.savepoint_lost()
        if self._dialect.has_ended(dbapi_connection):
            self._ended_unseen(connection)

    def _failed(self, context: ExceptionContext) -> None:
        """Notice the end of a transaction by a statement that has failed."""
        connection = context.connection
        found = self._listeners.get(connection)
        if connection is None or found is None or connection.invalidated:
            return
        listener, found.is_understood = found.listener, False
        if context.is_disconnect or connection in self._preparing:
            return
        if _is_internal(context.execution_context):
            return
        # a statement that fails may have changed something before
        if statement := self._dialect.executed(connection, context.execution_context):
            listener.executing(statement)
        if self._dialect.has_ended(connection.connection.dbapi_connection):
            self._ended_unseen(connection)

    def _ended_unseen(self, connection: Connection) -> None:
        """Tell the listener that its transaction is no more, and make the connection useless.

        :raises TextualControlError: always.
        """
        listener = self._pop(connection)
        error = TextualControlError(
            'A statement has ended the transaction by its text, and it is not known whether '
            'that was committed: use commit() or rollback() of the session or connection'
        )
        # SQLAlchemy takes the transaction for open: what follows must not be committed by it
        connection.invalidate(error)
        if listener:
            listener.ended_unseen()
        raise error

    def _rollback_savepoint(self, connection: Connection, name: str, context: None) -> None:
        if listener := self._listener(connection):
            listener.savepoint_lost()


def _changed_rows(context: Any, cursor: Any) -> int | None:
    """Return the number of rows that a statement has changed; None if that is not known."""
    if context is None or not (context.isinsert or context.isupdate or context.isdelete):
        return None
    rows = int(cursor.rowcount)
    # a statement within it may have changed rows that the driver does not count
    has_others = rows == 0 and bool(context.compiled.ctes)
    return None if rows < 0 or has_others else rows


def _is_internal(context: ExecutionContext | None) -> bool:
    return context is not None and bool(context.execution_options.get(INTERNAL_OPTION))


def _is_savepoint(context: ExecutionContext | None) -> bool:
    """Return whether SQLAlchemy itself rolls back to a savepoint, which has an event."""
    statement = getattr(getattr(context, 'compiled', None), 'statement', None)
    return isinstance(statement, RollbackToSavepointClause)
