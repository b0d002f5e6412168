"""The statistics of a cache as metrics for Prometheus.

The numbers of all processes come from the tag store, so each process that is scraped tells the
same; a few are of the process alone, and say so.

While the store is away, a scrape has only these. A counter of this process instead of the sum
would be smaller, which Prometheus takes for a restart; one that is missing does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..core.cache import OrmCache
from ..errors import MissingExtraError, StoreUnreachable
from ..statistics.results import TenantStatistics
from .measures import (
    DEFINITIONS,
    HasCache,
    Kind,
    Measure,
    cache_of,
    of_process,
    of_tenant,
    require_cache,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


#: The content type of :func:`metrics`.
CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'


#: The classes of prometheus-client, by kind.
FAMILIES = {
    Kind.COUNTER: 'CounterMetricFamily',
    Kind.GAUGE: 'GaugeMetricFamily',
    Kind.TIME: 'SummaryMetricFamily',
}


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
            require_cache(each)
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
            families.add(cache_of(each))
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
        self._measure(Measure('up', is_up, {}))
        for measure in of_process(cache):
            self._measure(measure)

    def _of_tenant(self, found: TenantStatistics) -> None:
        tenant = {'tenant': found.tenant} if self._by_tenant else {}
        for measure in of_tenant(found):
            self._measure(measure._replace(labels={**measure.labels, **tenant}))

    def _measure(self, measure: Measure) -> None:
        """Add a number to the family of its name, which is made with the first one."""
        labels = {'cache_manager': self._manager, **measure.labels}
        found = self._families.get(measure.name)
        if found is None:
            kind, text = DEFINITIONS[measure.name]
            name = 'cache_' + measure.name.replace('.', '_')
            name += '_seconds' if kind is Kind.TIME else ''
            found = getattr(self._core, FAMILIES[kind])(name, text, labels=list(labels))
            self._families[measure.name] = found
        values = list(labels.values())
        if DEFINITIONS[measure.name].kind is Kind.TIME:
            found.add_metric(values, measure.number, measure.seconds)
        else:
            found.add_metric(values, measure.number)

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
