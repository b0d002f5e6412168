"""The application whose history is checked: its tables, its properties, its ways to write.

The database numbers the writes of each row, and keeps a journal of all that were committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import FetchedValue, Select, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached

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


TABLES: tuple[Any, ...] = (Page, Ticket)

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
CREATE TRIGGER number BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION number();
CREATE TRIGGER note AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note();
INSERT INTO {table} SELECT name, '{tenant}.{table}.' || name, 0 FROM unnest(%s::text[]) AS name;
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
        return [tuple(row) for table in TABLES for row in session.execute(rows_of(table))]

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


ALL = [f'{table.__tablename__}.{name}' for table in TABLES for name in ROWS]

#: The rows that each property shows, by role; a `by_role` property shows each role one row.
SHOWS: dict[str, Callable[[str], Sequence[str]]] = {
    'pages': lambda role: ALL[: len(ROWS)],
    'tickets': lambda role: ALL[len(ROWS) :],
    'both': lambda role: ALL,
    'learned': lambda role: ALL,
    'first': lambda role: ['pages.0'],
    'nested': lambda role: ALL,
    'role': lambda role: [f'tickets.{role}'],
    'through': lambda role: ALL,
}


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
