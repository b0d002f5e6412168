"""A mounted app has properties of its own, and uses the cache of its root app."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import morepath
import pytest
from webtest import TestApp as Client

from onegov_ormcache import (
    OrmCache,
    OrmCacheApp,
    OrmCacheMiddleware,
    orm_cached,
    request_cached,
)
from onegov_ormcache.errors import ConfigurationError, OutsideScopeError
from tests.support.applications import Applications, change
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import Base, User


class Root:
    """The model at /."""


def test_mounted_app(applications: Applications, tenant: str, runs: Runs) -> None:
    """A mounted app's properties, and those of its requests, work and evict; its own come
    before the root app's of the same name."""

    class Town(OrmCacheApp):
        pass

    class Wiki(OrmCacheApp):
        def __init__(self, name: str) -> None:
            self.name = name

        @request_cached
        def title(self) -> str:
            return f'wiki {self.name}'

    def declare(name: str) -> Any:
        def both(request: Any) -> Any:
            runs(name)
            return [name, user_count(request.app)]

        return both

    for app_class in Town, Wiki:
        both = declare(app_class.__name__)
        app_class.orm_cached(policy=User, name='both', target='request')(both)
        app_class.path(path='')(Root)
    Town.orm_cached(policy=User, name='towns', target='request')(lambda request: 'town')
    Wiki.orm_cached(policy=User, name='wikis', target='request')(lambda request: 'wiki')
    Wiki.orm_cached(policy=User, name='count')(lambda app: user_count(app))
    Town.mount(app=Wiki, path='/wiki/{name}')(lambda name: Wiki(name))

    @Town.json(model=Root)
    def town_view(self: Root, request: Any) -> Any:
        return [request.both, request.towns, hasattr(request, 'wikis')]

    @Wiki.json(model=Root)
    def wiki_view(self: Root, request: Any) -> Any:
        return [request.both, request.towns, request.wikis, request.app.count, request.app.title]

    @Wiki.json(model=Root, request_method='POST')
    def add(self: Root, request: Any) -> Any:
        request.app.session().add(User(name=request.params['name']))

    app = applications.start(Town)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for _ in range(2):
        assert client.get('/').json == [['Town', 0], 'town', False]
        assert client.get('/wiki/a').json == [['Wiki', 0], 'town', 'wiki', 0, 'wiki a']
        assert client.get('/wiki/b').json == [['Wiki', 0], 'town', 'wiki', 0, 'wiki b']
    client.post('/wiki/a', {'name': 'x'})
    assert client.get('/').json == [['Town', 1], 'town', False]
    assert client.get('/wiki/a').json == [['Wiki', 1], 'town', 'wiki', 1, 'wiki a']
    assert (runs.count('Town'), runs.count('Wiki')) == (2, 3)


def test_root_app_must_own_the_cache(applications: Applications, tenant: str) -> None:
    """An OrmCacheApp mounted in an app that is none says what to do."""

    class Other(morepath.App):
        pass

    class Inner(OrmCacheApp):
        pass

    inner = applications.configure(Inner)()
    inner.parent = Other()
    with pytest.raises(ConfigurationError, match='Other must derive from OrmCacheApp'):
        inner.ensure_orm_cache()


class Counter:
    """An object that is neither app nor request, with a cached property."""

    def __init__(self, cache: OrmCache) -> None:
        self.orm_cache = cache

    @orm_cached(policy=User)
    def users(self) -> int:
        return self.orm_cache.session().query(User).count()


def test_objects_beside_an_app(applications: Applications, tenant: str, tmp_path: Path) -> None:
    """An application's own objects may have properties too, and use its cache or another: each
    is read in the scope of its cache, whichever scope is the innermost."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def users(self) -> int:
            return user_count(self)

    @App.orm_cached(policy=User, target='request')
    def doubled(request: Any) -> int:
        return 2 * user_count(request.app)

    app = applications.start(App)
    change(app, tenant, User(name='a'))
    mine = Counter(app.orm_cache)
    with OrmCache(base=Base, dsn=f'sqlite:///{tmp_path}/other') as other:
        theirs = Counter(other)

        def read(request: Any) -> list[int]:
            return [app.users, request.doubled, mine.users, theirs.users]

        for _ in range(2):
            request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
            request.app = app
            assert request.orm_cache is app.orm_cache
            with app.request_scope(tenant), other.scope('main'):
                assert read(request) == [1, 2, 1, 0]
            with other.scope('main'), app.request_scope(tenant):
                assert read(request) == [1, 2, 1, 0]
                app.orm_cache.prefetch(mine, 'users')
            with app.request_scope(tenant), pytest.raises(OutsideScopeError, match='users'):
                theirs.users
    stranger: Any = Counter(app.orm_cache)
    del stranger.orm_cache
    stranger.app = 'an app of another framework'
    with app.request_scope(tenant), pytest.raises(OutsideScopeError, match='no attribute'):
        stranger.users
