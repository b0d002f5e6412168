"""The moves of the store itself: it forgets, it saves a dump, it is restarted from one."""

from __future__ import annotations

from collections.abc import Iterator

from .moves import Move, Moves
from .scenarios import Guard, World
from .states import Scope, State, Store


class StoreMoves(Moves):
    """The moves of the store."""

    def store_moves(self, s: State) -> Iterator[Move]:
        may = self.scenario.store
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
