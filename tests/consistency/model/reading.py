"""The moves with which a scope reads a property: from a tier, or from its creator. Each value
that it gets is compared with what was promised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onegov_ormcache.steps import Step

from .beginning import Beginning
from .moves import Move
from .scenarios import Guard, World
from .states import Scope, State, Stored, Value, mark, replaced, shown


class Reading(Beginning):
    """The moves from the question for a property to its value."""

    def holds(self, scope: Scope, stored: Stored | None) -> bool:
        assert scope.snapshot is not None
        if stored is None or self.blocks(scope):
            return False
        return stored.stamp == scope.snapshot.version or not self.has(Guard.CHECK_ON_READ)

    def read(self, s: State, i: int, scope: Scope, prop: int) -> Iterator[Move]:
        process = self.scenario.programs[i].process
        at = scope.at
        if at == '' and (value := scope.tier[prop]) is not None:
            since = self.promised(s) if scope.since is None else scope.since
            begun = scope._replace(since=since)
            yield self.given(s, i, begun, prop, World.REQUEST_TIER, value)
        elif at in ('ask', 'end quarantine') and scope.got is not None:
            yield from self.end_quarantine(s, i, scope, at_begin=False)
        elif at in ('identify', 'ask', 'end quarantine', 'view', 'second'):
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
