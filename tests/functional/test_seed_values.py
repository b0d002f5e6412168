"""Defects of the seed by which requests shared an object or a name: one test each."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from onegov_ormcache.errors import ValueNotCacheable
from tests.support.applications import Applications, change, value
from tests.support.models import User


def test_orm_objects_are_refused_at_any_depth(applications: Applications, tenant: str) -> None:
    """An ORM object in a list in a dictionary is refused, with its place."""

    class Wrong(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def nested(self) -> Any:
            return {'page': [1, self.session().query(User).first()]}

    app = applications.start(Wrong)
    change(app, tenant, User(name='a'))
    with pytest.raises(ValueNotCacheable, match=r"nested\['page'\]\[1\].*ORM objects"):
        value(app, tenant, lambda app: app.nested)


def test_properties_of_one_qualified_name_are_apart(
    applications: Applications, tenant: str
) -> None:
    """Two properties made by one factory, and two classes of one name, share no value."""

    def reading(number: int) -> Any:
        @orm_cached(policy='on-table-change:users')
        def creator(self: OrmCacheApp) -> int:
            return number

        return creator

    def make_class(module: str, first: int) -> type[OrmCacheApp]:
        body = {'__module__': module, 'a': reading(first), 'b': reading(first + 1)}
        return type('Same', (OrmCacheApp,), body)

    one, two = make_class('one', 1), make_class('two', 3)
    seen = []
    for app_class in one, two:
        app = applications.start(app_class)
        seen.append(value(app, tenant, lambda app: (app.a, app.b)))
        app.close_orm_cache()
    assert seen == [(1, 2), (3, 4)]


def test_mutable_values_are_each_requests_own(applications: Applications, tenant: str) -> None:
    """A change that a request makes to a mutable value is seen by this request alone."""

    class Lists(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def lists(self) -> Any:
            return {'numbers': [1, 2]}

    app = applications.start(Lists)
    for _ in range(3):
        with app.request_scope(tenant):
            assert app.lists == {'numbers': [1, 2]}
            app.lists['numbers'].append(3)
            assert app.lists is app.lists
            assert app.lists == {'numbers': [1, 2, 3]}


def test_threads_share_no_request_state(applications: Applications, make_tenant: Any) -> None:
    """Two threads serve two tenants at the same moment with one app."""

    class Tenants(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def only(self) -> Any:
            return self.session().query(User.name).scalar()

        @request_cached
        def orm(self) -> Any:
            return self.session().query(User).one()

    app = applications.start(Tenants)
    tenants = [make_tenant(name) for name in ('one', 'two')]
    for tenant in tenants:
        change(app, tenant, User(name=tenant))
    barrier = threading.Barrier(2)

    def serve(tenant: str) -> list[tuple[str, str, str]]:
        seen = []
        for _ in range(20):
            with app.request_scope(tenant):
                barrier.wait(30)
                seen.append((app.schema, app.only, app.orm.name))
        return seen

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(serve, tenants))
    assert results == [[(tenant, tenant, tenant)] * 20 for tenant in tenants]
