"""Who computes a cold value: one caller over all processes. The others wait for its value.

Callers of one process wait for one another without asking Redis: one of them looks and waits for
all, and leaves the value in the process tier. Like all locks, a claim only saves work. If it is
lost while its holder computes, a creator runs twice, and nothing else goes wrong; it never raises
an error of Redis but for the look itself.

Who waits may hold a connection of the database, for which the holder of a claim waits. So nobody
who holds one waits while a holder has none.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from secrets import token_hex
from typing import Protocol, TypeAlias

from ..errors import StoreUnreachable
from ..forks import register
from .locks import POLL, RENEWER, SHORT, ThreadLock
from .process import StoredValue
from .stored import Found

#: What a value of one key begins with, as :func:`.stored.head` returns it; and the most bytes that
#: the value, and its stamp, may have.
Expected: TypeAlias = tuple[bytes, int, int]

#: Seconds that a holder may wait for its connection before those who hold one stop to wait.
PATIENCE = 0.1


class RedisClaims(Protocol):
    """The part of a tag store on Redis that locks the computation of values."""

    def claim(
        self,
        schema: str,
        key: str,
        lock: tuple[str, str],
        lifetime: float,
        elsewhere: Mapping[str, str],
        expected: Expected,
    ) -> tuple[bool | None, Found]:
        """Look for a value, and lock its computation if there is none that is valid now.

        :param key: the value's full key of Redis.
        :param lock: the lock's full key, and the caller's token.
        :param lifetime: seconds until the lock expires.
        :param elsewhere: the versions that the caller knows of tags of other places.
        :param expected: what the value must be like.
        :return: whether the caller has the lock, None if nobody needs it; and the value. A value
            that is not like that counts as none that is valid now.
        :raises StoreUnreachable: if Redis can't be reached.
        """

    def unclaim(self, schema: str, lock: tuple[str, str]) -> None:
        """Give the lock back, if the caller still has it.

        :raises StoreUnreachable: if Redis can't be reached.
        """

    def extend(self, schema: str, lock: tuple[str, str], lifetime: float) -> bool:
        """Let the lock last for so many seconds from now; return False if it was lost.

        :raises StoreUnreachable: if Redis can't be reached.
        """

    def holder(self, lock: tuple[str, str]) -> bytes | None:
        """Return the token of the present holder of the lock; None if there is none.

        :raises StoreUnreachable: if Redis can't be reached.
        """


class Crowd:
    """The claims of one process: which of their holders wait for a connection.

    Made by a shared tier, lives as long.
    """

    def __init__(self) -> None:
        self.after_fork()
        register(self)

    def after_fork(self) -> None:
        """Forget the holders of the parent."""
        self._connecting: dict[object, float] = {}

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """The holder of a claim takes its connection in the block."""
        holder = object()
        self._connecting[holder] = time.monotonic()
        try:
            yield
        finally:
            self._connecting.pop(holder, None)

    def is_starving(self) -> bool:
        """Return whether a holder waits for its connection for more than :data:`PATIENCE`."""
        since = list(self._connecting.values())
        return bool(since) and time.monotonic() - min(since) > PATIENCE


class Claim:
    """The claim of one caller to compute one value; made by a shared tier for one read.

    :param lock: the lock of the value in this process.
    :param timeout: seconds to wait for another caller at most.
    """

    def __init__(self, lock: ThreadLock, timeout: float, crowd: Crowd) -> None:
        self._lock = lock
        self._timeout = timeout
        self._crowd = crowd
        self._is_entered = False
        #: True if this caller computes the value for all.
        self.is_held = False
        #: True if a caller of another process computes it.
        self.is_taken = False

    def enter(self) -> bool:
        """Become the only caller of this process that looks; return False if another one is."""
        self._is_entered = self._lock.acquire(0)
        return self._is_entered

    def wait_in_process(self, has_connection: bool) -> None:
        """Wait until the caller of this process that looks has left, for the timeout at most.

        :param has_connection: True if who waits holds a connection of the database.
        """
        self._lock.wait_for_holder(self._timeout, self._may_stop(has_connection))

    @abstractmethod
    def look(self) -> StoredValue | None:
        """Look for the value in the shared tier; claim its computation if there is none.

        Called after :meth:`enter`.

        :return: the value, which may be one that the caller's snapshot does not agree with.
        :raises StoreUnreachable: if the tier can't be reached.
        """

    def wait_for_others(self, has_connection: bool) -> None:
        """Wait until the holder in another process has computed the value, for the timeout at
        most."""

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Take the connection of the database in the block, after the computation was claimed."""
        with self._crowd.connecting():
            yield

    def leave(self) -> None:
        """Give up all that is held, and let those go on that wait in this process."""
        self.is_held = False
        if self._is_entered:
            self._is_entered = False
            self._lock.release()

    def _may_stop(self, has_connection: bool) -> Callable[[], bool] | None:
        return self._crowd.is_starving if has_connection else None


class MemoryClaim(Claim):
    """A claim for a value in memory.

    :param get: returns the value.
    """

    def __init__(
        self,
        lock: ThreadLock,
        timeout: float,
        crowd: Crowd,
        get: Callable[[], StoredValue | None],
    ) -> None:
        super().__init__(lock, timeout, crowd)
        self._get = get

    def look(self) -> StoredValue | None:
        self.is_held = True
        return self._get()


class RedisClaim(Claim):
    """A claim for a value on Redis. It is renewed as long as its holder computes.

    :param claims: the tag store, on whose Redis the lock lies.
    :param key: the value's full key of Redis.
    :param name: the lock's full key.
    :param elsewhere: see :meth:`RedisClaims.claim`.
    :param expected: what the value must be like.
    :param unpack: returns the value that was found; None if it is none. Its second argument is the
        time of the monotonic clock before Redis was asked.
    """

    def __init__(
        self,
        lock: ThreadLock,
        timeout: float,
        crowd: Crowd,
        claims: RedisClaims,
        schema: str,
        key: str,
        name: str,
        elsewhere: Mapping[str, str],
        expected: Expected,
        unpack: Callable[[Found, float], StoredValue | None],
    ) -> None:
        super().__init__(lock, timeout, crowd)
        self._claims = claims
        self._schema = schema
        self._key = key
        #: The lock on Redis: its key, and the token of this caller.
        self.lock = name, token_hex(16)
        self._elsewhere = elsewhere
        self._expected = expected
        self._unpack = unpack

    def look(self) -> StoredValue | None:
        lifetime = min(SHORT, self._timeout)
        asked = time.monotonic()
        has_lock, found = self._claims.claim(
            self._schema, self._key, self.lock, lifetime, self._elsewhere, self._expected
        )
        self.is_held, self.is_taken = has_lock is True, has_lock is False
        if self.is_held and lifetime < self._timeout:
            RENEWER.add(self, lifetime, time.monotonic() + self._timeout)
        return self._unpack(found, asked)

    def wait_for_others(self, has_connection: bool) -> None:
        may_stop = self._may_stop(has_connection)
        end = time.monotonic() + self._timeout
        try:
            holder = self._claims.holder(self.lock)
            # a holder's token is its own: another token is that of a later run
            while holder is not None and time.monotonic() < end:
                if may_stop is not None and may_stop():
                    return
                time.sleep(POLL)
                if self._claims.holder(self.lock) != holder:
                    return
        except StoreUnreachable:
            return

    def extend(self, lifetime: float, replace_ttl: bool) -> None:
        """Let the lock last longer; called by the process's :class:`~.locks.Renewer`."""
        self._claims.extend(self._schema, self.lock, lifetime)

    def given_back(self) -> None:
        """Take notice that the lock was given back together with the value."""
        self.is_held = False
        RENEWER.remove(self)

    def leave(self) -> None:
        if self.is_held:
            self.given_back()
            try:
                self._claims.unclaim(self._schema, self.lock)
            except StoreUnreachable:
                pass  # it expires soon
        super().leave()
