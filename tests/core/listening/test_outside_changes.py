"""Changes from outside: heard, evicted, and never lost while nobody listens."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from select import select
from typing import Any

import psycopg
import pytest
from sqlalchemy import ForeignKey, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.core.listening import LOCK, Listening, OutsideChanges
from onegov_ormcache.database.postgres import Postgres
from onegov_ormcache.errors import ConfigurationError
from onegov_ormcache.tags.snapshot import PROPERTY_TAG
from tests.support.applications import Applications, change, value
from tests.support.counting import Runs
from tests.support.models import Document, Group, User
from tests.support.outside import install, outside, until
from tests.support.servers import RedisServer

ROOT = Path(__file__).parent.parent.parent

#: Seconds within which a change from outside is evicted while somebody listens.
PROMISED = 1.0

#: Seconds after which another listener must have taken over, or the same one again.
TAKEN_OVER = 5.0

Program = psycopg.Connection[Any]


class Town(OrmCacheApp):
    """A property by table, two more, and one by a function."""

    runs = Runs()

    @orm_cached(policy='on-table-change:users')
    def names(self) -> list[str]:
        self.runs('names')
        return [name for (name,) in self.session().query(User.name).order_by(User.id)]

    @orm_cached(policy=Group)
    def groups(self) -> int:
        self.runs('groups')
        return self.session().query(Group).count()

    @orm_cached(policy=Document)
    def titles(self) -> list[str]:
        return [title for (title,) in self.session().query(Document.title)]

    @orm_cached(policy=lambda obj: isinstance(obj, User))
    def count(self) -> int:
        return self.session().query(User).count()


@pytest.fixture
def apps(on_servers: Applications, tenant: str, postgres_dsn: str) -> Applications:
    """Makes applications; the tenant has a user with a document, and triggers."""
    app = on_servers.start(Town)
    change(app, tenant, User(id=1, name='Ada', documents=[Document(id=1, title='Plan')]))
    app.close_orm_cache()
    install(postgres_dsn, tenant)
    return on_servers


@pytest.fixture
def program(apps: Applications, postgres_dsn: str, tenant: str) -> Iterator[Program]:
    """Another program on the tenant's schema."""
    with outside(postgres_dsn, tenant) as connection:
        yield connection


@pytest.fixture
def app(apps: Applications) -> Town:
    """An app that listens already."""
    return listening(apps.start(Town, listen=True))


def ear_of(app: Town) -> OutsideChanges:
    outside_changes = app.orm_cache.outside
    assert outside_changes is not None
    return outside_changes


def listening(app: Town) -> Town:
    until(lambda: ear_of(app).is_active, TAKEN_OVER)
    return app


def reads(app: Town, schema: str, name: str) -> Any:
    return value(app, schema, lambda app: getattr(app, name))


def becomes(
    app: Town, schema: str, name: str, expected: object, seconds: float = PROMISED
) -> float:
    return until(lambda: reads(app, schema, name) == expected, seconds)


def active_listeners(program: Program, namespace: str) -> list[int]:
    """The processes of the server that hold the lock of the active listener."""
    query = """
        SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database
        WHERE locktype = 'advisory' AND granted AND datname = current_database()
        AND classid = %s AND objid = hashtext(%s)::bit(32)::bigint
    """
    return [pid for (pid,) in program.execute(query, (LOCK, namespace)).fetchall()]


# what is evicted


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
    """Whatever another program commits, the next second's requests see."""
    settings = {} if redis else {'redis_url': None}
    app = listening(apps.start(Town, listen=True, **settings))
    assert reads(app, tenant, name) != expected
    program.execute(statement)
    becomes(app, tenant, name, expected)


def test_changes_are_stale_without_listener(
    apps: Applications, program: Program, tenant: str
) -> None:
    """The test above shows something: without the setting nothing is evicted."""
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
    """A policy that is a function of code that nobody here has is evicted by any change."""
    store, stranger = app.orm_cache.tags, f'{PROPERTY_TAG}stranger'
    store.register(tenant, {stranger})
    before = store.snapshot(tenant).version(stranger)
    program.execute("INSERT INTO groups (id, name) VALUES (1, 'Staff')")
    until(lambda: store.snapshot(tenant).version(stranger) != before, PROMISED)


def test_new_triggers_begin_with_an_eviction(
    on_servers: Applications, tenant: str, postgres_dsn: str
) -> None:
    """What was changed before a tenant had triggers is seen as soon as it has them."""
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
    """A notification that the driver has read already does not wait for the next look."""
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
    """What no trigger has said harms nobody."""
    assert reads(app, tenant, 'names') == ['Ada']
    program.execute("SELECT pg_notify('orm_cache', 'Hello: world'), pg_notify('orm_cache', '')")
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(app, tenant, 'names', ['Grace'])
    assert sum('Somebody notified' in message for message in caplog.messages) == 2


# tables that tenants share


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


# while nobody listens


def test_start_sees_what_nobody_heard(apps: Applications, program: Program, tenant: str) -> None:
    """What was changed while no application listened is seen when one starts."""
    app = apps.start(Town)
    assert reads(app, tenant, 'names') == ['Ada']
    program.execute("UPDATE users SET name = 'Grace'")
    assert reads(app, tenant, 'names') == ['Ada']
    listening(apps.start(Town, listen=True))
    assert reads(app, tenant, 'names') == ['Grace']


def test_gap_after_a_lost_connection(
    app: Town,
    program: Program,
    tenant: str,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is changed while the connection is lost is seen when there is one again."""
    assert reads(app, tenant, 'names') == ['Ada']
    own_connection = Postgres.own_connection
    attempts = []

    def refuse(database: Postgres, url: str | None = None) -> Any:
        attempts.append(url)
        raise ConnectionRefusedError('not yet')

    monkeypatch.setattr(Postgres, 'own_connection', refuse)
    (pid,) = active_listeners(program, namespace)
    program.execute('SELECT pg_terminate_backend(%s)', [pid])
    until(lambda: len(attempts) >= 2, TAKEN_OVER)
    program.execute("UPDATE users SET name = 'Grace'")
    assert reads(app, tenant, 'names') == ['Ada']
    monkeypatch.setattr(Postgres, 'own_connection', own_connection)
    becomes(app, tenant, 'names', ['Grace'], TAKEN_OVER)
    assert 'Changes from outside are not heard; trying again in 0.1 s' in caplog.messages
    assert 'not yet' in caplog.text


def test_gap_after_an_outage_of_redis(
    on_servers: Applications,
    tenant: str,
    postgres_dsn: str,
    own_redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What could not be published is made up for when the tag store answers again."""
    settings = {'redis_url': own_redis.url, 'redis_timeout': 0.1}
    app = listening(on_servers.start(Town, listen=True, **settings))
    change(app, tenant, User(id=1, name='Ada'))
    install(postgres_dsn, tenant)
    with outside(postgres_dsn, tenant) as program:
        # the notification of the installation is worked off when this is seen
        program.execute("UPDATE users SET name = 'Alan'")
        becomes(app, tenant, 'names', ['Alan'])
        own_redis.pause()
        program.execute("UPDATE users SET name = 'Grace'")
        until(lambda: 'StoreUnreachable' in caplog.text, TAKEN_OVER)
        own_redis.resume()
    becomes(app, tenant, 'names', ['Grace'], TAKEN_OVER)


def test_an_error_ends_nothing(
    app: Town,
    program: Program,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of any kind is logged, and the thread goes on."""
    assert reads(app, tenant, 'names') == ['Ada']
    with monkeypatch.context() as patched:
        patched.setattr(app.orm_cache.tags, 'publish', lambda *_: 1 / 0)
        program.execute("UPDATE users SET name = 'Grace'")
        until(lambda: 'ZeroDivisionError' in caplog.text, TAKEN_OVER)
    becomes(app, tenant, 'names', ['Grace'], TAKEN_OVER)
    assert {record.levelno for record in caplog.records if record.exc_info} == {logging.WARNING}


# one of several


def test_one_of_several_is_active(
    app: Town, apps: Applications, program: Program, tenant: str, namespace: str
) -> None:
    """Of several listeners one publishes; when it ends, another sees what comes then."""
    other = apps.again(type(app))
    assert reads(other, tenant, 'names') == ['Ada']
    assert len(active_listeners(program, namespace)) == 1
    assert not ear_of(other).is_active
    app.close_orm_cache()
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(other, tenant, 'names', ['Grace'])
    assert ear_of(other).is_active


def test_takeover_when_the_connection_is_ended(
    app: Town, apps: Applications, program: Program, tenant: str, namespace: str
) -> None:
    """When the active listener's connection is ended, one is active again soon."""
    other = apps.again(type(app))
    assert reads(other, tenant, 'names') == ['Ada']
    (before,) = active_listeners(program, namespace)
    program.execute('SELECT pg_terminate_backend(%s)', [before])
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(other, tenant, 'names', ['Grace'])
    (after,) = active_listeners(program, namespace)
    assert after != before
    assert ear_of(app).is_active != ear_of(other).is_active


def test_namespaces_listen_apart(app: Town, apps: Applications, program: Program) -> None:
    """Applications that share no tag store do not wait for each other."""
    listening(apps.start(Town, listen=True, namespace='another'))
    assert ear_of(app).is_active


SCRIPT = """
import os, sys
from tests.core.test_listening import Town, ear_of, listening, until
from tests.support.models import Base

settings = {'base': Base, 'listen': True, **eval(sys.argv[1])}
Town.setting_section(section='orm_cache')(lambda: settings)
app = Town()
app.setup_orm_cache()
listening(app)
if sys.argv[2] == 'fork' and os.fork() == 0:
    assert not ear_of(app).is_active
    until(lambda: ear_of(app).is_active, 60)
    print('child', flush=True)
else:
    print('parent', flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(settings: dict[str, Any], how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that listens, and is the active one."""
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, repr(settings), how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == 'parent\n'
        yield process


def test_takeover_when_the_process_is_killed(
    apps: Applications, program: Program, tenant: str
) -> None:
    """When the process that listens is killed, the next one sees what comes then."""
    with another_process(apps.backend.settings, 'alone') as process:
        app = apps.start(Town, listen=True)
        assert reads(app, tenant, 'names') == ['Ada']
        assert not ear_of(app).is_active
        process.kill()
        program.execute("UPDATE users SET name = 'Grace'")
        becomes(app, tenant, 'names', ['Grace'])


def test_forked_process_listens_itself(apps: Applications, program: Program, tenant: str) -> None:
    """A fork has a listener of its own, which takes over when the parent is killed: it does
    not keep the parent's connection open."""
    with another_process(apps.backend.settings, 'fork') as process:
        app = apps.start(Town)
        assert reads(app, tenant, 'names') == ['Ada']
        process.kill()
        assert process.stdout is not None
        assert process.stdout.readline() == 'child\n'
        program.execute("UPDATE users SET name = 'Grace'")
        becomes(app, tenant, 'names', ['Grace'])


def test_fork_leaves_the_parents_connection_alone(
    app: Town, program: Program, tenant: str, namespace: str
) -> None:
    """The parent hears on while a fork lives, and after it has ended."""
    assert reads(app, tenant, 'names') == ['Ada']
    before = active_listeners(program, namespace)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        ear_of(app).close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(app, tenant, 'names', ['Grace'])
    assert active_listeners(program, namespace) == before


# the end


def listeners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if 'outside' in thread.name]


def test_close_ends_thread_and_connection(app: Town, program: Program, namespace: str) -> None:
    """After the close there is no thread, no connection and no lock; it may start again."""
    assert len(listeners()) == 1
    app.close_orm_cache()
    assert listeners() == []
    until(lambda: not active_listeners(program, namespace), PROMISED)
    app.setup_orm_cache()
    listening(app)
    assert len(listeners()) == 1


def test_close_while_it_can_not_connect(
    apps: Applications, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener that waits for its next attempt does not hold up the end."""
    monkeypatch.setattr(Postgres, 'own_connection', lambda *_: 1 / 0)
    monkeypatch.setattr('onegov_ormcache.core.listening.BACKOFF', (60.0, 60.0))
    app = apps.start(Town, listen=True)
    until(lambda: 'ZeroDivisionError' in caplog.text, TAKEN_OVER)
    app.close_orm_cache()
    assert listeners() == []


def test_nobody_listens_by_default(apps: Applications) -> None:
    """Without the setting there is neither thread nor connection."""
    app = apps.start(Town)
    assert app.orm_cache.outside is None
    assert listeners() == []


def test_listen_dsn(
    apps: Applications, program: Program, tenant: str, postgres_dsn: str
) -> None:
    """The listener may have a way to the database of its own."""
    separator = '&' if '?' in postgres_dsn else '?'
    listen_dsn = f'{postgres_dsn}{separator}application_name=the_listener'
    app = listening(apps.start(Town, listen=True, listen_dsn=listen_dsn))
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the_listener'"
    assert program.execute(query).fetchone() == (1,)
    assert reads(app, tenant, 'names') == ['Ada']
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(app, tenant, 'names', ['Grace'])


def test_listening_needs_postgresql(embedded: Applications) -> None:
    """On SQLite, where there are no notifications, the setting is refused."""
    with pytest.raises(ConfigurationError, match=r'listen is on, and dsn is .sqlite:.*psycopg'):
        embedded.start(Town, listen=True)
    assert listeners() == []
