"""Applications behave behind Sentinels and on a cluster as they do on one Redis server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import pytest

from fixtures.townhall import make_application
from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.errors import StoreUnreachable
from tests.functional.visitors import CHANGES, TownHall
from tests.support.applications import Applications, change, committed, value
from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.models import User
from tests.support.redis_sets import ClusterSet, SentinelSet, wait_until

TENANTS = [f'town{number}' for number in range(6)]


class Town(OrmCacheApp):
    runs: Runs

    @orm_cached(policy='on-table-change:users')
    def names(self) -> list[str]:
        self.runs('names')
        return sorted(user.name for user in self.session().query(User))


@pytest.fixture
def on_sets(servers_backend: Backend, set_url: str) -> Iterator[Applications]:
    """Makes applications on PostgreSQL, and a set of Redis servers."""
    settings = {**servers_backend.settings, 'redis_url': set_url}
    with ExitStack() as stack:
        yield Applications(replace(servers_backend, settings=settings), stack)


@pytest.fixture
def hall(
    servers_backend: Backend, set_url: str, make_tenant: Callable[[str], str]
) -> Iterator[TownHall]:
    """A town hall with Iceland's data."""
    prefix = make_tenant('x')[:-1]
    settings = {**servers_backend.settings, 'redis_url': set_url}
    application = make_application(settings, prefix=prefix)
    hall = TownHall(application, prefix)
    hall.load('is')
    yield hall
    application.app.close_orm_cache()


def names(app: Any) -> list[str]:
    return list(app.names)


@pytest.mark.parametrize(
    'made', ['rename a page', 'close all tickets', 'join a department', 'publish a document']
)
def test_change_is_seen_by_the_next_request(hall: TownHall, made: str) -> None:
    """After a change, all views show at once what is in the database, to every role."""
    before = hall.everything()
    assert hall.computed() == set()
    hall.post(*CHANGES[made])
    after = hall.everything()
    assert after != before
    assert hall.fresh() == after


def test_tenants_and_processes(
    on_sets: Applications, make_tenant: Callable[[str], str], runs: Runs
) -> None:
    """A value is computed once for all processes, and a change in one process is seen in the
    other, for tenants on each node."""
    app: Any = on_sets.start(Town)
    other: Any = on_sets.elsewhere(app)
    app.runs = other.runs = runs
    tenants = [make_tenant(name) for name in TENANTS]
    for tenant in tenants:
        assert value(app, tenant, names) == value(other, tenant, names) == []
        change(other, tenant, User(name=tenant))
        assert value(app, tenant, names) == value(other, tenant, names) == [tenant]
    assert runs.count('names') == 2 * len(tenants)


def test_values_cached_by_hand(on_sets: Applications, tenant: str) -> None:
    """What an application caches by hand is shared by its processes."""
    app = on_sets.start(Town)
    other = on_sets.elsewhere(app)
    with app.request_scope(tenant):
        assert app.cache.get_or_create('a', lambda: 1) == 1
        app.cache.set_multi({'b': 2, 'c': 3})
    with other.request_scope(tenant):
        assert other.cache.get_or_create('a', lambda: 4) == 1
        assert other.cache.get_multi(['b', 'c']) == [2, 3]
        other.cache.delete_multi(['b', 'c'])
    with app.request_scope(tenant):
        assert not app.cache.get('b')


@pytest.fixture(params=['sentinel', 'cluster'])
def own_set(request: pytest.FixtureRequest) -> Iterator[SentinelSet | ClusterSet]:
    """Servers of the test's own, for a fail-over."""
    with SentinelSet() if request.param == 'sentinel' else ClusterSet(replicas=1) as servers:
        yield servers


@pytest.fixture
def on_own_set(
    servers_backend: Backend, own_set: SentinelSet | ClusterSet
) -> Iterator[Applications]:
    """Makes applications on PostgreSQL, and servers of the test's own."""
    settings = {**servers_backend.settings, 'redis_url': own_set.url, 'on_outage': 'refuse'}
    with ExitStack() as stack:
        yield Applications(replace(servers_backend, settings=settings), stack)


def reach(tenants: list[str], *apps: Any) -> None:
    """Wait until each application reaches the tag store of each tenant."""
    for app in apps:
        for tenant in tenants:
            # a process looks at a cluster once per second
            wait_until(partial(is_reached, app, tenant), 'the new primary')


def is_reached(app: Any, tenant: str) -> bool:
    return bool(app.orm_cache.snapshot(tenant).reachable)


def test_fail_over(
    on_own_set: Applications, own_set: SentinelSet | ClusterSet, make_tenant: Callable[[str], str]
) -> None:
    """While a primary dies and another one takes its place, each read shows all that was
    acknowledged before. The same processes then commit and cache values at the new primary."""
    app: Any = on_own_set.start(Town)
    other: Any = on_own_set.elsewhere(app)
    app.runs = other.runs = runs = Runs()
    tenants = [make_tenant(name) for name in TENANTS]
    acknowledged = dict.fromkeys(tenants, 0)
    for tenant in tenants:
        change(app, tenant, User(name='0'))
    stopping = Event()

    def write(tenant: str) -> int:
        """Count up; return how many commits were refused."""
        refused = 0
        while not stopping.is_set():
            try:
                with committed(app, tenant) as scope:
                    user = scope.session().query(User).one()
                    user.name = str(acknowledged[tenant] + 1)
                acknowledged[tenant] += 1
            except StoreUnreachable:
                refused += 1
        return refused

    def read(tenant: str) -> tuple[int, list[tuple[int, int]]]:
        """Return the number of reads, and the stale ones: what was to be seen, and what was."""
        reads, stale = 0, []
        while not stopping.is_set():
            expected = acknowledged[tenant]
            (seen,) = map(int, value(other, tenant, names))
            if seen < expected:
                stale.append((expected, seen))
            reads += 1
        return reads, stale

    with ThreadPoolExecutor(2 * len(tenants)) as pool:
        writers = [pool.submit(write, tenant) for tenant in tenants]
        readers = [pool.submit(read, tenant) for tenant in tenants]
        try:
            own_set.fail_over()
            reach(tenants, app, other)
            before = dict(acknowledged)
            wait_until(
                lambda: all(acknowledged[each] > before[each] + 5 for each in tenants), 'commits'
            )
        finally:
            stopping.set()
    found = [reader.result() for reader in readers]
    assert [stale for _, stale in found] == [[]] * len(tenants)
    assert min(reads for reads, _ in found) > 0
    assert sum(writer.result() for writer in writers) > 0
    for tenant in tenants:
        seen = value(app, tenant, names)
        computed = runs.count('names')
        assert value(app, tenant, names) == value(other, tenant, names) == seen
        assert seen == [str(acknowledged[tenant])]
        assert runs.count('names') == computed
