"""What a SERIALIZABLE transaction has read through the cache, and must still hold at its COMMIT.

PostgreSQL does not know who has read a value from the cache. So of two writers that each read
through the cache what the other one changes, the second is refused when it puts its tags in
doubt: a version that it has read has changed, or is in the first one's doubt. This module knows
which versions these are. It does not compare them: the tag store does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection

from ..database.oracle import PostgresOracle
from ..database.protocols import View
from ..errors import SnapshotConflict
from ..tags.snapshot import NO_VERSIONS, Stamp
from .protocols import WritingScope


class Required(NamedTuple):
    """Versions that must hold; see :meth:`.TagStore.doubt`."""

    read: Stamp = NO_VERSIONS
    computed: Stamp = NO_VERSIONS


class WriteSkewCheck:
    """The versions that one database transaction requires at its COMMIT.

    There are none under other isolation levels than SERIALIZABLE, or if the setting
    ``check_write_skew`` is off. What was computed while the tag store could not be reached has no
    version: the transaction has read the tables themselves, and not through the cache.

    Made by a write path, and ends with it.
    """

    def __init__(self, scope: WritingScope) -> None:
        self._scope = scope
        self._is_on = False
        self._oracle: PostgresOracle | None = None
        # the unseen writers of the quarantine in which the snapshot was taken; None if there was
        # none, or if its writers are not known
        self._unseen: Collection[str] | None = None
        # the versions, by tag, that were read with snapshots that have ended
        self._held: dict[str, str] = {}

    def hold(self, versions: Stamp) -> None:
        """Take the versions that were read with a snapshot that ends before the transaction."""
        self._held = {**versions, **self._held}

    def begun(self, connection: Connection, view: View) -> None:
        """Find the unseen writers, if the snapshot is one of a quarantine.

        The transaction has just taken its view, and has read nothing yet.
        """
        self._is_on = view.serializable and self._scope.cache.settings.check_write_skew
        if not self._is_on or (waiting := self._awaited()) is None:
            return
        self._oracle = self._scope.cache.observer.oracle(connection)
        if self._oracle is not None:
            places = self._scope.cache.places(self._scope.schema)
            self._unseen = self._oracle.unseen_writers(waiting, places)

    @property
    def must_ask(self) -> bool:
        """True if :meth:`required` asks the database."""
        return self._unseen is not None

    def required(self) -> Required:
        """Return the versions that must hold, directly before the tags are put in doubt.

        The quarantine may have ended since the begin, by whomever. That voids no value that this
        transaction has computed: the tag store knows of each change since the birth, except of
        those whose doubt was lost. These are changes of writers that the quarantine waits for.
        Such a writer concerns this transaction only if the view does not show its changes, and if
        it had changed tables here before. Others come to their doubts after the birth.

        :raises SnapshotConflict: if a writer that may have lost its doubt has committed.
        """
        scope = self._scope
        if not self._is_on:
            return Required()
        if self._unseen is None or self._oracle is None:
            return Required({**scope.computed, **scope.returned, **self._held})
        if scope.computed and self._oracle.has_committed(self._unseen):
            # it may have read from the cache, before the loss, what this transaction changes
            raise SnapshotConflict(
                f'{scope.schema}: the tag store has lost its data, and a transaction that was '
                'in progress then has committed since this one began; try it again'
            )
        return Required({**scope.returned, **self._held}, scope.computed)

    def refuse_unchecked(self) -> None:
        """Let the transaction be tried again, if it has read from the cache and the tag store can
        not be asked whether that still holds. The next attempt reads all from the database, which
        then finds conflicts itself.

        :raises SnapshotConflict: if so.
        """
        if self._is_on and (self._scope.returned or self._held):
            raise SnapshotConflict(
                f'{self._scope.schema}: the tag store was lost between a cached value that was '
                'read and the commit, so nobody can tell whether the value still holds'
            )

    def _awaited(self) -> Collection[str] | None:
        """Return the ids of the writers that the quarantine of the snapshot waits for.

        :return: None if there is no quarantine, or if nobody has asked for the writers yet.
        """
        snapshot = self._scope.snapshot()
        if snapshot.quarantine is None:
            return None
        awaited: set[str] = set()
        for _, part in snapshot.parts or ((self._scope.schema, snapshot),):
            if part.quarantine is not None:
                if not part.quarantine:
                    return None
                awaited.update(part.quarantine)
        return awaited
