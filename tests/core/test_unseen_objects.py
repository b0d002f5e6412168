"""A function policy misses no change, also where no object of the flush stands for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, text, update
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, committed, value
from tests.support.counting import Runs
from tests.support.models import Document, Group, User


def make_app(runs: Runs) -> type[OrmCacheApp]:
    """Return an app with a value that one group's changes evict, and no others."""

    class App(OrmCacheApp):
        @orm_cached(policy=lambda obj: isinstance(obj, Group) and obj.id == 1)
        def one_group(self) -> int:
            runs('one_group')
            return runs.count('one_group')

        @orm_cached(policy=lambda obj: isinstance(obj, Document) and obj.title == 'a')
        def one_document(self) -> int:
            runs('one_document')
            return runs.count('one_document')

    return App


@pytest.fixture
def app(applications: Applications, tenant: str, runs: Runs) -> OrmCacheApp:
    """An app whose values are cached, with some rows."""
    app = applications.start(make_app(runs))
    with committed(app, tenant) as scope:
        scope.session().add_all([Group(id=1, name='g'), Group(id=2, name='h')])
        scope.session().add(User(id=1, name='u', documents=[Document(id=1, title='a')]))
    return app


def read(app: OrmCacheApp, tenant: str) -> tuple[int, int]:
    """Return both values."""
    found: tuple[int, int] = value(app, tenant, lambda app: (app.one_group, app.one_document))
    return found


def make_orphan(session: Session) -> None:
    user = session.get_one(User, 1)
    user.documents = []


def delete_owner(session: Session) -> None:
    session.delete(session.get_one(User, 1))


@pytest.mark.parametrize('change', [make_orphan, delete_owner])
def test_orphans(
    app: OrmCacheApp, tenant: str, change: Callable[[Session], object]
) -> None:
    """An object that is deleted as an orphan, or with its owner, is asked about."""
    before = read(app, tenant)
    with committed(app, tenant) as scope:
        change(scope.session())
    after = read(app, tenant)
    assert after[1] > before[1]


STATEMENTS = {
    'update': lambda: update(Group).values(name='x').where(Group.id == 1),
    'table': lambda: update(Group.__table__).values(name='x'),
    'insert': lambda: insert(Group.__table__).values(id=7, name='x'),
    'delete': lambda: delete(Group).where(Group.id == 1),
    'text': lambda: text("UPDATE groups SET name = 'x'"),
}

#: The ways by which a listener executes a statement within a flush.
WAYS = {
    'session': lambda session, connection, statement: session.execute(statement),
    'connection': lambda session, connection, statement: connection.execute(statement),
    'driver': lambda session, connection, statement: connection.exec_driver_sql(
        "UPDATE groups SET name = 'x'"
    ),
    'cursor': lambda session, connection, statement: connection.connection.cursor().execute(
        "UPDATE groups SET name = 'x'"
    ),
}


@pytest.mark.parametrize(
    ('way', 'statement'),
    [*(('session', each) for each in STATEMENTS), *(('connection', each) for each in STATEMENTS),
     ('driver', 'text'), ('cursor', 'text')],
)  # fmt: skip
@pytest.mark.parametrize('moment', ['before_flush', 'after_flush', 'after_insert'])
def test_statements_within_a_flush(
    app: OrmCacheApp, tenant: str, moment: str, statement: str, way: str
) -> None:
    """A listener's statement within a flush has no object, and evicts all function policies."""
    before = read(app, tenant)

    def on_session(session: Session, *others: Any) -> None:
        WAYS[way](session, session.connection(), STATEMENTS[statement]())

    def on_mapper(mapper: Any, connection: Any, target: User) -> None:
        session = Session.object_session(target)
        WAYS[way](session, connection, STATEMENTS[statement]())

    with committed(app, tenant) as scope:
        target, listener = (
            (User, on_mapper) if moment == 'after_insert' else (scope.session(), on_session)
        )
        event.listen(target, moment, listener)
        try:
            scope.session().add(User(id=9, name='n'))
            scope.session().flush()
        finally:
            event.remove(target, moment, listener)
    after = read(app, tenant)
    assert after[0] > before[0]


def bulk_objects(session: Session) -> None:
    session.bulk_save_objects([Group(id=8, name='x')])


def bulk_mappings(session: Session) -> None:
    session.bulk_update_mappings(Group, [{'id': 1, 'name': 'x'}])  # type: ignore[arg-type]


@pytest.mark.parametrize('operation', [bulk_objects, bulk_mappings])
@pytest.mark.parametrize('within', [True, False])
def test_bulk_operations(
    app: OrmCacheApp, tenant: str, operation: Callable[[Session], object], within: bool
) -> None:
    """A bulk operation has no objects, within a flush as without one."""
    before = read(app, tenant)
    with committed(app, tenant) as scope:
        if within:
            event.listen(
                scope.session(), 'before_flush', lambda session, *_: operation(session), once=True
            )
            scope.session().add(User(id=9, name='n'))
        else:
            operation(scope.session())
    after = read(app, tenant)
    assert after[0] > before[0]


def test_muted(app: OrmCacheApp, tenant: str) -> None:
    """While signals are muted, nobody is asked, and no change is missed."""
    before = read(app, tenant)
    with committed(app, tenant) as scope, scope.session_manager.muted():
        group = scope.session().get_one(Group, 1)
        group.name = 'x'
        scope.session().flush()
    assert read(app, tenant)[0] > before[0]


def test_objects_of_no_concern(app: OrmCacheApp, tenant: str) -> None:
    """A flush of objects that the policies do not name evicts nothing."""
    before = read(app, tenant)
    with committed(app, tenant) as scope:
        group = scope.session().get_one(Group, 2)
        group.name = 'x'
        scope.session().add(Document(id=9, title='z'))
    assert read(app, tenant) == before
