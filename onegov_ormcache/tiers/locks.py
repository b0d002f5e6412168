"""The locks under which cold values are computed; :mod:`.claims` are made of them.

They only save work. If a lock can't be acquired, or is lost while its holder computes, a
creator runs twice, and nothing else goes wrong. So no lock ever raises an error of Redis.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import redis
from dogpile.cache.api import CacheMutex
from dogpile.util import NameRegistry
from redis.exceptions import LockError

from ..forks import check, register

#: Seconds between two attempts to acquire a lock that another caller holds.
POLL = 0.01

#: Seconds after which a lock expires if its holder's process does not renew it.
SHORT = 2.0

#: The most milliseconds for which a lock is set. A key that lasts longer is no lock of ours, and
#: nobody would ever give it back.
MAX_LOCK = 60_000

#: Seconds without any lock after which the thread that renews locks ends.
IDLE = 10.0


class Held(NamedTuple):
    """A lock's lifetime in seconds; and the times of the monotonic clock, in seconds, after which
    it is not renewed any longer, and at which it is renewed next."""

    ttl: float
    until: float
    due: float


class Renewer:
    """Renews the locks on Redis that this process holds, in one thread for all of them.

    So a lock can have a short lifetime, and expire soon after its process has died, although
    a holder may compute for longer. A process has one renewer. Its thread starts with the
    first lock, and ends :data:`IDLE` seconds after it has found none.

    Most locks are held for milliseconds, and cost no more than their entry here: the thread is
    only woken for a lock that is due before the time at which it wakes by itself.
    """

    def __init__(self) -> None:
        self.after_fork()
        register(self)

    def after_fork(self) -> None:
        """Start without locks, in a forked child: thread and locks belong to its parent."""
        self._held: dict[Any, Held] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # the time at which the thread wakes by itself; None as long as it is awake
        self._wakes: float | None = None

    def add(self, lock: Any, ttl: float, until: float) -> None:
        """Renew a lock from now on, each time a third of its lifetime has passed.

        :param ttl: the lock's lifetime in seconds.
        :param until: the time of the monotonic clock, in seconds, after which the lock is
            not renewed any longer.
        """
        check()
        due = time.monotonic() + ttl / 3
        with self._changed:
            self._held[lock] = Held(ttl, until, due)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            elif self._wakes is not None and due < self._wakes:
                self._changed.notify()

    def remove(self, lock: Any) -> None:
        """Do not renew the lock any longer."""
        with self._changed:
            self._held.pop(lock, None)

    def _run(self) -> None:
        thread = self._thread
        while self._thread is thread:
            with self._changed:
                now = time.monotonic()
                self._held = {k: held for k, held in self._held.items() if held.until > now}
                if not self._held and not self._wait(IDLE) and not self._held:
                    self._thread = None
                    return
                if self._held:
                    self._wait(min(held.due for held in self._held.values()) - time.monotonic())
                due = self._take_due()
            for lock, ttl in due.items():
                if lock in self._held:
                    try:
                        lock.extend(ttl, replace_ttl=True)
                    except Exception:  # whatever fails, the other locks must be renewed
                        self.remove(lock)

    def _wait(self, seconds: float) -> bool:
        """Wait to be woken; return False if nobody did."""
        self._wakes = time.monotonic() + seconds
        try:
            return seconds > 0 and self._changed.wait(seconds)
        finally:
            self._wakes = None

    def _take_due(self) -> dict[Any, float]:
        """Return the locks that are due, with their lifetimes, and set their next time."""
        now = time.monotonic()
        due = {lock: held.ttl for lock, held in self._held.items() if held.due <= now}
        for lock, ttl in due.items():
            self._held[lock] = self._held[lock]._replace(due=now + ttl / 3)
        return due


RENEWER = Renewer()


class RedisMutex(CacheMutex):
    """A lock on Redis, which one caller over all processes holds.

    dogpile's regions make it for each value that an application caches by hand.

    :param name: the lock's key on Redis.
    :param timeout: seconds that a caller waits for the lock at most, and for which a live
        holder's lock is renewed. The lock of a process that has died expires after
        :data:`SHORT` seconds.
    """

    def __init__(self, client: redis.Redis, name: str, timeout: float) -> None:
        self._client = client
        self._name = name
        self._timeout = timeout
        self._ttl = min(SHORT, timeout)
        self._lock = client.lock(
            name, timeout=self._ttl, sleep=POLL, blocking_timeout=timeout, thread_local=False
        )
        self._held = False

    def acquire(self, wait: bool = True) -> bool:
        """Acquire the lock; return whether that was possible. False if Redis fails."""
        try:
            self._held = bool(self._lock.acquire(blocking=False))
            if not self._held and self._is_for_ever():
                self._client.delete(self._name)
            if not self._held and wait:
                self._held = bool(self._lock.acquire(blocking=True))
        except redis.RedisError:
            self._held = False
        if self._held and self._ttl < self._timeout:
            RENEWER.add(self._lock, self._ttl, time.monotonic() + self._timeout)
        return self._held

    def _is_for_ever(self) -> bool:
        left: Any = self._client.pttl(self._name)
        return bool(left == -1 or left > MAX_LOCK)

    def release(self) -> None:
        """Release the lock, if this mutex holds it."""
        if not self._held:
            return
        self._held = False
        RENEWER.remove(self._lock)
        try:
            self._lock.release()
        except (LockError, redis.RedisError):
            pass  # it has expired, or is lost with the server: another caller may hold it now

    def locked(self) -> bool:
        try:
            return bool(self._lock.locked())
        except redis.RedisError:
            return False


class ThreadLock:
    """A lock of one process; threads can wait for its holder without acquiring it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # an object of its own for each holder; None if the lock is free
        self._holder: object | None = None

    def acquire(self, timeout: float) -> bool:
        """Acquire the lock; return whether that was possible.

        :param timeout: seconds to wait at most; 0 to not wait.
        """
        with self._changed:
            if self._holder is not None and timeout > 0:
                self._changed.wait_for(lambda: self._holder is None, timeout)
            if self._holder is not None:
                return False
            self._holder = object()
            return True

    def release(self) -> None:
        """Release the lock. The caller holds it."""
        with self._changed:
            self._holder = None
            self._changed.notify_all()

    def wait_for_holder(
        self, timeout: float, may_stop: Callable[[], bool] | None = None
    ) -> None:
        """Wait until the present holder has released the lock, ``timeout`` seconds at most.

        The lock is not acquired. Returns at once if there is no holder.

        :param may_stop: called again and again; ends the wait by returning True.
        """
        end = time.monotonic() + timeout
        with self._changed:
            holder = self._holder
            while holder is not None and self._holder is holder:
                left = end - time.monotonic()
                if left <= 0 or (may_stop is not None and may_stop()):
                    return
                self._changed.wait(left if may_stop is None else min(left, POLL))

    def locked(self) -> bool:
        """Return whether the lock has a holder."""
        return self._holder is not None


class ThreadMutex(CacheMutex):
    """A lock that one thread of this process holds.

    :param timeout: seconds that a caller waits for the lock at most.
    """

    def __init__(self, lock: ThreadLock, timeout: float) -> None:
        self._lock = lock
        self._timeout = timeout
        self._held = False

    def acquire(self, wait: bool = True) -> bool:
        self._held = self._lock.acquire(self._timeout if wait else 0)
        return self._held

    def release(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


class NamedLocks:
    """The locks of one process by name, each kept as long as it is used."""

    def __init__(self) -> None:
        self.after_fork()
        register(self)

    def after_fork(self) -> None:
        """Forget the locks of the parent, whose holders would never release them here."""
        self._locks: Any = NameRegistry(lambda name: ThreadLock())

    def get(self, name: str) -> ThreadLock:
        """Return the lock of this name."""
        lock: ThreadLock = self._locks.get(name)
        return lock
