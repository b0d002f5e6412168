"""A property with a wrong policy, name, creator or variant is an error that names it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, MetaData, Table

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from onegov_ormcache import errors as e
from tests.functional.plain import configured
from tests.support.applications import Applications, value
from tests.support.models import Letter, User


@pytest.mark.parametrize(
    'policy',
    [
        'users',
        'on-table-change:',
        'on-table-change:users,',
        'on-change:users',
        '',
        3,
        None,
        int,
        ['on-table-change:users', 'what'],
        [None],
    ],
)
def test_unknown_policy_is_an_error_where_it_is_written(policy: Any) -> None:
    """A policy of no known kind is an error in the class body, with file and line."""
    with pytest.raises(e.PolicyError, match=r'prop.*test_bad_properties\.py:\d+'):

        class Wrong(OrmCacheApp):
            @orm_cached(policy=policy)
            def prop(self) -> int:
                return 1


@pytest.mark.parametrize(
    ('policy', 'advice'),
    [
        (User.name, r'policy=User'),
        (User.groups, r'policy=User'),
        ([Letter.title], r'policy=Letter'),
        (User.__table__.c.name, r"policy='on-table-change:users'"),
        (Column('name'), r"policy='on-table-change:TABLE'"),
    ],
)
def test_column_is_no_policy(policy: Any, advice: str) -> None:
    """A column or mapped attribute is refused with the policy to write instead."""
    with pytest.raises(e.PolicyError, match=rf'test_bad_properties\.py:\d+.*{advice}$'):
        orm_cached(policy=policy)(prop)


def test_table_of_another_application() -> None:
    """A `Table` that the application does not have is an error when it is committed."""

    class Wrong(OrmCacheApp):
        @orm_cached(policy=Table('elsewhere', MetaData()))
        def prop(self) -> int:
            return 1

    with pytest.raises(e.PolicyError, match=r"Wrong\.prop.*'elsewhere'.*documents, groups"):
        configured(Wrong).commit()


@pytest.mark.parametrize('policy', ['nonsense', 3])
def test_unknown_policy_of_a_directive(policy: Any) -> None:
    """A directive's wrong policy is an error when the app is committed."""

    class Wrong(OrmCacheApp):
        pass

    Wrong.orm_cached(policy=policy)(prop)
    with pytest.raises(e.PolicyError, match=r'prop.*test_bad_properties\.py:\d+'):
        Wrong.commit()


def prop(app: Any) -> int:
    return 1


@pytest.mark.parametrize('target', ['app', 'request'])
def test_policy_that_names_no_table(target: Any) -> None:
    """A table that the application does not have is an error when it is committed, which
    lists those that it has."""

    class Wrong(OrmCacheApp):
        pass

    Wrong.orm_cached(policy='on-table-change:users,user', target=target)(prop)
    with pytest.raises(e.PolicyError, match=r"prop.*\.py:\d+.*'user'.*documents, groups"):
        configured(Wrong).commit()


def test_policy_of_a_mounted_app_that_names_no_table() -> None:
    """The properties of mounted apps are checked when the root app is committed."""

    class Root(OrmCacheApp):
        pass

    class Mounted(OrmCacheApp):
        @orm_cached(policy='on-table-change:nothing')
        def prop(self) -> int:
            return 1

    Root.mount(app=Mounted, path='/mounted')(lambda: Mounted())
    with pytest.raises(e.PolicyError, match=r'Mounted\.prop.*nothing'):
        configured(Root).commit()


def test_two_properties_of_one_name_in_a_class_body() -> None:
    """The second of two properties of one name in a class body is an error with both places."""
    with pytest.raises(e.PropertyConflictError, match=r'(?s)Twice.*\.py:\d+.*\.py:\d+'):

        class Twice(OrmCacheApp):
            @orm_cached(policy='on-table-change:users')
            def prop(self) -> int:
                return 1

            @request_cached
            def prop(self) -> int:  # noqa: F811
                return 2


def test_two_directives_of_one_name() -> None:
    """Two directives of one name conflict when the app is committed, with both places."""

    class Twice(OrmCacheApp):
        pass

    @Twice.orm_cached(policy='on-table-change:users')
    def same(app: Any) -> int:
        return 1

    @Twice.request_cached(name='same')
    def other(app: Any) -> int:
        return 2

    with pytest.raises(e.PropertyConflictError, match=r'(?s)\.py", line \d+.*\.py", line \d+'):
        configured(Twice).commit()
    assert not hasattr(Twice, 'same')


def test_a_directive_and_a_class_body_of_one_name() -> None:
    """A directive does not replace a property of the class body."""

    class Twice(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def prop(self) -> int:
            return 1

    Twice.orm_cached(policy='on-table-change:users')(prop)
    with pytest.raises(e.PropertyConflictError, match='prop is already a property'):
        configured(Twice).commit()


@pytest.mark.parametrize(
    ('target', 'name'),
    [('app', n) for n in ('session', 'settings', 'commit', 'request_class', 'orm_cached')]
    + [('request', n) for n in ('path_info', 'identity', 'app', 'params')],
)
def test_property_named_like_an_attribute(target: Any, name: str) -> None:
    """A property named like an existing attribute is refused, and nothing is installed."""

    class Hiding(OrmCacheApp):
        pass

    before = getattr(Hiding, name, None)
    Hiding.orm_cached(policy='on-table-change:users', name=name, target=target)(prop)
    with pytest.raises(e.PropertyConflictError, match=f'{name} is already an attribute'):
        configured(Hiding).commit()
    if target == 'app' and name != 'request_class':
        assert repr(getattr(Hiding, name, None)) == repr(before)


def test_class_body_property_named_like_an_attribute() -> None:
    """The same for a property of a class body, when the app is committed."""

    class Hiding(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def settings(self) -> int:
            return 1

    with pytest.raises(e.PropertyConflictError, match='settings is already an attribute'):
        configured(Hiding).commit()


@pytest.mark.parametrize('name', ['', 'two words', '1st', 'class', 7])
def test_names_that_can_not_be_one(name: Any) -> None:
    """A name that is no identifier is refused when the app is committed."""

    class Wrong(OrmCacheApp):
        pass

    Wrong.request_cached(name=name)(prop)
    with pytest.raises(e.PropertyError, match='can not be the name'):
        configured(Wrong).commit()


def test_unknown_target() -> None:
    """A target that is neither app nor request is refused."""

    class Wrong(OrmCacheApp):
        pass

    Wrong.request_cached(target='session')(prop)  # type: ignore[arg-type]
    with pytest.raises(e.PropertyError, match='target'):
        configured(Wrong).commit()


@pytest.mark.parametrize('decorate', [request_cached, orm_cached(policy='auto')])
def test_creators_that_need_arguments(decorate: Any) -> None:
    """A creator that can't be called with the app alone is refused where it is declared."""
    for creator in (lambda: 1, lambda *apps: 1, lambda app, **more: 1, 'no function'):
        with pytest.raises(e.PropertyError):
            decorate(creator)
    assert decorate(lambda app: 1).name == '<lambda>'


def test_request_cached_takes_no_arguments() -> None:
    """A request-cached property with arguments is refused where it is declared."""
    for creator in (lambda app, more: 1, lambda app, *, more=1: 1):
        with pytest.raises(e.PropertyError, match='only orm-cached properties take arguments'):
            request_cached(creator)


def test_creators_that_return_no_value() -> None:
    """Coroutines and generator functions are refused where they are declared."""

    async def later(app: Any) -> int:
        return 1

    def some(app: Any) -> Any:
        yield 1

    for creator in later, some:
        with pytest.raises(e.PropertyError, match=r'await or yield'):
            orm_cached(policy='auto')(creator)


def test_directive_creator_that_needs_arguments() -> None:
    """The same for a directive, when the app is committed."""

    class Wrong(OrmCacheApp):
        pass

    Wrong.request_cached(name='x')(lambda: 1)
    with pytest.raises(e.PropertyError, match=r'x .*test_bad_properties\.py'):
        configured(Wrong).commit()


def test_property_that_reads_itself(applications: Applications, tenant: str) -> None:
    """A property that reads itself through another is an error that names the way."""

    class Circle(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def one(self) -> Any:
            return self.two

        @orm_cached(policy='on-table-change:users')
        def two(self) -> Any:
            return self.one

    app = applications.start(Circle)
    with pytest.raises(e.CircularPropertyError, match='one -> two -> one'):
        value(app, tenant, lambda app: app.one)


def test_property_that_hides_a_role(applications: Applications, tenant: str) -> None:
    """A property that is the same for all roles can't read one that is not."""

    class Roles(OrmCacheApp):
        identity = None

        @orm_cached(policy='on-table-change:users', by_role=True)
        def mine(self) -> int:
            return 1

        @orm_cached(policy='on-table-change:users')
        def ours(self) -> int:
            return self.mine

    app = applications.start(Roles)
    with pytest.raises(e.VariantError, match=r'Roles\.ours reads .*Roles\.mine'):
        value(app, tenant, lambda app: app.ours)
