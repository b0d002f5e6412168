"""The header `Server-Timing`: what it tells, and which responses have none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from morepath import Response
from webtest import TestApp

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache.web.server_timing import is_for_shared_caches, timing
from tests.support.applications import Applications
from tests.support.models import User


class App(OrmCacheApp):
    """An application with a property, and views that answer with it."""

    @orm_cached(policy=User)
    def users(self) -> int:
        return self.session().query(User).count()


class Root:
    """What the paths lead to."""


@App.path(model=Root, path='')
def get_root() -> Root:
    return Root()


@App.json(model=Root)
def show(self: Root, request: Any) -> Any:
    return request.app.users + request.app.users


@App.html(model=Root, name='page', cached=True)
def page(self: Root, request: Any) -> str:
    return f'<p>{request.app.users}</p>'


@App.json(model=Root, name='add', request_method='POST')
def add(self: Root, request: Any) -> Any:
    request.app.session().add(User(name='a'))
    return request.app.users


@App.view(model=Root, name='headers')
def with_headers(self: Root, request: Any) -> Any:
    response = Response('text')
    for name, value in request.GET.items():
        response.headers[name] = value
    return response


@App.view(model=Root, name='stream')
def stream(self: Root, request: Any) -> Any:
    return Response(app_iter=(b'%d' % request.app.users for _ in range(2)))


@pytest.fixture
def start(applications: Applications, tenant: str) -> Callable[..., TestApp]:
    """Makes a client of the application."""

    def start(**settings: Any) -> TestApp:
        return TestApp(OrmCacheMiddleware(applications.start(App, **settings), schema=tenant))

    return start


@pytest.fixture
def client(start: Callable[..., TestApp]) -> TestApp:
    """A client of the application with the header; somebody has added a user."""
    client = start(server_timing=True)
    client.post('/add')
    return client


def told(response: Any) -> str:
    """Return the header's value, without the times."""
    [value] = response.headers.getall('Server-Timing')
    return re.sub(r'dur=\d+\.\d', 'dur=N', value)


def test_hits_and_misses(client: TestApp) -> None:
    """It counts the hits and misses of the request, and tells how long the creators took. A hit of
    the request tier is none."""
    assert told(client.get('/')) == 'cache;desc="hits 0, misses 1", creators;dur=N'
    assert told(client.get('/')) == 'cache;desc="hits 1, misses 0"'
    assert told(client.get('/headers')) == 'cache;desc="hits 0, misses 0"'


def test_bypasses(client: TestApp) -> None:
    """It tells why the cache was passed by, also of a request that has committed."""
    with client.app.app.request_scope(client.app._schema) as scope:
        scope.session().query(User).delete()
        scope.commit()
    assert told(client.post('/add')) == (
        'cache;desc="hits 0, misses 1", creators;dur=N, bypasses;desc="own change 1"'
    )


def test_cached_responses_tell_of_each_request(client: TestApp) -> None:
    """A cached response is stored without the header, and has that of the present request."""
    first = client.get('/page')
    assert told(first) == 'cache;desc="hits 0, misses 2", creators;dur=N'
    again = client.get('/page')
    assert told(again) == 'cache;desc="hits 1, misses 0"'
    unchanged = client.get('/page', headers={'If-None-Match': again.headers['ETag']}, status=304)
    assert told(unchanged) == 'cache;desc="hits 1, misses 0"'


def test_off_by_default(start: Callable[..., TestApp]) -> None:
    """Without the setting there is no such header."""
    assert 'Server-Timing' not in start().get('/').headers


def test_streamed_bodies(client: TestApp) -> None:
    """A body that is streamed comes after the header, whatever it reads."""
    response = client.get('/stream')
    assert told(response) == 'cache;desc="hits 0, misses 0"'
    assert response.body == b'11'


def test_headers_of_the_application(client: TestApp) -> None:
    """A header of the application itself stays."""
    response = client.get('/headers?Server-Timing=app%3Bdur%3D3')
    assert response.headers.getall('Server-Timing') == [
        'app;dur=3', 'cache;desc="hits 0, misses 0"',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'value', 'is_shared'),
    [
        ('Cache-Control', 'public', True),
        ('Cache-Control', 'PUBLIC, max-age=5', True),
        ('Cache-Control', 'max-age=60', True),
        ('Cache-Control', 'no-cache,s-maxage=60', True),
        ('cache-control', 'max-age="60"', True),
        ('Expires', 'Thu, 01 Jan 2099 00:00:00 GMT', True),
        ('CDN-Cache-Control', 'max-age=60', True),
        ('Surrogate-Key', 'a b', True),
        ('Cache-Control', 'max-age=0', False),
        ('Cache-Control', 'no-cache', False),
        ('Cache-Control', 'private, max-age=60', False),
        ('Cache-Control', 'max-age=60, no-store', False),
        ('Cache-Control', 'publicity', True),
        ('X-Cache-Control', 'public', False),
        ('Expires', '0', True),
    ],
)
def test_responses_that_a_cdn_stores(name: str, value: str, is_shared: bool) -> None:
    """A response that a shared cache is told to store has no such header; when in doubt, none."""
    assert is_for_shared_caches([('Content-Type', 'text/html'), (name, value)]) is is_shared


@pytest.mark.parametrize(
    'name',
    ['CDN-Cache-Control', 'Cloudflare-CDN-Cache-Control', 'Surrogate-Control', 'X-Accel-Expires'],
)
def test_what_is_private_to_browsers_alone(name: str) -> None:
    """A CDN follows its own header, and not the one that keeps browsers from storing."""
    for control in 'private', 'no-store':
        assert is_for_shared_caches([('Cache-Control', control), (name, 'max-age=60')])


def test_responses_that_a_cdn_stores_leave_without(client: TestApp) -> None:
    """Such a response leaves without the header."""
    response = client.get('/headers?Cache-Control=public,max-age%3D60')
    assert 'Server-Timing' not in response.headers


def test_value() -> None:
    """The value has all that was counted, in milliseconds."""

    def of(counter: str) -> str:
        return f'property\x1f{counter}\x1fapp.App.users'

    assert timing({}) == 'cache;desc="hits 0, misses 0"'
    assert timing({
        of('process_hits'): 2, of('shared_hits'): 1, of('misses'): 4, of('request_hits'): 64,
        of('runs'): 4, of('run_seconds'): 0.01234, of('waits'): 1, of('wait_seconds'): 0.5,
        of('bypasses:own change'): 3, of('bypasses:doubt'): 1, of('refused:doubt'): 9,
    }) == (
        'cache;desc="hits 3, misses 4", creators;dur=12.3, waits;dur=500.0, '
        'bypasses;desc="doubt 1, own change 3"'
    )  # fmt: skip
