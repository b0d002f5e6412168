"""Watches what is done by psycopg itself, and not through SQLAlchemy.

SQLAlchemy's events do not see a cursor of the driver's own, a COPY, or a ``commit()`` of the
driver's connection. So the connections of an engine get cursors that report what nobody has
announced. The connections themselves refuse to end a transaction that SQLAlchemy does not end.
This module knows the driver, and nothing of what is done with the reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import Engine, event

from ..errors import TextualControlError

#: The name of the driver, as SQLAlchemy has it.
DRIVER = 'psycopg'


def watch_driver(engine: Engine) -> None:
    """Make all connections of the engine report; does nothing for other drivers."""
    if engine.dialect.driver == DRIVER:
        event.listen(engine, 'do_connect', _connect)
        event.listen(engine, 'connect', _connected)
        event.listen(engine, 'before_cursor_execute', _announce)


def report_to(connection: Any, report: Any) -> None:
    """Call ``report`` before each statement that a cursor of the driver executes by itself.

    :param connection: the driver's connection.
    :param report: a function without arguments; None: call nothing.
    """
    connection.report = report
    connection.has_committed = False


def has_committed(connection: Any) -> bool:
    """Return whether the text of a statement has committed, since the last :func:`report_to`."""
    return bool(getattr(connection, 'has_committed', False))


@contextmanager
def ending(connection: Any) -> Iterator[None]:
    """Let the driver's connection end its transaction while the block runs."""
    connection.may_end = True
    try:
        yield
    finally:
        connection.may_end = False


def glance(connection: Any, question: str) -> Any:
    """Return the only row that a question of the package gives, without SQLAlchemy, whose own work
    takes several times as long as the question.

    :param connection: the driver's connection.
    :raises Exception: whatever the driver raises, and for connections without reporting cursors.
    """
    with connection.cursor() as cursor:
        cursor.announced = True
        return cursor.execute(question).fetchone()


class ReportingCursor:
    """A cursor that reports statements which were not announced; mixed into psycopg's."""

    connection: Any

    #: True between SQLAlchemy's event and the execution of the announced statement.
    announced = False

    def execute(self, *arguments: Any, **options: Any) -> Any:
        self._report()
        return super().execute(*arguments, **options)  # type: ignore[misc]

    def executemany(self, *arguments: Any, **options: Any) -> Any:
        self._report()
        return super().executemany(*arguments, **options)  # type: ignore[misc]

    def stream(self, *arguments: Any, **options: Any) -> Any:
        self._report()
        return super().stream(*arguments, **options)  # type: ignore[misc]

    def copy(self, *arguments: Any, **options: Any) -> Any:
        self._report()
        return super().copy(*arguments, **options)  # type: ignore[misc]

    def _report(self) -> None:
        if self.announced:
            self.announced = False
        elif (report := getattr(self.connection, 'report', None)) is not None:
            report()

    def _check_results(self, results: Any) -> None:
        # psycopg calls this with the results of all statements of a text, before it raises the
        # error of the last one
        committed = any(result.command_status == b'COMMIT' for result in results)
        if committed and not getattr(self.connection, 'may_end', True):
            self.connection.has_committed = True
        super()._check_results(results)  # type: ignore[misc]


class WatchedConnection:
    """A connection that only SQLAlchemy may commit; mixed into psycopg's."""

    #: Called before a statement that nobody has announced; None outside of a transaction.
    report: Any = None
    #: True while SQLAlchemy ends the transaction.
    may_end = False
    #: True if the text of a statement has committed.
    has_committed = False

    def commit(self) -> None:
        self._refuse('commit')
        super().commit()  # type: ignore[misc]

    def rollback(self) -> None:
        if self.report is not None:
            self._refuse('rollback')
        super().rollback()  # type: ignore[misc]

    @contextmanager
    def transaction(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        # its begin is a savepoint, and its end may roll back to that
        self._report()
        try:
            with super().transaction(*arguments, **options) as block:  # type: ignore[misc]
                yield block
        finally:
            self._report()

    def _report(self) -> None:
        if self.report is not None:
            self.report()

    def _refuse(self, method: str) -> None:
        if not self.may_end:
            raise TextualControlError(
                f"{method}() of the driver's connection would end the transaction, and nobody "
                f'would know; use {method}() of the session or of its connection'
            )


@cache
def reporting(factory: type) -> type:
    """Return a class of cursors that report, derived from the given one."""
    return type(f'Reporting{factory.__name__}', (ReportingCursor, factory), {})


@cache
def watched(connection_class: type) -> type:
    """Return a class of connections that report, derived from the given one."""
    return type(f'Watched{connection_class.__name__}', (WatchedConnection, connection_class), {})


def _connect(dialect: Any, record: object, arguments: Any, options: Any) -> Any:
    return watched(dialect.loaded_dbapi.Connection).connect(  # type: ignore[attr-defined]
        *arguments, **options
    )


def _connected(connection: Any, record: object) -> None:
    connection.cursor_factory = reporting(connection.cursor_factory)
    connection.server_cursor_factory = reporting(connection.server_cursor_factory)


def _announce(
    connection: object,
    cursor: Any,
    statement: object,
    parameters: object,
    context: object,
    executemany: object,
) -> None:
    cursor.announced = True
