"""The shared tier, in memory and on Redis: the same promises, tested by the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from threading import Barrier, Event
from typing import Any
from uuid import UUID

import pytest
import redis
from dogpile.cache.api import NO_VALUE

from onegov_ormcache.errors import StoreUnreachable, ValueNotCacheable
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags.memory import MemoryTagStore
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tiers.process import StoredValue
from onegov_ormcache.tiers.serializer import Encoded, Serializer
from onegov_ormcache.tiers.shared import MemoryTier, RedisTier, SharedTier
from tests.support.servers import RedisServer
from tests.tags.conformance import PAGES, USERS, put_in_doubt

SIZE = 100_000

VALUES: list[object] = [
    None,
    True,
    0,
    2**80,
    -1.5,
    '',
    'größe 🦆',
    b'\x00\xff',
    Decimal('1.10'),
    date(2024, 2, 29),
    datetime(2024, 2, 29, 12, tzinfo=UTC),
    UUID(int=7),
    [],
    [1, [2, (3,)]],
    {'a': {1: {2}}},
    frozenset({1, 2}),
]


class Both:
    """A shared tier with its tag store; `fresh` makes another tier on the same store."""

    def __init__(self, tags: Any, make: Callable[[float | None], Any]) -> None:
        self.tags = tags
        self.fresh = make
        self.tier: SharedTier = make(None)

    def stored(
        self, *tags: str, data: bytes = b'value', immutable: bool = True, schema: str = 'main'
    ) -> StoredValue:
        stamp = self.tags.snapshot(schema).stamp(tags)
        return StoredValue(stamp, Encoded(data, immutable), None)


@pytest.fixture
def in_memory() -> Both:
    """The embedded default."""
    tags = MemoryTagStore()
    tiers: dict[float | None, MemoryTier] = {}

    def make(ttl: float | None) -> MemoryTier:
        return tiers.setdefault(ttl, MemoryTier(tags, Serializer(), SIZE, ttl, 10))

    return Both(tags, make)


@pytest.fixture
def on_redis(redis_url: str, namespace: str) -> Iterator[Both]:
    """The shared server."""
    with closing(connect(redis_url, 10)) as client:
        tags = RedisTagStore(client, namespace, quarantined=False)
        yield Both(tags, lambda ttl: RedisTier(tags, Serializer(), namespace, ttl, 10))


@pytest.fixture(params=['in_memory', 'on_redis'])
def both(request: pytest.FixtureRequest) -> Both:
    """The shared tier in memory, then on Redis."""
    found: Both = request.getfixturevalue(request.param)
    return found


# values of properties


def test_gives_what_was_filled(both: Both) -> None:
    """A value comes back with its stamp, its bytes and the time it was made."""
    stored = both.stored(USERS, PAGES, data=b'\x00\xff', immutable=False)
    assert both.tier.get('main', 'users') is None
    assert both.tier.fill('main', 'users', stored)
    assert both.tier.get('main', 'users') == stored
    assert both.tier.get('main', 'users/editor') is None


def test_newer_values_replace_older_ones(both: Both) -> None:
    """One key has one value."""
    assert both.tier.fill('main', 'users', both.stored(USERS, data=b'old'))
    assert both.tier.fill('main', 'users', newer := both.stored(USERS, data=b'new'))
    assert both.tier.get('main', 'users') == newer


def test_values_of_tenants_are_apart(both: Both) -> None:
    """The same key of two tenants is two values."""
    assert both.tier.fill('main', 'users', mine := both.stored(USERS, data=b'mine'))
    assert both.tier.get('other', 'users') is None
    theirs = both.stored(USERS, data=b'theirs', schema='other')
    assert both.tier.fill('other', 'users', theirs)
    assert both.tier.get('main', 'users') == mine
    assert both.tier.get('other', 'users') == theirs


def test_old_stamps_are_refused(both: Both) -> None:
    """A value made before a commit is not stored after it, and what was there stays."""
    older = both.stored(USERS, PAGES, data=b'older')
    assert both.tier.fill('main', 'users', older)
    late = both.stored(USERS, PAGES, data=b'late')
    both.tags.publish('main', 'w', [USERS])
    assert not both.tier.fill('main', 'users', late)
    assert both.tier.get('main', 'users') == older
    assert not both.tags.snapshot('main').agrees(older.stamp)


def test_doubt_refuses_values(both: Both) -> None:
    """A value with a tag in doubt is not stored; others are."""
    users, pages = both.stored(USERS), both.stored(PAGES)
    put_in_doubt(both.tags, 'main', 'w', USERS)
    assert not both.tier.fill('main', 'users', users)
    assert both.tier.get('main', 'users') is None
    assert both.tier.fill('main', 'pages', pages)


def test_memory_is_bounded(in_memory: Both) -> None:
    """In memory, least recently used values go first; a too large one is not stored."""
    tier = in_memory.tier
    for number in range(10):
        assert tier.fill('main', f'k{number}', in_memory.stored(USERS, data=b'x' * 20_000))
    assert sum(tier.get('main', f'k{number}') is not None for number in range(10)) == 4
    assert tier.get('main', 'k9') is not None
    assert not tier.fill('main', 'large', in_memory.stored(USERS, data=b'x' * (SIZE + 1)))
    assert tier.get('main', 'k9') is not None


def test_values_expire_on_redis(on_redis: Both) -> None:
    """On Redis a value lives as long as the setting says."""
    tier = on_redis.fresh(100)
    assert tier.fill('main', 'users', on_redis.stored(USERS))
    name = tier._name('main', 'users')
    assert 0 < on_redis.tags.client.pttl(name) <= 100_000
    on_redis.tags.client.pexpire(name, 0)
    assert tier.get('main', 'users') is None


def test_unreachable(own_redis: RedisServer) -> None:
    """Without a server, the tier raises the package's own error."""
    with closing(connect(own_redis.url, 10)) as client:
        tags = RedisTagStore(client, 'town', quarantined=False)
        tier = RedisTier(tags, Serializer(), 'town', None, 10)
        stored = StoredValue(tags.snapshot('main').stamp([USERS]), Encoded(b'x', True), None)
        own_redis.kill()
        with pytest.raises(StoreUnreachable):
            tier.get('main', 'users')
        with pytest.raises(StoreUnreachable):
            tier.fill('main', 'users', stored)


# regions, for what an application caches by hand


@pytest.mark.parametrize('value', VALUES, ids=repr)
def test_regions_keep_values(both: Both, value: object) -> None:
    """A value of any kind that can be cached comes back as it was."""
    region = both.tier.region('main')
    region.set('key', value)
    found = region.get('key')
    assert found == value
    assert type(found) is type(value)
    again = both.tier.region('main').get('key')
    assert again == value


def test_regions_set_get_delete(both: Both) -> None:
    """As in dogpile, a missing value is NO_VALUE, and deleting it is harmless."""
    region: Any = both.tier.region('main')
    assert region.get('key') is NO_VALUE
    region.delete('key')
    region.set('key', 1)
    region.delete('key')
    assert region.get('key') is NO_VALUE
    region.set_multi({'a': 1, 'b': [2]})
    assert region.get_multi(['a', 'x', 'b']) == [1, NO_VALUE, [2]]
    region.delete_multi(['a', 'b'])
    assert region.get_multi(['a', 'b']) == [NO_VALUE, NO_VALUE]


def test_regions_in_memory_are_bounded(in_memory: Both) -> None:
    """Values that applications cache by hand are bounded like values of properties."""
    region = in_memory.tier.region('main')
    for number in range(100):
        region.set(f'key{number}', b'x' * (SIZE // 10))
    found = [region.get(f'key{number}') for number in range(100)]
    assert found[99] == b'x' * (SIZE // 10)
    assert 1 <= sum(value is not NO_VALUE for value in found) <= 10


def test_regions_create_once(both: Both) -> None:
    """A value that is there is not created again, None included."""
    region = both.tier.region('main')
    runs: list[int] = []

    def create() -> None:
        runs.append(1)

    for _ in range(3):
        assert region.get_or_create('key', create) is None
    assert len(runs) == 1


def test_regions_hand_out_copies(both: Both) -> None:
    """A caller does not see changes that another caller makes to the same value."""
    region = both.tier.region('main')
    value = [1]
    region.set('key', value)
    value.append(2)
    found = region.get('key')
    assert found == [1]
    assert isinstance(found, list)
    found.append(3)
    assert region.get('key') == [1]


def test_regions_of_tenants_are_apart(both: Both) -> None:
    """The same key of two tenants' regions is two values, also if names look alike."""
    names = ['main', 'main2', 'mai', 'main:cache', 'n']
    for name in names:
        both.tier.region(name).set('key', name)
    assert [both.tier.region(name).get('key') for name in names] == names
    both.tier.region('main').delete('key')
    assert [both.tier.region(name).get('key') for name in names[1:]] == names[1:]


def test_regions_and_properties_are_apart(both: Both) -> None:
    """No key of a region is a property's."""
    assert both.tier.fill('main', 'users', stored := both.stored(USERS))
    region = both.tier.region('main')
    for key in ('users', 'value:users', ':value:users', '../value:users'):
        assert region.get(key) is NO_VALUE
        region.set(key, 1)
    assert both.tier.get('main', 'users') == stored


def test_regions_refuse_what_can_not_be_cached(both: Both) -> None:
    """A value that would not come back as it is raises, and is not stored."""
    region = both.tier.region('main')
    with pytest.raises(ValueNotCacheable, match='cache'):
        region.set('key', object())
    with pytest.raises(ValueNotCacheable):
        region.get_or_create('key', lambda: [object()])
    assert region.get('key') is NO_VALUE
    assert region.get_or_create('key', lambda: 1) == 1, 'the lock was given back'


def test_regions_give_the_lock_back(both: Both) -> None:
    """A creator that fails keeps nobody waiting."""
    region = both.tier.region('main')
    with pytest.raises(ZeroDivisionError):
        region.get_or_create('key', lambda: 1 / 0)
    assert region.get_or_create('key', lambda: 7) == 7


def test_regions_expire(both: Both) -> None:
    """A value that is older than the setting allows is created again."""
    region = both.fresh(100).region('main')
    assert region.expiration_time == 100
    region.set('key', 'old')
    assert region.get('key') == 'old'
    assert region.get('key', expiration_time=0) is NO_VALUE
    assert region.get_or_create('key', lambda: 'new', expiration_time=0) == 'new'
    assert region.get('key') == 'new'


def test_undecodable_values_of_regions(on_redis: Both) -> None:
    """A value that a region can't decode is created again."""
    region: Any = on_redis.tier.region('main')
    client: redis.Redis = on_redis.tags.client
    region.set('key', 1)
    (name,) = [key for key in client.scan_iter() if region.key_mangler('key').encode() in key]
    intact: Any = client.get(name)
    for data in (intact[:-1], intact + b'x', intact.replace(b'|\x02', b'|\x09', 1)):
        client.set(name, data)
        assert region.get('key') is NO_VALUE
        assert region.get_or_create('key', lambda: 2) == 2
        assert region.get('key') == 2


def test_one_creator_runs(both: Both) -> None:
    """Of many threads that start cold, one runs the creator; the others get its value."""
    runs: list[int] = []
    barrier = Barrier(6)
    waiting = Event()

    def create() -> int:
        runs.append(1)
        waiting.wait(0.05)
        return 7

    def work(number: int) -> object:
        region = both.tier.region('main')
        barrier.wait()
        return region.get_or_create('key', create)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == [7] * 6
    assert len(runs) == 1
