"""A model of the protocol: every order of its steps, for small cases.

A scenario is a handful of request scopes with a program each ('read A', 'change',
'commit', ...), and what the world may do to them: refuse a COMMIT, lose its answer,
end a process, lose or restore the store. :func:`explore` walks all orders,
breadth first, and gives the shortest way to a broken promise. The database's value
is the number of commits so far, so a value is stale if it is smaller than that
number was when its reader's transaction began.

The scopes' steps are those of :class:`onegov_ormcache.steps.Step`, in the order in
which the code takes them. Each guard of the protocol can be removed.

    python -m tests.consistency.model
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

from onegov_ormcache.steps import Step


class Guard(StrEnum):
    """What keeps the promise; each member is one thing that can be left out."""

    DOUBT = 'doubt'
    CHECK_ON_FILL = 'stamp check on fill'
    CHECK_ON_READ = 'stamp check on read'
    SHARED_FIRST = 'process tier only after the shared one'
    SNAPSHOT_FIRST = 'snapshot before view'
    SECOND_SNAPSHOT = 'second snapshot'
    OWN_CHANGES = 'own-change bypass'
    TIER_ENDS = 'request tier ended by commit'
    UNKNOWN_OUTCOME = 'unknown outcome left to settling'
    SETTLING = 'settling'
    SAVEPOINT_DROP = 'savepoint drop'
    QUARANTINE = 'quarantine'
    NEW_BIRTH = 'new birth at the end of the quarantine'
    RUN_ID = 'run_id'
    FRESH_EPOCHS = 'fresh epochs'
    FRESH_TOKENS = 'a new token for each attempt of a script'


class World(StrEnum):
    """What happens to the scopes, and is no step of theirs."""

    REQUEST_TIER = 'is answered by its request tier'
    RETURN = 'returns what its creator made'
    CHANGE = 'changes a row'
    END = 'ends its transaction'
    CONFLICT = 'fails with a retryable conflict'
    REFUSED = 'its COMMIT is refused'
    LOST = 'the answer to its COMMIT is lost'
    DIED = 'dies'
    UNHEARD_COMMIT = 'the server commits it, unheard'
    UNHEARD_ABORT = 'the server aborts it, unheard'
    ASK = 'asks which writers are in progress'
    LOSS = 'the store forgets'
    DUMP = 'the store saves a dump'
    RESTORE = 'the store is restarted from the dump'


#: Steps that the model does not take, each with the reason.
LEFT_OUT: dict[Step, str] = {}

Label: TypeAlias = tuple[str, Step | World, str]
Value: TypeAlias = int


class Snapshot(NamedTuple):
    """What the tag store told: version of the one tag, writers in doubt, quarantine."""

    version: int
    doubts: frozenset[int]
    quarantine: frozenset[int] | None


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
    #: None, or the writers that are waited for; empty: nobody has asked yet.
    quarantine: frozenset[int] | None = None
    values: Tier = (None, None)


class Scope(NamedTuple):
    """Where a request scope is in its program, and what it holds."""

    #: Which operation of the program is next, and where in it the scope is.
    operation: int = 0
    at: str = ''
    snapshot: Snapshot | None = None
    #: The number of commits when its transaction began.
    since: int | None = None
    begun: bool = False
    #: What its transaction sees, if it sees the same to its end.
    view: int | None = None
    blocked: bool = False
    tier: tuple[Value | None, ...] = (None, None)
    #: The value that the tiers gave to this transaction.
    hit: Value | None = None
    #: The value that the creator has made; the token of a script that is tried again.
    got: int | None = None
    asked: frozenset[int] = frozenset()
    #: Whether it has changed something that is not undone, and whether it ever had.
    own: bool = False
    tags: bool = False
    #: What became of its COMMIT: '', 'flying', 'committed' or 'aborted'.
    outcome: str = ''


class State(NamedTuple):
    """One state of the world."""

    commits: int = 0
    token: int = 1
    store: Store = Store()
    dump: Store | None = None
    lost: bool = False
    processes: tuple[Tier, ...] = ((None, None), (None, None))
    #: Per process: the epoch it knows, and the snapshot of it.
    known: tuple[tuple[int, Snapshot] | None, ...] = (None, None)
    scopes: tuple[Scope, ...] = ()


@dataclass(frozen=True)
class Program:
    """What a request scope does, and where it runs."""

    operations: tuple[str, ...]
    process: int = 0
    #: Whether its transactions keep one view (REPEATABLE READ).
    lasts: bool = False
    #: It comes when all others have ended: nobody is left to help.
    late: bool = False


@dataclass(frozen=True)
class Scenario:
    """A small case, and the guards that it shows to be needed."""

    name: str
    programs: tuple[Program, ...]
    shows: tuple[Guard, ...] = ()
    #: What may become of a COMMIT, beside being answered.
    outcomes: frozenset[World] = frozenset()
    #: What may happen to the store.
    store: frozenset[World] = frozenset()
    #: Whether processes remember the snapshot of an epoch.
    epochs: bool = False


class Move(NamedTuple):
    """One step of somebody, what is after it, and which promise it breaks."""

    label: Label
    after: State
    broken: str | None = None


@dataclass
class Result:
    """What an exploration has found."""

    states: int
    broken: str | None = None
    way: list[str] = field(default_factory=list)
    steps: set[Step] = field(default_factory=set)


def explore(scenario: Scenario, removed: Guard | None = None) -> Result:
    """Walk every order of the scenario's steps, without one of the guards."""
    model = Model(scenario, removed)
    start = State(scopes=(Scope(),) * len(scenario.programs))
    came_from: dict[State, tuple[State, Label] | None] = {start: None}
    queue = deque([start])
    steps: set[Step] = set()
    while queue:
        state = queue.popleft()
        moves = list(model.moves(state))
        for label, after, broken in moves:
            if isinstance(label[1], Step):
                steps.add(label[1])
            if broken is not None:
                way = [*way_to(came_from, state), spoken(label)]
                return Result(len(came_from), broken, way, steps)
            if after not in came_from:
                came_from[after] = (state, label)
                queue.append(after)
        if not moves and (stuck := model.stuck(state)):
            return Result(len(came_from), stuck, way_to(came_from, state), steps)
    return Result(len(came_from), None, [], steps)


def way_to(came_from: dict[State, tuple[State, Label] | None], state: State) -> list[str]:
    """The labels on the shortest way to a state."""
    labels = []
    while (before := came_from[state]) is not None:
        state, label = before
        labels.append(spoken(label))
    return labels[::-1]


def spoken(label: Label) -> str:
    who, step, detail = label
    return ' '.join(filter(None, (who, str(step), f'({detail})' if detail else '')))


class Model:
    """The moves of one scenario, with or without a guard."""

    def __init__(self, scenario: Scenario, removed: Guard | None) -> None:
        self.scenario = scenario
        self.removed = removed

    def has(self, guard: Guard) -> bool:
        return guard is not self.removed

    # what happens to all

    def moves(self, s: State) -> Iterator[Move]:
        for i, scope in enumerate(s.scopes):
            if self.is_private(i, scope):
                # nobody else can tell when it happens: one order stands for all
                yield from self.scope_moves(s, i, scope)
                return
        yield from self.store_moves(s)
        for i, scope in enumerate(s.scopes):
            yield from self.scope_moves(s, i, scope)

    def is_private(self, i: int, scope: Scope) -> bool:
        """Whether the scope's next step neither shows nor sees anything of the others."""
        program = self.scenario.programs[i]
        if self.is_over(scope, program) or scope.snapshot is None:
            return False
        if scope.outcome == 'flying':
            return False
        operation = program.operations[scope.operation]
        if operation == 'begin' and scope.begun and scope.at == '':
            return True
        begins = operation in ('begin', 'change') or scope.at == 'create'
        unquarantined = scope.snapshot.quarantine is None and not program.lasts
        return begins and not scope.begun and unquarantined

    def stuck(self, s: State) -> str | None:
        """The broken promise of liveness, if nobody has anything left to do."""
        if not any(program.late for program in self.scenario.programs):
            return None
        if s.store.doubts:
            return 'liveness: the tag stays in doubt for ever, with nobody left to end it'
        if s.store.quarantine is not None:
            return 'liveness: the quarantine never ends'
        return None

    def store_moves(self, s: State) -> Iterator[Move]:
        may = self.scenario.store
        for scope, program in zip(s.scopes, self.scenario.programs, strict=True):
            if program.late and scope != Scope():
                return  # what happens after the last reader came, nobody could end
        if World.LOSS in may and not s.lost:
            yield self.reborn(s, World.LOSS, s.store)
        if World.DUMP in may and s.dump is None:
            yield Move(('store', World.DUMP, ''), s._replace(dump=s.store))
        if World.DUMP in may and s.dump is not None and not s.lost:
            if self.has(Guard.RUN_ID):
                yield self.reborn(s, World.RESTORE, s.dump)
            else:
                after = s._replace(store=s.dump, lost=True)
                yield Move(('store', World.RESTORE, ''), after)

    def reborn(self, s: State, what: World, left: Store) -> Move:
        """Versions and doubts are gone; the values may still be there."""
        quarantine = frozenset[int]() if self.has(Guard.QUARANTINE) else None
        store = Store(s.token, s.token, frozenset(), quarantine, left.values)
        after = s._replace(store=store, token=s.token + 1, lost=True)
        return Move(('store', what, ''), after)

    def script(self, s: State, token: int | None = None, **change: Any) -> State:
        """A script that changes something: with a new token, under a new epoch."""
        change.setdefault('epoch', self.epoch(s))
        if token is None:
            return s._replace(store=s.store._replace(**change), token=s.token + 1)
        return s._replace(store=s.store._replace(**change))

    def epoch(self, s: State) -> int:
        if self.scenario.epochs and self.has(Guard.FRESH_EPOCHS):
            return s.token
        return s.store.epoch

    def in_progress(self, s: State) -> frozenset[int]:
        """The writing transactions that the database has not ended."""
        return frozenset(
            i
            for i, scope in enumerate(s.scopes)
            if (scope.tags and not scope.outcome) or scope.outcome == 'flying'
        )

    # what a scope does

    def scope_moves(self, s: State, i: int, scope: Scope) -> Iterator[Move]:
        if scope.outcome == 'flying':
            aborted = scope._replace(outcome='aborted')
            committed = scope._replace(outcome='committed')
            yield self.move(s, i, World.UNHEARD_ABORT, aborted)
            yield self.move(s, i, World.UNHEARD_COMMIT, committed, commits=s.commits + 1)
        program = self.scenario.programs[i]
        if self.is_over(scope, program) or not self.may_start(s, i, scope, program):
            return
        operation = program.operations[scope.operation]
        if operation.startswith('read'):
            yield from self.read(s, i, scope, 'AB'.index(operation[-1]))
        elif operation == 'begin':
            yield from self.begin(s, i, scope)
        elif operation == 'change':
            if scope.begun and scope.at == '':
                changed = scope._replace(own=True, tags=True, tier=(None, None))
                yield self.move(s, i, World.CHANGE, self.next(changed))
            else:
                yield from self.begin(s, i, scope)
        elif operation == 'undo':
            kept = (None, None) if self.has(Guard.SAVEPOINT_DROP) else scope.tier
            yield self.move(s, i, Step.SAVEPOINT, self.next(scope._replace(own=False, tier=kept)))
        elif operation.startswith('commit'):
            yield from self.commit(s, i, scope)
        else:
            yield self.move(s, i, World.END, self.ended(scope))

    @staticmethod
    def is_over(scope: Scope, program: Program) -> bool:
        return scope.operation >= len(program.operations)

    def may_start(self, s: State, i: int, scope: Scope, program: Program) -> bool:
        if scope.operation or scope.at:
            return True
        if program.late:
            return all(
                self.is_over(other, others) and other.outcome != 'flying'
                for other, others in zip(s.scopes, self.scenario.programs, strict=True)
                if not others.late
            )
        # scopes with one program in one process are the same: they start in their order
        same = [j for j in range(i) if self.scenario.programs[j] == program]
        return all(s.scopes[j] != Scope() for j in same)

    def move(
        self,
        s: State,
        i: int,
        step: Step | World,
        after: Scope,
        *,
        detail: object = '',
        broken: str | None = None,
        **changes: Any,
    ) -> Move:
        scopes = (*s.scopes[:i], after, *s.scopes[i + 1 :])
        operations = self.scenario.programs[i].operations
        who = f'{"writer" if "change" in operations else "reader"} {i}'
        return Move((who, step, str(detail)), s._replace(scopes=scopes, **changes), broken)

    def next(self, scope: Scope) -> Scope:
        return scope._replace(operation=scope.operation + 1, at='', got=None)

    def ended(self, scope: Scope) -> Scope:
        """The scope after its transaction."""
        return Scope(
            operation=scope.operation + 1,
            tier=(None, None) if self.has(Guard.TIER_ENDS) else scope.tier,
            outcome=scope.outcome,
        )

    def over(self, scope: Scope, i: int) -> Scope:
        """The scope of a process that has died, or of a request that has failed."""
        operations = self.scenario.programs[i].operations
        return Scope(operation=len(operations), outcome=scope.outcome)

    # how it begins

    def take_snapshot(self, s: State, process: int) -> tuple[Snapshot, dict[str, Any]]:
        """What the store tells a process, and what the process then knows."""
        told = Snapshot(s.store.version, s.store.doubts, s.store.quarantine)
        if not self.scenario.epochs:
            return told, {}
        last = s.known[process]
        if last is not None and last[0] == s.store.epoch:
            return last[1], {}
        known = list(s.known)
        known[process] = (s.store.epoch, told)
        return told, {'known': tuple(known)}

    def snapshot(self, s: State, i: int, scope: Scope) -> Move:
        told, changes = self.take_snapshot(s, self.scenario.programs[i].process)
        since = s.commits if scope.since is None else scope.since
        after = scope._replace(snapshot=told, since=since)
        return self.move(s, i, Step.SNAPSHOT, after, **changes)

    def begin(self, s: State, i: int, scope: Scope) -> Iterator[Move]:
        """Begin the database transaction: snapshot, view, and what follows the view."""
        program = self.scenario.programs[i]
        view_first = program.lasts and not self.has(Guard.SNAPSHOT_FIRST)
        if scope.at in ('ask', 'end quarantine'):
            yield from self.end_quarantine(s, i, scope, at_begin=True)
        elif scope.at == 'second':
            yield self.second_snapshot(s, i, scope)
        elif scope.snapshot is None and not (view_first and not scope.begun):
            yield self.snapshot(s, i, scope)
        elif not scope.begun:
            since = s.commits if scope.since is None else scope.since
            after = scope._replace(begun=True, since=since)
            if program.lasts:
                after = after._replace(view=s.commits, at='second')
                if not self.has(Guard.SECOND_SNAPSHOT):
                    after = self.with_view(i, after)
                yield self.move(
                    s, i, Step.VIEW, after, detail=s.commits, broken=self.unlike_view(after)
                )
            elif scope.snapshot is not None and scope.snapshot.quarantine is not None:
                yield self.move(s, i, Step.VIEW, after._replace(at='ask'))
            else:
                yield self.move(s, i, Step.VIEW, self.with_view(i, after))
        elif self.operation(i, scope) == 'begin':
            yield self.move(s, i, World.END, self.next(scope), detail='of its begin')

    def operation(self, i: int, scope: Scope) -> str:
        return self.scenario.programs[i].operations[scope.operation]

    def with_view(self, i: int, scope: Scope) -> Scope:
        """The scope once its transaction has begun; who reads looks again before it creates."""
        if not self.operation(i, scope).startswith('read'):
            return scope._replace(at='')
        again = scope.snapshot is not None and not self.blocks(scope)
        return scope._replace(at='shared' if again else 'create')

    def unlike_view(self, scope: Scope) -> str | None:
        if scope.at == 'second' or scope.hit is None or scope.hit == scope.view:
            return None
        return f'P4: a cached value was {scope.hit}, its view of the database gives {scope.view}'

    def second_snapshot(self, s: State, i: int, scope: Scope) -> Move:
        if scope.snapshot is None:  # the guard that puts it first was removed
            return self.snapshot(s, i, scope)
        told, changes = self.take_snapshot(s, self.scenario.programs[i].process)
        differs = told.version != scope.snapshot.version or bool(told.doubts)
        if differs and scope.hit is not None:
            return self.move(s, i, World.CONFLICT, self.over(scope, i), **changes)
        after = self.with_view(i, scope._replace(blocked=scope.blocked or differs))
        broken = self.unlike_view(after)
        return self.move(s, i, Step.SECOND_SNAPSHOT, after, broken=broken, **changes)

    # how it reads

    def blocks(self, scope: Scope) -> bool:
        assert scope.snapshot is not None
        own = scope.tags and self.has(Guard.OWN_CHANGES)
        return bool(scope.snapshot.doubts) or scope.blocked or own

    def holds(self, scope: Scope, stored: Stored | None) -> bool:
        assert scope.snapshot is not None
        if stored is None or self.blocks(scope):
            return False
        return stored.stamp == scope.snapshot.version or not self.has(Guard.CHECK_ON_READ)

    def read(self, s: State, i: int, scope: Scope, prop: int) -> Iterator[Move]:
        process = self.scenario.programs[i].process
        at = scope.at
        if at == '' and (value := scope.tier[prop]) is not None:
            since = s.commits if scope.since is None else scope.since
            begun = scope._replace(since=since)
            yield self.given(s, i, begun, prop, World.REQUEST_TIER, value)
        elif at in ('ask', 'end quarantine') and scope.got is not None:
            yield from self.end_quarantine(s, i, scope, at_begin=False)
        elif at in ('ask', 'end quarantine', 'second'):
            yield from self.begin(s, i, scope)
        elif scope.snapshot is None:
            lasting = self.scenario.programs[i].lasts
            if lasting and not self.has(Guard.SNAPSHOT_FIRST) and not scope.begun:
                yield from self.begin(s, i, scope)
            else:
                yield self.snapshot(s, i, scope)
        elif at == '' and self.blocks(scope):
            yield from self.create(s, i, scope)
        elif at == '':
            mine = s.processes[process][prop]
            if mine is not None and self.holds(scope, mine):
                yield self.given(s, i, scope, prop, Step.PROCESS_TIER, mine.value, hit=True)
            else:
                yield self.move(s, i, Step.PROCESS_TIER, scope._replace(at='shared'))
        elif at == 'shared':
            shared = s.store.values[prop]
            if shared is not None and self.holds(scope, shared):
                kept = self.kept(s, process, prop, shared)
                yield self.given(
                    s, i, scope, prop, Step.SHARED_TIER, shared.value, hit=True, **kept
                )
            else:
                yield self.move(s, i, Step.SHARED_TIER, scope._replace(at='create'))
        elif at == 'create':
            yield from self.create(s, i, scope)
        elif at == 'store':
            yield from self.fill(s, i, scope, prop)
        elif at == 'settle':
            yield self.settle(s, i, scope, prop)
        elif at == 'return':
            assert scope.got is not None
            yield self.given(s, i, scope, prop, World.RETURN, scope.got)

    def create(self, s: State, i: int, scope: Scope) -> Iterator[Move]:
        if not scope.begun:
            yield from self.begin(s, i, scope)
            return
        value = s.commits if scope.view is None else scope.view
        if scope.own:
            value = mark(i)
        after = scope._replace(at='store', got=value)
        yield self.move(s, i, Step.CREATOR, after, detail=shown(value))

    def fill(self, s: State, i: int, scope: Scope, prop: int) -> Iterator[Move]:
        """Store what the creator made, or settle what is in the way."""
        assert scope.snapshot is not None
        assert scope.got is not None
        if self.blocks(scope):
            yield self.settle(s, i, scope, prop)
            return
        process = self.scenario.programs[i].process
        store = s.store
        stored = Stored(scope.snapshot.version, scope.got)
        allowed = not self.has(Guard.CHECK_ON_FILL) or (
            store.version == stored.stamp and not store.doubts and store.quarantine is None
        )
        if allowed:
            values = replaced(store.values, prop, stored)
            kept = self.kept(s, process, prop, stored)
            filled = s._replace(store=store._replace(values=values))
            yield self.given(
                filled, i, scope, prop, Step.FILL, scope.got, **kept
            )
            return
        kept = {} if self.has(Guard.SHARED_FIRST) else self.kept(s, process, prop, stored)
        if scope.snapshot.quarantine is None:
            yield self.given(
                s, i, scope, prop, Step.FILL, scope.got, detail='refused', **kept
            )
        else:
            after = scope._replace(at='settle')
            yield self.move(s, i, Step.FILL, after, detail='refused', **kept)

    def settle(self, s: State, i: int, scope: Scope, prop: int) -> Move:
        """Ask the database what became of the writers in doubt, and end what has an end."""
        assert scope.snapshot is not None
        assert scope.got is not None
        quarantined = scope.snapshot.quarantine is not None
        left = scope.snapshot.doubts - self.in_progress(s)
        settling = bool(scope.snapshot.doubts) and self.has(Guard.SETTLING)
        store = s
        if settling and left & s.store.doubts:
            store = self.script(s, doubts=s.store.doubts - left, version=s.token)
        step = Step.SETTLE if settling else World.RETURN
        if quarantined:
            return self.move(store, i, step if settling else World.ASK, scope._replace(at='ask'))
        return self.given(store, i, scope, prop, step, scope.got)

    def end_quarantine(
        self, s: State, i: int, scope: Scope, *, at_begin: bool
    ) -> Iterator[Move]:
        assert scope.snapshot is not None
        if scope.at == 'ask':
            named = scope.snapshot.quarantine or frozenset()
            writers = self.in_progress(s) - {i}
            asked = named & writers if named else writers
            yield self.move(s, i, World.ASK, scope._replace(at='end quarantine', asked=asked))
            return
        after = self.with_view(i, scope._replace(asked=frozenset()))
        if not at_begin:
            after = after._replace(at='return')
        elif scope.hit is None:
            after = after._replace(snapshot=None)
        store = s
        if s.store.quarantine is not None:
            if scope.asked:
                store = self.script(s, token=0, quarantine=scope.asked)
            elif self.has(Guard.NEW_BIRTH):
                store = self.script(s, quarantine=None, version=s.token)
            else:
                store = self.script(s, token=0, quarantine=None)
        detail = f'waits for {sorted(scope.asked)}' if scope.asked else ''
        yield self.move(store, i, Step.END_QUARANTINE, after, detail=detail)

    def kept(self, s: State, process: int, prop: int, stored: Stored) -> dict[str, Any]:
        tiers = list(s.processes)
        tiers[process] = replaced(tiers[process], prop, stored)
        return {'processes': tuple(tiers)}

    def given(
        self,
        s: State,
        i: int,
        scope: Scope,
        prop: int,
        step: Step | World,
        value: Value,
        *,
        hit: bool = False,
        detail: str = '',
        **changes: Any,
    ) -> Move:
        """The scope has its value: is it what was promised?"""
        broken = self.broken(i, scope, value, hit)
        tier = tuple(value if p == prop else kept for p, kept in enumerate(scope.tier))
        after = self.next(scope._replace(tier=tier, hit=value if hit else scope.hit))
        detail = ', '.join(filter(None, (detail, f'gives {shown(value)}')))
        return self.move(s, i, step, after, detail=detail, broken=broken, **changes)

    def broken(self, i: int, scope: Scope, value: Value, hit: bool) -> str | None:
        """The promise that this value breaks, if any."""
        if scope.own:
            return None if value == mark(i) else 'P3: a transaction does not see its own change'
        if value < 0:
            return 'P2: what was never committed was read'
        if scope.since is not None and value < scope.since:
            return f'P1: {value} was read when {scope.since} was committed before the begin'
        if scope.view is not None and value != scope.view:
            return f'P4: {value} was read, its view of the database gives {scope.view}'
        if hit and scope.hit is not None and value != scope.hit:
            return f'P4: cached values of two snapshots in one transaction: {scope.hit}, {value}'
        return None

    # how it commits

    def commit(self, s: State, i: int, scope: Scope) -> Iterator[Move]:
        may = self.scenario.outcomes
        at = scope.at
        if at == '' and not scope.tags:
            yield self.move(s, i, World.END, self.ended(scope))
        elif at == '':
            after = scope._replace(at='commit')
            doubts = s.store.doubts | {i} if self.has(Guard.DOUBT) else s.store.doubts
            yield self.move(self.script(s, token=None, doubts=doubts), i, Step.DOUBT, after)
        elif at == 'commit':
            committed = scope._replace(at='publish', outcome='committed')
            yield self.move(s, i, Step.COMMIT, committed, commits=s.commits + 1)
            if World.REFUSED in may:
                refused = scope._replace(at='end doubt', outcome='aborted')
                yield self.move(s, i, World.REFUSED, refused)
            if World.LOST in may:
                yield self.move(s, i, World.LOST, scope._replace(at='leave', outcome='flying'))
            if World.DIED in may:
                dead = self.over(scope._replace(outcome='aborted'), i)
                yield self.move(s, i, World.DIED, dead, detail='before its COMMIT')
        elif at == 'publish' and self.operation(i, scope) == 'commit, heard late':
            store = self.script(s, doubts=s.store.doubts - {i}, version=s.token)
            yield self.move(
                store, i, Step.PUBLISH, scope._replace(at='again', got=s.token), detail='unheard'
            )
        elif at == 'publish':
            settled = {'doubts': s.store.doubts - {i}, 'version': s.token}
            yield self.move(self.script(s, **settled), i, Step.PUBLISH, self.ended(scope))
            if World.DIED in may:
                yield self.move(s, i, World.DIED, self.over(scope, i), detail='after its COMMIT')
        elif at == 'again':
            token = s.token if self.has(Guard.FRESH_TOKENS) else scope.got
            after = self.script(s, version=token)
            yield self.move(after, i, Step.PUBLISH, self.ended(scope), detail='again')
        elif at == 'end doubt':
            store = self.script(s, doubts=s.store.doubts - {i})
            yield self.move(store, i, Step.END_DOUBT, self.ended(scope))
        elif at == 'leave' and self.has(Guard.UNKNOWN_OUTCOME):
            yield self.move(s, i, Step.LEAVE_DOUBT, self.over(scope, i))
        elif at == 'leave':
            store = self.script(s, doubts=s.store.doubts - {i})
            yield self.move(store, i, Step.END_DOUBT, self.over(scope, i))


def mark(i: int) -> Value:
    """The value that shows a writer's uncommitted change."""
    return -1 - i


def shown(value: Value) -> str:
    return str(value) if value >= 0 else f'the change of {-1 - value}'


def replaced(tier: Tier, prop: int, stored: Stored) -> Tier:
    return tuple(stored if p == prop else kept for p, kept in enumerate(tier))


WRITER = Program(('change', 'commit'))
READER = Program(('read A',))
ELSEWHERE = Program(('read A',), process=1)
TWO = Program(('read A', 'read B'))
LATE = Program(('read A', 'end', 'read A'), late=True)
KEEPING = Program(('read A',), lasts=True)

SCENARIOS = (
    Scenario(
        'one writer, readers in two processes',
        (WRITER, READER, READER, ELSEWHERE),
        (Guard.DOUBT, Guard.CHECK_ON_READ),
        frozenset({World.REFUSED}),
    ),
    Scenario(
        'two properties of one tag',
        (WRITER, TWO, TWO),
        (Guard.CHECK_ON_FILL, Guard.SHARED_FIRST),
    ),
    Scenario(
        'two writers',
        (WRITER, WRITER, READER, READER),
        (Guard.DOUBT, Guard.CHECK_ON_READ),
    ),
    Scenario(
        'a view per transaction',
        (WRITER, KEEPING, Program(('begin', 'read A'), lasts=True)),
        (Guard.SNAPSHOT_FIRST,),
    ),
    Scenario(
        'a view that is taken after a cached value',
        (WRITER, KEEPING, Program(('read A', 'begin', 'read B'), lasts=True)),
        (Guard.SNAPSHOT_FIRST, Guard.SECOND_SNAPSHOT),
    ),
    Scenario(
        'a writer that reads before and after its change',
        (
            Program(('read A', 'change', 'read A', 'undo', 'read A', 'commit')),
            Program(('read A', 'end', 'read A')),
            ELSEWHERE,
        ),
        (Guard.OWN_CHANGES, Guard.SAVEPOINT_DROP),
        frozenset({World.REFUSED}),
    ),
    Scenario(
        'a writer with one view that rolls back',
        (Program(('change', 'read A', 'end', 'read A'), lasts=True), WRITER, READER),
        (Guard.OWN_CHANGES, Guard.TIER_ENDS),
    ),
    Scenario(
        'two transactions in a scope',
        (WRITER, Program(('read A', 'end', 'read A')), READER),
        (Guard.TIER_ENDS,),
    ),
    Scenario(
        'writers that die, and answers that are lost',
        (WRITER, READER, ELSEWHERE, LATE),
        (Guard.UNKNOWN_OUTCOME, Guard.SETTLING),
        frozenset({World.REFUSED, World.LOST, World.DIED}),
    ),
    Scenario(
        'a store that forgets',
        (WRITER, READER, READER),
        (Guard.QUARANTINE, Guard.NEW_BIRTH, Guard.CHECK_ON_FILL, Guard.DOUBT),
        frozenset({World.LOST}),
        frozenset({World.LOSS}),
    ),
    Scenario(
        'a store that forgets, and a view per transaction',
        (WRITER, KEEPING, KEEPING),
        (Guard.QUARANTINE,),
        store=frozenset({World.LOSS}),
    ),
    Scenario(
        'a store that forgets, and a writer that dies',
        (WRITER, READER, LATE),
        (Guard.SETTLING,),
        frozenset({World.LOST, World.DIED}),
        frozenset({World.LOSS}),
    ),
    Scenario(
        'a store that comes back from an older dump',
        (WRITER, READER, ELSEWHERE),
        (Guard.RUN_ID,),
        store=frozenset({World.DUMP}),
    ),
    Scenario(
        'processes that know the epoch',
        (WRITER, READER, READER, ELSEWHERE),
        (Guard.FRESH_EPOCHS,),
        epochs=True,
    ),
    Scenario(
        'a script that runs twice',
        (
            Program(('change', 'commit, heard late')),
            WRITER,
            Program(('read A', 'end', 'read A')),
        ),
        (Guard.FRESH_TOKENS,),
    ),
)


def main() -> None:
    """Print what each scenario shows."""
    print(f'{"scenario":<52} {"without":<42} {"states":>7}  seconds  result')
    for scenario in SCENARIOS:
        for removed in (None, *scenario.shows):
            start = time.perf_counter()
            result = explore(scenario, removed)
            seconds = time.perf_counter() - start
            print(
                f'{scenario.name:<52} {removed or "-":<42} {result.states:>7}  {seconds:7.1f}  '
                f'{result.broken or "holds"}',
                flush=True,
            )
            if result.way:
                print('    ' + ' | '.join(result.way))


if __name__ == '__main__':
    main()
