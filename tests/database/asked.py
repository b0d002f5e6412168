"""A tenant with tables of every kind on PostgreSQL, and what an inquiry answers about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.inquiries import PostgresInquiry
from onegov_ormcache.database.protocols import Changes, Reads
from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import FakeScope, open_scope


class Base(DeclarativeBase):
    """The tables that the metadata knows; the database has others."""


class Person(Base):
    """Anybody."""

    __tablename__ = 'people'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class Page(Base):
    """Anything to read."""

    __tablename__ = 'pages'

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]


class Common(Base):
    """A row that all tenants share."""

    __tablename__ = 'common'
    __table_args__ = {'schema': 'shared_by_asked'}

    id: Mapped[int] = mapped_column(primary_key=True)


#: What only the database has. `{other}` is another tenant.
DEFINITIONS = (
    'INSERT INTO people SELECT n, n::text FROM generate_series(1, 3) n',
    'INSERT INTO pages SELECT n, n::text FROM generate_series(1, 3) n',
    'CREATE TABLE child (id int, person_id int REFERENCES people ON DELETE CASCADE)',
    'INSERT INTO child VALUES (1, 1)',
    'CREATE VIEW simple AS SELECT id, name FROM people',
    'CREATE VIEW above AS SELECT id FROM simple',
    'CREATE VIEW counts AS SELECT (SELECT count(*) FROM pages) AS n FROM people',
    'CREATE MATERIALIZED VIEW kept AS SELECT count(*) AS n FROM pages',
    'CREATE TABLE parts (id int) PARTITION BY RANGE (id)',
    'CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)',
    'CREATE TABLE loose (id int)',
    'CREATE TABLE heir (more int) INHERITS (loose)',
    'CREATE TABLE noted (id int)',
    'CREATE TABLE watched (id int)',
    ("CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN INSERT INTO noted VALUES (1); RETURN NEW; END'"),
    'CREATE TRIGGER note AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION note()',
    'CREATE TABLE later (id int)',
    ('CREATE CONSTRAINT TRIGGER note AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED '
    'FOR EACH ROW EXECUTE FUNCTION note()'),
    'CREATE TABLE ruled (id int)',
    'CREATE RULE ruled AS ON INSERT TO ruled DO ALSO INSERT INTO noted VALUES (2)',
    ("CREATE FUNCTION change_pages() RETURNS int LANGUAGE sql AS "
    "'UPDATE pages SET title = title; SELECT 1'"),
    ("CREATE FUNCTION count_pages() RETURNS bigint LANGUAGE sql STABLE AS "
    "'SELECT count(*) FROM pages'"),
    ("CREATE FUNCTION careful() RETURNS int LANGUAGE plpgsql AS $$ BEGIN BEGIN "
    "PERFORM count(*) FROM pages; RAISE 'x'; EXCEPTION WHEN OTHERS THEN RETURN 1; END; END $$"),
    'CREATE SEQUENCE numbers',
    "CREATE TYPE mood AS ENUM ('a', 'b')",
    'INSERT INTO loose VALUES (1)',
    'CREATE TABLE {other}.theirs (id int)',
    'INSERT INTO {other}.people VALUES (1)',
    'INSERT INTO {other}.pages VALUES (1)',
    'CREATE VIEW {other}.view_of_ours AS SELECT id FROM {tenant}.people',
)  # fmt: skip


@contextmanager
def asking(dsn: str, tenant: str, other: str) -> Iterator[SessionManager]:
    """Make a session manager whose two tenants have the tables."""
    manager = SessionManager(dsn, Base)
    for schema in (tenant, other):
        manager.ensure_schema_exists(schema)
    with create_engine(dsn, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql(f'SET LOCAL search_path = {tenant}')
        for definition in DEFINITIONS:
            connection.exec_driver_sql(definition.format(tenant=tenant, other=other))
    try:
        yield manager
    finally:
        manager.dispose()


class Asked:
    """One transaction, in which a test executes statements and asks.

    `tenant` and `other` can be used in the statements, as `{tenant}` and `{other}`.
    """

    def __init__(self, scope: FakeScope, tenant: str, other: str) -> None:
        self.scope = scope
        self.connection: Connection = scope.session().connection()
        self.names = {'tenant': tenant, 'other': other}
        found = scope.listeners[-1].inquiry
        assert isinstance(found, PostgresInquiry)
        self.inquiry = found

    @property
    def driver(self) -> Any:
        """The driver's connection."""
        return self.connection.connection.dbapi_connection

    def do(self, *statements: str) -> None:
        """Execute statements."""
        for statement in statements:
            self.connection.exec_driver_sql(statement.format(**self.names))

    def named(self, relations: Any) -> set[str]:
        """Return relations as one would name them from the tenant."""
        tenant, other = self.names['tenant'], self.names['other']
        prefixes = {tenant: '', other: 'other.'}
        return {f'{prefixes.get(r.schema, f"{r.schema}.")}{r.name}' for r in relations}

    def changed(self) -> set[str]:
        """Return the relations that the transaction may have changed."""
        return self.named(self.inquiry.changes().relations)

    def last_changes(self) -> Changes:
        """Return what is answered directly before COMMIT."""
        return self.inquiry.last_changes(is_unclear=True)

    def reads(self, read: Callable[[], object]) -> Reads:
        """Return what is answered about what a function reads."""
        since = self.inquiry.watch_reads()
        read()
        return self.inquiry.reads(since)

    def reads_of(self, *statements: str) -> set[str]:
        """Return the relations that statements read, which are known."""
        reads = self.reads(lambda: self.do(*statements))
        assert reads.unknowable is None, reads.unknowable
        return self.named(reads.relations)


@contextmanager
def transaction(manager: SessionManager, tenant: str, other: str) -> Iterator[Asked]:
    """Open a scope with a transaction, which is rolled back."""
    with open_scope(manager, tenant) as scope:
        yield Asked(scope, tenant, other)
