"""What docs/values.rst says of each type of PostgreSQL and SQLAlchemy holds on a real server."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy
from docutils import nodes
from psycopg.types.composite import CompositeInfo, register_composite
from sqlalchemy import ColumnElement, create_engine, literal_column, select, text, type_coerce
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DataError, NotSupportedError
from sqlalchemy.types import TypeEngine

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.errors import ValueNotCacheable
from tests.support.applications import Applications, value
from tests.support.models import User
from tests.support.outside import outside
from tests.test_docs import DOCS, tree
from tests.tiers.serializable import form


class Mood(enum.StrEnum):
    GOOD = 'good'


class TableRow(NamedTuple):
    """One row of a table of types."""

    types: list[str]
    examples: list[str]
    kinds: list[str]
    kept: str


def table_rows(of: str) -> list[TableRow]:
    """Return the rows of the table whose first column has this title."""
    for table in tree(DOCS / 'values.rst').findall(nodes.table):
        head, *body = table.findall(nodes.row)
        if next(iter(head.findall(nodes.entry))).astext() == of:
            return [read_row(row) for row in body]
    raise LookupError(of)


def read_row(row: nodes.row) -> TableRow:
    """Return a row; each literal of its cells is a type, an example, or a Python type."""
    cells = list(row.findall(nodes.entry))
    literals = [[found.astext() for found in cell.findall(nodes.literal)] for cell in cells]
    return TableRow(literals[0], literals[1], literals[2], cells[3].astext())


def types_of_sqlalchemy(name: str) -> Iterator[TypeEngine[Any]]:
    """Yield a type for each class of this name."""
    for cls in {getattr(module, name, None) for module in (sqlalchemy.types, postgresql)}:
        if cls is None:
            continue
        if issubclass(cls, sqlalchemy.Enum):
            yield cls(Mood, name='mood')
            yield cls('GOOD', name='mood')
        elif issubclass(cls, sqlalchemy.ARRAY):
            yield cls(sqlalchemy.Integer)
        elif name == 'DOMAIN':
            yield cls('positive', sqlalchemy.Integer)
        else:
            yield cls()


def examples(title: str) -> Iterator[tuple[TableRow, ColumnElement[Any]]]:
    """Yield an expression for each example and type of a table."""
    for row in table_rows(title):
        for example in row.examples:
            for name in row.types:
                if title == 'Type of PostgreSQL':
                    yield row, literal_column(f'CAST({example} AS {name})')
                else:
                    for kind in types_of_sqlalchemy(name):
                        yield row, type_coerce(literal_column(example), kind)


def named(cls: type) -> str:
    """Return the name of a class as the documentation has it."""
    if getattr(postgresql, cls.__name__, None) is cls:
        return f'{postgresql.__name__}.{cls.__name__}'
    return cls.__name__ if cls.__module__ == 'builtins' else f'{cls.__module__}.{cls.__name__}'


class Reads:
    """An app that has a property for each expression, and what the creators returned."""

    def __init__(self, expressions: list[ColumnElement[Any]]) -> None:
        self.returned: dict[str, list[Any]] = {}
        self.names = {f'value_{number}': each for number, each in enumerate(expressions)}
        properties = {
            name: orm_cached(policy=User)(self._creator(name, each))
            for name, each in self.names.items()
        }
        self.app_class: Any = type('App', (OrmCacheApp,), properties)

    def _creator(self, name: str, expression: ColumnElement[Any]) -> Callable[[Any], Any]:
        def creator(app: Any) -> Any:
            found = app.session().execute(select(expression)).scalar()
            self.returned.setdefault(name, []).append(found)
            return found

        return creator


def compare_readers(on_servers: Applications, tenant: str, title: str) -> None:
    """Compare what the readers of each example of a table get with what the table says."""
    cases = list(examples(title))
    reads = Reads([expression for _, expression in cases])
    app = on_servers.start(reads.app_class)
    elsewhere = on_servers.elsewhere(app)
    wrong = {}
    for (row, expression), name in zip(cases, reads.names, strict=True):
        read = lambda app, name=name: getattr(app, name)  # noqa: E731
        if row.kept == 'no value':
            with pytest.raises(DataError):
                value(app, tenant, read)
            continue
        try:
            first = value(app, tenant, read)
        except NotSupportedError:  # a server can be built without XML
            assert row.types == ['xml']
            continue
        second, third = value(app, tenant, read), value(app, tenant, read)
        original = reads.returned[name][0]
        readers = [first, second, third, value(elsewhere, tenant, read)]
        found = {
            'equal': all(form(each) == form(original) for each in readers),
            'kind': named(type(original)) in row.kinds or isinstance(original, Mood),
            'kept': 'shared' if second is third else 'copied',
            'runs': len(reads.returned[name]),
        }
        if found != {'equal': True, 'kind': True, 'kept': row.kept, 'runs': 1}:
            wrong[str(expression), repr(getattr(expression, 'type', None))] = original, found
    assert not wrong
    kinds = {kind for row in table_rows(title) for kind in row.kinds}
    seen = {named(type(found)) for every in reads.returned.values() for found in every}
    if not hasattr(postgresql, 'BitString'):  # SQLAlchemy 2.0
        kinds.discard('sqlalchemy.dialects.postgresql.BitString')
    assert kinds <= seen


def test_types_of_postgresql(on_servers: Applications, tenant: str) -> None:
    """What psycopg gives of each type comes back exactly, to each reader, as the table says."""
    compare_readers(on_servers, tenant, 'Type of PostgreSQL')


def test_types_of_sqlalchemy(on_servers: Applications, tenant: str) -> None:
    """What each type of SQLAlchemy gives comes back exactly, to each reader, as the table says."""
    compare_readers(on_servers, tenant, 'Type of SQLAlchemy')


def test_each_type_of_postgresql_is_listed(postgres_dsn: str) -> None:
    """The table has each type that the server has, apart from pseudo-types."""
    listed = {name for row in table_rows('Type of PostgreSQL') for name in row.types}
    types = (
        'SELECT oid FROM pg_type '
        "WHERE typnamespace = 'pg_catalog'::regnamespace "
        "AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A'"
    )
    engine = create_engine(postgres_dsn)
    with engine.connect() as connection:
        server = set(connection.scalars(text(types)))
        named = 'SELECT to_regtype(name)::oid FROM unnest(CAST(:names AS text[])) AS name'
        known = set(connection.scalars(text(named), {'names': sorted(listed)}))
    engine.dispose()
    assert len(server) > 60
    assert server <= known
    assert None not in known


def test_each_type_of_sqlalchemy_is_listed() -> None:
    """The table has each public type of SQLAlchemy and of its PostgreSQL dialect."""
    listed = {name for row in table_rows('Type of SQLAlchemy') for name in row.types}
    types = {
        name
        for module in (sqlalchemy, sqlalchemy.types, postgresql)
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, TypeEngine) and not name.startswith('_')
    }
    assert len(types) > 80
    assert types <= listed


def test_types_of_the_database(on_servers: Applications, tenant: str) -> None:
    """Enum, composite and range types of the application's own come as texts, and domains as
    what they are based on."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def own(self) -> Any:
            columns = (
                "CAST('good' AS mood), CAST(ROW(1, 'a') AS pair), CAST(3 AS positive), "
                "CAST('[a,b)' AS textrange)"
            )
            row = self.session().execute(text(f'SELECT {columns}')).one()
            return tuple(row)

    app = on_servers.start(App)
    make_types(app, tenant)
    for each in (app, app, on_servers.elsewhere(app)):
        assert value(each, tenant, lambda app: app.own) == ('good', '(1,a)', 3, '[a,b)')


def test_composite_types_registered_with_psycopg(on_servers: Applications, tenant: str) -> None:
    """psycopg's class for a registered composite type is refused, and the message says that it
    belongs into the setting `types`; with it the value comes back."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def pair(self) -> Any:
            driver = self.session().connection().connection.driver_connection
            register_composite(info, driver)
            return self.session().execute(text("SELECT CAST(ROW(1, 'a') AS pair)")).scalar()

    app = on_servers.start(App)
    make_types(app, tenant)
    with outside(on_servers.backend.settings['dsn'], tenant) as connection:
        info: Any = CompositeInfo.fetch(connection, 'pair')
        register_composite(info, connection)
    with pytest.raises(ValueNotCacheable, match=r'not registered\. Add the class to .*types'):
        value(app, tenant, lambda app: app.pair)
    registered = on_servers.start(App, types=(info.python_type,))
    for each in (registered, registered, on_servers.elsewhere(registered)):
        found = value(each, tenant, lambda app: app.pair)
        assert type(found) is info.python_type
        assert (found.x, found.y) == (1, 'a')


def make_types(app: OrmCacheApp, tenant: str) -> None:
    """Create an enum, a composite, a domain and a range type in the tenant's schema."""
    with app.request_scope(tenant) as scope:
        for statement in (
            "CREATE TYPE mood AS ENUM ('good')",
            'CREATE TYPE pair AS (x integer, y text)',
            'CREATE DOMAIN positive AS integer CHECK (VALUE > 0)',
            'CREATE TYPE textrange AS RANGE (subtype = text)',
        ):
            scope.session().execute(text(statement))
        scope.session().commit()
