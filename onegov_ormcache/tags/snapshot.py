"""What a tag store tells and is asked: snapshots, doubts, and the store's interface.

A store keeps, per tenant, a birth, an epoch, the versions of its tags and the
doubts of its writers (the words are those of the design). It knows nothing of
properties, sessions or databases: tags, writers and transaction ids are
opaque strings here.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

#: Versions of tags, by tag.
Stamp = Mapping[str, str]

#: Prefix of the tags of policies that are functions.
PROPERTY_TAG = 'property:'

#: Prefix of the tags of tables.
TABLE_TAG = 'table:'


def new_token() -> str:
    """A version, epoch, birth or writer's id: random, so that none ever comes again."""
    return secrets.token_urlsafe(12)


@dataclass(frozen=True, slots=True)
class Doubt:
    """A writer that is about to commit, or was when it was last heard of."""

    #: The tags that its commit changes.
    tags: frozenset[str]
    #: The database's transaction id, or '' if the database has none.
    transaction_id: str


@dataclass(frozen=True, slots=True, repr=False)
class Snapshot:
    """The versions of a tenant's tags at one moment, and which are in doubt.

    Made by a tag store, shared by all who ask while the tenant's epoch lasts;
    never changed.
    """

    birth: str
    epoch: str
    versions: Stamp
    #: By writer's id.
    doubts: Mapping[str, Doubt] = field(default_factory=dict)
    #: None; or the ids of the transactions that were in progress at the birth
    #: and whose end is awaited before anything may be filled, as far as known.
    quarantine: tuple[str, ...] | None = None
    #: The union of the doubts' tags.
    in_doubt: frozenset[str] = frozenset()
    #: By schema, what this was put together from; nothing if it is one tenant's alone.
    parts: tuple[tuple[str, Snapshot], ...] = ()
    #: False if this stands for a store that could not be reached.
    reachable: bool = True

    @classmethod
    def of(
        cls,
        birth: str,
        epoch: str,
        versions: Stamp,
        doubts: Mapping[str, Doubt],
        quarantine: tuple[str, ...] | None,
    ) -> Snapshot:
        """A snapshot with the union of its doubts' tags."""
        in_doubt = frozenset(tag for doubt in doubts.values() for tag in doubt.tags)
        return cls(birth, epoch, versions, doubts, quarantine, in_doubt)

    def __repr__(self) -> str:
        if not self.reachable:
            return '<Snapshot of an unreachable store>'
        quarantined = '' if self.quarantine is None else ', in quarantine'
        in_doubt = f', in doubt: {sorted(self.in_doubt)}' if self.in_doubt else ''
        return f'<Snapshot {self.epoch} {len(self.versions)} tags{in_doubt}{quarantined}>'

    def version(self, tag: str) -> str:
        """The tag's version: the birth, if it had no change since."""
        return self.versions.get(tag, self.birth)

    def stamp(self, tags: Iterable[str]) -> dict[str, str]:
        """The versions of these tags."""
        return {tag: self.version(tag) for tag in tags}

    def agrees(self, stamp: Stamp) -> bool:
        """Whether a value with this stamp is valid in this snapshot."""
        return all(self.version(tag) == version for tag, version in stamp.items())

    def unsettled(self, earlier: Snapshot) -> frozenset[str] | None:
        """The tags that changed since the earlier snapshot, or are in doubt in this one.

        :return: None stands for all tags: there was a birth in between.
        """
        if self is earlier:
            return self.in_doubt
        if self.birth != earlier.birth:
            return None
        tags = self.versions.keys() | earlier.versions.keys()
        changed = {tag for tag in tags if self.version(tag) != earlier.version(tag)}
        return self.in_doubt | changed


#: Stands for the snapshot of a store that can't be reached: no tag is ever valid.
UNREACHABLE = Snapshot('', '', {}, reachable=False)


class TagStore(Protocol):
    """Keeps births, epochs, versions and doubts; all methods may be called by any thread.

    Each call is one round trip, and atomic.
    """

    #: True if versions live in this process alone.
    single_process: bool

    def check(self) -> None:
        """Find out whether the store can be reached.

        :raises StoreUnreachable: if not; so do all other methods.
        """

    def snapshot(self, schema: str) -> Snapshot:
        """The tenant's present snapshot; the tenant is born if it is unknown."""

    def doubt(
        self,
        schema: str,
        writer: str,
        tags: Collection[str],
        known: Collection[str],
        transaction_id: str,
        read: Stamp,
    ) -> frozenset[str]:
        """Put tags in doubt: the writer is about to commit.

        :param known: the property tags that the writer's own code judges; all
          other property tags of the tenant are put in doubt with the rest.
        :param read: versions that must still hold, and be in nobody else's doubt.
        :return: the tags that are in doubt now.
        :raises SnapshotConflict: if one of ``read`` does not hold; nothing is changed.
        """

    def publish(self, schema: str, writer: str, tags: Collection[str]) -> None:
        """Give the tags new versions and end the writer's doubt: it has committed."""

    def end_doubt(self, schema: str, writer: str) -> None:
        """End the writer's doubt without new versions: it did not commit."""

    def settle(self, schema: str, writer: str, lease: float | None) -> None:
        """Give the tags of a left doubt new versions and end it.

        :param lease: do so only if the doubt is older than so many seconds.
        """

    def quarantine(self, schema: str, birth: str, waiting: Collection[str]) -> None:
        """Say which transactions must end before a quarantine does; none ends it."""

    def register(self, schema: str, tags: Collection[str]) -> None:
        """Make the tags of properties known to all writers, before anything is stored
        under them; those who are about to commit have them in doubt from now on."""

    def renew(self, schema: str) -> None:
        """A new birth: everything stored for the tenant is void."""
