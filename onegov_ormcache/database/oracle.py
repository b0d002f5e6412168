"""Asks PostgreSQL for the state of other transactions.

A transaction of the package is known by its key. It holds an advisory lock on the key from its
begin until its outcome is visible to others: also while it is prepared, and after its client has
gone. So whoever gets the lock knows that it has ended. That needs no statement of its own, no
right to see what others do, and nothing that a connection pooler could exchange. Other
transactions are known by their ids, which they get with their first change.

The end of a key names a schema: the one that the transaction works for, and by a second lock each
other one that it has told others about (:func:`key_of`). So a transaction that was prepared and
forgotten holds up that schema alone.

This module does not know what is done with the answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from hashlib import blake2b
from typing import Any

from sqlalchemy import Connection, CursorResult, text
from sqlalchemy.exc import DBAPIError

from .names import INTERNAL
from .questions import question

#: SQLSTATE class of the error that ``pg_xact_status()`` raises for an id that is invalid or
#: was not given to a transaction yet.
DATA_EXCEPTION = '22'

#: The ids of transactions in progress. ``pg_current_snapshot()`` does not list transactions that
#: are newer than every ended one. ``pg_locks`` has them all, because each transaction holds a
#: lock on its own id, but with only the lower 32 bits of the id; the snapshot's xmax supplies the
#: others.
IN_PROGRESS = """
SELECT virtualtransaction, transactionid, pid,
    (xmax + ((transactionid::text::bigint - xmax + 2147483648) & 4294967295) - 2147483648)::text
    AS id
FROM pg_locks, (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax) AS present
WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted
"""

#: The number of bits at the end of a key that name a schema.
SCHEMA_BITS = 16

#: The begin of the keys of second locks; see :func:`key_of`.
SECOND_KEYS = int.from_bytes(b'ormca')

#: Selects all other transactions in progress that have an id. Those without a process are prepared
#: ones: of these, only those of this database that may have told others about the schema, or that
#: have changed a relation of it, or one that nobody else sees yet. The locks are listed once,
#: because a transaction that is prepared between two lists would seem to have locked nothing; a
#: prepared one gets no further locks. Its subtransactions have ids and locks of their own.
WRITERS = f"""
WITH held AS MATERIALIZED (SELECT * FROM pg_locks),
writer AS ({IN_PROGRESS.replace('pg_locks', 'held')})
SELECT id, pid FROM writer
WHERE CASE WHEN :is_awaiting THEN id = ANY(CAST(:awaited AS text[]))
    ELSE pid IS DISTINCT FROM pg_backend_pid() END
AND (pid IS NOT NULL OR NOT EXISTS (
    SELECT FROM held AS own JOIN pg_prepared_xacts AS there
    ON there.transaction = own.transactionid
    WHERE own.virtualtransaction = writer.virtualtransaction
    AND there.database <> current_database()
) AND (:is_shared OR EXISTS (
    SELECT FROM held AS own
    LEFT JOIN pg_class ON pg_class.oid = relation
    LEFT JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE own.virtualtransaction = writer.virtualtransaction AND (
        locktype = 'relation' AND mode NOT IN ('AccessShareLock', 'RowShareLock')
        AND coalesce(nspname = :schema, true)
        OR locktype = 'advisory' AND objsubid = 1
        AND (objid::bigint & {(1 << SCHEMA_BITS) - 1}) = :name
    )
)))
"""

#: Selects those of the processes that work in another database. Every role may ask, and the
#: setting ``track_activities`` does not matter.
ELSEWHERE = """
SELECT pid FROM pg_stat_activity
WHERE pid = ANY(CAST(:pids AS int[]))
AND datid <> (SELECT oid FROM pg_database WHERE datname = current_database())
"""

#: Selects the ids of the transactions in progress that may have changed a table of these schemas.
CHANGING_WRITERS = f"""
SELECT id FROM ({IN_PROGRESS}) AS writer WHERE EXISTS (
    SELECT FROM pg_locks AS held
    JOIN pg_class ON pg_class.oid = relation JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE held.virtualtransaction = writer.virtualtransaction AND locktype = 'relation'
    AND mode NOT IN ('AccessShareLock', 'RowShareLock')
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND nspname = ANY(CAST(:schemas AS text[]))
)
"""

#: Selects those of the transactions whose changes the present view does not show, with whether
#: each is in progress. ``pg_xact_status()`` is not asked: it fails for ids from the future.
UNSEEN_WRITERS = f"""
SELECT id, id IN (SELECT id FROM ({IN_PROGRESS}) AS writer) AS is_open
FROM unnest(CAST(:ids AS text[])) AS id
WHERE NOT pg_visible_in_snapshot(CAST(id AS xid8), pg_current_snapshot())
"""

#: True if nobody holds the lock of a transaction's key. A session gets a lock that it holds
#: itself, so the lock alone would take the asking transaction for one that has ended.
HAS_ENDED = """
SELECT CASE WHEN EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND mode = 'ExclusiveLock'
    AND (classid::bigint << 32 | objid::bigint) = CAST(:key AS bigint) AND objsubid = 1
) THEN false ELSE pg_try_advisory_xact_lock_shared(CAST(:key AS bigint)) END
"""

HAS_COMMITTED = """
SELECT EXISTS (
    SELECT FROM unnest(CAST(:ids AS text[])) AS id
    WHERE pg_xact_status(CAST(id AS xid8)) = 'committed'
)
"""


class PostgresOracle:
    """Answers questions about the state of transactions.

    Made by :meth:`Postgres.oracle`, used as long as its connection is.

    :param shared_schemas: the schemas of tables that tenants share.
    """

    def __init__(self, connection: Connection, shared_schemas: Collection[str] = ()) -> None:
        self._connection = connection
        self._shared_schemas = shared_schemas

    def is_open(self, key: str) -> bool:
        """Return whether the outcome of the transaction with this key is still open.

        False if another database, or this one before a restore, has given the key. True if the
        question fails for another reason than the key.

        :raises DBAPIError: if the connection is lost.
        """
        try:
            with question(self._connection):
                return not self._execute(HAS_ENDED, key=key).scalar_one()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            # an error that is not about the key (a timeout, a missing right) tells nothing
            return not is_data_exception(error)

    def writers_in_progress(self, schema: str, awaited: Collection[str] = ()) -> Collection[str]:
        """Return the ids of the other transactions in progress that may have changed this schema.

        These are all that have an id and work in this database, apart from prepared ones that
        have changed nothing in the schema. Tenants' transactions do not say which shared schemas
        they concern, so all prepared ones may concern these.

        :param awaited: return only those of these that are in progress, and do not leave the own
            transaction out. Texts that are no ids at all, or ids that the database has not given
            yet, do no harm.
        :raises DBAPIError: if the question fails.
        """
        with question(self._connection):
            writers = self._execute(
                WRITERS,
                schema=schema,
                name=name_of(schema),
                awaited=list(awaited),
                is_awaiting=bool(awaited),
                is_shared=schema in self._shared_schemas,
            ).all()
            elsewhere = self._elsewhere([row.pid for row in writers if row.pid is not None])
        return [row.id for row in writers if row.pid not in elsewhere]

    def _elsewhere(self, pids: Collection[int]) -> Collection[int]:
        """Return those of the processes that work in another database.

        A process of this number that has begun since the transactions were listed belongs to
        nobody of them: that transaction has ended with its own process. So these are asked for
        later, and not in what the transaction may have learned of all processes before.
        """
        if not pids:
            return ()
        self._execute('SELECT pg_stat_clear_snapshot()')
        return set(self._execute(ELSEWHERE, pids=list(pids)).scalars())

    def unseen_writers(
        self, transaction_ids: Collection[str], schemas: Collection[str]
    ) -> Collection[str]:
        """Return the ids of the writers whose changes the transaction's view does not show.

        Called before the transaction has changed anything. Writers in progress that have not
        changed a table of these schemas yet are left out. Ids that belong to no transaction, or
        to one that was rolled back, may be among the answers; :meth:`has_committed` is false for
        these.

        :raises DBAPIError: if the question fails.
        """
        ids = [each for each in transaction_ids if is_transaction_id(each)]
        with question(self._connection):
            changing = set(self._execute(CHANGING_WRITERS, schemas=list(schemas)).scalars())
            # in a second question: the locks of a writer that is in progress after the first one
            # were still held
            unseen = self._execute(UNSEEN_WRITERS, ids=ids).all()
        return [row.id for row in unseen if row.id in changing or not row.is_open]

    def has_committed(self, transaction_ids: Collection[str]) -> bool:
        """Return whether one of these transactions has committed.

        :raises DBAPIError: if the question fails for another reason than the ids.
        """
        if not transaction_ids:
            return False
        try:
            with question(self._connection):
                return bool(self._execute(HAS_COMMITTED, ids=list(transaction_ids)).scalar_one())
        except DBAPIError as error:
            if not is_data_exception(error):
                raise
        # one of them is from the future, or no id at all: none that this database has given
        return len(transaction_ids) > 1 and any(map(self.has_committed, zip(transaction_ids)))

    def _execute(self, query: str, **parameters: object) -> CursorResult[Any]:
        return self._connection.execute(text(query), parameters, execution_options=INTERNAL)


def is_data_exception(error: DBAPIError) -> bool:
    """Return whether a question has failed because of what it was asked about."""
    state = getattr(error.orig, 'sqlstate', None) or ''
    return str(state).startswith(DATA_EXCEPTION)


def is_transaction_id(text: str) -> bool:
    """Return whether a text may be the id of a transaction."""
    return text.isascii() and text.isdigit() and int(text) < 1 << 64


def name_of(schema: str) -> int:
    """Return the end of the keys that name a schema.

    Two schemas rarely have the same; a transaction then seems to concern both.
    """
    return int.from_bytes(blake2b(schema.encode(), digest_size=SCHEMA_BITS // 8).digest())


def new_key(schema: str) -> int:
    """Return a key for a transaction that works for a schema: random, so that no two
    transactions have the same, but for its end, which names the schema."""
    return secrets.randbits(63 - SCHEMA_BITS) << SCHEMA_BITS | name_of(schema)


def key_of(schema: str) -> int:
    """Return the key of a second lock of transactions, which names a schema that they concern
    besides their own. They share the lock."""
    return SECOND_KEYS << SCHEMA_BITS | name_of(schema)
