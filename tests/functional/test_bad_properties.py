"""Bad input gets an error of the package's own, early, and leaves nothing half done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached, request_cached
from onegov_ormcache import errors as e
from tests.support.applications import Applications, change, value
from tests.support.models import Base, User


def configured(app_class: type[OrmCacheApp], **settings: Any) -> type[OrmCacheApp]:
    app_class.setting_section(section='orm_cache')(lambda: {'base': Base, **settings})
    return app_class


# properties


class Plain(OrmCacheApp):
    @orm_cached(policy='on-table-change:users')
    def count(self) -> int:
        return self.session().query(User).count()

    @request_cached
    def first(self) -> Any:
        return self.session().query(User).first()


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
    with pytest.raises(e.PolicyError, match=r'prop.*test_bad_input\.py:\d+'):

        class Wrong(OrmCacheApp):
            @orm_cached(policy=policy)
            def prop(self) -> int:
                return 1


@pytest.mark.parametrize('policy', ['nonsense', 3])
def test_unknown_policy_of_a_directive(policy: Any) -> None:
    """A directive's wrong policy is an error when the app is committed."""

    class Wrong(OrmCacheApp):
        pass

    Wrong.orm_cached(policy=policy)(prop)
    with pytest.raises(e.PolicyError, match=r'prop.*test_bad_input\.py:\d+'):
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


def test_shared_tables_on_sqlite(tmp_path: Path) -> None:
    """Tables that tenants share can't be kept in a file per tenant: refused at the start."""

    class Shared(DeclarativeBase):
        pass

    class Country(Shared):
        __tablename__ = 'countries'
        __table_args__ = {'schema': 'shared'}
        id: Mapped[int] = mapped_column(primary_key=True)

    class App(OrmCacheApp):
        pass

    configured(App, base=Shared, dsn=f'sqlite:///{tmp_path}/tenants')
    with pytest.raises(e.ConfigurationError, match=r'shared\.countries.*PostgreSQL'):
        OrmCacheMiddleware(App(), schema='main')


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
    for creator in (lambda: 1, lambda app, more: 1, lambda app, *, more: 1, 'no function'):
        with pytest.raises(e.PropertyError):
            decorate(creator)
    assert decorate(lambda app, more=1: more).name == '<lambda>'


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
    with pytest.raises(e.PropertyError, match=r'x .*test_bad_input\.py'):
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
        @orm_cached(policy='on-table-change:users', by_role=True)
        def mine(self) -> int:
            return 1

        @orm_cached(policy='on-table-change:users')
        def ours(self) -> int:
            return self.mine

    app = applications.start(Roles)
    with pytest.raises(e.VariantError, match=r'Roles\.ours reads .*Roles\.mine'):
        value(app, tenant, lambda app: app.ours)


# schemas

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


def test_scope_without_a_schema(applications: Applications) -> None:
    """Neither request_scope nor the middleware guesses a schema."""
    app = applications.start(Plain)
    with pytest.raises(e.ConfigurationError), app.request_scope():
        pass
    with pytest.raises(e.ConfigurationError):
        OrmCacheMiddleware(app)


# settings and servers


@pytest.mark.parametrize(
    ('name', 'wrong'),
    [
        ('dns', 'sqlite:///x'),
        ('dsn', None),
        ('dsn', 'nonsense'),
        ('redis_url', 7),
        ('redis_url', 'localhost'),
        ('namespace', 'a:b'),
        ('namespace', '{a}'),
        ('namespace', ''),
        ('expiration_time', 0),
        ('expiration_time', True),
        ('process_cache_size', -1),
        ('process_cache_size', 1.5),
        ('release', 5),
        ('attempts', 0),
        ('commit_veto', 'no'),
        ('on_outage', 'ignore'),
        ('redis_timeout', 0),
        ('lock_timeout', -1),
        ('lease', None),
        ('check_write_skew', 1),
        ('types', ['int']),
        ('types', 3),
        ('engine_options', []),
    ],
)
def test_unknown_and_wrong_settings(name: str, wrong: Any) -> None:
    """An unknown setting, or a wrong value, is an error when the app is committed."""

    class Wrong(OrmCacheApp):
        pass

    with pytest.raises(e.ConfigurationError, match=rf'Wrong: .*{name}'):
        configured(Wrong, **{name: wrong}).commit()


@pytest.mark.parametrize('base', [None, 3, [], object, [Base, 3]])
def test_missing_or_wrong_base(base: Any, tmp_path: Path) -> None:
    """Without the tables' metadata the app can't be set up; no folder is made."""

    class Wrong(OrmCacheApp):
        pass

    configured(Wrong, base=base, dsn=f'sqlite:///{tmp_path}/tenants')
    with pytest.raises(e.ConfigurationError, match='base'):
        OrmCacheMiddleware(Wrong(), schema='main')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'dsn',
    [
        'postgresql+psycopg://user:secret@127.0.0.1:1/nothing',
        'postgresql+psycopg://user:secret@/nothing?host=/nonexistent',
        'postgresql+nodriver://localhost/x',
        'mysql://localhost/x',
        'nodialect://localhost/x',
        'sqlite://',
        'sqlite:///:memory:',
        'sqlite:////dev/null/tenants',
    ],
)
def test_unreachable_or_wrong_dsn(dsn: str) -> None:
    """A database that can't be reached is an error at the start, without the password."""

    class Wrong(OrmCacheApp):
        pass

    configured(Wrong, dsn=dsn)
    with pytest.raises(e.DatabaseUnreachable) as raised:
        OrmCacheMiddleware(Wrong(), schema='main')
    assert 'secret' not in str(raised.value)


@pytest.mark.parametrize(
    'url',
    ['redis://:secret@127.0.0.1:1/0', 'unix:///nonexistent', 'http://localhost', 'redis://a:b:c'],
)
def test_unreachable_or_wrong_redis_url(url: str, tmp_path: Path) -> None:
    """A Redis that can't be reached is an error at the start, without the password."""

    class Wrong(OrmCacheApp):
        pass

    configured(Wrong, redis_url=url, dsn=f'sqlite:///{tmp_path}/tenants')
    app = Wrong()
    with pytest.raises(e.StoreUnreachable) as raised:
        OrmCacheMiddleware(app, schema='main')
    assert 'secret' not in str(raised.value)
    assert not app.is_orm_cache_setup


def test_wrong_app() -> None:
    """The middleware takes instances of OrmCacheApp only; a mounted app's root must be one."""
    with pytest.raises(e.ConfigurationError):
        OrmCacheMiddleware(object(), schema='main')  # type: ignore[arg-type]
    with pytest.raises(e.ConfigurationError):
        OrmCacheMiddleware(Plain, schema='main')  # type: ignore[arg-type]


def test_setup_twice(applications: Applications) -> None:
    """An app that is set up can't be set up again, but after it was closed."""
    app = applications.start(Plain)
    with pytest.raises(e.OrmCacheError, match='already'):
        app.setup_orm_cache()
    app.close_orm_cache()
    app.setup_orm_cache()


# more than one process on the embedded default

SECOND = """
import sys
from tests.functional.test_bad_input import Plain, configured
from onegov_ormcache.errors import SecondProcessError
class App(Plain): pass
app = configured(App, dsn=sys.argv[1])()
try:
    app.setup_orm_cache()
except SecondProcessError as error:
    print('refused', 'redis_url' in str(error))
else:
    print('set up')
"""


@pytest.mark.parametrize('database', ['sqlite', 'postgresql'])
def test_second_process_without_redis(
    database: str, tmp_path: Path, postgres_dsn: str, tenant: str
) -> None:
    """A second process is refused while versions live in the memory of the first, and
    may take its place when that has ended."""
    dsn = f'sqlite:///{tmp_path}/tenants' if database == 'sqlite' else postgres_dsn

    class App(Plain):
        pass

    def second() -> str:
        done = subprocess.run(
            [sys.executable, '-c', SECOND, dsn], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    app = configured(App, dsn=dsn, namespace='another')()
    app.setup_orm_cache()
    try:
        assert second() == 'refused True'
    finally:
        app.close_orm_cache()
    assert second() == 'set up'


def test_forked_process_without_redis(embedded: Applications, tenant: str) -> None:
    """A fork of the process that keeps the versions is refused; the parent goes on."""
    app = embedded.start(Plain)
    change(app, tenant, User(name='a'))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with app.request_scope(tenant):
                pass
        except e.SecondProcessError:
            status = 7
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert value(app, tenant, lambda app: app.count) == 1


def test_forked_process_with_servers(on_servers: Applications, tenant: str) -> None:
    """A fork on real servers has connections of its own, and both see each other's changes."""
    app = on_servers.start(Plain)
    change(app, tenant, User(name='a'))
    assert value(app, tenant, lambda app: app.count) == 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            change(app, tenant, User(name='b'))
            status = 7 if value(app, tenant, lambda app: app.count) == 2 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert value(app, tenant, lambda app: app.count) == 2


# AUTOCOMMIT


def test_autocommit_is_refused(applications: Applications, tenant: str) -> None:
    """A connection in AUTOCOMMIT is refused when it is used, and one for all at the start."""
    app = applications.start(Plain)
    with app.request_scope(tenant) as scope:
        engine = scope.session().get_bind()
        with pytest.raises(e.AutocommitError):
            engine.execution_options(isolation_level='AUTOCOMMIT').connect().execute(
                text('SELECT 1')
            )
        with pytest.raises(e.AutocommitError):
            scope.session().connection(execution_options={'isolation_level': 'AUTOCOMMIT'})
    with pytest.raises(e.AutocommitError):
        applications.start(Plain, engine_options={'isolation_level': 'AUTOCOMMIT'})
    assert value(app, tenant, lambda app: app.count) == 0


def test_nothing_is_written_for_an_app_that_fails(
    postgres_dsn: str, redis_url: str, namespace: str, tenant: str
) -> None:
    """An app whose policy is wrong writes neither to the database nor to Redis."""

    class Wrong(OrmCacheApp):
        @orm_cached(policy='on-table-change:nothing')
        def prop(self) -> int:
            return 1

    configured(Wrong, dsn=postgres_dsn, redis_url=redis_url, namespace=namespace)
    with pytest.raises(e.PolicyError):
        OrmCacheMiddleware(Wrong(), schema=tenant)
    assert redis.Redis.from_url(redis_url).keys(f'*{namespace}*') == []
    with create_engine(postgres_dsn).connect() as connection:
        found = connection.execute(
            text('SELECT 1 FROM pg_namespace WHERE nspname = :name'), {'name': tenant}
        )
        assert found.first() is None
