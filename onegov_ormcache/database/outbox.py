"""A table in which a transaction leaves messages for other processes.

A message is there for all as soon as the transaction commits, and nowhere if it does not. Whoever
takes it has it deleted when it was delivered. If a process dies before that, it stays for the
next one. Two processes that deliver the same messages do not skip what the other one has in hand:
the second one waits, so that everything that was there is delivered when it goes on.

Each schema has a table of its own, which is made when the first message is left. This module does
not know what the messages say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, CursorResult
from sqlalchemy.engine import TwoPhaseTransaction

from ..errors import ConfigurationError
from ..forks import register
from .identity import identity_parameters, identity_query
from .inherited import KEPT
from .names import INTERNAL, OUTBOX, OUTBOX_CHANNEL, quote
from .questions import question

#: Makes a schema's table. An application's own role may do so beforehand.
CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text NOT NULL,
    message text NOT NULL,
    left_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""

#: Tells whether the present role may leave messages where others find them: in a table without
#: row security. Null if there is nothing of this name.
IS_WRITABLE = """
SELECT relkind = 'r' AND NOT relrowsecurity AND has_table_privilege(pg_class.oid, 'INSERT')
FROM (VALUES (1)) AS present LEFT JOIN pg_class ON pg_class.oid = to_regclass(%(name)s)
"""

LEAVE = 'INSERT INTO {table} (namespace, message) VALUES (%(namespace)s, %(message)s)'

NOTIFY = f"SELECT pg_notify('{OUTBOX_CHANNEL}', %(namespace)s)"

#: Selects the schemas that have such a table, and whether the present role may read and
#: delete them there: not on a replica. A table may still have pages when all were deleted.
FILLED = f"""
SELECT nspname, has_table_privilege(pg_class.oid, 'SELECT'),
    has_table_privilege(pg_class.oid, 'DELETE')
        AND current_setting('transaction_read_only') = 'off'
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relname = '{OUTBOX}' AND relkind = 'r' {{condition}}
ORDER BY 1
"""

#: The condition that a table has pages. It waits for whoever has locked a table.
HAS_PAGES = 'AND pg_relation_size(pg_class.oid) > 0'

HAS_MESSAGES = 'EXISTS (SELECT FROM {} WHERE namespace = %(namespace)s)'

TAKE = """
WITH taken AS (DELETE FROM {table} WHERE namespace = %(namespace)s RETURNING id, message)
SELECT max(id), left(message, %(length)s) AS message FROM taken GROUP BY 2 LIMIT %(number)s
"""

READ = """
SELECT max(id), left(message, %(length)s) AS message FROM {table}
WHERE namespace = %(namespace)s GROUP BY 2 ORDER BY 1 DESC LIMIT %(number)s
"""

#: Selects what a schema has, by namespace: the number of messages, and the seconds since the
#: oldest was left; null if the table was made without the column that tells it.
COUNT = """
SELECT namespace, count(*),
    extract(epoch FROM clock_timestamp() - min((to_jsonb(left_one) ->> 'left_at')::timestamptz))
FROM {table} AS left_one GROUP BY 1 ORDER BY 1
"""

#: Nobody waits longer than this for another process that delivers, or for a table that is locked.
LIMITS = "SET LOCAL lock_timeout = '300ms'; SET LOCAL statement_timeout = '10s'"

#: The number of different messages, and the characters of each, beyond which a schema's messages
#: are too many to be read.
MOST_MESSAGES, LONGEST_MESSAGE = 1000, 100_000


class Waiting(NamedTuple):
    """The messages of one namespace that lie in a schema's outbox."""

    schema: str
    namespace: str
    number: int
    #: Seconds since the oldest was left; None if it is not known.
    age: float | None
    #: The different messages; None if they are too many or too long.
    messages: Collection[str] | None
    #: Why the outbox can't be read; '' if it can. Then the rest is not known.
    problem: str = ''


class OutboxDatabase(Protocol):
    """The part of a database that its outboxes use."""

    @property
    def error(self) -> type[Exception]:
        """The class of the driver's errors."""

    def own_connection(self, url: str | None = None) -> Any:
        """Return a connection of the driver that belongs to no pool; the caller closes it."""


class Outbox:
    """The outboxes of one PostgreSQL database. Made with it; used by all threads."""

    def __init__(self, database: OutboxDatabase) -> None:
        self._database = database
        # by schema and namespace, the last message of each kind that was handed over, and may not
        # be deleted
        self._undeleted: dict[tuple[str, str], frozenset[tuple[int, str]]] = {}
        # the connection that is kept to look for messages
        self._looking: Any = None
        register(self)

    @property
    def error(self) -> type[Exception]:
        """The class of the driver's errors."""
        return self._database.error

    def leave(self, connection: Connection, schema: str, namespace: str, message: str) -> None:
        """Leave a message in a schema's outbox, as a part of a transaction.

        :param namespace: only those who take messages of this namespace get it.
        :raises Exception: of SQLAlchemy or the driver, if that is not possible. The transaction
            goes on, unless its connection is lost.
        """
        name = table_name(schema)
        values = {'name': name.replace('%%', '%'), 'namespace': namespace, 'message': message}

        def execute(query: str) -> CursorResult[Any]:
            return connection.exec_driver_sql(query, values, execution_options=INTERNAL)

        with question(connection):
            is_writable = execute(IS_WRITABLE).scalar()
        if is_writable is None:
            self._create(name)
        elif not is_writable:
            raise ConfigurationError(
                f'{name} is no table, has row security, or may not be written to'
            )
        with question(connection):
            execute(LEAVE.format(table=name))
            # PostgreSQL prepares no transaction that has sent a notification
            if not isinstance(connection.get_transaction(), TwoPhaseTransaction):
                execute(NOTIFY)

    def is_filled(self, namespace: str) -> bool:
        """Return whether there may be messages of a namespace.

        It asks by a connection that is kept for that: an application's pool may be empty.

        :raises Exception: of the driver, if the database can't be asked.
        """
        try:
            cursor = self._look()
            with self._transaction(cursor):
                rows = cursor.execute(FILLED.format(condition=HAS_PAGES)).fetchall()
                schemas = [schema for schema, is_readable, _ in rows if is_readable]
                if not schemas:
                    return False
                found = ' OR '.join(map(HAS_MESSAGES.format, map(table_name, schemas)))
                parameters = {'namespace': namespace}
                return bool(cursor.execute(f'SELECT {found}', parameters).fetchone()[0])
        except self._database.error as error:
            if is_timeout(error):
                return True  # somebody has locked a table; each is looked at by itself then
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    def deliver(
        self,
        namespace: str,
        handle: Callable[[str, Callable[[], str], Collection[str] | None], None],
        failed: Callable[[str, Exception], None],
        only: Collection[str] | None = None,
    ) -> None:
        """Hand over all messages of a namespace, schema by schema, and delete them.

        They are deleted when ``handle`` has returned, and stay if it raises. Messages that the
        present role may not delete are handed over once.

        :param handle: called with a schema, a function that asks for its identity, and its
            different messages; None instead of messages that are too many or too long.
        :param failed: called with a schema whose messages can't be handed over, and the error.
        :param only: leave other schemas than these out.
        :raises Exception: of the driver, if the database can't be asked.
        """
        with self._own() as cursor:
            for schema, _, is_deletable in self._filled(cursor):
                if only is not None and schema not in only:
                    continue
                try:
                    with self._transaction(cursor):
                        query = TAKE if is_deletable else READ
                        rows = self._rows(cursor, query, schema, namespace)
                        if rows and rows != self._undeleted.get((schema, namespace)):
                            ask_identity = partial(self._identity, cursor, schema)
                            handle(schema, ask_identity, readable(rows))
                        if not is_deletable:
                            self._undeleted[schema, namespace] = rows
                except Exception as error:
                    failed(schema, error)

    def waiting(self) -> list[Waiting]:
        """Return what lies in all outboxes that the present role may read, and leave it there.

        :raises Exception: of the driver, if the database can't be asked.
        """
        found: list[Waiting] = []
        with self._own() as cursor:
            with self._transaction(cursor):
                rows = cursor.execute(FILLED.format(condition='')).fetchall()
            for schema in [schema for schema, is_readable, _ in rows if is_readable]:
                try:
                    with self._transaction(cursor):
                        found += self._waiting(cursor, schema)
                except self._database.error as error:  # it is locked, or no outbox of ours
                    problem = str(error).partition('\n')[0]
                    found.append(Waiting(schema, '', 0, None, None, problem))
        return found

    def _waiting(self, cursor: Any, schema: str) -> Iterator[Waiting]:
        counted = cursor.execute(COUNT.format(table=table_name(schema)), {}).fetchall()
        for namespace, number, age in counted:
            messages = readable(self._rows(cursor, READ, schema, namespace))
            yield Waiting(schema, namespace, number, None if age is None else float(age), messages)

    def close(self) -> None:
        """Close the connection that is kept."""
        kept, self._looking = self._looking, None
        if kept is not None:
            kept.close()

    def after_fork(self) -> None:
        """Leave the connection to the parent; see :mod:`onegov_ormcache.forks`."""
        kept, self._looking = self._looking, None
        if kept is not None:
            KEPT.append(kept)

    def _look(self) -> Any:
        """Return a cursor of the connection that is kept."""
        if self._looking is None:
            connection = self._database.own_connection()
            connection.autocommit = True
            self._looking = connection
        return self._looking.cursor()

    def _filled(self, cursor: Any) -> Any:
        """Return the schemas whose tables have pages; all that have a table, if one is locked."""
        try:
            with self._transaction(cursor):
                return cursor.execute(FILLED.format(condition=HAS_PAGES)).fetchall()
        except self._database.error as error:
            if not is_timeout(error):
                raise
        return cursor.execute(FILLED.format(condition='')).fetchall()

    def _rows(
        self, cursor: Any, query: str, schema: str, namespace: str
    ) -> frozenset[tuple[int, str]]:
        """Return the different messages, each with the last id under which it was left."""
        parameters = {
            'namespace': namespace,
            'number': MOST_MESSAGES + 1,
            'length': LONGEST_MESSAGE + 1,
        }
        found = cursor.execute(query.format(table=table_name(schema)), parameters).fetchall()
        return frozenset(found)

    def _identity(self, cursor: Any, schema: str) -> str:
        found = cursor.execute(identity_query(), identity_parameters([schema])).fetchone()
        return str(found[0])

    def _create(self, name: str) -> None:
        # in a transaction of its own, so that no other writer waits for the end of this one
        with self._own() as cursor, self._transaction(cursor):
            # two that make it at once would fail, also with IF NOT EXISTS
            cursor.execute('SELECT pg_advisory_xact_lock(hashtext(%s))', [f'outbox {name}'])
            cursor.execute(CREATE.format(table=name), [])

    @contextmanager
    def _own(self) -> Iterator[Any]:
        """Yield a cursor of a connection that belongs to no pool: the caller may hold the last
        one of the pool."""
        connection = self._database.own_connection()
        try:
            connection.autocommit = True
            yield connection.cursor()
        finally:
            connection.close()

    @contextmanager
    def _transaction(self, cursor: Any) -> Iterator[None]:
        """Run the block in a transaction that sees what others have committed meanwhile."""
        cursor.execute('BEGIN ISOLATION LEVEL READ COMMITTED')
        try:
            cursor.execute(LIMITS)
            yield
        except BaseException:
            cursor.execute('ROLLBACK')
            raise
        cursor.execute('COMMIT')


def table_name(schema: str) -> str:
    """Return the name of a schema's outbox, quoted, for a query with parameters."""
    return f'{quote(schema)}.{OUTBOX}'.replace('%', '%%')


def is_timeout(error: Exception) -> bool:
    """Return whether an error says that somebody else has locked a table for too long."""
    return getattr(error, 'sqlstate', None) in ('55P03', '57014')


def readable(rows: Collection[tuple[int, str]]) -> Collection[str] | None:
    """Return the messages; None if they are too many or too long."""
    if len(rows) > MOST_MESSAGES or any(len(message) > LONGEST_MESSAGE for _, message in rows):
        return None
    return [message for _, message in rows]
