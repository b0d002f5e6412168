"""The fixtures that all tests share: real servers, the two backends, tenants, counters.

Servers start when the first test asks for one and end with the session; what they
are and how to point the tests at others is told in tests/support/servers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

from onegov_ormcache.redis_client import client
from tests.support.applications import Applications
from tests.support.backends import Backend
from tests.support.counting import (
    FileRuns,
    RedisCommands,
    Runs,
    SqlStatements,
    db_queries,
    redis_ops,
    sql_statements,
)
from tests.support.outages import RegisteredBreaker
from tests.support.redis_sets import ClusterSet, SentinelSet
from tests.support.servers import RedisServer, drop_schemas, postgres_server, redis_server

# The same examples on each run, so that a failure is the work of a change; `random` looks
# for others, and `long` for many others (--hypothesis-profile=long).
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.register_profile('random', deadline=None, print_blob=True)
settings.register_profile('long', parent=settings.get_profile('random'), max_examples=2000)
settings.load_profile('repeatable')

client.Breaker = RegisteredBreaker  # type: ignore[attr-defined]

# Some tests run pytest itself
pytest_plugins = ['pytester']

BACKEND_FIXTURES = ('backend', 'servers_backend', 'embedded_backend')


class Servers:
    """The session's servers, each started when its address is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def postgres_dsn(self) -> str:
        return self._stack.enter_context(postgres_server())

    @cached_property
    def redis_url(self) -> str:
        return self._stack.enter_context(redis_server())

    @cached_property
    def sentinel_url(self) -> str:
        passwords = {'password': 'a/b#c@d', 'sentinel_password': 'e?f'}
        return self._stack.enter_context(SentinelSet(**passwords)).url

    @cached_property
    def cluster_url(self) -> str:
        return self._stack.enter_context(ClusterSet(password='a/b#c@d')).url

    @property
    def has_postgres(self) -> bool:
        """Tells if a test has used PostgreSQL; reading the address would start it."""

        return 'postgres_dsn' in vars(self)


@pytest.fixture(scope='session')
def servers() -> Iterator[Servers]:
    """Starts servers for whoever asks, and stops them when the session ends."""

    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(scope='session')
def postgres_dsn(servers: Servers) -> str:
    """The SQLAlchemy URL of a PostgreSQL server that all tests share."""

    return servers.postgres_dsn


@pytest.fixture(scope='session')
def redis_url(servers: Servers) -> str:
    """The URL of a Redis server that all tests share."""

    return servers.redis_url


@pytest.fixture(params=['sentinel', 'cluster'])
def set_url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """The URL of a primary that Sentinels watch, and that of a cluster, all with passwords."""

    url: str = getattr(servers, f'{request.param}_url')
    return url


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis server of the test's own, to be killed, paused and restarted."""

    with RedisServer() as server:
        yield server


@pytest.fixture
def namespace() -> str:
    """A namespace of the test's own for everything kept in Redis."""

    return f'test-{uuid4().hex[:12]}'


@pytest.fixture
def embedded_backend(tmp_path: Path, namespace: str) -> Backend:
    """The backend without servers: a SQLite file per tenant, and memory."""

    return Backend(
        'embedded',
        {'dsn': f'sqlite:///{tmp_path}/tenants', 'redis_url': None, 'namespace': namespace},
    )


@pytest.fixture
def servers_backend(postgres_dsn: str, redis_url: str, namespace: str) -> Backend:
    """The backend with servers: PostgreSQL and Redis."""

    return Backend(
        'servers', {'dsn': postgres_dsn, 'redis_url': redis_url, 'namespace': namespace}
    )


@pytest.fixture(params=['embedded', 'servers'])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""

    found: Backend = request.getfixturevalue(f'{request.param}_backend')
    return found


@pytest.fixture
def make_tenant(servers: Servers) -> Iterator[Callable[[str], str]]:
    """Makes schema names that are the test's own: `make_tenant('main')`.

    The same name gives the same schema. The schemas are dropped after the test.
    """

    prefix = f't{uuid4().hex[:12]}_'

    def make(name: str = 'main') -> str:
        schema = f'{prefix}{name}'
        if not (schema.isascii() and schema.isidentifier() and schema.islower()):
            raise ValueError(f'Only lowercase letters, digits and underscores: {name!r}')
        if len(schema) >= 63:
            raise ValueError(f'The name is too long for PostgreSQL: {schema!r}')
        return schema

    yield make
    if servers.has_postgres:
        drop_schemas(servers.postgres_dsn, prefix)


@pytest.fixture
def tenant(make_tenant: Callable[[str], str]) -> str:
    """A schema name of the test's own."""

    return make_tenant('main')


@pytest.fixture
def counted_redis_url(request: pytest.FixtureRequest) -> str | None:
    """The Redis server of the test's backend, which the counters look at.

    None if the backend is the embedded one; the shared server if there is no backend.
    """

    for name in BACKEND_FIXTURES:
        if name in request.fixturenames:
            url: str | None = request.getfixturevalue(name).settings['redis_url']
            return url
    shared: str = request.getfixturevalue('redis_url')
    return shared


@pytest.fixture(name='redis_commands')
def redis_commands_fixture(counted_redis_url: str | None) -> Callable[[], RedisCommands]:
    """Counts Redis commands: `with redis_commands() as seen: ...; seen.count`."""

    return partial(RedisCommands, counted_redis_url)


@pytest.fixture(name='redis_ops')
def redis_ops_fixture(
    counted_redis_url: str | None,
) -> Callable[[int], AbstractContextManager[RedisCommands]]:
    """Asserts the exact number of Redis commands: `with redis_ops(2): ...`.

    On the embedded backend nothing is asserted, as there is no server to ask.
    """

    def ops(expected: int) -> AbstractContextManager[RedisCommands]:
        return redis_ops(counted_redis_url, expected if counted_redis_url else 0)

    return ops


@pytest.fixture(name='sql_statements')
def sql_statements_fixture() -> Callable[[], AbstractContextManager[SqlStatements]]:
    """Counts SQL statements: `with sql_statements() as seen: ...; seen.count`."""

    return sql_statements


@pytest.fixture(name='db_queries')
def db_queries_fixture() -> Callable[[int], AbstractContextManager[SqlStatements]]:
    """Asserts the exact number of SQL statements: `with db_queries(1): ...`."""

    return db_queries


@pytest.fixture
def runs() -> Runs:
    """Counts the runs of creators in this process."""

    return Runs()


@pytest.fixture
def file_runs(tmp_path: Path) -> FileRuns:
    """Counts the runs of creators over several processes."""

    return FileRuns(tmp_path / 'runs')


@pytest.fixture
def applications(backend: Backend) -> Iterator[Applications]:
    """Makes applications on each backend in turn."""

    with ExitStack() as stack:
        yield Applications(backend, stack)


@pytest.fixture
def on_servers(servers_backend: Backend) -> Iterator[Applications]:
    """Makes applications on PostgreSQL and Redis."""

    with ExitStack() as stack:
        yield Applications(servers_backend, stack)


@pytest.fixture
def embedded(embedded_backend: Backend) -> Iterator[Applications]:
    """Makes applications on the embedded default."""

    with ExitStack() as stack:
        yield Applications(embedded_backend, stack)
