"""Prefetching gets all values that the process does not have in one round trip."""

from __future__ import annotations

from typing import Any

import pytest
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached, request_cached
from onegov_ormcache.errors import PropertyError
from tests.support.applications import Applications, change
from tests.support.counting import Runs
from tests.support.models import User


class Root:
    """The model at /."""


class App(OrmCacheApp):
    """Ten properties of the app, one of the request, and a view that reads them all."""

    runs = Runs()


def declare(number: int) -> None:
    @App.orm_cached(policy=User, name=f'p{number}')
    def count(app: Any) -> list[int]:
        app.runs('p')
        return [number, app.session().query(User).count()]


for number in range(10):
    declare(number)


@App.orm_cached(policy=User, target='request')
def of_request(request: Any) -> int:
    return int(request.app.session().query(User).count())


NAMES = [f'p{number}' for number in range(10)]

App.path(path='')(Root)


@App.json(model=Root, prefetch=[*NAMES, 'of_request'])
def view(self: Root, request: Any) -> Any:
    return [*(getattr(request.app, name) for name in NAMES), request.of_request]


@App.view(model=Root, name='plain', prefetch='p1')
def plain(self: Root, request: Any) -> str:
    return str(request.app.p1)


def test_view_option(on_servers: Applications, tenant: str, redis_ops: Any) -> None:
    """A view that names its properties costs two commands in a process without values, then
    one."""
    app = on_servers.start(App)
    change(app, tenant, User(name='a'))
    expected = [*([number, 1] for number in range(10)), 1]
    assert Client(OrmCacheMiddleware(app, schema=tenant)).get('/').json == expected
    new = on_servers.elsewhere(app)
    with new.request_scope(tenant):
        new.session().connection()  # the process knows the tenant and its database now
    client = Client(OrmCacheMiddleware(new, schema=tenant))
    with redis_ops(2):
        assert client.get('/').json == expected
    with redis_ops(1):
        assert client.get('/').json == expected
    assert client.get('/plain').text == '[1, 1]'


def test_prefetch_computes_nothing(applications: Applications, tenant: str) -> None:
    """Prefetching computes nothing: a value that no tier has is computed when it is read."""
    App.runs = Runs()
    app = applications.start(App)
    with app.request_scope(tenant) as scope:
        app.prefetch('p1', 'p2')
        assert App.runs.total == 0
        assert app.p1 == [1, 0]
        assert App.runs.total == 1
        scope.session().add(User(name='mine'))
        app.prefetch('p1', 'p2')
        assert app.p1 == [1, 1]


def test_unknown_names(applications: Applications, tenant: str) -> None:
    """A name that is no orm-cached property raises an error that names the class without it."""
    app = applications.start(App)
    with app.request_scope(tenant), pytest.raises(PropertyError, match=r"App has no .*'runs'"):
        app.prefetch('p1', 'runs')


@pytest.mark.parametrize('directive', ['view', 'json', 'html'])
@pytest.mark.parametrize('names', [['p1', 'nothing'], 'nothing', ['runs'], ['passing']])
def test_unknown_names_of_a_view(directive: str, names: Any) -> None:
    """A view that names anything but orm-cached properties is an error when the app is committed,
    with the view's file and line."""

    class Wrong(App):
        @request_cached
        def passing(self) -> int:
            return 1

    @getattr(Wrong, directive)(model=Root, name='wrong', prefetch=names)
    def wrong(self: Root, request: Any) -> str:
        return ''

    named = names if isinstance(names, str) else names[-1]
    with pytest.raises(
        PropertyError, match=rf'test_prefetching\.py", line \d+: .* {named!r}.* of .*Wrong or'
    ):
        Wrong.commit()


def test_view_that_names_a_property_with_arguments() -> None:
    """A view can't name the arguments of a property, so it is an error when the app is committed,
    that says what to call."""

    class Wrong(App):
        @orm_cached(policy=User)
        def user(self, id: int) -> int:
            return id

    @Wrong.json(model=Root, name='wrong', prefetch='user')
    def wrong(self: Root, request: Any) -> str:
        return ''

    with pytest.raises(PropertyError, match=r"names user .*request.prefetch\('user', args"):
        Wrong.commit()


def test_view_that_names_properties_of_the_root_app(on_servers: Applications, tenant: str) -> None:
    """A mounted app's view may name its own properties, and those that the root app's requests
    have; the mounted app alone is not committed with the latter."""

    class Mounted(OrmCacheApp):
        @orm_cached(policy=User)
        def users(self) -> int:
            return self.session().query(User).count()

    class Town(App):
        pass

    @Mounted.json(model=Root, prefetch=['users', 'of_request'])
    def both(self: Root, request: Any) -> Any:
        return [request.app.users, request.of_request]

    Mounted.path(path='')(Root)
    Town.mount(app=Mounted, path='/mounted')(lambda: Mounted())
    app = on_servers.start(Town)
    assert Client(OrmCacheMiddleware(app, schema=tenant)).get('/mounted').json == [0, 0]
    with pytest.raises(PropertyError, match=r"'of_request'"):
        Mounted.commit()


def test_body_property_is_found(applications: Applications, tenant: str) -> None:
    """Properties of the class body can be named as well as those of directives."""

    class Own(OrmCacheApp):
        @orm_cached(policy=User)
        def users(self) -> int:
            return self.session().query(User).count()

    app = applications.start(Own)
    for _ in range(2):
        with app.request_scope(tenant):
            app.prefetch('users')
            assert app.users == 0
