"""The locks under which cold values are computed.

They only save work: a lock that could not be had, or was lost while its holder
computed, costs a second run and nothing else. So none of them ever raises.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import redis
from dogpile.cache.api import CacheMutex
from dogpile.util import NameRegistry
from redis.exceptions import LockError

#: Seconds between two looks at a lock that somebody else holds.
POLL = 0.01

#: Seconds after which a lock passes on if its holder's process does not renew it.
SHORT = 2.0

#: Seconds after which the thread that renews locks ends if there are none.
IDLE = 10.0


class Renewer:
    """Renews the locks that this process holds, in one thread for all of them.

    So a lock can be short, and pass on soon when its process has died, and yet last as
    long as its holder computes. The thread lives from the first lock to the last.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked child: the thread and the locks are its parent's."""
        self._held: dict[Any, tuple[float, float]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, lock: Any, ttl: float, until: float) -> None:
        """Renew the lock each third of its ``ttl`` seconds, until that monotonic time."""
        with self._changed:
            self._held[lock] = (ttl, until)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, lock: Any) -> None:
        with self._changed:
            self._held.pop(lock, None)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                self._held = {k: (t, end) for k, (t, end) in self._held.items() if end > now}
                if not self._held and not self._changed.wait(IDLE) and not self._held:
                    self._thread = None
                    return
                held = dict(self._held)
                if held:
                    self._changed.wait(min(ttl for ttl, _ in held.values()) / 3)
            for lock, (ttl, _) in held.items():
                if lock in self._held:
                    try:
                        lock.extend(ttl, replace_ttl=True)
                    except Exception:  # whatever it is, the others must be renewed
                        self.remove(lock)


RENEWER = Renewer()

if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=RENEWER.forget)


class RedisMutex(CacheMutex):
    """Held by one caller over all processes.

    :param timeout: seconds after which nobody waits any longer. A holder that lives may
        take as long; one that has died passes the lock on after :data:`SHORT` seconds.
    """

    def __init__(self, client: redis.Redis, name: str, timeout: float) -> None:
        self._timeout = timeout
        self._ttl = min(SHORT, timeout)
        self._lock = client.lock(
            name, timeout=self._ttl, sleep=POLL, blocking_timeout=timeout, thread_local=False
        )
        self._held = False

    def acquire(self, wait: bool = True) -> bool:
        try:
            self._held = bool(self._lock.acquire(blocking=wait))
        except redis.RedisError:
            self._held = False
        if self._held and self._ttl < self._timeout:
            RENEWER.add(self._lock, self._ttl, time.monotonic() + self._timeout)
        return self._held

    def release(self) -> None:
        if not self._held:
            return
        self._held = False
        RENEWER.remove(self._lock)
        try:
            self._lock.release()
        except (LockError, redis.RedisError):
            pass  # it ran out, or went with the server: another may hold it by now

    def locked(self) -> bool:
        try:
            return bool(self._lock.locked())
        except redis.RedisError:
            return False


class ThreadMutex(CacheMutex):
    """Held by one thread of this process; nobody waits longer than ``timeout`` seconds."""

    def __init__(self, lock: threading.Lock, timeout: float) -> None:
        self._lock = lock
        self._timeout = timeout
        self._held = False

    def acquire(self, wait: bool = True) -> bool:
        self._held = self._lock.acquire(wait, self._timeout if wait else -1)
        return self._held

    def release(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


class _WeakLock:
    """A ``threading.Lock`` that can be referred to weakly."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire = lock.acquire
        self.release = lock.release
        self.locked = lock.locked


def named_locks() -> Any:
    """A registry of locks by name; each lives as long as somebody uses it."""
    return NameRegistry(lambda name: _WeakLock())
