"""The tag store on Redis does what every tag store must, and survives its server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.redis_client import connect, hash_tag
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.snapshot import Snapshot, Stamp
from tests.support.counting import RedisCommands
from tests.support.servers import RedisServer
from tests.tags.conformance import (
    PAGES,
    TREE,
    USERS,
    TagStoreConformance,
    put_in_doubt,
)

NAMESPACE = 'town'
KEY = '{town:main}:tags'
VALUE = '{town:main}:value:users'


def fill(store: RedisTagStore, stamp: Stamp, schema: str = 'main') -> bool:
    key = f'{hash_tag(store._namespace, schema)}:value:any'
    return store.fill(schema, stamp, key, b'value', None)


def commit(store: RedisTagStore, *tags: str) -> None:
    put_in_doubt(store, 'main', 'w', *tags)
    store.publish('main', 'w', tags)


class TestRedisTagStore(TagStoreConformance):
    """All that holds for tag stores in general."""

    @pytest.fixture
    def store(self, redis_url: str, namespace: str) -> Iterator[RedisTagStore]:
        """A store on the shared server, in a namespace of the test's own."""
        with closing(connect(redis_url, 10)) as client:
            yield RedisTagStore(client, namespace, quarantined=False)

    @pytest.fixture
    def other(self, redis_url: str, namespace: str) -> Iterator[RedisTagStore]:
        """Another process would have the like."""
        with closing(connect(redis_url, 10)) as client:
            yield RedisTagStore(client, namespace, quarantined=False)

    def fill(self, store: RedisTagStore, schema: str, stamp: Stamp) -> bool:
        """Store a value, and look whether it is there."""
        key = f'{hash_tag(store._namespace, schema)}:value:{id(stamp)}'
        store.client.delete(key)
        allowed = store.fill(schema, stamp, key, b'value', None)
        assert (store.client.get(key) == b'value') == allowed
        return allowed


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator[redis.Redis]:
    """A client of the test's own server, made as applications make theirs."""
    with closing(connect(own_redis.url, 10)) as made:
        yield made


@pytest.fixture
def store(client: redis.Redis) -> RedisTagStore:
    """A store on the test's own server, without quarantines."""
    return RedisTagStore(client, NAMESPACE, quarantined=False)


@pytest.fixture
def quarantined(client: redis.Redis) -> RedisTagStore:
    """A store on the test's own server, beside a database that knows its writers."""
    return RedisTagStore(client, NAMESPACE, quarantined=True)


def settle_down(store: RedisTagStore) -> Snapshot:
    """Have the tenant born, and its quarantine ended."""
    store.quarantine('main', store.snapshot('main').birth, [])
    return store.snapshot('main')


def test_is_of_many_processes(store: RedisTagStore) -> None:
    """Nobody has to be refused."""
    assert not store.single_process


# what it costs


def test_unchanged_tenant_costs_one_command(store: RedisTagStore, client: redis.Redis) -> None:
    """A snapshot that is known is one command with an empty answer."""
    known = store.snapshot('main')
    answers: list[Any] = []
    script = store._scripts['snapshot']

    def run(*arguments: Any) -> Any:
        answers.append(script(*arguments))
        return answers[-1]

    store._scripts['snapshot'] = run  # type: ignore[assignment]
    url = f'redis://127.0.0.1:{client.connection_pool.connection_kwargs["port"]}/0'
    with RedisCommands(url) as seen:
        assert store.snapshot('main') is known
        assert seen.count == 1
    assert answers == [None]
    commit(store, USERS)
    assert store.snapshot('main').epoch != known.epoch
    assert answers[-1] is not None


def test_every_method_costs_one_command(store: RedisTagStore, own_redis: RedisServer) -> None:
    """A round trip each, whatever the number of tags."""
    for _ in range(2):
        # the first time, scripts are loaded
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
    assert [command[0] for command in seen.commands] == ['EVALSHA'] * 10


def test_forgets_tenants_it_can_not_keep(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process remembers a bounded number of tenants; the others cost a full answer."""
    monkeypatch.setattr('onegov_ormcache.tags.redis.REMEMBERED_TENANTS', 3)
    store = RedisTagStore(client, NAMESPACE, quarantined=False)
    first = {f't{number}': store.snapshot(f't{number}') for number in range(10)}
    assert len(store._last) == 3
    assert {schema: store.snapshot(schema) for schema in first} == first


# what it keeps, and where


def test_keys_of_a_tenant_lie_together(store: RedisTagStore, client: redis.Redis) -> None:
    """All keys of a tenant share a hash tag, so that a script may take them together."""
    stamp = store.snapshot('main').stamp([USERS])
    assert store.fill('main', stamp, VALUE, b'users', None)
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
    """A value has the life that fill gives it: milliseconds if need be, or no end."""
    stamp = store.snapshot('main').stamp([USERS])
    assert store.fill('main', stamp, VALUE, b'1', 100)
    assert 0 < int(client.pttl(VALUE)) <= 100_000
    assert store.fill('main', stamp, VALUE, b'1', None)
    assert client.pttl(VALUE) == -1
    assert store.fill('main', stamp, VALUE, b'1', 0.0001)
    assert client.pttl(VALUE) != -1
    assert client.pttl(KEY) == -1


def test_refused_values_leave_the_old_one(store: RedisTagStore, client: redis.Redis) -> None:
    """What is not stored does not harm what is."""
    stamp = store.snapshot('main').stamp([USERS])
    assert store.fill('main', stamp, VALUE, b'old', None)
    commit(store, USERS)
    assert not store.fill('main', stamp, VALUE, b'new', None)
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


# losses


def test_restart_from_an_older_dump(store: RedisTagStore, own_redis: RedisServer) -> None:
    """Versions that a dump brings back are not trusted: no old value matches again."""
    commit(store, USERS)
    store.register('main', [TREE])
    old = store.snapshot('main')
    assert fill(store, old.stamp([USERS, TREE]))
    own_redis.save()
    commit(store, USERS)
    acknowledged = store.snapshot('main')
    own_redis.kill()
    own_redis.start()
    with closing(own_redis.client()) as plain:
        assert plain.hget(KEY, f'v:{USERS}') == old.version(USERS).encode()
    after = store.snapshot('main')
    for before in (old, acknowledged):
        assert after.birth != before.birth
        assert not after.agrees(before.stamp([USERS]))
        assert not after.agrees(before.stamp([PAGES]))
        assert not fill(store, before.stamp([USERS]))
        assert not fill(store, before.stamp([PAGES]))
    assert after.versions == {}


@pytest.mark.parametrize('first', ['fill', 'doubt', 'publish', 'end_doubt', 'settle', 'renew'])
def test_whoever_comes_first_after_a_restart(
    store: RedisTagStore, own_redis: RedisServer, first: str
) -> None:
    """Whatever is asked of a restarted server first: it is a new birth, and no fill."""
    stamp = store.snapshot('main').stamp([USERS])
    put_in_doubt(store, 'main', 'w', PAGES)
    own_redis.restart(keep_data=True)
    if first == 'fill':
        assert not fill(store, stamp)
    elif first == 'doubt':
        assert put_in_doubt(store, 'main', 'v', USERS) == {USERS}
    elif first == 'publish':
        store.publish('main', 'w', [PAGES])
    elif first == 'end_doubt':
        store.end_doubt('main', 'w')
    elif first == 'settle':
        store.settle('main', 'w', None)
    else:
        store.renew('main')
    after = store.snapshot('main')
    assert not after.agrees(stamp)
    assert 'w' not in after.doubts
    assert not fill(store, stamp)


LOSSES: dict[str, Callable[[redis.Redis], object]] = {
    'DEL': lambda client: client.delete(KEY),
    'UNLINK': lambda client: client.unlink(KEY),
    'FLUSHALL': lambda client: client.flushall(),
}


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('moment', ['before', 'in doubt', 'after'])
def test_lost_key(
    quarantined: RedisTagStore, client: redis.Redis, loss: str, moment: str
) -> None:
    """At whatever moment the key is lost: a new birth in quarantine, and no fill."""
    before = settle_down(quarantined)
    stamp = before.stamp([USERS, PAGES])
    assert fill(quarantined, stamp)
    if moment == 'before':
        LOSSES[loss](client)
    put_in_doubt(quarantined, 'main', 'w', USERS)
    if moment == 'in doubt':
        LOSSES[loss](client)
    quarantined.publish('main', 'w', [USERS])
    if moment == 'after':
        LOSSES[loss](client)
    after = quarantined.snapshot('main')
    assert after.birth != before.birth
    assert after.quarantine == ()
    assert after.doubts == {}
    for tag in (USERS, PAGES):
        assert after.version(tag) != before.version(tag)
        assert not fill(quarantined, {tag: before.version(tag)})
        assert not fill(quarantined, {tag: after.version(tag)})


def test_birth_refuses_its_own_fill(store: RedisTagStore, client: redis.Redis) -> None:
    """A fill that finds no tenant stores nothing, even without tags."""
    store.snapshot('main')
    client.delete(KEY)
    assert not fill(store, {})
    assert fill(store, {})


# quarantine


def test_quarantine_from_birth_to_end(quarantined: RedisTagStore) -> None:
    """Nothing is stored in a quarantine, and nothing from it is valid after its end."""
    born = quarantined.snapshot('main')
    assert born.quarantine == ()
    assert not fill(quarantined, born.stamp([USERS]))

    quarantined.quarantine('main', born.birth, ['7', '9'])
    waiting = quarantined.snapshot('main')
    assert waiting.quarantine == ('7', '9')
    assert waiting.birth == born.birth
    assert waiting.epoch != born.epoch

    commit(quarantined, USERS)
    inside = quarantined.snapshot('main')
    assert inside.quarantine == ('7', '9')
    assert not fill(quarantined, inside.stamp([USERS]))
    assert not fill(quarantined, inside.stamp([PAGES]))

    quarantined.quarantine('main', born.birth, [])
    ended = quarantined.snapshot('main')
    assert ended.quarantine is None
    assert ended.birth != born.birth
    for tag in (USERS, PAGES):
        assert ended.version(tag) != inside.version(tag)
        assert not fill(quarantined, inside.stamp([tag]))
    assert fill(quarantined, ended.stamp([USERS, PAGES]))


def test_quarantine_of_another_birth(quarantined: RedisTagStore, client: redis.Redis) -> None:
    """Who speaks of an earlier birth ends nobody's quarantine."""
    born = quarantined.snapshot('main')
    client.delete(KEY)
    again = quarantined.snapshot('main')
    quarantined.quarantine('main', born.birth, [])
    quarantined.quarantine('main', born.birth, ['7'])
    assert quarantined.snapshot('main') is again
    assert again.quarantine == ()


def test_quarantine_that_has_ended(quarantined: RedisTagStore) -> None:
    """The second one to end a quarantine changes nothing, and none begins one."""
    ended = settle_down(quarantined)
    quarantined.quarantine('main', ended.birth, [])
    quarantined.quarantine('main', ended.birth, ['7'])
    assert quarantined.snapshot('main') is ended


def test_doubts_outlive_a_quarantine(quarantined: RedisTagStore) -> None:
    """A writer that began to commit in the quarantine is still in doubt after it."""
    born = quarantined.snapshot('main')
    put_in_doubt(quarantined, 'main', 'w', USERS)
    quarantined.quarantine('main', born.birth, [])
    ended = quarantined.snapshot('main')
    assert ended.in_doubt == {USERS}
    assert not fill(quarantined, ended.stamp([USERS]))
    assert fill(quarantined, ended.stamp([PAGES]))


def test_renew_does_not_end_a_quarantine(quarantined: RedisTagStore) -> None:
    """A new birth on purpose says nothing of the writers that are awaited."""
    quarantined.snapshot('main')
    quarantined.renew('main')
    after = quarantined.snapshot('main')
    assert after.quarantine == ()
    assert not fill(quarantined, after.stamp([USERS]))


# a server that does not answer


def every_method(store: RedisTagStore) -> dict[str, Callable[[], object]]:
    return {
        'check': store.check,
        'snapshot': lambda: store.snapshot('main'),
        'doubt': lambda: put_in_doubt(store, 'main', 'w', USERS),
        'publish': lambda: store.publish('main', 'w', [USERS]),
        'end_doubt': lambda: store.end_doubt('main', 'w'),
        'settle': lambda: store.settle('main', 'w', None),
        'quarantine': lambda: store.quarantine('main', 'birth', []),
        'renew': lambda: store.renew('main'),
        'fill': lambda: fill(store, {USERS: 'version'}),
    }


def test_killed_server(store: RedisTagStore, own_redis: RedisServer) -> None:
    """Without a server every method raises one error, and works again when it is back."""
    before = store.snapshot('main')
    own_redis.kill()
    for method in every_method(store).values():
        with pytest.raises(StoreUnreachable, match='Redis'):
            method()
    own_redis.start()
    assert store.snapshot('main').birth != before.birth


def test_paused_server(own_redis: RedisServer) -> None:
    """A server that stalls is given up after the timeout, by every method."""
    with closing(connect(own_redis.url, 0.05)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        store.snapshot('main')
        own_redis.pause()
        for method in every_method(store).values():
            with pytest.raises(StoreUnreachable):
                method()
        own_redis.resume()
    with closing(connect(own_redis.url, 10)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        before = store.snapshot('main')
        commit(store, USERS)
        assert not store.snapshot('main').agrees(before.stamp([USERS]))


def test_lost_connections_are_made_again(store: RedisTagStore, own_redis: RedisServer) -> None:
    """A connection that the server closed costs no error."""
    before = store.snapshot('main')
    with closing(own_redis.client()) as plain:
        plain.client_kill_filter(skipme=True, _type='normal')
    assert store.snapshot('main') is before


def test_forgotten_scripts(store: RedisTagStore, client: redis.Redis) -> None:
    """A server that has forgotten the scripts is taught them again."""
    before = store.snapshot('main')
    client.script_flush()
    assert store.snapshot('main') is before
    client.script_flush()
    commit(store, USERS)
    assert not store.snapshot('main').agrees(before.stamp([USERS]))


@pytest.mark.parametrize(
    'url', ['http://localhost', 'localhost:6379', '', 'redis://localhost:port/0']
)
def test_wrong_url(url: str) -> None:
    """A URL of no known kind is told before anybody tries it."""
    with pytest.raises(StoreUnreachable, match='redis_url'):
        connect(url, 1)


def test_wrong_url_keeps_its_password() -> None:
    """What is told of a wrong URL can be logged."""
    with pytest.raises(StoreUnreachable) as raised:
        connect('http://user:secret@localhost', 1)
    assert 'secret' not in str(raised.value)


def test_nobody_listens() -> None:
    """A URL that leads nowhere is told by the first look."""
    with closing(connect('redis://127.0.0.1:1/0', 1)) as client:
        with pytest.raises(StoreUnreachable):
            RedisTagStore(client, NAMESPACE, quarantined=True).check()
