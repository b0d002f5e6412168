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
        elif at == '' and not scope.doubted:
            yield from self.doubt(s, i, scope._replace(at='answer'))
        elif at in ('', 'answer'):
            if i not in s.doubts_on_their_way or not self.has(Guard.ANSWER):
                yield self.move(s, i, Step.ANSWER, scope._replace(at='commit'))
                if World.REFUSED in may:
                    after = scope._replace(at='end doubt', outcome='aborted')
                    yield self.move(s, i, World.ROLLED_BACK, after)
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
        elif at == 'publish' and self.scenario.travels:
            sent = s.versions_on_their_way | {i}
            yield self.move(s, i, Step.PUBLISH, self.ended(scope), versions_on_their_way=sent)
            if World.DIED in may:
                yield self.move(s, i, World.DIED, self.over(scope, i), detail='after its COMMIT')
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

    def doubt(self, s: State, i: int, after: Scope) -> Iterator[Move]:
        """Send the doubt; it arrives at once, unless doubts travel in this scenario."""
        after = after._replace(doubted=True)
        if not self.has(Guard.DOUBT):
            yield self.move(self.script(s, token=None), i, Step.DOUBT, after)
            return
        arrived = self.script(s, token=None, doubts=s.store.doubts | {i})
        if not self.scenario.travels:
            yield self.move(arrived, i, Step.DOUBT, after)
            return
        sent = {'doubts_on_their_way': s.doubts_on_their_way | {i}}
        yield self.move(s, i, Step.DOUBT, after, **sent)
        if World.TWICE in self.scenario.outcomes:
            answered = after._replace(at='commit')
            yield self.move(arrived, i, World.TWICE, answered, **sent)

    def arrivals(self, s: State) -> Iterator[Move]:
        """The moves of what is on its way to the store."""
        for i in s.doubts_on_their_way:
            after = self.script(s, token=None, doubts=s.store.doubts | {i})
            left = {'doubts_on_their_way': s.doubts_on_their_way - {i}}
            yield self.move(after, i, World.DOUBT_ARRIVES, s.scopes[i], **left)
        for i in s.versions_on_their_way:
            settled = self.script(s, doubts=s.store.doubts - {i}, version=s.token)
            left = {'versions_on_their_way': s.versions_on_their_way - {i}}
            yield self.move(settled, i, World.VERSIONS_ARRIVE, s.scopes[i], **left)
            if World.VERSIONS_LOST in self.scenario.outcomes:
                yield self.move(s, i, World.VERSIONS_LOST, s.scopes[i], **left)
