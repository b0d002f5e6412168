"""Finds torn pages: values of one transaction that belong to different moments.

Under READ COMMITTED each statement has a view of its own. Cached values belong to the
transaction's snapshot, but a value that is computed later may show a newer commit. This module
knows tags and snapshots. It does not know how values are found or computed.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.exc import SQLAlchemyError

from ..errors import SnapshotConflict
from ..tags.snapshot import Doubt
from .protocols import PageScope


class TornPages:
    """Refuses the values of a request scope that do not belong to one moment.

    Made by the scope, which tells it of each value that is read. The tween turns it on, because
    it can try the request again. The tag store is asked only if a value was computed and not
    stored, and another one is read in the same transaction: a value that could be stored belongs
    to the snapshot.
    """

    def __init__(self, scope: PageScope) -> None:
        self._scope = scope
        #: True if a torn page is refused, by a :class:`.SnapshotConflict`.
        self.are_refused = False
        # the tags of the values that were computed and not stored since the last look
        self._unstored: set[str] = set()
        # the tags that have changed since the snapshot, if a computed value shows such a change
        self._changed: set[str] = set()

    def snapshot_ended(self) -> None:
        """Forget the values of the transaction, which has ended with its snapshot."""
        self._unstored.clear()
        self._changed.clear()

    def found(self, tags: Collection[str]) -> None:
        """Check a cached value of the snapshot, before it is returned.

        :raises SnapshotConflict: if a value was computed before that shows a newer state, and
            this value's tags have changed, too.
        """
        if self._unstored:
            self._look()
        if self._changed:
            self._refuse(self._changed.intersection(tags))

    def computed(self, tags: Collection[str]) -> None:
        """Check a value that was computed and not stored.

        It may be newer than the snapshot. Called before its tags are added to the ``computed``
        ones of the scope.

        :param tags: the tags of what the creator itself has read from the database.
        :raises SnapshotConflict: if one of them has changed since the snapshot, and so has a tag
            of another value of this transaction.
        """
        scope = self._scope
        if not self.are_refused or scope.keeps_view or scope.on_replica:
            return
        self._unstored.update(tags)
        earlier = scope.returned.keys() | scope.computed.keys()
        if not earlier:
            return
        changed = self._look()
        if not changed.isdisjoint(tags):
            self._refuse(changed & earlier)

    def _look(self) -> set[str]:
        """Return the tags that have changed since the snapshot.

        If they are those of a value that was computed, later values are compared with them.

        :raises SnapshotConflict: if all tags count as changed, by a new birth.
        """
        scope, unstored = self._scope, set(self._unstored)
        self._unstored.clear()
        first, now = scope.snapshot(), scope.cache.snapshot(scope.schema)
        if not (first.reachable and now.reachable):
            return set()  # nobody knows what has changed
        unsettled = now.unsettled(first)
        if unsettled is None:
            self._refuse(unstored)
            return set()
        changed = {tag for tag in unsettled if now.version(tag) != first.version(tag)}
        for doubt in now.doubts.values():
            if not doubt.tags.isdisjoint(unstored) and self._has_ended(doubt):
                changed |= doubt.tags
        if not changed.isdisjoint(unstored):
            self._changed |= changed
        return changed

    def _has_ended(self, doubt: Doubt) -> bool:
        """Return whether a doubt's writer may have committed: computed values may show it."""
        scope = self._scope
        try:
            oracle = scope.observer.oracle(scope.connection())
            return oracle is None or not oracle.is_open(doubt.transaction_key)
        except SQLAlchemyError:
            return True  # the transaction has failed, by an error that the creator has caught

    def _refuse(self, tags: Collection[str]) -> None:
        """Raise :class:`SnapshotConflict` if there are any such tags."""
        if tags:
            raise SnapshotConflict(
                f'{self._scope.schema}: {min(tags)} changed between two values that this '
                'transaction has read, so they do not belong to one moment; try it again'
            )
