"""Runs: what a creator has used so far, which is what its value depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..database.statements import Statement
from .policies import table_tags
from .properties import Property
from .variants import Vary


@dataclass
class Run:
    """One run of a creator, made when it begins."""

    prop: Property
    #: Which of the scope's snapshots it began with.
    snapshot_number: int
    #: The tags of the properties it has read.
    tags: set[str] = field(default_factory=set)
    #: The tags of the tables that its statements have read.
    reads: set[str] = field(default_factory=set)
    #: The functions that its statements have called.
    calls: set[str] = field(default_factory=set)
    #: Why it is not known what its statements have read, if it is not.
    opaque: str | None = None
    #: Why a property it has read can't be stored, if so.
    unstorable: str | None = None
    #: Whether it has read through a transaction of another scope, whose view may be older.
    through_another: bool = False
    #: What the properties that it has read differ by.
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
