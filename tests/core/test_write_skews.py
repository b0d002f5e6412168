"""What a SERIALIZABLE writer has computed holds at its commit, beside the end of a quarantine and
an outage, unless somebody may have changed it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.core.scope import RequestScope
from onegov_ormcache.errors import SnapshotConflict, StoreUnreachable
from onegov_ormcache.tiers.claims import RedisClaim
from tests.support.applications import Applications, change, value
from tests.support.models import Document, User
from tests.support.outside import outside
from tests.support.servers import RedisServer


class App(OrmCacheApp):
    """Counts users and documents."""

    @orm_cached(policy='on-table-change:users')
    def users(self) -> int:
        return self.session().query(User).count()

    @orm_cached(policy='on-table-change:documents')
    def documents(self) -> int:
        return self.session().query(Document).count()

    @orm_cached(policy=lambda obj: isinstance(obj, User))
    def judged(self) -> int:
        return self.session().query(User).count()


Start = Callable[..., App]


@pytest.fixture
def start(on_servers: Applications, own_redis: RedisServer) -> Start:
    """Starts apps under SERIALIZABLE, on a Redis of the test's own."""

    def start(**settings: Any) -> App:
        options = {'isolation_level': 'SERIALIZABLE'}
        return on_servers.start(App, engine_options=options, redis_url=own_redis.url, **settings)

    return start


@pytest.fixture
def app(start: Start, tenant: str, own_redis: RedisServer) -> App:
    """An app whose Redis has just forgotten everything."""
    made = start()
    change(made, tenant, User(name='old'))
    own_redis.client().flushall()
    return made


#: Adds a document.
INSERT = "INSERT INTO documents (kind, title, state) VALUES ('document', 'any', 'any')"

Awaited = psycopg.Connection[Any]


@pytest.fixture
def awaited(postgres_dsn: str, tenant: str) -> Iterator[Awaited]:
    """A writer of another program, for which quarantines wait; it has changed nothing yet."""
    with outside(postgres_dsn, tenant) as connection:
        connection.execute('BEGIN')
        connection.execute('SELECT pg_current_xact_id()')
        yield connection


def end_quarantine(app: App, tenant: str) -> None:
    """Have another transaction of the app end the quarantine."""
    app.orm_cache.settler._asked.clear()
    with app.request_scope(tenant) as scope:
        scope.session().connection()
        assert scope.snapshot().quarantine is None


def write(scope: RequestScope) -> None:
    scope.session().add(User(name='new'))
    scope.session().commit()


# quarantines that end within the transaction


@pytest.mark.parametrize('end', ['COMMIT', 'ROLLBACK'])
def test_a_newborn_tenant(start: Start, tenant: str, awaited: Awaited, end: str) -> None:
    """The first transaction of a tenant ends the quarantine itself, and commits."""
    app = start()
    with app.request_scope(tenant) as scope:
        assert (app.users, app.judged) == (0, 0)
        assert scope.snapshot().quarantine is not None
        awaited.execute(end)
        app.orm_cache.settler._asked.clear()
        assert app.documents == 0
        assert app.orm_cache.tags.snapshot(tenant).quarantine is None
        write(scope)
    assert value(app, tenant, lambda app: (app.users, app.judged)) == (1, 1)


@pytest.mark.parametrize('elsewhere', [False, True])
def test_a_flushed_store(
    app: App, on_servers: Applications, tenant: str, awaited: Awaited, elsewhere: bool
) -> None:
    """Another transaction, or another process, ends the quarantine: the writer commits."""
    other = on_servers.again(type(app)) if elsewhere else app
    with app.request_scope(tenant) as scope:
        assert (app.users, app.judged, app.documents) == (1, 1, 0)
        assert scope.snapshot().quarantine is not None
        awaited.execute('COMMIT')
        end_quarantine(other, tenant)
        with scope.active():
            write(scope)
    assert value(other, tenant, lambda app: (app.users, app.judged)) == (2, 2)


def test_a_quarantine_that_lasts(app: App, tenant: str, awaited: Awaited) -> None:
    """The writer commits within the quarantine."""
    with app.request_scope(tenant) as scope:
        assert app.users == 1
        write(scope)
    assert app.orm_cache.tags.snapshot(tenant).quarantine is not None


@pytest.mark.parametrize('ended', [False, True])
def test_an_awaited_writer_of_the_tenant(
    app: App, tenant: str, awaited: Awaited, ended: bool
) -> None:
    """An awaited writer had changed the tenant, and commits after the begin: its doubt may be
    lost, so the transaction must try again, and then succeeds."""
    awaited.execute(INSERT)
    with app.request_scope(tenant) as scope:
        assert app.documents == 0
        awaited.execute('COMMIT')
        if ended:
            end_quarantine(app, tenant)
        with scope.active(), pytest.raises(SnapshotConflict, match='in progress then'):
            write(scope)
        scope.session().rollback()
        assert app.documents == 1
        write(scope)


def test_an_awaited_writer_that_is_rolled_back(app: App, tenant: str, awaited: Awaited) -> None:
    """An awaited writer of the tenant is rolled back, so it has changed nothing."""
    awaited.execute(INSERT)
    with app.request_scope(tenant) as scope:
        assert app.documents == 0
        awaited.execute('ROLLBACK')
        end_quarantine(app, tenant)
        with scope.active():
            write(scope)


def test_an_awaited_writer_that_the_view_shows(
    app: App, tenant: str, awaited: Awaited
) -> None:
    """The awaited writer ends between the snapshot and the view: its changes were read."""
    awaited.execute(INSERT)
    with app.request_scope(tenant) as scope:
        scope.session().connection()
        scope.session().rollback()
        # others have asked just now, so the next begin does not ask again
        assert scope.snapshot().quarantine
        awaited.execute('COMMIT')
        assert app.documents == 1
        assert scope.snapshot().quarantine
        end_quarantine(app, tenant)
        with scope.active():
            write(scope)


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_change_beside_the_end(
    app: App, on_servers: Applications, tenant: str, awaited: Awaited, when: str
) -> None:
    """Another process changes what was computed, before or after the end of the quarantine."""
    other = on_servers.again(type(app))
    with app.request_scope(tenant) as scope:
        assert app.documents == 0
        if when == 'before':
            change(other, tenant, Document(kind='document', title='new'))
        awaited.execute('COMMIT')
        end_quarantine(other, tenant)
        if when == 'after':
            change(other, tenant, Document(kind='document', title='new'))
        with scope.active(), pytest.raises(SnapshotConflict, match='documents has changed'):
            write(scope)


def test_a_loss_within_the_transaction(
    start: Start, tenant: str, own_redis: RedisServer
) -> None:
    """What was computed before a loss may have changed, and nobody knows it: a conflict."""
    app = start()
    change(app, tenant, User(name='old'))
    with app.request_scope(tenant) as scope:
        assert app.documents == 0
        assert scope.snapshot().quarantine is None
        own_redis.client().flushall()
        end_quarantine(app, tenant)
        with scope.active(), pytest.raises(SnapshotConflict, match='documents has changed'):
            write(scope)


def test_definitions_that_changed_in_the_quarantine(
    app: App, tenant: str, awaited: Awaited, postgres_dsn: str
) -> None:
    """A version of the definitions does not outlast the end: a trigger that was made in the
    quarantine, by a writer whose doubt is lost, is found at the commit."""
    with app.request_scope(tenant) as scope:
        assert app.documents == 0
        with outside(postgres_dsn, tenant) as connection:
            connection.execute(
                f"""
                CREATE FUNCTION add_document() RETURNS trigger LANGUAGE plpgsql
                SET search_path = "{tenant}" AS $$ BEGIN {INSERT}; RETURN NEW; END $$
                """
            )
            connection.execute(
                'CREATE TRIGGER adds AFTER INSERT ON users '
                'FOR EACH ROW EXECUTE FUNCTION add_document()'
            )
        awaited.execute('COMMIT')
        end_quarantine(app, tenant)
        for _ in range(2):
            assert value(app, tenant, lambda app: app.documents) == 0
        with scope.active():
            write(scope)
    assert value(app, tenant, lambda app: app.documents) == 1


# outages


@pytest.mark.parametrize('on_outage', ['refuse', 'continue'])
@pytest.mark.parametrize('begun', [False, True])
def test_a_value_that_was_computed_in_an_outage(
    start: Start, tenant: str, own_redis: RedisServer, on_outage: str, begun: bool
) -> None:
    """It has no version that must hold: the writer commits when the store is back, restarted."""
    app = start(on_outage=on_outage)
    change(app, tenant, User(name='old'))
    with app.request_scope(tenant) as scope:
        if begun:
            scope.session().connection()
        own_redis.kill()
        assert app.documents == 0
        assert not scope.snapshot().reachable
        own_redis.start()
        write(scope)
    assert value(app, tenant, lambda app: app.users) == 2


@pytest.mark.parametrize('on_outage', ['refuse', 'continue'])
@pytest.mark.parametrize('lost', [False, True])
def test_a_value_that_was_read_before_an_outage(
    start: Start, tenant: str, own_redis: RedisServer, on_outage: str, lost: bool
) -> None:
    """A cached value that was read before the outage must still hold after it. It does, unless
    the store has lost its data."""
    app = start(on_outage=on_outage, redis_timeout=0.2)
    change(app, tenant, User(name='old'))
    for _ in range(2):
        value(app, tenant, lambda app: app.users)
    with app.request_scope(tenant) as scope:
        scope.session().connection()
        assert app.users == 1
        assert scope.returned
        own_redis.kill() if lost else own_redis.pause()
        assert app.documents == 0
        assert not scope.snapshot().reachable
        own_redis.start() if lost else own_redis.resume()
        if lost:
            with pytest.raises(SnapshotConflict, match='has changed'):
                write(scope)
        else:
            write(scope)


def test_an_outage_between_a_cached_value_and_the_view(
    start: Start, on_servers: Applications, tenant: str, own_redis: RedisServer
) -> None:
    """Nobody can tell whether they belong to one moment, so the transaction is tried again; the
    next attempt reads all from the database."""
    app = start(redis_timeout=0.2)
    change(app, tenant, User(name='old'))
    for _ in range(2):
        value(app, tenant, lambda app: app.users)
    with app.request_scope(tenant) as scope:
        assert app.users == 1
        own_redis.pause()
        with pytest.raises(SnapshotConflict, match='was lost between'):
            app.documents
        scope.session().rollback()
        assert (app.users, app.documents) == (1, 0)
        own_redis.resume()


@pytest.mark.parametrize('on_outage', ['refuse', 'continue'])
def test_a_value_that_changed_in_an_outage(
    start: Start,
    on_servers: Applications,
    tenant: str,
    on_outage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store was out of one process's reach alone; another one has changed what was read."""
    app = start(on_outage=on_outage)
    other = on_servers.again(type(app))
    change(app, tenant, User(name='old'))
    for _ in range(2):
        value(app, tenant, lambda app: app.documents)

    def unreachable(*arguments: object) -> None:
        raise StoreUnreachable('out of reach')

    with app.request_scope(tenant) as scope:
        scope.session().connection()
        assert app.documents == 0
        assert scope.returned
        with monkeypatch.context() as patched:
            patched.setattr(RedisClaim, 'look', unreachable)
            assert app.users == 1
        assert not scope.snapshot().reachable
        change(other, tenant, Document(kind='document', title='new'))
        with scope.active(), pytest.raises(SnapshotConflict, match='has changed'):
            write(scope)
