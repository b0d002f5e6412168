"""Applications behind a PgBouncer that gives each transaction another connection."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.database.driver import watch_driver
from onegov_ormcache.database.prepared import is_pooled
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import Died, before, die
from tests.support.applications import Applications, change, value
from tests.support.models import User
from tests.support.pgbouncer import PGBOUNCER_VARIABLE, PgBouncer, find_pgbouncer
from tests.support.servers import libpq_url


class Town(OrmCacheApp):
    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return sorted(user.name for user in self.session().query(User))

    @orm_cached(policy='on-table-change:users')
    def count(self) -> int:
        return int(self.session().scalar(text('SELECT count(*) FROM users')))


def names(app: Town) -> list[str]:
    return app.names


@pytest.fixture(params=['transaction', 'session'])
def pooler(request: pytest.FixtureRequest, postgres_dsn: str) -> Iterator[PgBouncer]:
    program = find_pgbouncer()
    if program is None:
        pytest.skip(f'PgBouncer is not installed, and {PGBOUNCER_VARIABLE} does not name it')
    with PgBouncer(program, postgres_dsn, mode=request.param, size=20) as started:
        yield started


@pytest.fixture
def transaction_pooler(postgres_dsn: str) -> Iterator[PgBouncer]:
    program = find_pgbouncer()
    if program is None:
        pytest.skip(f'PgBouncer is not installed, and {PGBOUNCER_VARIABLE} does not name it')
    with PgBouncer(program, postgres_dsn) as started:
        yield started


def test_nothing_fails_with_the_defaults(
    on_servers: Applications, transaction_pooler: PgBouncer, tenant: str
) -> None:
    """With psycopg's defaults, many transactions of four clients on three connections all
    succeed, and each application reads what all of them have written."""
    apps = [on_servers.start(Town, dsn=transaction_pooler.dsn)]
    apps += [on_servers.again(type(apps[0])) for _ in range(3)]

    def work(number: int) -> None:
        app = apps[number]
        for n in range(30):
            change(app, tenant, User(name=f'{number}-{n:02}'))
            if n % 10 == 9:
                seen = set(value(app, tenant, names))
                assert {f'{number}-{m:02}' for m in range(n + 1)} <= seen

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    expected = sorted(f'{number}-{n:02}' for number in range(4) for n in range(30))
    for app in apps:
        assert value(app, tenant, names) == expected
        assert value(app, tenant, lambda app: app.count) == len(expected)


def test_doubts_are_settled(
    on_servers: Applications, transaction_pooler: PgBouncer, tenant: str
) -> None:
    """A doubt beside a writer that lives is left alone, and that of a dead writer is settled,
    though the connections of both have served other transactions meanwhile."""
    app = on_servers.start(Town, dsn=transaction_pooler.dsn)
    other = on_servers.elsewhere(app)
    change(app, tenant, User(name='a'))
    assert value(other, tenant, names) == ['a']
    with before(Step.COMMIT, lambda: value(other, tenant, names)):
        change(app, tenant, User(name='b'))
    assert value(other, tenant, names) == ['a', 'b']
    with pytest.raises(Died), before(Step.PUBLISH, die):
        change(app, tenant, User(name='c'))
    assert value(on_servers.again(type(app)), tenant, names) == ['a', 'b', 'c']


def test_a_pooler_is_known(pooler: PgBouncer, postgres_dsn: str) -> None:
    """Connections that go through a pooler are known, in a transaction and outside of one, and
    others are not; asking begins and ends none."""
    for dsn, expected in ((pooler.dsn, True), (postgres_dsn, False)):
        with closing(psycopg.connect(libpq_url(dsn))) as connection:
            for status in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
                assert connection.info.transaction_status is status
                assert is_pooled(connection) is expected
                assert connection.info.transaction_status is status
                assert not connection.autocommit
                connection.execute('SELECT 1')


@pytest.mark.parametrize('given', [None, 3, 6, 0])
def test_what_the_application_has_set_stays(
    transaction_pooler: PgBouncer, postgres_dsn: str, given: int | None
) -> None:
    """A threshold of the application's own is left alone, and so are connections without a
    pooler."""
    with ExitStack() as stack:

        def threshold(dsn: str, **arguments: Any) -> Any:
            engine = create_engine(dsn, poolclass=NullPool, connect_args=arguments)
            watch_driver(engine)
            connection: Any = stack.enter_context(engine.connect()).connection
            return connection.driver_connection.prepare_threshold

        for dsn in (transaction_pooler.dsn, postgres_dsn):
            assert threshold(dsn, prepare_threshold=given) == given
        assert threshold(transaction_pooler.dsn) is None
        assert threshold(postgres_dsn) == 5
