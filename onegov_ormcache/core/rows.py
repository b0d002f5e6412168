"""Policies for rows: a value depends on the rows of a table whose columns equal its arguments.

There is no tag for each row. A row belongs to one of 256 buckets, by a hash of the columns that
the policy names, and each bucket has a tag. Two rows with values that are equal for
the database are in one bucket. That two others are, too, costs a run of a creator now and then.
This module knows columns, values and tags. It does not know statements, nor how a change evicts.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import product
from typing import Any, TypeAlias

from sqlalchemy import Column, Table, inspect
from sqlalchemy.orm import ColumnProperty, InstrumentedAttribute, Mapper
from sqlalchemy.orm.exc import UnmappedColumnError

from ..database.protocols import RowTexts, Selection
from ..database.sessions import ANY_TABLE
from ..errors import PolicyError
from ..tags.snapshot import BUCKETS, PROPERTY_TAG, ROWS_TAG
from .row_kinds import Kind, kind_of

#: What a policy for rows names.
RowColumn: TypeAlias = 'InstrumentedAttribute[Any] | Column[Any]'

#: The most buckets of one policy that a transaction changes; more are all rows.
MAX_BUCKETS = 64


class Rows:
    """A policy for rows as it is declared; made by :func:`rows`.

    :param columns: the columns that together identify the rows.
    :param arguments: the parameters of the creator whose values they equal; None: the first ones.
    """

    def __init__(
        self, columns: tuple[RowColumn, ...], arguments: tuple[str, ...] | None
    ) -> None:
        self.columns = columns
        self.arguments = arguments

    def __repr__(self) -> str:
        named = [str(column) for column in self.columns]
        if self.arguments is not None:
            given = self.arguments[0] if len(self.arguments) == 1 else self.arguments
            named.append(f'argument={given!r}')
        return f'rows({", ".join(named)})'


def rows(*columns: RowColumn, argument: str | Sequence[str] | None = None) -> Rows:
    """Make a policy: the value depends on the rows whose column equals an argument.

    A change of other rows does not evict it. All rows count as changed if a change does not tell
    which ones: bulk statements, for example.

    :param columns: a mapped attribute (``Book.id``) or a column of a ``Table``; several that
        identify the rows together, such as those of a composite key. The rows of a mapped class
        are those of all tables that it is mapped to.
    :param argument: the creator's parameter, or one for each column; by default the first ones.
    :raises PolicyError: if no column is given, something else is given, or the number of arguments
        is another one than that of the columns.
    """
    if not columns:
        raise PolicyError('rows() names no column; write rows(Book.id)')
    for column in columns:
        if not isinstance(column, (InstrumentedAttribute, Column)):
            raise PolicyError(
                f'rows({column!r}): this is no column; name a mapped attribute, as in '
                'rows(Book.id), or a column of a Table'
            )
    if argument is None:
        return Rows(columns, None)
    given = (argument,) if isinstance(argument, str) else argument
    arguments = tuple(given) if isinstance(given, Iterable) else ()
    if len(arguments) != len(columns) or not all(isinstance(each, str) for each in arguments):
        raise PolicyError(
            f'rows(): argument={argument!r} must name one parameter of the creator for each '
            f'column; there are {len(columns)}'
        )
    return Rows(columns, arguments)


class RowPolicy:
    """A policy for rows that was checked; equal for all properties that name the same columns.

    :param tables: the tables whose rows these are, each with the names of its columns that the
        policy names, in their order; None for a table that lacks one of them.
    :param kinds: how the values of each column are compared.
    """

    def __init__(
        self, tables: Mapping[str, tuple[str, ...] | None], kinds: tuple[Kind, ...]
    ) -> None:
        self.tables = tables
        self.kinds = kinds
        places = (f'{table}.{",".join(names or "*")}' for table, names in sorted(tables.items()))
        # what a value's tag stands for must be the same in all releases, so the tag tells all that
        # it depends on
        label = f'{"+".join(places)}:{",".join(kind.name for kind in kinds)}'
        #: The tag of all rows. It is registered like that of a function policy: a writer that
        #: does not know the policy changes it by any change.
        self.tag = PROPERTY_TAG + ROWS_TAG + label
        self._prefix = f'{ROWS_TAG}{label}/'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowPolicy) and self.tag == other.tag

    def __hash__(self) -> int:
        return hash(self.tag)

    def __repr__(self) -> str:
        return f'<RowPolicy {self.tag}>'

    def bucket_tag(self, bucket: int) -> str:
        """Return the tag of a bucket."""
        return f'{self._prefix}{bucket}'

    def tags_of(self, buckets: Collection[int] | None) -> frozenset[str]:
        """Return the tags of buckets; None are all rows."""
        return frozenset((self.tag,) if buckets is None else map(self.bucket_tag, buckets))

    def tags_for(self, values: Sequence[object]) -> frozenset[str] | None:
        """Return the tags of the rows whose columns equal these values.

        :return: None if the database may find other rows than those of one bucket.
        """
        texts: list[str] = []
        for kind, value in zip(self.kinds, values, strict=True):
            text = kind.text(value)
            if text is None:
                return None
            texts.append(text)
        return frozenset((self.tag, self.bucket_tag(_bucket(tuple(texts)))))

    def buckets_written(self, values: Sequence[object]) -> Collection[int] | None:
        """Return the buckets of a row that is written with these values.

        There may be several, because the database may round a value.

        :return: None if it is not known.
        """
        texts: list[tuple[str, ...]] = []
        for kind, value in zip(self.kinds, values, strict=True):
            written = kind.texts_written(value)
            if written is None:
                return None
            texts.append(written)
        if len(texts) == 1 and len(texts[0]) == 1:  # almost always; asked for each changed object
            return (_bucket(texts[0]),)
        return {_bucket(each) for each in product(*texts)}

    def buckets_told(self, table: str, told: RowTexts) -> Collection[int] | None:
        """Return the buckets of changed rows of a table, of which triggers have told the values.

        :return: None if it is not known, or if there are more than :data:`MAX_BUCKETS`.
        """
        names = self.tables.get(table)
        if names is None or not told.keys() >= set(names):
            return None
        # which values belong to one row is not told
        parsed = {
            name: tuple(map(kind.parse, told[name]))
            for name, kind in zip(names, self.kinds, strict=True)
        }
        return self.buckets_selected(table, [parsed])

    def buckets_selected(
        self, table: str, selections: Sequence[Selection] | None
    ) -> Collection[int] | None:
        """Return the buckets of the rows of a table that a statement changes.

        :param selections: see :attr:`.Statement.rows`; None: nothing is known.
        :return: None if it is not known, or if there are more than :data:`MAX_BUCKETS`.
        """
        names = self.tables.get(table)
        if names is None or selections is None:
            return None
        found: set[int] = set()
        for selection in selections:
            if not all(name in selection for name in names):
                return None
            for values in product(*(selection[name] for name in names)):
                buckets = self.buckets_written(values)
                if buckets is None:
                    return None
                found.update(buckets)
                if len(found) > MAX_BUCKETS:
                    return None
        return found


def resolve_rows(declared: Rows, where: str) -> RowPolicy:
    """Check a policy for rows, when the mapped classes are complete.

    :param where: the property, with its file and line, for the message.
    :raises PolicyError: if a column is none of a table, is computed by the database, or has a type
        whose values can't be compared here.
    """
    found = [_columns_of(column, where) for column in declared.columns]
    kinds = tuple(kind_of(columns[0].type, f'{where}: {columns[0]}') for columns in found)
    names = [{_name(column.table): column.name for column in columns} for columns in found]
    every = {table for each in found for table in _tables_with(each, declared)}
    tables = {
        table: tuple(each[table] for each in names) if all(table in n for n in names) else None
        for table in every
    }
    if not any(tables.values()):
        raise PolicyError(
            f'{where}: {declared!r} names columns of different tables; write a policy for each: '
            'policy=[rows(...), rows(...)]'
        )
    return RowPolicy(tables, kinds)


def _columns_of(named: RowColumn, where: str) -> Sequence[Column[Any]]:
    """Return the columns of tables that a mapped attribute, or a column, stands for."""
    columns: Sequence[Any] = [named]
    if isinstance(named, InstrumentedAttribute):
        if not isinstance(named.parent, Mapper):
            raise PolicyError(f'{where}: rows({named}) is of an alias; name the mapped class')
        prop = named.property
        if not isinstance(prop, ColumnProperty):
            raise PolicyError(
                f'{where}: rows({named}) is a relationship and no column; name the column of its '
                'foreign key'
            )
        columns = prop.columns
    for column in columns:
        if not (isinstance(column, Column) and isinstance(column.table, Table)):
            raise PolicyError(
                f'{where}: rows({named}) is an expression and no column of a table, so nobody '
                'knows which rows a change concerns'
            )
        if column.computed is not None:
            raise PolicyError(
                f'{where}: rows({named}) is computed by the database, so nobody knows its value '
                'before and after a change; name a column that it is computed from'
            )
    return columns


def _tables_with(columns: Sequence[Column[Any]], declared: Rows) -> Iterable[str]:
    for named in declared.columns:
        if isinstance(named, InstrumentedAttribute):
            yield from (_name(table) for table in named.parent.tables)
    yield from (_name(column.table) for column in columns)


def _name(table: Any) -> str:
    return str(getattr(table, 'fullname', table))


@lru_cache(10_000)
def _bucket(texts: tuple[str, ...]) -> int:
    """Return the bucket of a row, which is the same in all processes and releases."""
    data = '\0'.join(texts).encode(errors='surrogatepass')
    return sha256(data).digest()[0] % BUCKETS


class Plan:
    """How the rows of one mapped class concern one policy; made once for each.

    :param attributes: the keys of the mapped attributes that have the policy's columns; None if
        they do not tell which rows an object has.
    :param identifies: True if statements for objects name the rows by these columns.
    """

    def __init__(
        self, policy: RowPolicy, attributes: tuple[str, ...] | None, identifies: bool
    ) -> None:
        self.policy = policy
        self.attributes = attributes
        self.identifies = identifies


class RowPolicies:
    """The policies for rows of one cache. Made by its registry; replaced, and never changed.

    :param policies: each once.
    """

    def __init__(self, policies: Iterable[RowPolicy] = ()) -> None:
        self._policies = frozenset(policies)
        #: The tags of all rows, one for each policy.
        self.tags = frozenset(policy.tag for policy in self._policies)
        self._by_table: dict[str, list[RowPolicy]] = {}
        for policy in self._policies:
            for table in policy.tables:
                self._by_table.setdefault(table, []).append(policy)
        self._plans: dict[Hashable, tuple[Plan, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._policies)

    def with_policies(self, policies: Iterable[RowPolicy]) -> RowPolicies:
        """Return these policies and others."""
        return RowPolicies({*self._policies, *policies})

    @property
    def columns(self) -> Mapping[str, frozenset[str]]:
        """The columns that tell which rows a statement changes, by table."""
        return {
            table: frozenset(name for each in policies for name in each.tables[table] or ())
            for table, policies in self._by_table.items()
        }

    def of_table(self, table: str) -> Sequence[RowPolicy]:
        """Return the policies for rows of a table."""
        return self._by_table.get(table, ())

    def of_tables(self, tables: Iterable[str]) -> Collection[RowPolicy]:
        """Return the policies for rows of any of these tables; :data:`ANY_TABLE` is all."""
        found: set[RowPolicy] = set()
        for table in tables if self._policies else ():
            if table == ANY_TABLE:
                return self._policies
            found.update(self.of_table(table))
        return found

    def told(
        self, tables: Iterable[str], told: Mapping[str, RowTexts]
    ) -> Iterator[tuple[RowPolicy, Collection[int] | None]]:
        """Yield the policies that changes of tables concern, each with its changed buckets; None
        are all rows.

        :param tables: their names; :data:`ANY_TABLE` is all.
        :param told: what triggers tell of their rows, by table.
        """
        tables = frozenset(tables)
        for policy in self.of_tables(tables):
            for table in {ANY_TABLE}.intersection(tables) or policy.tables.keys() & tables:
                yield policy, policy.buckets_told(table, told.get(table, {}))

    def plans(self, cls: type) -> tuple[Plan, ...]:
        """Return how objects of a mapped class concern the policies."""
        found = self._plans.get(cls)
        if found is None:
            found = self._plans[cls] = tuple(self._plan(inspect(cls)))
        return found

    def _plan(self, mapper: Mapper[Any]) -> Iterable[Plan]:
        tables = {_name(table): table for table in mapper.tables}
        keys = {name: _keys(mapper, _identifying(mapper, tables[name])) for name in tables}
        for policy in {p for table in tables for p in self.of_table(table)}:
            concerned = policy.tables.keys() & tables.keys()
            attributes = _attributes(mapper, tables, keys, policy)
            identifies = attributes is not None and all(
                set(attributes) <= set(keys[name] or ()) for name in concerned
            )
            yield Plan(policy, attributes, identifies)


def _attributes(
    mapper: Mapper[Any],
    tables: Mapping[str, Any],
    keys: Mapping[str, tuple[str, ...] | None],
    policy: RowPolicy,
) -> tuple[str, ...] | None:
    """Return the keys of the attributes of a mapped class that have a policy's columns.

    :param tables: those that the class is mapped to, by name.
    :param keys: for each, the attributes that identify its row.
    :return: None if the class lacks one of them, or if a row of it may belong to several objects:
        a class that is mapped to a join can have one address for several users.
    """
    found: dict[str, tuple[str, ...] | None] = {}
    for name in policy.tables.keys() & tables.keys():
        if (names := policy.tables[name]) is not None:
            columns = {column.name: column for column in tables[name].columns}
            known = [columns[each] for each in names if each in columns]
            found[name] = _keys(mapper, known) if len(known) == len(names) else None
    if len(set(found.values())) != 1:
        return None
    (attributes,) = set(found.values())
    beside = policy.tables.keys() & tables.keys() - found.keys()
    is_own = all(set(keys[n] or ()) <= set(keys[name] or ()) for name in beside for n in found)
    return attributes if is_own else None


def _identifying(mapper: Mapper[Any], table: Any) -> Collection[Any]:
    """Return the columns by which statements for objects name the rows of a table."""
    declared = (column for column in mapper.primary_key if column.table is table)
    return {*table.primary_key.columns, *declared}


def _keys(mapper: Mapper[Any], columns: Iterable[Any]) -> tuple[str, ...] | None:
    """Return the keys of the attributes that have these columns; None if one has none."""
    try:
        return tuple(mapper.get_property_by_column(column).key for column in columns)
    except UnmappedColumnError:
        return None
