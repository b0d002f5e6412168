"""What the package asks of PostgreSQL: schemas, search path, views, transactions."""

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
from .transactions import Written

#: The schema, beside the tenant's own, in which extensions may lie.
EXTENSIONS = 'extensions'

#: SQLSTATE classes, and one state, of errors at COMMIT that do not tell its outcome.
OPEN_OUTCOMES = ('08', '57', '40003')

#: libpq's transaction status of a connection without a transaction.
IDLE = 0

#: SQLSTATE class of a question about a transaction id that is none, or none yet.
DATA_EXCEPTION = '22'

#: SQLSTATE of a transaction that has failed: whatever comes, nothing of it is committed.
FAILED_TRANSACTION = '25P02'

#: Binds a transaction to a tenant and takes its view. Where there are triggers, they are
#: told that this transaction asks for what they see, and need not tell everybody.
BEGIN = f"""
SELECT set_config('search_path', :path, true), current_setting('transaction_isolation'),
    pg_is_in_recovery(), set_config('{OWN_SETTING}', {{own}}, true) <> ''
"""

#: One of the schemas of :data:`OWN_SETTING`, if it has the function; found by two indexes,
#: and without the right to use the schema.
OWN = f"""
CASE WHEN EXISTS (
    SELECT FROM pg_proc WHERE proname = '{NOTIFY_FUNCTION}' AND proargtypes = ''
    AND pronamespace = to_regnamespace(:place_{{n}})
) THEN :own_{{n}} ELSE '' END
"""

#: From here on triggers tell everybody: what is changed while COMMIT runs (by constraint
#: triggers that are deferred) is not in the answer.
END = f"""
SELECT pg_current_xact_id_if_assigned()::text, current_setting('{CHANGED_SETTING}', true),
    set_config('{OWN_SETTING}', '', true)
"""

#: Those of some functions that may read tables: all that are not the database's own, unless
#: they are declared immutable, and the database's that execute a text (aggregates are always
#: declared immutable).
MAY_READ = """
SELECT DISTINCT proname FROM pg_proc WHERE proname = ANY(:names) AND (
    pronamespace <> 'pg_catalog'::regnamespace AND (provolatile <> 'i' OR prokind = 'a')
    OR proname IN ('ts_rewrite', 'ts_stat')
    OR proname ~ '^(cursor|database|query|schema|table)_to_xml'
)
"""

#: SQLSTATEs that a new attempt of the transaction resolves.
RETRYABLE = {'40001', '40P01'}

#: The ids of all other transactions that have one. A snapshot's own list lacks those
#: that are newer than all that have ended; the locks that transactions hold on their
#: ids have them all, but without the upper 32 bits.
WRITERS = """
SELECT (xmax + ((transactionid::text::bigint - xmax + 2147483648) & 4294967295) - 2147483648)::text
FROM pg_locks, (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax) AS present
WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted
AND pid IS DISTINCT FROM pg_backend_pid()
"""


class PostgresView(NamedTuple):
    """The view of a transaction, as PostgreSQL told it when it began."""

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
    """A tenant is a schema; one engine serves all of them.

    :param url: ``postgresql+psycopg://...``
    :param options: keyword arguments of ``sqlalchemy.create_engine``.
    """

    has_transaction_ids = True

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._engine = create_engine(url, **options)
        #: The schemas of tables that tenants share.
        self.shared_schemas: Collection[str] = ()
        self._claim: Connection | None = None

    def engine(self, schema: str) -> Engine:
        return self._engine

    def engines(self) -> list[Engine]:
        return [self._engine]

    def on_engine(self, watch: Callable[[Engine], None]) -> None:
        """Call ``watch`` with each engine, now and when one is made."""
        watch(self._engine)

    def check(self) -> None:
        """Find out whether the database can be reached.

        :raises DatabaseUnreachable: if not.
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
        """A connection of the driver that belongs to no pool; its user closes it.

        :param url: of the same database, if it can't be that of the engine.
        """
        engine = self._engine if url is None else create_engine(url)
        checkout = engine.pool.recreate().connect()
        connection = checkout.dbapi_connection
        checkout.detach()
        return connection

    # the part that transactions need

    def autocommits(self, connection: Connection) -> bool:
        return bool(getattr(connection.connection.dbapi_connection, 'autocommit', False))

    def in_transaction(self, dbapi_connection: Any) -> bool:
        return bool(dbapi_connection.info.transaction_status != IDLE)

    def begin(self, connection: Connection, schema: str) -> PostgresView:
        # a SELECT and not SET LOCAL, because a SELECT takes the view of the stricter
        # isolation levels; and one statement for all that must be known
        places = dict.fromkeys((schema, *self.shared_schemas))
        parameters = {'path': search_path(schema)}
        for n, place in enumerate(places):
            parameters |= {f'place_{n}': quote(place), f'own_{n}': f',{place},'}
        begin = begin_statement(len(places))
        row = connection.execute(begin, parameters, execution_options=INTERNAL).one()
        return PostgresView(row[1], row[2], row[3])

    def written(self, connection: Connection) -> Written:
        # past SQLAlchemy's compiler, which each commit would pay for
        row = connection.exec_driver_sql(END, execution_options=INTERNAL).one()
        tables = json.loads(row[1]) if row[1] else {}
        return Written(row[0], {parse_change(key): hidden for key, hidden in tables.items()})

    def has_changes(self, connection: Connection) -> bool:
        """Whether triggers saw any change in the transaction."""
        query = f"SELECT coalesce(current_setting('{CHANGED_SETTING}', true), '') <> ''"
        found = connection.execute(text(query), execution_options=INTERNAL)
        return bool(found.scalar_one())

    def may_read(self, connection: Connection, functions: Collection[str]) -> Collection[str]:
        """Those of the functions that may read tables; asked anew, as they can be replaced."""
        query = text(MAY_READ)
        names = {'names': sorted(functions)}
        return list(connection.execute(query, names, execution_options=INTERNAL).scalars())

    def refused(self, error: BaseException) -> bool:
        state = getattr(error, 'sqlstate', None)
        return isinstance(state, str) and not state.startswith(OPEN_OUTCOMES)

    # what settling asks

    def oracle(self, connection: Connection) -> PostgresOracle:
        """Answers questions about transactions through this connection."""
        return PostgresOracle(connection)

    # schemas

    def list_schemas(self) -> list[str]:
        with self._connect() as connection:
            rows = connection.exec_driver_sql(
                'SELECT nspname FROM pg_namespace '
                "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1"
            )
            return list(rows.scalars())

    def has_schema(self, schema: str) -> bool:
        with self._connect() as connection:
            found = connection.execute(
                text('SELECT 1 FROM pg_namespace WHERE nspname = :schema'), {'schema': schema}
            )
            return found.first() is not None

    def create_schema(self, schema: str, metadatas: Sequence[MetaData]) -> bool:
        """Create the schema and its tables, as far as they are missing.

        :return: True if the schema is new.
        """
        with self._connect() as connection, connection.begin():
            # CREATE SCHEMA and create_all are not safe beside each other
            connection.execute(
                text('SELECT pg_advisory_xact_lock(hashtext(:name))'), {'name': f'schema {schema}'}
            )
            found = connection.execute(
                text('SELECT 1 FROM pg_namespace WHERE nspname = :schema'), {'schema': schema}
            ).first()
            if found is None:
                connection.execute(CreateSchema(schema))
            # and not `begin`: nobody will ask here for what triggers see
            connection.execute(
                text("SELECT set_config('search_path', :path, true)"),
                {'path': search_path(schema)},
            )
            for metadata in metadatas:
                for own in sorted({t.schema for t in metadata.tables.values() if t.schema}):
                    connection.execute(CreateSchema(own, if_not_exists=True))
                metadata.create_all(connection)
            return found is None

    # what is kept in one process alone

    def claim(self) -> bool:
        """Take the database for this process alone, until :meth:`dispose`; False if it is
        taken."""
        connection = self._connect().execution_options(isolation_level='AUTOCOMMIT')
        # the lock is the connection's: it must not go back to the pool, nor be missed there
        connection.detach()
        question = f'SELECT pg_try_advisory_lock({CLAIM_LOCK})'
        taken = connection.exec_driver_sql(question).scalar_one()
        if not taken:
            connection.close()
            return False
        self._claim = connection
        return True

    def dispose(self, close: bool = True) -> None:
        """Close all connections; ``close=False`` in a forked child: they are its parent's."""
        if self._claim is not None and close:
            self._claim.close()
        self._claim = None
        self._engine.dispose(close=close)

    def is_conflict(self, error: BaseException) -> bool:
        """Whether a new attempt of the transaction may resolve the error."""
        if not isinstance(error, DBAPIError):
            return False
        return getattr(error.orig, 'sqlstate', None) in RETRYABLE

    def _connect(self) -> Connection:
        return self._engine.connect().execution_options(**INTERNAL)


class PostgresOracle:
    """Asks PostgreSQL what became of transactions."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def in_progress(self, transaction_id: str) -> bool:
        # a savepoint by hand: SQLAlchemy's own needs a transaction that has begun for it,
        # and this is asked while one begins, too
        self._execute(f'SAVEPOINT {ORACLE_SAVEPOINT}')
        try:
            query = 'SELECT pg_xact_status(CAST(:xid AS xid8))'
            status = self._execute(query, xid=transaction_id).scalar_one()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            self._execute(f'ROLLBACK TO SAVEPOINT {ORACLE_SAVEPOINT}')
            # an id from the future has ended: the database was restored since; an error
            # that is not about the id (a timeout, a missing right) tells nothing
            state = getattr(error.orig, 'sqlstate', None) or ''
            status = None if state.startswith(DATA_EXCEPTION) else 'in progress'
        self._execute(f'RELEASE SAVEPOINT {ORACLE_SAVEPOINT}')
        return bool(status == 'in progress')

    def writers_in_progress(self) -> Collection[str]:
        return list(self._execute(WRITERS).scalars())

    def _execute(self, query: str, **parameters: str) -> CursorResult[Any]:
        return self._connection.execute(text(query), parameters, execution_options=INTERNAL)


@cache
def begin_statement(places: int) -> TextClause:
    """What begins a transaction that is about so many schemas."""
    return text(BEGIN.format(own=' || '.join(OWN.format(n=n) for n in range(places))))


def search_path(schema: str) -> str:
    """What a transaction of this tenant has for its search path."""
    return f'{quote(schema)}, {EXTENSIONS}'


def parse_change(text: str) -> tuple[str, str]:
    """Schema and table of what a trigger tells: ``SCHEMA:TABLE``."""
    schema, _, table = text.partition(':')
    return schema, table


def quote(name: str) -> str:
    """A name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'
