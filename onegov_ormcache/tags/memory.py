"""The tag store of the embedded default: a dictionary in this process.

It is lost only together with its writers, so it needs no quarantine. It does not check
that no other process uses the same database: the cache does, by a claim on the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from ..errors import SnapshotConflict
from ..forks import OwnLock
from .overlays import with_changes
from .snapshot import (
    NO_TAGS,
    NO_VERSIONS,
    PROPERTY_TAG,
    Doubt,
    Snapshot,
    Stamp,
    new_token,
    property_tags_of,
)

#: The number of identities of which a tenant's versions are kept.
KEPT_IDENTITIES = 4


@dataclass(slots=True)
class Tenant:
    """The versions of one tenant for one identity, from its first use until the store ends."""

    birth: str
    epoch: str
    #: By tag; replaced by each change, as the snapshots have them too.
    versions: Stamp = field(default_factory=dict)
    #: The tags of properties that have a version.
    property_tags: frozenset[str] = NO_TAGS
    #: By writer's id.
    doubts: dict[str, Doubt] = field(default_factory=dict)
    #: When each doubt began, by writer's id: seconds of ``time.monotonic()``.
    since: dict[str, float] = field(default_factory=dict)
    #: The snapshot of this epoch; None until it is asked for.
    snapshot: Snapshot | None = None
    #: When versions were last forgotten: seconds of ``time.monotonic()``; None if never.
    forgotten: float | None = None

    def version(self, tag: str) -> str:
        """Return the tag's version: the birth, if the tag has no version of its own."""
        return self.versions.get(tag, self.birth)

    def first_broken(self, stamp: Stamp, but: str = '') -> str | None:
        """Return the first tag that has another version than in the stamp, or is in doubt.

        :param but: id of a writer whose own doubt does not count.
        :return: None if the stamp holds.
        """
        for tag, version in stamp.items():
            if self.version(tag) != version:
                return tag
            if any(tag in doubt.tags for writer, doubt in self.doubts.items() if writer != but):
                return tag
        return None

    def renew_versions(self, tags: Collection[str]) -> None:
        """Give the tags new versions."""
        if not tags:
            return
        changes = dict.fromkeys(tags, new_token())
        self.versions = with_changes(self.versions, changes)
        if added := property_tags_of(changes) - self.property_tags:
            self.property_tags |= added

    def renew_epoch(self) -> None:
        """Begin a new epoch, after a change of versions or doubts."""
        self.epoch = new_token()
        self.snapshot = None


class AnsweredDoubt:
    """The answer to a doubt; see :class:`~onegov_ormcache.tags.snapshot.DoubtAnswer`.

    :param conflict: why no tag was put in doubt; None if they were.
    """

    def __init__(self, conflict: SnapshotConflict | None, tags: frozenset[str] = NO_TAGS) -> None:
        self._conflict = conflict
        self._tags = tags

    def result(self) -> frozenset[str]:
        if self._conflict is not None:
            raise self._conflict
        return self._tags

    def leave(self) -> None:
        pass


class MemoryTagStore:
    """A tag store for the threads of one process; made by a cache, lives as long.

    See :class:`~onegov_ormcache.tags.snapshot.TagStore`.
    """

    single_process = True
    changes = 0
    is_lost = False

    def __init__(self) -> None:
        self._lock = OwnLock()
        # by schema and identity, the identity used last at the end
        self._tenants: dict[str, dict[str, Tenant]] = {}
        # by schema, the identity that its database has
        self._known: dict[str, str] = {}

    def inspect(self) -> None:
        """Do nothing: there are no settings."""

    def missed(self) -> None:
        """Do nothing: the store is never lost."""

    def check(self, *, insists: bool = False) -> None:
        pass

    def identity(self, schema: str) -> str | None:
        return self._known.get(schema)

    def unidentified(self, schema: str) -> Snapshot:
        return Snapshot.unidentified('')

    def identify(self, schema: str, identity: str, identities: str) -> None:
        # no list and no token: no other process can find another identity
        with self._lock.present:
            self._known[schema] = identity
            tenants = self._tenants.setdefault(schema, {})
            tenants[identity] = tenants.pop(identity) if identity in tenants else self._born()
            for earlier in list(tenants)[:-KEPT_IDENTITIES]:
                del tenants[earlier]

    def follow(self, schema: str, identity: str, identities: str) -> None:
        self.identify(schema, identity, identities)

    def assume(self, schema: str, identity: str) -> None:
        self.identify(schema, identity, '')

    def snapshot(self, schema: str) -> Snapshot:
        with self._lock.present:
            tenant = self._tenant(schema)
            if tenant.snapshot is None:
                tenant.snapshot = Snapshot.of(
                    tenant.birth, tenant.epoch, tenant.versions, dict(tenant.doubts), None,
                    self._known.get(schema, ''), property_tags=tenant.property_tags,
                )  # fmt: skip
            return tenant.snapshot

    def doubt(
        self,
        schema: str,
        writer: str,
        tags: Collection[str],
        known: Collection[str],
        transaction_key: str,
        read: Stamp,
        computed: Stamp = NO_VERSIONS,
    ) -> AnsweredDoubt:
        with self._lock.present:
            tenant = self._tenant(schema)
            # no quarantine, so nothing has outlasted one
            if tag := tenant.first_broken({**computed, **read}, but=writer):
                text = f'{schema}: {tag} has changed since it was read'
                return AnsweredDoubt(SnapshotConflict(text, tag))
            tags = frozenset(tags) | tenant.property_tags.difference(known)
            if writer in tenant.doubts:
                tags |= tenant.doubts[writer].tags
            tenant.doubts[writer] = Doubt(tags, transaction_key)
            tenant.since[writer] = time.monotonic()
            tenant.renew_epoch()
            return AnsweredDoubt(None, tags)

    def publish(self, schema: str, writer: str, tags: Collection[str]) -> None:
        with self._lock.present:
            tenant = self._tenant(schema)
            doubt = tenant.doubts.get(writer)
            tenant.renew_versions({*tags, *(doubt.tags if doubt else ())})
            self._end(tenant, writer)

    def end_doubt(self, schema: str, writer: str) -> None:
        with self._lock.present:
            self._end(self._tenant(schema), writer)

    def settle(self, schema: str, writer: str, lease: float | None) -> None:
        with self._lock.present:
            tenant = self._tenant(schema)
            doubt = tenant.doubts.get(writer)
            if doubt is None:
                return
            if lease is not None and time.monotonic() - tenant.since[writer] < lease:
                return
            tenant.renew_versions(doubt.tags)
            self._end(tenant, writer)

    def quarantine(self, schema: str, birth: str, waiting: Collection[str]) -> None:
        pass

    def register(self, schema: str, tags: Collection[str]) -> None:
        with self._lock.present:
            tenant = self._tenant(schema)
            added = frozenset(tag for tag in tags if tag not in tenant.versions)
            if added:
                tenant.renew_versions(added)
                for writer, doubt in tenant.doubts.items():
                    tenant.doubts[writer] = Doubt(doubt.tags | added, doubt.transaction_key)
                tenant.renew_epoch()

    def renew(self, schema: str) -> None:
        with self._lock.present:
            # doubts stay, because their writers are still about to commit
            tenant = self._tenant(schema)
            tenant.birth = new_token()
            tenant.versions = dict.fromkeys(tenant.versions, tenant.birth)
            tenant.renew_epoch()

    def forget(self, schema: str, interval: float) -> None:
        with self._lock.present:
            tenant, now = self._tenant(schema), time.monotonic()
            if tenant.forgotten is None or now - tenant.forgotten >= interval:
                tenant.forgotten = now
                tenant.birth = new_token()
                tenant.versions, tenant.property_tags = NO_VERSIONS, NO_TAGS
                tenant.renew_epoch()

    def fill(self, schema: str, stamp: Stamp, store: Callable[[], None]) -> bool:
        """Call ``store`` if the stamp holds; no change can come in between.

        :return: False if ``store`` was not called, because the stamp does not hold or a
            property's tag in it is not registered.
        """
        with self._lock.present:
            tenant = self._tenant(schema)
            if tenant.first_broken(stamp):
                return False
            if any(t.startswith(PROPERTY_TAG) and t not in tenant.versions for t in stamp):
                # writers whose code does not have the property know only of registered tags
                return False
            store()
            return True

    def schemas(self) -> list[str]:
        """Return the schemas that were used in this process, sorted."""
        with self._lock.present:
            return sorted(self._tenants)

    def doubted_for(self, schema: str) -> dict[str, float]:
        """Return the seconds since each doubt of a schema began, by writer's id."""
        with self._lock.present:
            now = time.monotonic()
            return {writer: now - at for writer, at in self._tenant(schema).since.items()}

    def _tenant(self, schema: str) -> Tenant:
        tenants = self._tenants.setdefault(schema, {})
        identity = self._known.get(schema, '')
        tenant = tenants.get(identity)
        if tenant is None:
            tenant = tenants[identity] = self._born()
        return tenant

    @staticmethod
    def _born() -> Tenant:
        token = new_token()
        return Tenant(token, token)

    def _end(self, tenant: Tenant, writer: str) -> None:
        tenant.doubts.pop(writer, None)
        tenant.since.pop(writer, None)
        tenant.renew_epoch()
