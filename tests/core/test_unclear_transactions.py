"""A transaction with unclear statements keeps the promise where other parts meet it: savepoints,
creators that fail, definitions that are rolled back, other tenants, settings that stray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from onegov_ormcache.errors import TextualControlError
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import Document, Group, User


class App(OrmCacheApp):
    """Properties whose creators read in different ways."""

    runs = Runs()
    fails = True

    @orm_cached(policy='auto')
    def names(self) -> Any:
        self.runs('names')
        return list(self.session().scalars(select(User.name).order_by(User.id)))

    @orm_cached(policy='auto')
    def inner(self) -> Any:
        self.session().scalar(text('SELECT count(*) FROM groups'))
        raise LookupError

    @request_cached
    def inner_of_request(self) -> Any:
        self.session().scalar(text('SELECT count(*) FROM groups'))
        raise LookupError

    @orm_cached(policy='auto')
    def outer(self) -> Any:
        for name in ('inner', 'inner_of_request'):
            try:
                getattr(self, name)
            except LookupError:
                pass
        self.runs('outer')
        return self.session().scalar(select(func.count()).select_from(User))

    @orm_cached(policy='auto')
    def ends_with_a_cursor(self) -> Any:
        self.runs('cursor')
        count = self.session().scalar(select(func.count()).select_from(User))
        cursor = self.session().connection().connection.cursor()
        cursor.execute('SELECT count(*) FROM groups')
        return count, cursor.fetchone()[0]

    @orm_cached(policy='auto')
    def number(self) -> Any:
        self.runs('number')
        return self.session().scalar(select(func.random()).select_from(User))


@pytest.fixture
def app(applications: Applications, tenant: str) -> App:
    app = applications.start(App)
    app.runs = Runs()
    change(app, tenant, User(id=1, name='old'), Group(id=1, name='g'))
    return app


@pytest.fixture
def served(on_servers: Applications, tenant: str) -> App:
    app = on_servers.start(App)
    app.runs = Runs()
    change(app, tenant, User(id=1, name='old'), Group(id=1, name='g'))
    return app


def names(app: App, tenant: str) -> Any:
    return value(app, tenant, lambda app: app.names)


def test_read_after_a_failed_statement(served: App, on_servers: Applications, tenant: str) -> None:
    """An own change is not forgotten because the database could not be asked in between."""
    other = on_servers.again(type(served))
    with served.request_scope(tenant) as scope:
        session = scope.session()
        session.execute(text("UPDATE users SET name = 'own'"))
        savepoint = session.begin_nested()
        for fail in (lambda: session.execute(text('SELECT 1 / 0')), lambda: served.names):
            with pytest.raises(DBAPIError):
                fail()
        savepoint.rollback()
        assert served.names == ['own']
    assert names(other, tenant) == ['old']
    assert names(served, tenant) == ['old']


def test_questions_are_not_reads_of_the_creator(
    served: App, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The package's own questions about changed functions are not blamed on a creator."""
    with served.request_scope(tenant) as scope:
        scope.session().execute(text("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'"))
        assert served.names == ['old']
    assert "a table of PostgreSQL's own" not in caplog.text


def test_creator_that_fails_within_another(app: App, tenant: str) -> None:
    """What a creator has read before it failed is a dependency of the one that called it."""
    for _ in range(2):
        value(app, tenant, lambda app: app.outer)
    assert app.runs.count('outer') == 1
    change(app, tenant, Group(id=2, name='other'))
    value(app, tenant, lambda app: app.outer)
    assert app.runs.count('outer') == 2


def test_cursor_at_the_end_of_a_creator(app: App, tenant: str) -> None:
    """What a cursor of the driver reads last is a dependency, too."""
    for _ in range(2):
        assert value(app, tenant, lambda app: app.ends_with_a_cursor) == (1, 1)
    assert app.runs.count('cursor') == 1
    change(app, tenant, Group(id=2, name='other'))
    assert value(app, tenant, lambda app: app.ends_with_a_cursor) == (1, 2)


def test_savepoint_of_a_cursor(app: App, tenant: str) -> None:
    """A cursor of the driver may roll back to a savepoint; values from before it are dropped."""
    with app.request_scope(tenant) as scope:
        cursor = scope.session().connection().connection.cursor()
        cursor.execute('SAVEPOINT here')
        cursor.execute("UPDATE users SET name = 'own'")
        assert app.names == ['own']
        cursor.execute('ROLLBACK TO SAVEPOINT here')
        assert app.names == ['old']


def test_tenant_that_the_process_has_never_used(
    served: App, on_servers: Applications, tenant: str, make_tenant: Callable[[str], str]
) -> None:
    """A change of another tenant's table evicts there, also if this process does not know it."""
    writer, second = on_servers.again(type(served)), make_tenant('second')
    assert names(served, tenant) == ['old']
    with committed(writer, second) as scope:
        scope.session().execute(text(f"UPDATE {tenant}.users SET name = 'new'"))
    assert names(served, tenant) == ['new']


def test_table_renamed_in_vain(served: App, on_servers: Applications, tenant: str) -> None:
    """A process does not remember the names that a transaction gave which was rolled back."""
    other = on_servers.again(type(served))
    assert names(other, tenant) == ['old']
    with served.request_scope(tenant) as scope:
        scope.session().execute(text('ALTER TABLE users RENAME TO people'))
        scope.ask()
    with committed(served, tenant) as scope:
        scope.session().execute(text("UPDATE users SET name = 'new'"))
    assert names(other, tenant) == ['new']


def test_trigger_dropped_in_vain(served: App, on_servers: Applications, tenant: str) -> None:
    """Nor the definitions of tables, as such a transaction saw them."""
    other = on_servers.again(type(served))
    with committed(served, tenant) as scope:
        scope.session().connection().exec_driver_sql(
            'CREATE FUNCTION renamed() RETURNS trigger LANGUAGE plpgsql AS '
            "$$ BEGIN UPDATE users SET name = 'new'; RETURN NULL; END $$;"
            'CREATE TRIGGER renamed AFTER INSERT ON documents EXECUTE FUNCTION renamed()'
        )
    assert names(other, tenant) == ['old']
    with served.request_scope(tenant) as scope:
        scope.session().execute(text('DROP TRIGGER renamed ON documents'))
        scope.session().query(Document).all()
    change(served, tenant, Document(kind='document', title='a'))
    assert names(other, tenant) == ['new']


def test_search_path_of_a_savepoint(
    served: App, tenant: str, make_tenant: Callable[[str], str]
) -> None:
    """A value read under another search path is not kept when the path is the first again."""
    second = make_tenant('second')
    change(served, second, User(id=1, name='foreign'))
    with served.request_scope(tenant) as scope:
        savepoint = scope.session().begin_nested()
        scope.session().execute(text(f'SET LOCAL search_path TO {second}'))
        assert served.names == ['foreign']
        savepoint.rollback()
        assert served.names == ['old']
    assert names(served, tenant) == ['old']


def test_volatile_function_after_a_redefinition(served: App, tenant: str) -> None:
    """A random value is not stored either in a transaction that has changed definitions."""
    with committed(served, tenant) as scope:
        scope.session().execute(text('ALTER TABLE groups ADD COLUMN note text'))
        served.number
    for _ in range(2):
        value(served, tenant, lambda app: app.number)
    assert served.runs.count('number') == 3


@pytest.mark.parametrize('tag', ['#code', '#catalog'])
def test_doubt_of_definitions_that_is_left(served: App, tenant: str, tag: str) -> None:
    """A doubt of changed definitions whose writer is gone is settled by the next reader."""
    with served.request_scope(tenant) as scope:
        scope.session().connection()
    served.orm_cache.tags.doubt(tenant, 'gone', {tag}, (), '3', {}).result()
    for _ in range(5):
        names(served, tenant)
    assert served.runs.count('names') < 5


def test_definitions_change_once(served: App, on_servers: Applications, tenant: str) -> None:
    """A connection that has made a function evicts for it once, and not with later texts."""
    other = on_servers.again(type(served))
    with committed(served, tenant) as scope:
        scope.session().execute(
            text("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        )
    names(other, tenant)
    with committed(served, tenant) as scope:
        scope.session().execute(text("UPDATE groups SET name = 'x'"))
    with other.recording() as events:
        names(other, tenant)
    assert events[0].tier != 'creator'


def test_first_two_phase_transaction_of_a_process(
    on_servers: Applications, tenant: str, served: App
) -> None:
    """A process may begin with a two-phase transaction under SERIALIZABLE."""
    options = {'isolation_level': 'SERIALIZABLE'}
    other = on_servers.start(App, engine_options=options)
    with other.request_scope(tenant):
        with other.session_manager.engine.connect() as connection:
            transaction = connection.begin_twophase()
            assert other.names == ['old']
            connection.execute(update(Group).values(name='x'))
            transaction.prepare()
            transaction.commit()


def test_text_that_commits_elsewhere(
    served: App, on_servers: Applications, tenant: str, make_tenant: Callable[[str], str]
) -> None:
    """A text that changes an unknown tenant's table and commits evicts there, too."""
    writer, second = on_servers.again(type(served)), make_tenant('second')
    assert names(served, tenant) == ['old']
    with pytest.raises(TextualControlError), writer.request_scope(second) as scope:
        scope.session().connection().exec_driver_sql(
            f"UPDATE {tenant}.users SET name = 'new'; COMMIT"
        )
    assert names(served, tenant) == ['new']
