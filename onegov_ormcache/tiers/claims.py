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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import Protocol, TypeAlias

from ..errors import StoreUnreachable
from ..forks import register
from .locks import POLL, RENEWER, SHORT, ThreadLock
from .process import StoredValue
from .stored import Found

#: What every value begins with, :data:`.stored.MAGIC`; and the most bytes that the value, and its
#: stamp, may have.
Expected: TypeAlias = tuple[bytes, int, int]

#: The full key of a lock on Redis, and its holder's token.
Lock: TypeAlias = tuple[str, str]

#: Seconds that a holder may wait for its connection before those who hold one stop to wait.
PATIENCE = 0.1


class RedisClaims(Protocol):
    """The part of a tag store on Redis that locks the computation of values."""

    def claim_many(
        self,
        schema: str,
        values: Sequence[tuple[str, Lock]],
        lifetime: float,
        elsewhere: Mapping[str, str],
        expected: Expected,
    ) -> Sequence[tuple[bool | None, Found]]:
        """Look for values, and lock the computation of each that is not there, or not valid now;
        all in one command.

        :param values: for each the full key of Redis, and the lock with the caller's token.
        :param lifetime: seconds until the locks expire.
        :param elsewhere: the versions that the caller knows of tags of other places.
        :param expected: what the values must be like.
        :return: for each whether the caller has the lock, None if nobody needs it; and the value.
            A value that is not as expected counts as none that is valid now.
        :raises StoreUnreachable: if Redis can't be reached.
        """

    def unclaim_many(self, schema: str, locks: Sequence[Lock]) -> None:
        """Give the locks back that the caller still has, in one command.

        :raises StoreUnreachable: if Redis can't be reached.
        """

    def extend(self, schema: str, lock: Lock, lifetime: float) -> bool:
        """Let the lock last for so many seconds from now; return False if it was lost.

        :raises StoreUnreachable: if Redis can't be reached.
        """

    def holder(self, lock: Lock) -> bytes | None:
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
    :param elsewhere: see :meth:`RedisClaims.claim_many`.
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
        self.lock: Lock = name, token_hex(16)
        self._elsewhere = elsewhere
        self._expected = expected
        self._unpack = unpack

    def look(self) -> StoredValue | None:
        (found,) = self.look_many([self])
        return found

    @staticmethod
    def look_many(claims: Sequence[RedisClaim]) -> list[StoredValue | None]:
        """Do what :meth:`look` does for several claims, in one command.

        :param claims: of one tenant and one snapshot.
        """
        first = claims[0]
        lifetime = min(SHORT, first._timeout)
        expected = max(claim._expected for claim in claims)  # they differ by the key's length
        values = [(claim._key, claim.lock) for claim in claims]
        asked = time.monotonic()
        answers = first._claims.claim_many(
            first._schema, values, lifetime, first._elsewhere, expected
        )
        until = time.monotonic() + first._timeout
        for claim, (has_lock, _) in zip(claims, answers, strict=True):
            claim.is_held, claim.is_taken = has_lock is True, has_lock is False
            if claim.is_held and lifetime < first._timeout:
                RENEWER.add(claim, lifetime, until)
        return [
            claim._unpack(found, asked)
            for claim, (_, found) in zip(claims, answers, strict=True)
        ]

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
        self.leave_many([self])

    @staticmethod
    def leave_many(claims: Sequence[RedisClaim]) -> None:
        """Do what :meth:`leave` does for several claims of one tenant, in one command."""
        held = [claim for claim in claims if claim.is_held]
        for claim in held:
            claim.given_back()
        try:
            if held:
                locks = [claim.lock for claim in held]
                held[0]._claims.unclaim_many(held[0]._schema, locks)
        except StoreUnreachable:
            pass  # they expire soon
        finally:
            for claim in claims:
                Claim.leave(claim)
