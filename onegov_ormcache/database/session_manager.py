"""Engines and sessions for many tenants, a schema each.

Every session and connection belongs to one schema, and every transaction binds
itself to it when it begins; nothing outlives the transaction. A
:class:`SessionScope` says which schema is meant, and hears of each transaction.
"""

from __future__ import annotations

import os
import re
import weakref
from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Connection, Engine, MetaData, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

from ..errors import (
    AutocommitError,
    ConfigurationError,
    DatabaseUnreachable,
    InvalidSchemaError,
    OutsideScopeError,
)
from .cascades import cascades
from .names import SCOPE_OPTION
from .postgres import Postgres, PostgresOracle
from .signals import Signals
from .sqlite import SQLite
from .statements import StatementAnalyzer
from .transactions import Scope, Watch, current_scope

#: Names that a tenant can't have.
RESERVED = frozenset({'information_schema', 'public', 'extensions'})

VALID_SCHEMA = re.compile(r'[a-z0-9][a-z0-9_-]{0,62}')


class SessionScope(Scope, Protocol):
    """A scope that has a session, and hears of its flushes and its ends."""

    #: The scope that was current when this one became so.
    outer: Any
    session_manager: SessionManager
    #: Tables that statements of the present flush have changed; None outside of one.
    flushed_tables: set[str] | None

    def session(self) -> Session:
        """The scope's session, made when it is first asked for."""

    def changed_without_objects(self, tables: Collection[str]) -> None:
        """A flush changed these tables without an object that stands for the change."""

    def session_emptied(self) -> None:
        """The session has dropped all objects, with the collections that held them."""

    def session_ended(self) -> None:
        """The session's transaction was committed, rolled back or closed."""


class SessionManager:
    """Made once per root app, or by a host; used by all threads until :meth:`dispose`.

    :param dsn: an SQLAlchemy URL: ``postgresql+psycopg://...``, or
        ``sqlite:///FOLDER`` for a database file per schema.
    :param base: a declarative base or MetaData, or a sequence of them.
    :param engine_options: keyword arguments of ``sqlalchemy.create_engine``.
    :param session_options: keyword arguments of ``sqlalchemy.orm.sessionmaker``.
    :raises DatabaseUnreachable: if the URL is of no kind that is known here.
    :raises ConfigurationError: if ``base`` has no tables' metadata.
    """

    def __init__(
        self,
        dsn: str,
        base: Any,
        engine_options: Mapping[str, Any] | None = None,
        session_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.dsn = dsn
        self.metadatas = metadatas_of(base)
        self.signals = Signals()
        self.on_insert = self.signals.on_insert
        self.on_update = self.signals.on_update
        self.on_delete = self.signals.on_delete
        self.on_table_change = self.signals.on_table_change
        self.on_schema_created = self.signals.on_schema_created
        self.database = _database(dsn, dict(engine_options or {}))
        shared = sorted(table for table in self.tables if '.' in table)
        #: The schemas of tables that tenants share.
        self.shared_schemas = sorted({table.rpartition('.')[0] for table in shared})
        if shared and isinstance(self.database, SQLite):
            raise ConfigurationError(
                f'The table {shared[0]!r} has a schema of its own, shared by tenants; SQLite '
                'keeps each schema in a file of its own: use PostgreSQL'
            )
        if isinstance(self.database, Postgres):
            self.database.shared_schemas = self.shared_schemas
        self.cascades = cascades(self.metadatas)
        self._analyzer = StatementAnalyzer(
            'postgresql' if isinstance(self.database, Postgres) else 'sqlite',
            ChainMap(*(metadata.tables for metadata in self.metadatas)),
        )
        options = dict(session_options or {})
        options['class_'] = type('TenantSession', (_Ending, options.get('class_', Session)), {})
        self._sessionmaker: sessionmaker[Session] = sessionmaker(**options)
        event.listen(self._sessionmaker, 'before_flush', self._before_flush)
        event.listen(self._sessionmaker, 'after_flush', self._after_flush)
        event.listen(self._sessionmaker, 'after_soft_rollback', self._after_soft_rollback)
        event.listen(self._sessionmaker, 'after_transaction_end', self._after_transaction_end)
        self._muted: ContextVar[bool] = ContextVar('muted', default=False)
        self._known: set[str] = set()
        self._ensured: set[str] = set()
        self._lock = Lock()
        self.database.on_engine(self._watch)
        _MANAGERS.add(self)

    @property
    def tables(self) -> frozenset[str]:
        """The names of all tables of the metadata."""
        return frozenset(name for metadata in self.metadatas for name in metadata.tables)

    def has_table(self, name: str) -> bool:
        """Whether the metadata has a table of this name."""
        return any(name in metadata.tables for metadata in self.metadatas)

    def names_of(self, schema: str, table: str, tenant: str) -> frozenset[str]:
        """What the metadata calls a table that the database has in this schema."""
        qualified = f'{schema}.{table}'
        names = {qualified} if self.has_table(qualified) else set()
        return frozenset(names | {table} if schema == tenant else names)

    @property
    def engine(self) -> Engine:
        """The engine of the current scope's schema.

        :raises OutsideScopeError: if there is none.
        """
        return self.database.engine(self._scope().schema)

    def session(self) -> Session:
        """The session of the current scope.

        :raises OutsideScopeError: if there is none.
        """
        return self._scope().session()

    def create_session(self, scope: SessionScope) -> Session:
        """A new session, bound to the scope's schema; its maker closes it."""
        engine = self.database.engine(scope.schema)
        bind = engine.execution_options(**{SCOPE_OPTION: scope})
        return self._sessionmaker(bind=bind, info={SCOPE_OPTION: scope})

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Send no signals for objects while the block runs in this thread: for imports.

        Nothing is missed: the scope hears of the tables as ever, and that no objects stand
        for their changes.
        """
        token = self._muted.set(True)
        try:
            yield
        finally:
            self._muted.reset(token)

    def oracle(self, connection: Connection) -> PostgresOracle | None:
        """Who can be asked what became of a transaction; None if nobody can."""
        return self.database.oracle(connection)

    def is_valid_schema(self, schema: object) -> bool:
        """Whether a tenant may have this name: up to 63 lower-case letters, digits,
        "_" and single "-", not reserved."""
        return (
            isinstance(schema, str)
            and VALID_SCHEMA.fullmatch(schema) is not None
            and '--' not in schema
            and not schema.startswith('pg_')
            and schema not in RESERVED
        )

    def list_schemas(self, prefix: str = '') -> list[str]:
        """The tenants that the database has, sorted; only those with this prefix."""
        schemas = self.database.list_schemas()
        return [s for s in schemas if s.startswith(prefix) and self.is_valid_schema(s)]

    def has_schema(self, schema: str) -> bool:
        """Whether the database has the tenant; creates nothing. False for invalid names."""
        if schema in self._known:
            return True
        if not self.is_valid_schema(schema) or not self.database.has_schema(schema):
            return False
        with self._lock:
            self._known.add(schema)
        return True

    def ensure_schema_exists(self, schema: str) -> bool:
        """Create the tenant's schema and tables, as far as they are missing.

        Safe when several threads and processes do it at once.

        :return: True if the schema is new.
        :raises InvalidSchemaError: if no tenant may have this name.
        """
        self.check_schema(schema)
        if schema in self._ensured:
            return False
        is_new = self.database.create_schema(schema, self.metadatas)
        with self._lock:
            self._known.add(schema)
            self._ensured.add(schema)
        if is_new:
            self.on_schema_created.send(schema)
        return is_new

    def check_schema(self, schema: object) -> None:
        """Raise :class:`InvalidSchemaError` if no tenant may have this name."""
        if not self.is_valid_schema(schema):
            raise InvalidSchemaError(
                f'{schema!r} can not be the name of a schema: use 1 to 63 lower-case letters, '
                'digits, "_" and single "-", beginning with a letter or digit, not with '
                f'"pg_", and none of {", ".join(sorted(RESERVED))}'
            )

    def dispose(self) -> None:
        """Close all connections. The manager can be used again, schemas are looked up anew."""
        with self._lock:
            self._known.clear()
            self._ensured.clear()
        self.database.dispose()

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections to the parent."""
        self.database.dispose(close=False)

    def _scope(self) -> SessionScope:
        scope = self._find_scope()
        if scope is None:
            raise OutsideScopeError(
                'There is no session outside of a request scope; open one: '
                'with app.request_scope(schema): ...'
            )
        return scope

    def _find_scope(self) -> SessionScope | None:
        scope: SessionScope | None = current_scope.get()
        while scope is not None and scope.session_manager is not self:
            scope = scope.outer
        return scope

    def _watch(self, engine: Engine) -> None:
        Watch(engine, self.database, self._analyzer, self._find_scope)

    def _before_flush(self, session: Session, context: object, instances: object) -> None:
        scope_of_session(session).flushed_tables = set()

    def _after_flush(self, session: Session, context: object) -> None:
        scope = scope_of_session(session)
        written, scope.flushed_tables = scope.flushed_tables or set(), None
        if self._muted.get():
            with_objects: frozenset[str] = frozenset()
        else:
            with_objects = self.signals.send_flush(scope.schema, session)
        scope.changed_without_objects(written - with_objects)

    def _after_soft_rollback(self, session: Session, transaction: object) -> None:
        # a flush that failed never reaches its end
        scope_of_session(session).flushed_tables = None

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            scope_of_session(session).session_ended()


class _Ending(Session):
    """Tells its scope also of an end before its first statement, of which SQLAlchemy sends
    no event: what the scope has read by then belongs to the past."""

    def rollback(self) -> None:
        has_begun = self.in_transaction()
        super().rollback()
        if not has_begun:
            scope_of_session(self).session_ended()

    def flush(self, objects: Any = None) -> None:
        scope = scope_of_session(self)
        is_outermost = scope.flushed_tables is None
        try:
            super().flush(objects)
        finally:
            # a listener of somebody else's may have kept the flush from its end
            if is_outermost and scope.flushed_tables is not None:
                written, scope.flushed_tables = scope.flushed_tables, None
                scope.changed_without_objects(written)

    def expunge_all(self) -> None:
        super().expunge_all()
        scope_of_session(self).session_emptied()

    def close(self) -> None:
        has_begun = self.in_transaction()
        super().close()
        if not has_begun:
            scope_of_session(self).session_ended()


def scope_of_session(session: Session) -> SessionScope:
    """The scope that a session of a manager was made for."""
    return session.info[SCOPE_OPTION]  # type: ignore[no-any-return]


#: All managers of this process, for the moment after a fork.
_MANAGERS: WeakSet[SessionManager] = weakref.WeakSet()


def _after_fork() -> None:
    for manager in list(_MANAGERS):
        manager.after_fork()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


def metadatas_of(base: Any) -> Sequence[MetaData]:
    """The MetaData of a declarative base, a MetaData, or several of these.

    :raises ConfigurationError: for anything else.
    """
    bases = list(base) if isinstance(base, Iterable) else [base]
    metadatas = [b if isinstance(b, MetaData) else getattr(b, 'metadata', None) for b in bases]
    if not metadatas or not all(isinstance(metadata, MetaData) for metadata in metadatas):
        raise ConfigurationError(
            f'base is {base!r}; expected a declarative base, or several: set base in the '
            'settings section orm_cache'
        )
    return [metadata for metadata in metadatas if metadata is not None]


def _database(dsn: str, options: dict[str, Any]) -> Postgres | SQLite:
    if str(options.get('isolation_level', '')).upper() == 'AUTOCOMMIT':
        raise AutocommitError(
            'engine_options: with the isolation level AUTOCOMMIT there are no transactions to '
            'tell of; remove it'
        )
    try:
        url = make_url(dsn)
        backend = url.get_backend_name()
        if backend == 'postgresql':
            return Postgres(dsn, options)
        if backend == 'sqlite':
            return SQLite(url, options)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise DatabaseUnreachable(f'dsn: {error}') from error
    raise DatabaseUnreachable(f'dsn: {backend} is not supported; use postgresql or sqlite')
