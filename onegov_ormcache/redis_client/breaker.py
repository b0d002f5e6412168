"""A circuit breaker: a Redis that does not answer is asked again only now and then.

The first command that fails opens it. From then on commands fail at once, but for a trial now and
then, which closes it when Redis answers. So a server that stalls costs a process one timeout per
pause, and not one for each command. See "Circuit Breaker" (Nygard, Release It!, 2007). A caller
may insist: a thread whose time costs nobody anything, or a commit of which others should hear,
which a server that is down refuses at once.

The libraries that were looked at do not serve: pybreaker holds a lock while a call lasts, so
threads would wait for one another's commands; circuitbreaker and purgatory let all callers make
the trial at once. This module does not know what a command is.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum

import redis

from ..forks import OwnLock

log = logging.getLogger(__name__)

#: Seconds between two trials: the first time, and at most.
PAUSES = 1.0, 2.0

#: By how much a pause is longer than the one before.
GROWTH = 1.5

#: A pause is longer or shorter by up to this part, so that processes do not all try at once.
JITTER = 0.2


class NotAsked(redis.ConnectionError):
    """The breaker is open, so the command was not sent."""


class Insistence(Enum):
    """Whether a command is sent although Redis is lost, and no trial is due."""

    NEVER = 'never'
    #: Only if the last one was refused, which costs no time.
    UNLESS_STALLED = 'unless stalled'
    ALWAYS = 'always'


#: The insistence of the commands that are sent now.
INSISTS: ContextVar[Insistence] = ContextVar('insists', default=Insistence.NEVER)


@contextmanager
def insisting(how: Insistence) -> Iterator[None]:
    """Send the commands of the block with this insistence."""
    token = INSISTS.set(how)
    try:
        yield
    finally:
        INSISTS.reset(token)


class Breaker:
    """Says whether Redis may be asked now. Made with a client; used by all threads.

    :param timeout: seconds that a command waits for its answer; a pause is never shorter.
    :param clock: returns seconds.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._timeout = timeout
        self._shortest = max(PAUSES[0], 2 * timeout)
        self._longest = max(PAUSES[1], 2 * timeout)
        self._lock = OwnLock()
        self._pause = self._shortest
        self._next_trial = 0.0
        self._lost_at = 0.0
        self._missed = 0
        self._reason = ''
        # the different errors of the present loss
        self._kinds: set[type] = set()
        #: True while Redis counts as lost.
        self.is_open = False
        #: True if the last command that failed was waited for in vain.
        self.is_stalled = False
        #: The number of times that Redis was lost.
        self.losses = 0
        #: The number of times that it was lost, or was back.
        self.changes = 0

    def __repr__(self) -> str:
        return f'<Breaker {"open" if self.is_open else "closed"}, {self.losses} losses>'

    def enter(self) -> bool:
        """Let the caller send a command.

        :return: True if it is a trial, whose answer closes the breaker.
        :raises NotAsked: if Redis is lost, and this is no trial.
        """
        if not self.is_open:
            return False
        with self._lock.present:
            now, insists = self._clock(), INSISTS.get()
            if self.is_open and now < self._next_trial and not (
                insists is Insistence.ALWAYS
                or (insists is Insistence.UNLESS_STALLED and not self.is_stalled)
            ):
                raise NotAsked(self._reason)
            # whoever comes next waits for another pause, however this trial ends
            self._next_trial = now + self._next_pause()
        return True

    def failed(self, error: redis.RedisError, reason: str = '', seconds: float = 0.0) -> None:
        """Take notice that a command has failed: Redis is lost.

        :param reason: what the error means; by default its text.
        :param seconds: how long it took to fail.
        """
        reason = reason or str(error)
        with self._lock.present:
            self._reason = reason
            self.is_stalled = isinstance(error, redis.TimeoutError) or self.is_slow(seconds)
            kind = type(error)
            if self.is_open:
                if kind not in self._kinds:
                    self._kinds.add(kind)
                    log.warning('Redis is still lost: %s', reason)
                return
            self._kinds = {kind}
            self.is_open = True
            self.losses += 1
            self.changes += 1
            self._missed = 0
            self._lost_at = self._clock()
            self._pause = self._shortest
            self._next_trial = self._lost_at + self._next_pause()
        log.warning('Redis is lost: %s', reason)

    def succeeded(self, is_trial: bool) -> None:
        """Take notice that a command was answered. If that was a trial, Redis is back; the answer
        to a command from before the loss says nothing.

        :param is_trial: what :meth:`enter` has returned.
        """
        if not is_trial or not self.is_open:
            return
        with self._lock.present:
            if not self.is_open:
                return
            self.is_open = False
            self.changes += 1
            seconds = self._clock() - self._lost_at
        log.warning(
            'Redis is back after %.1f s; %s transactions went around it', seconds, self._missed
        )

    def is_slow(self, seconds: float) -> bool:
        """Return whether a failure that took so long was waited for, whatever its error says."""
        return seconds >= self._timeout / 2

    def missed(self) -> None:
        """Count a transaction that has done without Redis, for the log."""
        with self._lock.present:
            self._missed += 1

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * GROWTH, self._longest)
        return pause * random.uniform(1 - JITTER, 1 + JITTER)
