"""One caller over all processes computes a cold value; the others wait, and none for ever."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event

import ormsgpack
import pytest
import redis

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tiers import claims
from onegov_ormcache.tiers.claims import Claim, Crowd, RedisClaim
from onegov_ormcache.tiers.locks import RENEWER, SHORT, ThreadLock
from onegov_ormcache.tiers.process import StoredValue
from onegov_ormcache.tiers.serializer import Encoded
from tests.support.counting import RedisCommands
from tests.support.outside import until
from tests.support.servers import RedisServer
from tests.tags.conformance import PAGES, USERS, put_in_doubt
from tests.tiers.processes import Process, on


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Each test leaves its claims: others would go on to be renewed."""
    yield
    assert not [lock for lock in RENEWER._held if isinstance(lock, RedisClaim)]


# within a process


def test_a_cold_value(either: Process) -> None:
    """Who comes first computes it, and whoever comes next finds it."""
    claim = either.claim()
    assert claim.look() is None
    assert claim.is_held
    assert not claim.is_taken
    assert either.fill(claim)
    claim.leave()
    found = either.claim().look()
    assert found is not None
    assert found.encoded.data == b'value'


def test_one_caller_looks(either: Process) -> None:
    """A second caller of the process does not enter, and waits until the first one has left."""
    first = either.claim()
    second = either.tier.claim('main', 'key', either.stamp(), {})
    assert not second.enter()
    second.leave()
    assert not second.enter(), 'the first one is still there'
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(second.wait_in_process, False)
        assert not wait.done()
        first.leave()
        wait.result(30)
    assert second.enter()
    second.leave()


def test_other_versions_and_keys_are_apart(either: Process) -> None:
    """A caller waits for nobody who computes another value, or for other versions: each enters,
    which `claim` asserts."""
    either.claim()
    either.claim('other key').leave()
    put_in_doubt(either.tags, 'main', 'w', USERS)
    either.tags.publish('main', 'w', [USERS])
    either.claim().leave()


def test_nobody_waits_for_ever(one: Process, client: redis.Redis, namespace: str) -> None:
    """A wait ends after the timeout, in the same process and for another one."""
    hasty = on(client, namespace, timeout=0.02)
    first, second = one.claim(), hasty.claim()
    assert first.look() is second.look() is None
    assert second.is_taken
    hasty.tier.claim('main', 'key', hasty.stamp(), {}).wait_in_process(False)
    second.wait_for_others(False)
    assert client.get(lock_of(first)) is not None
    first.leave()


def test_who_holds_a_connection_does_not_wait_for_one_who_has_none(
    either: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder may be waiting for just that connection; others, who hold none, go on waiting."""
    monkeypatch.setattr(claims, 'PATIENCE', 0.0)
    first = either.claim()
    second, third = (either.tier.claim('main', 'key', either.stamp(), {}) for _ in range(2))
    with ThreadPoolExecutor(2) as pool, first.connecting():
        waits = pool.submit(third.wait_in_process, False)
        pool.submit(second.wait_in_process, True).result(30)
        assert not waits.done()
        first.leave()
        waits.result(30)


def test_patience_with_holders() -> None:
    """A holder that gets its connection soon lets nobody stop to wait."""
    crowd, lock = Crowd(), ThreadLock()
    assert not crowd.is_starving()
    with crowd.connecting():
        assert not crowd.is_starving()
        until(crowd.is_starving, 30)
    assert not crowd.is_starving()
    assert lock.acquire(0)


# over processes


def test_another_process_waits(one: Process, other: Process) -> None:
    """A caller of another process finds the lock taken, and waits until the value is there."""
    first, second = one.claim(), other.claim()
    assert first.look() is second.look() is None
    assert (second.is_held, second.is_taken) == (False, True)
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(second.wait_for_others, False)
        assert one.fill(first)
        wait.result(30)
    assert other.tier.get('main', 'key') is not None


def test_a_wait_that_starves_others(
    one: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait for another process ends, too, if a holder of the own one has no connection."""
    monkeypatch.setattr(claims, 'PATIENCE', 0.0)
    first, second = one.claim(), other.claim()
    assert first.look() is second.look() is None
    with other.claim('other key').connecting():
        second.wait_for_others(True)
    first.leave()


def test_a_run_that_fails(one: Process, other: Process) -> None:
    """A holder that leaves without a value lets others compute."""
    first = one.claim()
    assert first.look() is None
    first.leave()
    second = other.claim()
    assert second.look() is None
    assert second.is_held
    second.leave()


def test_a_valid_value_is_not_locked(one: Process, other: Process) -> None:
    """Who finds a value that is valid takes no lock."""
    assert one.fill()
    for _ in range(2):
        claim = other.claim()
        assert claim.look() is not None
        assert (claim.is_held, claim.is_taken) == (False, False)
        claim.leave()


@pytest.mark.parametrize('published', [False, True])
def test_a_stale_value_is_computed_by_one(one: Process, other: Process, published: bool) -> None:
    """A value whose tags have changed, or are in doubt, is given with the lock."""
    assert one.fill()
    stamp = one.stamp()
    put_in_doubt(one.tags, 'main', 'w', USERS)
    if published:
        one.tags.publish('main', 'w', [USERS])
    first, second = one.claim(), other.claim()
    for claim in first, second:
        found = claim.look()
        assert found is not None
        assert found.stamp == stamp
    assert first.is_held
    assert second.is_taken
    first.leave()


def test_tags_of_other_places(one: Process, other: Process) -> None:
    """A tag of a shared table counts with the version that the caller knows."""
    assert one.fill(**{PAGES: 'v1'})
    for version, expected in (('v1', (False, False)), ('v2', (True, False))):
        claim = other.claim(**{PAGES: version})
        assert claim.look() is not None
        assert (claim.is_held, claim.is_taken) == expected
        claim.leave()


@pytest.mark.parametrize(
    'data',
    [
        b'', b'\x00', b'\x94', b'\x94\xde\xff\xff', b'\x93\xa1', b'{"a": 1}', b'\xc1\xc1',
        ormsgpack.packb([1, 2]), ormsgpack.packb(['a', b'b', True, 1.0]),
        ormsgpack.packb([{'table:users': 1}, b'b', True, 1.0]),
        ormsgpack.packb([{'table:users': [{}]}, b'b', True, 1.0]),
    ],
)  # fmt: skip
def test_bytes_that_are_no_value(
    one: Process, client: redis.Redis, namespace: str, data: bytes
) -> None:
    """Whatever lies at the key, the caller computes and replaces it."""
    client.set(one.tier._name('main', 'key'), data)
    claim = one.claim()
    claim.look()
    assert claim.is_held
    assert one.fill(claim)
    assert one.tier.get('main', 'key') is not None


def test_one_command_each(one: Process, redis_url: str) -> None:
    """A look with its lock is one command, and so is a fill that gives the lock back."""
    claim = one.claim()
    with RedisCommands(redis_url) as seen:
        assert claim.look() is None
        assert one.tier.fill(
            'main', 'key', StoredValue({USERS: 'old'}, Encoded(b'', True), None), None, claim
        ) is False
        claim.leave()
    own = [command for command in seen.commands if 'key' in str(command)]
    assert len(own) == 2
    again = one.claim()
    assert again.look() is None
    assert again.is_held, 'the lock was given back, although nothing was stored'
    again.leave()


# the lock on Redis


def lock_of(claim: Claim) -> str:
    assert isinstance(claim, RedisClaim)
    return claim.lock[0]


def test_a_dead_holder(one: Process, client: redis.Redis) -> None:
    """The lock of a process that has died expires soon; a living holder's is renewed."""
    claim = one.claim()
    claim.look()
    left = int(client.pttl(lock_of(claim)))
    assert 0 < left <= 1000 * SHORT
    last = [left]

    def is_renewed() -> bool:
        before, last[0] = last[0], int(client.pttl(lock_of(claim)))
        return last[0] > before

    until(is_renewed, 30)
    claim.leave()
    assert client.get(lock_of(claim)) is None


@pytest.mark.parametrize('end', ['leave', 'fill'])
def test_a_lock_that_was_lost(
    one: Process, other: Process, client: redis.Redis, end: str
) -> None:
    """Who gives back a lock that is another's by now leaves that alone."""
    first = one.claim()
    first.look()
    client.delete(lock_of(first))
    second = other.claim()
    second.look()
    assert second.is_held
    if end == 'fill':
        assert one.fill(first)
    first.leave()
    assert client.get(lock_of(second)) is not None
    assert not one.tags.extend('main', ('no lock', 'token'), 1.0)
    second.leave()
    assert client.get(lock_of(second)) is None


def test_unreachable(own_redis: RedisServer, namespace: str) -> None:
    """A look says that the server is gone; nothing else raises an error."""
    with closing(connect(own_redis.url, 1)) as client:
        process = on(client, namespace)
        claim, late = process.claim(), process.claim('late')
        claim.look()
        own_redis.kill()
        with pytest.raises(StoreUnreachable):
            late.look()
        late.wait_for_others(False)
        claim.leave()
        late.leave()


def test_a_herd(one: Process, other: Process) -> None:
    """Of many callers in two processes one computes, and all get the value."""
    runs: list[int] = []
    started = Event()

    def read(number: int) -> bytes:
        process = (one, other)[number % 2]
        started.wait(30)
        claim = process.tier.claim('main', 'key', process.stamp(), {})
        if not claim.enter():
            claim.wait_in_process(False)
        elif (claim.look() is None) and claim.is_held:
            runs.append(number)
            process.fill(claim)
        elif claim.is_taken:
            claim.wait_for_others(False)
        claim.leave()
        found: StoredValue = process.tier.get('main', 'key')
        return found.encoded.data

    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(read, number) for number in range(8)]
        started.set()
        assert [each.result(30) for each in reads] == [b'value'] * 8
    assert len(runs) == 1
