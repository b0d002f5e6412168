"""The versions of one cache: its tag store, and the rules for times when it can't be reached.

This module knows schemas and tags. It does not know properties, values or transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

from ..errors import StoreUnreachable
from ..tags.places import PlacedTagStore
from ..tags.snapshot import UNREACHABLE, Snapshot, Stamp, TagStore


class Versions:
    """The tag store as one cache uses it. Made by the cache and ended with it; used by all
    threads.

    :param tags: the tag store; the attribute of this name may be replaced.
    :param shared_tables: the names of tables that tenants share, each with its schema.
    :param function_tags: returns the tags of all function policies, which must be registered
        for each tenant.
    """

    def __init__(
        self,
        tags: TagStore,
        shared_tables: Iterable[str],
        function_tags: Callable[[], frozenset[str]],
    ) -> None:
        shared = list(shared_tables)
        self._placed = PlacedTagStore(tags, shared) if shared else None
        self.tags: TagStore = self._placed or tags
        self._function_tags = function_tags
        # by schema, a new mark for each call of renew_later: a renewal removes the mark that
        # it found, and not that of a later call
        self._pending_renewals: dict[str, object] = {}
        self._lock = Lock()

    def places(self, schema: str) -> tuple[str, ...]:
        """Return the places of a tenant's tags: the schemas that their versions belong to."""
        return (schema, *(self._placed.shared_schemas if self._placed else ()))

    def snapshot(self, schema: str) -> Snapshot:
        """Return the tenant's snapshot; :data:`UNREACHABLE` if the store can't be reached.

        Makes pending renewals first, and registers function policies that the tenant lacks.
        """
        try:
            self._renew_pending(self.places(schema))
            snapshot = self.tags.snapshot(schema)
            function_tags = self._function_tags()
            if not function_tags <= snapshot.versions.keys():
                # this is the first use of the tenant since its birth, or by this release
                self.tags.register(schema, function_tags)
                snapshot = self.tags.snapshot(schema)
            return snapshot
        except StoreUnreachable:
            return UNREACHABLE

    def own_part(self, schema: str, stamp: Stamp) -> Stamp | None:
        """Return the part of a stamp whose tags have their place in the tenant itself.

        The rest, the tags of shared tables, is checked here.

        :return: None if the rest of the stamp does not hold.
        :raises StoreUnreachable: if the store can't be reached.
        """
        return stamp if self._placed is None else self._placed.own_part(schema, stamp)

    def renew_later(self, *schemas: str) -> None:
        """Give these schemas a new birth, at once or as soon as the store can be reached.

        It is needed after a commit whose tags could not be put in doubt, and for a new
        schema, which may have the name of one that was dropped.
        """
        with self._lock:
            self._pending_renewals |= {schema: object() for schema in schemas}
        try:
            self._renew_pending(schemas)
        except StoreUnreachable:
            pass  # the next snapshot tries again

    def _renew_pending(self, schemas: Iterable[str]) -> None:
        for schema in schemas if self._pending_renewals else ():
            mark = self._pending_renewals.get(schema)
            if mark is None:
                continue
            self.tags.renew(schema)
            with self._lock:
                # another mark stays: its call may have come after this birth
                if self._pending_renewals.get(schema) is mark:
                    del self._pending_renewals[schema]
