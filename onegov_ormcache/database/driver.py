"""Watches what is done by psycopg itself, and not through SQLAlchemy.

SQLAlchemy's events do not see a cursor of the driver's own, a COPY, or a ``commit()`` of the
driver's connection. So the connections of an engine get cursors that report what nobody has
announced. The connections themselves refuse to end a transaction that SQLAlchemy does not end.

A host may set the search path before each statement, by a cursor of the driver. It may also
do so by a statement of SQLAlchemy's. A text that looks like SET or SHOW is reported apart from all
others, if the server says that it was one: these touch no table. This module knows the driver, and
nothing of what is done with the reports.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from sqlalchemy import Engine, event

from ..errors import TextualControlError
from ..forks import register
from .prepared import prepare_nothing_behind_poolers

#: The name of the driver, as SQLAlchemy has it.
DRIVER = 'psycopg'

#: The begin of a text that may be nothing but a SET or SHOW. The server says whether it was.
SETTING = re.compile(r'\s*(SET(?!\s+CONSTRAINTS\b)|RESET|SHOW)\b', re.IGNORECASE)

#: What the server calls the commands that touch no table.
SETTING_COMMANDS = {b'SET', b'RESET', b'SHOW'}

#: libpq's transaction statuses of a connection that is in no transaction, in one that has not
#: failed, and in one that has.
IDLE, IN_TRANSACTION, FAILED = 0, 2, 3

#: Whether a transaction has changed tables that others see.
CHANGED = b"""
SELECT EXISTS (
    SELECT FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.relation >= 16384
    AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
        'AccessExclusiveLock')
    AND (c.oid IS NULL OR c.relpersistence <> 't' AND c.relkind NOT IN ('i', 'S'))
)
"""

#: The methods of a dialect that execute a statement.
EXECUTING = ('do_execute', 'do_executemany', 'do_execute_no_params')


class Waiting:
    """How psycopg waits for an answer of the server.

    psycopg chooses that when it is imported. If gevent replaces ``select`` later, a statement
    would stop all greenlets, and two that wait for one row would wait for ever.
    """

    def after_fork(self) -> None:
        """Let psycopg choose again, if gevent has replaced ``select``."""
        gevent, waiting = sys.modules.get('gevent.monkey'), sys.modules.get('psycopg.waiting')
        if gevent and waiting and gevent.is_module_patched('select'):
            importlib.reload(waiting)


WAITING = Waiting()
register(WAITING)


def watch_driver(engine: Engine) -> None:
    """Make all connections of the engine report; does nothing for other drivers.

    Those that were opened before report when :func:`watch_connection` is called for them.
    """
    if engine.dialect.driver == DRIVER:
        event.listen(engine, 'connect', _connected)
        # not by the event `before_cursor_execute`: another listener of it may use the cursor
        for name in EXECUTING:
            setattr(engine.dialect, name, _announcing(getattr(engine.dialect, name)))


def watch_connection(connection: Any) -> None:
    """Make a connection of the driver report, if it does not yet."""
    if not getattr(connection, 'is_watched', False):
        # by whatever means it was made, maybe before the engine was watched
        if status_of(connection) != FAILED:
            prepare_nothing_behind_poolers(connection)
        cls: Any = type(connection)
        connection.__class__ = watched(cls)
        connection.cursor_factory = reporting(connection.cursor_factory)
        connection.server_cursor_factory = reporting(connection.server_cursor_factory)


def report_to(
    connection: Any, report: Callable[[], None] | None, setting: Callable[[str], None] | None
) -> None:
    """Report each statement that a cursor of the driver executes by itself.

    :param connection: the driver's connection.
    :param report: called before it is executed; None: call nothing.
    :param setting: called with the text of a SET or SHOW after it was executed, instead of
        ``report``; None: these are reported as all others.
    """
    connection.report = report
    connection.setting = setting if report is not None else None
    connection.has_committed = False


def has_committed(connection: Any) -> bool:
    """Return whether the text of a statement has committed, since the last :func:`report_to`."""
    return bool(getattr(connection, 'has_committed', False))


def follow_setting(connection: Any, sql: str) -> bool:
    """Let the next statement of SQLAlchemy's be followed as if the driver's own cursor executed
    it, if it looks like a SET or SHOW; return whether it does."""
    is_setting = _is_followed(connection, sql)
    if is_setting:
        connection.is_setting = True
    return is_setting


def _is_followed(connection: Any, sql: str) -> bool:
    return getattr(connection, 'setting', None) is not None and bool(SETTING.match(sql))


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


def status_of(connection: Any) -> int:
    """Return libpq's transaction status of a connection; takes no round trip."""
    return int(connection.pgconn.transaction_status)


def is_failed(connection: Any) -> bool:
    """Return whether the transaction has failed, so that its COMMIT would roll back."""
    return status_of(connection) == FAILED


class ReportingCursor:
    """A cursor that reports statements which were not announced; mixed into psycopg's."""

    connection: Any

    #: True from the announcement of a statement to its execution.
    announced = False
    #: True while a statement is executed that looks like SET or SHOW; None if the server says that
    #: it was something else.
    is_setting: bool | None = False
    #: True while one statement is executed many times, so that it can't commit and begin again.
    is_many = False

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        setting = None if self.announced else getattr(self.connection, 'setting', None)
        if setting is not None and not isinstance(query, (str, bytes)):
            query = query.as_string(self.connection)
        if setting is None or not (isinstance(query, str) and SETTING.match(query)):
            self._report()
            return super().execute(query, params, **options)  # type: ignore[misc]
        self.is_setting = True
        try:
            return super().execute(query, params, **options)  # type: ignore[misc]
        finally:
            is_setting, self.is_setting = self.is_setting, False
            if is_setting:
                setting(f'{query} {params!r}')
            else:
                self._report()

    def executemany(self, *arguments: Any, **options: Any) -> Any:
        self._report()
        self.is_many = True
        try:
            return super().executemany(*arguments, **options)  # type: ignore[misc]
        finally:
            self.is_many = False

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
        if self.is_many:
            super()._check_results(results)  # type: ignore[misc]
            return
        committed = any(result.command_status == b'COMMIT' for result in results)
        if committed and not getattr(self.connection, 'may_end', True):
            self.connection.has_committed = True
        if self.is_setting and not all(r.command_status in SETTING_COMMANDS for r in results):
            self.is_setting = None
        super()._check_results(results)  # type: ignore[misc]


@cache
def reporting(factory: type) -> type:
    """Return a class of cursors that report, derived from the given one."""
    return type(f'Reporting{factory.__name__}', (ReportingCursor, factory), {})


@cache
def watched(connection_class: Any) -> type:
    """Return a class of connections that only SQLAlchemy may commit, and that report.

    It derives from the given class alone, so that a connection of that class can become one of
    this.
    """

    class Watched(connection_class):  # type: ignore[misc]
        #: Tells these classes from others.
        is_watched = True
        #: Called before a statement that nobody has announced; None outside of a transaction.
        report: Any = None
        #: See :func:`report_to`.
        setting: Any = None
        #: True if the next statement of SQLAlchemy's is to be followed as those of the driver are.
        is_setting = False
        #: True while SQLAlchemy ends the transaction.
        may_end = False
        #: True if the text of a statement has committed.
        has_committed = False

        def commit(self) -> None:
            self._refuse('commit')
            self._refuse_unseen('commit')
            super().commit()

        def rollback(self) -> None:
            self._refuse('rollback')
            super().rollback()

        @contextmanager
        def transaction(self, *arguments: Any, **options: Any) -> Iterator[Any]:
            # its begin is a savepoint, and its end may roll back to that
            self._report()
            is_outermost = self.info.transaction_status == IDLE
            try:
                with super().transaction(*arguments, **options) as block:
                    yield block
                    if is_outermost:
                        self._refuse_unseen('transaction')
            finally:
                self._report()

        def _report(self) -> None:
            if self.report is not None:
                self.report()

        def _refuse(self, method: str) -> None:
            if self.report is not None and not self.may_end:
                raise TextualControlError(
                    f"{method}() of the driver's connection would end the transaction, and nobody "
                    f'would know; use {method}() of the session or of its connection'
                )

        def _refuse_unseen(self, method: str) -> None:
            """Refuse to commit changes of a transaction that SQLAlchemy has not begun."""
            if self.may_end or self.info.transaction_status != IN_TRANSACTION:
                return
            # not by a cursor, which may have the application's factories
            if self.pgconn.exec_(CHANGED).get_value(0, 0) == b't':
                raise TextualControlError(
                    f"{method}() of the driver's connection would commit changes of which nobody "
                    'was told; take the connection from the engine: engine.begin() or '
                    'engine.connect(), and not engine.raw_connection()'
                )

    return Watched


def _connected(connection: Any, record: object) -> None:
    watch_connection(connection)


def _announcing(execute: Callable[..., None]) -> Callable[..., None]:
    """Return a dialect's method that announces the statement which it executes."""

    @wraps(execute)
    def announced(cursor: Any, statement: str, *arguments: Any, **options: Any) -> None:
        if isinstance(cursor, ReportingCursor):  # else SQLAlchemy makes the connection ready
            connection: Any = cursor.connection
            # another listener may have changed the text, or executed something in between
            is_setting = connection.is_setting or _is_followed(connection, statement)
            connection.is_setting, cursor.announced = False, not is_setting
        execute(cursor, statement, *arguments, **options)

    return announced
