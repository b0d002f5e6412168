"""What the pages show of a tenant and of its properties, read from the numbers of all processes.

Reading counts as no read of the application, and looks at no value. This module does not know how
a page looks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...core.cache import OrmCache
from ...core.properties import Property
from ...statistics.results import (
    PropertyStatistics,
    Slot,
    SlotCounts,
    TagStatistics,
    TenantStatistics,
)
from ...tags.snapshot import CODE_TAG, PROPERTY_TAG, ROWS_TAG, VALUE_TAG, whole_tag
from ..inspection.sites import Site
from ..inspection.tags import TenantTags, tags_of
from .models import Tenant, TenantProperty

#: The most tenants of one page, as each costs about thirty commands.
MOST_TENANTS = 50

#: The most tags of one page.
MOST_TAGS = 500

#: Numbers of a property that was not read.
UNREAD = PropertyStatistics()


@dataclass(frozen=True)
class Total:
    """Sums over several properties."""

    hits: int = 0
    gets: int = 0
    runs: int = 0
    run_seconds: float = 0.0
    commits: int = 0
    changed_tags: int = 0

    @property
    def hit_rate(self) -> float | None:
        """From 0 to 1; None without reads."""
        return self.hits / self.gets if self.gets else None

    @classmethod
    def of(cls, each: Iterable[PropertyStatistics], **more: int) -> Total:
        """Return the sums of properties."""
        found = list(each)
        return cls(
            sum(p.hits for p in found),
            sum(p.gets for p in found),
            sum(p.runs for p in found),
            sum(p.run_seconds for p in found),
            **more,
        )

    def __add__(self, other: Total) -> Total:
        return Total(
            self.hits + other.hits, self.gets + other.gets, self.runs + other.runs,
            self.run_seconds + other.run_seconds, self.commits + other.commits,
            self.changed_tags + other.changed_tags,
        )  # fmt: skip


@dataclass(frozen=True)
class TenantReading:
    """What was counted of one tenant."""

    tenant: Tenant
    statistics: TenantStatistics
    history: Sequence[Slot] = ()

    @property
    def total(self) -> Total:
        """The sums over all its properties."""
        counted = self.statistics
        return Total.of(
            counted.properties.values(), commits=counted.commits,
            changed_tags=counted.changed_tags,
        )  # fmt: skip

    def hours(self, where: str | None = None) -> Mapping[int, SlotCounts]:
        """Return the counts by hour.

        :param where: of one property; None: the sums of all.
        """
        return {
            int(slot.start): _sum(
                slot.properties.values() if where is None else (slot.properties.get(where),)
            )
            for slot in self.history
        }


def _sum(counts: Iterable[SlotCounts | None]) -> SlotCounts:
    found = [each for each in counts if each is not None]
    return SlotCounts(
        sum(each.hits for each in found),
        sum(each.misses for each in found),
        sum(each.run_seconds for each in found),
    )


@dataclass(frozen=True)
class PropertyReading:
    """What was counted of one property of one tenant, and what it is."""

    model: TenantProperty
    #: None if this process has no such property: one of another release, or of another
    #: application.
    prop: Property | None
    counted: PropertyStatistics
    #: The tags that its values have, or the last one had.
    tags: frozenset[str] = frozenset()
    in_doubt: frozenset[str] = field(default=frozenset())

    @property
    def is_page(self) -> bool:
        """True if its values are whole responses."""
        name = self.model.name
        # those of another release are known by their names alone
        return '.view(' in name if self.prop is None else self.prop.declaration.is_response

    @property
    def short(self) -> str:
        """Its name without modules and class; for a page, its view."""
        name = self.model.name
        if self.is_page:
            return without_modules(name[name.index('.view(') + 1 :] if '.view(' in name else name)
        return self.prop.name if self.prop is not None else name.rpartition('.')[2]

    @property
    def owner(self) -> str:
        """The class that it is a property of, without modules."""
        name = self.model.name.partition('.view(')[0] if self.is_page else self.model.name
        parts = name.rpartition('<locals>.')[2].split('.')
        return '.'.join(part for part in parts if part[:1].isupper() or part == 'request')

    @property
    def mean_run(self) -> float | None:
        """Seconds of one run; None without runs."""
        return self.counted.run_seconds / self.counted.runs if self.counted.runs else None

    @property
    def size(self) -> int | None:
        """Bytes of the last value; None without runs."""
        return self.counted.last_run.size if self.counted.last_run else None

    @property
    def saved(self) -> float | None:
        """Seconds of the runs that hits have made unnecessary, about."""
        if self.mean_run is None:
            return None
        # what the request tier answers, a plain attribute would answer too
        return self.mean_run * (self.counted.process_hits + self.counted.shared_hits)

    @property
    def trouble(self) -> str:
        """Why its last value was not stored; '' if it was."""
        return self.counted.last_run.why_not_stored if self.counted.last_run else ''

    @property
    def location(self) -> str:
        """Module and line of its creator, without the folder, which is the server's own."""
        if self.prop is None:
            return ''
        declared = self.prop.declaration
        module = getattr(declared.creator, '__module__', '')
        return f'{module}, line {declared.location.rpartition(":")[2]}'


@dataclass(frozen=True)
class TagReading:
    """A tag of a tenant, or several that have one name for people."""

    text: str
    changes: int
    #: Seconds since 1970; None if no change is known.
    last_change: float | None
    is_in_doubt: bool
    #: The properties of which it evicts values.
    evicts: Sequence[PropertyReading] = ()


def tag_readings(
    tags: Iterable[str],
    counted: Mapping[str, TagStatistics],
    in_doubt: frozenset[str],
    properties: Sequence[PropertyReading] = (),
) -> list[TagReading]:
    """Return tags as they are shown: those in doubt first, then the last change.

    :param properties: those of which some may be evicted.
    """
    groups: dict[str, list[str]] = {}
    for tag in tags:
        groups.setdefault(tag_text(tag), []).append(tag)
    found = []
    for text, group in groups.items():
        known = [counted[tag] for tag in group if tag in counted]
        found.append(
            TagReading(
                text,
                sum(each.changes for each in known),
                max((each.last_change for each in known if each.last_change), default=None),
                not in_doubt.isdisjoint(group),
                [each for each in properties if evicting(each.tags, group)],
            )
        )
    return sorted(
        found, key=lambda each: (not each.is_in_doubt, -(each.last_change or 0), each.text)
    )


class Readings:
    """Reads what was counted of a cache. Made for each request.

    :raises StoreUnreachable: if the store can't be reached; so do all methods.
    """

    def __init__(self, cache: OrmCache) -> None:
        self.cache = cache
        self.site = Site.of(cache)

    def tenants(self) -> list[str]:
        """Return the tenants of which anything was counted, in order."""
        return self.cache.statistics.tenants()

    def tenant(self, tenant: Tenant) -> TenantReading:
        """Return what was counted of a tenant, with its last hours."""
        return replace(self.sums(tenant), history=self.cache.statistics.history(tenant.name))

    def sums(self, tenant: Tenant) -> TenantReading:
        """Return what was counted of a tenant, without its hours, which take most of the time."""
        return TenantReading(tenant, self.cache.statistics.of(tenant.name))

    def tags(self, tenant: Tenant) -> TenantTags | None:
        """Return what the tag store has of a tenant; None if it has nothing."""
        return tags_of(self.site, tenant.name)

    def properties(
        self, reading: TenantReading, in_doubt: frozenset[str]
    ) -> list[PropertyReading]:
        """Return the properties of the application, and those that were counted for the tenant:
        the most costly first.

        :param in_doubt: the tags of the tenant that are in doubt.
        """
        bound = {prop.where: prop for prop in self.site.properties}
        counted = reading.statistics.properties
        found = [
            self._property(reading.tenant, where, bound.get(where), counted.get(where), in_doubt)
            for where in sorted({*bound, *counted})
        ]
        return sorted(
            found, key=lambda each: (-each.counted.run_seconds, -each.counted.gets, each.short)
        )

    def _property(
        self,
        tenant: Tenant,
        where: str,
        prop: Property | None,
        counted: PropertyStatistics | None,
        in_doubt: frozenset[str],
    ) -> PropertyReading:
        counted = counted or UNREAD
        tags: set[str] = set()
        if prop is not None:
            tags |= prop.tags | {rows.tag for rows, _ in prop.rows} | {prop.value_tag}
        if counted.last_run is not None:
            tags.update(counted.last_run.tags)
        return PropertyReading(
            TenantProperty(tenant, where), prop, counted, frozenset(tags),
            frozenset(evicting(tags, in_doubt)),
        )  # fmt: skip


def evicting(tags: Collection[str], changed: Iterable[str]) -> list[str]:
    """Return those of changed tags by which values are evicted that have some tags.

    :param tags: of all values of a property; of rows, the tag that stands for all buckets.
    """
    return [
        tag for tag in changed
        if tag in tags or tag == CODE_TAG or (whole_tag(tag) or tag) in tags
    ]  # fmt: skip


def tag_text(tag: str) -> str:
    """Return a tag as people know it."""
    if tag == CODE_TAG:
        return 'everything'
    if tag.startswith(VALUE_TAG):
        return 'by hand'
    # the buckets of rows are numbers, which say nothing
    whole = whole_tag(tag) or tag
    if whole.startswith(PROPERTY_TAG + ROWS_TAG):
        return whole.removeprefix(PROPERTY_TAG)
    # a policy that is a function: the key has the release and the class, too
    return 'objects of ' + whole.rpartition('.')[2] if whole.startswith(PROPERTY_TAG) else whole


def without_modules(text: str) -> str:
    """Return a text with each dotted name cut to its last part."""
    return re.sub(r'\b(?:\w+\.)+(?=\w)', '', text)
