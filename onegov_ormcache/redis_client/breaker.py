"""A circuit breaker: a Redis that does not answer is asked again only now and then.

The first command that fails opens it. From then on commands fail at once, but for a trial now and
then, which closes it when Redis answers. So a server that stalls costs a process one timeout per
pause, and not one for each command. See "Circuit Breaker" (Nygard, Release It!, 2007).

The libraries that were looked at do not serve: pybreaker holds a lock while a call lasts, so
threads would wait for one another's commands; circuitbreaker and purgatory let all callers make
the trial at once. This module does not know what a command is.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from threading import Lock

import redis

log = logging.getLogger('onegov_ormcache')

#: A number in a reason.
NUMBER = re.compile(r'\d+')

#: The number of different reasons of one loss that are logged at most.
MOST_REASONS = 5

#: Seconds between two trials: the first time, and at most.
PAUSES = 1.0, 2.0

#: By how much a pause is longer than the one before.
GROWTH = 1.5

#: A pause is longer or shorter by up to this part, so that processes do not all try at once.
JITTER = 0.2


class Breaker:
    """Says whether Redis may be asked now. Made with a client; used by all threads.

    :param timeout: seconds that a command waits for its answer; a pause is never shorter.
    :param clock: returns seconds.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shortest = max(PAUSES[0], 2 * timeout)
        self._longest = max(PAUSES[1], 2 * timeout)
        self._lock = Lock()
        self._pause = self._shortest
        self._next_trial = 0.0
        self._lost_at = 0.0
        self._missed = 0
        self._reason = ''
        # the different reasons of the present loss
        self._reasons: set[str] = set()
        #: True while Redis counts as lost.
        self.is_open = False
        #: The number of times that Redis was lost.
        self.losses = 0

    def __repr__(self) -> str:
        return f'<Breaker {"open" if self.is_open else "closed"}, {self.losses} losses>'

    def enter(self) -> None:
        """Let the caller send a command.

        :raises redis.ConnectionError: if Redis is lost, and this is no trial.
        """
        if not self.is_open:
            return
        with self._lock:
            now = self._clock()
            if self.is_open and now < self._next_trial:
                raise redis.ConnectionError(self._reason)
            # whoever comes next waits for another pause, however this trial ends
            self._next_trial = now + self._next_pause()

    def failed(self, reason: str) -> None:
        """Take notice that a command has failed: Redis is lost."""
        with self._lock:
            self._reason = reason
            # the numbers of ports and the like do not make another reason
            kind = NUMBER.sub('', reason)
            is_new, self._reasons = kind not in self._reasons, self._reasons | {kind}
            if self.is_open:
                if is_new and len(self._reasons) < MOST_REASONS:
                    log.warning('Redis is still lost: %s', reason)
                return
            self._reasons = {kind}
            self.is_open = True
            self.losses += 1
            self._missed = 0
            self._lost_at = self._clock()
            self._pause = self._shortest
            self._next_trial = self._lost_at + self._next_pause()
        log.warning('Redis is lost: %s', reason)

    def succeeded(self) -> None:
        """Take notice that a command was answered. If that was a trial, Redis is back."""
        if not self.is_open:
            return
        with self._lock:
            # the answer to a command from before the loss says nothing
            if not self.is_open or self._clock() - self._lost_at < self._shortest * (1 - JITTER):
                return
            self.is_open = False
            seconds = self._clock() - self._lost_at
        log.warning(
            'Redis is back after %.1f s; %s transactions went around it', seconds, self._missed
        )

    def missed(self) -> None:
        """Count a transaction that has done without Redis, for the log."""
        with self._lock:
            self._missed += 1

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * GROWTH, self._longest)
        return pause * random.uniform(1 - JITTER, 1 + JITTER)
