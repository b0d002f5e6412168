"""A value expires when its own lifetime, or that of the setting, has passed; Redis counts both."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import redis

from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tiers.process import StoredValue
from tests.support.servers import RedisServer
from tests.tiers.processes import LONG, Process, in_memory, on

#: Makes a process whose values live for so many seconds at most.
Make = Callable[[float | None], Process]

#: Seconds that no test lasts.
FAR = 1000.0


@pytest.fixture(params=['memory', 'redis'])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes processes without Redis, then with it."""
    if request.param == 'memory':
        return in_memory
    client: redis.Redis = request.getfixturevalue('client')
    namespace: str = request.getfixturevalue('namespace')
    return lambda ttl: on(client, namespace, ttl=ttl)


def expiry(found: StoredValue | None) -> float:
    assert found is not None
    assert found.expires is not None
    return found.expires


def test_values_without_end(make: Make) -> None:
    """A value that has no lifetime, under a setting without one, does not expire."""
    process = make(None)
    assert process.tier.fill('main', 'key', process.value())
    found = process.get()
    assert found is not None
    assert found.expires is None


@pytest.mark.parametrize(
    ('own', 'setting', 'least'),
    [(FAR, None, FAR), (None, FAR, FAR), (FAR, 2 * FAR, FAR), (2 * FAR, FAR, FAR)],
)
def test_the_earlier_of_two_bounds(
    make: Make, own: float | None, setting: float | None, least: float
) -> None:
    """A value expires at the end of its own lifetime, or of the setting's if that is earlier."""
    process = make(setting)
    before = time.monotonic()
    expires = None if own is None else before + own
    assert process.tier.fill('main', 'key', process.value(expires=expires))
    found = expiry(process.get())
    after = time.monotonic()
    assert before + least - (after - before) - 0.01 <= found <= after + least


@pytest.mark.parametrize('late', [0.0, -5.0, float('-inf'), float('nan')])
def test_values_that_have_expired_are_not_stored(make: Make, late: float) -> None:
    """A value whose time has passed while it was made is not stored, and what was there stays."""
    process = make(FAR)
    assert process.tier.fill('main', 'key', process.value(b'before'))
    assert not process.tier.fill('main', 'key', process.value(b'late', time.monotonic() + late))
    found = process.get()
    assert found is not None
    assert found.encoded.data == b'before'


def test_values_that_expire_late(make: Make) -> None:
    """No lifetime is too long."""
    process = make(None)
    for expires in 1e15, float('inf'):
        assert process.tier.fill('main', 'key', process.value(expires=expires))
        assert expiry(process.get()) > time.monotonic() + 1e9


def test_expired_values_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, an expired value is not found by any way, and is dropped."""
    process = in_memory()
    tier: Any = process.tier
    assert tier.fill('main', 'key', process.value(expires=time.monotonic() + LONG))
    assert process.get() is not None
    clock = time.monotonic
    with monkeypatch.context() as later:
        later.setattr(time, 'monotonic', lambda: clock() + 2 * LONG)
        assert tier.get_many('main', ['key']) == {}
        assert tier._values.bytes_held == 0
        claim = process.claim()
        assert claim.look() is None
        assert claim.is_held
        claim.leave()


def test_a_newer_value_is_not_dropped() -> None:
    """Who drops an expired value leaves one alone that has replaced it."""
    process = in_memory()
    tier: Any = process.tier
    older, newer = process.value(b'older'), process.value(b'newer')
    tier._values.put('key', newer)
    tier._values.remove('key', only=older)
    assert tier._values.get('key') is newer
    tier._values.remove('key', only=newer)
    assert tier._values.get('key') is None


# on Redis


def place(process: Process, key: str = 'key') -> str:
    return str(process.tier._name('main', key))


def test_values_of_another_process(one: Process, other: Process, client: redis.Redis) -> None:
    """A reader learns from Redis how long another process's value lives, in each way to read."""
    assert one.tier.fill('main', 'key', one.value(expires=time.monotonic() + 2 * FAR))
    before = time.monotonic()
    client.pexpire(place(one), int(FAR * 1000))
    claim = other.claim()
    found = [other.get(), other.tier.get_many('main', ['key'])['key'], claim.look()]
    after = time.monotonic()
    for each in found:
        assert before + FAR - (after - before) - 0.01 <= expiry(each) <= after + FAR
    assert not claim.is_held
    claim.leave()


def test_the_setting_of_the_reader(one: Process, client: redis.Redis, namespace: str) -> None:
    """A value that lives longer than the reader's setting allows expires earlier for it."""
    reader = on(client, namespace, ttl=FAR)
    assert one.tier.fill('main', 'key', one.value(expires=time.monotonic() + 3 * FAR))
    assert expiry(reader.get()) <= time.monotonic() + FAR
    client.pexpire(place(one), int(1.5 * FAR * 1000))
    assert reader.get() is None, 'it is older than that'
    assert one.get() is not None


def test_a_lifetime_that_was_lost(one: Process, other: Process, client: redis.Redis) -> None:
    """A value with a lifetime that Redis does not know of any longer is a miss, which one caller
    computes anew."""
    assert one.tier.fill('main', 'key', one.value(expires=time.monotonic() + FAR))
    client.persist(place(one))
    assert other.get() is None
    assert other.tier.get_many('main', ['key']) == {}
    claim = other.claim()
    assert claim.look() is None
    assert claim.is_held
    assert other.tier.fill('main', 'key', other.value(expires=time.monotonic() + FAR), None, claim)
    claim.leave()
    assert one.get() is not None


def test_a_lifetime_that_was_made_longer(
    one: Process, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that would live longer than it was stored for is a miss, and logged."""
    assert one.tier.fill('main', 'key', one.value(expires=time.monotonic() + FAR))
    client.pexpire(place(one), int(2 * FAR * 1000))
    assert one.get() is None
    assert caplog.text.count('was damaged') == 1


def test_only_lifetimes_are_asked_for(own_redis: RedisServer, namespace: str) -> None:
    """Redis looks at the time that is left only of values that have a lifetime of their own."""
    with closing(connect(own_redis.url, 10)) as client:
        process = on(client, namespace, kept=FAR)
        for name, expires in ('a', None), ('b', None), ('c', time.monotonic() + FAR):
            assert process.tier.fill('main', name, process.value(expires=expires))

        def asked() -> int:
            statistics: Any = client.info('commandstats')
            return int(statistics.get('cmdstat_pttl', {'calls': 0})['calls'])

        before = asked()
        assert process.tier.get_many('main', ['a', 'b', 'none']).keys() == {'a', 'b'}
        claims = [process.claim('a'), process.claim('b')]
        assert None not in process.tier.look_many(claims)
        process.tier.leave_many(claims)
        assert asked() == before
        assert process.tier.get_many('main', ['a', 'b', 'c']).keys() == {'a', 'b', 'c'}
        assert asked() == before + 1


# what nobody reads goes


def test_values_are_kept_for_a_time(client: redis.Redis, namespace: str) -> None:
    """Redis drops a value without a lifetime after the time that the tier keeps it; for readers it
    does not expire. One with a lifetime goes with that."""
    process = on(client, namespace, kept=FAR)
    assert process.tier.fill('main', 'key', process.value())
    assert 0 < int(client.pttl(place(process))) <= FAR * 1000
    found = process.get()
    assert found is not None
    assert found.expires is None
    for own in FAR / 2, 2 * FAR:
        assert process.tier.fill('main', 'key', process.value(expires=time.monotonic() + own))
        assert (own - 60) * 1000 < int(client.pttl(place(process))) <= own * 1000


def test_values_are_kept_for_ever(one: Process, client: redis.Redis) -> None:
    """Without that time they stay."""
    assert one.tier.fill('main', 'key', one.value())
    assert client.pttl(place(one)) == -1


@pytest.mark.parametrize(
    ('ttl', 'kept', 'expected'),
    [(None, FAR, FAR), (60, FAR, 60), (2 * FAR, FAR, 2 * FAR), (None, None, None)],
)
def test_lifetimes_of_regions(
    client: redis.Redis,
    namespace: str,
    ttl: float | None,
    kept: float | None,
    expected: float | None,
) -> None:
    """What an application caches by hand lives as long as the setting says, or as values are
    kept."""
    assert in_memory(ttl, kept).tier.region('main').expiration_time == expected
    region = on(client, namespace, ttl=ttl, kept=kept).tier.region('main')
    assert region.expiration_time == expected
    region.set('key', 1)
    assert region.get('key') == 1
    left = int(client.pttl(region.key_mangler('key')))
    assert left == -1 if expected is None else 0 < left <= expected * 1000
