"""A wrong setting, or a server that can't be reached, is an error before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache import errors as e
from tests.functional.plain import Plain, configured
from tests.support.applications import Applications, value
from tests.support.models import Base


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
        ('shared_lifetime', 0),
        ('shared_lifetime', '7 days'),
        ('process_cache_size', -1),
        ('process_cache_size', 1.5),
        ('max_value_size', 0),
        ('max_value_size', 1e6),
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
    with pytest.raises(e.ConfigurationError, match=r'shared.*PostgreSQL'):
        OrmCacheMiddleware(App(), schema='main')


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
    """A database that must be reached and can not be, or of no known kind, is an error at the
    start, without the password."""

    class Wrong(OrmCacheApp):
        pass

    configured(Wrong, dsn=dsn, require_servers=True)
    with pytest.raises(e.DatabaseUnreachable) as raised:
        OrmCacheMiddleware(Wrong(), schema='main')
    assert 'secret' not in str(raised.value)


@pytest.mark.parametrize(
    'url',
    [
        'redis://:secret@127.0.0.1:1/0',
        'unix:///nonexistent',
        'redis+sentinel://:secret@127.0.0.1:1/town?sentinel_password=secret',
        'redis+cluster://:secret@127.0.0.1:1,127.0.0.1:2',
    ],
)
def test_unreachable_redis(url: str, tmp_path: Path) -> None:
    """A Redis that must be reached and can't be is an error at the start, without the password."""

    class Wrong(OrmCacheApp):
        pass

    configured(Wrong, redis_url=url, dsn=f'sqlite:///{tmp_path}/tenants', require_servers=True)
    app = Wrong()
    with pytest.raises((e.StoreUnreachable, e.ConfigurationError)) as raised:
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
