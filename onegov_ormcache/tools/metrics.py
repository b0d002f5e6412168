"""The statistics of a cache as metrics for Prometheus.

The numbers of all processes come from the tag store, so each process that is scraped tells the
same; a few are of the process alone, and say so.

While the store is away, a scrape has only these. A counter of this process instead of the sum
would be smaller, which Prometheus takes for a restart; one that is missing does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import add
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


#: What becomes of the numbers of two caches that have one series, if not their sum.
TOGETHER = {'up': min, 'disagreement.bound': max}

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
        self._measures: dict[tuple[str, tuple[tuple[str, str], ...]], Measure] = {}
        # the namespaces that were read, each with its Redis, or the cache that has all in memory
        self._read: set[tuple[object, str]] = set()
        # the namespace of the cache that is added now, which is the label `cache_manager`
        self._manager = ''

    def add(self, cache: OrmCache) -> None:
        """Add the numbers of a cache; if the store is away, those of this process alone."""
        self._manager, statistics = cache.settings.namespace, cache.statistics
        read = cache.settings.redis_url or cache, self._manager
        try:
            if read in self._read:
                statistics.flush()
                found = []  # another cache of the process has told them
            elif self._by_tenant:
                found = [statistics.of(tenant) for tenant in statistics.tenants()]
            else:
                found = [statistics.total()]
        except StoreUnreachable:
            self._of_process(cache, is_up=False)
            return
        self._read.add(read)
        self._of_process(cache, is_up=True)
        for each in found:
            self._of_tenant(each)

    def all(self) -> list[Metric]:
        """Return those that have numbers."""
        families: dict[str, Any] = {}
        for (_, labels), measure in self._measures.items():
            kind, text = DEFINITIONS[measure.name]
            if (found := families.get(measure.name)) is None:
                name = 'cache_' + measure.name.replace('.', '_')
                name += '_seconds' if kind is Kind.TIME else ''
                names = [name for name, _ in labels]
                found = getattr(self._core, FAMILIES[kind])(name, text, labels=names)
                families[measure.name] = found
            values = [value for _, value in labels]
            if kind is Kind.TIME:
                found.add_metric(values, measure.number, measure.seconds)
            else:
                found.add_metric(values, measure.number)
        return list(families.values())

    def _of_process(self, cache: OrmCache, is_up: bool) -> None:
        self._measure(Measure('up', is_up, {}))
        for measure in of_process(cache):
            self._measure(measure)

    def _of_tenant(self, found: TenantStatistics) -> None:
        tenant = {'tenant': found.tenant} if self._by_tenant else {}
        for measure in of_tenant(found):
            self._measure(measure._replace(labels={**measure.labels, **tenant}))

    def _measure(self, measure: Measure) -> None:
        """Add a number to those that have its name and labels: Prometheus takes one alone."""
        labels = {'cache_manager': self._manager, **measure.labels}
        series = measure.name, tuple(labels.items())
        if (known := self._measures.get(series)) is not None:
            measure = measure._replace(
                number=TOGETHER.get(measure.name, add)(known.number, measure.number),
                seconds=known.seconds + measure.seconds,
            )
        self._measures[series] = measure


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
