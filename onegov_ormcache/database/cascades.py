"""Finds the tables that the database changes by itself after a statement.

A foreign key with ON DELETE or ON UPDATE makes the database delete or update rows of
tables that the statement does not name. `statements.py` tells what the statement itself
changes; this module adds what follows from the foreign keys of SQLAlchemy's metadata. It
does not know the foreign keys that only the database has.

SQLite follows foreign keys only while the PRAGMA `foreign_keys` is on. The PRAGMA is not
checked: while it is off, the result names tables that did not change.
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

# The number of statements whose result is remembered.
REMEMBERED = 1_000


class RowChange(NamedTuple):
    """A change of rows of a table: an update of a column, or a deletion."""

    table: str

    #: The column that is updated, or `*` if it is not certain which; None if the rows are
    #: deleted.
    column: str | None = None


class Reference(NamedTuple):
    """A foreign key, as seen from the table that it refers to."""

    referred_columns: frozenset[str]

    #: The changes that the database makes when a row that is referred to is deleted.
    on_delete: frozenset[RowChange]

    #: The changes that the database makes when one of `referred_columns` is updated.
    on_update: frozenset[RowChange]

    def follow(self, change: RowChange) -> frozenset[RowChange]:
        """Return the changes that a change of the referred table causes."""
        if change.column is None:
            return self.on_delete
        if change.column == '*' or change.column in self.referred_columns:
            return self.on_update
        return frozenset()


class CascadeMap:
    """The foreign keys of an application's tables, and the changes that they cause.

    Made by `cascades()` for a session manager, shared by all threads. Tables that are
    added to the metadata later are noticed.
    """

    def __init__(self, metadatas: Iterable[MetaData]) -> None:
        self._metadatas = tuple(metadatas)
        self._affected = lru_cache(REMEMBERED)(self._follow)
        self._references = lru_cache(1)(self._collect)

    def affected(self, statement: Statement) -> frozenset[str]:
        """Return all tables that a statement changes, by itself and through foreign keys.

        If the statement could not be analyzed, return all tables of the metadata.
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
        """Return the foreign keys that refer to each table.

        `size` is not used here; as a key of `lru_cache`, it makes new tables noticed.
        """
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
    """Return the `CascadeMap` of one MetaData, or of several together."""
    return CascadeMap((metadata,) if isinstance(metadata, MetaData) else metadata)


def _reference(constraint: ForeignKeyConstraint) -> tuple[str, Reference]:
    """Return the table that a foreign key refers to, and the key as seen from there."""
    child = constraint.table.fullname
    changes = {
        'CASCADE': frozenset((RowChange(child),)),
        'SET': frozenset(RowChange(child, column.name) for column in constraint.columns),
    }
    # SET NULL or SET DEFAULT; a list of columns that may follow is not looked at, so all
    # columns of the key count as updated.
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
        # The referred table is in another metadata, or in the database only.
        table, _, column = element.target_fullname.rpartition('.')
        return table, column
