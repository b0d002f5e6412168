"""Walks every order of a scenario's steps, breadth first, and finds the shortest way to a
broken promise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from onegov_ormcache.steps import Step

from .committing import Committing
from .moves import Label, Move
from .reading import Reading
from .scenarios import Guard, Program, Scenario, World
from .states import Scope, State
from .store import StoreMoves


@dataclass
class Result:
    """The result of an exploration."""

    states: int
    broken: str | None = None
    way: list[str] = field(default_factory=list)
    steps: set[Step] = field(default_factory=set)


def explore(scenario: Scenario, removed: Guard | None = None) -> Result:
    """Walk every order of the scenario's steps, without the guard `removed`, if one is given."""
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


class Model(Reading, Committing, StoreMoves):
    """The moves of one scenario, with all guards or with one of them removed."""

    def moves(self, s: State) -> Iterator[Move]:
        for i, scope in enumerate(s.scopes):
            if self.is_private(i, scope):
                # no other scope can tell when this step happens: one order stands for all
                yield from self.scope_moves(s, i, scope)
                return
        yield from self.arrivals(s)
        yield from self.store_moves(s)
        for i, scope in enumerate(s.scopes):
            yield from self.scope_moves(s, i, scope)

    def is_private(self, i: int, scope: Scope) -> bool:
        """Return whether the next step shows nothing to other scopes and sees nothing of them."""
        program = self.scenario.programs[i]
        if self.is_over(scope, program) or scope.snapshot is None:
            return False
        if scope.outcome == 'flying':
            return False
        operation = program.operations[scope.operation]
        if operation == 'begin' and scope.begun and scope.at == '':
            return True
        if World.REPLACED in self.scenario.store:
            return False  # which database it begins in depends on the order
        begins = operation in ('begin', 'change') or scope.at == 'create'
        unquarantined = scope.snapshot.quarantine is None and not program.lasts
        return begins and not scope.begun and unquarantined

    def stuck(self, s: State) -> str | None:
        """Return how liveness is broken in a state that has no moves; None if it is not."""
        if not any(program.late for program in self.scenario.programs):
            return None
        if s.store.doubts:
            return 'liveness: the tag stays in doubt for ever, with nobody left to end it'
        if s.store.quarantine is not None:
            return 'liveness: the quarantine never ends'
        return None

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
                if not (self.has(Guard.CHANGE_FIRST) or scope.doubted):
                    yield from self.doubt(s, i, scope)
                    return
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

    def may_start(self, s: State, i: int, scope: Scope, program: Program) -> bool:
        if scope.operation or scope.at:
            return True
        if program.late:
            return not (s.doubts_on_their_way or s.versions_on_their_way) and all(
                self.is_over(other, others) and other.outcome != 'flying'
                for other, others in zip(s.scopes, self.scenario.programs, strict=True)
                if not others.late
            )
        # scopes with the same program in the same process are alike, so that one order of
        # their starts stands for all
        same = [j for j in range(i) if self.scenario.programs[j] == program]
        return all(s.scopes[j] != Scope() for j in same)
