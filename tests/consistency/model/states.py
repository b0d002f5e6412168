"""The states of the world that the model explores: the store, the processes, the scopes.

The database's value is the number of commits so far.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Value: TypeAlias = int

#: The version in a snapshot that is not identified.
NO_VERSION = -1


class Snapshot(NamedTuple):
    """The tag store's answer: version of the only tag, writers in doubt, quarantine."""

    version: int
    doubts: frozenset[int]
    quarantine: frozenset[int] | None
    #: The database whose version this is; None if the process must ask which it has.
    database: int | None = 0


class Stored(NamedTuple):
    """A value in a tier."""

    stamp: int
    value: Value


Tier: TypeAlias = tuple[Stored | None, ...]


class Store(NamedTuple):
    """The tag store and the shared tier: what one server has in memory."""

    version: int = 0
    epoch: int = 0
    doubts: frozenset[int] = frozenset()
    #: None if there is none; else the writers that it waits for, empty until somebody has
    #: asked which these are.
    quarantine: frozenset[int] | None = None
    values: Tier = (None, None)
    #: The latest database that a process has found, whose version this is.
    found: int = 0
    #: The version of the database before, which nobody changes any more.
    before: int = 0


class Scope(NamedTuple):
    """Where a request scope is in its program, and what it holds."""

    #: The number of the program's operation that is next, and how far (`at`) the scope is in it.
    operation: int = 0
    at: str = ''
    snapshot: Snapshot | None = None
    #: The number of commits when its transaction began.
    since: int | None = None
    begun: bool = False
    #: The number of commits that its transaction sees, if it keeps one view to its end.
    view: int | None = None
    blocked: bool = False
    tier: tuple[Value | None, ...] = (None, None)
    #: The value that the tiers gave to this transaction.
    hit: Value | None = None
    #: The value that the creator has made, or the token of a script that is tried again.
    got: int | None = None
    asked: frozenset[int] = frozenset()
    #: `own`: it has a change that is not undone. `tags`: it has changed something, undone or not.
    own: bool = False
    tags: bool = False
    #: True if its doubt is sent.
    doubted: bool = False
    #: The outcome of its COMMIT: '' (none yet), 'flying' (the answer was lost, and the server
    #: has not ended it yet), 'committed' or 'aborted'.
    outcome: str = ''


class State(NamedTuple):
    """One state of the world."""

    commits: int = 0
    token: int = 1
    store: Store = Store()
    dump: Store | None = None
    lost: bool = False
    #: The database: 0, or 1 after it was replaced.
    database: int = 0
    #: True if a transaction has begun in the database that is there now.
    seen: bool = True
    #: Per process: the database that it has found last.
    found: tuple[int, ...] = (0, 0)
    processes: tuple[Tier, ...] = ((None, None), (None, None))
    #: Per process: the epoch it knows, and the snapshot of it.
    known: tuple[tuple[int, Snapshot] | None, ...] = (None, None)
    #: Writers whose doubts, or new versions, are sent and have not arrived.
    doubts_on_their_way: frozenset[int] = frozenset()
    versions_on_their_way: frozenset[int] = frozenset()
    scopes: tuple[Scope, ...] = ()


def mark(i: int) -> Value:
    """The value that shows a writer's uncommitted change."""
    return -1 - i


def shown(value: Value) -> str:
    return str(value) if value >= 0 else f'the change of {-1 - value}'


def replaced(tier: Tier, prop: int, stored: Stored) -> Tier:
    return tuple(stored if p == prop else kept for p, kept in enumerate(tier))
