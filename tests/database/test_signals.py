"""Which objects a flush changed, as they were and as they are, without a single query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Table, event, func, insert, text, update
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    mapped_column,
    relationship,
    validates,
)

from onegov_ormcache.core.objects import ObjectState, UnknownState
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.database.signals import mapped_tables, tables_of
from tests.database.fakes import FakeScope, open_scope
from tests.support.counting import SqlStatements

CountQueries = Callable[[int], AbstractContextManager[SqlStatements]]


class Base(DeclarativeBase):
    """The tables of these tests."""


likes = Table(
    'likes',
    Base.metadata,
    Column('person_id', ForeignKey('people.id'), primary_key=True),
    Column('page_id', ForeignKey('pages.id'), primary_key=True),
)


class Named:
    """What a mixin brings must be found too."""

    name: Mapped[str]

    def shout(self) -> str:
        return self.name.upper()


class Person(Named, Base):
    """Has pages, likes pages."""

    __tablename__ = 'people'

    kind = 'person'

    id: Mapped[int] = mapped_column(primary_key=True)
    nick: Mapped[str | None]
    pages: Mapped[list[Page]] = relationship(
        back_populates='owner', cascade='all, delete-orphan'
    )
    likes: Mapped[list[Page]] = relationship(secondary=likes)

    @property
    def label(self) -> str:
        return f'{self.name} ({self.nick})'

    @hybrid_property
    def is_anonymous(self) -> bool:
        return self.nick is None

    @classmethod
    def species(cls) -> str:
        return cls.__name__

    @staticmethod
    def constant() -> int:
        return 7

    def greets(self, other: str) -> str:
        return f'{self.label} greets {other}'


class Page(Base):
    """Has an owner."""

    __tablename__ = 'pages'

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    state: Mapped[str] = mapped_column(server_default='draft')
    kind: Mapped[str] = mapped_column(default='page')
    owner_id: Mapped[int | None] = mapped_column(ForeignKey('people.id'))
    owner: Mapped[Person | None] = relationship(back_populates='pages')
    upper: Mapped[str] = column_property(func.upper(text('title')))

    __mapper_args__ = {'polymorphic_on': 'kind', 'polymorphic_identity': 'page'}

    @validates('title')
    def validate(self, key: str, title: str) -> str:
        return title


class Form(Page):
    """A page in two tables."""

    __tablename__ = 'forms'

    id: Mapped[int] = mapped_column(ForeignKey('pages.id'), primary_key=True)
    fields: Mapped[str]

    __mapper_args__ = {'polymorphic_identity': 'form'}


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


class Heard:
    """What the signals said."""

    def __init__(self, manager: SessionManager) -> None:
        self.objects: list[tuple[str, object]] = []
        self.schemas: set[str] = set()
        #: Called with each object, while the flush lasts.
        self.look: Callable[[Any], object] = lambda obj: None
        for name in ('insert', 'update', 'delete'):
            signal = getattr(manager, f'on_{name}')
            signal.connect(self._handler(name), weak=False)

    def _handler(self, name: str) -> Callable[..., None]:
        def handler(schema: str, obj: object) -> None:
            self.schemas.add(schema)
            self.objects.append((name, obj))
            self.look(obj)

        return handler

    def take(self) -> list[tuple[str, object]]:
        taken, self.objects = self.objects, []
        return taken


@pytest.fixture
def heard(manager: SessionManager) -> Heard:
    """Listens to the manager's signals."""
    return Heard(manager)


# which objects


def test_inserts_updates_deletes(scope: FakeScope, heard: Heard) -> None:
    """Each object of a flush is told once, with the tenant as the sender."""
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
    """An attribute that was set to what it is already is no change."""
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
    """Objects that are deleted with others are told like these."""
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
    """An object that lost its owner, and is deleted for that, is told as one that changed."""
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
    """A class stands for its tables, those it inherits, and those between it and others."""
    assert set(mapped_tables(Person)) == {'people'}
    assert set(tables_of(Person)) == {'people', 'likes'}
    assert set(mapped_tables(Form)) == set(tables_of(Form)) == {'pages', 'forms'}


def note_flushed_tables(scope: FakeScope) -> Callable[[], None]:
    """What a scope does in earnest: collect the tables that a flush writes to."""

    def note() -> None:
        if scope.flushed_tables is not None:
            scope.flushed_tables |= scope.listeners[-1].statements[-1].writes

    return note


def test_changes_that_objects_stand_for(scope: FakeScope, heard: Heard) -> None:
    """Tables that a flush wrote for its objects are judged by these objects."""
    scope.hooks['executing'] = note_flushed_tables(scope)
    session = scope.session()
    session.add(Person(name='anna', likes=[Form(title='a', fields='x')]))
    session.flush()
    assert scope.tables_without_objects == [set()]
    assert scope.flushed_tables is None


def test_changes_that_no_object_stands_for(scope: FakeScope, heard: Heard) -> None:
    """What listeners of a flush do to other tables is told, as no object shows it."""
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
    """Statements that change rows at once are told by their tables, not by objects."""
    session = scope.session()
    session.execute(insert(Person), [{'name': 'anna'}, {'name': 'berta'}])
    session.execute(update(Person).values(nick='x'))
    assert heard.take() == []
    writes = [set(statement.writes) for statement in scope.listeners[0].statements]
    assert writes == [{'people'}, {'people'}]


def test_on_table_change_is_a_signal(manager: SessionManager) -> None:
    """Whoever wants to know of tables is told the tenant and their names."""
    told: list[tuple[str, frozenset[str]]] = []

    def handler(schema: str, tables: frozenset[str]) -> None:
        told.append((schema, tables))

    manager.on_table_change.connect(handler)
    manager.on_table_change.send('main', tables=frozenset({'people'}))
    assert told == [('main', frozenset({'people'}))]
    assert manager.on_table_change is manager.signals.on_table_change


def test_signals_are_the_managers_own(manager: SessionManager, tmp_path: Path) -> None:
    """Two managers have no handler in common."""
    other = SessionManager(f'sqlite:///{tmp_path}/other', Base)
    for name in ('on_insert', 'on_update', 'on_delete', 'on_table_change'):
        assert getattr(manager, name) is not getattr(other, name)
    other.dispose()


# states before and after


def states(heard: Heard, look: Callable[[Any, Any], object]) -> None:
    """Look at each object's two states while its flush lasts."""
    heard.look = lambda obj: look(ObjectState(obj, True), ObjectState(obj, False))


def test_before_and_after_an_update(
    scope: FakeScope, heard: Heard, db_queries: CountQueries
) -> None:
    """An update shows what an attribute was and what it is, and all that follows from it."""
    session = scope.session()
    person = Person(name='anna', nick='a')
    session.add(person)
    session.commit()
    assert person.nick == 'a'
    seen: list[object] = []

    def look(before: Person, after: Person) -> None:
        seen.extend(
            (state.name, state.nick, state.label, state.shout(), state.greets('berta'))
            for state in (before, after)
        )
        seen.append((before.is_anonymous, after.is_anonymous))

    states(heard, look)
    person.nick = None
    with db_queries(1):
        session.flush()
    assert seen == [
        ('anna', 'a', 'anna (a)', 'ANNA', 'anna (a) greets berta'),
        ('anna', None, 'anna (None)', 'ANNA', 'anna (None) greets berta'),
        (False, True),
    ]


def test_inserts_have_no_attribute_before(
    scope: FakeScope, heard: Heard, db_queries: CountQueries
) -> None:
    """After an insert its values are known; what the database made up is not asked for."""
    seen: list[object] = []

    def look(before: Page, after: Page) -> None:
        seen.append((after.title, after.kind))
        for unknown in (lambda: before.title, lambda: after.owner_id, lambda: after.upper):
            with pytest.raises(UnknownState):
                unknown()

    states(heard, look)
    session = scope.session()
    session.add(Page(title='a'))
    session.connection()
    with db_queries(1):
        session.flush()
    assert seen == [('a', 'page')]


def test_deleted_objects_are_as_they_were(
    scope: FakeScope, heard: Heard, db_queries: CountQueries
) -> None:
    """A deleted object is judged by what it last was in the database."""
    session = scope.session()
    page = Page(title='a')
    session.add(page)
    session.commit()
    assert page.title == 'a'
    seen: list[str] = []
    states(heard, lambda before, after: seen.append(before.title))
    page.title = 'b'
    session.delete(page)
    session.flush()
    assert seen == ['a']


def test_expired_attributes_are_not_loaded(
    scope: FakeScope, heard: Heard, db_queries: CountQueries
) -> None:
    """An attribute that would have to be loaded is unknown, and nothing is asked for it."""
    session = scope.session()
    person = Person(name='anna', nick='a')
    session.add(person)
    session.commit()
    assert person.id
    session.expire(person, ['name', 'nick'])
    person.nick = 'b'  # what it was is not known
    seen: list[str] = []

    def look(before: Person, after: Person) -> None:
        assert after.nick == 'b'
        for state, name in ((before, 'nick'), (before, 'name'), (after, 'name')):
            with pytest.raises(UnknownState, match=name):
                getattr(state, name)
            seen.append(name)
        with pytest.raises(UnknownState):
            after.label
        with pytest.raises(UnknownState):
            after.shout()
        with pytest.raises(UnknownState):
            before.is_anonymous
        with pytest.raises(UnknownState):
            after.pages

    session.connection()
    states(heard, look)
    with db_queries(1):
        session.flush()
    assert seen == ['nick', 'name', 'name']


def test_relationships(scope: FakeScope, heard: Heard, db_queries: CountQueries) -> None:
    """A relationship that is in memory can be followed, before and after its change."""
    session = scope.session()
    anna, berta = Person(name='anna'), Person(name='berta')
    page = Page(title='a', owner=anna)
    session.add_all([page, berta])
    session.flush()
    assert page.owner is anna
    seen: list[tuple[str, str]] = []

    def look(before: Any, after: Any) -> None:
        if isinstance(after, Page):
            assert before.owner is not None
            assert after.owner is not None
            seen.append((before.owner.name, after.owner.name))

    states(heard, look)
    page.owner = berta
    session.flush()
    assert seen == [('anna', 'berta')]


def test_collections(scope: FakeScope, heard: Heard) -> None:
    """A collection that is in memory is as it was before, and as it is after."""
    session = scope.session()
    page = Page(title='a')
    person = Person(name='anna', likes=[page])
    session.add(person)
    session.flush()
    seen: list[tuple[list[str], list[str]]] = []

    def look(before: Any, after: Any) -> None:
        if isinstance(after, Person):
            seen.append(
                ([liked.title for liked in before.likes], [liked.title for liked in after.likes])
            )

    states(heard, look)
    person.likes.append(Page(title='b'))
    session.flush()
    assert seen == [(['a'], ['a', 'b'])]


def test_states_look_like_their_object(scope: FakeScope) -> None:
    """What a policy usually asks of an object, it can ask of its state."""
    form = Form(title='a', fields='x')
    state: Any = ObjectState(form, False)
    assert isinstance(state, Form)
    assert isinstance(state, Page)
    assert not isinstance(state, Person)
    assert state.__class__ is Form
    assert state == form
    assert hash(state) == hash(form)
    assert state != Form(title='a', fields='x')
    anna = Person(name='anna')
    person: Any = ObjectState(anna, False)
    assert (person.species(), person.constant(), person.kind) == ('Person', 7, 'person')
    with pytest.raises(AttributeError):
        person.nonsense


def test_states_can_not_be_changed(scope: FakeScope) -> None:
    """A policy only looks."""
    person = Person(name='anna')
    state: Any = ObjectState(person, False)
    with pytest.raises(AttributeError, match='name'):
        state.name = 'berta'
    assert person.name == 'anna'


def test_unknown_state_is_nobodys_error() -> None:
    """A policy that catches errors does not catch that a value is unknown."""
    assert not issubclass(UnknownState, Exception)
