"""Observes the engines and sessions of a host: an application that makes its own.

:func:`observe` is the way in. The host keeps its engines, its session factory, its current schema
and its transactions. It says which tenant a connection works for; nothing here sets a search path,
begins or ends a transaction, or opens a connection that the host's listeners are told of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ..errors import ConfigurationError, InvalidSchemaError
from .databases import Database, Databases
from .driver import DRIVER
from .host_databases import host_database
from .names import NOWHERE
from .observer import Observer
from .sessions import RunSession, SessionOwner, is_observed
from .tables import metadatas_of
from .unattended import SchemaOf, Unattended

#: The name of a schema that a host can have: what PostgreSQL permits, but for characters that
#: have a meaning in keys.
VALID_NAME = re.compile(r'[^\x00-\x1f"|{}:]{1,63}')


class Attendant(Protocol):
    """Has the scopes of a host; given to the observer by whoever is interested."""

    def scope(self, schema: str) -> SessionOwner:
        """Return this thread's scope of a tenant; make it if it is missing."""

    def present(self) -> SessionOwner | None:
        """Return this thread's scope of the host's present tenant; None if it has none."""


class HostObserver(Observer):
    """The observer of a host. Made by :func:`observe`.

    :param schema_of: says which tenant a connection works for.
    :param registry: the host's registry of sessions, if it has one.
    :param session: returns the host's present session; by default the registry does.
    :param present_schema: returns the tenant that the host works for, if it can tell.
    :param placeholder: the schema of tenants' tables in the metadata, if they have one there.
    """

    def __init__(
        self,
        database: Database,
        metadatas: Callable[[], Sequence[MetaData]],
        schema_of: SchemaOf,
        registry: scoped_session[Any] | None,
        session: Callable[[], Session] | None,
        present_schema: Callable[[], str | None] | None,
        placeholder: str | None = None,
    ) -> None:
        self.schema_of = schema_of
        #: The host's registry of sessions; None if it has none.
        self.registry = registry
        #: Returns the host's present session; None if only the host knows it.
        self.session: Callable[[], Session] | None = session or registry
        #: Returns the tenant that this thread works for; None if the host does not tell.
        self.present_schema = present_schema
        #: The scopes, from the time when somebody is interested in the transactions.
        self.attendant: Attendant | None = None
        #: Notes what is changed before.
        self.unattended = Unattended(schema_of)
        #: Called with a session after something has changed the database by other means than
        #: this session, in its transaction.
        self.on_write: Callable[[Session], object] | None = None
        super().__init__(database, metadatas, self.scope_of, placeholder)

    def is_tenant(self, schema: object) -> bool:
        return is_name(schema)

    def check_schema(self, schema: object) -> str:
        """Return the name of a tenant.

        :raises InvalidSchemaError: if no tenant can have this name.
        """
        if not self.is_tenant(schema):
            raise InvalidSchemaError(
                f'{schema!r} can not be the name of a tenant: use 1 to 63 bytes of UTF-8 without '
                'quotes, "|", ":", braces and control characters, not beginning with "pg_"'
            )
        return str(schema)

    def scope_of(self, connection: Connection) -> SessionOwner:
        """Return the scope of a connection of an engine that is observed.

        :raises InvalidSchemaError: if ``schema_of`` returns something that is no tenant's name.
        :raises ConfigurationError: if it has given this name for another database.
        """
        schema = self.schema_of(connection)
        if schema is not None and isinstance(self.database, Databases):
            self._place(connection, schema, self.database)
        if self.attendant is None:
            return self.unattended
        return self.attendant.scope(NOWHERE if schema is None else self.check_schema(schema))

    def _place(self, connection: Connection, schema: str, databases: Databases) -> None:
        if self.observes(connection, schema):
            databases.place(schema, databases.at(connection))

    def scope_of_any(self, connection: Connection) -> SessionOwner | None:
        """Return the scope of a connection; None if nobody observes its engine."""
        return self.scope_of(connection) if self.observes(connection, '') else None

    def owner(self) -> SessionOwner:
        """Return the scope of a session that works for none yet."""
        if self.attendant is None:
            return self.unattended
        try:
            present = self.attendant.present()
        except Exception:
            # the host's function may raise where it has no tenant, and sessions end there, too
            present = None
        return present or self.attendant.scope(NOWHERE)

    def observes(self, bind: Connection | Engine, schema: str) -> bool:
        return any(bind.engine.pool is each.pool for each in self.database.engines())

    def wrote(self, session: Session) -> None:
        """Tell whoever commits the session's transaction that there is something to commit."""
        if self.on_write is not None:
            if isinstance(session, RunSession):
                session = session.tenant_session
            self.on_write(session)


#: The engines that are observed in this process.
_OBSERVED: WeakSet[Engine] = WeakSet()


def observe(
    *,
    engine: Engine | Iterable[Engine],
    sessions: Any,
    metadata: Any,
    schema_of: SchemaOf,
    session: Callable[[], Session] | None = None,
    schema: Callable[[], str | None] | None = None,
    placeholder: str | None = None,
) -> HostObserver:
    """Observe the engines and sessions of an application that makes them itself.

    Call it once, when the application has made its engine and session factory, and before it
    uses them; give the result to :class:`.OrmCache` or to an app's ``observer``. Of all that the
    application does afterwards by these engines, nothing is missed. It keeps its engines,
    sessions and transactions, and its search paths.

    :param engine: an SQLAlchemy engine of PostgreSQL with psycopg or of a SQLite file, or
        several. Each tenant lies in one of them.
    :param sessions: a ``sessionmaker`` or ``scoped_session``, or several.
    :param metadata: a declarative base or MetaData, or several, or a function that returns them.
    :param schema_of: says which tenant a connection works for, from its execution options or a
        context variable, for example: ``lambda connection: 'public'``. It is called before each
        transaction and statement. If it returns None, the connection works for no tenant: what
        it changes is found out at its commit, and no property can be read in it.
    :param session: returns the application's present session, if it is made otherwise than by
        calling the ``scoped_session``.
    :param schema: returns the tenant that the current thread works for, if the application has
        such a function; otherwise the tenant is the one that ``enter_scope`` was called with.
    :param placeholder: the schema that the metadata gives to the tables of tenants, for example
        ``'per_tenant'``, if ``schema_translate_map`` has a key other than None. All other schemas
        of the metadata are taken for those of tables that tenants share.
    :raises ConfigurationError: if an engine or a factory is observed already, or is of no kind
        that can be observed.
    """
    engines = [_root(each) for each in (engine if isinstance(engine, Iterable) else [engine])]
    factories = list(sessions) if isinstance(sessions, (list, tuple)) else [sessions]
    # all that can be wrong, before anything is attached: it can't be detached again
    for each in engines:
        if each in _OBSERVED or engines.count(each) > 1:
            raise ConfigurationError(f'{each!r} is observed already; observe each engine once')
        check_kind(each)
    if not engines:
        raise ConfigurationError('observe: give an engine, or several')
    if not callable(schema_of):
        raise ConfigurationError(f'observe: schema_of is {schema_of!r}; expected a function')
    made = [_maker_of(each) for each in factories]
    for maker in made:
        if is_observed(maker) or made.count(maker) > 1:
            raise ConfigurationError(f'{maker!r} is observed already; observe it once')
    metadatas = _metadatas(metadata)
    registry = next((each for each in factories if isinstance(each, scoped_session)), None)
    databases: list[Database] = [host_database(each, schema_of) for each in engines]
    database: Database = databases[0] if len(databases) == 1 else Databases(databases)
    observer = HostObserver(
        database, metadatas, schema_of, registry, session, schema, placeholder
    )
    for maker in made:
        observer.watch_sessions(maker, observer.owner, observer.scope_of_any)
    _OBSERVED.update(engines)
    return observer


def _root(engine: Any) -> Engine:
    """Return the engine that has the events and the pool."""
    engine = getattr(engine, '_proxied', engine)  # of `engine.execution_options(...)`
    if not isinstance(engine, Engine):
        raise ConfigurationError(
            f'observe: {engine!r} is no engine of SQLAlchemy; of an AsyncEngine, only the '
            'synchronous use can be observed: engine.sync_engine'
        )
    return engine


def _maker_of(factory: Any) -> sessionmaker[Any]:
    maker = factory.session_factory if isinstance(factory, scoped_session) else factory
    if not isinstance(maker, sessionmaker):
        raise ConfigurationError(
            f'observe: {factory!r} makes its sessions by {maker!r}; expected a sessionmaker, '
            'or a scoped_session that uses one'
        )
    return maker


def check_kind(engine: Engine) -> None:
    """Raise :class:`ConfigurationError` if an engine is of no kind that can be observed."""
    name, driver, file = engine.dialect.name, engine.dialect.driver, engine.url.database
    if name not in ('postgresql', 'sqlite'):
        raise ConfigurationError(
            f'observe: {engine!r} is of {name}, which does not tell what its transactions touch; '
            'use PostgreSQL or SQLite'
        )
    if name == 'postgresql' and driver != DRIVER:
        raise ConfigurationError(
            f'{engine!r} uses the driver {driver!r}; only psycopg can be observed: '
            'postgresql+psycopg://...'
        )
    if name == 'sqlite' and (not file or ':memory:' in file or 'mode=memory' in file):
        raise ConfigurationError(
            f'{engine!r} is a database in memory, which each connection may have another of; '
            'name a file: sqlite:///town.sqlite'
        )


def _metadatas(metadata: Any) -> Callable[[], Sequence[MetaData]]:
    if callable(metadata) and not isinstance(metadata, type):
        return lambda: metadatas_of(metadata())
    found = metadatas_of(metadata)
    return lambda: found


def is_name(schema: object) -> bool:
    """Return whether a tenant of a host may have this name.

    PostgreSQL cuts names off after 63 bytes: two longer ones could be those of one schema.
    """
    if not isinstance(schema, str) or VALID_NAME.fullmatch(schema) is None:
        return False
    if schema.startswith('pg_') or schema == 'information_schema':
        return False
    try:
        return len(schema.encode()) <= 63
    except UnicodeEncodeError:  # a lone surrogate
        return False
