"""A process starts while its servers are away, and tells what it can't use them for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache.errors import ConfigurationError, DatabaseUnreachable, StoreUnreachable
from tests.support.applications import Applications, change, value
from tests.support.models import User
from tests.support.outside import until
from tests.support.servers import PostgresServer, RedisServer


class Root:
    """The model at /."""


class App(OrmCacheApp):
    @orm_cached(policy='on-table-change:users')
    def names(self) -> list[str]:
        return [name for (name,) in self.session().query(User.name).order_by(User.name)]


App.path(path='')(Root)


@App.json(model=Root)
def read(self: Root, request: Any) -> Any:
    return request.app.names


@App.json(model=Root, request_method='POST')
def add(self: Root, request: Any) -> Any:
    request.app.session().add(User(name='b'))
    return 'added'


def names(app: Any) -> Any:
    return app.names


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def test_without_redis(
    on_servers: Applications, own_redis: RedisServer, tenant: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The application starts, answers and commits; when Redis is there, it caches."""
    own_redis.stop()
    app = on_servers.start(App, redis_url=own_redis.url)
    change(app, tenant, User(name='a'))
    assert value(app, tenant, names) == ['a']
    assert caplog.text.count('Redis is lost') == 1
    own_redis.start()
    for _ in range(2):
        assert value(app, tenant, names) == ['a']
    with app.orm_cache.recording() as events:
        assert value(app, tenant, names) == ['a']
    assert [event.tier for event in events] == ['process']


def test_without_postgres(
    on_servers: Applications, own_postgres: PostgresServer, redis_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Requests get 503 until the database is there; nothing has to be started again."""
    own_postgres.crash()
    app = on_servers.start(App, dsn=own_postgres.dsn)
    assert 'can not be reached yet' in caplog.text
    client = Client(OrmCacheMiddleware(app, schema='town'))
    answer = client.get('/', status=503)
    assert answer.headers['Retry-After'] == '1'
    own_postgres.start()
    assert client.get('/').json == []
    client.post('/')
    assert client.get('/').json == ['b']


def test_without_both(on_servers: Applications, own_postgres: PostgresServer) -> None:
    """Whichever comes back first, the application works as far as it can."""
    own_postgres.crash()
    with RedisServer() as redis:
        redis.stop()
        app = on_servers.start(App, dsn=own_postgres.dsn, redis_url=redis.url)
        client = Client(OrmCacheMiddleware(app, schema='town'))
        client.get('/', status=503)
        own_postgres.start()
        client.post('/')
        assert client.get('/').json == ['b']
        redis.start()
        until(lambda: not app.orm_cache.tags.is_lost, 30)
        assert client.get('/').json == ['b']


def test_strict_start(
    on_servers: Applications, own_redis: RedisServer, own_postgres: PostgresServer
) -> None:
    """With the setting, a server that can't be reached is an error at the start."""
    own_redis.stop()
    with pytest.raises(StoreUnreachable, match='redis_url'):
        on_servers.start(App, redis_url=own_redis.url, require_servers=True)
    own_postgres.crash()
    with pytest.raises(DatabaseUnreachable, match='dsn'):
        on_servers.start(App, dsn=own_postgres.dsn, require_servers=True)


def test_a_database_that_is_not_there(on_servers: Applications, postgres_dsn: str) -> None:
    """A setting that the server says is wrong is an error at the start."""
    dsn = make_url(postgres_dsn).set(database='nowhere').render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnreachable, match='does not exist'):
        on_servers.start(App, dsn=dsn)


def test_a_wrong_password(on_servers: Applications, own_redis: RedisServer) -> None:
    """A Redis that does not let us in is an error at the start."""
    own_redis.client().config_set('requirepass', 'another')
    with pytest.raises(ConfigurationError, match='does not let us in'):
        on_servers.start(App, redis_url=own_redis.url)


def test_no_right_to_run_scripts(on_servers: Applications, own_redis: RedisServer) -> None:
    """A user who may not run scripts is told of by name."""
    own_redis.client().acl_setuser(
        'poor', enabled=True, nopass=True, keys=['*'], categories=['+@all'],
        commands=['-eval', '-evalsha', '-fcall'],
    )  # fmt: skip
    url = own_redis.url.replace('redis://', 'redis://poor:any@')
    with pytest.raises(ConfigurationError, match='scripts'):
        on_servers.start(App, redis_url=url)


def test_a_replica(
    on_servers: Applications, own_redis: RedisServer, tenant: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A replica is told of by name, and counts as lost until it is promoted."""
    with closing(own_redis.client()) as plain:
        plain.replicaof('127.0.0.1', '1')
        app = on_servers.start(App, redis_url=own_redis.url)
        change(app, tenant, User(name='a'))
        assert value(app, tenant, names) == ['a']
        assert 'it is a replica' in caplog.text
        plain.replicaof('NO', 'ONE')
    until(lambda: not app.orm_cache.tags.is_lost, 30)
    assert value(app, tenant, names) == ['a']


def test_a_server_that_was_away_at_the_start_and_is_a_replica(
    on_servers: Applications, own_redis: RedisServer, tenant: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What can't be used is told when the server is first reached."""
    own_redis.stop()
    app = on_servers.start(App, redis_url=own_redis.url)
    change(app, tenant, User(name='a'))
    assert 'replica' not in caplog.text
    # from its start on: the process may find it at any moment
    own_redis._options = '--replicaof', '127.0.0.1', '1'
    own_redis.start()
    until(lambda: 'it is a replica' in caplog.text, 30)
    assert value(app, tenant, names) == ['a']
    assert caplog.text.count('Redis is lost') == 1
    assert caplog.text.count('Redis is back') == 0


def test_a_node_of_a_cluster(on_servers: Applications) -> None:
    """A node of a cluster that is given as a plain server is an error that says what to give."""
    with RedisServer('--cluster-enabled', 'yes') as node:
        with pytest.raises(ConfigurationError, match=r'redis\+cluster://'):
            on_servers.start(App, redis_url=node.url)


def test_a_full_server_that_keeps_all(
    on_servers: Applications, own_redis: RedisServer, tenant: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is told of at the start; when it is full, requests go on, and one line says so."""
    with closing(own_redis.client()) as plain:
        plain.config_set('maxmemory-policy', 'noeviction')
        plain.config_set('maxmemory', '100mb')
        app = on_servers.start(App, redis_url=own_redis.url)
        assert 'allkeys-lru' in caplog.text
        change(app, tenant, User(name='a'))
        assert value(app, tenant, names) == ['a']
        plain.config_set('maxmemory', '1')
        for name in ('b', 'c', 'd'):
            change(app, tenant, User(name=name))
            assert value(app, tenant, names)[-1] == name
        assert value(on_servers.elsewhere(app), tenant, names) == ['a', 'b', 'c', 'd']
        assert caplog.text.count('Values are not stored') == 2, 'once per process'
        plain.config_set('maxmemory', '100mb')
        for _ in range(2):
            assert value(app, tenant, names) == ['a', 'b', 'c', 'd']
