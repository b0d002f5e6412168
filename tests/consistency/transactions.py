"""A recorded history, put together: what each transaction did, and the states of each row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.consistency.events import Event

#: What wrote the value that a row had before the first transaction.
NOBODY = ''


class Written(NamedTuple):
    """A committed write, as the database has it."""

    row: str
    version: int
    value: str


@dataclass
class Transaction:
    """What one transaction did, in its own order."""

    name: str
    tenant: str
    began: int
    events: list[Event] = field(default_factory=list)
    #: When COMMIT was sent; never, if it was not.
    sent: float = math.inf
    #: When it had returned.
    returned: float = math.inf
    #: Whether it is known not to have committed.
    failed: bool = False
    #: By row, the values that it has now, the last one last.
    own: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    #: The values that a savepoint's rollback undid.
    undone: set[str] = field(default_factory=set)
    #: What it saw of rows that it had not written itself, through properties and directly.
    seen: list[tuple[Event, str, int]] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """The transaction's next event."""
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
        #: When a later write's COMMIT had returned.
        self.replaced = [math.inf] * len(states)
        for number in range(len(states) - 2, -1, -1):
            successor = number + 1
            returned = states[successor].writer.returned
            self.replaced[number] = min(self.replaced[successor], returned)
        #: When the state was gone at the latest: a later one had also been seen by then.
        self.gone = list(self.replaced)

    def show(self, seen: Iterable[tuple[int, int]]) -> None:
        """These states were seen, each until some moment: older ones were gone by then."""
        for number, until in sorted(seen, reverse=True):
            if number:
                self.gone[number - 1] = min(self.gone[number - 1], until)
        for number in range(len(self.states) - 2, -1, -1):
            self.gone[number] = min(self.gone[number], self.gone[number + 1])

    def after(self, number: int) -> State | None:
        """The state that came next."""
        return self.states[number + 1] if number + 1 < len(self.states) else None
