"""The tag store on Redis does what every tag store must, in one command each.

test_redis_losses.py tests it with a server that loses its data, test_redis_outages.py with a
server that does not answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

from onegov_ormcache.redis_client.client import connect, hash_tag
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.snapshot import Stamp
from tests.support.counting import RedisCommands
from tests.support.servers import RedisServer
from tests.tags.conformance import PAGES, TREE, USERS, TagStoreConformance, put_in_doubt
from tests.tags.redis_store import KEY, NAMESPACE, VALUE, commit, fill, with_a_log


class TestRedisTagStore(TagStoreConformance):
    """Runs the tests that every tag store must pass."""

    @pytest.fixture
    def store(self, redis_url: str, namespace: str) -> Iterator[RedisTagStore]:
        """A store on the shared server, in a namespace of the test's own."""
        with closing(connect(redis_url, 10)) as client:
            yield RedisTagStore(client, namespace, quarantined=False)

    @pytest.fixture
    def other(self, redis_url: str, namespace: str) -> Iterator[RedisTagStore]:
        """A second store on the same namespace, as another process would have."""
        with closing(connect(redis_url, 10)) as client:
            yield RedisTagStore(client, namespace, quarantined=False)

    def fill(self, store: RedisTagStore, schema: str, stamp: Stamp) -> bool:
        """Store a value; return whether it was allowed, and assert that it is there only then."""
        key = f'{hash_tag(store.namespace, schema)}:value:{id(stamp)}'
        store.client.delete(key)
        allowed = fill(store, stamp, schema, key=key)
        assert (store.client.get(key) == b'value') == allowed
        return allowed


class TestRedisTagStoreWithALog(TestRedisTagStore):
    """The same holds for tenants with an index and a log of changes."""

    @pytest.fixture(autouse=True)
    def _with_a_log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with_a_log(monkeypatch)


def test_is_of_many_processes(store: RedisTagStore) -> None:
    """The store serves several processes, so that no second one has to be refused."""
    assert not store.single_process


# costs


def test_unchanged_tenant_costs_one_command(store: RedisTagStore, client: redis.Redis) -> None:
    """A snapshot that is known and still current costs one command with an empty answer."""
    known = store.snapshot('main')
    answers: list[Any] = []
    original = store.scripts.run

    def run(*arguments: Any) -> Any:
        answers.append(original(*arguments))
        return answers[-1]

    store.scripts.run = run  # type: ignore[method-assign]
    url = f'redis://127.0.0.1:{client.connection_pool.connection_kwargs["port"]}/0'
    with RedisCommands(url) as seen:
        assert store.snapshot('main') is known
        assert seen.count == 1
    assert answers == [None]
    commit(store, USERS)
    assert store.snapshot('main').epoch != known.epoch
    assert answers[-1] is not None


def test_every_method_costs_one_command(store: RedisTagStore, own_redis: RedisServer) -> None:
    """Each method costs one round trip, whatever the number of tags."""
    for _ in range(2):
        # the first round loads the scripts, so only the second one is counted
        with RedisCommands(own_redis.url) as seen:
            store.register('main', [TREE])
            stamp = store.snapshot('main').stamp([USERS, PAGES, TREE])
            assert fill(store, stamp)
            put_in_doubt(store, 'main', 'w', USERS, PAGES, read=stamp)
            store.end_doubt('main', 'w')
            put_in_doubt(store, 'main', 'w', USERS, PAGES)
            store.publish('main', 'w', [USERS, PAGES])
            store.settle('main', 'w', None)
            store.quarantine('main', 'birth', [])
            store.renew('main')
    assert [command[0] for command in seen.commands] == ['FCALL'] * 10


def test_forgets_tenants_it_can_not_keep(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process remembers a bounded number of tenants; the others cost a full answer."""
    monkeypatch.setattr('onegov_ormcache.tags.redis.REMEMBERED_TENANTS', 3)
    store = RedisTagStore(client, NAMESPACE, quarantined=False)
    first = {f't{number}': store.snapshot(f't{number}') for number in range(10)}
    assert len(store._last) == 3
    assert {schema: store.snapshot(schema) for schema in first} == first


# keys and values


def test_keys_of_a_tenant_lie_together(store: RedisTagStore, client: redis.Redis) -> None:
    """All keys of a tenant share a hash tag, so that a script may take them together."""
    stamp = store.snapshot('main').stamp([USERS])
    assert fill(store, stamp, key=VALUE)
    put_in_doubt(store, 'main', 'w', USERS)
    store.snapshot('other')
    keys = {key.decode() for key in client.scan_iter()}
    assert keys == {KEY, VALUE, '{town:other}:tags'}
    assert {key.split('}')[0] + '}' for key in keys if 'main' in key} == {
        hash_tag(NAMESPACE, 'main')
    }


def test_namespaces_are_apart(store: RedisTagStore, client: redis.Redis) -> None:
    """Two applications that share a Redis do not see each other's tenants."""
    other = RedisTagStore(client, 'village', quarantined=False)
    theirs = other.snapshot('main')
    assert store.snapshot('main').birth != theirs.birth
    commit(store, USERS)
    store.renew('main')
    assert other.snapshot('main') is theirs


@pytest.mark.parametrize(
    'tag', ['table:gemeinde.bürger', 'table:日本', 'table:🦆', 'table:a b"c\\d\n', 'table:v:d:x']
)
@pytest.mark.parametrize('schema', ['main', 'größe', 'a:b', 'with space'])
def test_names_of_all_kinds(store: RedisTagStore, tag: str, schema: str) -> None:
    """Tags and tenants may be called anything; none is taken for another."""
    store.register(schema, [f'property:{tag}'])
    before = store.snapshot(schema)
    assert fill(store, before.stamp([tag, f'property:{tag}']), schema)
    tags = put_in_doubt(store, schema, 'w', tag)
    assert tags == {tag, f'property:{tag}'}
    assert store.snapshot(schema).in_doubt == tags
    assert not fill(store, before.stamp([tag]), schema)
    store.publish(schema, 'w', tags)
    after = store.snapshot(schema)
    assert after.versions.keys() == tags
    assert after.version(tag) != before.version(tag)


def test_values_live_as_long_as_told(store: RedisTagStore, client: redis.Redis) -> None:
    """A value lives as long as `fill` says: down to milliseconds, or without end."""
    stamp = store.snapshot('main').stamp([USERS])
    assert fill(store, stamp, key=VALUE, ttl=100)
    assert 0 < int(client.pttl(VALUE)) <= 100_000
    assert fill(store, stamp, key=VALUE)
    assert client.pttl(VALUE) == -1
    assert fill(store, stamp, key=VALUE, ttl=0.0001)
    assert client.pttl(VALUE) != -1
    assert client.pttl(KEY) == -1


def test_refused_values_leave_the_old_one(store: RedisTagStore, client: redis.Redis) -> None:
    """A value that is refused leaves the stored one as it is."""
    stamp = store.snapshot('main').stamp([USERS])
    assert fill(store, stamp, key=VALUE, value=b'old')
    commit(store, USERS)
    assert not fill(store, stamp, key=VALUE, value=b'new')
    assert client.get(VALUE) == b'old'


# leases go by the server's clock


def server_time(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


def test_doubt_begins_when_the_server_says(store: RedisTagStore, client: redis.Redis) -> None:
    """A doubt's begin is the server's own time, to a fraction of a millisecond."""
    before = server_time(client)
    put_in_doubt(store, 'main', 'w', USERS)
    at = json.loads(client.hget(KEY, 'd:w'))['at']  # type: ignore[arg-type]
    assert before - 0.001 <= at <= server_time(client) + 0.001


@pytest.mark.parametrize(('age', 'settled'), [(-100, False), (90, False), (110, True)])
def test_lease_goes_by_the_servers_clock(
    store: RedisTagStore, client: redis.Redis, age: int, settled: bool
) -> None:
    """A doubt is settled if it is older than the lease, and not if it is younger."""
    put_in_doubt(store, 'main', 'w', USERS)
    doubt = json.loads(client.hget(KEY, 'd:w'))  # type: ignore[arg-type]
    doubt['at'] = server_time(client) - age
    client.hset(KEY, 'd:w', json.dumps(doubt))
    store.settle('main', 'w', 100)
    assert (store.snapshot('main').doubts == {}) == settled
