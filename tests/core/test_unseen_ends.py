"""A transaction that ends behind the package is noticed, and what it changed is not stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.errors import OrmCacheError, TextualControlError
from tests.support.applications import Applications, change, committed, value
from tests.support.models import Group, User

RENAMED = "UPDATE users SET name = 'new'"


class App(OrmCacheApp):
    """Has the users' names, by a named policy and by an automatic one."""

    @orm_cached(policy='on-table-change:users')
    def named(self) -> Any:
        return self.session().scalars(text('SELECT name FROM users')).all()

    @orm_cached(policy='auto')
    def automatic(self) -> Any:
        return [name for (name,) in self.session().query(User.name)]


def read(app: OrmCacheApp, tenant: str) -> list[Any]:
    """Return both values."""
    found: list[Any] = value(app, tenant, lambda app: [app.named, app.automatic])
    return found


def in_database(app: OrmCacheApp, tenant: str) -> list[Any]:
    """Return what the values should be."""
    with app.request_scope(tenant) as scope:
        names = [name for (name,) in scope.session().query(User.name)]
        return [names, names]


def driver(session: Session) -> Any:
    """Return the driver's connection."""
    return session.connection().connection.dbapi_connection


TEXTS = {
    'commit': f'{RENAMED}; COMMIT',
    'select': f'{RENAMED}; SELECT 1; COMMIT; SELECT 2',
    'commit and begin': f'{RENAMED}; COMMIT; BEGIN',
    'chain': f'{RENAMED}; COMMIT AND CHAIN',
    'rollback': f'{RENAMED}; ROLLBACK',
    'rollback and begin': f'{RENAMED}; ROLLBACK; BEGIN',
    'rollback and change': f'SELECT 1; ROLLBACK; {RENAMED}',
    'error': f'{RENAMED}; COMMIT; SELECT 1 / 0',
    'do': f'DO $$ BEGIN {RENAMED.replace(chr(39), chr(39) * 1)}; END $$; COMMIT',
}

#: The ways in which a text is executed.
WAYS: dict[str, Callable[[Session, str], object]] = {
    'text': lambda session, sql: session.execute(text(sql)),
    'driver_sql': lambda session, sql: session.connection().exec_driver_sql(sql),
    'cursor': lambda session, sql: driver(session).cursor().execute(sql),
    'connection': lambda session, sql: driver(session).execute(sql),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('rest', ['', '; SELECT 1 / 0'], ids=['alone', 'error'])
def test_text_that_commits_and_begins_before_a_rollback(
    on_servers: Applications, tenant: str, way: str, rest: str
) -> None:
    """What such a text has committed is seen, though the session rolls back afterwards."""
    app = on_servers.start(App)
    change(app, tenant, User(id=1, name='old'))
    assert read(app, tenant) == [['old'], ['old']]
    with app.request_scope(tenant) as scope:
        try:
            WAYS[way](scope.session(), f'{RENAMED}; COMMIT; BEGIN{rest}')
        except (OrmCacheError, DBAPIError, psycopg.Error):
            pass
        scope.session().rollback()
    assert read(app, tenant) == [['new'], ['new']]


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('sql', TEXTS)
@pytest.mark.parametrize('before', [True, False])
def test_texts(
    on_servers: Applications, tenant: str, way: str, sql: str, before: bool
) -> None:
    """A text that ends the transaction is an error, and nothing that it changed is stale."""
    app = on_servers.start(App)
    elsewhere = on_servers.elsewhere(app)
    change(app, tenant, User(id=1, name='old'))
    assert read(app, tenant) == read(elsewhere, tenant) == [['old'], ['old']]
    errors = (OrmCacheError, DBAPIError, psycopg.Error)
    with pytest.raises(errors) as caught, committed(app, tenant) as scope:
        if before:
            scope.session().add(Group(name='g'))
            scope.session().flush()
        WAYS[way](scope.session(), TEXTS[sql])
    # some texts have an error of their own after the end
    assert 'text' in str(caught.value) or sql in ('error', 'rollback and change')
    for _ in range(2):
        for each in (app, elsewhere):
            assert read(each, tenant) == in_database(app, tenant)


@pytest.mark.parametrize('method', ['commit', 'rollback'])
def test_driver_ends_the_transaction(
    on_servers: Applications, tenant: str, method: str
) -> None:
    """The driver's own commit() and rollback() are refused, and the transaction goes on."""
    app = on_servers.start(App)
    change(app, tenant, User(id=1, name='old'))
    assert read(app, tenant) == [['old'], ['old']]
    with committed(app, tenant) as scope:
        scope.session().execute(text(RENAMED))
        with pytest.raises(TextualControlError, match=method):
            getattr(driver(scope.session()), method)()
    assert read(app, tenant) == [['new'], ['new']]


def test_driver_transaction(on_servers: Applications, tenant: str) -> None:
    """A block of the driver is a savepoint, whose rollback leaves no stale value."""
    app = on_servers.start(App)
    change(app, tenant, User(id=1, name='old'))

    class Stop(Exception):
        pass

    with committed(app, tenant) as scope:
        with pytest.raises(Stop), driver(scope.session()).transaction():
            driver(scope.session()).execute(RENAMED)
            assert [app.named, app.automatic] == [['new'], ['new']]
            raise Stop
        assert [app.named, app.automatic] == [['old'], ['old']]
    assert read(app, tenant) == [['old'], ['old']]


@pytest.mark.parametrize('moment', ['before_commit', 'commit'])
@pytest.mark.parametrize('way', ['core', 'text', 'driver', 'flush'])
def test_statements_before_commit(
    applications: Applications, tenant: str, moment: str, way: str
) -> None:
    """The statements of other listeners, up to the last one before COMMIT, count."""
    app = applications.start(App)
    change(app, tenant, User(id=1, name='old'))
    assert read(app, tenant) == [['old'], ['old']]
    statement = User.__table__.update().values(name='new')

    def on_session(session: Session) -> None:
        if way == 'flush':
            session.get_one(User, 1).name = 'new'
        else:
            on_connection(session.connection())

    def on_connection(connection: Any) -> None:
        if way == 'core':
            connection.execute(statement)
        elif way == 'text':
            connection.exec_driver_sql(RENAMED)
        else:
            connection.connection.dbapi_connection.cursor().execute(RENAMED)

    if (moment, way) == ('commit', 'flush'):
        pytest.skip('an event of the engine has no session')
    with app.request_scope(tenant) as scope:
        session = scope.session()
        session.query(Group).all()
        if moment == 'commit':
            target, listener = session.connection().engine, on_connection
        else:
            target, listener = session, on_session  # type: ignore[assignment]
        event.listen(target, moment, listener)
        try:
            session.commit()
        finally:
            event.remove(target, moment, listener)
    assert read(app, tenant) == [['new'], ['new']]


@pytest.mark.parametrize('sql', ['COMMIT', 'ROLLBACK', 'BEGIN', 'SAVEPOINT a; COMMIT'])
def test_texts_on_sqlite(embedded: Applications, tenant: str, sql: str) -> None:
    """SQLite refuses to end a transaction by a text or by the driver."""
    app = embedded.start(App)
    change(app, tenant, User(id=1, name='old'))
    assert read(app, tenant) == [['old'], ['old']]
    with app.request_scope(tenant) as scope:
        scope.session().execute(text(RENAMED))
        dbapi = driver(scope.session())
        for each in sql.split('; '):
            if each.startswith('SAVEPOINT'):
                dbapi.execute(each)
                continue
            with pytest.raises(Exception, match=r'authorized|ends the transaction'):
                dbapi.execute(each)
            with pytest.raises((OrmCacheError, DBAPIError)):
                scope.session().execute(text(f'/* a */ {each}'))
            break
    assert read(app, tenant) == in_database(app, tenant) == [['old'], ['old']]
