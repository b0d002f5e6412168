"""A PostgreSQL that crashes and comes back, and one that lags behind another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from onegov_ormcache import OrmCacheApp, OrmCacheError, orm_cached
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import before
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import User
from tests.support.outside import until
from tests.support.servers import POSTGRES_VARIABLE, PostgresServer, libpq_url

#: Engine options: a connection that a restart has cut is detected when it leaves the pool.
PING = {'pool_pre_ping': True}


class Town(OrmCacheApp):
    runs = Runs()

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        self.runs('names')
        return [user.name for user in self.session().query(User).order_by(User.id)]


def names(app: Town) -> list[str]:
    return app.names


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server of the test's own, to be crashed and started again."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def standby(postgres_dsn: str) -> Iterator[str]:
    """The URL of a standby of the server that all tests share."""
    if POSTGRES_VARIABLE in os.environ:
        pytest.skip('only a server that comes with the tests can be copied by its own programs')
    with PostgresServer(primary=postgres_dsn) as server:
        yield server.dsn


@pytest.mark.parametrize(
    ('step', 'expected'),
    [(Step.COMMIT, ['a']), (Step.PUBLISH, ['a', 'b'])],
    ids=['before COMMIT', 'after COMMIT'],
)
def test_crash_around_a_commit(
    on_servers: Applications, own_postgres: PostgresServer, step: Step, expected: list[str]
) -> None:
    """After the server has crashed just before or after a COMMIT, all applications read what
    the database then has."""
    app = on_servers.start(Town, dsn=own_postgres.dsn, engine_options=PING)
    other = on_servers.elsewhere(app)
    change(app, 'town', User(name='a'))
    assert value(other, 'town', names) == ['a']
    with before(step, own_postgres.crash):
        if step is Step.COMMIT:
            with pytest.raises(DBAPIError):
                change(app, 'town', User(name='b'))
            assert app.orm_cache.snapshot('town').doubts
        else:
            change(app, 'town', User(name='b'))
    own_postgres.start()
    for _ in range(2):
        assert value(other, 'town', names) == value(app, 'town', names) == expected
    assert not app.orm_cache.snapshot('town').doubts
    Town.runs = Runs()
    assert value(other, 'town', names) == expected
    assert Town.runs.total == 0, 'it is cached again'


def test_cut_connections(on_servers: Applications, own_postgres: PostgresServer) -> None:
    """Cached values are served without the server, and a change is made when it is back."""
    app = on_servers.start(Town, dsn=own_postgres.dsn, engine_options=PING)
    change(app, 'town', User(name='a'))
    assert value(app, 'town', names) == ['a']
    own_postgres.crash()
    with app.request_scope('town'):
        assert app.names == ['a']
    own_postgres.start()
    change(app, 'town', User(name='b'))
    assert value(app, 'town', names) == ['a', 'b']


def test_replica_fills_nothing(
    on_servers: Applications, postgres_dsn: str, standby: str, tenant: str
) -> None:
    """A value read from a replica that lags behind is shown to no other application."""
    app = on_servers.start(Town)
    change(app, tenant, User(name='a'))
    reader: Any = on_servers.start(Town, dsn=standby)
    with paused(standby, postgres_dsn):
        change(app, tenant, User(name='b'))
        assert value(reader, tenant, names) == ['a'], 'as old as the replica'
        assert value(app, tenant, names) == ['a', 'b']
        assert value(reader, tenant, names) == ['a', 'b'], 'what the primary has shown'
        change(app, tenant, User(name='c'))
        assert value(reader, tenant, names) == ['a']
        assert value(on_servers.elsewhere(app), tenant, names) == ['a', 'b', 'c']


def test_replica_is_no_witness(
    on_servers: Applications, postgres_dsn: str, standby: str, tenant: str
) -> None:
    """A reader on a replica settles no doubt: a transaction that the replica does not know yet
    may be committed at any moment."""
    app = on_servers.start(Town)
    change(app, tenant, User(name='a'))
    reader = on_servers.start(Town, dsn=standby)
    third = on_servers.elsewhere(app)
    assert value(third, tenant, names) == ['a']

    def read_meanwhile() -> None:
        doubts = third.orm_cache.snapshot(tenant).doubts
        assert doubts
        assert value(reader, tenant, names) == ['a']
        assert third.orm_cache.snapshot(tenant).doubts == doubts
        assert value(third, tenant, names) == ['a']

    with paused(standby, postgres_dsn):
        with before(Step.COMMIT, read_meanwhile), committed(app, tenant) as scope:
            scope.session().add(User(name='b'))
        for each in (third, app):
            assert value(each, tenant, names) == ['a', 'b']


def test_replica_changes_nothing(
    on_servers: Applications, postgres_dsn: str, standby: str, tenant: str
) -> None:
    """A change that is reported in a transaction of a replica is an error."""
    change(on_servers.start(Town), tenant, User(name='a'))
    reader = on_servers.start(Town, dsn=standby)
    with paused(standby, postgres_dsn), reader.request_scope(tenant):
        with pytest.raises(OrmCacheError, match='of the primary'):
            reader.mark_changed('users')


class paused:
    """Lets the standby catch up with the primary, then keeps it there while the block runs."""

    def __init__(self, standby: str, primary: str) -> None:
        self._primary = libpq_url(primary)
        self._standby = libpq_url(standby)

    def __enter__(self) -> None:
        with closing(psycopg.connect(self._primary, autocommit=True)) as primary:
            (position,) = one(primary, 'SELECT pg_current_wal_lsn()')
        with closing(psycopg.connect(self._standby, autocommit=True)) as standby:
            until(lambda: has_replayed(standby, position), 60)
            one(standby, 'SELECT pg_wal_replay_pause()')
            state = 'SELECT pg_get_wal_replay_pause_state()'
            until(lambda: one(standby, state) == ('paused',), 60)

    def __exit__(self, *error: object) -> None:
        with closing(psycopg.connect(self._standby, autocommit=True)) as standby:
            one(standby, 'SELECT pg_wal_replay_resume()')


def has_replayed(standby: psycopg.Connection[Any], position: str) -> bool:
    """Return whether the standby has replayed up to that position."""
    query = 'SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn'
    return bool(standby.execute(query, [position]).fetchone() == (True,))


def one(connection: psycopg.Connection[Any], query: str) -> Any:
    """Return the only row of a query."""
    return connection.execute(query).fetchone()
