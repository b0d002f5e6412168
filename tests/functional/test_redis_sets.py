"""Applications behave behind Sentinels and on a cluster as they do on one Redis server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from fixtures.townhall import make_application
from onegov_ormcache import OrmCacheApp, orm_cached
from tests.functional.visitors import CHANGES, TownHall
from tests.support.applications import Applications, change, value
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


@pytest.mark.parametrize('kind', [SentinelSet, ClusterSet])
def test_fail_over(
    servers_backend: Backend,
    make_tenant: Callable[[str], str],
    kind: type[SentinelSet | ClusterSet],
    runs: Runs,
) -> None:
    """Through a fail-over every read is answered, and none is stale. The same processes use the
    new primary, at which a commit succeeds and values are cached again."""
    servers = SentinelSet() if kind is SentinelSet else ClusterSet(replicas=1)
    with servers, ExitStack() as stack:
        settings = {**servers_backend.settings, 'redis_url': servers.url}
        applications = Applications(replace(servers_backend, settings=settings), stack)
        app: Any = applications.start(Town)
        other: Any = applications.elsewhere(app)
        app.runs = other.runs = runs
        tenants = [make_tenant(name) for name in TENANTS]
        for tenant in tenants:
            change(app, tenant, User(name='before'))
            assert value(other, tenant, names) == ['before']
        servers.fail_over()
        for tenant in tenants:
            assert value(other, tenant, names) == ['before']
        for tenant in tenants:
            for each in app, other:
                # a process looks at the cluster once per second
                cache = each.orm_cache
                wait_until(lambda: cache.snapshot(tenant).reachable, 'the new primary')  # noqa: B023
            change(app, tenant, User(name='later'))
            assert value(other, tenant, names) == ['before', 'later']
            computed = runs.count('names')
            assert value(app, tenant, names) == value(other, tenant, names) == ['before', 'later']
            assert runs.count('names') == computed
