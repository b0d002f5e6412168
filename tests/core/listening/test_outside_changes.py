"""An application that listens evicts within a second what another program changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from select import select
from typing import Any

import psycopg
import pytest
from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.core.listening import Listening
from onegov_ormcache.tags.snapshot import PROPERTY_TAG
from tests.core.listening.listening_town import (
    PROMISED,
    Program,
    Town,
    becomes,
    ear_of,
    listening,
    reads,
)
from tests.support.applications import Applications, change
from tests.support.counting import Runs
from tests.support.models import User
from tests.support.outside import install, outside, until


@pytest.mark.parametrize('redis', [True, False], ids=['redis', 'memory'])
@pytest.mark.parametrize(
    ('statement', 'name', 'expected'),
    [
        ("INSERT INTO users (id, name) VALUES (2, 'Grace')", 'names', ['Ada', 'Grace']),
        ("UPDATE users SET name = 'Grace'", 'names', ['Grace']),
        ('DELETE FROM users', 'names', []),
        ('TRUNCATE users CASCADE', 'names', []),
        ('DELETE FROM users', 'titles', []),
        ('DELETE FROM users', 'count', 0),
    ],
    ids=['insert', 'update', 'delete', 'truncate', 'cascade', 'function-policy'],
)
def test_outside_changes_are_seen_within_a_second(
    apps: Applications,
    program: Program,
    tenant: str,
    redis: bool,
    statement: str,
    name: str,
    expected: object,
) -> None:
    """Within a second, requests see every change that another program has committed."""
    settings = {} if redis else {'redis_url': None}
    app = listening(apps.start(Town, listen=True, **settings))
    assert reads(app, tenant, name) != expected
    program.execute(statement)
    becomes(app, tenant, name, expected)


def test_changes_are_stale_without_listener(
    apps: Applications, program: Program, tenant: str
) -> None:
    """A check of the test above: without the setting `listen` nothing is evicted."""
    app = apps.start(Town)
    assert reads(app, tenant, 'names') == ['Ada']
    program.execute('DELETE FROM users')
    with pytest.raises(TimeoutError):
        becomes(app, tenant, 'names', [])


def test_only_what_changed_is_evicted(
    app: Town, program: Program, tenant: str, runs: Runs
) -> None:
    """A change of one table leaves values of others in place."""
    app.runs = runs
    reads(app, tenant, 'groups')
    reads(app, tenant, 'names')
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(app, tenant, 'names', ['Grace'])
    reads(app, tenant, 'groups')
    assert (runs.count('groups'), runs.count('names')) == (1, 2)


def test_copy_is_seen(app: Town, program: Program, tenant: str) -> None:
    """A COPY is a change like any other."""
    assert reads(app, tenant, 'count') == 1
    with program.cursor().copy('COPY users (id, name) FROM STDIN') as rows:
        rows.write_row((2, 'Grace'))
    becomes(app, tenant, 'count', 2)


def test_other_tenants_keep_their_values(
    apps: Applications,
    program: Program,
    tenant: str,
    postgres_dsn: str,
    make_tenant: Callable[[str], str],
    runs: Runs,
) -> None:
    """A change evicts in its own tenant alone."""
    app, other = apps.start(Town), make_tenant('other')
    change(app, other, User(name='Edsger'))
    install(postgres_dsn, other)
    app = listening(apps.start(Town, listen=True))
    app.runs = runs
    assert reads(app, tenant, 'names') == ['Ada']
    assert reads(app, other, 'names') == ['Edsger']
    assert runs.count('names') == 2
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(app, tenant, 'names', ['Grace'])
    assert reads(app, other, 'names') == ['Edsger']
    assert runs.count('names') == 3


def test_properties_of_other_releases_are_evicted(
    app: Town, program: Program, tenant: str
) -> None:
    """Any change evicts a registered function policy that this application does not know."""
    store, stranger = app.orm_cache.tags, f'{PROPERTY_TAG}stranger'
    store.register(tenant, {stranger})
    before = store.snapshot(tenant).version(stranger)
    program.execute("INSERT INTO groups (id, name) VALUES (1, 'Staff')")
    until(lambda: store.snapshot(tenant).version(stranger) != before, PROMISED)


def test_new_triggers_begin_with_an_eviction(
    on_servers: Applications, tenant: str, postgres_dsn: str
) -> None:
    """A change made before a tenant had triggers is seen as soon as they are installed."""
    app = listening(on_servers.start(Town, listen=True))
    change(app, tenant, User(id=1, name='Ada'))
    assert reads(app, tenant, 'names') == ['Ada']
    with outside(postgres_dsn, tenant) as program:
        program.execute("UPDATE users SET name = 'Grace'")
    assert reads(app, tenant, 'names') == ['Ada']
    install(postgres_dsn, tenant)
    becomes(app, tenant, 'names', ['Grace'])


def test_what_comes_with_an_answer_is_heard_at_once(
    apps: Applications, program: Program, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notification that the driver reads with an answer is handled in the same `look`."""
    app = apps.start(Town)
    with closing(psycopg.connect(program.info.dsn)) as connection:
        ear = Listening(app.orm_cache, connection)
        assert ear.look()
        assert reads(app, tenant, 'names') == ['Ada']
        execute = connection.execute

        def execute_late(*arguments: Any) -> Any:
            answer = execute(*arguments)
            program.execute("UPDATE users SET name = 'Grace'")
            assert select([connection], [], [], 20)[0]
            connection.pgconn.consume_input()
            return answer

        monkeypatch.setattr(connection, 'execute', execute_late)
        ear.look()
    assert reads(app, tenant, 'names') == ['Grace']


def test_strange_notifications_are_told_and_ignored(
    app: Town, program: Program, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Notifications that no trigger has sent are logged and ignored."""
    assert reads(app, tenant, 'names') == ['Ada']
    program.execute("SELECT pg_notify('orm_cache', 'Hello: world'), pg_notify('orm_cache', '')")
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(app, tenant, 'names', ['Grace'])
    assert sum('Somebody notified' in message for message in caplog.messages) == 2


def test_shared_tables(
    on_servers: Applications,
    make_tenant: Callable[[str], str],
    postgres_dsn: str,
) -> None:
    """A change of a table that tenants share, from outside or hidden, is seen by all."""
    home = make_tenant('home')

    class Base(DeclarativeBase):
        pass

    class Country(Base):
        __tablename__ = 'countries'
        __table_args__ = {'schema': home}
        id: Mapped[int] = mapped_column(primary_key=True)

    class City(Base):
        __tablename__ = 'cities'
        id: Mapped[int] = mapped_column(primary_key=True)
        country_id: Mapped[int] = mapped_column(ForeignKey(Country.id))

    class Atlas(OrmCacheApp):
        @orm_cached(policy=Country)
        def countries(self) -> int:
            return self.session().query(Country).count()

    app = listening(on_servers.start(Atlas, base=Base, listen=True))
    one, two = make_tenant('one'), make_tenant('two')
    assert [reads(app, schema, 'countries') for schema in (one, two)] == [0, 0]
    install(postgres_dsn, home)
    install(postgres_dsn, one)
    with outside(postgres_dsn, home) as program:
        program.execute('INSERT INTO countries VALUES (1)')
        becomes(app, one, 'countries', 1)
        becomes(app, two, 'countries', 1)
        program.execute(
            f'CREATE FUNCTION {one}.add() RETURNS void LANGUAGE sql '
            f'AS $$ INSERT INTO {home}.countries VALUES (2) $$'
        )
        ear_of(app).close()
        with app.request_scope(one) as scope:
            scope.session().execute(text('SELECT add() FROM pg_class LIMIT 1'))
            scope.session().commit()
        assert [reads(app, schema, 'countries') for schema in (one, two)] == [2, 2]
