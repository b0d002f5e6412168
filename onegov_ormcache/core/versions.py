"""The versions of one cache: its tag store, and the rules for times when it can't be reached.

This module knows schemas and tags. It does not know properties, values or transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from cachetools import LRUCache, TTLCache

from ..errors import StoreUnreachable
from ..forks import OwnLock
from ..steps import Step, about_to
from ..tags.overlays import differing
from ..tags.places import PlacedTagStore
from ..tags.snapshot import UNREACHABLE, Snapshot, Stamp, TagStore, whole_tag
from .policies import table_tags
from .published_tags import ALL, PublishedTags

#: The number of tags that a tenant may have beside those of this application.
FOREIGN_TAGS = 256

#: The least number of seconds after which a tenant's versions are forgotten again.
FORGET_INTERVAL = 600.0


class Gate(Protocol):
    """Tells whether an outage is over, for the tenants of these places."""

    @property
    def is_current(self) -> bool:
        """True if there was no outage, and nothing was found to deliver, since it was done."""

    def is_done(self, places: Collection[str]) -> bool:
        """Return whether cached values of these places may be used.

        :raises StoreUnreachable: if the store can't be reached.
        """


class Versions:
    """The tag store as one cache uses it. Made by the cache and ended with it; used by all
    threads.

    :param tags: the tag store; the attribute of this name may be replaced.
    :param shared_tables: the names of tables that tenants share, each with its schema.
    :param known_tags: returns the tags of all function policies, and those that stand for all
        rows of a policy for rows, which must be registered for each tenant.
    :param all_tags: returns all tags of the application; of buckets, those that stand for them
        (see :func:`~onegov_ormcache.tags.snapshot.whole_tag`).
    """

    def __init__(
        self,
        tags: TagStore,
        shared_tables: Iterable[str],
        known_tags: Callable[[], frozenset[str]],
        all_tags: Callable[[], frozenset[str]],
    ) -> None:
        shared = list(shared_tables)
        self._placed = PlacedTagStore(tags, shared) if shared else None
        self.tags: TagStore = self._placed or tags
        #: The tags of shared tables, which have their place elsewhere.
        self.tags_elsewhere = table_tags(shared)
        self._known_tags = known_tags
        self._all_tags = all_tags
        # the places that this process found crowded within the last interval
        self._crowded: TTLCache[str, None] = TTLCache(10_000, FORGET_INTERVAL)
        # by place, the snapshot whose tags of others were counted last, and their number
        self._counted: LRUCache[str, tuple[Snapshot, int]] = LRUCache(10_000)
        # by schema, a new mark for each call of renew_later: a renewal removes the mark that
        # it found, and not that of a later call
        self._pending_renewals: dict[str, object] = {}
        self._lock = OwnLock()
        #: What must be done after an outage; None if the store is in this process's memory.
        self.recovery: Gate | None = None
        #: Is told of renewals; None if nobody can listen.
        self.published: PublishedTags | None = None
        #: The same, for the statistics.
        self.told: Callable[[str, Collection[str]], None] | None = None

    def places(self, schema: str) -> tuple[str, ...]:
        """Return the places of a tenant's tags: the schemas that their versions belong to."""
        return (schema, *(self._placed.shared_schemas if self._placed else ()))

    def snapshot(self, schema: str) -> Snapshot:
        """Return the tenant's snapshot; :data:`UNREACHABLE` if the store can't be reached.

        It is not identified if this process must ask the tenant's database for its identity.
        Otherwise makes pending renewals first, and registers policies that the tenant
        lacks.
        """
        recovery = self.recovery
        try:
            if recovery is None:
                return self._snapshot(schema)
            if recovery.is_done(self.places(schema)):
                snapshot = self._snapshot(schema)
                # else another thread has lost the store, or has left tags, in the meantime
                if recovery.is_current:
                    return snapshot
        except StoreUnreachable:
            pass
        self.tags.missed()
        return UNREACHABLE

    def _snapshot(self, schema: str) -> Snapshot:
        if not self._is_identified(schema):
            return self.tags.unidentified(schema)
        self._renew_pending(self.places(schema))
        snapshot = self.tags.snapshot(schema)
        if not snapshot.identified:
            return snapshot
        if self._forget(schema, snapshot):
            snapshot = self.tags.snapshot(schema)
        known_tags = self._known_tags()
        if not known_tags <= snapshot.property_tags:
            # this is the first use of the tenant since its birth, or by this release
            self.tags.register(schema, known_tags)
            snapshot = self.tags.snapshot(schema)
        return snapshot

    def identify(
        self, schema: str, identities: Mapping[str, str], snapshot: Snapshot, *, replica: bool
    ) -> bool:
        """Work with the versions of these identities, which the tenant's database has.

        :param identities: the identities by place.
        :param snapshot: the tenant's snapshot, taken before the database was asked.
        :param replica: True if the database is a replica.
        :return: False if the snapshot is one of these identities.
        :raises StoreUnreachable: if the store can't be reached.
        """
        has_changed = False
        for place in self.places(schema):
            part, identity = snapshot.of_place(place), identities[place]
            if not part.reachable:
                self.tags.assume(place, identity)
            elif replica and part.identified:
                continue  # the identity of the primary was found when it became this one
            elif replica:
                about_to(Step.IDENTIFY)
                self.tags.follow(place, identity, part.identities)
                has_changed = True
            elif not (part.identified and part.identity == identity):
                about_to(Step.IDENTIFY)
                self.tags.identify(place, identity, part.identities)
                has_changed = True
        return has_changed

    def own_parts(self, schema: str, stamps: Sequence[Stamp]) -> Sequence[Stamp | None]:
        """Return the parts of stamps whose tags have their place in the tenant itself.

        The rest, the tags of shared tables, is checked here.

        :return: for each stamp, None if the rest of it does not hold.
        :raises StoreUnreachable: if the store can't be reached.
        """
        return stamps if self._placed is None else self._placed.own_parts(schema, stamps)

    def by_place(self, schema: str, tags: Iterable[str]) -> dict[str, list[str]]:
        """Return a tenant's tags by their places."""
        placed = self._placed
        return {schema: list(tags)} if placed is None else placed.by_place(schema, tags)

    def renew_later(self, *schemas: str) -> bool:
        """Give these schemas a new birth, at once or as soon as the store can be reached.

        It is needed after a commit whose tags could not be put in doubt, and for a new
        schema, which may have the name of one that was dropped.

        :return: True if it was done at once.
        """
        with self._lock.present:
            self._pending_renewals |= {schema: object() for schema in schemas}
        try:
            self._renew_pending(schemas)
        except StoreUnreachable:
            pass  # the next snapshot tries again
        return self._pending_renewals.keys().isdisjoint(schemas)

    def renew(self, schema: str) -> None:
        """Give a schema a new birth, and tell that all of it may have changed.

        :raises StoreUnreachable: if the store can't be reached.
        """
        self.tags.renew(schema)
        self.tell(schema, ALL)

    def tell(self, place: str, tags: Collection[str]) -> None:
        """Tell that tags have got new versions, other than by a commit of this process."""
        if self.told is not None:
            self.told(place, tags)
        if self.published is not None:
            self.published.tell({place: tags})

    def renew_pending(self) -> None:
        """Make all renewals that are pending.

        :raises StoreUnreachable: if the store can't be reached.
        """
        self._renew_pending(list(self._pending_renewals))

    def _renew_pending(self, schemas: Iterable[str]) -> None:
        for schema in schemas if self._pending_renewals else ():
            mark = self._pending_renewals.get(schema)
            if mark is None or self.tags.identity(schema) is None:
                continue  # without an identity, nothing of this process is valid anyway
            self.renew(schema)
            with self._lock.present:
                # another mark stays: its call may have come after this birth
                if self._pending_renewals.get(schema) is mark:
                    del self._pending_renewals[schema]

    def _is_identified(self, schema: str) -> bool:
        """Return whether this process knows the identities of all places of the tenant."""
        return all(self.tags.identity(place) is not None for place in self.places(schema))

    def _forget(self, schema: str, snapshot: Snapshot) -> bool:
        """Forget the versions of places that have too many tags of others; return whether any
        was to be forgotten.

        These are tags of releases that are gone, and of tables that nobody has any more. It
        happens at most once per interval: the tags of another application, or of a release that
        runs beside this one, may be as many.
        """
        is_crowded = False
        for place, part in snapshot.parts or ((schema, snapshot),):
            if len(part.versions) <= FOREIGN_TAGS or place in self._crowded:
                continue
            if self._is_crowded(place, part):
                with self._lock.present:
                    self._crowded[place] = None
                self.tags.forget(place, FORGET_INTERVAL)
                is_crowded = True
        return is_crowded

    def _is_crowded(self, place: str, part: Snapshot) -> bool:
        """Return whether a place has too many tags of others.

        A tenant may have thousands of tags that are all its own. So of a snapshot that comes after
        one whose tags were counted, only the tags that have changed since are looked at.
        """
        with self._lock.present:
            counted, foreign = self._counted.get(place, (None, 0))
        if counted is part:
            return False  # if it was, nobody needs to be told again
        own: frozenset[str] | None = None
        if counted is None or counted.birth != part.birth:
            own = self._all_tags()
            foreign = _foreign(part.versions, own)
        elif len(counted.versions) != len(part.versions):
            # while a birth lasts, no tag goes
            own = self._all_tags()
            changed = differing(part.versions, counted.versions)
            foreign += _foreign((tag for tag in changed if tag not in counted.versions), own)
        is_crowded = False
        if foreign > FOREIGN_TAGS:
            own = own or self._all_tags()
            # exactly, because another thread may have counted some twice, and the application may
            # have got more tags since
            foreign = _foreign(part.versions, own) if foreign > len(own) else foreign
            is_crowded = foreign > max(FOREIGN_TAGS, len(own))
        with self._lock.present:
            self._counted[place] = part, foreign
        return is_crowded


def _foreign(tags: Iterable[str], own: frozenset[str]) -> int:
    """Return how many of the tags are those of others.

    The bucket of rows belongs to whom the whole belongs to.
    """
    return sum(tag not in own and whole_tag(tag) not in own for tag in tags)


def identify(tags: TagStore, schema: str, ask: Callable[[], str]) -> None:
    """Work with the versions of the identity that a schema's database has now.

    :param ask: asks the database.
    :raises StoreUnreachable: if the store can't be reached.
    """
    if tags.identity(schema) != ask():
        # the token of the list of identities must be older than the answer
        before = tags.unidentified(schema).of_place(schema)
        tags.identify(schema, ask(), before.identities)
