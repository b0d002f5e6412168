"""The first transaction after a loss: it ends the quarantine before it takes its view."""

from __future__ import annotations

from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached, steps
from onegov_ormcache.errors import SnapshotConflict
from onegov_ormcache.steps import Step
from tests.support.applications import Applications, change, committed, value
from tests.support.models import Document, User
from tests.support.servers import RedisServer

LEVELS = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')


class App(OrmCacheApp):
    """Counts users, and shows an object of the session."""

    @orm_cached(policy='on-table-change:users')
    def count(self) -> int:
        return self.session().query(User).count()

    @orm_cached(policy='on-table-change:users')
    def name(self) -> str:
        return self.session().query(User).one().name


@pytest.fixture(params=LEVELS)
def app(
    request: pytest.FixtureRequest, on_servers: Applications, tenant: str, own_redis: RedisServer
) -> App:
    """An app under each isolation level, whose Redis has just forgotten everything."""
    options = {'isolation_level': request.param}
    made = on_servers.start(App, engine_options=options, redis_url=own_redis.url)
    change(made, tenant, User(name='old'))
    forget(own_redis)
    return made


def forget(redis: RedisServer) -> None:
    redis.client().flushall()


def test_the_first_value_is_stored(app: App, tenant: str) -> None:
    """The first transaction after a loss stores its values; no other writer was in progress."""
    assert value(app, tenant, lambda app: app.count) == 1
    with app.recording() as events:
        assert value(app, tenant, lambda app: app.count) == 1
    assert events[0].tier in ('process', 'shared')


def test_order_of_the_begin(app: App, tenant: str) -> None:
    """The quarantine ends first, then the snapshot is taken, and after it the view."""
    taken: list[Step] = []
    steps.listener = taken.append
    try:
        with app.request_scope(tenant) as scope:
            scope.session().connection()
            scope.snapshot()
    finally:
        steps.listener = None
    # the store has forgotten which database it is, so that is found out first
    asked = [Step.SNAPSHOT, Step.VIEW, Step.IDENTIFY]
    begin = [*asked, Step.SNAPSHOT, Step.END_QUARANTINE, Step.SNAPSHOT, Step.VIEW]
    assert taken in (begin, [*begin, Step.SECOND_SNAPSHOT])


def test_memory_is_not_older_than_the_snapshot(
    app: App, tenant: str, on_servers: Applications
) -> None:
    """What was loaded at once after a loss, and changed by another process since, is not stored
    with the versions of the change."""
    other = on_servers.again(type(app))
    with app.request_scope(tenant) as scope:
        kept = scope.session().query(User).one()
        with committed(other, tenant) as writing:
            writing.session().query(User).one().name = 'new'
        assert kept.name == 'old'
        app.name  # whatever it shows of its memory
    assert value(other, tenant, lambda app: app.name) == 'new'
    assert value(app, tenant, lambda app: app.name) == 'new'


def test_loss_within_a_transaction(
    app: App, tenant: str, on_servers: Applications, own_redis: RedisServer
) -> None:
    """A transaction that was in progress at the loss stores nothing, and its change is seen."""
    other = on_servers.again(type(app))
    assert value(app, tenant, lambda app: app.count) == 1
    with other.request_scope(tenant) as scope:
        scope.session().add(User(name='new'))
        scope.session().flush()
        forget(own_redis)
        assert value(app, tenant, lambda app: app.count) == 1
        scope.session().commit()
    assert value(app, tenant, lambda app: app.count) == 2


def test_loss_beside_a_value_that_was_read(
    app: App, tenant: str, own_redis: RedisServer
) -> None:
    """A transaction that has read a cached value keeps its snapshot, or fails with a conflict."""
    value(app, tenant, lambda app: app.count)
    with app.request_scope(tenant) as scope:
        assert app.count == 1
        before = scope.snapshot()
        forget(own_redis)
        try:
            scope.session().connection()
        except SnapshotConflict:
            return
        assert scope.snapshot() is before


def test_two_phases(app: App, tenant: str) -> None:
    """A two-phase transaction ends the quarantine at its begin, too."""
    with app.request_scope(tenant) as scope:
        connection: Any = scope.session_manager.database.engine(tenant).connect()
        with connection, connection.begin_twophase() as transaction:
            assert scope.snapshot().quarantine is None
            assert connection.exec_driver_sql('SELECT count(*) FROM users').scalar_one() == 1
            transaction.rollback()


def test_replica_is_not_asked(app: App, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica can't tell which writers of the primary are in progress: the quarantine stays."""
    database = app.orm_cache.session_manager.database
    monkeypatch.setattr(database, 'is_replica', lambda connection: True)
    with app.request_scope(tenant) as scope:
        scope.session().query(Document).count()
        assert scope.snapshot().quarantine == ()
