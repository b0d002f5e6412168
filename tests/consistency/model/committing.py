"""The moves with which a scope commits, and what may become of its COMMIT."""

from __future__ import annotations

from collections.abc import Iterator

from onegov_ormcache.steps import Step

from .moves import Move, Moves
from .scenarios import Guard, World
from .states import Scope, State


class Committing(Moves):
    """The moves from the doubt to the new versions."""

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
