"""How a move is made: one step of a scope or of the store, which leads to the next state."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from onegov_ormcache.steps import Step

from .scenarios import Guard, Program, Scenario, World
from .states import Scope, State

#: Steps that the model does not take, each with the reason.
LEFT_OUT: dict[Step, str] = {
    Step.WAIT: 'a wait ends with a look into the shared tier, which a read may take at any time',
}

Label: TypeAlias = tuple[str, Step | World, str]


class Move(NamedTuple):
    """One step of a scope or of the store, the state after it, and the promise that it breaks."""

    label: Label
    after: State
    broken: str | None = None


class Moves:
    """The common base of the moves of scopes and of the store."""

    def __init__(self, scenario: Scenario, removed: Guard | None) -> None:
        self.scenario = scenario
        self.removed = removed

    def has(self, guard: Guard) -> bool:
        return guard is not self.removed

    def operation(self, i: int, scope: Scope) -> str:
        return self.scenario.programs[i].operations[scope.operation]

    @staticmethod
    def is_over(scope: Scope, program: Program) -> bool:
        return scope.operation >= len(program.operations)

    def in_progress(self, s: State) -> frozenset[int]:
        """The writing transactions that the database has not ended."""
        return frozenset(
            i
            for i, scope in enumerate(s.scopes)
            if (scope.tags and not scope.outcome) or scope.outcome == 'flying'
        )

    # how a state is changed

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

    def script(self, s: State, token: int | None = None, **change: Any) -> State:
        """Return the state after a script that changes something, with a new epoch.

        :param token: if given, the script uses up no token of the state.
        """
        change.setdefault('epoch', self.epoch(s))
        if token is None:
            return s._replace(store=s.store._replace(**change), token=s.token + 1)
        return s._replace(store=s.store._replace(**change))

    def epoch(self, s: State) -> int:
        if self.scenario.epochs and self.has(Guard.FRESH_EPOCHS):
            return s.token
        return s.store.epoch
