"""Policies for rows by columns whose values the database compares in ways of its own."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from sqlalchemy import Column, DateTime, Integer, MetaData, String, Table, func, select, types
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from onegov_ormcache.core.rows import resolve_rows
from onegov_ormcache.errors import PolicyError
from tests.support.applications import Applications, change, value

NOON = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC)
ZONE = datetime.timezone(datetime.timedelta(hours=2))


class Base(DeclarativeBase):
    """The declarative base of the tests' tables."""


class Event(Base):
    """Something that happens at a moment."""

    __tablename__ = 'events'

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True))


class App(OrmCacheApp):
    @orm_cached(policy=rows(Event.at))
    def events(self, at: datetime.datetime) -> list[int]:
        return list(self.session().scalars(select(Event.id).where(Event.at == at)))


@pytest.mark.parametrize('at', [NOON, NOON.astimezone(ZONE), NOON.replace(tzinfo=ZONE)])
@pytest.mark.parametrize('looked_for', [NOON, NOON.astimezone(ZONE), NOON.replace(tzinfo=ZONE)])
def test_moments_with_time_zones(
    applications: Applications,
    tenant: str,
    at: datetime.datetime,
    looked_for: datetime.datetime,
) -> None:
    """A row with a moment evicts what the database finds by an equal one. PostgreSQL compares
    moments, and SQLite what the clocks show."""
    app = applications.start(App, base=Base)
    assert value(app, tenant, lambda app: app.events(looked_for)) == []
    change(app, tenant, Event(id=1, at=at))
    by_clock = applications.backend.name == 'embedded'
    is_found = (
        at.replace(tzinfo=None) == looked_for.replace(tzinfo=None)
        if by_clock
        else at == looked_for
    )
    assert value(app, tenant, lambda app: app.events(looked_for)) == ([1] if is_found else [])


class Absolute(types.TypeDecorator[int]):
    """Gives the database an expression instead of the value."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value

    def bind_expression(self, bindparam: Any) -> Any:
        return func.abs(bindparam)


class Address(types.TypeDecorator[str]):
    """A text, for which PostgreSQL has a type that finds different texts equal."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        is_own = dialect.name == 'postgresql'
        return dialect.type_descriptor(postgresql.INET() if is_own else String())

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value


@pytest.mark.parametrize(
    'type_',
    [
        Absolute(),
        Address(),
        DateTime().with_variant(postgresql.TIMESTAMP(precision=0), 'postgresql'),
        DateTime().with_variant(sqlite.DATETIME(truncate_microseconds=True), 'sqlite'),
        sqlite.DATE(storage_format='%(year)04d%(month)02d', regexp=r'(\d{4})(\d{2})'),
        String().with_variant(String(collation='any'), 'postgresql'),
        String().with_variant(Integer(), 'sqlite'),
    ],
    ids=repr,
)
def test_types_that_only_the_database_compares(type_: Any) -> None:
    """A column is refused if the database gets other values, or if its type for one database
    rounds, or finds different values equal."""
    table = Table('t', MetaData(), Column('c', type_))
    with pytest.raises(PolicyError, match='only the database knows'):
        resolve_rows(rows(table.c.c), 'here')
