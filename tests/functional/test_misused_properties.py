"""A property that is declared by a mistaken use of a decorator, or is assigned, is an error."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from onegov_ormcache import errors as e
from tests.functional.plain import configured
from tests.support.applications import Applications, value
from tests.support.models import User


def wrapped(creator: Any) -> Any:
    """A decorator of the application's own."""

    @wraps(creator)
    def wrapper(app: Any) -> Any:
        return creator(app)

    return wrapper


def test_decorator_without_parentheses() -> None:
    """`@orm_cached` without a policy is an error in the class body, which says what to write."""
    with pytest.raises(e.PropertyError, match=r'^prop \(.*\.py:\d+\): .* @orm_cached\(policy='):

        class Wrong(OrmCacheApp):
            @orm_cached
            def prop(self) -> int:
                return 1

    with pytest.raises(e.PropertyError, match=r'^other'):

        class WrongToo(OrmCacheApp):
            @orm_cached
            @wrapped
            def other(self) -> int:
                return 1


@pytest.mark.parametrize('policy', [lambda app: 1, 'on-table-change:users'])
def test_decorator_without_a_creator(policy: Any) -> None:
    """The same for a decorator that decorates nothing; before Python 3.12, the error is the
    cause of the RuntimeError that Python makes of it."""
    with pytest.raises((e.PropertyError, RuntimeError)) as refused:
        type('Wrong', (OrmCacheApp,), {'prop': orm_cached(policy)})
    error = refused.value.__cause__ or refused.value
    assert isinstance(error, e.PropertyError)
    assert 'Wrong.prop' in str(error)


def test_decorator_of_several_creators() -> None:
    """A class body may keep a decorator, and use it for several creators."""

    class Right(OrmCacheApp):
        of_users = orm_cached(policy=User)

        @of_users
        def one(self) -> int:
            return 1

        @of_users
        def two(self) -> int:
            return 2

    configured(Right).commit()
    assert {descriptor.name for descriptor in Right().orm_cache_descriptors} == {'one', 'two'}


@pytest.mark.parametrize('name', ['orm_cached', 'request_cached'])
def test_directive_without_parentheses(name: str) -> None:
    """A directive without parentheses is an error at once, with the function's file and line."""

    class Wrong(OrmCacheApp):
        pass

    decorate = getattr(Wrong, name)
    with pytest.raises(e.PropertyError, match=r'^prop \(.*\.py:\d+\): .*without parentheses'):

        @decorate
        def prop(app: Any) -> int:
            return 1


def test_functions_as_policies_are_no_decorated_creators() -> None:
    """A policy may be a function of the same class body, or one written in the same line."""

    class Right(OrmCacheApp):
        def is_user(obj: Any) -> bool:
            return isinstance(obj, User)

        @orm_cached(is_user)
        def one(self) -> int:
            return 1

        @orm_cached(lambda obj: isinstance(obj, User))
        def two(self) -> int:
            return 2

    @Right.orm_cached(lambda obj: isinstance(obj, User))
    def three(app: Any) -> int:
        return 3

    @Right.orm_cached(Right.is_user, name='four')
    @wrapped
    def something(app: Any) -> int:
        return 4

    configured(Right).commit()
    found = {descriptor.name for descriptor in Right().orm_cache_descriptors}
    assert found == {'one', 'two', 'three', 'four'}


def test_property_can_not_be_assigned(applications: Applications, tenant: str) -> None:
    """An assignment to a property of an app or request, or its deletion, is an error that names
    the property; its value stays. A host's attributes can be assigned."""

    class App(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def one(self) -> int:
            return 1

        @request_cached
        def two(self) -> int:
            return 2

    @App.orm_cached(policy='on-table-change:users', target='request')
    def three(request: Any) -> int:
        return 3

    app: Any = applications.start(App)
    with app.request_scope(tenant):
        request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
        for instance, name in ((app, 'one'), (app, 'two'), (request, 'three')):
            before = getattr(instance, name)
            with pytest.raises(e.PropertyError, match=rf'^{name} \(.*\.py:\d+\).*be assigned'):
                setattr(instance, name, 7)
            with pytest.raises(e.PropertyError, match=rf'^{name} \(.*\.py:\d+\).*be deleted'):
                delattr(instance, name)
            assert getattr(instance, name) == before
        app.schema_cache = {}
        assert app.schema_cache == {}


@pytest.mark.parametrize('vary', [None, lambda app: 1])
def test_role_without_identity(applications: Applications, tenant: str, vary: Any) -> None:
    """A property by role can't be read on an app that has no identity, and nothing is stored; it
    can as soon as there is one. A property that varies by something else needs none."""

    class Roles(OrmCacheApp):
        @orm_cached(policy='on-table-change:users', by_role=True, vary=vary)
        def mine(self) -> str:
            return str(self.identity)

        @orm_cached(policy='on-table-change:users', vary=lambda app: 1)
        def ours(self) -> int:
            return 1

    app: Any = applications.start(Roles)
    for read in (lambda app: app.mine, lambda app: app.prefetch('mine')):
        with pytest.raises(e.PropertyError, match=r'^mine \(.*\.py:\d+\).*Roles\.identity'):
            value(app, tenant, read)
    assert value(app, tenant, lambda app: (app.ours, app.ours)) == (1, 1)
    app.identity = None
    assert value(app, tenant, lambda app: (app.mine, app.mine)) == ('None', 'None')
