"""Runs the package's own statements on PostgreSQL: schemas, search path, views, transactions.

It knows SQL and the driver, and nothing of what is done with the answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
    MetaData,
    TextClause,
    create_engine,
    text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import CreateSchema

from ..errors import DatabaseUnreachable
from .names import (
    CHANGED_SETTING,
    CLAIM_LOCK,
    INTERNAL,
    NOTIFY_FUNCTION,
    ORACLE_SAVEPOINT,
    OWN_SETTING,
)
from .protocols import Written

#: The schema for extensions: the second, and last, in a tenant's search path.
EXTENSIONS = 'extensions'

#: SQLSTATE classes, and one SQLSTATE, of errors at COMMIT that leave its outcome unknown.
OPEN_OUTCOMES = ('08', '57', '40003')

#: libpq's transaction status of a connection that is in no transaction.
IDLE = 0

#: SQLSTATE class of the error that ``pg_xact_status()`` raises for an id that is invalid or
#: was not given to a transaction yet.
DATA_EXCEPTION = '22'

#: SQLSTATE of each statement in a transaction that has failed: COMMIT would commit nothing.
FAILED_TRANSACTION = '25P02'

#: Binds a transaction to a tenant's search path and takes the transaction's view. In schemas
#: with triggers, :data:`~.names.OWN_SETTING` tells the triggers that this transaction asks for
#: the changes that they see, so they need not send notifications.
BEGIN = f"""
SELECT set_config('search_path', :path, true), current_setting('transaction_isolation'),
    pg_is_in_recovery(), set_config('{OWN_SETTING}', {{own}}, true) <> ''
"""

#: One schema's part of :data:`~.names.OWN_SETTING`: empty if the schema does not have the trigger
#: function. The query needs two index lookups, and no right to use the schema.
OWN = f"""
CASE WHEN EXISTS (
    SELECT FROM pg_proc WHERE proname = '{NOTIFY_FUNCTION}' AND proargtypes = ''
    AND pronamespace = to_regnamespace(:place_{{n}})
) THEN :own_{{n}} ELSE '' END
"""

#: Returns, directly before COMMIT, the transaction's id and the changes that triggers saw.
#: It also empties :data:`~.names.OWN_SETTING`, so that triggers send notifications from here
#: on: changes made while COMMIT runs (by deferred constraint triggers) are not in this answer.
END = f"""
SELECT pg_current_xact_id_if_assigned()::text, current_setting('{CHANGED_SETTING}', true),
    set_config('{OWN_SETTING}', '', true)
"""

#: Selects, from functions given by name, those that may read tables: functions that are not
#: PostgreSQL's own, unless they are declared immutable, and PostgreSQL's own that execute a
#: text or export tables as XML. Aggregates are always declared immutable, so for them the
#: declaration does not count.
MAY_READ = """
SELECT DISTINCT proname FROM pg_proc WHERE proname = ANY(:names) AND (
    pronamespace <> 'pg_catalog'::regnamespace AND (provolatile <> 'i' OR prokind = 'a')
    OR proname IN ('ts_rewrite', 'ts_stat')
    OR proname ~ '^(cursor|database|query|schema|table)_to_xml'
)
"""

#: SQLSTATEs of errors that a new attempt of the transaction may resolve: serialization
#: failure and deadlock.
RETRYABLE = {'40001', '40P01'}

#: Selects the ids of all other transactions in progress that have an id.
#: ``pg_current_snapshot()`` does not list transactions that are newer than every ended one.
#: ``pg_locks`` has them all, because each transaction holds a lock on its own id, but with
#: only the lower 32 bits of the id; the snapshot's xmax supplies the others.
WRITERS = """
SELECT (xmax + ((transactionid::text::bigint - xmax + 2147483648) & 4294967295) - 2147483648)::text
FROM pg_locks, (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax) AS present
WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted
AND pid IS DISTINCT FROM pg_backend_pid()
"""


class PostgresView(NamedTuple):
    """A transaction's view, as PostgreSQL described it when the transaction began.

    See :class:`~.transactions.View`.
    """

    isolation: str
    replica: bool
    triggers: bool = False

    @property
    def lasts(self) -> bool:
        return self.isolation in ('repeatable read', 'serializable')

    @property
    def serializable(self) -> bool:
        return self.isolation == 'serializable'


class Postgres:
    """A PostgreSQL database, in which each tenant is a schema; one engine serves all of them.

    Made by a session manager; used by all threads until :meth:`dispose`.

    :param url: ``postgresql+psycopg://...``
    :param options: keyword arguments of ``sqlalchemy.create_engine``.
    """

    has_transaction_ids = True

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._engine = create_engine(url, **options)
        #: The schemas of tables that tenants share; set by the session manager.
        self.shared_schemas: Collection[str] = ()
        self._claim: Connection | None = None

    def engine(self, schema: str) -> Engine:
        """Return the engine of a schema, here the same for all."""
        return self._engine

    def engines(self) -> list[Engine]:
        """Return all engines, here the only one."""
        return [self._engine]

    def on_engine(self, watch: Callable[[Engine], None]) -> None:
        """Call ``watch`` with each engine, those made later included; here with the only one."""
        watch(self._engine)

    def check(self) -> None:
        """Check that the database can be reached.

        :raises DatabaseUnreachable: if it can't be reached.
        """
        try:
            with self._connect() as connection:
                connection.exec_driver_sql('SELECT 1')
        except SQLAlchemyError as error:
            where = self._engine.url.render_as_string(hide_password=True)
            reason = ' '.join(str(getattr(error, 'orig', None) or error).split())
            raise DatabaseUnreachable(
                f'dsn {where!r}: {reason}; is the server up, and may we connect to it?'
            ) from error

    @property
    def driver(self) -> str:
        """The name of the driver, as in ``postgresql+DRIVER://``."""
        return self._engine.dialect.driver

    def own_connection(self, url: str | None = None) -> Any:
        """Return a connection of the driver that belongs to no pool; the caller closes it.

        :param url: a URL of the same database, if the engine's can't be used (because it
            goes through a connection pooler, for example).
        """
        engine = self._engine if url is None else create_engine(url)
        checkout = engine.pool.recreate().connect()
        connection = checkout.dbapi_connection
        checkout.detach()
        return connection

    # the methods of `transactions.Dialect`, and queries within a transaction

    def autocommits(self, connection: Connection) -> bool:
        return bool(getattr(connection.connection.dbapi_connection, 'autocommit', False))

    def in_transaction(self, dbapi_connection: Any) -> bool:
        return bool(dbapi_connection.info.transaction_status != IDLE)

    def begin(self, connection: Connection, schema: str) -> PostgresView:
        # set_config() in a SELECT and not SET LOCAL, because only a SELECT takes the view
        # under REPEATABLE READ and SERIALIZABLE; one statement, to save round trips
        places = dict.fromkeys((schema, *self.shared_schemas))
        parameters = {'path': search_path(schema)}
        for n, place in enumerate(places):
            parameters |= {f'place_{n}': quote(place), f'own_{n}': f',{place},'}
        begin = begin_statement(len(places))
        row = connection.execute(begin, parameters, execution_options=INTERNAL).one()
        return PostgresView(row[1], row[2], row[3])

    def written(self, connection: Connection) -> Written:
        # without SQLAlchemy's compiler, which would cost time at each commit
        row = connection.exec_driver_sql(END, execution_options=INTERNAL).one()
        tables = json.loads(row[1]) if row[1] else {}
        return Written(row[0], {parse_change(key): hidden for key, hidden in tables.items()})

    def has_changes(self, connection: Connection) -> bool:
        """Return whether triggers saw any change in the transaction."""
        query = f"SELECT coalesce(current_setting('{CHANGED_SETTING}', true), '') <> ''"
        found = connection.execute(text(query), execution_options=INTERNAL)
        return bool(found.scalar_one())

    def may_read(self, connection: Connection, functions: Collection[str]) -> Collection[str]:
        """Return the functions, of those given, that may read tables.

        The database is asked each time, because functions can be replaced.

        :param functions: names without schema.
        """
        query = text(MAY_READ)
        names = {'names': sorted(functions)}
        return list(connection.execute(query, names, execution_options=INTERNAL).scalars())

    def refused(self, error: BaseException) -> bool:
        state = getattr(error, 'sqlstate', None)
        return isinstance(state, str) and not state.startswith(OPEN_OUTCOMES)

    # the state of other transactions

    def oracle(self, connection: Connection) -> PostgresOracle:
        """Return an object that answers questions about transactions by this connection."""
        return PostgresOracle(connection)

    # schemas

    def list_schemas(self) -> list[str]:
        """Return all schemas but PostgreSQL's own, sorted."""
        with self._connect() as connection:
            rows = connection.exec_driver_sql(
                'SELECT nspname FROM pg_namespace '
                "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1"
            )
            return list(rows.scalars())

    def has_schema(self, schema: str) -> bool:
        """Return whether the database has the schema."""
        with self._connect() as connection:
            found = connection.execute(
                text('SELECT 1 FROM pg_namespace WHERE nspname = :schema'), {'schema': schema}
            )
            return found.first() is not None

    def create_schema(self, schema: str, metadatas: Sequence[MetaData]) -> bool:
        """Create the schema, the schemas of shared tables and all tables, if they are missing.

        :return: True if the tenant's schema was created.
        """
        with self._connect() as connection, connection.begin():
            # CREATE SCHEMA and create_all can fail if two transactions run them at once
            connection.execute(
                text('SELECT pg_advisory_xact_lock(hashtext(:name))'), {'name': f'schema {schema}'}
            )
            found = connection.execute(
                text('SELECT 1 FROM pg_namespace WHERE nspname = :schema'), {'schema': schema}
            ).first()
            if found is None:
                connection.execute(CreateSchema(schema))
            # not by `begin()`, which would keep triggers from sending notifications:
            # nobody asks for their changes here
            connection.execute(
                text("SELECT set_config('search_path', :path, true)"),
                {'path': search_path(schema)},
            )
            for metadata in metadatas:
                for own in sorted({t.schema for t in metadata.tables.values() if t.schema}):
                    connection.execute(CreateSchema(own, if_not_exists=True))
                metadata.create_all(connection)
            return found is None

    # use by one process alone

    def claim(self) -> bool:
        """Claim the database for this process alone, until :meth:`dispose`.

        :return: False if it is claimed already.
        """
        connection = self._connect().execution_options(isolation_level='AUTOCOMMIT')
        # the lock lasts as long as this connection, which is detached so that it neither
        # returns to the pool nor takes up a place in it
        connection.detach()
        question = f'SELECT pg_try_advisory_lock({CLAIM_LOCK})'
        taken = connection.exec_driver_sql(question).scalar_one()
        if not taken:
            connection.close()
            return False
        self._claim = connection
        return True

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
        return self._engine.connect().execution_options(**INTERNAL)


class PostgresOracle:
    """Answers questions about the state of transactions.

    Made by :meth:`Postgres.oracle`, used as long as its connection is.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def in_progress(self, transaction_id: str) -> bool:
        """Return whether the transaction's outcome is still open.

        True if the question fails for another reason than the id.

        :raises DBAPIError: if the connection is lost.
        """
        # SAVEPOINT as a text: `begin_nested()` needs a transaction whose begin SQLAlchemy has
        # completed, but the question is also asked while a transaction begins
        self._execute(f'SAVEPOINT {ORACLE_SAVEPOINT}')
        try:
            query = 'SELECT pg_xact_status(CAST(:xid AS xid8))'
            status = self._execute(query, xid=transaction_id).scalar_one()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            self._execute(f'ROLLBACK TO SAVEPOINT {ORACLE_SAVEPOINT}')
            # an id that the database has not given yet is from before a restore, so its
            # transaction has ended; an error that is not about the id (a timeout, a missing
            # right) tells nothing
            state = getattr(error.orig, 'sqlstate', None) or ''
            status = None if state.startswith(DATA_EXCEPTION) else 'in progress'
        self._execute(f'RELEASE SAVEPOINT {ORACLE_SAVEPOINT}')
        return bool(status == 'in progress')

    def writers_in_progress(self) -> Collection[str]:
        """Return the ids of all other transactions that have an id and have not ended."""
        return list(self._execute(WRITERS).scalars())

    def _execute(self, query: str, **parameters: str) -> CursorResult[Any]:
        return self._connection.execute(text(query), parameters, execution_options=INTERNAL)


@cache
def begin_statement(places: int) -> TextClause:
    """Return the statement that begins a transaction.

    :param places: the number of schemas that the transaction may ask about: the tenant's, and
        those of shared tables.
    """
    return text(BEGIN.format(own=' || '.join(OWN.format(n=n) for n in range(places))))


def search_path(schema: str) -> str:
    """Return the search path of a tenant's transactions."""
    return f'{quote(schema)}, {EXTENSIONS}'


def parse_change(text: str) -> tuple[str, str]:
    """Return schema and table of a change that a trigger reports as ``SCHEMA:TABLE``."""
    schema, _, table = text.partition(':')
    return schema, table


def quote(name: str) -> str:
    """Return a name as a quoted identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'
