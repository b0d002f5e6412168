"""Runs the package's own statements on SQLite, the embedded default: one file per schema.

It knows SQL and the driver, and nothing of what is done with the answers.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, MetaData, create_engine, event
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from ..errors import DatabaseUnreachable
from ..forks import OwnLock
from .authorizer import (
    AuthorizedConnection,
    SQLiteInquiry,
    authorize,
    authorizer_of,
    ending,
)
from .identity import file_identity
from .names import INTERNAL
from .notes import Relation, is_of_objects, notes_of, take_notes
from .outbox import Outbox
from .protocols import Dialect, Scope, Statement
from .statements import refuse_control, watched_in, with_rows
from .tables import Tables
from .urls import shown

SUFFIX = '.sqlite'

#: The key of the identity of a connection's file in ``Connection.info``.
IDENTITY = 'onegov_ormcache_identity'

#: Result codes of a failed COMMIT after which the transaction is still open.
REFUSALS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT}


class SQLiteView(NamedTuple):
    """A transaction's view; see :class:`~.transactions.View`.

    In WAL mode a transaction keeps the view of its first statement until it ends.
    """

    lasts: bool = True
    serializable: bool = False
    replica: bool = False
    triggers: bool = False
    strayed: str | None = None
    identities: Mapping[str, str] = MappingProxyType({})


class SQLiteDialect:
    """What is the same for all SQLite files; see :class:`~.protocols.Dialect`."""

    has_transaction_ids = False
    counts_all = False

    #: The tables that statements may name.
    tables = Tables(list)

    def know(self, tables: Tables) -> None:
        """Take the tables that statements may name; called by the observer."""
        self.tables = tables

    def names_of(self, relation: Relation, tenant: str) -> frozenset[str]:
        """Return the metadata's names of a relation."""
        return self.tables.folded(relation.name)

    # the methods of `transactions.Dialect`, and queries within a transaction

    def autocommits(self, connection: Connection) -> bool:
        level = connection.get_execution_options().get('isolation_level')
        return str(level).upper() == 'AUTOCOMMIT'

    def in_transaction(self, dbapi_connection: Any) -> bool:
        return bool(dbapi_connection.in_transaction)

    def has_ended(self, dbapi_connection: Any) -> bool:
        return not self.in_transaction(dbapi_connection)

    def begin(
        self, connection: Connection, scope: Scope
    ) -> tuple[SQLiteView, SQLiteInquiry]:
        self._begin(connection)
        authorizer = authorizer_of(connection.connection.dbapi_connection)
        authorizer.take()  # what the last transaction on this connection did
        view = SQLiteView(identities={scope.schema: connection.info[IDENTITY]})
        return view, SQLiteInquiry(authorizer)

    def _begin(self, connection: Connection) -> None:
        # by default the module sqlite3 begins a transaction only before the first change, so
        # that the release of an earlier savepoint would commit; and BEGIN alone takes no
        # view, but the SELECT does
        with ending(connection.connection.dbapi_connection):
            connection.exec_driver_sql('BEGIN', execution_options=INTERNAL)
        connection.exec_driver_sql('SELECT 1 FROM sqlite_master', execution_options=INTERNAL)

    def begin_again(
        self, connection: Connection, scope: Scope
    ) -> tuple[SQLiteView, SQLiteInquiry]:
        self.leave(connection)
        return self.begin(connection, scope)

    def leave(self, connection: Connection) -> bool:
        with ending(connection.connection.dbapi_connection):
            connection.connection.rollback()
        return True

    def executing(
        self, connection: Connection, scope: Scope, sql: str, context: ExecutionContext | None
    ) -> None:
        """Return None: only the authorizer knows, see :meth:`executed`.

        :raises TextualControlError: if a text begins with the end of the transaction.
        """
        if getattr(notes_of(context), 'unclear', '') is not None:
            refuse_control(sql)
        authorizer_of(connection.connection.dbapi_connection).announce()

    def assign_id(self, connection: Connection) -> None:
        """Do nothing: SQLite has no transaction ids."""

    def executed(
        self, connection: Connection, context: ExecutionContext | None
    ) -> Statement:
        driver = connection.connection.dbapi_connection
        authorizer, notes = authorizer_of(driver), notes_of(context)
        authorizer.announced = False
        found = authorizer.take(notes, is_of_objects(context)) or Statement()
        if not (self.tables.watched and found.writes) or notes is None or context is None:
            return found
        if authorizer.is_mixed:
            return found  # what the driver's cursors have changed is in it, too
        if not (watched := watched_in(self.tables, found)):
            return found
        try:
            plan = authorizer.columns.plan(driver, context.compiled, notes)
        except sqlite3.Error:
            return found  # the statement has failed, and the connection with it
        return found if plan is None else with_rows(found, watched, plan, context)

    def lost_savepoint(self, dbapi_connection: Any) -> bool:
        authorizer = authorizer_of(dbapi_connection)
        lost, authorizer.lost_savepoint = authorizer.lost_savepoint, False
        return lost

    def report_to(
        self,
        dbapi_connection: Any,
        report: Callable[[], None] | None,
        setting: Callable[[str], None] | None = None,
    ) -> None:
        authorizer_of(dbapi_connection).report = report

    def ending(self, dbapi_connection: Any) -> AbstractContextManager[None]:
        return ending(dbapi_connection)

    def identities(self, places: Collection[str]) -> dict[str, str]:
        """Return nothing: a transaction can change no other schema than its own."""
        return {}

    def refused(self, error: BaseException) -> bool:
        code = getattr(error, 'sqlite_errorcode', None)
        return code is not None and code & 0xFF in REFUSALS

    def oracle(self, connection: Connection) -> None:
        """Return None: SQLite has no transaction ids to ask about."""
        return

    def outboxes(self) -> Sequence[Outbox]:
        """Return nothing: SQLite has no outboxes."""
        return ()

    def outbox_at(self, connection: Connection) -> None:
        """Return None: SQLite has no outboxes."""
        return

    def is_replica(self, connection: Connection) -> bool:
        """Return False: SQLite has no replicas."""
        return False

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether a new attempt of the transaction may resolve the error."""
        if not isinstance(error, DBAPIError):
            return False
        code = getattr(error.orig, 'sqlite_errorcode', None)
        return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY


class SQLite(SQLiteDialect):
    """A folder of SQLite files, in which each tenant is a file with an engine of its own.

    Made by a session manager; used by all threads until :meth:`dispose`.

    :param url: ``sqlite:///FOLDER``
    :param options: keyword arguments of ``sqlalchemy.create_engine``.
    :raises DatabaseUnreachable: if the URL names no folder, or has a query string.
    """

    def __init__(self, url: URL, options: dict[str, Any]) -> None:
        if not url.database or url.database == ':memory:' or url.query:
            raise DatabaseUnreachable(
                f'dsn {shown(url)!r}: name a folder, as in sqlite:///tenants; '
                'it keeps a database file per schema'
            )
        self.folder = Path(url.database)
        self._drivername = url.drivername
        self._options = options
        self._lock = OwnLock()
        self._engines: dict[str, Engine] = {}
        self._watchers: list[Callable[[Engine, Dialect], None]] = []
        self._claim: FileLock | None = None

    @property
    def address(self) -> str:
        """The URL of the folder."""
        return f'{self._drivername}:///{self.folder}'

    def engine(self, schema: str) -> Engine:
        """Return the engine of a schema, which is made at the first call."""
        with self._lock.present:
            engine = self._engines.get(schema)
            if engine is None:
                engine = self._engines[schema] = self._make(schema)
            return engine

    def engines(self) -> list[Engine]:
        """Return all engines made so far."""
        with self._lock.present:
            return list(self._engines.values())

    def on_engine(self, watch: Callable[[Engine, Dialect], None]) -> None:
        """Call ``watch`` with each engine, those made later included."""
        with self._lock.present:
            self._watchers.append(watch)
            for engine in self._engines.values():
                watch(engine, self)

    def check(self) -> None:
        """Create the folder if it is missing, and check that it can be written to.

        :raises DatabaseUnreachable: if it can't be created or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnreachable(f'The folder {str(self.folder)!r}: {error}') from error
        if not os.access(self.folder, os.W_OK):
            raise DatabaseUnreachable(f'The folder {str(self.folder)!r} can not be written to')

    # schemas

    def list_schemas(self) -> list[str]:
        """Return the schemas that have a file, sorted."""
        return sorted(path.stem for path in self.folder.glob(f'*{SUFFIX}'))

    def has_schema(self, schema: str) -> bool:
        """Return whether the schema has a file."""
        return self._file(schema).exists()

    def create_schema(
        self, schema: str, metadatas: Sequence[MetaData], created: Callable[[], object]
    ) -> bool:
        """Create the schema's file and tables, if they are missing.

        :param created: called if the file is created, before others can see it.
        :return: True if the file was created.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f'{schema}.lock'):
            is_new = not self.has_schema(schema)
            if is_new:
                created()
            with self.engine(schema).connect().execution_options(**INTERNAL) as connection:
                self._begin(connection)
                for metadata in metadatas:
                    metadata.create_all(connection)
                connection.commit()
            return is_new

    # use by one process alone

    def claim(self) -> bool:
        """Claim the folder for this process alone, until :meth:`dispose`.

        :return: False if it is claimed already.
        """
        lock = FileLock(self.folder / '.claim')
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
        """Close all connections and give the claim up.

        :param close: False in a forked child: the connections, and the claim, belong to the
            parent, so they are only forgotten.
        """
        if self._claim is not None and close:
            self._claim.release()
        self._claim = None
        with self._lock.present:
            for engine in self._engines.values():
                engine.dispose(close=close)
            self._engines.clear()

    def _make(self, schema: str) -> Engine:
        url = URL.create(self._drivername, database=str(self._file(schema)))
        options = dict(self._options)
        # the driver would keep prepared statements, of which the authorizer is not told again
        options['connect_args'] = {
            'factory': AuthorizedConnection,
            **(options.get('connect_args') or {}),
            'cached_statements': 0,
        }
        engine = create_engine(url, **options)
        take_notes(engine.dialect)

        def connected(connection: AuthorizedConnection, record: ConnectionPoolEntry) -> None:
            prepare(self._file(schema), connection, record)
            connection.execute('PRAGMA journal_mode=WAL')
            connection.execute('PRAGMA foreign_keys=ON')
            authorize(connection, schema, self.names_of)

        event.listen(engine, 'connect', connected)
        for watch in self._watchers:
            watch(engine, self)
        return engine

    def _file(self, schema: str) -> Path:
        return self.folder / f'{schema}{SUFFIX}'


def prepare(
    file: Path | str, connection: sqlite3.Connection, record: ConnectionPoolEntry
) -> None:
    """Make a new connection ready for transactions that :meth:`SQLiteDialect.begin` begins."""
    connection.isolation_level = None  # sqlite3 sends no BEGIN; `begin()` does
    # not asked at each begin: the connection goes on with this file if another takes its name
    record.info[IDENTITY] = file_identity(str(file))
