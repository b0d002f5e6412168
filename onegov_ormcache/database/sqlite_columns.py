"""Tells which columns of SQLite's tables hold exactly what statements give them.

SQLite converts a value to what the declared type of its column suggests, finds texts equal that
differ in case where a collation says so, and replaces rows in conflict where the table says so. It
does not tell the latter two except in the text of a definition; a definition that has one of these
words anywhere is taken for one that does. This module does not know statements.
"""

from __future__ import annotations

import enum
import re
import uuid
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Compiled

from .names import quote
from .notes import Notes
from .selections import Plan, plan_of

#: What makes all columns of a table uncertain, in the definition of the table or of its indexes.
#: ``REPLACE`` deletes rows that a statement does not name.
UNCERTAIN = re.compile(r'\b(COLLATE|REPLACE|VIRTUAL)\b', re.IGNORECASE)

#: The types of columns that store a text as it is; see "Determination Of Column Affinity" in
#: SQLite's documentation. ``INT`` takes precedence.
TEXTUAL = re.compile(r'(?!.*INT).*(CHAR|CLOB|TEXT|BLOB)|$', re.IGNORECASE)

#: The types of columns that store an integer as a number of limited precision.
REAL = re.compile(r'(?!.*(INT|CHAR|CLOB|TEXT|BLOB)).*(REAL|FLOA|DOUB)', re.IGNORECASE)


class SQLiteColumns:
    """The columns of one connection's tables, and the plans of statements, which depend on them.

    Used by the connection's transactions, one after the other. The database is asked again after a
    change of definitions, which it counts.
    """

    def __init__(self) -> None:
        self._version: int | None = None
        # by table: the certain columns, each with whether it stores a text as it is
        self._tables: dict[str, dict[str, bool]] = {}
        self._plans: WeakKeyDictionary[Compiled, Plan | None] = WeakKeyDictionary()

    def plan(self, connection: Any, compiled: Any, notes: Notes) -> Plan | None:
        """Return a statement's plan, without the columns that are not certain.

        :param connection: the driver's.
        """
        (version,) = connection.execute('PRAGMA schema_version').fetchone()
        if version != self._version:
            self._version = version
            self._tables.clear()
            self._plans.clear()
        try:
            return self._plans[compiled]
        except KeyError:
            found = self._plans[compiled] = self._plan(connection, compiled, notes)
            return found

    def _plan(self, connection: Any, compiled: Any, notes: Notes) -> Plan | None:
        plan = plan_of(compiled, notes)
        if plan is None:
            return None
        table = plan.relation.name.lower()
        if table not in self._tables:
            self._tables[table] = self._read(connection, table)
        columns = self._tables[table]

        def is_uncertain(name: str, expected: type) -> bool:
            is_text = issubclass(expected, str | uuid.UUID | enum.Enum)
            return not (columns.get(name.lower()) if is_text else name.lower() in columns)

        return plan.without(is_uncertain)

    def _read(self, connection: Any, table: str) -> dict[str, bool]:
        """Return the certain columns of a table; none if the table may replace rows."""
        definitions = connection.execute(
            'SELECT sql FROM main.sqlite_master WHERE tbl_name = ? COLLATE NOCASE', (table,)
        ).fetchall()
        if any(sql is not None and UNCERTAIN.search(sql) for (sql,) in definitions):
            return {}
        rows = connection.execute(f'PRAGMA main.table_xinfo({quote(table)})').fetchall()
        return {
            name.lower(): bool(TEXTUAL.match(declared))
            for _, name, declared, _, _, _, is_hidden in rows
            if not is_hidden and not REAL.match(declared)  # a generated column is hidden
        }
