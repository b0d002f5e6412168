"""Tables with every kind of inheritance and cascade, and rows for them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Table, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """The declarative base of these tables."""


class Person(Base):
    """The base class of joined and of single-table inheritance."""

    __tablename__ = 'persons'
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    teams: Mapped[list[Team]] = relationship(secondary=lambda: membership)
    __mapper_args__ = {'polymorphic_on': 'kind', 'polymorphic_identity': 'person'}


class Employee(Person):
    """Inherits with a table of its own (joined inheritance)."""

    __tablename__ = 'employees'
    id: Mapped[int] = mapped_column(ForeignKey('persons.id'), primary_key=True)
    salary: Mapped[int]
    __mapper_args__ = {'polymorphic_identity': 'employee'}


class Guest(Person):
    """Inherits without a table of its own (single-table inheritance)."""

    __mapper_args__ = {'polymorphic_identity': 'guest'}


class Team(Base):
    """The other tables refer to this one, with each kind of cascade that a database has."""

    __tablename__ = 'teams'
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)


class Note(Base):
    """Deleted with its team."""

    __tablename__ = 'notes'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int | None] = mapped_column(ForeignKey('teams.id', ondelete='CASCADE'))
    text: Mapped[str] = mapped_column(default='')


class Remark(Base):
    """Deleted with the note that is deleted with its team."""

    __tablename__ = 'remarks'
    id: Mapped[int] = mapped_column(primary_key=True)
    note_id: Mapped[int] = mapped_column(ForeignKey('notes.id', ondelete='CASCADE'))


class Room(Base):
    """Left empty when its team is deleted."""

    __tablename__ = 'rooms'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int | None] = mapped_column(ForeignKey('teams.id', ondelete='SET NULL'))


class Desk(Base):
    """Handed to team 1 when its team is deleted."""

    __tablename__ = 'desks'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(
        ForeignKey('teams.id', ondelete='SET DEFAULT'), server_default='1'
    )


class Label(Base):
    """Follows its team's code."""

    __tablename__ = 'labels'
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str | None] = mapped_column(
        ForeignKey('teams.code', onupdate='CASCADE', ondelete='SET NULL')
    )


membership = Table(
    'membership',
    Base.metadata,
    mapped_column('person_id', ForeignKey('persons.id'), primary_key=True).column,
    mapped_column('team_id', ForeignKey('teams.id', ondelete='CASCADE'), primary_key=True).column,
)

TABLES = dict(Base.metadata.tables.items())


def rows_of(app: Any, table: Table) -> list[list[Any]]:
    rows = app.session().execute(select(table).order_by(*table.primary_key))
    return [list(row) for row in rows]


def data() -> list[Base]:
    return [
        Team(id=1, code='one'),
        Team(id=2, code='two'),
        Person(id=1, name='person'),
        Employee(id=2, name='employee', salary=1),
        Guest(id=3, name='guest'),
        Note(id=1, team_id=2, text='hidden'),
        Remark(id=1, note_id=1),
        Room(id=1, team_id=2),
        Desk(id=1, team_id=2),
        Label(id=1, code='two'),
    ]
