"""The relation locks of a PostgreSQL transaction: what it may have read and changed.

This module knows the modes of locks, and not what is done with them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

#: Modes of locks that a transaction takes to change rows, from the weakest on.
CHANGING = (
    'RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
    'ExclusiveLock', 'AccessExclusiveLock',
)  # fmt: skip

#: The mode of SELECT FOR UPDATE, and of the check of a foreign key.
LOCKING = 'RowShareLock'

#: Modes of locks that show no access to a relation's rows.
NO_ACCESS = ('SIReadLock',)

#: The relation locks of this transaction, as an array of ``MODE:OID``.
LOCKS = """
SELECT array_agg(mode || ':' || relation) FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted
"""


class Locks(NamedTuple):
    """The relations that a transaction has locked, by oid."""

    changing: frozenset[int] = frozenset()
    #: Those, of :attr:`changing`, whose definition may have changed.
    redefining: frozenset[int] = frozenset()
    locking: frozenset[int] = frozenset()
    reading: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, locks: Collection[str] | None) -> Locks:
        """Return the locks of an array of :data:`LOCKS`."""
        by_mode: dict[str, set[int]] = {}
        for lock in locks or ():
            mode, _, oid = lock.partition(':')
            by_mode.setdefault(mode, set()).add(int(oid))
        changing: set[int] = set().union(*(by_mode.pop(mode, ()) for mode in CHANGING[:1]))
        redefining: set[int] = set().union(*(by_mode.pop(mode, ()) for mode in CHANGING[1:]))
        locking = by_mode.pop(LOCKING, set())
        reading: set[int] = set().union(
            *(oids for mode, oids in by_mode.items() if mode not in NO_ACCESS)
        )
        return cls(
            frozenset(changing | redefining), frozenset(redefining), frozenset(locking),
            frozenset(reading | locking),
        )  # fmt: skip
