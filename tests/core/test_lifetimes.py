"""A value lives until its scope, its time, its release or its schema has ended."""

from __future__ import annotations

import time
from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from tests.support.applications import Applications, change, value
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import Document, User


def test_request_cached_lives_as_long_as_the_scope(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A request-cached value is one and the same object, over commits, until the scope ends."""

    class App(OrmCacheApp):
        @request_cached
        def first(self) -> Any:
            runs('first')
            return self.session().query(User).order_by(User.id).first()

    app = applications.start(App)
    change(app, tenant, User(name='a'))
    with app.request_scope(tenant) as scope:
        first = app.first
        first.name = 'b'
        assert app.first is first
        scope.session().commit()
        assert app.first is first
        assert app.first.name == 'b'
        scope.session().rollback()
        assert app.first is first
    assert value(app, tenant, lambda app: app.first.name) == 'b'
    assert runs.count('first') == 2


def test_expiration_time(
    applications: Applications, tenant: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is older than expiration_time is computed anew."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            runs('count')
            return user_count(self)

    app = applications.start(App, expiration_time=60)
    start = time.monotonic()
    for later, expected in (0, 1), (59, 1), (61, 2), (62, 2):
        for module in 'lookup', 'storing':
            clock = f'onegov_ormcache.core.{module}.now'
            monkeypatch.setattr(clock, lambda later=later: start + later)
        value(app, tenant, lambda app: app.count)
        assert runs.count('count') == expected


@pytest.mark.parametrize('shift', [-3600, 3600])
def test_expiration_time_beside_another_clock(
    on_servers: Applications,
    tenant: str,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    shift: float,
) -> None:
    """A value of a host whose clock differs lives as long as the setting says, in each tier."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            runs('count')
            return user_count(self)

    writer = on_servers.start(App, expiration_time=60)
    reader, late = on_servers.again(type(writer)), on_servers.again(type(writer))
    clock = time.time
    monkeypatch.setattr(time, 'time', lambda: clock() + shift)
    value(writer, tenant, lambda app: app.count)
    monkeypatch.undo()
    value(reader, tenant, lambda app: app.count)
    assert runs.count('count') == 1, 'it is no older for the other clock'
    client: Any = writer.orm_cache.tags.client
    (key,) = client.scan_iter(match=f'*{tenant}*:value:*')
    client.pexpire(key, 10_000)
    value(late, tenant, lambda app: app.count)
    assert runs.count('count') == 1
    client.delete(key)
    now = time.monotonic()
    for app, later, expected in (late, 9, 1), (late, 11, 2), (reader, 59, 2), (reader, 61, 3):
        monkeypatch.setattr('onegov_ormcache.core.lookup.now', lambda later=later: now + later)
        value(app, tenant, lambda app: app.count)
        assert runs.count('count') == expected, (app, later)


WEEK = 7 * 24 * 3600


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [({}, WEEK), ({'shared_lifetime': 100}, 100), ({'shared_lifetime': None}, None)],
)
def test_shared_lifetime(
    on_servers: Applications,
    tenant: str,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    expected: float | None,
) -> None:
    """Redis keeps a value for so long; it is no older for that, and a process that has it goes on
    using it."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            runs('count')
            return user_count(self)

    app = on_servers.start(App, **settings)
    value(app, tenant, lambda app: app.count)
    client: Any = app.orm_cache.tags.client
    (key,) = client.scan_iter(match=f'*{tenant}*:value:*')
    left = client.pttl(key)
    assert left == -1 if expected is None else (expected - 60) * 1000 < left <= expected * 1000
    client.delete(key)
    late = time.monotonic() + 2 * WEEK
    monkeypatch.setattr('onegov_ormcache.core.lookup.now', lambda: late)
    value(app, tenant, lambda app: app.count)
    assert runs.count('count') == 1


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({}, WEEK),
        ({'expiration_time': 60}, 60),
        ({'expiration_time': 2 * WEEK}, 2 * WEEK),
        ({'shared_lifetime': 100}, 100),
        ({'shared_lifetime': None}, None),
    ],
)
def test_lifetime_of_app_cache(
    applications: Applications, tenant: str, settings: dict[str, Any], expected: float | None
) -> None:
    """What an application caches by hand has a lifetime, by default a week."""
    app = applications.start(OrmCacheApp, **settings)
    with app.request_scope(tenant):
        assert app.cache.expiration_time == expected
        app.cache.set('key', 1)
        assert app.cache.get('key') == 1
    if applications.backend.name == 'servers':
        client: Any = app.orm_cache.tags.client
        (key,) = client.scan_iter(match=f'*{tenant}*:cache:*')
        left = client.pttl(key)
        assert left == -1 if expected is None else 0 < left <= expected * 1000


def test_releases_are_apart(on_servers: Applications, tenant: str, runs: Runs) -> None:
    """Two releases of an application never read each other's values, but evict them."""

    class App(OrmCacheApp):
        @orm_cached(policy=lambda obj: isinstance(obj, User))
        def count(self) -> Any:
            runs('count')
            return user_count(self)

    old = on_servers.start(App, release='1')
    new = on_servers.start(App, release='2')
    for app in old, new, old, new:
        assert value(app, tenant, lambda app: app.count) == 0
    assert runs.count('count') == 2
    # the old release cannot ask the new release's policy, so any change evicts it
    change(old, tenant, Document(kind='document', title='a'))
    for app in old, new:
        assert value(app, tenant, lambda app: app.count) == 0
    assert runs.count('count') == 3


def test_schema_that_is_dropped_and_made_again(applications: Applications, tenant: str) -> None:
    """If a schema is dropped and made again, values cached before the drop are not valid."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            return user_count(self)

    app = applications.start(App)
    change(app, tenant, User(name='a'))
    assert value(app, tenant, lambda app: app.count) == 1
    manager = app.session_manager
    manager.dispose()
    database: Any = manager.database
    if applications.backend.name == 'servers':
        with database._connect() as connection:
            connection.exec_driver_sql(f'DROP SCHEMA "{tenant}" CASCADE')
            connection.commit()
    else:
        for file in database.folder.glob(f'{tenant}.sqlite*'):
            file.unlink()
    assert value(app, tenant, lambda app: app.count) == 0
