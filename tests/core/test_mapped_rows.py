"""Policies for rows of classes that are mapped to several tables: no value is stale."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, join, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from onegov_ormcache.core.rows import RowPolicies, resolve_rows
from tests.support.applications import Applications, committed, value


class Base(DeclarativeBase):
    """The declarative base of the tests' tables."""


class Place(Base):
    """A place where people live."""

    __tablename__ = 'places'

    id: Mapped[int] = mapped_column(primary_key=True)
    town: Mapped[str]


class Person(Base):
    """A person in a place."""

    __tablename__ = 'people'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    place_id: Mapped[int] = mapped_column(ForeignKey('places.id'))


PERSON, PLACE = Person.__table__, Place.__table__


class Resident(Base):
    """A person and its place as one object."""

    __table__ = join(PERSON, PLACE, PERSON.c.place_id == PLACE.c.id)

    id = PERSON.c.id
    person = PERSON.c.name
    place_id = column_property(PERSON.c.place_id, PLACE.c.id)
    place = PLACE.c.town


class Work(Base):
    """A work; joined-table inheritance begins here."""

    __tablename__ = 'works'

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


class Edition(Work):
    """An edition, whose own table has a key of its own: one work can have several."""

    __tablename__ = 'editions'

    number: Mapped[int] = mapped_column(primary_key=True)
    work_id: Mapped[int] = mapped_column(ForeignKey('works.id'))


class Poem(Work):
    """A work with a further row of the same id."""

    __tablename__ = 'poems'

    id: Mapped[int] = mapped_column(ForeignKey('works.id'), primary_key=True)
    lines: Mapped[int]


class App(OrmCacheApp):
    @orm_cached(policy=rows(Resident.id))
    def resident(self, id: int) -> Any:
        found = self.session().get(Resident, (id, 1))
        return found and (found.person, found.place)

    @orm_cached(policy=rows(Resident.place_id))
    def residents(self, place_id: int) -> Any:
        query = select(Resident.person, Resident.place).where(Resident.place_id == place_id)
        return [tuple(row) for row in self.session().execute(query.order_by(Resident.id))]

    @orm_cached(policy=rows(Edition.number))
    def title(self, number: int) -> Any:
        return self.session().scalar(select(Edition.title).where(Edition.number == number))


def after_change(applications: Applications, tenant: str, read: Any, change: Any) -> list[Any]:
    """Return what two processes read after a change, of values that they had before it."""
    app = applications.start(App, base=Base)
    with committed(app, tenant) as scope:
        session = scope.session()
        session.add(Place(id=1, town='Bern'))
        session.flush()
        session.add_all(Person(id=id, name=f'p{id}', place_id=1) for id in (1, 2))
        session.add(Edition(id=1, number=1, title='old'))
        session.flush()
        session.connection().execute(Edition.__table__.insert().values(number=2, work_id=1))
    processes = app, applications.elsewhere(app)
    for each in processes:
        value(each, tenant, read)
    with committed(app, tenant) as scope:
        change(scope.session())
    return [value(each, tenant, read) for each in processes]


def move(session: Session) -> None:
    session.get_one(Resident, (1, 1)).place = 'Thun'


def test_a_row_that_several_objects_share(applications: Applications, tenant: str) -> None:
    """A change of a joined row evicts the values of all objects that have it."""
    read = after_change(applications, tenant, lambda app: app.resident.many([1, 2]), move)
    assert read == [{1: ('p1', 'Thun'), 2: ('p2', 'Thun')}] * 2


def test_a_column_that_both_tables_have(applications: Applications, tenant: str) -> None:
    """Rows of two tables are told by the column that joins them."""
    read = after_change(applications, tenant, lambda app: app.residents(1), move)
    assert read == [[('p1', 'Thun'), ('p2', 'Thun')]] * 2


def test_a_base_row_with_several_rows(applications: Applications, tenant: str) -> None:
    """A change of an inherited column evicts all values of its row, also if the own table has
    several rows for it."""

    def rename(session: Session) -> None:
        edition = session.scalars(select(Edition).where(Edition.number == 1)).one()
        edition.title = 'new'

    read = after_change(applications, tenant, lambda app: app.title.many([1, 2]), rename)
    assert read == [{1: 'new', 2: 'new'}] * 2


def test_what_an_object_tells() -> None:
    """Objects tell their rows where each row belongs to one object; statements for them name the
    row by its own key alone."""

    def plan(column: Any, cls: type) -> Any:
        (found,) = RowPolicies([resolve_rows(rows(column), 'here')]).plans(cls)
        return found.attributes, found.identifies

    assert plan(Poem.id, Poem) == plan(Poem.id, Work) == (('id',), True)
    assert plan(Poem.lines, Work) == plan(Resident.id, Resident) == (None, False)
    assert plan(Poem.lines, Poem) == (('lines',), False)
