"""The locks save work, and nothing else: one holder, no waiting for ever, no errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import redis
from dogpile.cache.api import CacheMutex

from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tiers import locks
from onegov_ormcache.tiers.locks import (
    RENEWER,
    SHORT,
    Held,
    NamedLocks,
    RedisMutex,
    Renewer,
    ThreadLock,
    ThreadMutex,
)
from tests.support.forking import FORKS
from tests.support.outside import until
from tests.support.servers import RedisServer

#: Long enough that no test sees its end, short enough to end a test that is wrong.
LONG = 60.0

spawn = multiprocessing.get_context('spawn')


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the shared server."""
    with closing(connect(redis_url, 10)) as made:
        yield made


@pytest.fixture(params=['thread', 'redis'])
def make(request: pytest.FixtureRequest, namespace: str) -> Callable[[float], CacheMutex]:
    """Makes mutexes of one name, each with its own timeout."""
    if request.param == 'thread':
        locks = NamedLocks()
        kept = locks.get('name')
        return lambda timeout: ThreadMutex(locks.get('name') if kept else kept, timeout)
    client = request.getfixturevalue('client')
    return lambda timeout: RedisMutex(client, f'{namespace}:lock', timeout)


def test_one_holder(make: Callable[[float], CacheMutex]) -> None:
    """A lock has one holder at a time, until it is released."""
    first, second = make(LONG), make(LONG)
    assert not first.locked()
    assert first.acquire()
    assert first.locked()
    assert second.locked()
    assert not second.acquire(wait=False)
    first.release()
    assert not second.locked()
    assert second.acquire(wait=False)
    assert not first.acquire(wait=False)
    second.release()


def test_releasing_what_is_not_held(make: Callable[[float], CacheMutex]) -> None:
    """Releasing a lock that is not held does nothing, also if another mutex holds it."""
    first, second = make(LONG), make(LONG)
    first.release()
    assert first.acquire()
    assert not second.acquire(wait=False)
    second.release()
    assert first.locked()
    assert not second.acquire(wait=False)
    first.release()
    first.release()
    assert second.acquire(wait=False)
    second.release()


def test_nobody_waits_for_ever(make: Callable[[float], CacheMutex]) -> None:
    """A caller goes on without the lock after its timeout, and its release then does nothing."""
    first, second = make(LONG), make(0.02)
    assert first.acquire()
    assert not second.acquire()
    second.release()
    assert first.locked()
    first.release()


def test_one_holder_over_threads(make: Callable[[float], CacheMutex]) -> None:
    """One of many threads at a time holds the lock, and each has its turn."""
    holders: list[int] = []
    most: list[int] = []

    def work(number: int) -> bool:
        mutex = make(LONG)
        if not mutex.acquire():
            return False
        holders.append(number)
        most.append(len(holders))
        holders.remove(number)
        mutex.release()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert most == [1] * 40


def hold_in_turn(url: str, name: str, meeting: Any, results: Any) -> None:
    """Take the lock ten times, and put each time how many processes have it into `results`, or
    None if it was not acquired."""
    with closing(connect(url, 10)) as client:
        meeting.wait()
        for _ in range(10):
            mutex = RedisMutex(client, name, LONG)
            if mutex.acquire():
                inside = client.incr(f'{name}:inside')
                client.decr(f'{name}:inside')
                mutex.release()
                results.put(inside)
            else:
                results.put(None)


def test_one_holder_over_processes(redis_url: str, namespace: str) -> None:
    """On Redis, a lock has one holder at a time over all processes."""
    meeting, results = spawn.Barrier(3), spawn.Queue()
    processes = [
        spawn.Process(target=hold_in_turn, args=(redis_url, namespace, meeting, results))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    try:
        seen = [results.get(timeout=60) for _ in range(30)]
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    assert seen == [1] * 30


def test_lost_locks(client: redis.Redis, namespace: str) -> None:
    """A lock that Redis has lost can be acquired by another holder, and its release by the
    first one is harmless."""
    first, second = RedisMutex(client, namespace, LONG), RedisMutex(client, namespace, LONG)
    assert first.acquire()
    client.delete(namespace)
    assert second.acquire(wait=False)
    first.release()
    assert second.locked(), 'it is the second one, and not the first, who holds it'
    second.release()


def test_expired_locks(client: redis.Redis, namespace: str) -> None:
    """An expired lock can be acquired by another holder; the first one's release is no error."""
    first, second = RedisMutex(client, namespace, 100), RedisMutex(client, namespace, LONG)
    assert first.acquire()
    assert 0 < int(client.pttl(namespace)) <= 100_000
    client.pexpire(namespace, 0)
    first.release()
    assert second.acquire(wait=False)
    second.release()


def has_been_renewed(client: redis.Redis, name: str) -> Callable[[], bool]:
    """Return a function that returns true once the lock's remaining time has gone up."""
    last = [int(client.pttl(name))]

    def ask() -> bool:
        before, last[0] = last[0], int(client.pttl(name))
        return last[0] > before

    return ask


def test_living_holder_keeps_its_lock(
    client: redis.Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock expires soon, but is renewed as long as its holder computes."""
    monkeypatch.setattr(locks, 'SHORT', 6.0)  # a busy machine may be late
    holder, other = RedisMutex(client, namespace, LONG), RedisMutex(client, namespace, LONG)
    assert holder.acquire()
    assert 0 < int(client.pttl(namespace)) <= 6000
    until(has_been_renewed(client, namespace), 30)
    assert not other.acquire(wait=False)
    holder.release()
    assert other.acquire(wait=False)
    other.release()


def hold_and_die(url: str, name: str) -> None:
    """Take the lock, and die without giving it back."""
    RedisMutex(connect(url, 10), name, LONG).acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_dead_holder_passes_its_lock_on(
    client: redis.Redis, redis_url: str, namespace: str
) -> None:
    """The lock of a process that was killed is free long before its timeout."""
    process = spawn.Process(target=hold_and_die, args=(redis_url, namespace))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert int(client.pttl(namespace)) <= 1000 * SHORT
    other = RedisMutex(client, namespace, LONG)
    assert other.acquire()
    other.release()


class Broken:
    """A lock whose renewal raises an unexpected error."""

    def __init__(self) -> None:
        self.was_asked = threading.Event()

    def extend(self, ttl: float, replace_ttl: bool) -> None:
        self.was_asked.set()
        raise ZeroDivisionError


def test_a_broken_lock_harms_no_other(client: redis.Redis, namespace: str) -> None:
    """A lock that can't be renewed does not keep the process's other locks from being renewed."""
    broken, holder = Broken(), RedisMutex(client, namespace, LONG)
    RENEWER.add(broken, 0.03, time.monotonic() + LONG)
    assert broken.was_asked.wait(30)
    assert holder.acquire()
    until(has_been_renewed(client, namespace), 30)
    holder.release()


class Counting:
    """A lock that counts its renewals."""

    def __init__(self) -> None:
        self.renewals = 0

    def extend(self, ttl: float, replace_ttl: bool) -> None:
        self.renewals += 1


def test_a_lock_is_renewed_only_when_it_is_due() -> None:
    """A lock is not renewed because others come, go or are due."""
    renewer, held = Renewer(), Counting()
    renewer.add(held, 10 * LONG, time.monotonic() + LONG)
    for _ in range(3):
        other = Broken()
        renewer.add(other, 0.03, time.monotonic() + LONG)
        assert other.was_asked.wait(30), 'the thread has woken'
        renewer.remove(other)
    assert held.renewals == 0


def test_a_lock_that_comes_as_the_thread_is_about_to_end() -> None:
    """The thread that renews locks does not end if a lock was added just before its end."""
    renewer, last = Renewer(), Broken()
    wait = renewer._changed.wait

    def too_late(timeout: float) -> bool:
        if renewer._held or last.was_asked.is_set():
            return wait(timeout)
        now = time.monotonic()
        renewer._held[last] = Held(0.03, now + LONG, now)  # what add() does, in between
        return False

    renewer._changed.wait = too_late  # type: ignore[assignment, method-assign]
    renewer.add(Broken(), 0.03, time.monotonic() + LONG)
    assert last.was_asked.wait(30)


FORK = """
import os, sys, threading
from onegov_ormcache.tiers.locks import RENEWER
from tests.support.forking import FORKS
from tests.tiers.test_locks import Broken, renewed_in_child
taken, over = threading.Event(), threading.Event()
def hold():
    with RENEWER._changed:
        taken.set()
        over.wait()
threading.Thread(target=hold).start()
taken.wait()
child = FORKS[sys.argv[1]]()
if not child:
    os._exit(0 if renewed_in_child() else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
over.set()
raise SystemExit(status)
"""


def renewed_in_child() -> bool:
    """Return whether a lock that is held in this process is renewed."""
    lock = Broken()
    RENEWER.add(lock, 0.03, time.monotonic() + LONG)
    return lock.was_asked.wait(30)


@pytest.mark.parametrize('kind', FORKS)
def test_renewing_in_a_forked_child(kind: str) -> None:
    """The renewer's internal lock, held by the parent at the fork, does not block the child."""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', FORK, kind], check=True, timeout=60)


def test_unreachable_server(own_redis: RedisServer) -> None:
    """Without a server no lock is held, and no error is raised."""
    with closing(connect(own_redis.url, 1)) as client:
        held, other = RedisMutex(client, 'name', LONG), RedisMutex(client, 'name', LONG)
        assert held.acquire()
        own_redis.kill()
        held.release()
        assert not other.acquire()
        assert not other.acquire(wait=False)
        assert not other.locked()
        other.release()


def test_stalling_server(own_redis: RedisServer) -> None:
    """A server that does not answer is given up, without an error."""
    with closing(connect(own_redis.url, 0.05)) as client:
        held, other = RedisMutex(client, 'name', LONG), RedisMutex(client, 'name', LONG)
        assert held.acquire()
        own_redis.pause()
        assert not other.acquire()
        held.release()
        assert not other.locked()
        own_redis.resume()


def test_named_locks_live_while_used() -> None:
    """A name's lock is the same for all its users, and gone when it has no user."""
    locks = NamedLocks()
    one = locks.get('a')
    assert locks.get('a') is one
    assert locks.get('b') is not one
    assert one.acquire(False)
    assert not locks.get('a').acquire(False)
    del one
    assert locks.get('a').acquire(False), 'a new one'


# waiting for the holder


def test_waiting_for_the_holder() -> None:
    """Those who wait for the holder go on when it has released the lock; they don't acquire it."""
    lock = ThreadLock()
    assert lock.acquire(0)
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(lock.wait_for_holder, LONG) for _ in range(4)]
        lock.release()
        for wait in waits:
            wait.result(30)
    assert not lock.locked()


def test_waiting_for_one_holder() -> None:
    """Who waits for a holder does not wait for the next one, which has acquired the lock since."""
    lock, asked = ThreadLock(), threading.Event()
    assert lock.acquire(0)

    def ask() -> bool:
        asked.set()
        return False

    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(lock.wait_for_holder, LONG, ask)
        assert asked.wait(30), 'it knows its holder'
        lock.release()
        assert lock.acquire(0)
        wait.result(30)
    assert lock.locked()


def test_nobody_holds_the_lock() -> None:
    """Without a holder there is nothing to wait for."""
    lock = ThreadLock()
    lock.wait_for_holder(LONG)
    assert not lock.locked()


def test_waiting_ends() -> None:
    """Nobody waits for a holder longer than the timeout, or than may be."""
    lock = ThreadLock()
    assert lock.acquire(0)
    lock.wait_for_holder(0.02)
    lock.wait_for_holder(LONG, lambda: True)
    assert lock.locked()
