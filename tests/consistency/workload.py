"""The application whose history is checked: its tables, its properties, its ways to write.

The database numbers the writes of each row, and keeps a journal of all that were committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    FetchedValue,
    Integer,
    Select,
    String,
    Table,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached, rows

#: The names of the rows in each table. The roles have the same names.
ROWS = ('0', '1', '2')


class Base(DeclarativeBase):
    """The declarative base of the workload's tables."""


class Page(Base):
    """A row that is written again and again; the database counts how often."""

    __tablename__ = 'pages'

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    version: Mapped[int] = mapped_column(server_onupdate=FetchedValue(), default=0)


class Ticket(Base):
    """A row of the same kind, in another table."""

    __tablename__ = 'tickets'

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    version: Mapped[int] = mapped_column(server_onupdate=FetchedValue(), default=0)


class Book(Base):
    """A row of a table without triggers, so that a statement tells which rows it changes. Each
    writer numbers and notes its writes, see :func:`note`."""

    __tablename__ = 'books'

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    version: Mapped[int] = mapped_column(default=0)


TABLES: tuple[Any, ...] = (Page, Ticket, Book)

journal = Table(
    'journal',
    Base.metadata,
    Column('row', String),
    Column('version', Integer),
    Column('value', String),
)

#: SQL for each tenant's schema. It makes a journal of all committed writes, and the functions
#: that number the writes of a row and note them in the journal.
JOURNAL = """
CREATE TABLE journal ("row" text, version int, value text);
CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.version := OLD.version + 1; RETURN NEW; END';
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE format('INSERT INTO %I.journal VALUES ($1, $2, $3)', TG_TABLE_SCHEMA)
        USING TG_TABLE_NAME || '.' || NEW.name, NEW.version, NEW.value;
        RETURN NULL;
    END $$;
"""
TABLE = """
CREATE TABLE {table} (name varchar PRIMARY KEY, value varchar NOT NULL, version int NOT NULL);
INSERT INTO {table} SELECT name, '{tenant}.{table}.' || name, 0 FROM unnest(%s::text[]) AS name;
INSERT INTO journal SELECT '{table}.' || name, version, value FROM {table};
"""
TRIGGERS = """
CREATE TRIGGER number BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION number();
CREATE TRIGGER note AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note();
"""


def rows_of(table: Any) -> Select[Any]:
    """All rows of a table, with the table's name."""
    return select(
        literal(table.__tablename__).label('table'), table.name, table.version, table.value
    )


class Role(NamedTuple):
    """The role of the reader; `by_role` properties show each role the row of its name."""

    role: str


class Town(OrmCacheApp):
    """An application with a property of each kind; their values are lists of rows."""

    here = threading.local()

    @property
    def identity(self) -> Role:
        return Role(self.here.role)

    def runs(self, name: str) -> None:
        """Note that a creator runs."""
        self.here.ran.add(name)
        self.here.runs += 1

    @orm_cached(policy='on-table-change:pages')
    def pages(self) -> Any:
        self.runs('pages')
        return self.session().query(*rows_of(Page).selected_columns)

    @orm_cached(policy=Ticket)
    def tickets(self) -> Any:
        self.runs('tickets')
        return [list(row) for row in self.session().execute(rows_of(Ticket))]

    @orm_cached(policy='on-table-change:pages,tickets')
    def both(self) -> Any:
        self.runs('both')
        session = self.session()
        return [tuple(row) for table in (Page, Ticket) for row in session.execute(rows_of(table))]

    @orm_cached(policy='auto')
    def learned(self) -> Any:
        self.runs('learned')
        pages = self.session().query(Page).all()
        tickets = self.session().execute(rows_of(Ticket))
        return [
            *(('pages', page.name, page.version, page.value) for page in pages),
            *map(tuple, tickets),
        ]

    @orm_cached(policy=lambda obj: isinstance(obj, Page) and obj.name == '0')
    def first(self) -> Any:
        self.runs('first')
        return rows_of(Page).where(Page.name == '0')

    @orm_cached(policy='on-table-change:tickets')
    def nested(self) -> Any:
        self.runs('nested')
        return [*self.pages, *self.tickets]

    @orm_cached(policy='on-table-change:tickets', by_role=True)
    def role(self) -> Any:
        self.runs(f'role {self.here.role}')
        query = rows_of(Ticket).where(Ticket.name == self.here.role)
        return tuple(map(tuple, self.session().execute(query)))

    @request_cached
    def objects(self) -> Any:
        return self.session().query(Ticket).all()

    @orm_cached(policy='auto')
    def through(self) -> Any:
        self.runs('through')
        own = [('tickets', t.name, t.version, t.value) for t in self.objects]
        return [*map(tuple, self.session().execute(rows_of(Page))), *own]

    @orm_cached(policy=rows(Book.name))
    def book(self, name: str) -> Any:
        self.runs(f'book {name}')
        return list(map(tuple, self.session().execute(rows_of(Book).where(Book.name == name))))

    @orm_cached(policy='auto')
    def learned_book(self, name: str) -> Any:
        self.runs(f'learned_book {name}')
        return list(map(tuple, self.session().execute(rows_of(Book).where(Book.name == name))))

    @orm_cached(policy='on-table-change:tickets')
    def desk(self) -> Any:
        self.runs('desk')
        return [*self.tickets, *self.book('0')]


ALL = [f'{table.__tablename__}.{name}' for table in TABLES for name in ROWS]

PAGES, TICKETS, BOOKS = (ALL[i : i + len(ROWS)] for i in range(0, len(ALL), len(ROWS)))

#: The rows that each property shows, by role. A `by_role` property shows each role one row; so
#: does one with arguments, to which the role is given.
SHOWS: dict[str, Callable[[str], Sequence[str]]] = {
    'pages': lambda role: PAGES,
    'tickets': lambda role: TICKETS,
    'both': lambda role: PAGES + TICKETS,
    'learned': lambda role: PAGES + TICKETS,
    'first': lambda role: ['pages.0'],
    'nested': lambda role: PAGES + TICKETS,
    'role': lambda role: [f'tickets.{role}'],
    'through': lambda role: PAGES + TICKETS,
    'book': lambda role: [f'books.{role}'],
    'learned_book': lambda role: [f'books.{role}'],
    'books': lambda role: BOOKS,
    'desk': lambda role: [*TICKETS, 'books.0'],
}

#: Those that show each role another row.
BY_ROLE = ('role', 'book', 'learned_book')


def read(app: Town, name: str, role: str) -> Any:
    """Return what a property shows."""
    if name == 'books':
        return [row for value in app.book.many(ROWS).values() for row in value]
    value = getattr(app, name)
    return value(role) if callable(value) else value


def runs_of(name: str, role: str) -> set[str]:
    """Return the names of the runs that compute what a property shows."""
    if name == 'books':
        return {f'book {row}' for row in ROWS}
    return {f'{name} {role}' if name in BY_ROLE else name}


# the ways to write


def by_object(session: Session, table: Any, name: str, value: str) -> None:
    session.get_one(table, name).value = value


def by_update(session: Session, table: Any, name: str, value: str) -> None:
    session.execute(update(table).where(table.name == name).values(value=value))


def by_bulk(session: Session, table: Any, name: str, value: str) -> None:
    session.execute(update(table), [{'name': name, 'value': value}])


def by_upsert(session: Session, table: Any, name: str, value: str) -> None:
    statement = insert(table).values(name=name, value='', version=0)
    session.execute(
        statement.on_conflict_do_update(index_elements=['name'], set_={'value': value})
    )


def by_text(session: Session, table: Any, name: str, value: str) -> None:
    statement = text(f'UPDATE {table.__tablename__} SET value = :value WHERE name = :name')
    session.execute(statement, {'name': name, 'value': value})


def by_core(session: Session, table: Any, name: str, value: str) -> None:
    core = table.__table__
    session.connection().execute(core.update().where(core.c.name == name).values(value=value))


WAYS = (by_object, by_object, by_update, by_bulk, by_upsert, by_text, by_core)


def note(session: Session, name: str) -> None:
    """Number the last write of a book, and note it in the journal."""
    session.flush()
    session.execute(update(Book).where(Book.name == name).values(version=Book.version + 1))
    written = select(literal('books.') + Book.name, Book.version, Book.value)
    session.execute(
        journal.insert().from_select(
            ['row', 'version', 'value'], written.where(Book.name == name)
        )
    )
    session.expire_all()
