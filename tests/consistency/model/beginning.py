"""The moves with which a scope begins: it takes its snapshot, begins its transaction, and
looks at what the store told it about a quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onegov_ormcache.steps import Step

from .moves import Move, Moves
from .scenarios import Guard, World
from .states import NO_VERSION, Scope, Snapshot, State, Store


class Beginning(Moves):
    """The moves from the snapshot to the view of the database."""

    def take_snapshot(self, s: State, process: int) -> tuple[Snapshot, dict[str, Any]]:
        """Return the snapshot that a process gets, and the change of what the processes know."""
        told = Snapshot(s.store.version, s.store.doubts, s.store.quarantine, s.store.found)
        if s.found[process] < s.store.found:
            if self.has(Guard.ASKING_AGAIN):
                return Snapshot(NO_VERSION, frozenset(), None, None), {}
            told = Snapshot(s.store.before, frozenset(), None, s.found[process])
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
        since = self.promised(s) if scope.since is None else scope.since
        after = scope._replace(snapshot=told, since=since)
        return self.move(s, i, Step.SNAPSHOT, after, **changes)

    def promised(self, s: State) -> int:
        """Return the number of commits that a scope must see which begins now.

        That the database was replaced is known as soon as a transaction has begun in it.
        """
        return s.commits if s.seen else s.commits - 1

    def begin(self, s: State, i: int, scope: Scope) -> Iterator[Move]:
        """Begin the database transaction: snapshot, end of a quarantine, view, and what follows
        the view."""
        program = self.scenario.programs[i]
        view_first = program.lasts and not self.has(Guard.SNAPSHOT_FIRST)
        if scope.at == 'identify':
            yield self.identify(s, i, scope)
        elif scope.at in ('ask', 'end quarantine'):
            yield from self.end_quarantine(s, i, scope, at_begin=True)
        elif scope.at == 'second':
            yield self.second_snapshot(s, i, scope)
        elif scope.snapshot is None and not (view_first and not scope.begun):
            yield self.snapshot(s, i, scope)
        elif not scope.begun and scope.at != 'view' and self.is_quarantined(scope):
            yield from self.end_quarantine(s, i, scope._replace(at='ask'), at_begin=True)
        elif not scope.begun:
            since = self.promised(s) if scope.since is None else scope.since
            after = scope._replace(begun=True, since=since)
            told = scope.snapshot.database if scope.snapshot else s.database
            if told != s.database and self.has(Guard.IDENTITY):
                yield self.move(s, i, Step.VIEW, after._replace(at='identify'))
            elif program.lasts:
                after = after._replace(view=s.commits, at='second')
                if not self.has(Guard.SECOND_SNAPSHOT):
                    after = self.with_view(i, after)
                yield self.move(
                    s, i, Step.VIEW, after, detail=s.commits, broken=self.unlike_view(after)
                )
            else:
                yield self.move(s, i, Step.VIEW, self.with_view(i, after), seen=True)
        elif self.operation(i, scope) == 'begin':
            yield self.move(s, i, World.END, self.next(scope), detail='of its begin')

    def identify(self, s: State, i: int, scope: Scope) -> Move:
        """Tell the store which database it is, and go on with a snapshot of its versions."""
        process = self.scenario.programs[i].process
        found = tuple(s.database if p == process else known for p, known in enumerate(s.found))
        store, token = s.store, s.token
        if store.found < s.database:
            quarantine = frozenset[int]() if self.has(Guard.QUARANTINE) else None
            store = Store(
                token, token, frozenset(), quarantine, store.values, s.database, store.version
            )
            token += 1
        changes: dict[str, Any] = {'store': store, 'token': token, 'found': found, 'seen': True}
        if scope.hit is not None:
            return self.move(s, i, Step.IDENTIFY, self.over(scope, i), **changes)
        after = scope._replace(at='', snapshot=None)
        return self.move(s, i, Step.IDENTIFY, after, **changes)

    def with_view(self, i: int, scope: Scope) -> Scope:
        """Return the scope after its transaction has begun.

        If it reads, it looks into the shared tier again before its creator runs, unless it
        must not use cached values.
        """
        if not self.operation(i, scope).startswith('read'):
            return scope._replace(at='')
        again = scope.snapshot is not None and not self.blocks(scope)
        return scope._replace(at='shared' if again else 'create')

    def unlike_view(self, scope: Scope) -> str | None:
        if scope.at == 'second' or scope.hit is None or scope.hit == scope.view:
            return None
        return f'P4: a cached value was {scope.hit}, its view of the database gives {scope.view}'

    def second_snapshot(self, s: State, i: int, scope: Scope) -> Move:
        if scope.snapshot is None:  # SNAPSHOT_FIRST was removed: there was no first snapshot
            return self.snapshot(s, i, scope)
        told, changes = self.take_snapshot(s, self.scenario.programs[i].process)
        differs = told.version != scope.snapshot.version or bool(told.doubts)
        if differs and scope.hit is not None:
            return self.move(s, i, World.CONFLICT, self.over(scope, i), **changes)
        after = self.with_view(i, scope._replace(blocked=scope.blocked or differs))
        broken = self.unlike_view(after)
        return self.move(s, i, Step.SECOND_SNAPSHOT, after, broken=broken, **changes)

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
        after = scope._replace(asked=frozenset(), at='view' if at_begin else 'return')
        if at_begin and scope.hit is None:
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

    @staticmethod
    def is_quarantined(scope: Scope) -> bool:
        return scope.snapshot is not None and scope.snapshot.quarantine is not None

    def blocks(self, scope: Scope) -> bool:
        assert scope.snapshot is not None
        if scope.snapshot.database is None:
            return True
        own = scope.tags and self.has(Guard.OWN_CHANGES)
        return bool(scope.snapshot.doubts) or scope.blocked or own
