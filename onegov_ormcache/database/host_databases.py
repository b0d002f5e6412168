"""The databases of a host: PostgreSQL and SQLite with the engine of an application that makes
its own.

They ask on the host's connections, and leave its search paths as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, TextClause, event
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.pool import ConnectionPoolEntry

from ..errors import ConfigurationError, DatabaseUnreachable
from .authorizer import AuthorizedConnection, SQLiteInquiry, authorize, authorizer_of
from .driver import follow_setting, report_to
from .inquiries import PostgresInquiry, PostgresView
from .names import NOWHERE
from .postgres import Postgres, begin_statement
from .probes import FIRST_SCHEMA, OF_HOST
from .protocols import Dialect, Scope, Statement
from .sqlite import SQLiteDialect, SQLiteView, prepare
from .statements import refuse_control
from .unattended import SchemaOf
from .urls import shown


class HostPostgres(Postgres):
    """A PostgreSQL database whose engine and search paths are a host's.

    :param engine: the host's engine.
    """

    probes = OF_HOST

    def __init__(self, engine: Engine, schema_of: SchemaOf) -> None:
        super().__init__(engine)
        self._schema_of = schema_of
        # the transaction's listener keeps the inquiry, which keeps the connection
        self._inquiries: WeakKeyDictionary[Connection, ref[PostgresInquiry]] = (
            WeakKeyDictionary()
        )
        # the connections on which a listener of the host has begun the present transaction
        self._begun: WeakSet[Connection] = WeakSet()
        engine.clear_compiled_cache()
        event.listen(engine, 'begin', self._beginning)

    def begin(
        self, connection: Connection, scope: Scope
    ) -> tuple[PostgresView, PostgresInquiry]:
        view, inquiry = super().begin(connection, scope)
        self._inquiries[connection] = ref(inquiry)
        return view, inquiry

    def leave(self, connection: Connection) -> bool:
        # a rollback would undo what a listener of the host has set for this transaction, such as
        # its search path, or the user whose rows it may see
        return connection not in self._begun and super().leave(connection)

    def _begin_statement(self, places: int) -> TextClause:
        return begin_statement(FIRST_SCHEMA, places)

    def executing(
        self, connection: Connection, scope: Scope, sql: str, context: ExecutionContext | None
    ) -> Statement | None:
        if follow_setting(connection.connection.dbapi_connection, sql):
            return None  # reported when it was executed
        if scope.schema == NOWHERE:
            refuse_control(sql)
            return Statement(unclear='the connection works for no tenant')
        if self._schema_of(connection) != scope.schema:
            refuse_control(sql)
            return Statement(unclear='the connection has another tenant than at its begin')
        if context is not None and (
            translated := context.execution_options.get('schema_translate_map')
        ):
            self._check_placeholder(translated, scope.schema)
        inquiry = self._inquiries.get(connection, lambda: None)()
        is_placed = inquiry is not None and inquiry.path == scope.schema
        return self._understanding.statement(connection, scope, sql, context, is_placed)

    def _check_placeholder(self, translated: Mapping[str | None, str], tenant: str) -> None:
        for schema, present in translated.items():
            if present == tenant and schema in self.shared_schemas:
                raise ConfigurationError(
                    f'schema_translate_map puts {tenant!r} in the place of {schema!r}, the schema '
                    'of tables that tenants share, as it seems, so nobody would be told of their '
                    f'changes: observe(placeholder={schema!r})'
                )

    def report_to(
        self,
        dbapi_connection: Any,
        report: Callable[[], None] | None,
        setting: Callable[[str], None] | None = None,
    ) -> None:
        report_to(dbapi_connection, report, setting)

    def dispose(self, close: bool = True) -> None:
        """Give the claim up, and leave the host's connections alone."""
        if self._claim is not None and close:
            self._claim.close()
        self._claim = None

    def _beginning(self, connection: Connection) -> None:
        # called before any question of the package, and after the host's earlier listeners
        if self.in_transaction(connection.connection.dbapi_connection):
            self._begun.add(connection)
        else:
            self._begun.discard(connection)


class HostSQLite(SQLiteDialect):
    """A SQLite file whose engine is a host's. All of it is one tenant's.

    :param engine: the host's engine.
    """

    def __init__(self, engine: Engine, schema_of: SchemaOf) -> None:
        self._engine = engine
        self._file = str(engine.url.database)
        self._schema_of = schema_of
        self._schema: str | None = None
        self._claim: Any = None
        engine.clear_compiled_cache()
        event.listen(engine, 'do_connect', _authorized)
        event.listen(engine, 'connect', self._connected)
        # connections that were opened before are of another class
        engine.dispose()

    @property
    def address(self) -> str:
        """The URL of the file."""
        return shown(self._engine.url)

    def engine(self, schema: str) -> Engine:
        """Return the engine."""
        return self._engine

    def engines(self) -> list[Engine]:
        """Return the engine, in a list."""
        return [self._engine]

    def on_engine(self, watch: Callable[[Engine, Dialect], None]) -> None:
        """Call ``watch`` with the engine."""
        watch(self._engine, self)

    def check(self) -> None:
        """Check that the file can be written to.

        :raises DatabaseUnreachable: if it can't.
        """
        folder = Path(self._file).parent
        if not os.access(folder, os.W_OK):
            raise DatabaseUnreachable(f'The folder {str(folder)!r} can not be written to')

    def begin(
        self, connection: Connection, scope: Scope
    ) -> tuple[SQLiteView, SQLiteInquiry]:
        if not isinstance(connection.connection.dbapi_connection, AuthorizedConnection):
            raise ConfigurationError(
                f'A connection of {self._engine!r} was opened before the engine was observed, '
                'and does not tell what it changes; observe the engine before its first use'
            )
        schema = self._schema_of(connection)
        if schema is None or (self._schema is not None and schema != self._schema):
            raise ConfigurationError(
                f'schema_of gave {schema!r} for a connection of {self._engine!r}, which is '
                f'all {"one tenant" if self._schema is None else self._schema!r}: return the '
                'same name for each connection of a SQLite file'
            )
        self._schema = schema
        authorizer_of(connection.connection.dbapi_connection).schema = schema
        return super().begin(connection, scope)

    def list_schemas(self) -> list[str]:
        """Return the tenant, if it is known."""
        return [] if self._schema is None else [self._schema]

    def claim(self) -> bool:
        """Claim the file for this process alone, until :meth:`dispose`."""
        lock = FileLock(f'{self._file}.claim')
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._claim = lock
        return True

    def has_lost_claim(self) -> bool:
        """Return False: the lock lasts as long as this process."""
        return False

    def claim_again(self) -> bool:
        """Return True: nothing was lost."""
        return True

    def dispose(self, close: bool = True) -> None:
        """Give the claim up, and leave the host's connections alone."""
        if self._claim is not None and close:
            self._claim.release()
        self._claim = None

    def _connected(
        self, connection: AuthorizedConnection, record: ConnectionPoolEntry
    ) -> None:
        prepare(self._file, connection, record)
        authorize(connection, self._schema or NOWHERE, self.names_of)


def _authorized(dialect: object, record: object, arguments: Any, options: Any) -> None:
    """Let the driver make connections that have an authorizer."""
    options.setdefault('factory', AuthorizedConnection)
    # the driver would keep prepared statements, of which the authorizer is not told again
    options['cached_statements'] = 0


def host_database(engine: Engine, schema_of: SchemaOf) -> HostPostgres | HostSQLite:
    """Return the database of a host's engine, by its kind."""
    is_sqlite = engine.dialect.name == 'sqlite'
    return HostSQLite(engine, schema_of) if is_sqlite else HostPostgres(engine, schema_of)
