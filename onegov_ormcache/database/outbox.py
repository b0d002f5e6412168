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
from typing import Any, Protocol

from sqlalchemy import Connection, text
from sqlalchemy.engine import TwoPhaseTransaction

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
    message text NOT NULL
)
"""

#: Tells whether the present role may leave messages; null if there is no table.
IS_WRITABLE = "SELECT has_table_privilege(to_regclass(:name), 'INSERT')"

LEAVE = 'INSERT INTO {table} (namespace, message) VALUES (:namespace, :message)'

NOTIFY = f"SELECT pg_notify('{OUTBOX_CHANNEL}', :namespace)"

#: Selects the schemas whose tables may have messages, and whether the present role may read and
#: delete them there. A table may still have pages when all messages were deleted.
FILLED = f"""
SELECT nspname, has_table_privilege(pg_class.oid, 'SELECT'),
    has_table_privilege(pg_class.oid, 'DELETE')
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relname = '{OUTBOX}' AND relkind IN ('r', 'p') AND pg_relation_size(pg_class.oid) > 0
ORDER BY 1
"""

HAS_MESSAGES = 'EXISTS (SELECT FROM {} WHERE namespace = %(namespace)s)'

TAKE = """
WITH taken AS (DELETE FROM {table} WHERE namespace = %(namespace)s RETURNING id, message)
SELECT max(id), left(message, %(length)s) AS message FROM taken GROUP BY 2 LIMIT %(number)s
"""

READ = """
SELECT max(id), left(message, %(length)s) AS message FROM {table}
WHERE namespace = %(namespace)s GROUP BY 2 LIMIT %(number)s
"""

#: Nobody waits longer than this for another process that delivers, or for a table that is locked.
LIMITS = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '10s'"

#: The number of different messages, and the characters of each, beyond which a schema's messages
#: are too many to be read.
MOST_MESSAGES, LONGEST_MESSAGE = 1000, 100_000


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
        # by schema, the last message of each kind that was delivered, and could not be deleted
        self._undeleted: dict[str, frozenset[tuple[int, str]]] = {}
        # the connection that is kept to look for messages
        self._looking: Any = None
        register(self)

    def leave(self, connection: Connection, schema: str, namespace: str, message: str) -> None:
        """Leave a message in a schema's outbox, as a part of a transaction.

        :param namespace: only those who take messages of this namespace get it.
        :raises Exception: of SQLAlchemy or the driver, if that is not possible. The transaction
            goes on, unless its connection is lost.
        """
        name = table_name(schema)
        with question(connection):
            is_writable = connection.execute(
                text(IS_WRITABLE), {'name': name}, execution_options=INTERNAL
            ).scalar()
        if is_writable is None:
            self._create(name)
        with question(connection):
            connection.execute(
                text(LEAVE.format(table=name)),
                {'namespace': namespace, 'message': message},
                execution_options=INTERNAL,
            )
            # PostgreSQL prepares no transaction that has sent a notification
            if not isinstance(connection.get_transaction(), TwoPhaseTransaction):
                connection.execute(
                    text(NOTIFY), {'namespace': namespace}, execution_options=INTERNAL
                )

    def is_filled(self, namespace: str) -> bool:
        """Return whether there may be messages of a namespace.

        Takes a query, and a second one if a table has pages, by a connection that is kept for
        that: an application's pool may be empty.
        """
        try:
            cursor = self._look()
            rows = cursor.execute(FILLED).fetchall()
            schemas = [schema for schema, is_readable, _ in rows if is_readable]
            found = ' OR '.join(map(HAS_MESSAGES.format, map(table_name, schemas)))
            parameters = {'namespace': namespace}
            return bool(schemas) and cursor.execute(f'SELECT {found}', parameters).fetchone()[0]
        except Exception:
            self.close()
            raise

    def deliver(
        self,
        namespace: str,
        handle: Callable[[str, Callable[[], str], Collection[str] | None], None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        """Hand over all messages of a namespace, schema by schema, and delete them.

        They are deleted when ``handle`` has returned, and stay if it raises. Messages that the
        present role may not delete are handed over once.

        :param handle: called with a schema, a function that asks for its identity, and its
            different messages; None instead of messages that are too many or too long.
        :param failed: called with a schema whose messages can't be handed over, and the error.
        :raises Exception: of the driver, if the database can't be asked.
        """
        with self._own() as cursor:
            with self._transaction(cursor):
                filled = cursor.execute(FILLED).fetchall()
            for schema, _, is_deletable in filled:
                try:
                    with self._transaction(cursor):
                        messages = self._take(cursor, schema, namespace, is_deletable)
                        if messages is None or messages:
                            handle(schema, partial(self._identity, cursor, schema), messages)
                except Exception as error:
                    failed(schema, error)

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

    def _take(
        self, cursor: Any, schema: str, namespace: str, is_deletable: bool
    ) -> Collection[str] | None:
        query = (TAKE if is_deletable else READ).format(table=table_name(schema))
        parameters = {
            'namespace': namespace,
            'number': MOST_MESSAGES + 1,
            'length': LONGEST_MESSAGE + 1,
        }
        rows = frozenset(cursor.execute(query, parameters).fetchall())
        if not is_deletable:
            if self._undeleted.get(schema) == rows:
                return ()
            self._undeleted[schema] = rows
        if len(rows) > MOST_MESSAGES or any(len(row[1]) > LONGEST_MESSAGE for row in rows):
            return None
        return [row[1] for row in rows]

    def _identity(self, cursor: Any, schema: str) -> str:
        found = cursor.execute(identity_query(), identity_parameters([schema])).fetchone()
        return str(found[0])

    def _create(self, name: str) -> None:
        # in a transaction of its own, so that no other writer waits for the end of this one
        with self._own() as cursor, self._transaction(cursor):
            cursor.execute(CREATE.format(table=name))

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
    """Return the name of a schema's outbox, quoted."""
    return f'{quote(schema)}.{OUTBOX}'
