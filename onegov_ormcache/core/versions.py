"""What one cache asks of its tag store, with what it does if the store can't be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

from ..errors import StoreUnreachable
from ..tags.places import PlacedTagStore
from ..tags.snapshot import UNREACHABLE, Snapshot, Stamp, TagStore


class Versions:
    """Made by a cache, lives as long; used by all threads.

    :param tags: the tag store; may be replaced.
    :param shared_tables: the names of tables that tenants share, each with its schema.
    :param function_tags: gives the tags that must be registered with each tenant.
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
        # by place, the last request's own mark
        self._pending_renewals: dict[str, object] = {}
        self._lock = Lock()

    def places(self, schema: str) -> tuple[str, ...]:
        """Return the schemas in which the versions of the tenant's tags lie."""
        return (schema, *(self._placed.shared_schemas if self._placed else ()))

    def snapshot(self, schema: str) -> Snapshot:
        """Return the tenant's snapshot; :data:`UNREACHABLE` if the store can't be reached."""
        try:
            self._renew_pending(self.places(schema))
            snapshot = self.tags.snapshot(schema)
            function_tags = self._function_tags()
            if not function_tags <= snapshot.versions.keys():
                # the first use of the tenant since its birth, or by this release
                self.tags.register(schema, function_tags)
                snapshot = self.tags.snapshot(schema)
            return snapshot
        except StoreUnreachable:
            return UNREACHABLE

    def own_part(self, schema: str, stamp: Stamp) -> Stamp | None:
        """Return the part of a stamp that the tenant's own versions tell of.

        :return: None if the rest of the stamp does not hold.
        """
        return stamp if self._placed is None else self._placed.own_part(schema, stamp)

    def renew_later(self, *schemas: str) -> None:
        """Give these a new birth, at once or as soon as the store can be reached.

        A commit's versions could not be published, or a schema is another one.
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
                # another mark: it was asked for again, maybe after this birth
                if self._pending_renewals.get(schema) is mark:
                    del self._pending_renewals[schema]
