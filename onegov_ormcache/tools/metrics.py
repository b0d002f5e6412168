"""The statistics of a cache as metrics for Prometheus.

The names are those of Micrometer's binder for caches (``CacheMeterBinder``, and that of Caffeine),
so that dashboards made for these work: a property is a cache, the namespace its manager. The
numbers of all processes come from the tag store, so each process that is scraped tells the same; a
few are of the process alone, and say so.

While the store is away, a scrape has only these. A counter of this process instead of the sum
would be smaller, which Prometheus takes for a restart; one that is missing does no harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ..core.cache import OrmCache
from ..errors import ConfigurationError, MissingExtraError, StoreUnreachable
from ..statistics.results import PropertyStatistics, TenantStatistics
from ..tags.snapshot import PROPERTY_TAG, ROWS_TAG, whole_tag

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


#: The content type of :func:`metrics`.
CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'


class HasCache(Protocol):
    """A root app."""

    def ensure_orm_cache(self) -> OrmCache:
        """Return its cache."""


def metrics(*caches: OrmCache | HasCache, by_tenant: bool = False) -> bytes:
    """Return the metrics of caches in Prometheus' text format.

    Their content type is :data:`CONTENT_TYPE`. Show them to the monitoring alone: they have the
    names of properties and tables, and with ``by_tenant`` those of tenants.

    :param caches: caches, or root apps.
    :param by_tenant: give the numbers of each tenant a label ``tenant``. That is a series for each
        property of each tenant; by default, they are summed.
    :raises MissingExtraError: if prometheus-client is not installed.
    """
    client = _client()
    registry: CollectorRegistry = client.CollectorRegistry()
    registry.register(CacheCollector(*caches, by_tenant=by_tenant))
    found: bytes = client.generate_latest(registry)
    return found


class CacheCollector:
    """Collects the metrics of caches for a registry of prometheus-client.

    Made once in a process, and registered: ``REGISTRY.register(CacheCollector(app))``. It keeps no
    numbers, so several scrapes at once do not meet.

    :param caches: see :func:`metrics`. All of a registry belong into one collector.
    :param by_tenant: see :func:`metrics`.
    :raises ConfigurationError: if one of them is neither a cache nor a root app.
    :raises MissingExtraError: if prometheus-client is not installed.
    """

    def __init__(self, *caches: OrmCache | HasCache, by_tenant: bool = False) -> None:
        for each in caches:
            if not isinstance(each, OrmCache) and not hasattr(each, 'ensure_orm_cache'):
                raise ConfigurationError(f'{each!r} is no OrmCache, and no root app that has one')
        _client()
        self._caches = caches
        self._by_tenant = by_tenant

    def describe(self) -> Iterable[Metric]:
        """Return nothing: a registry must not ask the store when it registers the collector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. A store that is away is one of them, and no error."""
        families = Families(self._by_tenant)
        for each in self._caches:
            families.add(each if isinstance(each, OrmCache) else each.ensure_orm_cache())
        yield from families.all()


class Families:
    """The metrics of one scrape; made for it."""

    def __init__(self, by_tenant: bool) -> None:
        self._core: Any = _core()
        self._by_tenant = by_tenant
        self._families: dict[str, Any] = {}
        # the namespace of the cache that is added now, which is the label `cache_manager`
        self._manager = ''

    def add(self, cache: OrmCache) -> None:
        """Add the numbers of a cache; if the store is away, those of this process alone."""
        self._manager, statistics = cache.settings.namespace, cache.statistics
        try:
            if self._by_tenant:
                found = [statistics.of(tenant) for tenant in statistics.tenants()]
            else:
                found = [statistics.total()]
        except StoreUnreachable:
            self._of_process(cache, is_up=False)
            return
        self._of_process(cache, is_up=True)
        for each in found:
            self._of_tenant(each)

    def all(self) -> list[Metric]:
        """Return those that have numbers."""
        return list(self._families.values())

    def _of_process(self, cache: OrmCache, is_up: bool) -> None:
        """Add what is of this process."""
        self._gauge(
            'cache_up', 'Whether Redis answers this process: 1, or 0.', float(is_up)
        )
        tier, process_tier = {'tier': 'process'}, cache.process_tier
        self._gauge(
            'cache_size', 'Values in the process tier of this process.',
            len(process_tier.held()), **tier,
        )  # fmt: skip
        self._gauge(
            'cache_size_bytes', 'Bytes that they take.', process_tier.bytes_held, **tier
        )

    def _of_tenant(self, found: TenantStatistics) -> None:
        """Add the numbers of a tenant, or those of all."""
        tenant = {'tenant': found.tenant} if self._by_tenant else {}
        for where, counted in found.properties.items():
            self._of_property(counted, {'cache': where, **tenant})
        evictions: Counter[str] = Counter()
        for tag, counted_tag in found.tags.items():
            evictions[_label(tag)] += counted_tag.changes
        for tag, number in evictions.items():
            self._count(
                'cache_evictions', 'Changes of a tag, which evict the values that depend on it.',
                number, tag=tag, **tenant,
            )  # fmt: skip
        self._count(
            'cache_commits', 'Commits that have changed tags.', found.commits, **tenant
        )
        self._count(
            'cache_changed_tags', 'Tags that commits have changed.', found.changed_tags, **tenant
        )
        self._count(
            'cache_doubted_tags', 'Tags that were put in doubt before.', found.doubted_tags,
            **tenant,
        )  # fmt: skip
        self._count(
            'cache_dropped_counts', 'Counts that had no room.', found.dropped, **tenant
        )
        audited = sum_of_audits(found)
        if audited.audits:
            self._gauge(
                'cache_disagreement_bound',
                'The rate of hits that are not what the database gives is below this (95 %).',
                audited.disagreement_bound, **tenant,
            )  # fmt: skip

    def _of_property(self, counted: PropertyStatistics, labels: dict[str, str]) -> None:
        reads = {
            'request': counted.request_hits,
            'process': counted.process_hits,
            'shared': counted.shared_hits,
            'creator': counted.misses,
        }
        for tier, number in reads.items():
            result = 'miss' if tier == 'creator' else 'hit'
            self._count(
                'cache_gets', 'Reads of a property, by the tier that has answered.', number,
                result=result, tier=tier, **labels,
            )  # fmt: skip
        self._count('cache_puts', 'Values that were stored.', counted.stored, **labels)
        self._count(
            'cache_put_bytes', 'Bytes of the values that were stored.', counted.stored_bytes,
            **labels,
        )  # fmt: skip
        loads = {'success': counted.runs - counted.failed_runs, 'failure': counted.failed_runs}
        for result, number in loads.items():
            self._count(
                'cache_load', 'Runs of the creator.', number, result=result, **labels
            )
        self._summary(
            'cache_load_duration_seconds', 'Time of the runs of the creator.', counted.runs,
            counted.run_seconds, **labels,
        )  # fmt: skip
        self._summary(
            'cache_wait_duration_seconds', "Time of waiting for another caller's run.",
            counted.waits, counted.wait_seconds, **labels,
        )  # fmt: skip
        for reason, number in counted.refused.items():
            self._count(
                'cache_refused', 'Values that were not stored.', number, reason=reason, **labels
            )
        for reason, number in counted.bypasses.items():
            self._count(
                'cache_bypasses', 'Reads that could not use the cache.', number, reason=reason,
                **labels,
            )  # fmt: skip
        for verdict, number in counted.audits.items():
            self._count(
                'cache_audits', 'Hits that were compared with the database.', number,
                verdict=verdict, **labels,
            )  # fmt: skip

    def _gauge(self, name: str, text: str, number: float, **labels: str) -> None:
        self._family('GaugeMetricFamily', name, text, labels).add_metric(
            self._values(labels), number
        )

    def _count(self, name: str, text: str, number: float, **labels: str) -> None:
        self._family('CounterMetricFamily', name, text, labels).add_metric(
            self._values(labels), number
        )

    def _summary(
        self, name: str, text: str, number: int, seconds: float, **labels: str
    ) -> None:
        self._family('SummaryMetricFamily', name, text, labels).add_metric(
            self._values(labels), number, seconds
        )

    def _family(self, kind: str, name: str, text: str, labels: dict[str, str]) -> Any:
        """Return the family of a name; make it when it first has a number."""
        found = self._families.get(name)
        if found is None:
            names = ['cache_manager', *labels]
            found = getattr(self._core, kind)(name, text, labels=names)
            self._families[name] = found
        return found

    def _values(self, labels: dict[str, str]) -> list[str]:
        return [self._manager, *labels.values()]


def sum_of_audits(found: TenantStatistics) -> PropertyStatistics:
    """Return the audits of all properties of a tenant as those of one."""
    audits: Counter[str] = Counter()
    for counted in found.properties.values():
        audits.update(counted.audits)
    return PropertyStatistics(audits=audits)


def _label(tag: str) -> str:
    """Return the label of a tag: without bucket and release, of which there are many."""
    whole = whole_tag(tag) or tag
    if whole.startswith(PROPERTY_TAG + ROWS_TAG):
        return whole.removeprefix(PROPERTY_TAG)
    if whole.startswith(PROPERTY_TAG):
        return PROPERTY_TAG + whole.rpartition(':')[2]
    return whole


def _client() -> Any:
    """Return prometheus-client.

    :raises MissingExtraError: if it is not installed.
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise MissingExtraError(
            'metrics for Prometheus need prometheus-client: '
            'python -m pip install "onegov_ormcache[prometheus]"'
        ) from error
    return prometheus_client


def _core() -> Any:
    _client()
    from prometheus_client import core

    return core
