"""Tells which rows of its table a statement changes, by values of the table's columns.

A :class:`Plan` is made once for each compiled statement. It names the parameters that have the
values: those that WHERE compares a column with, those that SET or VALUES give it. The values
themselves are taken from each execution. What is not certain is left out: a column that a plan
does not have can have any value in the rows that change. This module knows what SQLAlchemy has
compiled, and not how the database defines the table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    Alias,
    Column,
    ColumnClause,
    Delete,
    Insert,
    PrimaryKeyConstraint,
    Table,
    TableClause,
    UniqueConstraint,
    Update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    ClauseList,
    Grouping,
    Null,
)

from .notes import Notes, Relation, relation_of, stored_name
from .protocols import Selection
from .values import class_of, is_certain

#: The number of values, and of rows, up to which a statement tells them.
MOST = 1_000

UPSERTS = postgresql.dml.OnConflictDoUpdate, sqlite.dml.OnConflictDoUpdate
SKIPS = postgresql.dml.OnConflictDoNothing, sqlite.dml.OnConflictDoNothing


class Source(NamedTuple):
    """Where the values of one column come from."""

    #: The class of the values that are certain.
    expected: type
    #: The names of parameters; None stands for NULL.
    names: tuple[str | None, ...]
    #: False if the database may put another value in the place of NULL.
    may_be_null: bool = True

    def values(
        self, parameters: Mapping[str, Any], lists: Mapping[str, Collection[str]]
    ) -> tuple[object, ...] | None:
        """Return the values in one execution; None if they are not certain.

        :param lists: the names that the elements of a parameter have, if it is a list.
        """
        found: list[object] = []
        for name in self.names:
            if name is None:
                found.append(None)
            elif name in lists:
                found += [parameters[each] for each in lists[name]]
            elif name in parameters:
                found.append(parameters[name])
            else:
                return None  # `literal_execute` has put it into the text
        if len(found) > MOST:
            return None
        for value in found:
            if not is_certain(value, self.expected) or (value is None and not self.may_be_null):
                return None
        return tuple(found)


class Plan(NamedTuple):
    """Where the values come from by which a statement's rows can be told."""

    #: The table, by the name that the statement has for it.
    relation: Relation
    #: For UPDATE and DELETE a single one; for INSERT one for each row of VALUES. By the columns'
    #: names in the database.
    rows: tuple[Mapping[str, Source], ...]

    def without(self, leaves: Callable[[str, type], bool]) -> Plan:
        """Return a plan without the columns of which ``leaves`` returns True, which gets a name
        and the class of values."""
        return self._replace(
            rows=tuple(
                {name: each for name, each in row.items() if not leaves(name, each.expected)}
                for row in self.rows
            )
        )


def selections(
    plan: Plan, context: ExecutionContext, columns: Collection[str]
) -> tuple[Selection, ...]:
    """Return what an execution tells about the rows that it changes.

    :param context: of the execution, with its parameters.
    :param columns: those that are asked for.
    :return: empty if nothing is known of some row.
    """
    execution: Any = context
    found: list[Selection] = []
    if len(execution.compiled_parameters) * len(plan.rows) > MOST:
        return ()
    lists = execution._expanded_parameters
    for parameters in execution.compiled_parameters:
        for row in plan.rows:
            selection: dict[str, tuple[object, ...]] = {}
            for column in columns:
                source = row.get(column)
                values = source.values(parameters, lists) if source is not None else None
                if values is not None:
                    selection[column] = values
            if not selection:
                return ()
            found.append(selection)
    return tuple(found)


def plan_of(compiled: Any, notes: Notes) -> Plan | None:
    """Return the plan of a compiled statement.

    :param notes: the compiler's, on this statement.
    :return: None if nothing is known of its rows.
    """
    statement = getattr(compiled.compile_state, 'statement', None)
    if notes.unclear is not None or notes.targets != 1:
        return None
    if not isinstance(statement, Insert | Update | Delete):
        return None
    if not isinstance(statement.table, TableClause):
        return None
    planner = _Planner(compiled, statement.table)
    if isinstance(statement, Insert):
        rows = planner.inserted(statement)
    else:
        row = planner.updated() if isinstance(statement, Update) else {}
        rows = None if row is None else [planner.restricted(statement._where_criteria, row)]
    if not rows or not any(rows):
        return None
    return Plan(relation_of(statement.table), tuple(rows))


#: Where a row's values come from, by column.
Row = dict[ColumnClause[Any], tuple[str | None, ...]]


class _Planner:
    """Makes the plan of one compiled statement.

    :param table: the one that the statement changes.
    """

    def __init__(self, compiled: Any, table: TableClause) -> None:
        self._compiled = compiled
        self._table = table
        self._state = compiled.compile_state
        # columns are found by identity, also those that the ORM has annotated, because their
        # hash is that of the original
        self._classes = {
            column: expected
            for column in table.c
            if (expected := class_of(column.type)) is not None
        }
        # the binds that are rendered may be copies, which have the same keys
        self._names = {bind.key: name for bind, name in compiled.bind_names.items()}

    # INSERT

    def inserted(self, statement: Insert) -> list[Mapping[str, Source]] | None:
        """Return the sources of each row of an INSERT."""
        if statement._select_names or statement.select is not None:
            return None
        clause: Any = statement._post_values_clause
        conflicts = () if clause is None else getattr(clause, 'clauses', (clause,))
        if any(type(each) not in (*UPSERTS, *SKIPS) for each in conflicts):
            return None
        is_multiple = self._state._has_multi_parameters
        given = self._state._multi_parameters if is_multiple else [self._state._dict_parameters]
        found: list[Mapping[str, Source]] = []
        for number, values in enumerate(given):
            by_key = _by_key(values)
            if by_key is None:
                return None
            row: Row = {}
            for column in self._classes:
                name = self._inserted(column, by_key, number, is_multiple)
                if name is not _UNKNOWN:
                    row[column] = (name,)
            for each in conflicts:
                if type(each) in UPSERTS:
                    row = self._upserted(each, row)
            found.append(self._sources(row, is_insert=True))
        return found

    def _inserted(
        self, column: ColumnClause[Any], given: Mapping[str, Any], number: int, is_multiple: bool
    ) -> Any:
        """Return the parameter of a column in one row of VALUES."""
        key = column.key
        if key in given:
            value = given[key]
            if not isinstance(value, ClauseElement):
                return self._named(f'{key}_m{number}' if is_multiple else key, column)
            return self._value(value, column)
        if is_multiple:
            is_default = any(each is column for each in self._compiled.insert_prefetch)
            name = f'{key}_m{number}' if number else key
            return self._named(name, column) if is_default else _UNKNOWN
        # a parameter of the execution, or a default that was computed for it
        is_given = key in (self._compiled.column_keys or ())
        if is_given or any(each is column for each in self._compiled.insert_prefetch):
            return self._named(key, column)
        return _UNKNOWN

    def _upserted(self, clause: Any, row: Row) -> Row:
        """Return what is known of the row in conflict, which has the values of the conflict's
        target already, and of which the rest is not known."""
        given = _by_key(dict(clause.update_values_to_set))  # pairs in SQLAlchemy 2.0
        if given is None:
            return {}
        names = self._target(clause)
        found: Row = {}
        for column, values in row.items():
            if column.name not in names:
                continue
            if column.key in given:
                value = given[column.key]
                if not self._is_excluded(value, column):
                    # SQLAlchemy 2.0 makes no parameter of a plain value before it compiles
                    name = self._value(value, column)
                    if name is _UNKNOWN:
                        continue
                    values = *values, name
            elif column.name in given:
                continue
            found[column] = values
        return found

    def _target(self, clause: Any) -> set[str]:
        """Return the names of plain columns whose values the row in conflict has."""
        if elements := clause.inferred_target_elements:
            plain = (e for e in elements if isinstance(e, str | ColumnClause))
            return {str(e) if isinstance(e, str) else e.name for e in plain}
        name = getattr(clause, 'constraint_target', None)
        if name is None or not isinstance(self._table, Table):
            return set()
        for constraint in cast(set[Any], self._table.constraints):
            is_unique = isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint)
            if is_unique and constraint.name == name:
                return {column.name for column in constraint.columns}
        return set()

    def _is_excluded(self, value: Any, column: ColumnClause[Any]) -> bool:
        """Return whether a value is that of the row which was to be inserted."""
        table = getattr(value, 'table', None)
        return (
            isinstance(value, ColumnClause)
            and isinstance(table, Alias)
            and table.name == 'excluded'
            and value.key == column.key
        )

    # UPDATE and DELETE

    def updated(self) -> Row | None:
        """Return the parameters of the columns that an UPDATE sets; those that it sets to
        something else are gone from the known ones."""
        given = _by_key(self._state._dict_parameters)
        if given is None:
            return None
        row: Row = {}
        for column in list(self._classes):
            key = column.key
            name: Any = None
            if key in given:
                name = self._value(given[key], column)
            elif key in (self._compiled.column_keys or ()):
                name = self._named(key, column)
            elif getattr(column, 'onupdate', None) or getattr(column, 'server_onupdate', None):
                name = _UNKNOWN
            else:
                continue
            if name is _UNKNOWN:
                del self._classes[column]
            else:
                row[column] = (name,)
        return row

    def restricted(self, criteria: Iterable[Any], updated: Row) -> Mapping[str, Source]:
        """Return the sources of the rows that a WHERE lets through.

        :param updated: the values that these get.
        """
        row: Row = {}
        for conjunct in _conjuncts(criteria):
            for column, names in self._compared(conjunct):
                row.setdefault(column, names)
        return self._sources({c: (*names, *updated.get(c, ())) for c, names in row.items()})

    def _compared(
        self, conjunct: Any
    ) -> Iterator[tuple[ColumnClause[Any], tuple[str | None, ...]]]:
        """Yield the column that a criterion compares, with the parameters of its values."""
        if not isinstance(conjunct, BinaryExpression):
            return
        left: Any = conjunct.left
        right: Any = conjunct.right
        pairs = [(left, right)]
        if conjunct.operator is operators.eq:
            pairs.append((right, left))
        elif conjunct.operator is operators.in_op:
            while isinstance(right, Grouping):
                right = right.element
            pairs = [(left, right)]
        elif conjunct.operator is not operators.is_ or not isinstance(right, Null):
            return
        for column, value in pairs:
            if isinstance(column, ColumnClause) and column in self._classes:
                each = value.clauses if type(value) is ClauseList else [value]
                names = [self._value(element, column) for element in each]
                if _UNKNOWN not in names:
                    yield column, tuple(names)

    # parameters

    def _value(self, value: Any, column: ColumnClause[Any]) -> Any:
        """Return the name of the parameter that a value is; None for NULL."""
        if isinstance(value, Null):
            return None
        if not isinstance(value, BindParameter):
            return _UNKNOWN
        return self._named(self._names.get(value.key), column)

    def _named(self, name: str | None, column: ColumnClause[Any]) -> Any:
        """Return the name of a parameter, if its values are as certain as the column's."""
        bind = self._compiled.binds.get(name)
        if bind is None:
            return _UNKNOWN
        expected = self._classes[column]
        # without a type, the driver alone decides how a value is sent
        is_plain = bind.type._isnull and expected in (int, str, bytes)
        return name if is_plain or class_of(bind.type) is expected else _UNKNOWN

    def _sources(self, row: Row, is_insert: bool = False) -> Mapping[str, Source]:
        return {
            stored_name(column.name): Source(
                self._classes[column],
                names,
                # SQLite numbers a row whose key is NULL
                not is_insert or (isinstance(column, Column) and not column.primary_key),
            )
            for column, names in row.items()
        }


#: Stands for the parameter of a value that is none.
_UNKNOWN = object()


def _by_key(values: Mapping[Any, Any] | None) -> dict[str, Any] | None:
    """Return values by the keys of their columns; None if one is given to anything else, such
    as to an element of an array."""
    found: dict[str, Any] = {}
    for column, value in (values or {}).items():
        if isinstance(column, str):
            found[column] = value
        elif isinstance(column, ColumnClause):
            found[column.key] = value
        else:
            return None
    return found


def _conjuncts(criteria: Iterable[Any]) -> Iterator[Any]:
    """Yield all criteria that each row meets."""
    for each in criteria:
        if isinstance(each, Grouping):
            yield from _conjuncts([each.element])
        elif isinstance(each, BooleanClauseList) and each.operator is operators.and_:
            yield from _conjuncts(each.clauses)
        else:
            yield each
