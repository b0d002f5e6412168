"""The servers do what tests will rely on: start, restart, freeze, die, and go away."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tests.support.backends import Backend
from tests.support.servers import (
    POSTGRES_VARIABLE,
    REDIS_VARIABLE,
    RedisServer,
    drop_schemas,
    postgres_server,
    redis_server,
)


@contextmanager
def connect(dsn: str) -> Iterator[Connection]:
    engine = create_engine(dsn, poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


def schemas(connection: Connection, prefix: str) -> set[str]:
    names = connection.scalars(
        text('SELECT nspname FROM pg_namespace WHERE starts_with(nspname, :prefix)'),
        {'prefix': prefix},
    )
    return set(names)


def ended(process: psutil.Process) -> bool:
    try:
        process.wait(timeout=1)
    except psutil.TimeoutExpired:
        # The process that inherited it may never ask for its exit status
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def children() -> set[int]:
    return {
        process.pid
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
    }


@pytest.mark.skipif(POSTGRES_VARIABLE in os.environ, reason='someone else configured it')
def test_postgres_knows_two_phase_commit(postgres_dsn: str) -> None:
    """The PostgreSQL server can prepare transactions, and does not wait for disks."""
    with connect(postgres_dsn) as connection:
        assert connection.scalar(text('SHOW max_prepared_transactions')) == '20'
        assert connection.scalar(text('SHOW fsync')) == 'off'


def test_postgres_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostgreSQL server is gone after its block, its folder and its process too."""
    monkeypatch.delenv(POSTGRES_VARIABLE, raising=False)
    with postgres_server() as dsn:
        with connect(dsn) as connection:
            folder = Path(connection.scalars(text('SHOW data_directory')).one())
        # The first line of this file is the server's process id
        process = psutil.Process(int((folder / 'postmaster.pid').read_text().split()[0]))
        assert process.status() != psutil.STATUS_ZOMBIE

    assert not folder.parent.exists()
    assert ended(process)
    with pytest.raises(OperationalError), connect(dsn):
        pass


def test_servers_end_when_a_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is also stopped if its block raises."""
    monkeypatch.delenv(REDIS_VARIABLE, raising=False)
    before = children()
    with pytest.raises(ZeroDivisionError), redis_server():
        assert children() - before
        1 / 0
    assert children() <= before


def test_other_servers_are_used_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the environment variables set, no server is started."""
    monkeypatch.setenv(POSTGRES_VARIABLE, 'postgresql+psycopg://elsewhere/db')
    monkeypatch.setenv(REDIS_VARIABLE, 'redis://elsewhere/7')
    before = children()
    with postgres_server() as dsn, redis_server() as url:
        assert (dsn, url) == ('postgresql+psycopg://elsewhere/db', 'redis://elsewhere/7')
        assert children() <= before


def test_redis_allows_config_and_saves_nothing(own_redis: RedisServer) -> None:
    """Tests may change the Redis server's configuration; by itself it writes no dump."""
    with closing(own_redis.client()) as client:
        assert client.config_get('save') == {'save': ''}
        assert client.config_get('appendonly') == {'appendonly': 'no'}
        assert client.config_set('maxmemory', '50mb')
        assert client.info('server')['process_id'] == own_redis.pid


def test_redis_restarts_with_its_data(own_redis: RedisServer) -> None:
    """A restart can keep the data; the server is then a new process at the same address."""
    pid, url = own_redis.pid, own_redis.url
    with closing(own_redis.client()) as client:
        client.set('key', 'value')
        own_redis.restart(keep_data=True)
        assert client.get('key') == b'value'
    assert own_redis.pid != pid
    assert own_redis.url == url


def test_redis_restarts_empty(own_redis: RedisServer) -> None:
    """After a restart that does not keep the data nothing is left, not even what was saved."""
    with closing(own_redis.client()) as client:
        client.set('key', 'value')
        own_redis.save()
        own_redis.restart(keep_data=False)
        assert client.get('key') is None


def test_killed_redis_serves_an_older_dump(own_redis: RedisServer) -> None:
    """If the server is killed, everything that was written after the last save is lost."""
    with closing(own_redis.client()) as client:
        client.set('key', 'older')
        own_redis.save()
        client.set('key', 'newer')
        own_redis.kill()
        with pytest.raises(redis.ConnectionError):
            client.get('key')
        own_redis.start()
        assert client.get('key') == b'older'


def test_paused_redis_answers_late(own_redis: RedisServer) -> None:
    """A paused server lets clients wait until it is resumed."""
    with closing(
        redis.Redis.from_url(own_redis.url, retry=Retry(NoBackoff(), 0), socket_timeout=0.1)
    ) as client:
        client.set('key', 'value')
        own_redis.pause()
        with pytest.raises(redis.TimeoutError):
            client.get('key')
        own_redis.resume()
        with closing(own_redis.client()) as patient:
            assert patient.get('key') == b'value'


def test_paused_redis_can_be_stopped(own_redis: RedisServer) -> None:
    """A paused server ends when it is told to, and can be started again."""
    own_redis.pause()
    pid = own_redis.pid
    own_redis.stop()
    assert not psutil.pid_exists(pid)
    own_redis.start()
    with closing(own_redis.client()) as client:
        assert client.ping()


def test_a_stopped_redis_has_no_process(own_redis: RedisServer) -> None:
    """Starting a server that runs is refused, and so is pausing one that does not run."""
    with pytest.raises(RuntimeError, match='runs already'):
        own_redis.start()
    own_redis.stop()
    own_redis.stop()
    with pytest.raises(RuntimeError, match='does not run'):
        own_redis.pause()


def test_a_redis_that_cannot_start_says_why(own_redis: RedisServer) -> None:
    """A server that does not start raises with its log, and leaves no process."""
    own_redis.stop()
    (own_redis.folder / 'dump.rdb').write_text('no dump at all')
    before = children()
    with pytest.raises(RuntimeError, match='Wrong signature'):
        own_redis.start()
    assert children() <= before


def test_schemas_are_dropped_by_prefix(
    postgres_dsn: str, make_tenant: Callable[[str], str]
) -> None:
    """All schemas of a prefix go, with their tables; an underscore is no wildcard."""
    gone, kept = make_tenant('a_1'), make_tenant('ab1')
    with connect(postgres_dsn) as connection:
        for schema in (gone, kept):
            connection.execute(text(f'CREATE SCHEMA {schema}'))
            connection.execute(text(f'CREATE TABLE {schema}.users (id int)'))
        connection.commit()
        prefix = gone.removesuffix('1')
        drop_schemas(postgres_dsn, prefix)
        assert schemas(connection, gone.removesuffix('a_1')) == {kept}


def test_a_forgotten_transaction_does_not_keep_a_schema(postgres_dsn: str, tenant: str) -> None:
    """A schema is dropped also when a failed test left a transaction open on its tables."""
    with connect(postgres_dsn) as forgotten, connect(postgres_dsn) as connection:
        connection.execute(text(f'CREATE SCHEMA {tenant}'))
        connection.execute(text(f'CREATE TABLE {tenant}.users (id int)'))
        connection.commit()
        forgotten.execute(text(f'SELECT * FROM {tenant}.users'))
        drop_schemas(postgres_dsn, tenant)
        assert schemas(connection, tenant) == set()
        forgotten.invalidate()


def test_tenants_are_of_one_test_and_dropped_after_it(
    pytester: pytest.Pytester, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schemas that a test made are gone when the next one runs, which gets other names."""
    monkeypatch.setenv(POSTGRES_VARIABLE, postgres_dsn)
    pytester.makeconftest(Path(__file__).parents[2].joinpath('conftest.py').read_text())
    pytester.makepyfile("""
        from sqlalchemy import create_engine, text

        seen = []

        def check(dsn, tenant):
            with create_engine(dsn).connect() as connection:
                query = text('SELECT count(*) FROM pg_namespace WHERE nspname = ANY(:names)')
                assert connection.scalar(query, {'names': seen}) == 0
                connection.execute(text(f'CREATE SCHEMA {tenant}'))
                connection.commit()
            assert tenant not in seen
            seen.append(tenant)

        def test_one(postgres_dsn, tenant, make_tenant):
            assert make_tenant('main') == tenant != make_tenant('other')
            check(postgres_dsn, tenant)

        def test_two(postgres_dsn, tenant):
            check(postgres_dsn, tenant)
    """)
    pytester.runpytest_inprocess('-p', 'no:valkey').assert_outcomes(passed=2)


@pytest.mark.parametrize('name', ['Main', 'main-2', 'x' * 60, 'größe', 'a b'])
def test_unfit_tenant_names_are_refused(make_tenant: Callable[[str], str], name: str) -> None:
    """A tenant's name that would need quoting, or that PostgreSQL would cut, is refused."""
    with pytest.raises(ValueError, match=r'too long|Only'):
        make_tenant(name)


def test_backends_have_what_they_are_named_for(
    backend: Backend, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The settings of the embedded backend name files and no Redis; the other one's name both
    servers."""
    assert backend.settings['namespace'].startswith('test-')
    if backend.name == 'embedded':
        assert backend.settings['dsn'] == f'sqlite:///{tmp_path}/tenants'
        assert backend.settings['redis_url'] is None
    else:
        assert backend.settings['dsn'] == request.getfixturevalue('postgres_dsn')
        with closing(redis.Redis.from_url(backend.settings['redis_url'])) as client:
            assert client.ping()
