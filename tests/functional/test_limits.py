"""What the package does not see, as docs/limits.rst says it.

Each test shows that a limit is there, and that what the page says to do helps. A test that fails
because the value is right means that the limit has gone: take it from the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from contextvars import ContextVar
from typing import Any

import morepath
import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached, request_cached, rows
from onegov_ormcache.database import catalog
from tests.support.applications import Applications, change, committed, value
from tests.support.models import Group, User
from tests.support.outside import Ear, install, outside
from tests.support.servers import RedisServer

GREETING: ContextVar[str] = ContextVar('GREETING', default='Hello')


class Town(OrmCacheApp):
    """A property that is right, and one for each way to declare one that is wrong."""

    word = 'users'

    @orm_cached(policy='on-table-change:users')
    def names(self) -> Any:
        return list(self.session().scalars(select(User.name).order_by(User.name)))

    @orm_cached(policy=Group)
    def groups(self) -> int:
        return int(self.session().query(Group).count())

    @orm_cached(policy='on-table-change:groups')
    def other_table(self) -> Any:
        return list(self.session().scalars(select(User.name)))

    @orm_cached(policy=lambda obj: isinstance(obj, User) and obj.name == 'Bob')
    def wrong_function(self) -> Any:
        return list(self.session().scalars(select(User.name).where(User.name != 'Bob')))

    @orm_cached(policy=rows(User.id))
    def name_and_neighbour(self, id: int) -> Any:
        query = select(User.name).where(User.id.in_([id, id + 1])).order_by(User.id)
        return list(self.session().scalars(query))

    @orm_cached(policy=User)
    def greeting(self) -> str:
        return f'{GREETING.get()}, {self.word}'

    @orm_cached(policy=User, vary=lambda app: GREETING.get())
    def varied_greeting(self) -> str:
        return GREETING.get()

    @request_cached
    def first(self) -> Any:
        return self.session().scalars(select(User.name).order_by(User.name)).first()


@pytest.fixture
def towns(on_servers: Applications, tenant: str) -> tuple[Town, Town]:
    """Two apps that stand for two processes, on a tenant with a user."""
    app = on_servers.start(Town)
    change(app, tenant, User(name='Ada'))
    return app, on_servers.again(type(app))


def names(app: Any) -> Any:
    return app.names


# changes that go around the package


INSERT = "INSERT INTO users (name) VALUES ('Bob')"


def by_another_program(app: Any, tenant: str) -> None:
    with outside(app.session_manager.dsn, tenant) as program:
        program.execute(INSERT)


def by_an_engine_of_its_own(app: Any, tenant: str) -> None:
    engine = create_engine(app.session_manager.dsn, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(f'SET LOCAL search_path = "{tenant}"'))
        connection.execute(text(INSERT))


def below_the_driver(app: Any, tenant: str) -> None:
    with committed(app, tenant) as scope:
        driver: Any = scope.session().connection().connection.dbapi_connection
        driver.pgconn.exec_(INSERT.encode())


WRITERS = [by_another_program, by_an_engine_of_its_own, below_the_driver]


@pytest.mark.parametrize('write', WRITERS, ids=lambda write: write.__name__)
def test_change_around_the_package(
    towns: tuple[Town, Town], tenant: str, write: Callable[[Any, str], None]
) -> None:
    """A change that no session or connection of the package makes is not seen until it is
    marked."""
    app, other = towns
    assert value(app, tenant, names) == value(other, tenant, names) == ['Ada']
    write(app, tenant)
    assert value(app, tenant, names) == value(other, tenant, names) == ['Ada']
    with committed(app, tenant):
        app.mark_changed('users')
    assert value(app, tenant, names) == value(other, tenant, names) == ['Ada', 'Bob']


@pytest.mark.parametrize('differs', ['namespace', 'redis_url'])
def test_writer_with_other_versions(
    on_servers: Applications, tenant: str, own_redis: RedisServer, differs: str
) -> None:
    """A program that uses the package with another namespace or Redis changes versions that the
    application does not look at."""
    found = {'namespace': f'{tenant}-2', 'redis_url': own_redis.url}
    app = on_servers.start(Town)
    script = on_servers.start(Town, **{differs: found[differs]})
    assert value(app, tenant, names) == []
    change(script, tenant, User(name='Ada'))
    assert (value(app, tenant, names), value(script, tenant, names)) == ([], ['Ada'])
    same = on_servers.again(type(app))
    change(same, tenant, User(name='Bob'))
    assert value(app, tenant, names) == ['Ada', 'Bob']


SILENT = {
    'a session that sets orm_cache.own': (
        "SELECT set_config('orm_cache.own', ',{tenant},', false)",
        'UPDATE users SET name = name',
    ),
    'a definition': ('ALTER TABLE users ADD COLUMN more int',),
    'a dropped table': ('DROP TABLE letters CASCADE',),
    'a new table': ('CREATE TABLE fresh (id int)', 'INSERT INTO fresh VALUES (1)'),
    'a materialized view': ('REFRESH MATERIALIZED VIEW kept',),
}


@pytest.mark.parametrize('what', SILENT)
def test_what_triggers_do_not_report(towns: tuple[Town, Town], tenant: str, what: str) -> None:
    """With triggers, some changes by other programs are not reported either."""
    app, _ = towns
    dsn = app.session_manager.dsn
    install(dsn, tenant)
    with closing(Ear(dsn, tenant)) as ear, outside(dsn, tenant) as program:
        program.execute('CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM users')
        program.execute('UPDATE users SET name = name')
        assert ear.heard() == ['users']
        for statement in SILENT[what]:
            program.execute(statement.format(tenant=tenant))
        assert ear.heard() == []


def test_definition_that_another_program_has_changed(
    towns: tuple[Town, Town], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a trigger changes that another program has made is missed as long as a process
    remembers the definitions of before."""
    app, _ = towns
    monkeypatch.setattr(catalog, 'LIFETIME', 1000.0)
    change(app, tenant, User(name='Bob'))
    assert value(app, tenant, lambda app: app.groups) == 0
    with outside(app.session_manager.dsn, tenant) as program:
        program.execute("""
            CREATE FUNCTION found() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO groups (name) VALUES (NEW.name); RETURN NEW; END $$;
            CREATE TRIGGER founds AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION found()
        """)
    change(app, tenant, User(name='Cyd'))
    assert value(app, tenant, lambda app: app.groups) == 0
    with committed(app, tenant):
        app.mark_changed('users', 'groups')
    assert value(app, tenant, lambda app: app.groups) == 1


# policies that are wrong


def test_policy_that_names_another_table(
    towns: tuple[Town, Town], tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A change of a table that the policy does not name does not evict; the audit names it."""
    app, _ = towns
    assert value(app, tenant, lambda app: app.other_table) == ['Ada']
    assert 'users' in caplog.text
    change(app, tenant, User(name='Bob'))
    assert value(app, tenant, lambda app: app.other_table) == ['Ada']


def test_function_that_is_wrong(
    towns: tuple[Town, Town], tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A function policy that returns False for a change that counts is believed, not audited."""
    app, _ = towns
    assert value(app, tenant, lambda app: app.wrong_function) == ['Ada']
    change(app, tenant, User(name='Cyd'))
    assert value(app, tenant, lambda app: app.wrong_function) == ['Ada']
    assert not caplog.text


def test_rows_that_the_policy_does_not_name(
    towns: tuple[Town, Town], tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy for rows is believed about the rows: what else the creator reads of the table is
    not audited."""
    app, _ = towns

    def read(app: Any) -> Any:
        return app.name_and_neighbour(1)

    assert value(app, tenant, read) == ['Ada']
    change(app, tenant, User(id=2, name='Bob'))
    assert value(app, tenant, read) == ['Ada']
    assert not caplog.text
    with committed(app, tenant) as scope:
        scope.session().get_one(User, 1).name = 'Eve'
    assert value(app, tenant, read) == ['Eve', 'Bob']


# values that depend on more than the database


class Clocks(OrmCacheApp):
    """Reads the time of the database."""

    @orm_cached(policy='auto')
    def transaction_time(self) -> Any:
        return self.session().execute(select(func.now(), func.count(User.id))).one()[0]

    @orm_cached(policy='auto')
    def text_time(self) -> Any:
        return self.session().scalar(text('SELECT clock_timestamp() FROM users'))

    @orm_cached(policy='auto')
    def wall_time(self) -> Any:
        return self.session().execute(select(func.clock_timestamp(), User.id)).first()

    @orm_cached(policy='auto', expires=0.001)
    def short_time(self) -> Any:
        return self.session().execute(select(func.now(), User.id)).first()


@pytest.mark.parametrize(
    ('name', 'is_kept'),
    [
        ('transaction_time', True),
        ('text_time', True),
        ('wall_time', False),  # a volatile function of a compiled statement
        ('short_time', False),
    ],
)
def test_time(on_servers: Applications, tenant: str, name: str, is_kept: bool) -> None:
    """The time passes, and no table changes: a value that depends on it stays, unless it expires
    or is that of a volatile function which SQLAlchemy has rendered."""
    app = on_servers.start(Clocks)
    change(app, tenant, User(name='Ada'))

    def read(app: Any) -> Any:
        found = getattr(app, name)
        app.session().execute(text('SELECT pg_sleep(0.002)'))
        return found

    assert (value(app, tenant, read) == value(app, tenant, read)) is is_kept


def test_context(towns: tuple[Town, Town], tenant: str) -> None:
    """A value for all is what one caller's context variable and object gave; ``vary`` tells them
    apart."""
    app, _ = towns
    assert value(app, tenant, lambda app: (app.greeting, app.varied_greeting)) == (
        'Hello, users', 'Hello',
    )  # fmt: skip
    token = GREETING.set('Ciao')
    app.word = 'people'
    try:
        assert value(app, tenant, lambda app: (app.greeting, app.varied_greeting)) == (
            'Hello, users', 'Ciao',
        )  # fmt: skip
    finally:
        GREETING.reset(token)


class Request(morepath.Request):
    """A request whose property looks at a header."""


class Headers(OrmCacheApp):
    """Shows a property that depends on a header."""

    request_class = Request


@Headers.orm_cached(policy=User, target='request')
def language(request: Any) -> Any:
    return request.headers.get('Accept-Language')


class Root:
    """The model at /."""


Headers.path(path='')(Root)


@Headers.view(model=Root)
def show(self: Root, request: Any) -> str:
    return str(request.language)


def test_header_in_a_property(on_servers: Applications, tenant: str) -> None:
    """The audit does not watch headers: the first visitor's is shown to all."""
    app = on_servers.start(Headers, audit='error')
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    answers = [client.get('/', headers={'Accept-Language': each}).text for each in ('de', 'fr')]
    assert answers == ['de', 'de']


@pytest.mark.parametrize('release', ['1', '2'])
def test_code_that_has_changed(on_servers: Applications, tenant: str, release: str) -> None:
    """A value that the code of before has computed is used by that of today, unless the setting
    ``release`` tells them apart."""

    def read(app: Any) -> Any:
        return app.title

    def make(word: str, release: str) -> Any:
        class App(OrmCacheApp):
            @orm_cached(policy=User)
            def title(self) -> str:
                return word

        return on_servers.start(App, release=release)

    assert value(make('old', '1'), tenant, read) == 'old'
    assert value(make('new', release), tenant, read) == ('old' if release == '1' else 'new')


@pytest.fixture
def role(postgres_dsn: str, tenant: str) -> Iterator[str]:
    """The URL of a role that row level security holds for."""
    with outside(postgres_dsn, tenant) as administrator:
        administrator.execute(f'CREATE ROLE {tenant} LOGIN')
        administrator.execute(f'GRANT CREATE ON DATABASE postgres TO {tenant}')
        try:
            yield make_url(postgres_dsn).set(username=tenant).render_as_string(False)
        finally:
            administrator.execute(f'DROP OWNED BY {tenant}')
            administrator.execute(f'DROP ROLE {tenant}')


def test_row_level_security_by_a_setting(on_servers: Applications, tenant: str, role: str) -> None:
    """Rows that a setting of the transaction hides differ by more than the tenant: a value shows
    those of the transaction that computed it."""
    app = on_servers.start(Town, dsn=role)
    change(app, tenant, User(name='Ada'), User(name='Bob'))
    with outside(role, tenant) as program:
        program.execute("""
            ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            CREATE POLICY mine ON users USING (name = current_setting('town.user', true))
        """)

    def names_of(user: str) -> Any:
        with app.request_scope(tenant) as scope:
            scope.session().execute(select(func.set_config('town.user', user, True)))
            return list(app.names), list(scope.session().scalars(select(User.name)))

    assert names_of('Ada') == (['Ada'], ['Ada'])
    assert names_of('Bob') == (['Ada'], ['Bob'])


# values that are right for their transaction


def test_transaction_that_does_not_end(towns: tuple[Town, Town], tenant: str) -> None:
    """A value that was read stays in its transaction; a request-cached one stays in its scope."""
    app, other = towns
    with app.request_scope(tenant) as scope:
        assert (app.names, app.first) == (['Ada'], 'Ada')
        with committed(other, tenant) as changed:
            changed.session().query(User).one().name = 'Eve'
        assert (app.names, app.first) == (['Ada'], 'Ada')
        scope.session().rollback()
        assert (app.names, app.first) == (['Eve'], 'Ada')
    assert value(app, tenant, lambda app: app.first) == 'Eve'
