"""The moves of the servers: the store forgets, saves a dump, is restarted from one; the database
is replaced by another one.
"""

from __future__ import annotations

from collections.abc import Iterator

from .moves import Move, Moves
from .scenarios import Guard, World
from .states import Scope, State, Store


class StoreMoves(Moves):
    """The moves of the store and of the database."""

    def store_moves(self, s: State) -> Iterator[Move]:
        may = self.scenario.store
        if World.REPLACED in may and not s.database:
            yield self.replaced(s)
        for scope, program in zip(s.scopes, self.scenario.programs, strict=True):
            if program.late and scope != Scope():
                return  # after a late scope has begun, nobody else could end a quarantine
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
        """Return the move that loses versions and doubts, and keeps the values of `left`."""
        quarantine = frozenset[int]() if self.has(Guard.QUARANTINE) else None
        store = Store(s.token, s.token, frozenset(), quarantine, left.values)
        after = s._replace(store=store, token=s.token + 1, lost=True)
        return Move(('store', what, ''), after)

    def replaced(self, s: State) -> Move:
        """Return the move that replaces the database: a change that no writer tells of. All
        transactions end with their connections."""
        scopes = list(s.scopes)
        for i, scope in enumerate(s.scopes):
            if scope.begun and not self.is_over(scope, self.scenario.programs[i]):
                outcome = scope.outcome or ('aborted' if scope.tags else '')
                scopes[i] = self.over(scope._replace(outcome=outcome), i)
        after = s._replace(scopes=tuple(scopes), database=1, seen=False, commits=s.commits + 1)
        return Move(('database', World.REPLACED, ''), after)
