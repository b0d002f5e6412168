"""The counters of the test kit count what happens, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from sqlalchemy import text
from webtest import TestApp as Client

from onegov_ormcache import OrmCache, OrmCacheMiddleware
from onegov_ormcache.errors import ConfigurationError, PropertyError
from onegov_ormcache.testing import (
    creator_runs,
    db_queries,
    disabled,
    open_cache,
    recording,
    redis_ops,
)
from tests.core.plain_objects import Names, add
from tests.support.applications import Applications, change
from tests.support.backends import Backend
from tests.support.counting import RedisCommands
from tests.support.models import Base, Group, User

from .kit_site import Site


@pytest.fixture
def app(applications: Applications, tenant: str) -> Site:
    """An app on each back end in turn, whose tenant is known and has no quarantine."""
    app = applications.start(Site)
    change(app, tenant, User(name='Ada'))
    change(app, tenant, User(name='Bob'))
    return app


def test_statements_of_the_application_count(app: Site, tenant: str) -> None:
    """What creators and views execute counts; what the package asks the database does not."""
    with app.request_scope(tenant) as scope:
        with db_queries(1) as statements:
            app.users
        assert 'FROM users' in statements[0]
        with db_queries(0):
            app.users
        with db_queries(2):
            app.session().execute(text('SELECT 1'))
            app.session().add(Group(name='Staff'))
            scope.commit()


def test_statements_of_many_rows(app: Site, tenant: str) -> None:
    """One call of `execute` is one statement, also if SQLAlchemy sends its rows in batches."""
    with app.request_scope(tenant) as scope, db_queries(2):
        scope.session().add_all([Group(name=f'{number}') for number in range(2500)])
        scope.session().flush()
        scope.session().execute(text('SELECT 1'))


def test_a_new_tenant_has_only_its_tables(
    applications: Applications, make_tenant: Callable[[str], str]
) -> None:
    """The statements by which the package creates a tenant and its tables do not count."""
    app = applications.start(Site)
    with db_queries(1):
        with app.request_scope(make_tenant('one')) as scope:
            app.users
            scope.commit()


def test_a_wrong_number_of_statements(app: Site, tenant: str) -> None:
    """Any other number is an error that lists the statements, long ones cut off."""
    with app.request_scope(tenant):
        message = r'(?s)expected 1 SQL statements, seen 2:\n  1. SELECT 1\n  2. SELECT .* \.\.\.$'
        with pytest.raises(AssertionError, match=message), db_queries(1):
            app.session().execute(text('SELECT 1'))
            app.session().execute(text(f"SELECT '{'x' * 999}'"))
        with pytest.raises(AssertionError, match=r'expected 1 SQL statements, seen 0:\n  none'):
            with db_queries(1):
                pass


def test_errors_are_not_hidden() -> None:
    """An error of the block is raised, and not that of a count that it made wrong."""
    with pytest.raises(ZeroDivisionError), db_queries(5), redis_ops(5):
        1 / 0


def test_commands_are_those_that_the_server_gets(
    on_servers: Applications, tenant: str, redis_commands: Callable[[], RedisCommands]
) -> None:
    """The server has received as many commands as were counted."""
    app = on_servers.start(Site)
    with redis_commands() as seen, pytest.raises(AssertionError, match='expected -1') as raised:
        with redis_ops(-1) as commands:
            for _ in range(2):
                change(app, tenant, User(name=f'user-{_}'))
                with app.request_scope(tenant):
                    app.users, app.groups
    assert len(commands) == seen.count > 5
    assert f'seen {len(commands)}:\n  1. {commands[0][:20]}' in str(raised.value)


def test_commands_of_a_warm_request(app: Site, tenant: str, backend: Backend) -> None:
    """A warm request takes one command on Redis, and none on the embedded default."""
    for _ in range(2):
        with app.request_scope(tenant):
            app.users
    with redis_ops(0 if backend.name == 'embedded' else 1), app.request_scope(tenant):
        app.users, app.users


def test_commands_of_others_do_not_count(
    on_servers: Applications, tenant: str, redis_url: str, namespace: str
) -> None:
    """The application's own client, and all that sends or reads statistics, are left out."""
    app = on_servers.start(Site, statistics_interval=None)
    change(app, tenant, User(name='Ada'))
    statistics = app.orm_cache.statistics
    with redis.Redis.from_url(redis_url) as client, redis_ops(0):
        client.get(namespace)
        assert tenant in statistics.tenants()
        assert statistics.of(tenant).commits == 1
        statistics.history(tenant)


def test_counters_nest_and_count_all_threads(app: Site, tenant: str) -> None:
    """An inner counter takes nothing from the outer one, and other threads count."""

    def read() -> None:
        with app.request_scope(tenant):
            app.session().execute(text('SELECT 1'))

    with db_queries(2), creator_runs(app) as outer:
        with db_queries(1), creator_runs(app) as inner:
            with ThreadPoolExecutor(1) as threads:
                threads.submit(read).result()
        with app.request_scope(tenant):
            app.users
    assert (outer['users'], inner['users']) == (1, 0)


def test_runs_by_name(app: Site, tenant: str) -> None:
    """Each run of a creator counts, by the property's name with or without its class."""
    with creator_runs(app) as runs:
        for _ in range(2):
            with app.request_scope(tenant):
                app.users, app.users, app.first, app.first
                app.user_name.many([1, 2])
                with pytest.raises(ZeroDivisionError):
                    app.failing
    assert (runs['users'], runs['Site.users'], runs[f'{Site.__module__}.Site.users']) == (1, 1, 1)
    assert (runs['first'], runs['user_name'], runs['failing'], runs['groups']) == (2, 2, 2, 0)
    assert runs.total == 7
    assert runs.by_name[f'{Site.__module__}.Site.failing'] == 2
    assert 'Site.users: 1' in repr(runs)
    with app.request_scope(tenant):
        app.groups
    assert runs['groups'] == 0


def test_runs_of_a_cached_view(applications: Applications, tenant: str) -> None:
    """The run of a view counts by the names of the view and its model."""
    app = applications.start(Site)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    client.get('/?add=Ada')
    client.get('/?add=Bob')
    with creator_runs(app) as runs:
        for _ in range(2):
            assert client.get('/').json == ['Ada', 'Bob']
    assert runs[f'view({Site.__module__}.Root)'] == 1


def test_a_mistyped_property_has_no_runs(app: Site) -> None:
    """The number of a property that is not there is an error, which names those that are."""
    with creator_runs(app) as runs:
        for name in ('user', 'sers', '', 'Site'):
            with pytest.raises(PropertyError, match=r'no property is named .*Site\.users'):
                runs[name]


def test_runs_of_an_object(tmp_path: Any) -> None:
    """Properties of an object that were not read have no run; a cache alone does not know them."""
    with open_cache(tmp_path, base=Base) as cache:
        names = Names(cache)
        with creator_runs(cache) as runs, pytest.raises(PropertyError, match=r'bind\(\)'):
            runs['users']
        with creator_runs(names) as runs:
            assert runs['users'] == 0
            add(cache, 'main', User(name='Ada'))
            with cache.scope('main'):
                names.users
            assert runs['users'] == 1


@pytest.mark.parametrize('block', [creator_runs, disabled, recording])
def test_targets(app: Site, block: Any) -> None:
    """An app, a request of it, its cache, and an object with that cache mean the same; anything
    else is an error."""
    request = app.request({'PATH_INFO': '/', 'wsgi.url_scheme': 'http', 'SERVER_NAME': 'x',
                           'SERVER_PORT': '80', 'REQUEST_METHOD': 'GET'})  # fmt: skip
    for target in (app, request, app.orm_cache, Names(app.orm_cache)):
        with block(target):
            if block is disabled:
                assert app.orm_cache.is_disabled
            else:
                assert app.orm_cache.recorder is not None
    for wrong in (None, 'app', Site, OrmCache, object()):
        with pytest.raises(ConfigurationError, match=f'^{block.__name__}: expected an app'):
            block(wrong).__enter__()


def test_recordings_of_the_kit_are_those_of_the_cache(app: Site, tenant: str) -> None:
    """`recording` of the kit keeps the latest events, up to its limit."""
    with recording(app, limit=2) as events:
        for name in 'abc':
            change(app, tenant, User(name=name))
    assert ([event.kind for event in events], events.dropped) == (['commit'] * 2, 1)
