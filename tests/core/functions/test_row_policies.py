"""Which columns a policy for rows may name, and what else is refused where."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Date,
    DateTime,
    Integer,
    MetaData,
    Numeric,
    PickleType,
    String,
    Table,
    TypeDecorator,
    func,
    select,
    types,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from onegov_ormcache import OrmCache, OrmCacheApp, orm_cached, rows
from onegov_ormcache.core.row_kinds import kind_of
from onegov_ormcache.errors import PolicyError
from tests.core.functions.books import Base, Book, Shelf
from tests.support.applications import Applications
from tests.support.backends import Backend


class Folded(TypeDecorator[str]):
    """A text of which the database makes another one."""

    impl = String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.lower(bindparam)


class Shown(TypeDecorator[str]):
    """A text that the database shows as another one."""

    impl = String
    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return func.lower(column)


class Raw(TypeDecorator[str]):
    """A text that is given to the driver in a way of its own."""

    impl = String
    cache_ok = True

    def bind_processor(self, dialect: Any) -> Any:
        return str.lower


class Own(types.UserDefinedType[str]):
    """A type of the application's own."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return 'TEXT'


class OwnString(String):
    """A type of the application's own, which is derived from one that is known."""


class Decorated(TypeDecorator[str]):
    """A decorated type that can't be compared."""

    impl = JSON
    cache_ok = True


TYPES = {
    'json': JSON(), 'own': Own(), 'own_string': OwnString(), 'decorated': Decorated(),
    'folded': Folded(), 'shown': Shown(), 'raw': Raw(), 'pickled': PickleType(),
    'collated': String(collation='C'), 'array': postgresql.ARRAY(Integer),
    'inet': postgresql.INET(), 'range': postgresql.INT4RANGE(),
    'rounded': postgresql.TIMESTAMP(precision=0),
    'tens': Numeric(10, -1), 'cut': sqlite.DATETIME(truncate_microseconds=True),
    'months': sqlite.DATE(storage_format='%(year)04d-%(month)02d'), 'hstore': postgresql.HSTORE(),
    'variant': DateTime().with_variant(postgresql.TIMESTAMP(precision=0), 'postgresql'),
    'other': String().with_variant(Integer(), 'sqlite'), 'bits': postgresql.BIT(3),
    'collated_variant': String().with_variant(String(collation='NOCASE'), 'sqlite'),
    'domain': postgresql.DOMAIN('positive', Integer),
}  # fmt: skip

#: A table that the application does not have.
foreign = Table('others', MetaData(), Column('id', Integer))

odd = Table('odd', MetaData(), *(Column(name, kind) for name, kind in TYPES.items()))


def declared(policy: Callable[[], Any], creator: Callable[..., Any]) -> type[OrmCacheApp]:
    """Return an app class with one function of a policy."""

    class App(OrmCacheApp):
        pass

    App.orm_cached(policy=policy(), name='found')(creator)
    return App


def of_id(app: Any, id: Any) -> Any:
    return id


def refusal(backend: Backend, policy: Callable[[], Any], creator: Callable[..., Any]) -> str:
    """Return the message by which a policy is refused, at the latest when the app starts."""
    with ExitStack() as stack, pytest.raises(PolicyError) as caught:
        applications = Applications(backend, stack)
        applications.start(declared(policy, creator), base=Base)
    return str(caught.value)


@pytest.mark.parametrize(
    ('policy', 'message'),
    [
        (lambda: rows(), r'names no column; write rows\(Book\.id\)'),
        (lambda: rows('books.id'), 'this is no column'),
        (lambda: rows(Book), 'this is no column'),
        (lambda: rows(None), 'this is no column'),
        (lambda: rows(5), 'this is no column'),
        (lambda: rows([Book.id]), 'this is no column'),
        (lambda: rows(Book.__table__), 'this is no column'),
        (lambda: rows(Book.id + 1), 'this is no column'),
        (lambda: rows(func.lower(Book.title)), 'this is no column'),
        (lambda: rows(Book.id == 3), 'this is no column'),
        (lambda: rows(Book.loud), 'this is no column'),
        (lambda: rows(Book.also), 'this is no column'),
        (lambda: rows(Book.id, argument=5), 'argument=5 must name'),
        (lambda: rows(Book.id, argument=('id', 'page')), 'must name'),
        (lambda: rows(Book.id, argument=()), 'must name'),
        (lambda: rows(Book.id, argument=[5]), 'must name'),
        (lambda: rows(Book.id, Book.title, argument='id'), 'there are 2'),
    ],
)
def test_what_is_no_column(policy: Callable[[], Any], message: str) -> None:
    """What names no column is refused where it is written."""
    with pytest.raises(PolicyError, match=message):
        policy()


@pytest.mark.parametrize(
    ('policy', 'message'),
    [
        (lambda: rows(Book.shelf), 'is a relationship and no column'),
        (lambda: rows(Book.shout), 'is an expression and no column'),
        (lambda: rows(Book.length), 'is computed by the database'),
        (lambda: rows(Book.__table__.c.length), 'is computed by the database'),
        (lambda: rows(aliased(Book).id), 'is of an alias'),
        (lambda: rows(Book.__table__.alias().c.id), 'is an expression and no column'),
        (lambda: rows(select(Book).subquery().c.id), 'is an expression and no column'),
        (lambda: rows(Column('id', Integer)), 'is an expression and no column'),
        (lambda: rows(Book.id, Shelf.id, argument=('id', 'id')), 'columns of different tables'),
        (lambda: rows(foreign.c.id), 'which the application does not have'),
        (lambda: rows(Book.id, argument='number'), r'needs an argument .* takes id beside'),
        (lambda: rows(Book.id, Book.title), r'needs an argument .* takes id beside'),
        (lambda: [rows(Shelf.id), [rows(Book.shelf)]], 'is a relationship'),
        (lambda: Book.id, r'an argument that it equals, write rows\(Book\.id\)'),
    ],
)
def test_columns_that_tell_no_rows(
    embedded_backend: Backend, policy: Callable[[], Any], message: str
) -> None:
    """The error comes when the app starts, with the property, file and line."""
    found = refusal(embedded_backend, policy, of_id)
    assert 'found' in found
    assert 'test_row_policies.py:' in found
    assert re.search(message, found), found


def test_a_policy_for_rows_needs_an_argument(embedded_backend: Backend) -> None:
    """A property without arguments depends on no single rows."""
    found = refusal(embedded_backend, lambda: rows(Book.id), lambda app: None)
    assert 'takes none beside the instance' in found


@pytest.mark.parametrize('name', sorted(TYPES))
def test_types_that_only_the_database_compares(embedded_backend: Backend, name: str) -> None:
    """A column whose values only the database can compare is refused, with the reason."""
    with ExitStack() as stack:
        cache = stack.enter_context(OrmCache(base=Base, **embedded_backend.settings))

        class Reader:
            @orm_cached(policy=rows(odd.c[name]))
            def found(self, value: Any) -> Any:
                return value

        with pytest.raises(PolicyError, match=rf'odd\.{name} has the type .*the mapped class'):
            cache.bind(Reader)


def test_types_with_variants() -> None:
    """A type that is compared in the same way on each database is as good as one without
    variants."""
    for kind in (
        Date().with_variant(Date(), 'sqlite'),
        BigInteger().with_variant(Integer(), 'sqlite'),
        String().with_variant(postgresql.CITEXT(), 'postgresql'),
    ):
        assert kind_of(kind, 'here').name in {'date', 'int', 'text'}
