"""The tables that all contestants read and change: the same rows for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, insert, inspect, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema

#: The number of items: as many as the largest flush changes.
ITEMS = 1000
#: The number of categories. Property ``i`` shows the items of category ``i`` modulo this.
CATEGORIES = 50
#: The number of roles. Role ``r`` sees the items up to level ``r``.
ROLES = 20


class Base(DeclarativeBase):
    """The base of the benchmarks' tables."""


class Item(Base):
    """A row that the properties show."""

    __tablename__ = 'items'

    id: Mapped[int] = mapped_column(primary_key=True)
    category: Mapped[int] = mapped_column(index=True)
    level: Mapped[int]
    name: Mapped[str]
    value: Mapped[int]


class Node(Base):
    """A page of the large tree."""

    __tablename__ = 'nodes'

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None]
    title: Mapped[str]


def items_of(number: int, role: int | None = None) -> Any:
    """Return the query of a property: twenty rows, or only those of them that the role sees."""
    query = select(Item.id, Item.name).where(Item.category == number % CATEGORIES)
    if role is not None:
        query = query.where(Item.level <= role)
    return query.order_by(Item.id)


def item_rows() -> list[dict[str, Any]]:
    return [
        {
            'id': at,
            'category': at % CATEGORIES,
            'level': at // CATEGORIES % ROLES,
            'name': f'Item {at} of category {at % CATEGORIES}',
            'value': 0,
        }
        for at in range(ITEMS)
    ]


def node_rows(nodes: int) -> list[dict[str, Any]]:
    """A tree in which each page has up to thirty below it."""
    return [
        {'id': at, 'parent_id': (at - 1) // 30 if at else None, 'title': f'Page {at}'}
        for at in range(nodes)
    ]


def create(dsn: str, schema: str, nodes: int = 0) -> None:
    """Create the schema and its tables, and fill them."""
    engine = create_engine(dsn)
    with engine.begin() as connection:
        connection.execute(CreateSchema(schema))
        connection.execute(text(f'SET LOCAL search_path TO "{schema}"'))
        Base.metadata.create_all(connection)
        connection.execute(insert(Item), item_rows())
        for start in range(0, nodes, 5000):
            connection.execute(insert(Node), node_rows(nodes)[start : start + 5000])
        connection.execute(text('ANALYZE items'))
        connection.execute(text('ANALYZE nodes'))
    engine.dispose()


#: Makes a schema with the tables of another one, and with their first rows.
CREATE_LIKE = """
CREATE SCHEMA {name};
CREATE TABLE {name}.items (LIKE {model}.items INCLUDING ALL);
CREATE TABLE {name}.nodes (LIKE {model}.nodes INCLUDING ALL);
INSERT INTO {name}.items SELECT * FROM {model}.items WHERE id < 20
"""
#: The number of schemas per transaction, for which PostgreSQL's lock table has room.
AT_ONCE = 100


def create_many(dsn: str, schemas: Sequence[str]) -> None:
    """Create many schemas with few rows each, in plain SQL, which alone is fast enough."""
    model = 'model'
    engine = create_engine(dsn)
    with engine.connect() as connection:
        if not inspect(connection).has_schema(model):
            create(dsn, model)
        quote = engine.dialect.identifier_preparer.quote_identifier
        for start in range(0, len(schemas), AT_ONCE):
            for schema in schemas[start : start + AT_ONCE]:
                statements = CREATE_LIKE.format(name=quote(schema), model=quote(model))
                connection.exec_driver_sql(statements)
            connection.commit()
    engine.dispose()


@contextmanager
def own_database(dsn: str, name: str) -> Iterator[str]:
    """Create a database beside that of the URL, give its URL, and drop it after the block."""
    engine = create_engine(dsn, isolation_level='AUTOCOMMIT')
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
        try:
            yield make_url(dsn).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
    engine.dispose()


def tree_of(rows: Any) -> dict[str, Any]:
    """The rows (id, parent, title), in the order of their ids, as a tree of dictionaries."""
    found: dict[int, dict[str, Any]] = {}
    for id, parent_id, title in rows:
        node = found[id] = {'id': id, 'title': title, 'children': []}
        if parent_id is not None:
            found[parent_id]['children'].append(node)
    return found[0]
