"""Lets the pause after an outage of Redis be over at once, so that no test has to wait for it."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from onegov_ormcache.redis_client.breaker import Breaker

#: The breakers of this process that are in use.
BREAKERS: WeakSet[Breaker] = WeakSet()


class RegisteredBreaker(Breaker):
    """A breaker that :func:`end_pauses` knows."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        BREAKERS.add(self)


def end_pauses() -> None:
    """Let the next command of each client in this process be a trial."""
    for breaker in list(BREAKERS):
        breaker._next_trial = 0.0
        breaker._lost_at -= 60
