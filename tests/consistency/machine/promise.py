"""The model of the promise: the states that the database had, and what each scope may see."""

from __future__ import annotations

from hypothesis.stateful import RuleBasedStateMachine

from tests.consistency.town import EXPECTED, State

from .open_scopes import Open, Seen
from .worlds import World


class PromiseModel(RuleBasedStateMachine):
    """Keeps the states that the database had, and checks what scopes were given."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.opened: list[Open] = []
        self.counter = 0
        self.history: dict[str, list[State]] = {}

    def look(self, tenant: str) -> int:
        """Return the number of the state that the database has now; add the state if it is new."""
        states = self.history[tenant]
        truth = self.world.truth(tenant)
        if states[-1] != truth:
            states.append(truth)
        return len(states) - 1

    def touch(self, opened: Open) -> None:
        """Note the present state before the first action of a transaction, which sees no older
        state."""
        if opened.first is None:
            opened.first = self.look(opened.tenant)

    def done(self, opened: Open) -> None:
        """Note that the scope has done something: a snapshot or view that it has by now was taken
        at the present state at the latest."""
        if opened.closed or opened.first is None:
            return
        now = self.look(opened.tenant)
        if opened.snapshot is None and opened.scope._snapshot is not None:
            opened.snapshot = now
        if opened.last is None and any(p.keeps_view for p in opened.scope.transactions):
            opened.last = now

    def ended(self, opened: Open) -> None:
        """Forget the scope's transaction, which has ended in whatever way."""
        opened.first = opened.last = opened.snapshot = None
        opened.seen.clear()
        opened.savepoints.clear()
        opened.row = self.history[opened.tenant][self.look(opened.tenant)].get(opened.slot)

    def could_see(self, seen: Seen, opened: Open, number: int) -> bool:
        """Return whether the value is that of the state with this number, with the scope's own
        change."""
        state = dict(self.history[opened.tenant][number])
        state.pop(opened.slot, None)
        if seen.own is not None:
            state[opened.slot] = seen.own
        return bool(EXPECTED[seen.name](state, seen.role) == seen.value)

    def check(self, opened: Open) -> None:
        """Check that the promises allow all values that the scope was given."""
        assert opened.first is not None
        now = self.look(opened.tenant)
        last = now if opened.last is None else opened.last
        states = range(opened.first, last + 1)
        loose = [seen for seen in opened.seen if not self.was_kept(seen, opened)]
        for seen in loose:
            assert any(self.could_see(seen, opened, n) for n in states), (
                f'{seen} is none of {self.history[opened.tenant][opened.first : last + 1]}'
            )
        if opened.lasts:
            assert any(all(self.could_see(seen, opened, n) for seen in loose) for n in states), (
                f'{loose} are not of one state'
            )
        hits = [seen for seen in loose if seen.hit]
        snapshots = range(opened.first, (now if opened.snapshot is None else opened.snapshot) + 1)
        assert any(all(self.could_see(seen, opened, n) for seen in hits) for n in snapshots), (
            f'{hits} are not of one snapshot'
        )

    @staticmethod
    def was_kept(seen: Seen, opened: Open) -> bool:
        """Return whether a value was made from one that a request-cached property keeps to the end
        of the scope."""
        return seen.name == 'framed' and not seen.hit and seen.value[1:] in opened.kept
