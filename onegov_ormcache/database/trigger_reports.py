"""What the triggers of ``database/triggers.py`` report, in a setting or by notifications.

``sql/notify.sql`` makes these texts. This module does not know where they come from, and what they
are read for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple, Self


def parse_change(change: str) -> tuple[str, str]:
    """Return schema and table of a change that a trigger reports as ``SCHEMA:TABLE``."""
    schema, _, table = change.partition(':')
    return schema, table


def parse_rows(rows: Mapping[str, list[str | None]] | None) -> dict[str, frozenset[str | None]]:
    """Return what a trigger tells of changed rows: values by column; nothing of a column whose
    values are not known."""
    return {column: frozenset(values) for column, values in (rows or {}).items()}


class ToldRows(NamedTuple):
    """What a notification on :data:`~.names.ROWS_CHANNEL` tells: the rows of a table that a
    transaction has changed, so far.

    The notification on :data:`~.names.CHANNEL` that follows it names the table as well. It tells
    nothing more if it is the first about this table since this transaction was first named here:
    PostgreSQL sends all notifications of a transaction one after the other, and equal ones once.
    """

    schema: str
    table: str
    transaction: str
    #: The values that the rows have, and had before, by column. Those of a column that is missing
    #: are not known.
    rows: Mapping[str, frozenset[str | None]]

    @classmethod
    def parse(cls, payload: str) -> Self:
        """Return what a payload tells.

        :raises ValueError: if no trigger of the package has sent it.
        """
        try:
            told = json.loads(payload)
            return cls(
                *parse_change(told['table']), told['transaction'], parse_rows(told['rows'])
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'no changed rows: {payload!r}') from error
