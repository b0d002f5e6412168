"""The values of a tenant in the shared tier: whose they are, how large, and which are valid.

This module prints nothing.
"""

from __future__ import annotations

import pprint
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...core.properties import Property
from ...errors import UndecodableValue
from ...tags.overview import place_of
from ...tags.snapshot import Snapshot
from ...tiers.listing import Entry
from .sites import NothingThere, Site, chosen

#: The most values of a tenant that are listed.
MOST_VALUES = 1000

#: The most characters of a value that are shown.
MOST_CHARACTERS = 20_000

#: What may follow a property's key in that of a value: arguments, a variant, a mount, or a hash.
AFTER_KEY = ('', '(', '-', '@', '#')


@dataclass(frozen=True)
class ValueFacts:
    """A value in the shared tier."""

    #: Its key, without the tenant.
    key: str
    #: The full name of its property; None if no property of the application has such a key.
    where: str | None
    #: The rest of the key: arguments and variant, or their hash.
    variant: str
    #: The number of its bytes.
    size: int
    tags: tuple[str, ...]
    is_immutable: bool
    #: Seconds since it was stored, and until it goes by itself; None if that is not known, or if
    #: it does not go.
    age: float | None
    left: float | None
    #: The tags that have changed since it was computed: it is not used any more.
    changed: tuple[str, ...]
    #: The tags that are in doubt: it is not used until that is settled.
    in_doubt: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """True if its stamp has the present versions, and no tag is in doubt."""
        return not (self.changed or self.in_doubt)


@dataclass(frozen=True)
class TenantValues:
    """The values of a tenant in the shared tier."""

    tenant: str
    values: tuple[ValueFacts, ...]
    #: True if there are more values than these.
    is_cut: bool
    #: The number of keys that are no values: damaged, or of another release of the package.
    unreadable: int


@dataclass(frozen=True)
class DecodedValue:
    """A value as Python shows it."""

    key: str
    #: Of many lines; it may have any character that the value has.
    text: str
    #: True if the text is only the begin.
    is_cut: bool


def values_of(
    site: Site, tenant: str, prop: Property | None = None, most: int = MOST_VALUES
) -> TenantValues:
    """Return what the shared tier has of a tenant.

    :param prop: of this property alone.
    :param most: the most values to look at.
    :raises StoreUnreachable: if Redis can't be reached.
    """
    listing = site.values.listing(tenant, most)
    snapshots: dict[str, Snapshot | None] = {}
    facts = [_facts(site, tenant, entry, snapshots) for entry in listing.entries]
    return TenantValues(
        tenant,
        tuple(each for each in facts if prop is None or each.where == prop.where),
        listing.is_cut,
        listing.unreadable,
    )


def decoded(site: Site, tenant: str, key: str) -> DecodedValue:
    """Return a value as text.

    :param key: as :attr:`ValueFacts.key`.
    :raises NothingThere: if there is no such value, or if it can't be decoded.
    :raises StoreUnreachable: if Redis can't be reached.
    """
    stored = site.values.get(tenant, key)
    if stored is None:
        keys = [entry.key for entry in site.values.listing(tenant, MOST_VALUES).entries]
        chosen(key, keys, 'value', f'the shared tier has no value of {tenant!r}')
        raise NothingThere(f'the value {key!r} is gone, or can not be read')
    try:
        text = pprint.pformat(site.serializer.decode(stored.encoded.data), width=88)
    except UndecodableValue as error:
        hint = '' if site.cache else '; with --app the classes of the application are known'
        raise NothingThere(f'{key}: {error}{hint}') from error
    return DecodedValue(key, text[:MOST_CHARACTERS], len(text) > MOST_CHARACTERS)


def owner_of(site: Site, key: str) -> Property | None:
    """Return the property whose value has a key; None if there is none."""
    owners = [
        prop for prop in site.properties
        if key.startswith(prop.key) and key[len(prop.key) :][:1] in AFTER_KEY
    ]  # fmt: skip
    return max(owners, key=lambda prop: len(prop.key), default=None)


def _facts(
    site: Site, tenant: str, entry: Entry, snapshots: dict[str, Snapshot | None]
) -> ValueFacts:
    prop = owner_of(site, entry.key)
    changed, in_doubt = [], []
    for tag, version in sorted(entry.stamp.items()):
        snapshot = _snapshot(site, place_of(tenant, tag), snapshots)
        if snapshot is None or snapshot.version(tag) != version:
            changed.append(tag)
        elif tag in snapshot.in_doubt:
            in_doubt.append(tag)
    return ValueFacts(
        entry.key,
        prop.where if prop else None,
        entry.key[len(prop.key) :] if prop else '',
        entry.size,
        tuple(sorted(entry.stamp)),
        entry.is_immutable,
        entry.age,
        entry.left,
        tuple(changed),
        tuple(in_doubt),
    )


def _snapshot(
    site: Site, place: str, snapshots: dict[str, Snapshot | None]
) -> Snapshot | None:
    """Return the present snapshot of a place; ask for each place once."""
    if place not in snapshots:
        state = site.tags.state(place)
        snapshots[place] = None if state is None else state.snapshot
    return snapshots[place]


def by_property(values: TenantValues) -> Iterator[tuple[str, list[ValueFacts]]]:
    """Yield the values of each property, by its full name; those of no known property by their
    keys."""
    found: dict[str, list[ValueFacts]] = {}
    for each in values.values:
        found.setdefault(each.where or each.key, []).append(each)
    names: Mapping[str, list[ValueFacts]] = found
    yield from sorted(names.items())
