"""People and the pages they own and like, and a record of what a manager's signals say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, ForeignKey, Table, func, text
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    mapped_column,
    relationship,
    validates,
)

from onegov_ormcache.database.session_manager import SessionManager


class Base(DeclarativeBase):
    """The tables of these tests."""


likes = Table(
    'likes',
    Base.metadata,
    Column('person_id', ForeignKey('people.id'), primary_key=True),
    Column('page_id', ForeignKey('pages.id'), primary_key=True),
)


class Named:
    """A mixin, whose attributes and methods must be found too."""

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


class Heard:
    """Listens to a manager's signals, and notes each change, its object and its schema."""

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
