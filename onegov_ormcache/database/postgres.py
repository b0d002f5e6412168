"""Runs the package's own statements on PostgreSQL: schemas, search path, views, transactions.

It knows SQL and the driver, and nothing of what is done with the answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from typing import Any

from cachetools import LRUCache
from sqlalchemy import Connection, Engine, MetaData, TextClause, create_engine, text
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import CreateSchema

from ..errors import DatabaseUnreachable
from .catalog import Catalogs, Definition
from .checkouts import is_closed
from .driver import (
    IDLE,
    ending,
    has_committed,
    report_to,
    status_of,
    watch_connection,
    watch_driver,
)
from .identity import identity_columns, identity_parameters, identity_query
from .inquiries import STRAYED, PostgresInquiry, PostgresView, new_marker
from .names import (
    CLAIM_LOCK,
    INTERNAL,
    MARKER_SETTING,
    NOTIFY_FUNCTION,
    OWN_SETTING,
    quote,
)
from .notes import take_notes
from .oracle import PostgresOracle, new_key
from .outbox import Outbox
from .prepared import ANY_TENANT, keep_apart
from .probes import OF_PACKAGE, SURROUNDINGS
from .protocols import Dialect, Scope, Statement
from .questions import raising
from .statements import Understanding
from .tables import Tables
from .urls import parse, shown, without_password

#: The schema for extensions: the second in a tenant's search path.
EXTENSIONS = 'extensions'

#: SQLSTATE classes, and one SQLSTATE, of errors at COMMIT that leave its outcome unknown.
OPEN_OUTCOMES = ('08', '57', '40003')

#: How the server says that waiting will not help. It gives no SQLSTATE to who may not connect.
WRONG_SETTING = re.compile(
    r'authentication failed|does not exist|no pg_hba\.conf entry|not permitted to log in|'
    r'no password supplied|permission denied'
)

#: Binds a transaction to a tenant's search path and takes the transaction's view. It also takes
#: the lock of the transaction's key, see :mod:`.oracle`. In schemas with triggers,
#: :data:`~.names.OWN_SETTING` tells the triggers that this transaction asks for the changes that
#: they see, so they need not send notifications.
BEGIN = f"""
SELECT {{path}}, current_setting('transaction_isolation'), pg_is_in_recovery(),
    set_config('{OWN_SETTING}', {{own}}, true) <> '',
    set_config('{MARKER_SETTING}', :marker, true), {SURROUNDINGS},
    pg_advisory_xact_lock(:key), {{identities}}
"""

#: The expression that sets the search path, for :data:`BEGIN`.
SET_PATH = "set_config('search_path', :path, true)"

#: The number of SETs of hosts whose effect is remembered.
REMEMBERED_SETTINGS = 10_000


#: One schema's part of :data:`~.names.OWN_SETTING`: empty if the schema does not have the trigger
#: function. The query needs two index lookups, and no right to use the schema.
OWN = f"""
CASE WHEN EXISTS (
    SELECT FROM pg_proc WHERE proname = '{NOTIFY_FUNCTION}' AND proargtypes = ''
    AND pronamespace = to_regnamespace(:place_{{n}})
) THEN :own_{{n}} ELSE '' END
"""

#: Tells whether the server is a replica.
REPLICA = text('SELECT pg_is_in_recovery()')

#: Selects all schemas but PostgreSQL's own.
SCHEMAS = """
SELECT nspname FROM pg_namespace
WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1
"""

#: SQLSTATEs of errors that a new attempt of the transaction may resolve: serialization
#: failure and deadlock.
RETRYABLE = {'40001', '40P01'}


class Postgres:
    """A PostgreSQL database, in which each tenant is a schema; one engine serves all of them.

    Made by an observer; used by all threads until :meth:`dispose`.

    :param engine: whose compiler takes notes, and whose connections report, from now on.
    """

    has_transaction_ids = True
    counts_all = True

    #: The questions about its transactions.
    probes = OF_PACKAGE

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        take_notes(engine.dialect)
        watch_driver(engine)
        #: The schemas of tables that tenants share.
        self.shared_schemas: Collection[str] = ()
        #: Its outboxes.
        self.outbox = Outbox(self)
        self._claim: Any = None
        # the settings with which the first transaction began, apart from search path and role
        self._settings: str | None = None
        #: See :class:`.inquiries.Definitions`.
        self.settings: LRUCache[tuple[str, str], str] = LRUCache(REMEMBERED_SETTINGS)

    @property
    def address(self) -> str:
        """The URL, without password."""
        return shown(self._engine.url)

    def know(self, tables: Tables) -> None:
        """Take the tables that statements may name; called by the observer."""
        self.shared_schemas = tables.shared_schemas
        self.catalogs = Catalogs(tables.relations, tables.shared_schemas, EXTENSIONS)
        self._understanding = Understanding(self.catalogs, tables)

    def engine(self, schema: str) -> Engine:
        """Return the engine of a schema, here the same for all."""
        return self._engine

    def engines(self) -> list[Engine]:
        """Return all engines, here the only one."""
        return [self._engine]

    def on_engine(self, watch: Callable[[Engine, Dialect], None]) -> None:
        """Call ``watch`` with each engine, those made later included; here with the only one."""
        watch(self._engine, self)

    def check(self) -> None:
        """Check that the database can be reached.

        :raises DatabaseUnreachable: if it can't be reached.
        """
        failure: Exception | None = None
        try:
            self._ask('SELECT 1')
        except SQLAlchemyError as error:
            failure = error
        if failure is not None:
            unreachable, cause = self._unreachable(failure)
            raise unreachable from cause

    @property
    def driver(self) -> str:
        """The name of the driver, as in ``postgresql+DRIVER://``."""
        return self._engine.dialect.driver

    def own_connection(self, url: str | None = None) -> Any:
        """Return a connection of the driver that belongs to no pool; the caller closes it.

        No listener of the engine is told of it.

        :param url: a URL of the same database, if the engine's can't be used (because it
            goes through a connection pooler, for example).
        :raises DatabaseUnreachable: if the driver does not know an option of the URL.
        """
        engine = self._engine if url is None else create_engine(parse(url))
        try:
            # the engine's pool has the only function that knows all the engine's arguments
            return engine.pool._invoke_creator(None)  # type: ignore[arg-type]
        except engine.dialect.loaded_dbapi.ProgrammingError:
            pass  # its text has the option, which may be a part of a password
        raise DatabaseUnreachable(
            f'dsn {shown(engine.url)!r}: the driver refuses an option that follows the "?", or is '
            'in engine_options: it does not know it, or its value is wrong'
        )

    def _unreachable(self, error: Exception) -> tuple[DatabaseUnreachable, Exception | None]:
        """Return the package's own error for one of the driver's, and its cause, unless the text
        of that has the password."""
        text = ' '.join(str(getattr(error, 'orig', None) or error).split())
        reason = without_password(text, self._engine.url)
        unreachable = DatabaseUnreachable(
            f'dsn {self.address!r}: {reason}; is the server up, and may we connect to it?'
        )
        unreachable.is_temporary = WRONG_SETTING.search(reason) is None
        return unreachable, error if reason == text else None

    @contextmanager
    def _own(self) -> Iterator[Any]:
        """Yield a connection of the driver, in AUTOCOMMIT, and close it after the block.

        :raises OperationalError: if the server refuses it, or does not answer.
        """
        with raising(self._engine.dialect), closing(self.own_connection()) as connection:
            connection.autocommit = True
            yield connection

    def _ask(self, question: str, parameters: Any = None) -> list[Any]:
        """Return the rows that a connection of its own gives."""
        with self._own() as connection:
            return list(connection.cursor().execute(question, parameters).fetchall())

    # the methods of `transactions.Dialect`, and queries within a transaction

    def autocommits(self, connection: Connection) -> bool:
        return bool(getattr(connection.connection.dbapi_connection, 'autocommit', False))

    def in_transaction(self, dbapi_connection: Any) -> bool:
        return status_of(dbapi_connection) != IDLE

    def has_ended(self, dbapi_connection: Any) -> bool:
        # a text may have committed and begun again
        return has_committed(dbapi_connection) or not self.in_transaction(dbapi_connection)

    def begin(
        self, connection: Connection, scope: Scope
    ) -> tuple[PostgresView, PostgresInquiry]:
        # set_config() in a SELECT and not SET LOCAL, because only a SELECT takes the view
        # under REPEATABLE READ and SERIALIZABLE; one statement, to save round trips
        schema, marker, key = scope.schema, new_marker(), new_key(scope.schema)
        watch_connection(connection.connection.dbapi_connection)
        places = dict.fromkeys((schema, *self.shared_schemas))
        parameters = {
            'path': search_path(schema), 'marker': marker, 'key': key,
            **identity_parameters(places),
        }  # fmt: skip
        for n, place in enumerate(places):
            parameters |= {f'place_{n}': quote(place), f'own_{n}': f',{place},'}
        keep_apart(connection, ANY_TENANT)
        row = connection.execute(
            self._begin_statement(len(places)), parameters, execution_options=INTERNAL
        ).one()
        keep_apart(connection, schema)
        inquiry = PostgresInquiry(
            connection, scope, self, marker, str(key), self.probes, row[0], row[5]
        )
        settings = row[5].rpartition('|')[0]
        if self._settings is None:
            self._settings = settings
        strayed = None if settings == self._settings else STRAYED
        identities = dict(zip(places, row[7:], strict=True))
        return PostgresView(row[1], row[2], row[3], strayed, identities), inquiry

    def _begin_statement(self, places: int) -> TextClause:
        return begin_statement(SET_PATH, places)

    def begin_again(
        self, connection: Connection, scope: Scope
    ) -> tuple[PostgresView, PostgresInquiry] | None:
        return self.begin(connection, scope) if self.leave(connection) else None

    def leave(self, connection: Connection) -> bool:
        """Roll back what was asked, so that the next statement takes a new view.

        :return: False if that is not possible.
        """
        with raising(connection.dialect, connection):
            try:
                connection.connection.rollback()
            except connection.dialect.loaded_dbapi.ProgrammingError:
                return False  # the driver refuses it within a two-phase transaction
        return True

    def executing(
        self, connection: Connection, scope: Scope, sql: str, context: ExecutionContext | None
    ) -> Statement | None:
        return self._understanding.statement(connection, scope, sql, context)

    def executed(self, connection: Connection, context: ExecutionContext | None) -> None:
        """Return None: :meth:`executing` has told."""

    def assign_id(self, connection: Connection) -> None:
        """Give the transaction an id, if it has none yet."""
        connection.exec_driver_sql('SELECT pg_current_xact_id()', execution_options=INTERNAL)

    def lost_savepoint(self, dbapi_connection: Any) -> bool:
        """Return False: what the driver does by itself is unclear in any case."""
        return False

    def report_to(
        self,
        dbapi_connection: Any,
        report: Callable[[], None] | None,
        setting: Callable[[str], None] | None = None,
    ) -> None:
        report_to(dbapi_connection, report, None)

    def ending(self, dbapi_connection: Any) -> AbstractContextManager[None]:
        return ending(dbapi_connection)

    def committed(self, oids: Collection[int]) -> dict[int, Definition]:
        """Return the definitions of relations that the present transaction has dropped, renamed
        or otherwise redefined, as they were before.

        A connection of its own still sees them.
        """
        with self._own() as connection:
            return self.catalogs.read_by_driver(connection, oids)

    def identities(self, places: Collection[str]) -> dict[str, str]:
        """Return the identities of schemas, asked by a connection of its own."""
        with self._own() as connection:
            return {
                place: connection.execute(
                    identity_query(), identity_parameters((place,))
                ).fetchone()[0]
                for place in places
            }

    def refused(self, error: BaseException) -> bool:
        state = getattr(error, 'sqlstate', None)
        return isinstance(state, str) and not state.startswith(OPEN_OUTCOMES)

    # the state of other transactions

    def oracle(self, connection: Connection) -> PostgresOracle:
        """Return an object that answers questions about transactions by this connection."""
        return PostgresOracle(connection, self.shared_schemas)

    def is_replica(self, connection: Connection) -> bool:
        """Return whether the server is a replica, which may lag behind."""
        return bool(connection.execute(REPLICA, execution_options=INTERNAL).scalar_one())

    # schemas

    def list_schemas(self) -> list[str]:
        """Return all schemas but PostgreSQL's own, sorted."""
        return [name for (name,) in self._ask(SCHEMAS)]

    def has_schema(self, schema: str) -> bool:
        """Return whether the database has the schema."""
        query = 'SELECT 1 FROM pg_namespace WHERE nspname = %(schema)s'
        return bool(self._ask(query, {'schema': schema}))

    def create_schema(
        self, schema: str, metadatas: Sequence[MetaData], created: Callable[[], object]
    ) -> bool:
        """Create the schema, the schemas of shared tables and all tables, if they are missing.

        :param created: called if the tenant's schema was created, before others can see it.
        :return: True if the tenant's schema was created.
        """
        # a view that lasts would be taken before the lock is granted, and be too old then
        level = {'isolation_level': 'READ COMMITTED'}
        with self._connect().execution_options(**level) as connection, connection.begin():
            # CREATE SCHEMA and create_all can fail if two transactions run them at once
            connection.execute(
                text('SELECT pg_advisory_xact_lock(hashtext(:name))'), {'name': f'schema {schema}'}
            )
            found = connection.execute(
                text('SELECT 1 FROM pg_namespace WHERE nspname = :schema'), {'schema': schema}
            ).first()
            if found is None:
                connection.execute(CreateSchema(schema))
            # not by `begin()`, which would keep triggers from sending notifications
            connection.execute(
                text("SELECT set_config('search_path', :path, true)"),
                {'path': search_path(schema)},
            )
            keep_apart(connection, schema)
            if self.shared_schemas:
                # several tenants may be made at once
                connection.execute(text('SELECT pg_advisory_xact_lock(hashtext(:name))'), {
                    'name': 'shared schemas'
                })
            for own in self.shared_schemas:
                connection.execute(CreateSchema(own, if_not_exists=True))
            for metadata in metadatas:
                metadata.create_all(connection)
            if found is None:
                created()
            return found is None

    # use by one process alone

    def claim(self) -> bool:
        """Claim the database for this process alone, until :meth:`dispose`.

        :return: False if it is claimed already.
        """
        # the lock lasts as long as this connection
        with raising(self._engine.dialect):
            connection = self.own_connection()
            connection.autocommit = True
            question = f'SELECT pg_try_advisory_lock({CLAIM_LOCK})'
            (taken,) = connection.cursor().execute(question).fetchone()
        if not taken:
            connection.close()
            return False
        if self._claim is not None:
            self._claim.close()
        self._claim = connection
        return True

    def has_lost_claim(self) -> bool:
        """Return whether the server has closed the connection that had the claim."""
        error_class = self._engine.dialect.loaded_dbapi.Error
        return self._claim is not None and is_closed(self._claim, error_class)

    def claim_again(self) -> bool:
        """Claim the database again, if the claim was lost; return False if it can't be had."""
        return not self.has_lost_claim() or self.claim()

    def dispose(self, close: bool = True) -> None:
        """Close all connections and give the claim up.

        :param close: False in a forked child: the connections, and the claim, belong to the
            parent, so they are only forgotten.
        """
        if self._claim is not None and close:
            self._claim.close()
        self._claim = None
        self._engine.dispose(close=close)

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether a new attempt of the transaction may resolve the error."""
        if not isinstance(error, DBAPIError):
            return False
        return getattr(error.orig, 'sqlstate', None) in RETRYABLE

    def _connect(self) -> Connection:
        """Return a connection of the pool, for questions of the package."""
        return self._engine.connect().execution_options(**INTERNAL)

    @property
    def error(self) -> type[Exception]:
        """The class of the driver's errors."""
        return self._engine.dialect.loaded_dbapi.Error

    def outboxes(self) -> list[Outbox]:
        """Return the outboxes of its tenants."""
        return [self.outbox]

    def outbox_at(self, connection: Connection) -> Outbox:
        """Return the outboxes of the tenants of a connection."""
        return self.outbox


@cache
def begin_statement(path: str, places: int) -> TextClause:
    """Return the statement that begins a transaction.

    :param path: the expression that sets or tells the search path.
    :param places: the number of schemas that the transaction may ask about: the tenant's, and
        those of shared tables.
    """
    own = ' || '.join(OWN.format(n=n) for n in range(places))
    return text(BEGIN.format(path=path, own=own, identities=identity_columns(places)))


def search_path(schema: str) -> str:
    """Return the search path of a tenant's transactions."""
    # pg_temp last, or a temporary table would hide the tenant's
    return f'{quote(schema)}, {EXTENSIONS}, pg_temp'
