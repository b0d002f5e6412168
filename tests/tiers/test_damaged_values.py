"""Whatever another program has written to the keys of values and locks is a miss.

It raises no error, is never another key's value, and keeps nobody waiting.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import ormsgpack
import pytest
import redis
from dogpile.cache.api import NO_VALUE

from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags.memory import MemoryTagStore
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tiers import regions
from onegov_ormcache.tiers.locks import RedisMutex
from onegov_ormcache.tiers.process import StoredValue
from onegov_ormcache.tiers.serializer import Encoded, Serializer
from onegov_ormcache.tiers.shared import MemoryTier, RedisTier, SharedTier
from onegov_ormcache.tiers.stored import MAX_STAMP, head, pack
from tests.support.counting import RedisCommands
from tests.support.servers import RedisServer
from tests.tags.conformance import USERS

LIMIT = 100_000

LONG = 60.0

Damage = Callable[[Any, str], object]

DAMAGES: dict[str, Damage] = {
    'no bytes': lambda client, key: client.set(key, b''),
    'bytes': lambda client, key: client.set(key, b'\x00\xff' * 50),
    'the format of before': lambda client, key: client.set(
        key, ormsgpack.packb([{}, b'', True, 1.0])
    ),
    'a list': lambda client, key: client.rpush(key, 'x'),
    'a hash': lambda client, key: client.hset(key, 'x', 'y'),
    'a stream': lambda client, key: client.xadd(key, {'x': 'y'}),
    'too many bytes': lambda client, key: client.set(key, head(key) + b'x' * (LIMIT + 400_000)),
    'a stamp that ends nowhere': lambda client, key: client.set(
        key, head(key) + b'\x01' + b'\x00' * 8 + b'\xff' * 4 + b'\x80'
    ),
    'a stamp of wrong types': lambda client, key: client.set(
        key, head(key) + b'\x01' + b'\x00' * 8 + b'\x00\x00\x00\x06' + b'\x81\xc3\x81\xc2\x90\x01'
    ),
    'a stamp nested without end': lambda client, key: client.set(
        key, head(key) + b'\x01' + b'\x00' * 8 + b'\x00\x00\xff\xff' + b'\x91' * 0xFFFF
    ),
    'a forged stamp that is large': lambda client, key: client.set(
        key,
        head(key) + b'\x01' + b'\x00' * 8 + (MAX_STAMP + 1).to_bytes(4, 'big')
        + b'\xdf\x00\x10\x00\x00' + b'\xa1x\xa1y' * 100_000,
    ),
}  # fmt: skip


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator[redis.Redis]:
    """A client of the test's own server."""
    with closing(connect(own_redis.url, 10)) as made:
        yield made


def tier_on(client: redis.Redis, ttl: float | None = None) -> RedisTier:
    tags = RedisTagStore(client, 'town', quarantined=False)
    return RedisTier(tags, Serializer(), 'town', ttl, LONG, LIMIT)


@pytest.fixture
def tier(client: redis.Redis) -> RedisTier:
    """A shared tier on the test's own server."""
    return tier_on(client)


def stored(tier: Any, data: bytes = b'value') -> StoredValue:
    stamp = tier._tags.snapshot('main').stamp([USERS])
    return StoredValue(stamp, Encoded(data, True), None)


def damage_key(client: redis.Redis, damage: str, key: str) -> None:
    client.delete(key)
    DAMAGES[damage](client, key)


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_values_are_a_miss(
    tier: RedisTier, client: redis.Redis, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each way to read finds none and says so once; then the value is computed and stored."""
    assert tier.fill('main', 'other', good := stored(tier))
    damage_key(client, damage, tier._name('main', 'users'))
    assert tier.get('main', 'users') is None
    assert tier.get_many('main', ['users', 'other', 'none']) == {'other': good}
    claim = tier.claim('main', 'users', stored(tier).stamp, {})
    assert claim.enter()
    assert claim.look() is None
    assert claim.is_held
    assert caplog.text.count('was damaged') == 1
    assert tier.fill('main', 'users', good, claim=claim)
    claim.leave()
    assert tier.get('main', 'users') == good


def test_values_of_other_keys_are_a_miss(tier: RedisTier, client: redis.Redis) -> None:
    """A value that was copied to each other key, of a tenant or of another, is none there."""
    keys = [('main', 'a'), ('main', 'a/editor'), ('main', 'b'), ('other', 'a')]
    tags: Any = tier._tags
    for schema, key in keys:
        stamp = tags.snapshot(schema).stamp([USERS])
        data = f'{schema} {key}'.encode()
        assert tier.fill(schema, key, StoredValue(stamp, Encoded(data, True), None))
    names = [tier._name(*key) for key in keys]
    values: list[Any] = [client.get(name) for name in names]
    copied = 0
    for source, value in zip(keys, values, strict=True):
        for (schema, key), name in zip(keys, names, strict=True):
            if (schema, key) == source:
                continue
            client.set(name, value)
            assert tier.get(schema, key) is None
            assert tier.get_many(schema, [key]) == {}
            claim = tier.claim(schema, key, tags.snapshot(schema).stamp([USERS]), {})
            assert claim.enter()
            assert claim.look() is None
            assert claim.is_held, 'the copy is not valid, so its reader has the lock'
            claim.leave()
            copied += 1
    assert copied == 12


def test_a_read_is_one_command(tier: RedisTier, own_redis: RedisServer) -> None:
    """A value, or several, with what is left of their lifetimes, take one command."""
    assert tier.fill('main', 'users', stored(tier))
    with RedisCommands(own_redis.url) as seen:
        tier.get('main', 'users')
        tier.get_many('main', ['users', 'none', 'other'])
    assert [command[0] for command in seen.commands] == ['FCALL'] * 2


def test_large_values_are_not_stored(tier: RedisTier, client: redis.Redis) -> None:
    """A value that is larger than the limit is refused; one of the limit is stored."""
    assert not tier.fill('main', 'users', stored(tier, b'x' * (LIMIT + 1)))
    assert client.exists(tier._name('main', 'users')) == 0
    assert tier.fill('main', 'users', full := stored(tier, b'x' * LIMIT))
    assert tier.get('main', 'users') == full


# locks


@pytest.mark.parametrize('kind', ['string', 'list', 'long'])
def test_a_forged_lock_keeps_nobody_waiting(
    tier: RedisTier, client: redis.Redis, kind: str
) -> None:
    """A key at a lock's place that never expires, or is no lock, is replaced."""
    stamp = stored(tier).stamp
    claim: Any = tier.claim('main', 'users', stamp, {})
    name = claim.lock[0]
    if kind == 'string':
        client.set(name, b'\xff')
    elif kind == 'list':
        client.rpush(name, 'x')
    else:
        client.set(name, 'x', ex=1_000_000)
    assert claim.enter()
    assert claim.look() is None
    assert claim.is_held
    assert 0 < client.pttl(name) <= 60_000  # type: ignore[operator]
    client.delete(name)
    client.rpush(name, 'x')
    claim.extend(1, True)
    assert tier.fill('main', 'users', stored(tier), claim=claim), 'the lock is not looked into'
    claim.leave()


@pytest.mark.parametrize('kind', ['string', 'list', 'long'])
def test_a_forged_mutex_keeps_nobody_waiting(client: redis.Redis, kind: str) -> None:
    """The same holds for the locks of values that an application caches by hand."""
    if kind == 'list':
        client.rpush('name', 'x')
    else:
        client.set('name', b'\xff', ex=1_000_000 if kind == 'long' else None)
    mutex = RedisMutex(client, 'name', LONG)
    assert mutex.acquire()
    mutex.release()
    assert client.exists('name') == 0


# regions


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_values_of_regions_are_a_miss(
    tier: RedisTier, client: redis.Redis, damage: str
) -> None:
    """A value that an application caches by hand is created again."""
    region = tier.region('main')
    region.set('other', 1)
    damage_key(client, damage, '{town:main}:cache:key')
    assert region.get('key') is NO_VALUE
    assert region.get_multi(['key', 'other']) == [NO_VALUE, 1]
    assert region.get_or_create('key', lambda: 7) == 7
    damage_key(client, damage, '{town:main}:cache:key')
    region.set('key', 8)
    assert region.get('key') == 8
    damage_key(client, damage, '{town:main}:cache:key')
    region.delete('key')
    assert region.get('key') is NO_VALUE


@pytest.mark.parametrize(
    'metadata',
    [
        b'', b'|', b'7|', b'[]|', b'{}|', b'{"ct": 1}|', b'{"ct": "x", "v": 2}|',
        b'{"ct": NaN, "v": 2}|', b'{"ct": 1e999, "v": 2}|', b'{"ct": 1, "v": null}|',
        b'{"ct": 1' + b'0' * 180 + b', "v": 2}|', b'[' * 199 + b'|', b'\xff|',
        b' ' * 1000 + b'{"ct": 1, "v": 2}|',
    ],
)  # fmt: skip
def test_metadata_that_is_not_dogpiles(
    tier: RedisTier, client: redis.Redis, metadata: bytes
) -> None:
    """A record of the right key without dogpile's own data is a miss."""
    key = '{town:main}:cache:key'
    data = pack(key, StoredValue({}, Encoded(metadata + b'x', False), None), None)
    assert data is not None
    client.set(key, data)
    assert tier.region('main').get('key') is NO_VALUE


def test_values_of_other_keys_of_regions_are_a_miss(
    tier: RedisTier, client: redis.Redis
) -> None:
    """A value that was copied to another key of a region is none there."""
    one, other = tier.region('main'), tier.region('other')
    one.set('key', 'mine')
    other.set('key', 'theirs')
    client.copy('{town:main}:cache:key', '{town:main}:cache:another')
    client.copy('{town:main}:cache:key', '{town:other}:cache:key', replace=True)
    assert one.get('another') is NO_VALUE
    assert other.get('key') is NO_VALUE
    assert one.get('key') == 'mine'


def test_locks_and_values_of_regions_are_apart(tier: RedisTier) -> None:
    """A value whose key looks like that of a lock keeps nobody waiting."""
    region = tier.region('main')
    region.set('key:lock', 1)
    assert region.get_or_create('key', lambda: 7) == 7
    assert region.get('key:lock') == 1


@pytest.mark.parametrize('kind', ['memory', 'redis'])
def test_large_values_of_regions_are_not_stored(
    tier: RedisTier, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that is too large is returned and not stored, also not the one before it; the log
    names the key."""
    either: SharedTier = tier
    if kind == 'memory':
        either = MemoryTier(MemoryTagStore(), Serializer(), 10**9, None, LONG, LIMIT)
    region: Any = either.region('main')
    region.set('key', 'small')
    region.set('key', 'x' * (LIMIT + 1))
    assert region.get('key') is NO_VALUE
    assert region.get_or_create('key', lambda: 'x' * (LIMIT + 1)) == 'x' * (LIMIT + 1)
    region.set_multi({'key': 'x' * (LIMIT + 1), 'other': 1})
    assert region.get_multi(['key', 'other']) == [NO_VALUE, 1]
    assert 'cache:key' in caplog.text
    assert 'max_value_size' in caplog.text


@pytest.mark.parametrize('shift', [-3600, 3600])
def test_regions_expire_by_the_clock_of_redis(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """A value that a host with another clock has stored lives as long as one of one's own."""
    region = tier_on(client, 100).region('main')
    clock = time.time
    monkeypatch.setattr(time, 'time', lambda: clock() + shift)
    region.set('key', 'old')
    monkeypatch.undo()
    assert region.get('key') == 'old'
    assert region.get_or_create('key', lambda: 'new') == 'old'
    client.pexpire('{town:main}:cache:key', 40_000)
    found: Any = region.get_value_metadata('key')
    assert 59 < regions.time.time() - found.metadata['ct'] < 100
    assert region.get_or_create('key', lambda: 'new', expiration_time=50) == 'new'


def test_the_metadata_is_dogpiles_own(tier: RedisTier, client: redis.Redis) -> None:
    """Before the value stands what dogpile has written, and no more."""
    tier.region('main').set('key', 1)
    data: Any = client.get('{town:main}:cache:key')
    at = data.index(b'{"')
    assert json.loads(data[at : data.index(b'|')]).keys() == {'ct', 'v'}
