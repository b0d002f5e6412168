"""A manager's signals report each object that a flush changed; the scope hears of tables that
were changed without an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, update

from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.database.signals import mapped_tables, tables_of
from tests.database.fakes import FakeScope, open_scope
from tests.database.people import Base, Form, Heard, Page, Person


@pytest.fixture(params=['sqlite', 'postgresql'])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, tenant: str
) -> Iterator[SessionManager]:
    """A session manager of each kind, whose tenant has the tables."""
    dsn = f'sqlite:///{tmp_path}/tenants'
    if request.param == 'postgresql':
        dsn = request.getfixturevalue('postgres_dsn')
    made = SessionManager(dsn, Base)
    made.ensure_schema_exists(tenant)
    yield made
    made.dispose()


@pytest.fixture
def scope(manager: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope."""
    with open_scope(manager, tenant) as opened:
        yield opened


@pytest.fixture
def heard(manager: SessionManager) -> Heard:
    """Listens to the manager's signals."""
    return Heard(manager)


# which objects


def test_inserts_updates_deletes(scope: FakeScope, heard: Heard) -> None:
    """One signal is sent for each object that a flush changed, with the tenant as its sender."""
    session = scope.session()
    person = Person(name='anna')
    session.add(person)
    session.flush()
    assert heard.take() == [('insert', person)]
    person.nick = 'a'
    session.flush()
    assert heard.take() == [('update', person)]
    session.delete(person)
    session.flush()
    assert heard.take() == [('delete', person)]
    session.flush()
    assert heard.take() == []
    assert heard.schemas == {scope.schema}


def test_sql_expressions(scope: FakeScope, heard: Heard) -> None:
    """An object whose only change is a SQL expression was updated: its new value is not known, and
    it has no history."""
    session = scope.session()
    person = Person(name='anna')
    session.add(person)
    session.flush()
    heard.take()
    person.name = Person.name + '!'
    session.flush()
    assert heard.take() == [('update', person)]
    assert person.name == 'anna!'


def test_objects_of_one_flush(scope: FakeScope, heard: Heard) -> None:
    """A flush of several kinds of changes tells them all, before the commit."""
    session = scope.session()
    anna, berta = Person(name='anna'), Person(name='berta')
    session.add_all([anna, berta])
    session.commit()
    heard.take()
    seen: list[list[str]] = []
    heard.look = lambda obj: seen.append(list(scope.heard[-1]))
    carla = Person(name='carla')
    session.delete(berta)
    session.add(carla)
    anna.name = 'anne'
    session.commit()
    assert sorted(heard.take(), key=str) == sorted(
        [('insert', carla), ('update', anna), ('delete', berta)], key=str
    )
    assert seen == [['begun']] * 3


def test_unmodified_objects_send_nothing(scope: FakeScope, heard: Heard) -> None:
    """Setting an attribute to the value that it already has is no change."""
    session = scope.session()
    person = Person(name='anna')
    session.add(person)
    session.commit()
    heard.take()
    assert person.name == 'anna'
    person.name = 'anna'
    assert person in session.dirty
    session.flush()
    assert heard.take() == []


def test_cascades_are_told(scope: FakeScope, heard: Heard) -> None:
    """A signal is also sent for each object that is deleted by a cascade."""
    session = scope.session()
    pages = [Page(title='a'), Form(title='b', fields='x')]
    person = Person(name='anna', pages=list(pages))
    session.add(person)
    session.commit()
    heard.take()
    session.delete(person)
    session.flush()
    assert {(what, id(obj)) for what, obj in heard.take()} == {
        ('delete', id(obj)) for obj in [person, *pages]
    }


def test_orphans_are_told(scope: FakeScope, heard: Heard) -> None:
    """A signal is also sent for an object that is deleted because it lost its owner."""
    session = scope.session()
    page = Page(title='a')
    person = Person(name='anna', pages=[page])
    session.add(person)
    session.commit()
    heard.take()
    person.pages.remove(page)
    session.flush()
    assert page in [obj for _, obj in heard.take()]
    session.commit()
    assert session.query(Page).count() == 0


def test_failing_handler_fails_the_flush(scope: FakeScope, heard: Heard) -> None:
    """An error in a handler is an error of the flush, and the session goes on after it."""

    def fail(obj: object) -> None:
        raise ZeroDivisionError

    heard.look = fail
    session = scope.session()
    session.add(Person(name='anna'))
    with pytest.raises(ZeroDivisionError):
        session.flush()
    session.rollback()
    assert scope.flushed_tables is None
    heard.look = lambda obj: None
    assert session.query(Person).count() == 0


# tables


def test_tables_of_a_class() -> None:
    """A class stands for its own tables, inherited tables, and secondary tables."""
    assert set(mapped_tables(Person)) == {'people'}
    assert set(tables_of(Person)) == {'people', 'likes'}
    assert set(mapped_tables(Form)) == set(tables_of(Form)) == {'pages', 'forms'}


def note_flushed_tables(scope: FakeScope) -> Callable[[], None]:
    """Return a hook that collects the tables that a flush writes to, as a real scope does."""

    def note() -> None:
        if scope.flushed_tables is not None:
            scope.flushed_tables.update(scope.listeners[-1].statements[-1].writes)

    return note


def test_changes_that_objects_stand_for(scope: FakeScope, heard: Heard) -> None:
    """Tables that a flush writes for its objects do not count as changed without objects."""
    scope.hooks['executing'] = note_flushed_tables(scope)
    session = scope.session()
    session.add(Person(name='anna', likes=[Form(title='a', fields='x')]))
    session.flush()
    # statements on a secondary table are executed for no object
    assert scope.tables_without_objects == [{'likes'}]
    assert scope.flushed_tables is None


def test_changes_that_no_object_stands_for(scope: FakeScope, heard: Heard) -> None:
    """The scope hears of a table that a listener of the flush changed, as no object shows it."""
    scope.hooks['executing'] = note_flushed_tables(scope)
    session = scope.session()

    @event.listens_for(Page, 'after_insert')
    def after_insert(mapper: object, connection: Any, page: Page) -> None:
        connection.execute(insert(Person).values(name='by hand'))

    try:
        session.add(Page(title='a'))
        session.flush()
    finally:
        event.remove(Page, 'after_insert', after_insert)
    assert scope.tables_without_objects == [{'people'}]


def test_bulk_statements_tell_no_object(scope: FakeScope, heard: Heard) -> None:
    """Bulk statements send no signal for objects; the listener hears of their tables."""
    session = scope.session()
    session.execute(insert(Person), [{'name': 'anna'}, {'name': 'berta'}])
    session.execute(update(Person).values(nick='x'))
    assert heard.take() == []
    writes = [set(statement.writes) for statement in scope.listeners[0].statements]
    assert writes == [{'people'}, {'people'}]


def test_on_table_change_is_a_signal(manager: SessionManager) -> None:
    """A handler of `on_table_change` gets the tenant and the names of the tables."""
    told: list[tuple[str, frozenset[str]]] = []

    def handler(schema: str, tables: frozenset[str]) -> None:
        told.append((schema, tables))

    manager.on_table_change.connect(handler)
    manager.on_table_change.send('main', tables=frozenset({'people'}))
    assert told == [('main', frozenset({'people'}))]
    assert manager.on_table_change is manager.observer.on_table_change


def test_signals_are_the_managers_own(manager: SessionManager, tmp_path: Path) -> None:
    """Each manager has signals of its own, so two managers have no handler in common."""
    other = SessionManager(f'sqlite:///{tmp_path}/other', Base)
    for name in ('on_insert', 'on_update', 'on_delete', 'on_table_change'):
        assert getattr(manager, name) is not getattr(other, name)
    other.dispose()
