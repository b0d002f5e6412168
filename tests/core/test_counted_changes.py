"""Whether a transaction has changed anything is known by the rows that its statements change.

The database is asked only if these are not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import RedisCommands, SqlStatements
from tests.support.models import Group, User


class App(OrmCacheApp):
    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return list(self.session().scalars(select(User.name).order_by(User.name)))


@pytest.fixture
def app(applications: Applications, tenant: str) -> App:
    """An application with two users, whose names are cached."""
    app: App = applications.start(App)
    change(app, tenant, User(name='Ada'), User(name='Bob'))
    assert value(app, tenant, lambda app: app.names) == ['Ada', 'Bob']
    return app


def changed_by_a_select(session: Session) -> None:
    gone = delete(User).where(User.name == 'Bob').returning(User.name).cte()
    assert session.execute(select(gone.c.name)).all() == [('Bob',)]


def changed_by_a_part(session: Session) -> None:
    """The statement inserts no row, but a part of it deletes one."""
    gone = delete(User).where(User.name == 'Bob').returning(User.name).cte()
    none = select(gone.c.name).where(gone.c.name == 'nobody')
    session.execute(insert(User).from_select(['name'], none))


def fail(session: Session) -> None:
    taken = select(User.id).limit(1).scalar_subquery()
    with pytest.raises(IntegrityError), session.begin_nested():
        session.execute(insert(User).values(id=taken, name='x'))


def changed_before_a_failure(session: Session) -> None:
    session.execute(delete(User).where(User.name == 'Bob'))
    fail(session)


def changed_after_a_failure(session: Session) -> None:
    fail(session)
    session.execute(delete(User).where(User.name == 'Bob'))


def changed_with_rows_returned(session: Session) -> None:
    session.execute(delete(User).where(User.name == 'Bob').returning(User.id))


def changed_by_objects(session: Session) -> None:
    session.delete(session.scalars(select(User).where(User.name == 'Bob')).one())


CHANGES: list[Callable[[Session], None]] = [
    changed_by_a_select, changed_by_a_part, changed_before_a_failure, changed_after_a_failure,
    changed_with_rows_returned, changed_by_objects,
]  # fmt: skip


@pytest.mark.parametrize('execute', CHANGES, ids=lambda execute: execute.__name__)
def test_changes_that_nobody_counts(
    app: App, tenant: str, execute: Callable[[Session], None]
) -> None:
    """Each change evicts, whichever statement has made it."""
    is_sqlite = not app.orm_cache.observer.database.has_transaction_ids
    if is_sqlite and execute in (changed_by_a_select, changed_by_a_part):
        pytest.skip('SQLite has no statements within others that change rows')
    with committed(app, tenant) as scope:
        execute(scope.session())
    assert value(app, tenant, lambda app: app.names) == ['Ada']


def test_objects_whose_keys_are_returned(app: App, tenant: str) -> None:
    """New objects evict, although SQLite counts them late: their keys come from RETURNING."""
    change(app, tenant, *(User(name=name) for name in ('x', 'y', 'z')))
    assert value(app, tenant, lambda app: app.names) == ['Ada', 'Bob', 'x', 'y', 'z']


def test_statements_that_change_no_row(
    on_servers: Applications,
    tenant: str,
    redis_commands: Callable[[], Any],
    sql_statements: Callable[[], Any],
) -> None:
    """A transaction whose statements find no row tells nobody, and asks for nothing."""
    app = on_servers.start(App)
    change(app, tenant, User(name='Ada'))
    redis: RedisCommands
    sql: SqlStatements
    with app.request_scope(tenant) as scope:
        scope.session().connection()
        with redis_commands() as redis, sql_statements() as sql:
            scope.session().execute(update(User).where(User.name == 'nobody').values(name='x'))
            scope.session().execute(delete(User).where(User.name == 'nobody'))
            scope.session().commit()
        assert (redis.count, sql.count) == (0, 2)


@pytest.mark.parametrize('objects', [1, 100])
def test_understood_changes_ask_nothing(
    on_servers: Applications, tenant: str, sql_statements: Callable[[], Any], objects: int
) -> None:
    """Between the last change and COMMIT there is no statement; savepoints change nothing."""
    app = on_servers.start(App)
    change(app, tenant, User(name='Ada'))
    with app.request_scope(tenant) as scope:
        session = scope.session()
        session.add_all([User(name=f'u{number}') for number in range(objects)])
        with session.begin_nested():
            session.execute(update(User).values(name=User.name + '!'))
        with sql_statements() as sql:
            session.commit()
        assert sql.count == 0
    assert len(value(app, tenant, lambda app: app.names)) == objects + 1


SQLITE_TRIGGERS = {
    'instead of the row': (
        'CREATE VIEW people AS SELECT id, name FROM users',
        ('CREATE TRIGGER t INSTEAD OF INSERT ON people '
        'BEGIN INSERT INTO users (name) VALUES (new.name); END'),
    ),
    'before a row that is ignored': (
        'CREATE TABLE people (id int, name text)',
        ('CREATE TRIGGER t BEFORE INSERT ON people '
        'BEGIN INSERT INTO users (name) VALUES (new.name); SELECT RAISE(IGNORE); END'),
    ),
}

PEOPLE = Table('people', MetaData(), Column('id', Integer), Column('name', String))


@pytest.mark.parametrize('case', SQLITE_TRIGGERS)
def test_what_sqlite_does_not_count(embedded: Applications, tenant: str, case: str) -> None:
    """SQLite counts no row although a trigger has changed one."""
    app: App = embedded.start(App)
    with committed(app, tenant) as scope:
        for command in SQLITE_TRIGGERS[case]:
            scope.session().execute(text(command))
    assert value(app, tenant, lambda app: app.names) == []
    with committed(app, tenant) as scope:
        scope.session().execute(insert(PEOPLE).values(name='Eve'))
    assert value(app, tenant, lambda app: app.names) == ['Eve']


def test_a_listener_that_changes_nothing(app: App, tenant: str) -> None:
    """A statement that a listener executes within another one takes nothing from its count."""

    def execute(connection: Any, cursor: object, sql: str, *more: object) -> None:
        if sql.startswith('UPDATE'):
            connection.execute(delete(Group).where(Group.name == 'nobody'))

    with app.request_scope(tenant) as scope:
        engine = scope.session().get_bind()
        event.listen(engine, 'after_cursor_execute', execute)
        scope.session().execute(update(User).where(User.name == 'Ada').values(name='Eve'))
        scope.session().commit()
    assert value(app, tenant, lambda app: app.names) == ['Bob', 'Eve']
