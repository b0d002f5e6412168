"""Books, with columns of many kinds, and types whose values are not what the database has."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Computed, ForeignKey, Integer, String, TypeDecorator
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    mapped_column,
    relationship,
    synonym,
)


class Hashed(TypeDecorator[str]):
    """A text of which the database has the hash."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else hashlib.sha256(value.encode()).hexdigest()


class Lower(TypeDecorator[str]):
    """A text in lower case."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.lower()

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value


class Base(DeclarativeBase):
    """The tables of the books."""


class Shelf(Base):
    """A shelf of books."""

    __tablename__ = 'shelves'

    id: Mapped[int] = mapped_column(primary_key=True)


class Book(Base):
    """A book, with columns of many kinds."""

    __tablename__ = 'books'

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey('shelves.id'))
    shelf: Mapped[Shelf | None] = relationship()
    also = synonym('title')
    length: Mapped[int] = mapped_column(Integer, Computed('length(title)'))
    token: Mapped[str | None] = mapped_column(Hashed)
    isbn: Mapped[str | None] = mapped_column(Lower)

    @hybrid_property
    def loud(self) -> str:
        return self.title + '!'


Book.shout = column_property(Book.title + '!')  # type: ignore[attr-defined]
