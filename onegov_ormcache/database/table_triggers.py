"""The triggers of one table: which it needs, and the statements that create them.

A table has one, for all kinds of statements. If its triggers tell rows it has four, because
PostgreSQL gives the changed rows only to a trigger of one kind of statement, and of no TRUNCATE.
This module does not know the function that they call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .names import NOTIFY_FUNCTION

#: Name of the trigger on each table, with which the names of others begin.
TRIGGER = NOTIFY_FUNCTION

#: The kinds of statements, as in ``pg_trigger.tgtype`` of a trigger FOR EACH STATEMENT.
INSERT, DELETE, UPDATE, TRUNCATE = 4, 8, 16, 32


class Trigger(NamedTuple):
    """One trigger of a table."""

    kinds: int
    #: The columns whose values it tells.
    columns: tuple[str, ...] = ()
    old: str | None = None
    new: str | None = None
    is_current: bool = True

    def sql(self, name: str, relation: str, function: str) -> str:
        """Return the statement that creates the trigger."""
        kinds = ('INSERT', INSERT), ('UPDATE', UPDATE), ('DELETE', DELETE), ('TRUNCATE', TRUNCATE)
        events = ' OR '.join(event for event, kind in kinds if self.kinds & kind)
        tables = ''.join(
            f' {which} TABLE AS {table}'
            for which, table in (('OLD', self.old), ('NEW', self.new))
            if table
        )
        arguments = ', '.join("'" + column.replace("'", "''") + "'" for column in self.columns)
        return (
            f'CREATE TRIGGER {name} AFTER {events} ON {relation}'
            f'{f" REFERENCING{tables}" if tables else ""} FOR EACH STATEMENT '
            f'EXECUTE FUNCTION {function}({arguments})'
        )


def triggers_for(columns: Sequence[str]) -> dict[str, Trigger]:
    """Return the triggers that a table needs, by name.

    :param columns: the columns whose values they tell.
    """
    if not columns:
        return {TRIGGER: Trigger(INSERT | UPDATE | DELETE | TRUNCATE)}
    told = tuple(columns)
    return {
        TRIGGER: Trigger(TRUNCATE, told),
        f'{TRIGGER}_insert': Trigger(INSERT, told, new='new_rows'),
        f'{TRIGGER}_update': Trigger(UPDATE, told, old='old_rows', new='new_rows'),
        f'{TRIGGER}_delete': Trigger(DELETE, told, old='old_rows'),
    }


#: The names of all triggers that a table may have.
NAMES = sorted(triggers_for(['any']))
