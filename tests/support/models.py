"""The tables that most tests use: every kind of relation that can change one."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """The declarative base of the tests' tables."""


membership = Table(
    'membership',
    Base.metadata,
    Column('user_id', ForeignKey('users.id', ondelete='CASCADE'), primary_key=True),
    Column('group_id', ForeignKey('groups.id', ondelete='CASCADE'), primary_key=True),
)


class Group(Base):
    """A group of users."""

    __tablename__ = 'groups'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class User(Base):
    """A user, in any number of groups."""

    __tablename__ = 'users'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    groups: Mapped[list[Group]] = relationship(secondary=membership, backref='users')
    documents: Mapped[list[Document]] = relationship(
        back_populates='owner', passive_deletes=True, cascade='all, delete-orphan'
    )


class Document(Base):
    """A document, gone with its owner; joined-table inheritance begins here."""

    __tablename__ = 'documents'

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    title: Mapped[str]
    state: Mapped[str] = mapped_column(default='secret')
    owner_id: Mapped[int | None] = mapped_column(ForeignKey('users.id', ondelete='CASCADE'))
    owner: Mapped[User | None] = relationship(back_populates='documents')

    __mapper_args__ = {'polymorphic_on': 'kind', 'polymorphic_identity': 'document'}


class Letter(Document):
    """A document with an address, in a table of its own."""

    __tablename__ = 'letters'

    id: Mapped[int] = mapped_column(ForeignKey('documents.id'), primary_key=True)
    address: Mapped[str]

    __mapper_args__ = {'polymorphic_identity': 'letter'}
