"""Tenants have types of their own, and one pooled connection works for all of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from onegov_ormcache.database.prepared import keep_apart
from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import open_scope
from tests.database.tenants.conftest import ONE_CONNECTION

#: More executions than after which psycopg prepares a statement by default.
MANY = 8


class State(enum.Enum):
    """The type of the column; its members are those of the database's type."""

    draft = 'draft'
    published = 'published'


class Base(DeclarativeBase):
    """The tables of these tests."""


class Article(Base):
    """An article, whose state is of a type that each tenant's schema has for itself."""

    __tablename__ = 'articles'

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[State]


@pytest.fixture
def manager(dsn: str) -> Iterator[SessionManager]:
    """A session manager with one connection per engine, and without tenants."""
    made = SessionManager(dsn, Base, engine_options=ONE_CONNECTION)
    yield made
    made.dispose()


@pytest.fixture
def tenants(manager: SessionManager, make_tenant: Callable[[str], str]) -> list[str]:
    """Two tenants, each with an article."""
    names = [make_tenant('a'), make_tenant('b')]
    for name in names:
        manager.ensure_schema_exists(name)
        with open_scope(manager, name) as scope:
            scope.session().add(Article(state=State.draft))
            scope.session().commit()
    return names


def by_orm(session: Session) -> Any:
    session.expire_all()
    return session.scalars(select(Article).where(Article.state == State.draft)).first().state


def by_core(session: Session) -> Any:
    return session.execute(select(Article.state)).scalars().first()


def by_text(session: Session) -> Any:
    return State[session.execute(text('SELECT state FROM articles')).scalars().first()]


def by_returning(session: Session) -> Any:
    inserted = insert(Article).values(state=State.draft).returning(Article.state)
    return session.execute(inserted).scalar_one()


@pytest.mark.parametrize('read', [by_orm, by_core, by_text, by_returning])
def test_enum_column_of_two_tenants(
    manager: SessionManager, tenants: list[str], read: Callable[[Session], Any]
) -> None:
    """A statement that gives an enum works for two tenants in turn, however often it is
    executed on their one connection."""
    for tenant in tenants * 2:
        with open_scope(manager, tenant) as scope:
            assert [read(scope.session()) for _ in range(MANY)] == [State.draft] * MANY
            # psycopg forgets what it has prepared after a rollback, but not after a commit
            scope.session().commit()


@pytest.mark.parametrize(
    ('kind', 'literal', 'expected'),
    [
        ("CREATE DOMAIN kind AS text CHECK (VALUE <> '')", "'a'", 'a'),
        ('CREATE TYPE kind AS (a int, b text)', "'(1,a)'", '(1,a)'),
        ('CREATE TYPE kind AS RANGE (subtype = int)', "'[1,2)'", '[1,2)'),
        ('CREATE DOMAIN kind AS {base}', '1', '1'),
    ],
    ids=['domain', 'composite', 'range', 'migrated'],
)
def test_other_types_of_two_tenants(
    postgres_dsn: str, make_tenant: Callable[[str], str], kind: str, literal: str, expected: str
) -> None:
    """The same for a domain, a composite type, a range type, and a type that only one of the
    tenants has been migrated to."""
    manager = SessionManager(postgres_dsn, Base, engine_options=ONE_CONNECTION)
    tenants = [make_tenant('a'), make_tenant('b')]
    for tenant, base in zip(tenants, ('int', 'text'), strict=True):
        manager.ensure_schema_exists(tenant)
        with open_scope(manager, tenant) as scope:
            connection = scope.session().connection()
            connection.exec_driver_sql(kind.format(base=base))
            connection.exec_driver_sql('CREATE TABLE things (value kind)')
            connection.exec_driver_sql(f'INSERT INTO things VALUES ({literal})')
            scope.session().commit()
    for tenant in tenants * 2:
        with open_scope(manager, tenant) as scope:
            for _ in range(MANY):
                rows = scope.session().execute(text('SELECT value FROM things'))
                assert [str(row[0]) for row in rows] == [expected]
            scope.session().commit()
    manager.dispose()


def test_driver_whose_statements_can_not_be_kept_apart() -> None:
    """If psycopg offers no way to tell tenants apart, it prepares nothing; other drivers are left
    alone."""
    for prepared in ({}, {'_prepared': object()}):
        changed = SimpleNamespace(prepare_threshold=5, **prepared)
        keep_apart(cast('Any', SimpleNamespace(connection=Checkout(changed))), 'a')
        assert changed.prepare_threshold is None
    other = SimpleNamespace()
    keep_apart(cast('Any', SimpleNamespace(connection=Checkout(other))), 'a')
    assert vars(other) == {}


class Checkout(NamedTuple):
    """What the pool gives out for a connection of the driver."""

    dbapi_connection: SimpleNamespace


def test_preparing_that_was_asked_for(postgres_dsn: str, tenant: str) -> None:
    """An application that asks for prepared statements gets them."""
    options: Any = {**ONE_CONNECTION, 'connect_args': {'prepare_threshold': 2}}
    manager = SessionManager(postgres_dsn, Base, engine_options=options)
    manager.ensure_schema_exists(tenant)
    with open_scope(manager, tenant) as scope:
        for _ in range(MANY):
            scope.session().execute(select(Article.id)).all()
        prepared = scope.session().execute(
            text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%articles%'")
        )
        assert prepared.scalar_one() == 1
    assert options['connect_args'] == {'prepare_threshold': 2}
    manager.dispose()
