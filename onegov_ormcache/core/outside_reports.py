"""What a listener has heard of changes from outside, and has not yet evicted.

Triggers notify of a changed table, and before that maybe of its rows. This module puts both
together. It knows neither connections nor tags.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..database.protocols import RowTexts
from ..database.trigger_reports import ToldRows, parse_change

#: The most reports about rows of one table that are kept; after more, all its rows may have
#: changed. A tag store that is away for long does not let them pile up.
MAX_REPORTS = 100

#: A table, by schema and name.
Table = tuple[str, str]

#: The rows of a table that have changed, report by report; None: all may have.
Reported = tuple[RowTexts, ...] | None


class OutsideReports:
    """What one connection has heard; made with it."""

    def __init__(self) -> None:
        self._heard: dict[Table, Reported] = {}
        # of each table, the transaction whose rows were told last, and the last one of which the
        # name followed
        self._told_by: dict[Table, str] = {}
        self._named_by: dict[Table, str] = {}

    def hear_rows(self, payload: str) -> None:
        """Take a notification that tells rows.

        :raises ValueError: if no trigger of the package has sent it.
        """
        told = ToldRows.parse(payload)
        table = told.schema, told.table
        self._told_by[table] = told.transaction
        self._add(table, (told.rows,))

    def hear_table(self, payload: str) -> None:
        """Take a notification that names a table.

        After the first rows that a transaction tells of a table, the name follows, once: it tells
        nothing more. Any other name tells that all rows may have changed.
        """
        table = parse_change(payload)
        told_by = self._told_by.get(table)
        if told_by is None or told_by == self._named_by.get(table):
            self._add(table, None)
        else:
            self._named_by[table] = told_by
            self._add(table, ())

    def take(self) -> Mapping[Table, Reported]:
        """Return what was heard since the last call, and forget it."""
        heard, self._heard = self._heard, {}
        return heard

    def give_back(self, heard: Mapping[Table, Reported]) -> None:
        """Take back what could not be evicted."""
        for table, rows in heard.items():
            self._add(table, rows)

    def _add(self, table: Table, rows: Reported) -> None:
        known = self._heard.get(table, ())
        if rows is None or known is None or len(known) + len(rows) > MAX_REPORTS:
            self._heard[table] = None
        else:
            self._heard[table] = known + rows
