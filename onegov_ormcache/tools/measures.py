"""The statistics as numbers with a name and labels, for whichever library shows them.

The names are those of Micrometer's binders for caches (``CacheMeterBinder``, and that of
Caffeine), so that dashboards made for these work: a property is a cache, and the namespace its
manager.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple, Protocol

from ..core.cache import OrmCache
from ..errors import ConfigurationError
from ..statistics.results import PropertyStatistics, TenantStatistics
from ..tags.snapshot import PROPERTY_TAG, ROWS_TAG, whole_tag


class HasCache(Protocol):
    """A root app."""

    def ensure_orm_cache(self) -> OrmCache:
        """Return its cache."""


def require_cache(source: OrmCache | HasCache) -> None:
    """Raise :class:`.ConfigurationError` if an object is neither a cache nor a root app."""
    if not isinstance(source, OrmCache) and not hasattr(source, 'ensure_orm_cache'):
        raise ConfigurationError(f'{source!r} is no OrmCache, and no root app that has one')


def cache_of(source: OrmCache | HasCache) -> OrmCache:
    """Return a cache itself, or that of a root app."""
    return source if isinstance(source, OrmCache) else source.ensure_orm_cache()


class Kind(Enum):
    """What a number does in the course of time."""

    #: It grows.
    COUNTER = 'counter'
    #: It goes up and down.
    GAUGE = 'gauge'
    #: A number that grows, of something that takes time, and all its seconds.
    TIME = 'time'


class Definition(NamedTuple):
    """What a name stands for."""

    kind: Kind
    text: str


#: By name, with dots between the words.
DEFINITIONS = {
    'gets': Definition(Kind.COUNTER, 'Reads of a property, by the tier that has answered.'),
    'puts': Definition(Kind.COUNTER, 'Values that were stored.'),
    'put.bytes': Definition(Kind.COUNTER, 'Bytes of the values that were stored.'),
    'load': Definition(Kind.COUNTER, 'Runs of the creator.'),
    'load.duration': Definition(Kind.TIME, 'Time of the runs of the creator.'),
    'wait.duration': Definition(Kind.TIME, "Time of waiting for another caller's run."),
    'refused': Definition(Kind.COUNTER, 'Values that were not stored.'),
    'bypasses': Definition(Kind.COUNTER, 'Reads that could not use the cache.'),
    'audits': Definition(Kind.COUNTER, 'Hits that were compared with the database.'),
    'disagreement.bound': Definition(
        Kind.GAUGE, 'The rate of hits that are not what the database gives is below this (95 %).'
    ),
    'evictions': Definition(
        Kind.COUNTER, 'Changes of a tag, which evict the values that depend on it.'
    ),
    'commits': Definition(Kind.COUNTER, 'Commits that have changed tags.'),
    'changed.tags': Definition(Kind.COUNTER, 'Tags that commits have changed.'),
    'doubted.tags': Definition(Kind.COUNTER, 'Tags that were put in doubt before.'),
    'dropped.counts': Definition(Kind.COUNTER, 'Counts that had no room.'),
    'size': Definition(Kind.GAUGE, 'Values in the process tier of this process.'),
    'size.bytes': Definition(Kind.GAUGE, 'Bytes that they take.'),
    'up': Definition(Kind.GAUGE, 'Whether Redis answers this process: 1, or 0.'),
}


class Measure(NamedTuple):
    """One number."""

    name: str
    number: float
    labels: dict[str, str]
    #: The seconds of a :attr:`Kind.TIME`.
    seconds: float = 0.0


def of_process(cache: OrmCache) -> Iterator[Measure]:
    """Yield the numbers that a process has by itself."""
    labels = {'tier': 'process'}
    yield Measure('size', len(cache.process_tier.held()), labels)
    yield Measure('size.bytes', cache.process_tier.bytes_held, labels)


def of_tenant(found: TenantStatistics) -> Iterator[Measure]:
    """Yield the numbers of a tenant, or of all."""
    for where, counted in found.properties.items():
        yield from _of_property(counted, {'cache': where})
    evictions: Counter[str] = Counter()
    for tag, counted_tag in found.tags.items():
        evictions[_label(tag)] += counted_tag.changes
    for tag, number in evictions.items():
        yield Measure('evictions', number, {'tag': tag})
    yield Measure('commits', found.commits, {})
    yield Measure('changed.tags', found.changed_tags, {})
    yield Measure('doubted.tags', found.doubted_tags, {})
    yield Measure('dropped.counts', found.dropped, {})
    audits: Counter[str] = Counter()
    for counted in found.properties.values():
        audits.update(counted.audits)
    if audits:
        bound = PropertyStatistics(audits=audits).disagreement_bound
        yield Measure('disagreement.bound', bound, {})


def _of_property(counted: PropertyStatistics, labels: dict[str, str]) -> Iterator[Measure]:
    reads = {
        'request': counted.request_hits,
        'process': counted.process_hits,
        'shared': counted.shared_hits,
        'creator': counted.misses,
    }
    for tier, number in reads.items():
        result = 'miss' if tier == 'creator' else 'hit'
        yield Measure('gets', number, {**labels, 'result': result, 'tier': tier})
    yield Measure('puts', counted.stored, labels)
    yield Measure('put.bytes', counted.stored_bytes, labels)
    loads = {'success': counted.runs - counted.failed_runs, 'failure': counted.failed_runs}
    for result, number in loads.items():
        yield Measure('load', number, {**labels, 'result': result})
    yield Measure('load.duration', counted.runs, labels, counted.run_seconds)
    yield Measure('wait.duration', counted.waits, labels, counted.wait_seconds)
    for reason, number in counted.refused.items():
        yield Measure('refused', number, {**labels, 'reason': reason})
    for reason, number in counted.bypasses.items():
        yield Measure('bypasses', number, {**labels, 'reason': reason})
    for verdict, number in counted.audits.items():
        yield Measure('audits', number, {**labels, 'verdict': verdict})


def _label(tag: str) -> str:
    """Return the label of a tag: without bucket and release, of which there are many."""
    whole = whole_tag(tag) or tag
    if whole.startswith(PROPERTY_TAG + ROWS_TAG):
        return whole.removeprefix(PROPERTY_TAG)
    if whole.startswith(PROPERTY_TAG):
        return PROPERTY_TAG + whole.rpartition(':')[2]
    return whole
