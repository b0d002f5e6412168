"""Asks PostgreSQL for the state of other transactions.

This module does not know what is done with the answers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, CursorResult, text
from sqlalchemy.exc import DBAPIError

from .names import INTERNAL
from .questions import question

#: SQLSTATE class of the error that ``pg_xact_status()`` raises for an id that is invalid or
#: was not given to a transaction yet.
DATA_EXCEPTION = '22'

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
        try:
            query = 'SELECT pg_xact_status(CAST(:xid AS xid8))'
            with question(self._connection):
                status = self._execute(query, xid=transaction_id).scalar_one()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            # an id that the database has not given yet is from before a restore, so its
            # transaction has ended; an error that is not about the id (a timeout, a missing
            # right) tells nothing
            state = getattr(error.orig, 'sqlstate', None) or ''
            status = None if state.startswith(DATA_EXCEPTION) else 'in progress'
        return bool(status == 'in progress')

    def writers_in_progress(self) -> Collection[str]:
        """Return the ids of all other transactions that have an id and have not ended.

        :raises DBAPIError: if the question fails.
        """
        with question(self._connection):
            return list(self._execute(WRITERS).scalars())

    def _execute(self, query: str, **parameters: str) -> CursorResult[Any]:
        return self._connection.execute(text(query), parameters, execution_options=INTERNAL)
