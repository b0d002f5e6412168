"""What PostgreSQL, or the pool, refuses or stops fails alone: nothing is left of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.database.checkouts import has_something_to_read
from onegov_ormcache.errors import TextualControlError
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import User
from tests.support.outside import outside, until

#: Settings under which a lock that is left would stop the next reader for good.
PATIENT: dict[str, Any] = {'lock_timeout': 1000.0}


class Town(OrmCacheApp):
    runs = Runs()

    #: What the creator executes before it reads.
    before: list[str] = []

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        self.runs('names')
        for statement in self.before:
            self.session().execute(text(statement))
        return [user.name for user in self.session().query(User).order_by(User.id)]


def names(app: Town) -> list[str]:
    return app.names


@pytest.fixture
def app(on_servers: Applications, tenant: str) -> Town:
    Town.runs, Town.before = Runs(), []
    made = on_servers.start(Town, **PATIENT)
    change(made, tenant, User(name='a'))
    return made


@pytest.fixture
def slow_commit(app: Town, tenant: str) -> Iterator[None]:
    """A deferred trigger that sleeps within the COMMIT of a user named 'slow', and refuses one
    named 'refused'."""
    with outside(app.session_manager.dsn, tenant) as administrator:
        administrator.execute("""
            CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.name = 'slow' THEN PERFORM pg_sleep(60); END IF;
                IF NEW.name = 'refused' THEN RAISE 'no' USING ERRCODE = '23503'; END IF;
                RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER late AFTER INSERT ON users
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()
        """)
        yield


def check(app: Town, other: Town, schema: str, *expected: str) -> None:
    """Check that all works as if nothing had been: reads, in either application, and changes."""
    for each in (app, other):
        assert value(each, schema, names) == [*expected]
        assert not app.orm_cache.snapshot(schema).in_doubt
    change(app, schema, User(name='later'))
    for each in (other, app):
        assert value(each, schema, names) == [*expected, 'later']
    runs = Town.runs.total
    for each in (other, app):
        assert value(each, schema, names) == [*expected, 'later']
    assert Town.runs.total == runs, 'it is stored again'


#: The SQLSTATE of each limit, with what sets it and what meets it.
IN_CREATOR = {
    '57014': ["SET LOCAL statement_timeout = '50ms'", 'SELECT pg_sleep(60)'],
    '55P03': ["SET LOCAL lock_timeout = '50ms'", 'SELECT FROM held FOR UPDATE'],
    '25P03': [
        "SET LOCAL idle_in_transaction_session_timeout = '50ms'",
        'SELECT pg_backend_pid()',  # and what follows comes too late
    ],
    '25P04': ["SET LOCAL transaction_timeout = '50ms'", 'SELECT pg_sleep(60)'],
}


@pytest.mark.parametrize('state', IN_CREATOR)
def test_limit_in_a_creator(
    app: Town, on_servers: Applications, tenant: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A creator that meets a limit of the server fails with its error; nobody waits for it."""
    other = on_servers.elsewhere(app)
    with outside(app.session_manager.dsn, tenant) as administrator, administrator.transaction():
        administrator.execute('CREATE TABLE held AS SELECT 1')
    with outside(app.session_manager.dsn, tenant) as administrator, administrator.transaction():
        administrator.execute('SELECT FROM held FOR UPDATE')
        monkeypatch.setattr(Town, 'before', IN_CREATOR[state])
        with pytest.raises(DBAPIError) as raised:
            value(app, tenant, lambda app: (app.names, late(app)))
    assert raised.value.orig.sqlstate in (state, None)  # type: ignore[union-attr]
    monkeypatch.undo()
    check(app, other, tenant, 'a')


def late(app: Town) -> None:
    """Execute something after the server has closed the connection, if it does."""
    connection = app.session().connection()
    if app.before == IN_CREATOR['25P03']:
        driver_connection = connection.connection.dbapi_connection
        until(lambda: has_something_to_read(driver_connection), 30)
    connection.execute(text('SELECT 1'))


def refuse(app: Town) -> str:
    return 'refused'


def run_out_of_time(app: Town) -> str:
    app.session().execute(text("SET LOCAL transaction_timeout = '200ms'"))
    return 'slow'


def cancel_in_commit(app: Town) -> str:
    """Have the COMMIT cancelled as soon as it sleeps."""
    connection: Any = app.session().connection().connection.dbapi_connection
    pid = connection.info.backend_pid

    def cancel() -> None:
        with outside(app.session_manager.dsn, 'public') as administrator:
            query = """
                SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                WHERE pid = %s AND wait_event = 'PgSleep'
            """
            until(lambda: administrator.execute(query, [pid]).fetchone(), 30)

    threading.Thread(target=cancel).start()
    return 'slow'


@pytest.mark.parametrize('meet_limit', [refuse, run_out_of_time, cancel_in_commit])
@pytest.mark.parametrize('is_text', [False, True])
def test_limit_in_commit(
    app: Town,
    on_servers: Applications,
    tenant: str,
    slow_commit: None,
    meet_limit: Callable[[Town], str],
    is_text: bool,
) -> None:
    """A COMMIT that the server stops or refuses has changed nothing, and what is known of the
    tenant is right. After a text, the deferred trigger runs directly before COMMIT."""
    other = on_servers.elsewhere(app)
    assert value(other, tenant, names) == ['a']
    with pytest.raises(DBAPIError):
        with committed(app, tenant) as scope:
            name = meet_limit(app)
            if is_text:
                scope.session().execute(text(f"INSERT INTO users (name) VALUES ('{name}')"))
            else:
                scope.session().add(User(name=name))
    check(app, other, tenant, 'a')


def test_refused_commit_evicts_nothing(
    app: Town, on_servers: Applications, tenant: str, slow_commit: None
) -> None:
    """A deferred constraint that refuses COMMIT ends the doubt: values that are stored stay
    valid, and no reader waits."""
    other = on_servers.elsewhere(app)
    assert value(other, tenant, names) == ['a']
    runs = Town.runs.total
    with pytest.raises(IntegrityError):
        change(app, tenant, User(name='refused'))
    assert not app.orm_cache.snapshot(tenant).in_doubt
    for each in (other, app):
        assert value(each, tenant, names) == ['a']
    assert Town.runs.total == runs


def test_pool_that_runs_empty(on_servers: Applications, tenant: str) -> None:
    """A request that gets no connection of the pool fails with the pool's error, alone, also if
    it was about to compute a value for all."""
    Town.runs, Town.before = Runs(), []
    options = {'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 0.1}
    app = on_servers.start(Town, engine_options=options, **PATIENT)
    change(app, tenant, User(name='a'))
    other = on_servers.elsewhere(app)

    def fail() -> None:
        for request in (
            lambda: value(app, tenant, names),
            lambda: change(app, tenant, User(name='b')),
        ):
            with pytest.raises(PoolTimeout):
                request()

    with ThreadPoolExecutor(1) as thread, app.request_scope(tenant) as scope:
        scope.session().connection()
        for _ in range(2):
            thread.submit(fail).result(30)
        assert value(other, tenant, names) == ['a'], 'nobody holds the claim'
        assert app.names == ['a']
    check(app, other, tenant, 'a')


def test_pool_that_runs_empty_at_a_doubt(on_servers: Applications, tenant: str) -> None:
    """A request that gets no connection to settle a doubt or to end a quarantine fails alone."""
    Town.runs, Town.before = Runs(), []
    options = {'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 0.1}
    app = on_servers.start(Town, engine_options=options, **PATIENT)
    change(app, tenant, User(name='a'))
    other = on_servers.elsewhere(app)
    assert value(other, tenant, names) == ['a']
    with other.request_scope(tenant) as scope:
        scope.session().add(User(name='b'))
        scope.session().flush()
        connection: Any = scope.session().connection().connection.dbapi_connection
        connection.pgconn.finish()
        with pytest.raises(DBAPIError):
            scope.session().commit()

    def fail() -> None:
        with pytest.raises(PoolTimeout):
            value(app, tenant, names)

    with ThreadPoolExecutor(1) as thread, app.request_scope(tenant) as scope:
        scope.session().connection()
        thread.submit(fail).result(30)
    check(app, other, tenant, 'a')


@pytest.fixture
def limited(postgres_dsn: str, tenant: str) -> Iterator[str]:
    """The URL of a role that may have one connection."""
    with outside(postgres_dsn, tenant) as administrator:
        administrator.execute(f'CREATE ROLE {tenant} LOGIN CONNECTION LIMIT 1')
        administrator.execute(f'GRANT CREATE ON DATABASE postgres TO {tenant}')
        try:
            yield make_url(postgres_dsn).set(username=tenant).render_as_string(False)
        finally:
            administrator.execute(f'DROP OWNED BY {tenant}')
            administrator.execute(f'DROP ROLE {tenant}')


def look_into_no_outbox(app: Town, postgres_dsn: str, role: str) -> None:
    """Leave all connections that the server allows to requests."""
    assert app.orm_cache.recovery is not None
    app.orm_cache.recovery._outboxes = ()
    # the server ends those of a look that was in progress some time after they were closed
    pool = app.session_manager.database.engines()[0].pool
    query = 'SELECT count(*) FROM pg_stat_activity WHERE usename = %s'
    with outside(postgres_dsn, role) as administrator:

        def are_those_of_the_pool() -> bool:
            row = administrator.execute(query, [role]).fetchone()
            return row is not None and row[0] == pool.checkedin()  # type: ignore[attr-defined]

        until(are_those_of_the_pool, 30)


def test_too_many_connections(
    on_servers: Applications, limited: str, postgres_dsn: str, tenant: str
) -> None:
    """A request for which the server has no connection left fails with the server's error; the
    next one works."""
    Town.runs, Town.before = Runs(), []
    app = on_servers.start(Town, dsn=limited, **PATIENT)
    look_into_no_outbox(app, postgres_dsn, tenant)
    change(app, tenant, User(name='a'))

    def fail() -> None:
        for request in (
            lambda: value(app, tenant, names),
            lambda: change(app, tenant, User(name='b')),
        ):
            with pytest.raises(OperationalError, match='too many connections'):
                request()

    with ThreadPoolExecutor(1) as thread, app.request_scope(tenant) as scope:
        scope.session().connection()
        thread.submit(fail).result(30)
    assert value(app, tenant, names) == ['a']
    change(app, tenant, User(name='b'))
    assert value(app, tenant, names) == ['a', 'b']


def test_no_connection_after_a_textual_commit(
    on_servers: Applications, limited: str, postgres_dsn: str, tenant: str
) -> None:
    """If the text of a statement has committed, the tenant's values are evicted, even if the
    server has no connection left by which the other tenants could be found."""
    Town.runs, Town.before = Runs(), []
    app = on_servers.start(Town, dsn=limited, **PATIENT)
    look_into_no_outbox(app, postgres_dsn, tenant)
    change(app, tenant, User(name='a'))
    other = on_servers.start(Town)
    assert value(other, tenant, names) == ['a']
    with app.request_scope(tenant) as scope:
        scope.session().connection()
        with outside(postgres_dsn, tenant) as administrator:
            administrator.execute(f'ALTER ROLE {tenant} CONNECTION LIMIT 0')
        with pytest.raises(TextualControlError):
            scope.session().execute(text("INSERT INTO users (name) VALUES ('b'); COMMIT"))
    assert value(other, tenant, names) == ['a', 'b']


def test_crowd_on_a_small_pool(on_servers: Applications, tenant: str) -> None:
    """Many threads that read a cold value on few connections all get it, or the pool's error, and
    none waits for another for ever."""
    Town.runs, Town.before = Runs(), ['SELECT pg_sleep(0.05)']
    options = {'pool_size': 2, 'max_overflow': 0, 'pool_timeout': 5}
    apps = [on_servers.start(Town, engine_options=options, **PATIENT)]
    apps.append(on_servers.again(type(apps[0])))
    change(apps[0], tenant, User(name='a'))
    barrier = threading.Barrier(8)

    def read(number: int) -> list[str]:
        app = apps[number % 2]
        barrier.wait(30)
        with app.request_scope(tenant) as scope:
            if number < 4:
                scope.session().connection()  # waits for others with a connection
            return app.names

    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(read, range(8), timeout=60):
            assert found == ['a']
    Town.before = []
    check(*apps, tenant, 'a')  # type: ignore[misc]
