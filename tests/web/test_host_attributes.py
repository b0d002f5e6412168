"""The cache uses the attributes that a host provides, and keeps the names of the seed."""

from __future__ import annotations

from typing import Any

import pytest
from blinker import Signal
from webtest import TestApp as Client

from onegov_ormcache import (
    OrmCacheApp,
    OrmCacheDescriptor,
    OrmCacheMiddleware,
    SessionManager,
    orm_cached,
)
from onegov_ormcache.errors import ValueNotCacheable
from tests.support.applications import Applications, committed, value
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import Base, Document, User


def test_defaults_of_host_attributes(applications: Applications, tenant: str) -> None:
    """The attributes that the seed read from its host have defaults, bound to the scope."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            return user_count(self)

    app = applications.start(App)
    assert isinstance(app.session_manager, SessionManager)
    with app.request_scope(tenant) as scope:
        assert app.schema == tenant
        assert app.session() is scope.session() is app.session_manager.session()
        assert app.count == 0
        assert [entry.value for entry in app.request_cache.values()] == [0]
        assert len(app.schema_cache) == 1
        assert app.cache.get_or_create('key', lambda: {1: 'x'}) == {1: 'x'}
        assert app.cache.get('key') == {1: 'x'}


def test_cache_region_is_bound_to_the_tenant(
    applications: Applications, make_tenant: Any
) -> None:
    """A value that an application caches by hand belongs to one tenant alone."""
    app = applications.start(OrmCacheApp)
    with app.request_scope(make_tenant('one')):
        app.cache.set('key', 1)
    with app.request_scope(make_tenant('two')):
        assert not app.cache.get('key')
    with app.request_scope(make_tenant('one')):
        assert app.cache.get('key') == 1


def test_host_provides_its_own(applications: Applications, tenant: str) -> None:
    """A host's own session manager, schema and session are used, and its mapping is shown the
    values."""
    settings = applications.backend.settings
    tiers: dict[str, dict[Any, Any]] = {'request': {}, 'schema': {}}

    class Host(OrmCacheApp):
        def __init__(self) -> None:
            self.session_manager = SessionManager(settings['dsn'], Base)
            self.schema = tenant
            self.request_cache = tiers['request']
            self.schema_cache = tiers['schema']

        def session(self) -> Any:
            return self.session_manager.session()

        @orm_cached(policy=User)
        def count(self) -> int:
            return user_count(self)

    app = applications.start(Host, base=None, dsn='sqlite:///nowhere')
    with app.request_scope() as scope:
        assert app.session() is scope.session()
        assert scope.schema == tenant
        assert app.count == 0
        # the one is shown the values; the other, which may be that of all tenants, is left alone
        assert list(tiers['request'].values()) == [0]
        assert tiers['schema'] == {}
        app.session().add(User(name='a'))
        assert app.count == 1
        app.session().commit()
    assert tiers['request'] == {}
    assert Client(OrmCacheMiddleware(app)).get('/', status=404)


def test_change_handler_of_one_descriptor(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A host's own signal, bound to a descriptor's handler, evicts that property."""

    class App(OrmCacheApp):
        @orm_cached(policy=lambda obj: isinstance(obj, Document))
        def count(self) -> int:
            runs('count')
            return user_count(self)

    app = applications.start(App)
    signal = Signal()
    (descriptor,) = app.orm_cache_descriptors
    handler = app.descriptor_bound_orm_change_handler(descriptor)
    signal.connect(handler)
    value(app, tenant, lambda app: app.count)
    document = Document(kind='document', title='a')
    with committed(app, tenant) as scope:
        scope.session().add(document)
        scope.session().flush()
        signal.send(tenant, obj=document)
    value(app, tenant, lambda app: app.count)
    assert runs.count('count') == 2
    signal.send('elsewhere', obj=document)
    value(app, tenant, lambda app: app.count)
    assert runs.count('count') == 2


def test_descriptor_keeps_the_names_of_the_seed(
    applications: Applications, tenant: str
) -> None:
    """Attributes and methods of OrmCacheDescriptor that hosts use are there."""

    class App(OrmCacheApp):
        identity = None

        @orm_cached(policy='on-table-change:users', by_role=True)
        def users(self) -> Any:
            """All users."""
            return self.session().query(User.name)

    app = applications.start(App)
    descriptor = type(app).users
    assert isinstance(descriptor, OrmCacheDescriptor)
    assert descriptor.cache_policy == 'on-table-change:users'
    assert descriptor.by_role is True
    assert descriptor.cache_key_prefix == 'users'
    assert descriptor.creator.__name__ == 'users'
    assert descriptor.__doc__ == 'All users.'
    assert descriptor.cache_key(app) == 'users-None'
    with app.request_scope(tenant):
        assert descriptor.create(app) == ()
        assert descriptor.load(app) == () == app.users
    assert len(descriptor.used_cache_keys) == 1
    descriptor.assert_no_orm_objects({'a': [1, ('x', {2})]})
    with pytest.raises(ValueNotCacheable):
        descriptor.assert_no_orm_objects({'a': [1, ('x', [User()])]})
