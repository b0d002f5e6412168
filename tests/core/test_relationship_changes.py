"""A change of a relationship evicts what depends on the tables of either side."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, committed, value
from tests.support.counting import Runs
from tests.support.models import Document, Group, User


class Base(DeclarativeBase):
    """Tables with a relationship that has no counterpart."""


class Parent(Base):
    """Has children, which do not know it."""

    __tablename__ = 'parents'

    id: Mapped[int] = mapped_column(primary_key=True)
    children: Mapped[list[Child]] = relationship()


class Child(Base):
    """Knows the id of its parent only."""

    __tablename__ = 'children'

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey('parents.id'))


def make_app(runs: Runs, first: type, second: type) -> type[OrmCacheApp]:
    """Return an app with values that depend on either side, by table and by class."""

    class App(OrmCacheApp):
        @orm_cached(policy=f'on-table-change:{first.__tablename__}')
        def first_table(self) -> None:
            runs('first_table')

        @orm_cached(policy=first)
        def first_class(self) -> None:
            runs('first_class')

        @orm_cached(policy=f'on-table-change:{second.__tablename__}')
        def second_table(self) -> None:
            runs('second_table')

        @orm_cached(policy=second)
        def second_class(self) -> None:
            runs('second_class')

    return App


NAMES = ('first_table', 'first_class', 'second_table', 'second_class')


def evicted(
    app: OrmCacheApp, tenant: str, runs: Runs, change: Callable[[Session], object]
) -> set[str]:
    """Return the values that a committed change has evicted."""
    value(app, tenant, lambda app: [getattr(app, name) for name in NAMES])
    before = {name: runs.count(name) for name in NAMES}
    value(app, tenant, lambda app: [getattr(app, name) for name in NAMES])
    assert before == {name: runs.count(name) for name in NAMES}, 'the values are cached'
    with committed(app, tenant) as scope:
        change(scope.session())
    value(app, tenant, lambda app: [getattr(app, name) for name in NAMES])
    return {name for name in NAMES if runs.count(name) > before[name]}


def append_group(session: Session) -> None:
    user = session.get_one(User, 1)
    user.groups.append(session.get_one(Group, 2))


def remove_group(session: Session) -> None:
    user = session.get_one(User, 1)
    user.groups.remove(session.get_one(Group, 1))


def append_user(session: Session) -> None:
    group = session.get_one(Group, 2)
    group.users.append(session.get_one(User, 1))  # type: ignore[attr-defined]


def replace_groups(session: Session) -> None:
    user = session.get_one(User, 1)
    user.groups = [session.get_one(Group, 2)]


def clear_groups(session: Session) -> None:
    user = session.get_one(User, 1)
    user.groups.clear()


@pytest.mark.parametrize(
    'change', [append_group, remove_group, append_user, replace_groups, clear_groups]
)
def test_secondary_table(
    applications: Applications, tenant: str, runs: Runs, change: Callable[[Session], object]
) -> None:
    """A change of a secondary table's rows concerns both sides."""
    app = applications.start(make_app(runs, User, Group))
    with committed(app, tenant) as scope:
        group = Group(id=1, name='g')
        scope.session().add_all([User(id=1, name='a', groups=[group]), Group(id=2, name='h')])
    assert evicted(app, tenant, runs, change) == set(NAMES)


def append_document(session: Session) -> None:
    user = session.get_one(User, 1)
    user.documents.append(Document(id=9, title='b'))


def move_document(session: Session) -> None:
    user = session.get_one(User, 2)
    user.documents.append(session.get_one(Document, 1))


def remove_document(session: Session) -> None:
    user = session.get_one(User, 1)
    user.documents.remove(session.get_one(Document, 1))


def set_owner(session: Session) -> None:
    document = session.get_one(Document, 1)
    document.owner = session.get_one(User, 2)


def new_with_owner(session: Session) -> None:
    session.add(Document(id=9, title='b', owner=session.get_one(User, 1)))


def unset_owner(session: Session) -> None:
    document = session.get_one(Document, 3)
    document.owner = session.get_one(User, 1)


@pytest.mark.parametrize(
    'change',
    [append_document, move_document, remove_document, set_owner, new_with_owner, unset_owner],
)
def test_one_to_many(
    applications: Applications, tenant: str, runs: Runs, change: Callable[[Session], object]
) -> None:
    """A change of a foreign key by its relationship concerns both sides, whichever was set."""
    app = applications.start(make_app(runs, User, Document))
    with committed(app, tenant) as scope:
        scope.session().add(User(id=1, name='a', documents=[Document(id=1, title='a')]))
        scope.session().add_all([User(id=2, name='b'), Document(id=3, title='c')])
    assert evicted(app, tenant, runs, change) == set(NAMES)


def append_child(session: Session) -> None:
    parent = session.get_one(Parent, 1)
    parent.children.append(Child(id=9))


def remove_child(session: Session) -> None:
    parent = session.get_one(Parent, 1)
    parent.children.pop()


@pytest.mark.parametrize('change', [append_child, remove_child])
def test_without_backref(
    applications: Applications, tenant: str, runs: Runs, change: Callable[[Session], object]
) -> None:
    """The same holds for a relationship that only one side has."""
    app = applications.start(make_app(runs, Parent, Child), base=Base)
    with committed(app, tenant) as scope:
        scope.session().add(Parent(id=1, children=[Child(id=1)]))
    assert evicted(app, tenant, runs, change) == set(NAMES)


def set_key(session: Session) -> None:
    child = session.get_one(Child, 1)
    child.parent_id = None


def test_foreign_key_by_hand(applications: Applications, tenant: str, runs: Runs) -> None:
    """A foreign key that was set by its column changes the rows of its own table only."""
    app = applications.start(make_app(runs, Parent, Child), base=Base)
    with committed(app, tenant) as scope:
        scope.session().add(Parent(id=1, children=[Child(id=1)]))
    assert evicted(app, tenant, runs, set_key) == {'second_table', 'second_class'}


def rename(session: Session) -> None:
    user = session.get_one(User, 1)
    user.name = 'b'


def test_no_relationship(applications: Applications, tenant: str, runs: Runs) -> None:
    """A change of a plain attribute concerns its own side only."""
    app = applications.start(make_app(runs, User, Group))
    with committed(app, tenant) as scope:
        scope.session().add(User(id=1, name='a', groups=[Group(name='g')]))
    assert evicted(app, tenant, runs, rename) == {'first_table', 'first_class'}
