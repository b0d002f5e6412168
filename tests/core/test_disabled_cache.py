"""A cache that is turned off for a block reads everything from the database, and keeps every
promise when it is on again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from webtest import TestApp as Client

from onegov_ormcache import OrmCache, OrmCacheApp, OrmCacheMiddleware, orm_cached, request_cached
from onegov_ormcache.core.recording import CacheEvent
from onegov_ormcache.errors import SnapshotConflict
from tests.core.plain_objects import add
from tests.hosts.bare import MakeBareHost
from tests.hosts.conftest import make_bare_host, make_host, other_tenant  # noqa: F401
from tests.support.applications import Applications
from tests.support.counting import Runs
from tests.support.models import User


class Town:
    """An object with properties of each kind."""

    def __init__(self, cache: OrmCache, runs: Runs) -> None:
        self.orm_cache = cache
        self.runs = runs

    @orm_cached(policy=User)
    def users(self) -> int:
        self.runs('users')
        return self.orm_cache.session().query(User).count()

    @orm_cached(policy=User)
    def twice(self) -> int:
        self.runs('twice')
        return 2 * self.users

    @orm_cached(policy='auto')
    def user(self, name: str) -> int:
        self.runs('user')
        return self.orm_cache.session().query(User).filter_by(name=name).count()

    @request_cached
    def first(self) -> User | None:
        self.runs('first')
        return self.orm_cache.session().query(User).first()


@pytest.fixture
def town(cache: OrmCache, runs: Runs, tenant: str) -> Town:
    """A town whose tenant is known, and whose values are cached."""
    town = Town(cache, runs)
    for _ in range(2):  # the second time without a quarantine
        add(cache, tenant, User(name=f'user-{_}'))
        read(town, tenant)
    return town


def read(town: Town, tenant: str) -> list[Any]:
    with town.orm_cache.scope(tenant):
        return [town.users, town.twice, town.user('Ada'), *town.user.many(['Ada', 'Bob']).values()]


def test_each_read_runs_the_creator(town: Town, tenant: str) -> None:
    """In the block nothing that is cached is used, not even in the same scope; after it, what was
    cached before is used, because nothing has changed."""
    before = town.runs.total
    with town.orm_cache.disabled(), town.orm_cache.scope(tenant):
        for number in (1, 2, 3):
            town.users
            assert town.runs.total == before + number
        town.user('Ada')
        town.user('Ada')
        town.user.many(['Ada', 'Bob'])
        town.orm_cache.prefetch(town, 'users', 'twice')
        assert town.runs.total == before + 7
        town.twice  # which reads `users`
        assert town.runs.total == before + 9
    assert read(town, tenant) == [2, 4, 0, 0, 0]
    assert town.runs.total == before + 9


def test_nothing_is_stored(town: Town, tenant: str) -> None:
    """A value that was computed in the block is computed again after it, once."""
    with town.orm_cache.disabled():
        add(town.orm_cache, tenant, User(name='Ada'))
        read(town, tenant)
    before = town.runs.count('users')
    assert read(town, tenant)[0] == 3
    assert read(town, tenant)[0] == 3
    assert town.runs.count('users') == before + 1


def test_commits_evict_in_the_block(town: Town, tenant: str) -> None:
    """What was cached before the block is not used after it, if the block has changed it."""
    with town.orm_cache.disabled():
        add(town.orm_cache, tenant, User(name='Ada'))
    assert read(town, tenant) == [3, 6, 1, 1, 0]


def test_request_cached_values_stay(town: Town, tenant: str) -> None:
    """A request-cached property is one object in its request, as ever."""
    with town.orm_cache.disabled(), town.orm_cache.scope(tenant):
        assert town.first is town.first


def test_a_scope_that_is_open(town: Town, tenant: str) -> None:
    """A scope in which values were read before the block reads them anew in it. After the block it
    reads them from the database to the end of its transaction, so that no value gets older."""
    cache, runs = town.orm_cache, town.runs
    with cache.scope(tenant) as scope:
        before = runs.total
        assert (town.users, town.users) == (2, 2)
        assert runs.total == before
        with cache.disabled():
            assert (town.users, town.users) == (2, 2)
        assert runs.total == before + 2
        assert (town.users, town.users) == (2, 2)
        assert runs.total == before + 4
        scope.commit()
        with cache.recording() as events:
            assert (town.users, town.users) == (2, 2)
        assert [event.tier for event in events] == ['process', 'request']


def test_a_mixture_is_refused(town: Town, tenant: str) -> None:
    """A value of the cache, and a newer one that was read in the block, are no page."""
    cache = town.orm_cache
    with cache.scope(tenant):
        assert town.users == 2
        with ThreadPoolExecutor(1) as other:
            other.submit(add, cache, tenant, User(name='Ada')).result()
        isolation = {'isolation_level': 'REPEATABLE READ'}
        options = {} if cache.tags.single_process else isolation
        with cache.disabled(), pytest.raises(SnapshotConflict, match='table:users changed'):
            cache.session().connection(execution_options=options)
            town.users


def test_blocks_nest_and_overlap(town: Town, tenant: str) -> None:
    """The cache is on again when the last block ends, in whichever order, also by an error."""
    cache = town.orm_cache
    first, second = cache.disabled(), cache.disabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert cache.is_disabled
    second.__exit__(None, None, None)
    assert not cache.is_disabled
    with pytest.raises(ZeroDivisionError), cache.disabled():
        1 / 0
    assert not cache.is_disabled


def test_other_threads(town: Town, tenant: str) -> None:
    """Requests of other threads that begin in the block do without the cache, too."""
    barrier = Barrier(2)

    def request() -> int:
        barrier.wait(30)
        with town.orm_cache.scope(tenant):
            return town.users + town.users

    before = town.runs.total
    with town.orm_cache.disabled(), ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: request(), range(2))) == [4, 4]
    assert town.runs.total == before + 4


def test_statistics_say_why(town: Town, tenant: str) -> None:
    """What was passed by is counted with its reason."""
    with town.orm_cache.disabled():
        read(town, tenant)
    where = f'{Town.__module__}.Town.users'
    counted = town.orm_cache.statistics.of(tenant).properties[where]
    assert counted.bypasses['disabled'] > 0
    assert counted.refused['disabled'] > 0


def test_a_host_with_sessions_of_its_own(
    make_bare_host: MakeBareHost, tenant: str  # noqa: F811
) -> None:
    """The scope of a host's thread does without the cache in the block."""
    host = make_bare_host()
    host.cache.enter_scope(tenant)
    host.session.add(User(name='Ada'))
    host.session.commit()
    assert host.names == host.names == ['Ada']
    host.session.commit()
    assert host.names == ['Ada']
    with host.cache.recording() as events, host.cache.disabled():
        assert host.names == host.names == ['Ada']
        host.session.commit()
        assert host.names == ['Ada']
    assert [event.tier for event in events if event.kind == 'read'] == ['creator'] * 3
    host.session.commit()
    with host.cache.recording() as events:
        assert host.names == ['Ada']
    assert [event.tier for event in events] == ['process']


class Site(OrmCacheApp):
    pass


@Site.path(path='')
class Root:
    pass


@Site.json(model=Root, cached=True)
def view(self: Root, request: Any) -> Any:
    return request.app.session().query(User).count()


def test_cached_views(applications: Applications, tenant: str) -> None:
    """The view of a cached response runs for each request of the block."""
    app = applications.start(Site)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for _ in range(3):
        client.get('/')

    def tiers(events: list[CacheEvent]) -> list[str | None]:
        return [event.tier for event in events if event.kind == 'read']

    with app.recording() as events:
        assert client.get('/').json == 0
    assert tiers(events) == ['process']
    with app.orm_cache.disabled(), app.recording() as events:
        assert (client.get('/').json, client.get('/').json) == (0, 0)
    assert tiers(events) == ['creator', 'creator']
    with app.recording() as events:
        client.get('/')
    assert tiers(events) == ['process']
