"""The tables of the matrix, as an application declares them.

What only a database can be told, such as triggers, views and partitions, is in :mod:`.ddl`.
"""

from __future__ import annotations

import enum
import os
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    Computed,
    Enum,
    ForeignKey,
    Identity,
    Sequence,
    String,
    Table,
    column,
    func,
    select,
    table,
)
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    mapped_column,
    relationship,
)

#: Begins the names of this run's schemas. The worker process inherits it.
RUN = 'm' + os.environ.setdefault('ORMCACHE_MATRIX_RUN', uuid4().hex[:10])

#: The tenant whose properties are read and whose tables are changed, a second tenant, the
#: schema of shared tables, and the role that owns them.
ONE, TWO, SHARED, ROLE = (f'{RUN}_{name}' for name in ('one', 'two', 'shared', 'role'))

#: 63 bytes, the longest name; PostgreSQL cuts longer ones to it.
LONG = 'long_' + 'x' * 58


class Base(DeclarativeBase):
    """The declarative base of the matrix."""


class SharedBase(DeclarativeBase):
    """The declarative base of the table that tenants share; SQLite has none."""


class State(enum.Enum):
    """The state of a document."""

    DRAFT = 'draft'
    PUBLIC = 'public'


membership = Table(
    'membership',
    Base.metadata,
    Column('person_id', ForeignKey('people.id'), primary_key=True),
    Column('team_id', ForeignKey('teams.id', ondelete='CASCADE'), primary_key=True),
)


class Team(Base):
    """Other tables refer to this one, with each ON DELETE and ON UPDATE action."""

    __tablename__ = 'teams'
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    notes: Mapped[list[Note]] = relationship(
        back_populates='team', cascade='all, delete-orphan', passive_deletes=True
    )
    rooms: Mapped[list[Room]] = relationship(back_populates='team')
    people: Mapped[list[Person]] = relationship(secondary=membership, back_populates='teams')
    people_names: AssociationProxy[list[str]] = association_proxy(
        'people', 'name', creator=lambda name: Person(id=90, name=name)
    )


class Note(Base):
    """Deleted with its team, by the database and as an orphan."""

    __tablename__ = 'notes'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int | None] = mapped_column(ForeignKey('teams.id', ondelete='CASCADE'))
    text: Mapped[str]
    n: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(default='', server_default='', deferred=True)
    team: Mapped[Team | None] = relationship(back_populates='notes')
    remarks: Mapped[list[Remark]] = relationship(
        back_populates='note', cascade='all, delete-orphan'
    )

    @hybrid_property
    def shout(self) -> Any:
        """The text with an exclamation mark."""
        return self.text + '!'


class Remark(Base):
    """Deleted with the note that is deleted with its team."""

    __tablename__ = 'remarks'
    id: Mapped[int] = mapped_column(primary_key=True)
    note_id: Mapped[int] = mapped_column(ForeignKey('notes.id', ondelete='CASCADE'))
    text: Mapped[str]
    note: Mapped[Note] = relationship(back_populates='remarks')


Note.number_of_remarks = column_property(
    select(func.count(Remark.id)).where(Remark.note_id == Note.id).scalar_subquery(),
    deferred=True,
)


class Room(Base):
    """Left without a team when its team is deleted."""

    __tablename__ = 'rooms'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int | None] = mapped_column(ForeignKey('teams.id', ondelete='SET NULL'))
    name: Mapped[str]
    team: Mapped[Team | None] = relationship(back_populates='rooms')


class Desk(Base):
    """Handed to team 1 when its team is deleted."""

    __tablename__ = 'desks'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(
        ForeignKey('teams.id', ondelete='SET DEFAULT'), server_default='1'
    )
    name: Mapped[str]


class Label(Base):
    """Follows its team's code."""

    __tablename__ = 'labels'
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str | None] = mapped_column(
        ForeignKey('teams.code', onupdate='CASCADE', ondelete='SET NULL')
    )
    name: Mapped[str]


class Badge(Base):
    """Keeps its team from being deleted."""

    __tablename__ = 'badges'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(ForeignKey('teams.id', ondelete='RESTRICT'))
    name: Mapped[str]


class Node(Base):
    """A tree, by a reference of the table to itself."""

    __tablename__ = 'nodes'
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey('nodes.id', ondelete='CASCADE'))
    name: Mapped[str]
    children: Mapped[list[Node]] = relationship(back_populates='parent', passive_deletes=True)
    parent: Mapped[Node | None] = relationship(back_populates='children', remote_side=[id])


class Person(Base):
    """The base class of joined and of single-table inheritance."""

    __tablename__ = 'people'
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    teams: Mapped[list[Team]] = relationship(secondary=membership, back_populates='people')
    __mapper_args__ = {'polymorphic_on': 'kind', 'polymorphic_identity': 'person'}


class Employee(Person):
    """Inherits with a table of its own (joined inheritance)."""

    __tablename__ = 'employees'
    id: Mapped[int] = mapped_column(ForeignKey('people.id', ondelete='CASCADE'), primary_key=True)
    salary: Mapped[int]
    __mapper_args__ = {'polymorphic_identity': 'employee'}


class Guest(Person):
    """Inherits without a table of its own (single-table inheritance)."""

    __mapper_args__ = {'polymorphic_identity': 'guest'}


class Shape(ConcreteBase, Base):
    """The base class of concrete inheritance."""

    __tablename__ = 'shapes'
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    __mapper_args__ = {'polymorphic_identity': 'shape', 'concrete': True}


class Circle(Shape):
    """Inherits with a table that has all columns (concrete inheritance)."""

    __tablename__ = 'circles'
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    radius: Mapped[int]
    __mapper_args__ = {'polymorphic_identity': 'circle', 'concrete': True}


class Document(Base):
    """Has a version that SQLAlchemy counts, and a column of each special type."""

    __tablename__ = 'documents'
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    title: Mapped[str]
    state: Mapped[State] = mapped_column(Enum(State, name='state'))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    words: Mapped[list[str]] = mapped_column(ARRAY(String).with_variant(JSON(), 'sqlite'))
    n: Mapped[int] = mapped_column(default=1)
    doubled: Mapped[int] = mapped_column(Computed('n * 2', persisted=True))
    version: Mapped[int] = mapped_column(default=1)
    __mapper_args__ = {'version_id_col': version}


class Ticket(Base):
    """Numbered by a sequence."""

    __tablename__ = 'tickets'
    id: Mapped[int] = mapped_column(
        Sequence('ticket_numbers', metadata=Base.metadata), primary_key=True
    )
    name: Mapped[str]


class Entry(Base):
    """Written by triggers and rules of the database alone."""

    __tablename__ = 'entries'
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Measure(Base):
    """A partitioned table."""

    __tablename__ = 'measures'
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    region: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]
    __table_args__ = {'postgresql_partition_by': 'LIST (region)'}


class Stock(Base):
    """Has a child in the database that inherits its columns."""

    __tablename__ = 'stocks'
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Permit(Base):
    """Read by the row level security policy of the secrets."""

    __tablename__ = 'permits'
    id: Mapped[int] = mapped_column(primary_key=True)
    secret_id: Mapped[int]


class Secret(Base):
    """Has row level security: shows the rows that a permit names."""

    __tablename__ = 'secrets'
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Comma(Base):
    """A table with a comma in its name."""

    __tablename__ = 'a,b'
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Lead(Base):
    """A table whose name begins with a space."""

    __tablename__ = ' lead'
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Percent(Base):
    """A table whose name looks like a placeholder in quotes."""

    __tablename__ = '"%(x)s"'
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Apple(Base):
    """A table whose name is not ASCII."""

    __tablename__ = 'Äpfel'
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Long(Base):
    """A table with the longest name that PostgreSQL has."""

    __tablename__ = LONG
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


ODD = (Comma, Lead, Percent, Apple, Long)


class Country(SharedBase):
    """A table that tenants share."""

    __tablename__ = 'countries'
    __table_args__ = {'schema': SHARED}
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


#: The shared table's name in policies.
COUNTRIES = f'{SHARED}.countries'

#: The declarative bases of each database.
BASES = {'postgresql': (Base, SharedBase), 'sqlite': (Base,)}

#: Relations that only the database knows.
notes_view = table('notes_view', column('id'), column('text'))
open_notes = table('open_notes', column('id'), column('text'), column('n'))
teams_view = table('teams_view', column('code'), column('notes'))
notes_now = table('notes_now', column('id'), column('text'))
ruled = table('ruled', column('id'), column('text'))
measures_north = table('measures_north', column('id'), column('region'), column('value'))
stocks_child = table('stocks_child', column('id'), column('name'))
