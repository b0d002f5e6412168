"""A recorded history, put together: what each transaction did, and the states of each row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.consistency.events import Event

#: The name of the writer of the values that rows had before the first transaction.
NOBODY = ''


class Written(NamedTuple):
    """A committed write, as the database has it."""

    row: str
    version: int
    value: str


@dataclass
class Transaction:
    """One transaction: its events in its own order, and what they show."""

    name: str
    tenant: str
    began: int
    events: list[Event] = field(default_factory=list)
    #: When COMMIT was sent; infinite if it was not.
    sent: float = math.inf
    #: When COMMIT had returned; infinite if it had not.
    returned: float = math.inf
    #: True if it is known that it did not commit.
    failed: bool = False
    #: By row, the values that it has written and not undone, oldest first.
    own: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    #: The values that a savepoint's rollback undid.
    undone: set[str] = field(default_factory=set)
    #: The states that it saw, through properties and directly, of rows that it had not written
    #: itself: the event, the row, and the state's number.
    seen: list[tuple[Event, str, int]] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Add the transaction's next event."""
        self.events.append(event)
        if event.kind == 'commit':
            self.sent = event.at
        elif event.kind == 'committed':
            self.returned = event.at
        elif event.kind == 'rolled back' or (event.kind == 'failed' and self.sent == math.inf):
            self.failed = True
        elif event.kind == 'write':
            for row, (_, value) in event.rows.items():
                self.own[row].append(value)
        elif event.kind == 'undo':
            for row, (_, value) in event.rows.items():
                self.own[row].remove(value)
                self.undone.add(value)


class State(NamedTuple):
    """A row as it was after one committed transaction."""

    version: int
    value: str
    writer: Transaction


class Row:
    """The committed states of one row, oldest first."""

    def __init__(self, states: list[State]) -> None:
        self.states = states
        self.number = {state.value: number for number, state in enumerate(states)}
        #: By state, when a later write's COMMIT had returned.
        self.replaced = [math.inf] * len(states)
        for number in range(len(states) - 2, -1, -1):
            successor = number + 1
            returned = states[successor].writer.returned
            self.replaced[number] = min(self.replaced[successor], returned)
        #: By state, when it was certainly gone: a later write's COMMIT had returned, or a later
        #: state had been seen.
        self.gone = list(self.replaced)

    def show(self, seen: Iterable[tuple[int, int]]) -> None:
        """Note that older states were gone by the moment at which a state had been seen.

        :param seen: the numbers of states, each with the moment by which it had been seen.
        """
        for number, until in sorted(seen, reverse=True):
            if number:
                self.gone[number - 1] = min(self.gone[number - 1], until)
        for number in range(len(self.states) - 2, -1, -1):
            self.gone[number] = min(self.gone[number], self.gone[number + 1])

    def after(self, number: int) -> State | None:
        """Return the state that came next; None if there is none."""
        return self.states[number + 1] if number + 1 < len(self.states) else None
