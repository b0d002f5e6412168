"""Tells which tables the database changes by itself after a statement.

A foreign key with ON DELETE or ON UPDATE makes the database delete or update rows
that no statement names. What exactly a statement changed is told by
`statements.py`; the foreign keys are those of SQLAlchemy's metadata.

SQLite follows foreign keys only when a PRAGMA tells it to. That is not looked at:
a table too many is named then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import ForeignKey, ForeignKeyConstraint, MetaData, Table
from sqlalchemy.exc import NoReferenceError

from .statements import Statement

__all__ = ['CascadeMap', 'cascades']

REMEMBERED = 1_000


class RowChange(NamedTuple):
    """What happens to rows of a table; a column of None: they are deleted."""

    table: str
    column: str | None = None


class Reference(NamedTuple):
    """A foreign key, as seen from the table that it refers to."""

    referred_columns: frozenset[str]
    on_delete: frozenset[RowChange]
    on_update: frozenset[RowChange]

    def follow(self, change: RowChange) -> frozenset[RowChange]:
        """Return what the database does about a change of the referred table."""
        if change.column is None:
            return self.on_delete
        if change.column == '*' or change.column in self.referred_columns:
            return self.on_update
        return frozenset()


class CascadeMap:
    """The foreign keys of an application's tables that change tables: `cascades()`.

    Made with an engine, shared by its threads. Tables that are defined later are
    taken in.
    """

    def __init__(self, metadatas: Iterable[MetaData]) -> None:
        self._metadatas = tuple(metadatas)
        self._affected = lru_cache(REMEMBERED)(self._follow)
        self._references = lru_cache(1)(self._collect)

    def affected(self, statement: Statement) -> frozenset[str]:
        """Return all tables that a statement changes, by itself and through foreign keys.

        If what it changes is unknown, these are all tables of the metadata.
        """
        return self._affected(statement, sum(len(each.tables) for each in self._metadatas))

    def _follow(self, statement: Statement, size: int) -> frozenset[str]:
        if statement.unknown is not None:
            return frozenset(table.fullname for table in self._tables())

        references = self._references(size)
        seen: set[RowChange] = set()
        ahead = {RowChange(table) for table in statement.deletes}
        ahead.update(RowChange(table, column) for table, column in statement.updates)
        while ahead:
            change = ahead.pop()
            seen.add(change)
            for reference in references.get(change.table, ()):
                ahead |= reference.follow(change) - seen
        return statement.writes.union(change.table for change in seen)

    def _collect(self, size: int) -> dict[str, list[Reference]]:
        """Return the references to each table; `size` is for `lru_cache`, to notice new ones."""
        references: defaultdict[str, list[Reference]] = defaultdict(list)
        for table in self._tables():
            for constraint in table.foreign_key_constraints:
                referred, reference = _reference(constraint)
                references[referred].append(reference)
        return dict(references)

    def _tables(self) -> Iterator[Table]:
        for metadata in self._metadatas:
            yield from list(metadata.tables.values())


def cascades(metadata: MetaData | Iterable[MetaData]) -> CascadeMap:
    """Return the cascades of one or more metadata."""
    return CascadeMap((metadata,) if isinstance(metadata, MetaData) else metadata)


def _reference(constraint: ForeignKeyConstraint) -> tuple[str, Reference]:
    """Return the table that a foreign key refers to, and what follows from that."""
    child = constraint.table.fullname
    changes = {
        'CASCADE': frozenset((RowChange(child),)),
        'SET': frozenset(RowChange(child, column.name) for column in constraint.columns),
    }
    # SET NULL, or SET DEFAULT, or either with the columns that are set.
    on_delete = changes.get(_first_word(constraint.ondelete), frozenset())
    acts_on_update = _first_word(constraint.onupdate) in changes
    on_update = changes['SET'] if acts_on_update else frozenset()

    tables, columns = zip(*map(_referred, constraint.elements), strict=True)
    return tables[0], Reference(frozenset(columns), on_delete, on_update)


def _first_word(action: str | None) -> str:
    return (action or '').upper().partition(' ')[0]


def _referred(element: ForeignKey) -> tuple[str, str]:
    """Return the table and the column that one column of a foreign key refers to."""
    try:
        return element.column.table.fullname, element.column.name
    except NoReferenceError:
        # A table that is in the database only, or in another metadata.
        table, _, column = element.target_fullname.rpartition('.')
        return table, column
