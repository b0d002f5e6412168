"""Runs: a run records what a creator uses, which is what its value depends on.

This module knows statements and tags. It does not know how a value is found or stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from ..database.notes import Relation
from ..database.protocols import Reads, Statement
from ..database.sessions import RunSession
from ..tiers.request import TierEntry
from .expiry import earliest
from .policies import table_tags
from .properties import Call, Property, tags_of
from .variants import Vary


class WatchedTransaction(Protocol):
    """The part of a database transaction that a run uses."""

    def watch_reads(self) -> object:
        """Begin to watch what is read; return what :meth:`reads` needs."""

    def reads(self, since: object) -> Reads:
        """Return what was read since :meth:`watch_reads`, as the database tells it."""


@dataclass(eq=False)
class Run:
    """One execution of a creator; made by the scope when it begins, dropped when it ends."""

    #: The calls of one property whose values it computes.
    calls: Sequence[Call]
    #: The number of the scope's snapshot when it began.
    snapshot_number: int
    #: The tags of the properties that it has read.
    tags: set[str] = field(default_factory=set)
    #: The tags of the tables that its statements have read.
    reads: set[str] = field(default_factory=set)
    #: The first reason why its value must not be stored, whatever the policy; None if there
    #: is none.
    unstorable: str | None = None
    #: True if it has changed, or may have changed, the database.
    has_written: bool = False
    #: The time of this process's monotonic clock at which the first of the values that it has
    #: read expires; None: none does.
    expires: float | None = None
    #: The functions by which the properties that it has read vary.
    varies: set[Vary] = field(default_factory=set)
    #: The session in which an orm-cached property is computed; None until it is asked for.
    session: RunSession | None = None
    #: The request-cached values that the run of an orm-cached property has computed, by key.
    values: dict[Any, TierEntry] = field(default_factory=dict)
    # the transactions in which it has executed unclear statements, each with what
    # Transaction.reads() needs
    _watched: dict[WatchedTransaction, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        #: The keys of the values that it computes.
        self.keys = {call.key for call in self.calls}

    @property
    def prop(self) -> Property:
        """The property whose creator runs."""
        return self.calls[0].prop

    @property
    def reads_beside(self) -> set[str]:
        """The tags of the tables that it has read, without those of which its value depends on
        single rows."""
        return self.reads - self.prop.by_rows

    def record(self, statement: Statement) -> None:
        """Add what a statement reads."""
        self.reads |= table_tags(statement.reads)
        for relation in statement.reads_elsewhere:
            self._read_elsewhere(relation)
        if statement.unrepeatable is not None:
            self.taint(statement.unrepeatable)

    def watch(self, transaction: WatchedTransaction, statement: Statement) -> None:
        """Begin to watch what unclear statements read, before the first is executed."""
        if statement.unrepeatable is not None:
            self.taint(statement.unrepeatable)
        if transaction not in self._watched:
            try:
                self._watched[transaction] = transaction.watch_reads()
            except SQLAlchemyError as error:
                self.taint(f'the database could not be asked what it reads: {error}')

    def ask(self, names_of: Callable[[Relation], frozenset[str]]) -> None:
        """Add what unclear statements have read, as the database tells it.

        :param names_of: returns the metadata's names of a relation; none for one that does
            not belong to the tenant.
        """
        for transaction, since in self._watched.items():
            try:
                reads = transaction.reads(since)
            except SQLAlchemyError as error:
                # the transaction has failed, by an error that the creator has caught
                self.taint(f'the database could not be asked what it read: {error}')
                continue
            self.has_written = self.has_written or reads.wrote
            if reads.unknowable is not None:
                self.taint(reads.unknowable)
            for relation in reads.relations:
                names = names_of(relation)
                self.reads |= table_tags(names)
                if not names:
                    self._read_elsewhere(relation)
        self._watched.clear()

    def taint(self, reason: str) -> None:
        """Note why its value must not be stored; the first reason counts."""
        self.unstorable = self.unstorable or reason

    def inherit(self, run: Run) -> None:
        """Depend on what another run has read, which has failed within this one."""
        self.tags |= run.tags | run.reads_beside | tags_of(run.calls)
        self.expires = earliest(self.expires, run.expires)
        self.unstorable = self.unstorable or run.unstorable

    def why_not_storable(self) -> str | None:
        """Return why the value may not be stored; None if it may."""
        return self.unstorable or (None if self.tags else 'it read no table')

    def _read_elsewhere(self, relation: Relation) -> None:
        self.taint(f'it read {relation.schema}.{relation.name}, of another schema')
