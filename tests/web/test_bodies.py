"""Streamed bodies: they give their connection back, and are not cut off by a conflict."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import morepath
import pytest
from sqlalchemy import text
from sqlalchemy.pool import QueuePool
from webob import Request
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache.web.middleware import ScopedBody
from tests.support.applications import Applications, change, value
from tests.support.models import Group, User


class Root:
    """The model at /."""


class App(OrmCacheApp):
    """Streams what it reads."""

    #: Called between the two chunks of ``/pages``.
    between: Callable[[], None]

    @orm_cached(policy=User)
    def users(self) -> int:
        return self.session().query(User).count()

    @orm_cached(policy=Group)
    def groups(self) -> int:
        return self.session().query(Group).count()


App.path(path='')(Root)


@App.view(model=Root, name='connected')
def connected(self: Root, request: Any) -> Any:
    def body() -> Iterator[bytes]:
        try:
            yield str(request.app.session().scalar(text('SELECT 1'))).encode()
            yield b'more'
        finally:
            ended.append(request.app.users)

    return morepath.Response(app_iter=body())


@App.view(model=Root, name='pages')
def pages(self: Root, request: Any) -> Any:
    app = request.app

    def body() -> Iterator[bytes]:
        yield f'{app.users} {app.groups}\n'.encode()
        app.between()
        users = app.session().query(User).count()
        yield f'{users} {app.users} {app.groups}'.encode()

    return morepath.Response(app_iter=body())


ended: list[int] = []


@pytest.fixture(autouse=True)
def nothing_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended.clear()
    monkeypatch.setattr(ScopedBody, 'has_warned', False)


def begin_body(app: App, tenant: str) -> tuple[Any, QueuePool]:
    """Return a body of which one chunk was read, and the pool whose connection it has."""
    response = Request.blank('/connected').get_response(OrmCacheMiddleware(app, schema=tenant))
    assert next(iter(response.app_iter)) == b'1'
    pool: Any = app.session_manager.database.engine(tenant).pool
    assert pool.checkedout() == 1
    return response.app_iter, pool


@pytest.mark.parametrize('times', [1, 3])
def test_body_that_nobody_closes(
    applications: Applications, tenant: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The scope of a body that nobody closes is closed with the last reference to the body, the
    app's own body included; that is logged once."""
    app = applications.start(App, engine_options={'pool_size': 1, 'max_overflow': 0})
    for number in range(times):
        body, pool = begin_body(app, tenant)
        del body
        assert pool.checkedout() == 0
        assert ended == [0] * (number + 1)
    assert [r.getMessage().split(';')[0] for r in caplog.records] == [
        'The body of a response was not closed'
    ]
    assert value(app, tenant, lambda app: app.users) == 0


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_body_that_the_collector_finds(applications: Applications, tenant: str) -> None:
    """A body in a cycle of references gives its connection back when the cycle is collected."""
    app = applications.start(App, engine_options={'pool_size': 1, 'max_overflow': 0})
    for _ in range(3):
        body, pool = begin_body(app, tenant)
        body.itself = body
        del body
        gc.collect()
        assert pool.checkedout() == 0
    assert value(app, tenant, lambda app: app.users) == 0


def test_changes_of_a_body_that_the_collector_finds(
    applications: Applications, tenant: str
) -> None:
    """What a body has flushed and not committed is rolled back when the body is collected."""

    class Late(App):
        pass

    @Late.view(model=Root, name='late')
    def late(self: Root, request: Any) -> Any:
        def body() -> Iterator[bytes]:
            request.app.session().add(User(name='late'))
            yield str(request.app.users).encode()

        return morepath.Response(app_iter=body())

    app = applications.start(Late, engine_options={'pool_size': 1, 'max_overflow': 0})
    response = Request.blank('/late').get_response(OrmCacheMiddleware(app, schema=tenant))
    body: Any = response.app_iter
    assert next(iter(body)) == b'1'
    body.itself = body
    del body, response
    gc.collect()
    assert value(app, tenant, lambda app: app.users) == 0


def test_closed_body_warns_of_nothing(
    applications: Applications, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that the server closes leaves nothing to do, and nothing to log."""
    app = applications.start(App)
    body, pool = begin_body(app, tenant)
    body.close()
    assert pool.checkedout() == 0
    del body
    gc.collect()
    assert not caplog.records


LEVELS = ['READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE']


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('has_begun', [True, False])
def test_change_within_a_streamed_body(
    on_servers: Applications, tenant: str, level: str, has_begun: bool
) -> None:
    """A change between two chunks does not cut a body off; under the stricter levels all of the
    body shows one view, also the cached values before the body's first statement."""
    app = on_servers.start(App, engine_options={'isolation_level': level})
    middleware = OrmCacheMiddleware(app, schema=tenant)
    change(app, tenant, User(name='a'))
    # warm, so that the first chunk needs no database
    assert value(app, tenant, lambda app: (app.users, app.groups)) == (1, 0)
    if not has_begun:
        app.session_manager.observer.views_last = True  # as in a process without any transaction
    App.between = staticmethod(partial(change, app, tenant, User(name='b'), Group(name='g')))
    lines = Client(middleware).get('/pages').text.split('\n')
    if level == 'READ COMMITTED':
        assert lines[0] == '1 0'
        assert lines[1].startswith('2 ')
    else:
        assert lines == ['1 0', '1 1 0']
    App.between = staticmethod(lambda: None)
    assert Client(middleware).get('/pages').text == '2 1\n2 2 1'


def test_levels_differ_within_an_application(on_servers: Applications, tenant: str) -> None:
    """If the view of a body lasts, and that of the last transaction did not, the body is not cut
    off: what it reads after its first statement is of its view."""
    app = on_servers.start(App, engine_options={'isolation_level': 'SERIALIZABLE'})
    change(app, tenant, User(name='a'))
    assert value(app, tenant, lambda app: (app.users, app.groups)) == (1, 0)
    app.session_manager.observer.views_last = False
    App.between = staticmethod(partial(change, app, tenant, User(name='b'), Group(name='g')))
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    assert client.get('/pages').text == '1 0\n2 2 1'


def test_streamed_body_without_a_database(on_servers: Applications, tenant: str) -> None:
    """If the pool has no connection for a transaction that would begin first, a body of cached
    values is sent all the same."""
    options = {
        'isolation_level': 'SERIALIZABLE',
        'pool_size': 1,
        'max_overflow': 0,
        'pool_timeout': 0.01,
    }
    app = on_servers.start(App, engine_options=options)
    assert value(app, tenant, lambda app: (app.users, app.groups)) == (0, 0)
    with app.session_manager.database.engine(tenant).execution_options(
        orm_cache_internal=True
    ).connect():
        response = Request.blank('/pages').get_response(OrmCacheMiddleware(app, schema=tenant))
        assert next(iter(response.app_iter)) == b'0 0\n'
        response.app_iter.close()  # type: ignore[attr-defined]
