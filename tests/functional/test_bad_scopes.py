"""A read outside of a scope, or a scope with a wrong schema, is an error and creates nothing."""

from __future__ import annotations

from typing import Any

import pytest
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheMiddleware
from onegov_ormcache import errors as e
from tests.functional.plain import Plain
from tests.support.applications import Applications


@pytest.mark.parametrize('name', ['count', 'first', 'schema', 'cache', 'request_cache'])
def test_reading_outside_of_a_scope(applications: Applications, name: str) -> None:
    """A property read outside of a scope says how to open one."""
    app = applications.start(Plain)
    with pytest.raises(e.OutsideScopeError, match=r'app\.request_scope\(schema\)'):
        getattr(app, name)
    with pytest.raises(e.OutsideScopeError):
        app.session()
    with pytest.raises(e.OutsideScopeError):
        app.session_manager.session()


def test_reading_in_another_apps_scope(applications: Applications, make_tenant: Any) -> None:
    """A scope of one app is none of another."""

    class Other(Plain):
        pass

    one = applications.start(Plain)
    with one.request_scope(make_tenant('main')):
        other = Other()
        with pytest.raises(e.OutsideScopeError, match='count'):
            other.count


HOSTILE = [
    '', ' ', 'a' * 64, 'Upper', 'a"b', "a'b", 'a--b', 'pg_temp', 'pg_', 'public',
    'information_schema', 'extensions', 'a\0b', 'a/b', '../a', 'a.b', 'a b', 'ä', '\uff41', '-a',
    '_a', 'a;drop schema b', 'a\n', None, 3, b'a',
]  # fmt: skip


@pytest.mark.parametrize('schema', HOSTILE)
def test_hostile_schema_names(applications: Applications, schema: Any) -> None:
    """A name that no tenant may have is refused, wherever the program says it; one that a
    request says is answered with 404. Nothing is created."""
    app = applications.start(Plain)
    before = app.session_manager.database.list_schemas()
    if schema is not None:
        with pytest.raises(e.InvalidSchemaError), app.request_scope(schema):
            pass
    if isinstance(schema, str):
        with pytest.raises(e.InvalidSchemaError):
            OrmCacheMiddleware(app, schema=schema)
    client = Client(OrmCacheMiddleware(app, schema=lambda environ: schema))
    assert client.get('/', status=404)
    assert app.session_manager.database.list_schemas() == before


def test_unknown_tenant_is_not_created(applications: Applications, tenant: str) -> None:
    """A request for a schema that the database does not have gets 404 and creates nothing."""
    app = applications.start(Plain)
    Client(OrmCacheMiddleware(app, schema=lambda environ: tenant)).get('/', status=404)
    assert tenant not in app.session_manager.list_schemas()


def test_script_for_a_tenant_that_must_exist(applications: Applications, tenant: str) -> None:
    """A script that says so gets an error for a name that the database does not have, and
    nothing is created; a tenant that exists is opened."""
    app = applications.start(Plain)
    for opened in (
        lambda name: app.request_scope(name, create=False),
        lambda name: app.orm_cache.scope(name, create=False),
    ):
        with pytest.raises(e.UnknownSchemaError, match=f"no schema '{tenant}'"), opened(tenant):
            pass
        with pytest.raises(e.InvalidSchemaError), opened('../main'):
            pass
    assert tenant not in app.session_manager.list_schemas()
    with app.request_scope(tenant):
        assert app.count == 0
    with app.request_scope(tenant, create=False):
        assert app.count == 0


def test_scope_without_a_schema(applications: Applications) -> None:
    """Neither request_scope nor the middleware guesses a schema."""
    app = applications.start(Plain)
    with pytest.raises(e.ConfigurationError), app.request_scope():
        pass
    with pytest.raises(e.ConfigurationError):
        OrmCacheMiddleware(app)
