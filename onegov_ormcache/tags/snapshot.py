"""Snapshots, doubts, and the interface of a tag store.

A store keeps, per tenant and identity, a birth, an epoch, the versions of its tags and the
doubts of its writers; the glossary in ``docs/how_it_works.rst`` explains these words.
It knows nothing of properties, sessions or databases: here, identities, writers, transaction
ids and tags are opaque strings, except that a tag's prefix tells its kind, and the end of an
identity its schema.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from .overlays import differing, with_changes

#: Versions by tag; the stamp of a value has those of all tags that it depends on.
Stamp = Mapping[str, str]

#: No versions at all.
NO_VERSIONS: Stamp = MappingProxyType({})

#: Prefix of the tags of properties whose policies are functions.
PROPERTY_TAG = 'property:'

#: Prefix of the tags of rows: ``rows:NAME/BUCKET``, with one of 256 numbers. Each change of the
#: rows gives new versions to their buckets, or to the whole, ``property:rows:NAME``. It is the tag
#: of a property, so that writers that do not know the rows evict it.
ROWS_TAG = 'rows:'

#: The number of buckets of rows, and of the values of one property. All processes and releases
#: must have the same.
BUCKETS = 256

_NUMBERS = frozenset(map(str, range(BUCKETS)))

#: Prefix of the tags of tables.
TABLE_TAG = 'table:'

#: Prefix of the tags of single properties, which change by hand alone: ``value:NAME``; or
#: ``value:NAME/BUCKET`` for the values with some arguments.
VALUE_TAG = 'value:'

#: The tag of the definitions of a schema's tables. What a process knows of the definitions is
#: valid as long as its version; no value has it in its stamp.
CATALOG_TAG = '#catalog'

#: The tag of what no lock shows a change of: functions, types, policies and the names of
#: schemas. All values have it in their stamps.
CODE_TAG = '#code'


#: No tags at all.
NO_TAGS: frozenset[str] = frozenset()


def new_token() -> str:
    """Return a new version, epoch, birth or writer's id: random, so that none comes twice."""
    return secrets.token_urlsafe(12)


def whole_tag(tag: str) -> str | None:
    """Return the tag that stands for all buckets of the same rows, or of the same property.

    :return: None if the tag is that of no bucket.
    """
    name, _, bucket = tag.rpartition('/')
    if not name or bucket not in _NUMBERS:
        return None
    if tag.startswith(VALUE_TAG):
        return name
    return PROPERTY_TAG + name if tag.startswith(ROWS_TAG) else None


@dataclass(frozen=True, slots=True)
class Doubt:
    """The doubt of a writer: a transaction that was about to commit when last heard of."""

    #: The tags that the commit changes.
    tags: frozenset[str]
    #: Its transaction's key, by which the database is asked whether it has ended; '' if the
    #: database knows none.
    transaction_key: str


@dataclass(frozen=True, slots=True, repr=False)
class Snapshot:
    """The versions of a tenant's tags at one moment, and which of them are in doubt.

    Made by a tag store, and shared by all readers while the tenant's epoch lasts; never
    changed.
    """

    birth: str
    epoch: str
    versions: Stamp
    #: The doubts, by writer's id.
    doubts: Mapping[str, Doubt] = field(default_factory=dict)
    #: None if the tenant is in no quarantine. Otherwise the ids of the transactions, in
    #: progress at the birth, whose end the quarantine waits for; empty if the database was
    #: not asked for them yet, ``('lease',)`` if it has no transaction ids.
    quarantine: tuple[str, ...] | None = None
    #: The tags of all doubts.
    in_doubt: frozenset[str] = frozenset()
    #: The snapshots that this one was merged from, each with its place; empty if it is that
    #: of one place alone.
    parts: tuple[tuple[str, Snapshot], ...] = ()
    #: False if this stands for a store that could not be reached.
    reachable: bool = True
    #: The identity of the tenant's database whose versions these are; '' if the store was told
    #: of none.
    identity: str = ''
    #: The token that the tenant's list of identities had when the snapshot was taken; '' if
    #: there is no list.
    identities: str = ''
    #: False if this stands for the versions of a database that this process must ask first
    #: which identity it has; see :meth:`TagStore.identify`.
    identified: bool = True
    #: The tags of properties that have a version, which are those that are registered.
    property_tags: frozenset[str] = NO_TAGS

    @classmethod
    def of(
        cls,
        birth: str,
        epoch: str,
        versions: Stamp,
        doubts: Mapping[str, Doubt],
        quarantine: tuple[str, ...] | None,
        identity: str = '',
        identities: str = '',
        property_tags: frozenset[str] | None = None,
    ) -> Snapshot:
        """Return a snapshot of one place, with :attr:`in_doubt` computed from the doubts.

        :param property_tags: None: look for them in the versions.
        """
        if property_tags is None:
            property_tags = property_tags_of(versions)
        # most tenants have no doubts: one empty set for all of them
        in_doubt = frozenset().union(*(d.tags for d in doubts.values())) if doubts else NO_TAGS
        return cls(
            birth, epoch, versions, doubts, quarantine, in_doubt,
            identity=identity, identities=identities, property_tags=property_tags,
        )  # fmt: skip

    def after(
        self,
        epoch: str,
        versions: Stamp,
        doubts: Mapping[str, Doubt],
        gone: Collection[str] = (),
        ended: Collection[str] = (),
    ) -> Snapshot:
        """Return the snapshot of a later epoch, of the same birth and place.

        Takes as long as the changes are many, not the tags.

        :param epoch: the later epoch.
        :param versions: those that have changed.
        :param doubts: those that are new or have changed, by writer's id.
        :param gone: the tags that have no version of their own any more.
        :param ended: the writers that are not in doubt any more.
        """
        changed = with_changes(self.versions, versions)
        property_tags = self.property_tags
        if not self.versions.keys() >= versions.keys():
            property_tags |= property_tags_of(versions)
        if gone:  # no tag store does that without a birth
            changed = {tag: changed[tag] for tag in changed.keys() - set(gone)}
            property_tags = property_tags.difference(gone)
        present = {**self.doubts, **doubts}
        for writer in ended:
            present.pop(writer, None)
        return Snapshot.of(
            self.birth, epoch, changed, present, self.quarantine, self.identity, self.identities,
            property_tags,
        )  # fmt: skip

    @classmethod
    def unidentified(cls, identities: str) -> Snapshot:
        """Return a snapshot that is not identified, with the token of the tenant's list."""
        return cls('', '', {}, identities=identities, identified=False)

    @property
    def usable(self) -> bool:
        """True if cached values may be used with this snapshot."""
        return self.reachable and self.identified

    def of_place(self, place: str) -> Snapshot:
        """Return the part of this snapshot that belongs to a place."""
        return dict(self.parts).get(place, self)

    def __repr__(self) -> str:
        if not self.reachable:
            return '<Snapshot of an unreachable store>'
        if not self.identified:
            return '<Snapshot of a database that was not identified>'
        quarantined = '' if self.quarantine is None else ', in quarantine'
        in_doubt = f', in doubt: {sorted(self.in_doubt)}' if self.in_doubt else ''
        return f'<Snapshot {self.epoch} {len(self.versions)} tags{in_doubt}{quarantined}>'

    def version(self, tag: str) -> str:
        """Return the tag's version: the birth, if the tag has not changed since."""
        return self.versions.get(tag, self.birth)

    def stamp(self, tags: Iterable[str]) -> dict[str, str]:
        """Return the versions of these tags."""
        return {tag: self.version(tag) for tag in tags}

    def agrees(self, stamp: Stamp) -> bool:
        """Return whether the stamp has this snapshot's versions; doubts are not looked at."""
        version_of, birth = self.versions.get, self.birth
        for tag, version in stamp.items():  # noqa: SIM110 - a generator takes twice as long
            if version_of(tag, birth) != version:
                return False
        return True

    def unsettled(self, earlier: Snapshot) -> frozenset[str] | None:
        """Return the tags that changed since ``earlier``, or are in doubt in this snapshot.

        :return: None stands for all tags: there was a birth in between.
        """
        if self is earlier:
            return self.in_doubt
        if self.birth != earlier.birth:
            return None
        tags = differing(self.versions, earlier.versions)
        changed = {tag for tag in tags if self.version(tag) != earlier.version(tag)}
        return self.in_doubt | changed


def property_tags_of(versions: Stamp) -> frozenset[str]:
    """Return the tags of properties among tags with versions."""
    found = [tag for tag in versions if tag.startswith(PROPERTY_TAG)]
    # most tenants have none: one empty set for all of them
    return frozenset(found) if found else NO_TAGS


def same_schema(identity: str, other: str) -> bool:
    """Return whether two identities are those of the same schema, on a primary and its replica.

    Their last three parts tell it: the folder of the database, and the ids of the schema and of
    the transaction that made it what it is.
    """
    return identity.split('.')[-3:] == other.split('.')[-3:]


#: Stands for the snapshot of a store that can't be reached: a scope that has it uses no stored
#: value, and stores none.
UNREACHABLE = Snapshot('', '', {}, reachable=False)


class DoubtAnswer(Protocol):
    """The answer to a doubt; see :meth:`TagStore.doubt`. The caller gets it or leaves it."""

    def result(self) -> frozenset[str]:
        """Wait for the answer; return the tags that the writer has in doubt now.

        :raises SnapshotConflict: if one of the versions that the writer has read does not hold;
            its ``tag`` says which. No tag of this doubt was put in doubt then.
        :raises StoreUnreachable: if the store can't be reached.
        """

    def leave(self) -> None:
        """Do not wait for the answer."""


class TagStore(Protocol):
    """Keeps births, epochs, versions and doubts; all methods may be called by any thread.

    Each call is one round trip, and atomic; only a
    :class:`~onegov_ormcache.tags.places.PlacedTagStore` makes several.

    A tenant has versions of its own for each identity of its database. All other methods work
    with those of the identity that :meth:`identify`, :meth:`follow` or :meth:`assume` was last
    called with, in this process.
    """

    #: True if the versions live in this process alone.
    single_process: bool

    @property
    def changes(self) -> int:
        """The number of times that this process has lost the store, or found it again."""

    @property
    def is_lost(self) -> bool:
        """True while the store is only tried now and then, because it could not be reached."""

    def missed(self) -> None:
        """Count a transaction that does without the store, for the log."""

    def check(self, *, insists: bool = False) -> None:
        """Check that the store can be reached.

        When it is first reached, what it can't be used for is logged.

        :param insists: ask it in any case, also if it was just lost.
        :raises StoreUnreachable: if it can't be reached; all other methods raise it, too.
        """

    def inspect(self) -> None:
        """Check that the settings are right, as far as a store that can be reached tells.

        :raises ConfigurationError: if one is wrong.
        """

    def identity(self, schema: str) -> str | None:
        """Return the identity with whose versions this process works; None if it was told none.

        Takes no round trip.
        """

    def unidentified(self, schema: str) -> Snapshot:
        """Return a snapshot with which no value may be used, but :meth:`identify` be called."""

    def identify(self, schema: str, identity: str, identities: str) -> None:
        """Work with the versions of this identity, which the tenant's database was found to have.

        A new identity is entered in the tenant's list, which gets a new token. Then all
        processes get snapshots that are not identified, until each has asked its database.

        :param identities: the token of a snapshot that was taken before the database was asked.
            If the list has another token by now, the next snapshot is not identified: the
            answer of the database may be out of date.
        """

    def follow(self, schema: str, identity: str, identities: str) -> None:
        """Work with the versions of the primary of a replica, which has this identity.

        :param identity: the identity of the replica. The primary's has the same schema, and is
            the latest one in the tenant's list. If there is none, :meth:`assume`.
        :param identities: see :meth:`identify`.
        """

    def assume(self, schema: str, identity: str) -> None:
        """Work with the versions of this identity until the store can be reached again.

        The next snapshot is not identified. Takes no round trip.
        """

    def snapshot(self, schema: str) -> Snapshot:
        """Return the tenant's present snapshot; a tenant that is unknown gets a birth.

        It is not identified if the tenant's list of identities has changed.
        """

    def doubt(
        self,
        schema: str,
        writer: str,
        tags: Collection[str],
        known: Collection[str],
        transaction_key: str,
        read: Stamp,
        computed: Stamp = NO_VERSIONS,
    ) -> DoubtAnswer:
        """Put tags in doubt: the writer is about to commit, when it has the answer.

        Its tags are added to those of an earlier doubt of the same writer.

        :param writer: an id of the transaction, made by :func:`new_token`.
        :param known: the property tags whose function policies the writer's own code has
            asked about its changes. All other property tags of the tenant are put in doubt
            as well, because nobody has asked their policies.
        :param transaction_key: see :class:`Doubt`.
        :param read: versions that the writer has read; each must still be the present one,
            and its tag in no other writer's doubt.
        :param computed: versions of what the writer has read from the database itself; the same
            holds for each. One of a quarantine may also have outlasted its end: its tag has
            not changed until then, nor since.
        :return: the answer, for which nobody has waited yet.
        """

    def publish(self, schema: str, writer: str, tags: Collection[str]) -> None:
        """Give new versions to the tags and those of the writer's doubt, and end the doubt.

        The writer has committed. Nobody waits until it is done: until then, the doubt stands.
        """

    def end_doubt(self, schema: str, writer: str) -> None:
        """End the writer's doubt without new versions: it did not commit."""

    def settle(self, schema: str, writer: str, lease: float | None) -> None:
        """Give the tags of a writer's doubt new versions and end the doubt, if there is one.

        :param lease: do so only if the doubt is at least so many seconds old; None: at once.
        """

    def quarantine(self, schema: str, birth: str, waiting: Collection[str]) -> None:
        """Set the transactions that a quarantine waits for; without any, end the quarantine.

        The end is a new birth. A tag whose version the quarantine had is known not to have
        changed in it, see :meth:`doubt`.

        :param birth: the birth that began the quarantine. Nothing is done if the tenant has
            another one by now.
        :param waiting: ids of transactions.
        """

    def register(self, schema: str, tags: Collection[str]) -> None:
        """Make the tags of properties known to all writers.

        This must come before any value with these tags is stored. Tags that are new are
        added to all doubts, because their writers, about to commit, could not know them.
        """

    def renew(self, schema: str) -> None:
        """Give the tenant a new birth, so that everything stored for it is void.

        Doubts stay.
        """

    def forget(self, schema: str, interval: float) -> None:
        """Give the tenant a new birth without any tags of their own versions.

        Doubts stay. Tags of properties must be registered again. Nothing is done if it was
        done within the last ``interval`` seconds.
        """
