"""Defects of the seed that cost round trips, runs of a creator, or memory: one test each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import func, select

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, value
from tests.support.counting import FileRuns, RedisCommands, SqlStatements
from tests.support.models import User

RedisOps = Callable[[int], AbstractContextManager[RedisCommands]]
Queries = Callable[[int], AbstractContextManager[SqlStatements]]


class Many(OrmCacheApp):
    """An application with ten properties of one table."""


def _property(number: int) -> Any:
    def creator(self: OrmCacheApp) -> int:
        return self.session().query(User).count() * 100 + number

    return creator


for _number in range(10):
    Many.orm_cached(policy='on-table-change:users', name=f'p{_number}')(_property(_number))


def read_many(app: Any) -> list[int]:
    return [getattr(app, f'p{number}') for number in range(10)]


def test_warm_request_is_one_round_trip(
    applications: Applications, tenant: str, redis_ops: RedisOps, db_queries: Queries
) -> None:
    """A warm request costs one Redis command and no SQL, for any number of properties."""
    app = applications.start(Many)
    value(app, tenant, read_many)
    value(app, tenant, read_many)
    with redis_ops(1), db_queries(0) as seen, app.request_scope(tenant):
        assert read_many(app) == list(range(10))
        assert read_many(app) == list(range(10))
    assert seen.checkouts == 0


def test_commit_costs_the_same_for_any_number_of_objects(
    applications: Applications,
    tenant: str,
    redis_commands: Callable[[], Any],
    sql_statements: Callable[[], Any],
) -> None:
    """A commit is two commands, and no statement more, for 1 object or 1,000."""
    app = applications.start(Many)
    value(app, tenant, read_many)
    costs = []
    for count in 1, 1000:
        with app.request_scope(tenant) as scope:
            session = scope.session()
            session.connection()
            session.add_all(User(name=f'{count}-{n}') for n in range(count))
            session.flush()
            with redis_commands() as redis, sql_statements() as sql:
                session.commit()
            costs.append((redis.count, sql.count))
    servers = applications.backend.name == 'servers'
    assert costs == [(2, 0) if servers else (0, 0)] * 2
    assert value(app, tenant, read_many) == [100_100 + n for n in range(10)]


HERD = """
import sys, threading
from tests.functional.test_seed_costs import herd_app
app = herd_app(*sys.argv[1:4], sys.argv[5])
barrier = threading.Barrier(4)
def read():
    barrier.wait()
    with app.request_scope(sys.argv[4]):
        seen.append(app.slow)
seen = []
threads = [threading.Thread(target=read) for _ in range(4)]
print('ready', flush=True)
sys.stdin.readline()
for thread in threads: thread.start()
for thread in threads: thread.join()
print(seen, flush=True)
"""


def herd_app(dsn: str, redis_url: str, namespace: str, file: str) -> OrmCacheApp:
    """An app whose creator counts its runs over all processes, and takes its time."""
    runs = FileRuns(file)

    class Herd(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def slow(self) -> int:
            runs('slow')
            if self.session().get_bind().dialect.name == 'postgresql':
                self.session().execute(select(func.pg_sleep(0.2)))
            return self.session().query(User).count()

    from tests.support.models import Base

    settings = {'dsn': dsn, 'redis_url': redis_url, 'namespace': namespace, 'base': Base}
    Herd.setting_section(section='orm_cache')(lambda: settings)
    app = Herd()
    app.setup_orm_cache()
    return app


def test_cold_herd_runs_the_creator_once(
    on_servers: Applications, tenant: str, file_runs: FileRuns
) -> None:
    """Eight threads in two processes that start cold, on a tenant that they create, run the
    creator once."""
    settings = on_servers.backend.settings
    arguments = [settings['dsn'], settings['redis_url'], settings['namespace'], tenant]
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', HERD, *arguments, str(file_runs.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == 'ready\n'
    results = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write('go\n')
        process.stdin.flush()
    for process in processes:
        results.append(process.communicate(timeout=60)[0])
        assert process.returncode == 0
    assert results == ['[0, 0, 0, 0]\n'] * 2
    assert file_runs.count('slow') == 1


def test_memory_is_bounded(applications: Applications, tenant: str) -> None:
    """The process tier keeps to its bound, whatever is read."""

    class Large(OrmCacheApp):
        """Properties of 10 kB each."""

    for number in range(20):
        Large.orm_cached(policy='on-table-change:users', name=f'large{number}')(
            lambda app: b'x' * 10_000
        )
    app = applications.start(Large, process_cache_size=100_000)
    with app.request_scope(tenant):
        for number in range(20):
            assert len(getattr(app, f'large{number}')) == 10_000
    tier = app.orm_cache.process_tier
    assert 0 < tier.bytes_held <= 100_000
