"""The embedded default refuses a second process; on servers a fork has its own connections."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from onegov_ormcache import errors as e
from tests.functional.plain import Plain, configured
from tests.support.applications import Applications, change, value
from tests.support.forking import FORKS
from tests.support.models import User
from tests.support.outside import outside
from tests.support.servers import PostgresServer

SECOND = """
import sys
from tests.functional.plain import Plain, configured
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


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server whose connections the test may end."""
    with PostgresServer() as server:
        yield server


@pytest.mark.parametrize('is_first', [True, False])
def test_second_process_after_a_fault(own_postgres: PostgresServer, is_first: bool) -> None:
    """If the server has closed all connections, the first process that uses the database again
    keeps the versions, and the other one is refused; nobody is served what it knew before."""

    class App(Plain):
        pass

    first = configured(App, dsn=own_postgres.dsn)()
    first.setup_orm_cache()
    second = configured(App, dsn=own_postgres.dsn)()
    try:
        with pytest.raises(e.SecondProcessError):
            second.setup_orm_cache()
        change(first, 'town', User(name='a'))
        assert value(first, 'town', lambda app: app.count) == 1
        own_postgres.terminate_backends()
        if is_first:
            with outside(own_postgres.dsn, 'town') as meanwhile:
                meanwhile.execute("INSERT INTO users (name) VALUES ('b')")
            assert value(first, 'town', lambda app: app.count) == 2
            with pytest.raises(e.SecondProcessError):
                second.setup_orm_cache()
        else:
            second.setup_orm_cache()
            change(second, 'town', User(name='b'))
            with pytest.raises(e.SecondProcessError):
                value(first, 'town', lambda app: app.count)
            second.close_orm_cache()
            assert value(first, 'town', lambda app: app.count) == 2
    finally:
        first.close_orm_cache()


def test_server_that_is_away_without_redis(own_postgres: PostgresServer) -> None:
    """While nobody can be asked who else uses the database, no value is served from memory; all is
    as before when the server is back."""

    class App(Plain):
        pass

    app = configured(App, dsn=own_postgres.dsn)()
    app.setup_orm_cache()
    try:
        change(app, 'town', User(name='a'))
        assert value(app, 'town', lambda app: app.count) == 1
        own_postgres.kill()
        with pytest.raises(DBAPIError):
            value(app, 'town', lambda app: app.count)
        own_postgres.start()
        change(app, 'town', User(name='b'))
        assert value(app, 'town', lambda app: app.count) == 2
    finally:
        app.close_orm_cache()


@pytest.mark.parametrize('kind', FORKS)
def test_forked_process_without_redis(embedded: Applications, tenant: str, kind: str) -> None:
    """A fork of the process that keeps the versions is refused; the parent goes on."""
    app = embedded.start(Plain)
    change(app, tenant, User(name='a'))
    child = FORKS[kind]()
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
