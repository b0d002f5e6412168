"""An ObjectState shows an object as it was before a flush, or is after it, without a query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from onegov_ormcache.core.objects import ObjectState, UnknownState
from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import FakeScope, open_scope
from tests.database.people import Base, Form, Heard, Page, Person
from tests.support.counting import SqlStatements

CountQueries = Callable[[int], AbstractContextManager[SqlStatements]]


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


def states(heard: Heard, look: Callable[[Any, Any], object]) -> None:
    """Look at each object's two states while its flush lasts."""
    heard.look = lambda obj: look(ObjectState(obj, True), ObjectState(obj, False))


def test_before_and_after_an_update(
    scope: FakeScope, heard: Heard, db_queries: CountQueries
) -> None:
    """The two states show an attribute before and after an update, and what depends on it."""
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
    """Before an insert nothing is known; after it, all but values that the database generated."""
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
    """The state of a deleted object has the values that were last in the database."""
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
    """An attribute that would have to be loaded is unknown, and no query is sent for it."""
    session = scope.session()
    person = Person(name='anna', nick='a')
    session.add(person)
    session.commit()
    assert person.id
    session.expire(person, ['name', 'nick'])
    person.nick = 'b'  # its old value is not known
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
    """The two states show a collection that is in memory before and after its change."""
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
    """A state has its object's class, equality, hash and methods, so a policy can ask it."""
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
    """A policy can't change an object through its state."""
    person = Person(name='anna')
    state: Any = ObjectState(person, False)
    with pytest.raises(AttributeError, match='name'):
        state.name = 'berta'
    assert person.name == 'anna'


def test_unknown_state_is_nobodys_error() -> None:
    """A policy that catches Exception does not catch UnknownState."""
    assert not issubclass(UnknownState, Exception)
