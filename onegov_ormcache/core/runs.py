"""Runs: a run records what a creator uses, which is what its value depends on.

This module knows statements and tags. It does not know tiers or sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..database.statements import Statement
from .policies import table_tags
from .properties import Property
from .variants import Vary


@dataclass
class Run:
    """One execution of a creator; made by the scope when it begins, dropped when it ends."""

    prop: Property
    #: The number of the scope's snapshot when it began.
    snapshot_number: int
    #: The tags of the properties that it has read.
    tags: set[str] = field(default_factory=set)
    #: The tags of the tables that its statements have read.
    reads: set[str] = field(default_factory=set)
    #: The functions that its statements have called.
    calls: set[str] = field(default_factory=set)
    #: The reason why it is not known what its statements have read; None if it is known.
    opaque: str | None = None
    #: The reason why a property that it has read keeps its value from being stored; None if
    #: there is none.
    unstorable: str | None = None
    #: True if it has read through a transaction of another scope, whose view may be older.
    through_another: bool = False
    #: The functions by which the properties that it has read vary.
    varies: set[Vary] = field(default_factory=set)

    def record(self, statement: Statement, has_table: Callable[[str], bool]) -> None:
        """Add what a statement reads.

        :param has_table: tells whether the metadata has a table of this name.
        """
        if statement.unknown is not None:
            self.opaque = statement.unknown
            return
        for name in statement.reads:
            if not has_table(name):
                self.opaque = (
                    f'it read {name!r}, which is no table of the metadata; '
                    'its changes are not seen'
                )
        self.reads |= table_tags(statement.reads)
        self.calls |= statement.calls

    def why_not_storable(self) -> str | None:
        """Return why it is not known what the value depends on; None if it is known."""
        return self.opaque or self.unstorable or (None if self.tags else 'it read no table')
