"""A function that is taken from an app or request: where it may be used, and how long it lives."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from webtest import TestApp as Client

from onegov_ormcache import OrmCache, OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache.core.functions import OrmCacheFunction
from onegov_ormcache.errors import OutsideScopeError, PropertyError
from tests.core.functions.directory import App, users
from tests.hosts.host import Host, make_tenants
from tests.support.applications import Applications, change, committed, value
from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.models import User

#: Seconds after which a test that is wrong ends.
LONG = 60


def test_kept_function(
    app: App, make_tenant: Callable[[str], str], tenant: str, runs: Runs
) -> None:
    """A function that a program keeps works in whichever scope, tenant and thread it is called,
    and sees the changes of that scope's transaction."""
    other = make_tenant('other')
    change(app, other, User(id=1, name='other'))
    with app.request_scope(tenant) as scope:
        kept = app.user
        assert kept is app.user
        assert kept(1) == users(1)[1]
        user: Any = scope.session().get(User, 1)
        user.name = 'renamed'
        assert kept(1) == ['renamed']
        with app.request_scope(other):
            assert kept(1) == ['other']
        assert kept(1) == ['renamed']
        scope.session().rollback()
        assert kept(1) == users(1)[1]
    with pytest.raises(OutsideScopeError, match='user'):
        kept(1)
    with pytest.raises(OutsideScopeError, match='user'):
        kept.many([1])
    with app.request_scope(other):
        assert kept(1) == ['other']
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(value, app, tenant, lambda app: kept(1)).result(LONG)
        assert found == users(1)[1]
        assert kept(1) == ['other']
    with committed(app, tenant) as scope:
        changed: Any = scope.session().get(User, 1)
        changed.name = 'changed'
    assert value(app, tenant, lambda app: kept.many([1, 2])) == {1: ['changed'], **users(2)}
    assert kept.__name__ == 'user'


def test_functions_keep_nothing_alive(app: App, tenant: str) -> None:
    """After a scope's end, neither its functions nor their descriptors keep a request alive."""

    class Shown(App):
        pass

    Shown.orm_cached(policy=User, name='shown', target='request')(lambda request, id: [id])
    shown = app
    Shown.commit()
    request = Shown.request_class({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'}, shown)
    with app.request_scope(tenant):
        assert request.shown(1) == [1]
        assert request.shown.many([1, 2]) == {1: [1], 2: [2]}
    dropped = weakref.ref(request)
    del request
    gc.collect()
    assert dropped() is None


def test_overridden_functions(on_servers: Applications, tenant: str, runs: Runs) -> None:
    """A function of a subclass, and that of its base by super(), have values of their own; so has
    a subclass that overrides nothing."""

    class Base(OrmCacheApp):
        @orm_cached(policy=User)
        def book(self, id: int) -> list[Any]:
            runs('base')
            return ['base', id]

    class Sub(Base):
        @orm_cached(policy=User)
        def book(self, id: int, lang: str = 'de') -> list[Any]:
            runs('sub')
            return [*super().book(id), *super().book.many([id])[id], lang]

    class Other(Base):
        pass

    apps = [on_servers.start(each) for each in (Base, Sub, Other)]
    expected = [['base', 1], ['base', 1, 'base', 1, 'de'], ['base', 1]]
    for _ in range(2):
        for app, found in zip(apps, expected, strict=True):
            assert value(app, tenant, lambda app: app.book(1)) == found
    assert (runs.count('base'), runs.count('sub')) == (3, 1)


class Root:
    """The model at /."""


def test_mounted_requests(applications: Applications, tenant: str, runs: Runs) -> None:
    """A request has the functions of the app that answers it, also where the root app has a
    property of that name."""

    class Town(OrmCacheApp):
        pass

    class Wiki(OrmCacheApp):
        def __init__(self, name: str) -> None:
            self.name = name

        @orm_cached(policy=User)
        def page(self, id: int) -> list[Any]:
            runs('page')
            return [self.name, id]

    Town.orm_cached(policy=User, name='both', target='request')(lambda request: ['town'])
    Wiki.orm_cached(policy=User, name='both', target='request')(
        lambda request, id=1: ['wiki', request.app.name, id]
    )
    Wiki.orm_cached(policy=User, name='own', target='request')(
        lambda request, id: [request.app.name, *request.app.page(id)]
    )
    for app_class in Town, Wiki:
        app_class.path(path='')(Root)
    Town.mount(app=Wiki, path='/{name}')(lambda name: Wiki(name))

    @Town.json(model=Root)
    def town_view(self: Root, request: Any) -> Any:
        return request.both

    @Wiki.json(model=Root)
    def wiki_view(self: Root, request: Any) -> Any:
        return [request.own(1), request.own.many([2, 1])[2], request.app.page(id=1)]

    app = applications.start(Town)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for _ in range(2):
        assert client.get('/').json == ['town']
        for name in 'a', 'b':
            assert client.get(f'/{name}').json == [[name, name, 1], [name, name, 2], [name, 1]]
    assert runs.count('page') == 4


def test_what_hosts_know_of_a_function(app: App, tenant: str, runs: Runs) -> None:
    """A function has the attributes of a property that hosts use."""
    descriptor: Any = type(app).in_words
    assert isinstance(descriptor, OrmCacheFunction)
    assert descriptor.cache_key_prefix == descriptor.cache_key(app) == 'in_words'
    with app.request_scope(tenant):
        expected = ['user 1', 'fr', True]
        assert descriptor.create(app, 1, 'fr', loud=True) == expected
        assert descriptor.load(app, 1, 'fr', loud=True) == expected
        assert descriptor.load_many(app, [(1, 'fr')]) == {(1, 'fr'): ['user 1', 'fr', False]}
        assert runs.count('in_words') == 3
    keys = [key for key in descriptor.used_cache_keys if 'App.in_words(' in key]
    assert len(keys) == 2
    for assign in lambda: setattr(app, 'user', 1), lambda: delattr(app, 'user'):
        with pytest.raises(PropertyError, match='user'):
            assign()


def test_used_keys_are_bounded(embedded: Applications, tenant: str) -> None:
    """Neither the keys that a host can see nor the request tier grow with the arguments."""

    class Many(OrmCacheApp):
        @orm_cached(policy=User)
        def found(self, id: int) -> int:
            return id

    app = embedded.start(Many)
    with app.request_scope(tenant) as scope:
        for id in range(3000):
            assert app.found(id) == id
        assert app.found.many(range(3000)) == {id: id for id in range(3000)}
        assert len(scope.tier) <= 1000
        descriptor: Any = type(app).found
        assert len(descriptor.used_cache_keys) <= 1000


class Board:
    """What a host shows of users."""

    def __init__(self, host: Host, runs: Runs) -> None:
        self.host = host
        self.runs = runs
        self.orm_cache: OrmCache = host.cache

    @orm_cached(policy='auto')
    def name_of(self, id: int) -> list[Any]:
        self.runs('name_of')
        user = self.host.session().get(User, id)
        return [user and user.name]


def test_functions_of_hosts(servers_backend: Backend, tenant: str, runs: Runs) -> None:
    """A host with sessions of its own has functions, and evicts them by hand, in its own
    transactions."""
    make_tenants(servers_backend.settings['dsn'], tenant)
    host = Host(dict(servers_backend.settings), runs)
    try:
        host.schema = tenant
        board = Board(host, runs)
        board.orm_cache.enter_scope(tenant)
        for _ in range(2):
            assert board.name_of(1) == [None]
            assert board.name_of.many([1, 2]) == {1: [None], 2: [None]}
        session = host.session()
        session.add(User(id=1, name='new'))
        assert board.name_of(1) == ['new']
        session.commit()
        assert board.name_of.many([2, 1]) == {2: [None], 1: ['new']}
        before = runs.count('name_of')
        board.orm_cache.evict(board, 'name_of', 2)
        host.session().commit()
        assert board.name_of.many([2, 1]) == {2: [None], 1: ['new']}
        assert runs.count('name_of') == before + 1
    finally:
        host.close()
