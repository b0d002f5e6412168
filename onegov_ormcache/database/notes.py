"""Notes what is in each statement that SQLAlchemy compiles: its tables, functions and texts.

SQLAlchemy's compiler visits all that it renders, so it knows which tables a statement reads
and changes, whatever way the statement was written. :func:`take_notes` makes a dialect's
compiler note them. A text, a literal or an element with a compiler of its own can contain any
SQL; such a statement is *unclear*. This module does not know the database, so it can't tell
whether a name is that of a table or of a view, or what a trigger does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Column, TableClause
from sqlalchemy.engine import Dialect, ExecutionContext
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.visitors import iterate

#: Literals that contain no SQL of their own: ``*``, numbers, constants and simple strings.
PLAIN_LITERAL = re.compile(r"\*|-?\d+(\.\d+)?|NULL|TRUE|FALSE|'[^'\\]*'", re.IGNORECASE)

#: Stands for all columns, where it is not certain which.
ANY_COLUMN = '*'


class Relation(NamedTuple):
    """A table, view or other relation of the database, by its name there."""

    #: None if the search path decides.
    schema: str | None
    name: str


@dataclass
class Notes:
    """What one compiled statement touches; made by the compiler, kept with the statement."""

    reads: set[Relation] = field(default_factory=set)
    #: The relations whose rows are inserted, updated or deleted.
    writes: set[Relation] = field(default_factory=set)
    #: The relations, of :attr:`writes`, that rows are deleted from.
    deletes: set[Relation] = field(default_factory=set)
    #: The columns in which existing rows get another value, by relation; see
    #: :data:`ANY_COLUMN`.
    updates: set[tuple[Relation, str]] = field(default_factory=set)
    #: The names of the functions that it calls.
    functions: set[str] = field(default_factory=set)
    #: True if it locks the rows that it reads (``FOR UPDATE``).
    locks: bool = False
    #: The number of INSERTs, UPDATEs and DELETEs in it, those within WITH included.
    targets: int = field(default=0, compare=False)
    #: The reason why it may touch more than the rest tells; None if the rest is all.
    unclear: str | None = None


def take_notes(dialect: Dialect) -> None:
    """Make the dialect's compiler note what is in each statement that it compiles."""
    compiler = dialect.statement_compiler
    dialect.statement_compiler = type(
        f'Noting{compiler.__name__}', (NotingCompiler, compiler), {}
    )


def notes_of(context: ExecutionContext | None) -> Notes | None:
    """Return the notes on the statement that is about to be executed.

    :param context: as in SQLAlchemy's event ``before_cursor_execute``.
    :return: None if the compiler did not see the statement: SQL for the driver, DDL, or the
        query of a column's default.
    """
    # the query of a column's default runs in the context of its INSERT, whose `compiled` is
    # the INSERT; the context's `statement` is not set yet
    if context is None or getattr(context, 'statement', None) is None:
        return None
    return getattr(context.compiled, 'notes', None)


def is_of_objects(context: ExecutionContext | None) -> bool:
    """Return whether SQLAlchemy's unit of work executes the statement for objects.

    It executes these statements with an option of its own. Bulk operations of a session do so
    too, but are no part of a flush.
    """
    if context is None:
        return False
    of_connection = context.root_connection.get_execution_options().get('compiled_cache')
    return context.execution_options.get('compiled_cache') is not of_connection


@dataclass
class _Target:
    """The target of an UPDATE or DELETE that is being rendered."""

    #: The columns that may be updated; None for a DELETE.
    columns: frozenset[str] | None
    #: True when the compiler has visited a table as the target.
    is_table: bool = False


class NotingCompiler(SQLCompiler):
    """A compiler that takes notes; mixed into the compiler of a dialect.

    SQLAlchemy makes it for each kind of statement that it has not compiled before.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.notes = Notes()
        # the UPDATEs and DELETEs that are being rendered, the innermost last
        self._targets: list[_Target] = []
        super().__init__(*arguments, **options)
        if any(map(has_own_compiler, self._elements())):
            self.notes.unclear = 'has an element with a compiler of its own (@compiles)'

    def _elements(self) -> Iterator[Any]:
        if 'sqlalchemy.ext.compiler' not in sys.modules:
            return
        for state in (self, self.compile_state):
            statement = getattr(state, 'statement', None)
            if statement is not None:
                yield from iterate(statement)

    # tables

    def visit_table(  # type: ignore[override]
        self, table: Any, asfrom: bool = False, **options: Any
    ) -> Any:
        if asfrom or options.get('ashint') or options.get('within_tstring'):
            relation = relation_of(table)
            if options.get('iscrud') and self._targets:
                target = self._targets[-1]
                target.is_table = True
                self.notes.writes.add(relation)
                if target.columns is None:
                    self.notes.deletes.add(relation)
                else:
                    self.notes.updates.update((relation, column) for column in target.columns)
            else:
                self.notes.reads.add(relation)
        return super().visit_table(  # type: ignore[no-untyped-call]
            table, asfrom=asfrom, **options
        )

    def visit_insert(self, insert_stmt: Any, *arguments: Any, **options: Any) -> Any:
        self.notes.targets += 1
        if isinstance(insert_stmt.table, TableClause):
            self.notes.writes.add(relation_of(insert_stmt.table))
        else:
            self.notes.unclear = 'inserts into something else than a table'
        return super().visit_insert(  # type: ignore[no-untyped-call]
            insert_stmt, *arguments, **options
        )

    def visit_update(self, update_stmt: Any, *arguments: Any, **options: Any) -> Any:
        with self._target(self._updated(update_stmt)):
            return super().visit_update(update_stmt, *arguments, **options)

    def visit_delete(self, delete_stmt: Any, *arguments: Any, **options: Any) -> Any:
        with self._target(None):
            return super().visit_delete(  # type: ignore[no-untyped-call]
                delete_stmt, *arguments, **options
            )

    def visit_on_conflict_do_update(self, on_conflict: Any, **options: Any) -> Any:
        insert: Any = self.stack[-1]['selectable']  # the one around it
        table = insert.table
        if isinstance(table, TableClause):
            relation = relation_of(table)
            known = {column.key: column.name for column in table.c}
            for column in dict(on_conflict.update_values_to_set):  # pairs in SQLAlchemy 2.0
                key = getattr(column, 'key', column)
                self.notes.updates.add((relation, known.get(key, ANY_COLUMN)))
        return super().visit_on_conflict_do_update(  # type: ignore[misc]
            on_conflict, **options
        )

    @contextmanager
    def _target(self, columns: frozenset[str] | None) -> Iterator[None]:
        self.notes.targets += 1
        self._targets.append(_Target(columns))
        try:
            yield
        finally:
            if not self._targets.pop().is_table:
                self.notes.unclear = 'changes something else than a table, such as an alias'

    def _updated(self, update_stmt: Any) -> frozenset[str]:
        """Return the names of the columns that an UPDATE may set."""
        table = update_stmt.table
        if not isinstance(table, TableClause):
            return frozenset({ANY_COLUMN})
        ordered = dict(getattr(update_stmt, '_ordered_values', None) or ())  # SQLAlchemy 2.0
        columns = {*(self.column_keys or ()), *(update_stmt._values or ()), *ordered}
        columns = {getattr(column, 'key', column) for column in columns}
        known = {column.key: column.name for column in table.c}
        found = {known[column] for column in columns if column in known}
        found.update(
            column.name
            for column in table.c
            if isinstance(column, Column) and (column.onupdate or column.server_onupdate)
        )
        return frozenset(found)

    # what is no table

    def visit_function(self, func: Any, *arguments: Any, **options: Any) -> Any:
        self.notes.functions.add('.'.join((*func.packagenames, func.name)))
        return super().visit_function(func, *arguments, **options)

    def for_update_clause(self, select: Any, **options: Any) -> Any:
        self.notes.locks = True
        return super().for_update_clause(select, **options)  # type: ignore[no-untyped-call]

    # texts

    def visit_textclause(self, textclause: Any, *arguments: Any, **options: Any) -> Any:
        self.notes.unclear = 'has a text'
        return super().visit_textclause(  # type: ignore[no-untyped-call]
            textclause, *arguments, **options
        )

    def visit_tstring(self, tstring: Any, *arguments: Any, **options: Any) -> Any:
        self.notes.unclear = 'has a text'
        return super().visit_tstring(  # type: ignore[no-untyped-call]
            tstring, *arguments, **options
        )

    def visit_column(self, column: Any, *arguments: Any, **options: Any) -> Any:
        if column.is_literal and not PLAIN_LITERAL.fullmatch(column.name):
            self.notes.unclear = f'has the literal {column.name!r}'
        return super().visit_column(column, *arguments, **options)

    def visit_custom_op_binary(self, element: Any, operator: Any, **options: Any) -> Any:
        self.notes.unclear = f'has the operator {operator.opstring!r}'
        return super().visit_custom_op_binary(  # type: ignore[no-untyped-call]
            element, operator, **options
        )

    def get_from_hint_text(self, table: Any, text: Any) -> Any:
        self.notes.unclear = 'has a hint'
        return super().get_from_hint_text(table, text)

    def get_select_hint_text(self, byfroms: Any) -> Any:
        self.notes.unclear = 'has a hint'
        return super().get_select_hint_text(byfroms)  # type: ignore[no-untyped-call]

    def get_statement_hint_text(self, hint_texts: Any) -> Any:
        self.notes.unclear = 'has a hint'
        return super().get_statement_hint_text(hint_texts)  # type: ignore[no-untyped-call]


def relation_of(table: TableClause) -> Relation:
    """Return the relation that a table of SQLAlchemy stands for."""
    schema = getattr(table, 'schema', None)
    return Relation(None if schema is None else str(schema), stored_name(table.name))


def stored_name(name: str) -> str:
    """Return a relation's name as PostgreSQL stores it.

    It is truncated to 63 bytes, and folded (ASCII letters only) if SQLAlchemy renders it without
    quotes.
    """
    if len(name) > 15:  # shorter ones have at most 60 bytes
        name = _truncated(name)
    if isinstance(name, quoted_name) and name.quote is False:
        return ''.join(c.lower() if c.isascii() else c for c in name)
    return str(name)


def _truncated(name: str) -> str:
    data = name.encode()
    if len(data) <= 63:
        return name
    return data[:63].decode(errors='ignore')


def has_own_compiler(element: Any) -> bool:
    """Return whether ``@compiles`` has given the element's class a compiler of its own."""
    return hasattr(type(element), '_compiler_dispatcher')
