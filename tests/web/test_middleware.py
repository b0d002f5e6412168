"""The middleware opens, keeps and closes the request scope, and binds the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

import morepath
import pytest
from sqlalchemy import text
from webob import Request
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache.database.transactions import current_scope
from tests.support.applications import Applications, change, value
from tests.support.counting import SqlStatements
from tests.support.models import User


class Root:
    """The model at /."""


class App(OrmCacheApp):
    """Counts users, in a plain view and in a streamed one."""

    @orm_cached(policy=User)
    def count(self) -> int:
        return self.session().query(User).count()


App.path(path='')(Root)


@App.view(model=Root)
def plain(self: Root, request: Any) -> str:
    return f'{request.app.schema} {request.app.count}'


@App.view(model=Root, name='stream')
def stream(self: Root, request: Any) -> Any:
    def body() -> Iterator[bytes]:
        try:
            for _ in range(3):
                yield f'{request.app.schema} {request.app.count}\n'.encode()
        finally:
            closed.append(request.app.schema)

    return morepath.Response(app_iter=body())


@App.view(model=Root, name='fail')
def fail(self: Root, request: Any) -> Any:
    request.app.session().add(User(name='lost'))
    raise RuntimeError('as expected')


@App.view(model=Root, name='broken-stream')
def broken_stream(self: Root, request: Any) -> Any:
    def body() -> Iterator[bytes]:
        yield f'{request.app.count}\n'.encode()
        raise RuntimeError('as expected')

    return morepath.Response(app_iter=body())


closed: list[str] = []


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves a scope behind."""
    closed.clear()
    yield
    assert current_scope.get() is None


def test_schema_is_bound(applications: Applications, make_tenant: Any) -> None:
    """Each request sees the tenant that a function of the WSGI environment returns."""
    app = applications.start(App)
    one, two = make_tenant('one'), make_tenant('two')
    change(app, one, User(name='a'))
    change(app, two, User(name='a'), User(name='b'))
    client = Client(OrmCacheMiddleware(app, schema=lambda environ: environ.get('HTTP_TENANT')))
    for _ in range(2):
        assert client.get('/', headers={'Tenant': one}).text == f'{one} 1'
        assert client.get('/', headers={'Tenant': two}).text == f'{two} 2'
    client.get('/', status=404)
    client.get('/', headers={'Tenant': make_tenant('three')}, status=404)


def test_fixed_schema_is_created(applications: Applications, tenant: str) -> None:
    """A schema that the program names is created, with its tables, on first use."""
    app = applications.start(App)
    middleware = OrmCacheMiddleware(app, schema=tenant)
    assert tenant not in app.session_manager.list_schemas()
    assert Client(middleware).get('/').text == f'{tenant} 0'
    assert tenant in app.session_manager.list_schemas()


def test_streamed_response_keeps_its_scope(applications: Applications, make_tenant: Any) -> None:
    """Two streamed responses that one thread serves in turns each see their own tenant,
    until the server closes them."""
    app = applications.start(App)
    tenants = [make_tenant(name) for name in ('one', 'two')]
    for number, tenant in enumerate(tenants):
        change(app, tenant, *(User(name=str(n)) for n in range(number + 1)))
    bodies = []
    for tenant in tenants:
        middleware = OrmCacheMiddleware(app, schema=tenant)
        response = Request.blank('/stream').get_response(middleware)
        bodies.append(response.app_iter)
    iterators = [iter(body) for body in bodies]
    for _ in range(3):
        for number, (iterator, tenant) in enumerate(zip(iterators, tenants, strict=True)):
            assert next(iterator) == f'{tenant} {number + 1}\n'.encode()
            assert current_scope.get() is None
    for body in bodies:
        body.close()  # type: ignore[attr-defined]
    assert closed == tenants


def test_abandoned_stream_is_closed(
    applications: Applications, tenant: str, sql_statements: Any
) -> None:
    """A client that goes away in the middle leaves neither a scope nor a connection."""
    app = applications.start(App, engine_options={'pool_size': 1, 'max_overflow': 0})
    middleware = OrmCacheMiddleware(app, schema=tenant)
    for _ in range(3):
        response = Request.blank('/stream').get_response(middleware)
        assert next(iter(response.app_iter))
        response.app_iter.close()  # type: ignore[attr-defined]
    assert closed == [tenant] * 3
    assert value(app, tenant, lambda app: app.count) == 0


@pytest.mark.parametrize('path', ['/fail', '/broken-stream'])
def test_failing_request_is_closed(applications: Applications, tenant: str, path: str) -> None:
    """An error in a view or in a streamed body closes the scope, and leaves nothing."""
    app = applications.start(App, engine_options={'pool_size': 1, 'max_overflow': 0})
    middleware = OrmCacheMiddleware(app, schema=tenant)
    for _ in range(3):
        with pytest.raises(RuntimeError, match='as expected'):
            Client(middleware).get(path)
    assert Client(middleware).get('/').text == f'{tenant} 0'


def test_streamed_changes_are_rolled_back(applications: Applications, tenant: str) -> None:
    """Changes that a streamed body makes after the tween's commit are not committed."""

    class Late(App):
        pass

    @Late.view(model=Root, name='late')
    def late(self: Root, request: Any) -> Any:
        def body() -> Iterator[bytes]:
            request.app.session().add(User(name='late'))
            yield str(request.app.count).encode()

        return morepath.Response(app_iter=body())

    app = applications.start(Late)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    assert client.get('/late').text == '1'
    assert client.get('/').text == f'{tenant} 0'


def test_wsgi_protocol(applications: Applications, tenant: str) -> None:
    """The middleware keeps to the WSGI protocol."""
    app = applications.start(App)
    application: Any = validator(OrmCacheMiddleware(app, schema=tenant))
    for path in '/', '/stream', '/nothing':
        environ = Request.blank(path).environ
        body = application(environ, lambda status, headers, exc_info=None: lambda data: None)
        assert b''.join(body)
        body.close()


def test_nested_application_call(applications: Applications, make_tenant: Any) -> None:
    """A view that calls the application for another tenant gets its own scope back."""

    class Nested(App):
        pass

    one, two = make_tenant('one'), make_tenant('two')

    @Nested.view(model=Root, name='nested')
    def nested(self: Root, request: Any) -> str:
        inner = Request.blank('/').get_response(OrmCacheMiddleware(app, schema=two))
        return f'{inner.text}, {request.app.schema} {request.app.count}'

    app = applications.start(Nested)
    change(app, two, User(name='a'))
    client = Client(OrmCacheMiddleware(app, schema=one))
    for _ in range(2):
        assert client.get('/nested').text == f'{two} 1, {one} 0'


def test_search_path_does_not_leak(on_servers: Applications, make_tenant: Any) -> None:
    """A pooled connection keeps no tenant, also after an error."""
    app = on_servers.start(App, engine_options={'pool_size': 1, 'max_overflow': 0})
    tenant = make_tenant('main')
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    client.post('/', status=405)
    client.get('/')
    with pytest.raises(RuntimeError):
        client.get('/fail')
    engine = app.session_manager.database.engine(tenant)
    with engine.execution_options(orm_cache_internal=True).connect() as connection:
        assert connection.execute(text('SHOW search_path')).scalar() == '"$user", public'


def test_scope_of_a_request_without_properties_costs_nothing(
    applications: Applications, tenant: str, redis_ops: Any, db_queries: Any
) -> None:
    """A request that reads no property and opens no session costs neither Redis nor SQL."""

    class Plain(App):
        pass

    @Plain.view(model=Root, name='plain')
    def nothing(self: Root, request: Any) -> str:
        return 'plain'

    app = applications.start(Plain)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    client.get('/plain')
    with redis_ops(0), db_queries(0) as seen:
        assert client.get('/plain').text == 'plain'
    assert isinstance(seen, SqlStatements)
    assert seen.checkouts == 0
