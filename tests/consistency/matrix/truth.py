"""The database of the matrix without a cache: makes the tenants, restores them, reads them.

It has engines of its own and uses nothing of the package, so that what it reads can be compared
with what the cache gives.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.support.host import set_path
from tests.support.servers import libpq_url

from . import ddl
from .entries import Read, Write
from .schema import BASES, ONE, ROLE, RUN, SHARED, TWO, Base

TENANTS = (ONE, TWO)


class Outcome(NamedTuple):
    """What a read gave: a value, or the kind of its error."""

    #: The value; None after an error.
    value: Any
    #: SQLSTATE of the database's error, or the class of another one; None if there was none.
    error: str | None = None
    #: The error's text.
    message: str = ''
    #: True for a conflict that a new attempt may resolve.
    conflict: bool = False

    @property
    def blocked(self) -> bool:
        """True if the read waited for a lock until its time was over."""
        return self.error == '55P03'

    def agrees(self, other: Outcome) -> bool:
        """Return whether both have the same value, or the same kind of error."""
        return self.error == other.error and self.value == other.value


def outcome(
    read: Callable[[], Any], is_conflict: Callable[[BaseException], bool] = lambda error: False
) -> Outcome:
    """Return what a function gives, or the error that it raises, as an outcome."""
    try:
        return Outcome(read())
    except Exception as error:
        # SQLAlchemy wraps the errors of its own cursors, but not those of the driver's
        cause = error.orig if isinstance(error, DBAPIError) else error
        kind = getattr(cause, 'sqlstate', None) or type(cause).__name__
        return Outcome(None, kind, f'{cause}', is_conflict(error))


class Truth(Protocol):
    """A database with the two tenants of the matrix."""

    #: ``'postgresql'`` or ``'sqlite'``.
    name: str

    def build(self) -> None:
        """Make the tenants anew, with their relations and rows."""

    def restore(self) -> None:
        """Give the tenants the rows of the beginning."""

    def engine(self, tenant: str) -> Engine:
        """Return the engine of a tenant, for plain sessions."""

    def close(self) -> None:
        """Remove all that was made, and close the connections."""


def values(
    truth: Truth, tenant: str, reads: Sequence[Read], write: Write | None = None
) -> dict[str, Outcome]:
    """Return what the reads give without a cache, each in a session and a savepoint of its own.

    :param write: done before, in the same transaction, which is rolled back.
    """
    with truth.engine(tenant).connect() as connection, connection.begin() as transaction:
        if write is not None:
            with plain_session(connection) as session:
                write.run(session)
                session.flush()
                found = {read.name: value_of(connection, read) for read in reads}
        else:
            found = {read.name: value_of(connection, read) for read in reads}
        transaction.rollback()
    return found


def value_of(connection: Connection, read: Read) -> Outcome:
    """Return what a read gives without a cache on this connection, and undo what it writes."""
    with plain_session(connection) as session:
        return outcome(lambda: read.run(session))


def plain_session(connection: Connection) -> Session:
    """Return a session in a savepoint of the connection's transaction."""
    return Session(bind=connection, join_transaction_mode='create_savepoint')


class PostgresTruth:
    """Two schemas, and one of shared tables, that a role without special rights owns.

    :param dsn: SQLAlchemy URL of a superuser, who restores the rows.
    :param host: set the search path before each statement, as a host does.
    """

    name = 'postgresql'

    def __init__(self, dsn: str, host: bool = False) -> None:
        self._dsn = dsn
        self._admin = psycopg.connect(libpq_url(dsn), autocommit=True)
        self._admin.execute("SET lock_timeout = '10s'")
        self._admin.execute(f'CREATE ROLE {ROLE} IN ROLE pg_read_all_stats')
        database = self._admin.info.dbname
        self._admin.execute(f'GRANT CREATE, TEMPORARY ON DATABASE "{database}" TO {ROLE}')
        self._engines = {
            tenant: create_engine(
                dsn, connect_args=connect_arguments(f'-c search_path={tenant},extensions')
            )
            for tenant in TENANTS
        }
        if host:
            for tenant, engine in self._engines.items():
                event.listen(engine, 'before_cursor_execute', set_path)
                engine.update_execution_options(schema=tenant)

    def build(self) -> None:
        self._drop()
        for engine in self._engines.values():
            engine.dispose()
        self._execute(f'CREATE SCHEMA {SHARED} AUTHORIZATION {ROLE}')
        for tenant in TENANTS:
            self._execute(f'CREATE SCHEMA {tenant} AUTHORIZATION {ROLE}')
            with self._engines[tenant].begin() as connection:
                for base in BASES[self.name]:
                    base.metadata.create_all(connection)
                for statement in ddl.POSTGRESQL:
                    connection.exec_driver_sql(statement.replace('%', '%%'))
        self.restore()

    def restore(self) -> None:
        statements = ['BEGIN', 'SET LOCAL session_replication_role = replica']
        for tenant, who in zip(TENANTS, ('one', 'two'), strict=True):
            statements.append(f'SET LOCAL search_path = {tenant}')
            statements.extend(ddl.row_statements(self.name, who))
        statements.append(f'DELETE FROM {SHARED}.countries')
        statements.append(f'INSERT INTO {SHARED}.countries VALUES {ddl.COUNTRIES}')
        statements.append('COMMIT')
        self._execute('; '.join(statements))

    def engine(self, tenant: str) -> Engine:
        return self._engines[tenant]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()
        self._drop()
        self._execute(f'DROP OWNED BY {ROLE}')
        self._execute(f'DROP ROLE {ROLE}')
        self._admin.close()

    def _drop(self) -> None:
        query = 'SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)'
        for (schema,) in self._admin.execute(query, [RUN]).fetchall():
            self._execute(f'DROP SCHEMA {schema} CASCADE')

    def _execute(self, statement: str) -> None:
        self._admin.execute(statement)


def connect_arguments(options: str) -> dict[str, Any]:
    """Return the driver's arguments for connections of the matrix.

    Statements are not prepared: "cached plan must not change result type" is an error of
    PostgreSQL after DDL, and says nothing about a cache.

    :param options: options of PostgreSQL's command line.
    """
    return {'options': f'-c role={ROLE} {options}', 'prepare_threshold': None}


class SQLiteTruth:
    """Two files in a folder, as the package makes them.

    :param folder: an empty folder.
    """

    name = 'sqlite'

    def __init__(self, folder: Path) -> None:
        self._engines = {}
        for tenant in TENANTS:
            engine = create_engine(f'sqlite:///{folder}/{tenant}.sqlite')
            event.listen(engine, 'connect', _on_connect)
            event.listen(engine, 'begin', lambda c: c.exec_driver_sql('BEGIN'))
            self._engines[tenant] = engine

    def build(self) -> None:
        for engine in self._engines.values():
            with engine.begin() as connection:
                names = connection.exec_driver_sql(
                    "SELECT type, name FROM sqlite_master WHERE type IN ('view', 'trigger')"
                ).all()
                for kind, name in names:  # a trigger goes with its view
                    connection.exec_driver_sql(f'DROP {kind} IF EXISTS {name}')
                connection.exec_driver_sql('PRAGMA defer_foreign_keys = ON')
                Base.metadata.drop_all(connection)
                Base.metadata.create_all(connection)
                for statement in ddl.SQLITE:
                    connection.exec_driver_sql(statement)
        self.restore()

    def restore(self) -> None:
        for engine, who in zip(self._engines.values(), ('one', 'two'), strict=True):
            with engine.connect() as connection:
                raw: Any = connection.connection.dbapi_connection
                raw.execute('PRAGMA foreign_keys = OFF')
                try:
                    # no trigger fires by INSERT or DELETE
                    raw.execute('BEGIN IMMEDIATE')
                    for statement in ddl.row_statements(self.name, who):
                        raw.execute(statement)
                    raw.execute('COMMIT')
                finally:
                    raw.execute('PRAGMA foreign_keys = ON')

    def engine(self, tenant: str) -> Engine:
        return self._engines[tenant]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()


def _on_connect(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None
    connection.execute('PRAGMA journal_mode=WAL')
    connection.execute('PRAGMA foreign_keys=ON')
    connection.execute('PRAGMA busy_timeout=5000')
