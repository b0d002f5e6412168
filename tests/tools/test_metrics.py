"""The metrics for Prometheus: names, sums over processes, and a store that is away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as families_of
from sqlalchemy import select
from webtest import TestApp

from onegov_ormcache import OrmCache, orm_cached, rows
from onegov_ormcache.errors import ConfigurationError
from onegov_ormcache.tools.metrics import CONTENT_TYPE, CacheCollector, metrics
from tests.core.plain_objects import Names
from tests.support.backends import Backend
from tests.support.models import Base, User
from tests.support.outside import until
from tests.support.servers import RedisServer

WHERE = 'tests.core.plain_objects.Names.users'


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has made."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cache(backend: Backend, stack: ExitStack, tenant: str) -> OrmCache:
    """A cache with a user, whose property was read three times."""
    made = stack.enter_context(opened(backend))
    with made.scope(tenant) as scope:
        scope.session().add(User(id=1, name='a'))
        scope.commit()
    for _ in range(3):
        read(made, tenant)
    return made


def opened(backend: Backend, **settings: Any) -> OrmCache:
    """Return a cache that sends its numbers when it is asked for them."""
    return OrmCache(base=Base, **{**backend.settings, 'statistics_interval': None, **settings})


def read(cache: OrmCache, tenant: str) -> None:
    """Read the property in a scope of its own."""
    with cache.scope(tenant) as scope:
        scope.session().connection()  # the quarantine ends
        Names(cache).users


def samples(text: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return the numbers, by name and labels, as a server of Prometheus reads them."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    seen: set[str] = set()
    for family in families_of(text.decode()):
        assert family.name not in seen
        seen.add(family.name)
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {})
            found[sample.name][labels] = sample.value
    return found


def number(text: bytes, name: str, **labels: str) -> float:
    """Return the sum of the samples of a name that have these labels."""
    return sum(
        value for found, value in samples(text)[name].items() if labels.items() <= set(found)
    )


def test_names_of_micrometer(cache: OrmCache, tenant: str) -> None:
    """The names and labels are those of Micrometer's binders for caches."""
    text = metrics(cache)
    manager = {'cache_manager': cache.settings.namespace}
    of_names = {'cache': WHERE, **manager}
    assert number(text, 'cache_gets_total', result='hit', **of_names) == 2
    assert number(text, 'cache_gets_total', result='hit', tier='process', **of_names) == 2
    assert number(text, 'cache_gets_total', result='miss', **of_names) == 1
    assert number(text, 'cache_puts_total', **of_names) == 1
    assert number(text, 'cache_load_total', result='success', **of_names) == 1
    assert number(text, 'cache_load_total', result='failure', **of_names) == 0
    assert number(text, 'cache_load_duration_seconds_count', **of_names) == 1
    assert number(text, 'cache_load_duration_seconds_sum', **of_names) > 0
    assert number(text, 'cache_evictions_total', tag='table:users', **manager) == 1
    assert number(text, 'cache_commits_total', **manager) == 1
    assert number(text, 'cache_size', tier='process', **manager) == 1
    assert number(text, 'cache_size_bytes', tier='process', **manager) > 100
    assert number(text, 'cache_up', **manager) == 1
    assert tenant.encode() not in text


def test_tenants_have_labels_if_one_likes(cache: OrmCache, make_tenant: Any) -> None:
    """With `by_tenant`, each tenant has numbers of its own."""
    other = make_tenant('other')
    read(cache, other)
    text = metrics(cache, by_tenant=True)
    assert number(text, 'cache_gets_total', tenant=make_tenant('main'), cache=WHERE) == 3
    assert number(text, 'cache_gets_total', tenant=other, cache=WHERE) == 1
    assert number(metrics(cache), 'cache_gets_total', cache=WHERE) == 4


def test_audits(backend: Backend, stack: ExitStack, tenant: str) -> None:
    """What the auditor has found is there, with the bound for the rate of all hits."""
    cache = stack.enter_context(opened(backend, check_hits=1))
    assert 'cache_disagreement_bound' not in samples(metrics(cache))
    for _ in range(3):
        read(cache, tenant)
    text = metrics(cache)
    assert number(text, 'cache_audits_total', cache=WHERE, verdict='agreed') == 2
    assert number(text, 'cache_disagreement_bound') == pytest.approx(1 - 0.05 ** (1 / 2))


def test_each_process_tells_the_same(
    servers_backend: Backend, stack: ExitStack, tenant: str
) -> None:
    """The numbers are those of all processes, whichever is scraped, by however many at once."""
    first, second = (stack.enter_context(opened(servers_backend)) for _ in range(2))
    for each in first, second:
        read(each, tenant)
        each.statistics.flush()
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(metrics, [first, second] * 8))
    for name in 'cache_gets_total', 'cache_load_duration_seconds_sum', 'cache_puts_total':
        told = {frozenset(samples(text)[name].items()) for text in texts}
        assert len(told) == 1
    assert number(texts[0], 'cache_gets_total', result='hit') == 1


def test_store_that_is_away(own_redis: RedisServer, tmp_path: Any) -> None:
    """While Redis is away there is an answer at once: that it is away, and what the process knows
    by itself. No counter gets smaller."""
    backend = Backend('own', {'dsn': f'sqlite:///{tmp_path}', 'redis_url': own_redis.url})
    with opened(backend, redis_timeout=0.2) as cache:
        read(cache, 'main')
        assert number(metrics(cache), 'cache_gets_total') == 1
        own_redis.kill()
        for by_tenant in False, True:
            text = metrics(cache, by_tenant=by_tenant)
            assert set(samples(text)) == {'cache_up', 'cache_size', 'cache_size_bytes'}
            assert number(text, 'cache_up') == 0
        own_redis.start()
        until(lambda: number(metrics(cache), 'cache_up') == 1, 30)


def test_labels_are_bounded(cache: OrmCache, tenant: str) -> None:
    """Values by argument, rows, and policies of many releases are counted as one each."""

    class Town:
        orm_cache = cache

        @orm_cached(policy=rows(User.id))
        def user(self, id: int) -> str | None:
            return cache.session().scalar(select(User.name).where(User.id == id))

        @orm_cached(policy=lambda obj: isinstance(obj, User))
        def judged(self) -> int:
            return 1

    with cache.scope(tenant):
        for id in range(40):
            Town().user(id)
        Town().judged
    with cache.scope(tenant) as scope:
        scope.session().add_all(User(id=id, name=f'{id}') for id in range(2, 40))
        scope.commit()
    found = samples(metrics(cache))
    assert len({labels for labels in found['cache_puts_total'] if 'user' in str(labels)}) == 2
    tags = {dict(labels)['tag'] for labels in found['cache_evictions_total']}
    assert 'rows:users.id:int' in tags
    assert f'property:{__name__}.{test_labels_are_bounded.__name__}.<locals>.Town.judged' in tags
    assert not [tag for tag in tags if '/' in tag]


def test_several_caches(cache: OrmCache, tmp_path: Any, stack: ExitStack) -> None:
    """The caches of a process share the names of the metrics, each with its namespace."""
    other = opened(Backend('own', {'dsn': f'sqlite:///{tmp_path}/b', 'namespace': 'other'}))
    read(stack.enter_context(other), 'main')
    text = metrics(cache, other)
    assert number(text, 'cache_gets_total', cache_manager='other') == 1
    assert number(text, 'cache_gets_total', cache_manager=cache.settings.namespace) == 3


def test_no_series_is_there_twice(servers_backend: Backend, stack: ExitStack, tenant: str) -> None:
    """Two caches of a process that have one namespace tell their common numbers once, and the sum
    of what each has by itself; Prometheus refuses a series that is there twice."""
    first, second = (stack.enter_context(opened(servers_backend)) for _ in range(2))
    for cache in first, second:
        read(cache, tenant)
        cache.statistics.flush()
    for by_tenant in False, True:
        text = metrics(first, second, by_tenant=by_tenant)
        told = [line.rpartition(' ')[0] for line in text.decode().splitlines() if line[0] != '#']
        assert len(told) == len(set(told))
        assert number(text, 'cache_gets_total') == 2
        held = sum(len(each.process_tier.held()) for each in (first, second))
        assert number(text, 'cache_size') == held
        assert number(text, 'cache_up') == 1


def test_in_a_registry(cache: OrmCache) -> None:
    """A registry that describes what it registers does not ask the store; it serves the metrics
    in both formats."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(CacheCollector(cache))
    assert [*openmetrics_families(generate_openmetrics(registry).decode())]
    response = TestApp(make_wsgi_app(registry)).get('/')
    assert response.headers['Content-Type'] == CONTENT_TYPE
    assert number(response.body, 'cache_gets_total', result='miss') == 1


def test_neither_a_cache_nor_an_app() -> None:
    """What has no cache is refused when the collector is made."""
    with pytest.raises(ConfigurationError, match='no OrmCache'):
        metrics('town')  # type: ignore[arg-type]


def test_without_the_extra() -> None:
    """Without prometheus-client, nothing of it is imported, and a sentence says what to do."""
    script = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        'from onegov_ormcache import errors\n'
        'from onegov_ormcache.tools.metrics import metrics\n'
        'try:\n    metrics()\n'
        'except errors.MissingExtraError as error:\n    print(error)\n'
    )
    said = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert 'python -m pip install "onegov_ormcache[prometheus]"' in said.stdout, said.stderr
