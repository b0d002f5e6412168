"""A fault of PostgreSQL fails what was in it, and nothing that comes after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.schema import CreateSchema

from onegov_ormcache import OrmCache, OrmCacheApp, orm_cached
from onegov_ormcache.errors import SnapshotConflict
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import Died, before, die
from tests.support.applications import Applications, change, committed, value
from tests.support.host import Host
from tests.support.models import Base, User
from tests.support.outside import libpq_url, until
from tests.support.servers import PostgresServer, RedisServer

#: Settings under which a lock that is left would stop the next reader for good.
PATIENT: dict[str, Any] = {'lock_timeout': 1000.0}


class Town(OrmCacheApp):
    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return [user.name for user in self.session().query(User).order_by(User.id)]


def names(app: Town) -> list[str]:
    return app.names


def kill(server: PostgresServer) -> None:
    server.kill()
    server.start()


FAULTS: dict[str, Callable[[PostgresServer], None]] = {
    'killed and started': kill,
    'all connections terminated': PostgresServer.terminate_backends,
}


@pytest.fixture(scope='module')
def server() -> Iterator[PostgresServer]:
    """A server of this module's own, which goes on after each test."""
    with PostgresServer() as started:
        yield started


@pytest.fixture(params=FAULTS)
def strike(request: pytest.FixtureRequest, server: PostgresServer) -> Callable[[], None]:
    """Lets the fault happen."""
    return lambda: FAULTS[request.param](server)


@pytest.fixture
def apps(on_servers: Applications, server: PostgresServer, tenant: str) -> tuple[Town, Town]:
    """Two applications, without any option that would look after their connections."""
    app = on_servers.start(Town, dsn=server.dsn, **PATIENT)
    change(app, tenant, User(name='a'))
    other = on_servers.elsewhere(app)
    assert value(other, tenant, names) == ['a']
    return app, other


def truth(server: PostgresServer, schema: str) -> list[str]:
    """Return the names that the database has."""
    with closing(psycopg.connect(libpq_url(server.dsn))) as connection:
        rows = connection.execute(f'SELECT name FROM "{schema}".users ORDER BY id').fetchall()
    return [name for (name,) in rows]


def check(server: PostgresServer, schema: str, *apps: Town) -> None:
    """Check that each application's next requests work, show the truth, and store it again."""
    for app in apps:
        assert value(app, schema, names) == truth(server, schema)
        change(app, schema, User(name=f'later {id(app)}'))
        for each in apps:
            assert value(each, schema, names) == truth(server, schema)
        assert not app.orm_cache.snapshot(schema).in_doubt
    with apps[0].recording() as events:
        for app in apps:
            assert value(app, schema, names) == truth(server, schema)
    assert {event.tier for event in events} <= {'process', 'shared'}, 'it is stored again'


def test_connections_in_the_pool(
    apps: tuple[Town, Town], server: PostgresServer, tenant: str, strike: Callable[[], None]
) -> None:
    """After a fault between two requests, no request fails, whichever connection it gets."""
    app, _ = apps
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(app.request_scope(tenant)).session().connection()
    strike()
    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(app.request_scope(tenant)).session().connection()
            assert connection.scalar(text('SELECT count(*) FROM users')) == 1
    check(server, tenant, *apps)


STEPS = [Step.VIEW, Step.CREATOR, Step.FILL, Step.DOUBT, Step.ANSWER, Step.COMMIT, Step.PUBLISH]


@pytest.mark.parametrize('step', STEPS)
def test_in_a_request(
    apps: tuple[Town, Town],
    server: PostgresServer,
    tenant: str,
    strike: Callable[[], None],
    step: Step,
) -> None:
    """A request that meets a fault fails with the database's error, unless it has committed; the
    next ones work."""
    app, other = apps
    change(other, tenant, User(name='b'))

    def request() -> None:
        with committed(app, tenant) as scope:
            assert app.names == ['a', 'b']
            scope.session().add(User(name='c'))

    with before(step, strike):
        if step is Step.PUBLISH:
            request()
        else:
            with pytest.raises(DBAPIError) as raised:
                request()
            assert raised.value.connection_invalidated
    assert truth(server, tenant) == (['a', 'b', 'c'] if step is Step.PUBLISH else ['a', 'b'])
    check(server, tenant, *apps)


def test_in_commit(
    apps: tuple[Town, Town], server: PostgresServer, tenant: str, strike: Callable[[], None]
) -> None:
    """A COMMIT that the server does not finish is not known to have failed: its doubt stays, and
    is settled by the next reader."""
    app, other = apps
    with closing(psycopg.connect(libpq_url(server.dsn), autocommit=True)) as administrator:
        administrator.execute(f"""
            SET search_path = "{tenant}";
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN IF NEW.name = 'slow' THEN PERFORM pg_sleep(60); END IF; RETURN NULL; END
            $$;
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON users
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()
        """)

    def is_committing() -> bool:
        with closing(psycopg.connect(libpq_url(server.dsn))) as observer:
            return bool(observer.execute("""
                SELECT FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'PgSleep'
            """).fetchall())  # fmt: skip

    with ThreadPoolExecutor(1) as thread:
        committing = thread.submit(change, app, tenant, User(name='slow'))
        until(is_committing, 30)
        assert value(other, tenant, names) == ['a']
        strike()
        with pytest.raises(DBAPIError):
            committing.result(30)
    assert truth(server, tenant) == ['a']
    check(server, tenant, *apps)


@pytest.mark.parametrize('level', ['READ COMMITTED', 'SERIALIZABLE'])
@pytest.mark.parametrize('step', [Step.SETTLE, Step.END_QUARANTINE, Step.IDENTIFY])
def test_while_the_database_is_asked(
    on_servers: Applications,
    server: PostgresServer,
    own_redis: RedisServer,
    tenant: str,
    strike: Callable[[], None],
    step: Step,
    level: str,
) -> None:
    """A reader whose connection is lost while it settles a doubt, ends a quarantine or learns
    which database it has may fail; the next one goes on with that."""
    options = {'isolation_level': level}
    app = on_servers.start(
        Town, dsn=server.dsn, redis_url=own_redis.url, engine_options=options, **PATIENT
    )
    other = on_servers.elsewhere(app)
    change(app, tenant, User(name='a'))
    assert value(other, tenant, names) == ['a']
    if step is Step.SETTLE:
        with before(Step.PUBLISH, die), pytest.raises(Died):
            change(app, tenant, User(name='b'))
    else:
        own_redis.client().flushall()
    with before(step, strike), suppress(DBAPIError):
        assert value(other, tenant, names) == truth(server, tenant)
    check(server, tenant, other, app)


def go_on(app: Town) -> None:
    """Change the table of which a transaction has failed before."""
    app.session().rollback()
    assert app.names == ['a']
    app.session().add(User(name='b'))
    assert app.names == ['a', 'b']
    app.session().commit()


@pytest.mark.parametrize('step', [Step.VIEW, Step.CREATOR, Step.ANSWER, Step.COMMIT])
@pytest.mark.parametrize('level', ['READ COMMITTED', 'SERIALIZABLE'])
def test_a_scope_goes_on(
    on_servers: Applications, server: PostgresServer, tenant: str, step: Step, level: str
) -> None:
    """After a rollback, the scope that has met the fault works again itself.

    Under SERIALIZABLE it settles its own doubt, which counts as a change of what it reads then: it
    is to be tried once more.
    """
    app = on_servers.start(
        Town, dsn=server.dsn, engine_options={'isolation_level': level}, **PATIENT
    )
    other = on_servers.elsewhere(app)
    change(other, tenant, User(name='a'))
    with app.request_scope(tenant) as scope:
        with before(step, server.terminate_backends), pytest.raises(DBAPIError):
            assert app.names == ['a']
            scope.session().add(User(name='lost'))
            scope.session().commit()
        try:
            go_on(app)
        except SnapshotConflict:
            assert level == 'SERIALIZABLE'
            go_on(app)
        assert app.names == ['a', 'b']
    check(server, tenant, app, other)


@pytest.mark.parametrize('step', [Step.VIEW, Step.CREATOR, Step.ANSWER, Step.COMMIT])
def test_a_host_goes_on(
    server: PostgresServer, redis_url: str, namespace: str, tenant: str, step: Step
) -> None:
    """The thread of a host that has met the fault goes on with its next unit of work."""

    class Board:
        def __init__(self, cache: OrmCache) -> None:
            self.orm_cache = cache

        @orm_cached(policy=User)
        def names(self) -> list[str]:
            return [user.name for user in host.session().query(User).order_by(User.id)]

    engine = create_engine(server.dsn)
    with engine.begin() as connection:
        connection.execute(CreateSchema(tenant))
        connection.execute(text(f'SET LOCAL search_path TO "{tenant}"'))
        Base.metadata.create_all(connection)
    host = Host(
        engine, Base.metadata, redis_url=redis_url, namespace=namespace, lock_timeout=1000.0
    )
    try:
        with host.at(tenant):
            board = Board(host.cache)
            host.session().add(User(name='a'))
            host.session().commit()
            with before(step, server.terminate_backends), pytest.raises(DBAPIError):
                assert board.names == ['a']
                host.session().add(User(name='lost'))
                host.session().commit()
            host.session().rollback()
            for name in ('b', 'c'):
                host.session().add(User(name=name))
                host.session().commit()
                assert board.names == truth(server, tenant)
                host.sessions.remove()
        assert truth(server, tenant) == ['a', 'b', 'c']
    finally:
        host.close()


def test_server_that_is_away(
    on_servers: Applications, server: PostgresServer, tenant: str
) -> None:
    """While the server is away, each request that needs it fails with an error of SQLAlchemy, also
    where no connection of the pool is used; cached values are served."""
    app = on_servers.start(Town, dsn=server.dsn, **PATIENT)
    other = on_servers.elsewhere(app)
    change(app, tenant, User(name='a'))
    assert value(app, tenant, names) == ['a']
    server.kill()
    try:
        manager = app.session_manager
        for _ in range(2):
            assert value(app, tenant, names) == ['a']
            for request in (
                lambda: value(other, tenant, names),
                lambda: change(app, tenant, User(name='b')),
                lambda: manager.has_schema('unknown'),
                lambda: manager.ensure_schema_exists('unknown'),
                manager.list_schemas,
            ):
                with pytest.raises(OperationalError):
                    request()
    finally:
        server.start()
    check(server, tenant, app, other)
