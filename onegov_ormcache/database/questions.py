"""Questions of the package to the database, within a transaction of the application.

A question that fails must not fail the transaction, so it is asked in a savepoint. This module
does not know what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError, OperationalError

from .names import INTERNAL, ORACLE_SAVEPOINT


@contextmanager
def question(connection: Connection, mark: str = '') -> Iterator[None]:
    """Ask a question in the block; if it fails, its error leaves the transaction alone.

    :param mark: a comment of SQL, by which the question is known in the server's log.
    :raises DBAPIError: if the question fails, or if the transaction has failed before.
    """

    # as a text: `begin_nested()` needs a transaction whose begin SQLAlchemy has completed, but
    # questions are also asked while a transaction begins
    def execute(command: str) -> None:
        statement = f'{mark}{command} {ORACLE_SAVEPOINT}'
        connection.exec_driver_sql(statement, execution_options=INTERNAL)

    execute('SAVEPOINT')
    try:
        yield
    except DBAPIError as error:
        # while a transaction begins, SQLAlchemy takes the error for a failed begin, and has
        # rolled back
        if connection.in_transaction() and not error.connection_invalidated:
            execute('ROLLBACK TO SAVEPOINT')
            execute('RELEASE SAVEPOINT')
        raise
    execute('RELEASE SAVEPOINT')


@contextmanager
def raising(dialect: Dialect, connection: Connection | None = None) -> Iterator[None]:
    """Raise the errors of the driver, which SQLAlchemy does not see, as SQLAlchemy does.

    :param connection: the connection that the driver uses in the block; an error says that it is
        lost. None if it belongs to no engine.
    :raises OperationalError: instead of an error of the driver.
    """
    try:
        yield
    except dialect.loaded_dbapi.Error as error:
        if connection is not None:
            connection.invalidate(error)
        is_lost = connection is not None
        raise OperationalError(None, None, error, connection_invalidated=is_lost) from error
