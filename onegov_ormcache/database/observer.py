"""Watches the engines and sessions of one program, whoever has made them.

An :class:`Observer` knows the tables, is told of all transactions and changed objects, and asks
the databases. :class:`~.session_manager.SessionManager` makes engines and sessions, and has an
observer; a host, which makes its own, gets one from :func:`~.hosts.observe`. This module does not
know what a scope does with what it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.orm import sessionmaker

from .databases import Database
from .notes import Relation
from .oracle import PostgresOracle
from .protocols import Dialect, Scope
from .sessions import RunSession, SessionOwner, Sessions, TenantSession
from .signals import Signals
from .tables import Tables
from .transactions import Watch


class Observer:
    """Watches the engines of a database, and the sessions of the factories that it is given.

    Made once for each program; used by all threads, as long as the engines live.

    :param database: the database, or several, with the engines.
    :param metadatas: returns the application's MetaData.
    :param scope_of: returns the scope of a connection, before each transaction; None for a
        connection that nobody watches.
    :param placeholder: the schema of tenants' tables in the metadata, see :class:`.Tables`.
    """

    def __init__(
        self,
        database: Database,
        metadatas: Callable[[], Sequence[MetaData]],
        scope_of: Callable[[Connection], Scope | None],
        placeholder: str | None = None,
    ) -> None:
        self.database = database
        self.signals = Signals()
        self.on_insert = self.signals.on_insert
        self.on_update = self.signals.on_update
        self.on_delete = self.signals.on_delete
        self.on_table_change = self.signals.on_table_change
        self.on_schema_created = self.signals.on_schema_created
        #: True if the view of the last transaction lasted; also before the first transaction.
        self.views_last = True
        self._tables = Tables(metadatas, placeholder)
        self._scope_of = scope_of
        self._muted: ContextVar[bool] = ContextVar('muted', default=False)
        database.know(self._tables)
        database.on_engine(self._watch)

    def __repr__(self) -> str:
        return f'<{type(self).__name__} of {self.database.address}>'

    # the tables

    @property
    def metadatas(self) -> Sequence[MetaData]:
        """The application's MetaData."""
        return self._tables.metadatas()

    @property
    def tables(self) -> frozenset[str]:
        """The names of all tables of the metadata."""
        return self._tables.names

    @property
    def shared_tables(self) -> frozenset[str]:
        """The names of tables that tenants share, each with its schema."""
        return self._tables.shared

    @property
    def shared_schemas(self) -> Sequence[str]:
        """The schemas of tables that tenants share, sorted."""
        return self._tables.shared_schemas

    def has_table(self, name: str) -> bool:
        """Return whether the metadata has a table of this name."""
        return self._tables.has(name)

    def names_of(self, relation: Relation, tenant: str) -> frozenset[str]:
        """Return the metadata's names of a relation; see :meth:`.Tables.names_of`."""
        return self._tables.names_of(relation, tenant)

    def reached_from(self, table: str) -> frozenset[str]:
        """Return the tables that change with a table, by the metadata's foreign keys."""
        return self._tables.reached_from(table)

    def watch_rows(self, columns: Mapping[str, frozenset[str]]) -> None:
        """From now on, tell of each statement which rows of these tables it changes, by the values
        of these columns; see :attr:`.Statement.rows`.

        What was asked for before is told, too. Without a call nothing is told, and nothing spent.

        :param columns: the names that the database has for columns, by the name that the metadata
            has for their table.
        """
        self._tables.watch(columns)

    # the tenants

    def is_tenant(self, schema: object) -> bool:
        """Return whether a schema may be that of a tenant."""
        raise NotImplementedError

    def is_place(self, schema: str) -> bool:
        """Return whether the schema may be that of a tenant, or has tables that tenants share."""
        return self.is_tenant(schema) or schema in self.shared_schemas

    def list_schemas(self, prefix: str = '') -> list[str]:
        """Return the names of the database's tenants that begin with a prefix, sorted."""
        schemas = self.database.list_schemas()
        return [s for s in schemas if s.startswith(prefix) and self.is_tenant(s)]

    # the database

    def oracle(self, connection: Connection) -> PostgresOracle | None:
        """Return an object that answers questions about transactions by this connection.

        :return: None if the database has no transaction ids.
        """
        return self.database.oracle(connection)

    def observes(self, bind: Connection | Engine, schema: str) -> bool:
        """Return whether the changes by a connection or engine are those of a tenant that is
        observed."""
        return bind.engine.pool is self.database.engine(schema).pool

    # the sessions

    def watch_sessions(
        self,
        factory: sessionmaker[Any],
        find_owner: Callable[[], SessionOwner],
        scope_of: Callable[[Connection], Any] | None = None,
    ) -> Sessions:
        """Observe the sessions that a factory makes from now on; see :class:`.Sessions`."""
        return Sessions(
            factory, self.signals, self._muted.get, find_owner, scope_of, self.observes
        )

    def create_run_session(self, tenant_session: TenantSession) -> RunSession:
        """Return a new session that works in the transaction of a scope's session, with objects
        of its own; the caller closes it."""
        return tenant_session.sessions.make_run(tenant_session)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Send no signals for objects while the block runs in this thread; for bulk imports.

        No change is missed: the scope is still told which tables have changed, but as changes
        without objects.
        """
        token = self._muted.set(True)
        try:
            yield
        finally:
            self._muted.reset(token)

    def _watch(self, engine: Engine, dialect: Dialect) -> None:
        Watch(engine, dialect, self._scope_of)
