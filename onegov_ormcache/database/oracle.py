"""Asks PostgreSQL for the state of other transactions.

A transaction of the package is known by its key. It holds an advisory lock on the key from its
begin until its outcome is visible to others: also while it is prepared, and after its client has
gone. So whoever gets the lock knows that it has ended. That needs no statement of its own, no
right to see what others do, and nothing that a connection pooler could exchange. Other
transactions are known by their ids, which they get with their first change.

This module does not know what is done with the answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
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
SELECT virtualtransaction, pid,
    (xmax + ((transactionid::text::bigint - xmax + 2147483648) & 4294967295) - 2147483648)::text
    AS id
FROM pg_locks, (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax) AS present
WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted
"""

#: Selects the ids of all other transactions in progress that have an id.
WRITERS = f"""
SELECT id FROM ({IN_PROGRESS}) AS writer WHERE pid IS DISTINCT FROM pg_backend_pid()
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
#: each is in progress. A transaction that was rolled back has none.
UNSEEN_WRITERS = """
SELECT id, pg_xact_status(CAST(id AS xid8)) = 'in progress' AS is_open
FROM unnest(CAST(:ids AS text[])) AS id
WHERE NOT pg_visible_in_snapshot(CAST(id AS xid8), pg_current_snapshot())
AND pg_xact_status(CAST(id AS xid8)) <> 'aborted'
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
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def is_open(self, key: str) -> bool:
        """Return whether the outcome of the transaction with this key is still open.

        False if another database, or this one before a restore, has given the key. True if the
        question fails for another reason than the key.

        :raises DBAPIError: if the connection is lost.
        """
        return not self._has_ended(HAS_ENDED, key=key)

    def in_progress(self, transaction_id: str) -> bool:
        """Return whether the transaction with this id is in progress.

        True if the question fails for another reason than the id.

        :raises DBAPIError: if the connection is lost.
        """
        query = "SELECT pg_xact_status(CAST(:xid AS xid8)) IS DISTINCT FROM 'in progress'"
        return not self._has_ended(query, xid=transaction_id)

    def _has_ended(self, query: str, **parameters: str) -> bool:
        """Return whether a transaction has ended, as a query tells."""
        try:
            with question(self._connection):
                return bool(self._execute(query, **parameters).scalar_one())
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            # an id that the database has not given yet is from before a restore, so its
            # transaction has ended; an error that is not about the id (a timeout, a missing
            # right) tells nothing
            state = getattr(error.orig, 'sqlstate', None) or ''
            return state.startswith(DATA_EXCEPTION)

    def writers_in_progress(self) -> Collection[str]:
        """Return the ids of all other transactions that have an id and have not ended.

        :raises DBAPIError: if the question fails.
        """
        with question(self._connection):
            return list(self._execute(WRITERS).scalars())

    def unseen_writers(
        self, transaction_ids: Collection[str], schemas: Collection[str]
    ) -> Collection[str]:
        """Return the ids of the writers whose changes the transaction's view does not show.

        Called before the transaction has changed anything. Writers in progress that have not
        changed a table of these schemas yet are left out, and so are those that were rolled back.

        :raises DBAPIError: if the question fails.
        """
        with question(self._connection):
            changing = set(self._execute(CHANGING_WRITERS, schemas=list(schemas)).scalars())
            # in a second question: the locks of a writer that is in progress after the first one
            # were still held
            unseen = self._execute(UNSEEN_WRITERS, ids=list(transaction_ids)).all()
        return [row.id for row in unseen if row.id in changing or not row.is_open]

    def has_committed(self, transaction_ids: Collection[str]) -> bool:
        """Return whether one of these transactions has committed.

        :raises DBAPIError: if the question fails.
        """
        if not transaction_ids:
            return False
        with question(self._connection):
            return bool(self._execute(HAS_COMMITTED, ids=list(transaction_ids)).scalar_one())

    def _execute(self, query: str, **parameters: str | list[str]) -> CursorResult[Any]:
        return self._connection.execute(text(query), parameters, execution_options=INTERNAL)


def new_key() -> int:
    """Return a key for a transaction: random, so that no two transactions have the same."""
    return secrets.randbits(63)
