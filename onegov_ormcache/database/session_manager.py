"""Makes engines and sessions for many tenants, each with a schema of its own.

Every session and connection belongs to one schema. Each transaction binds itself to that
schema when it begins, and the binding ends with the transaction. A :class:`SessionScope`
names the schema. What the sessions and connections do is watched by an
:class:`~.observer.Observer`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session, sessionmaker

from ..errors import (
    AutocommitError,
    ConfigurationError,
    DatabaseUnreachable,
    InvalidSchemaError,
    OutsideScopeError,
)
from ..forks import OwnLock, register
from .checkouts import replace_closed
from .names import SCOPE_OPTION
from .observer import Observer
from .postgres import Postgres
from .protocols import Scope
from .sessions import SessionOwner, TenantSession
from .sqlite import SQLite
from .tables import metadatas_of
from .transactions import current_scope
from .urls import parse, shown

#: Names of schemas that no tenant can have.
RESERVED = frozenset({'information_schema', 'public', 'extensions'})

VALID_SCHEMA = re.compile(r'[a-z0-9][a-z0-9_-]{0,62}')


class SessionScope(SessionOwner, Protocol):
    """A scope that has a session."""

    #: The scope that was current before this one; None if there was none.
    outer: Any
    observer: Observer

    def session(self) -> Session:
        """Return the scope's session, which is made at the first call."""


class SessionManager:
    """Makes the engines and sessions of an application, and sends signals about its changes.

    Made once per root app, or by a host; used by all threads until :meth:`dispose`.

    :param dsn: an SQLAlchemy URL: ``postgresql+psycopg://...``, or
        ``sqlite:///FOLDER`` for a database file per schema.
    :param base: a declarative base or MetaData, or a sequence of them.
    :param engine_options: keyword arguments of ``sqlalchemy.create_engine``.
    :param session_options: keyword arguments of ``sqlalchemy.orm.sessionmaker``.
    :raises DatabaseUnreachable: if ``dsn`` is not a URL of PostgreSQL, or of SQLite with a
        folder, or if its driver is missing.
    :raises ConfigurationError: if ``base`` is something else, or if a table has a schema of
        its own and the database is SQLite.
    :raises AutocommitError: if ``engine_options`` has the isolation level AUTOCOMMIT.
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
        self.database = _database(dsn, dict(engine_options or {}))
        #: Watches what the engines and sessions do.
        self.observer = TenantObserver(self.database, lambda: self.metadatas, self._scope_of)
        self.on_insert = self.observer.on_insert
        self.on_update = self.observer.on_update
        self.on_delete = self.observer.on_delete
        self.on_table_change = self.observer.on_table_change
        self.on_schema_created = self.observer.on_schema_created
        if self.observer.shared_schemas and isinstance(self.database, SQLite):
            raise ConfigurationError(
                f'A table has the schema {self.observer.shared_schemas[0]!r} of its own, shared '
                'by tenants; SQLite keeps each schema in a file of its own: use PostgreSQL'
            )
        factory: sessionmaker[Session] = sessionmaker(**(session_options or {}))
        self._sessions = self.observer.watch_sessions(factory, self._scope)
        self._known: set[str] = set()
        self._ensured: set[str] = set()
        self._lock = OwnLock()
        register(self)

    @property
    def engine(self) -> Engine:
        """The engine of the current scope's schema.

        :raises OutsideScopeError: if there is no scope.
        """
        return self.database.engine(self._scope().schema)

    def session(self) -> Session:
        """Return the session of the current scope.

        :raises OutsideScopeError: if there is no scope.
        """
        return self._scope().session()

    def create_session(self, scope: SessionOwner) -> TenantSession:
        """Return a new session, bound to the scope's schema; the caller closes it."""
        engine = self.database.engine(scope.schema)
        return self._sessions.make(scope, engine.execution_options(**{SCOPE_OPTION: scope}))

    def muted(self) -> AbstractContextManager[None]:
        """Send no signals for objects while a block runs; see :meth:`.Observer.muted`."""
        return self.observer.muted()

    def is_valid_schema(self, schema: object) -> bool:
        """Return whether a tenant may have this name.

        It may have 1 to 63 lower-case ASCII letters, digits, ``_`` and single ``-``. It
        begins with a letter or digit, but not with ``pg_``, and is not reserved.
        """
        return self.observer.is_tenant(schema)

    def list_schemas(self, prefix: str = '') -> list[str]:
        """Return the names of the database's tenants that begin with a prefix, sorted."""
        return self.observer.list_schemas(prefix)

    def has_schema(self, schema: str) -> bool:
        """Return whether the database has the tenant, and create nothing.

        A tenant that was found is not looked up again until :meth:`dispose`.

        :return: False for invalid names.
        """
        if schema in self._known:
            return True
        if not self.is_valid_schema(schema) or not self.database.has_schema(schema):
            return False
        with self._lock.present:
            self._known.add(schema)
        return True

    def ensure_schema_exists(self, schema: str) -> bool:
        """Create the tenant's schema and tables, if they are missing.

        Several threads and processes may do so at once. After the first call for a tenant,
        further calls do nothing until :meth:`dispose`.

        :return: True if the schema was created.
        :raises InvalidSchemaError: if no tenant may have this name.
        """
        self.check_schema(schema)
        if schema in self._ensured:
            return False
        is_new = self.database.create_schema(
            schema, self.metadatas, created=lambda: self.on_schema_created.send(schema)
        )
        with self._lock.present:
            self._known.add(schema)
            self._ensured.add(schema)
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
        """Close all connections, and forget which schemas exist.

        The manager can be used again.
        """
        with self._lock.present:
            self._known.clear()
            self._ensured.clear()
        self.database.dispose()

    def after_fork(self) -> None:
        """Forget the parent's connections without closing them; called in a forked child."""
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
        while scope is not None and scope.observer is not self.observer:
            scope = scope.outer
        return scope

    def _scope_of(self, connection: Connection) -> Scope:
        """Return the scope that a connection belongs to.

        :raises OutsideScopeError: if there is no scope.
        """
        scope: Scope | None = connection.get_execution_options().get(SCOPE_OPTION)
        if scope is None and (scope := self._find_scope()) is not None:
            # a connection keeps the scope it was first used in: it may be used later, within
            # another scope that is of another tenant
            connection.execution_options(**{SCOPE_OPTION: scope})
        if scope is None:
            raise OutsideScopeError(
                'A connection was used outside of a request scope, so it has no tenant; '
                'open a scope: with app.request_scope(schema): ...'
            )
        return scope


class TenantObserver(Observer):
    """The observer of a session manager, whose tenants have names of a certain form."""

    def is_tenant(self, schema: object) -> bool:
        return (
            isinstance(schema, str)
            and VALID_SCHEMA.fullmatch(schema) is not None
            and '--' not in schema
            and not schema.startswith('pg_')
            and schema not in RESERVED
        )


def _database(dsn: str, options: dict[str, Any]) -> Postgres | SQLite:
    if str(options.get('isolation_level', '')).upper() == 'AUTOCOMMIT':
        raise AutocommitError(
            'engine_options: with the isolation level AUTOCOMMIT there are no transactions to '
            'tell of; remove it'
        )
    url = parse(dsn)
    backend = url.get_backend_name()
    try:
        if backend == 'postgresql':
            engine = create_engine(url, **options)
            replace_closed(engine)
            return Postgres(engine)
        if backend == 'sqlite':
            return SQLite(url, options)
    except ImportError as error:
        raise DatabaseUnreachable(
            f'dsn {shown(url)!r}: {error}. The driver is psycopg: write postgresql+psycopg://, '
            'and python -m pip install "onegov_ormcache[postgres]"'
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise DatabaseUnreachable(f'dsn {shown(url)!r}: {error}') from error
    raise DatabaseUnreachable(f'dsn: {backend} is not supported; use postgresql or sqlite')
