"""Whatever another program has written to the keys of the tag store, a tenant gets a new birth.

No method raises an error, nothing that was stored before is valid, and the log says it once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.tags.redis import KEPT_IDENTITIES, RedisTagStore
from tests.tags.conformance import ONE, PAGES, TREE, TWO, USERS, found, put_in_doubt
from tests.tags.redis_store import KEY, NAMESPACE, fill, settle_down, with_a_log

LIST = '{town:main}:identities'

Damage = Callable[[Any], object]


def _field(name: str, value: bytes) -> Damage:
    return lambda client: client.hset(KEY, name, value)


def _of_another_kind(kind: str, key: str = KEY) -> Damage:
    def damage(client: Any) -> None:
        client.delete(key)
        if kind == 'string':
            client.set(key, b'\xff')
        elif kind == 'list':
            client.rpush(key, 'run_id', 'x')
        elif kind == 'set':
            client.sadd(key, 'run_id')
        elif kind == 'sorted set':
            client.zadd(key, {'run_id': 1})
        else:
            client.xadd(key, {'run_id': 'x'})

    return damage


def _copied(client: Any) -> None:
    client.rename(KEY, '{town:main}:elsewhere')
    client.copy('{town:main}:elsewhere', KEY)
    client.hset(KEY, 'key', '{town:main}:elsewhere')


def _crowded(client: Any) -> None:
    client.hset(KEY, mapping={f'v:x{number}': 'x' for number in range(100_001)})


KINDS = ('string', 'list', 'set', 'sorted set', 'stream')

DAMAGES: dict[str, Damage] = {
    **{f'a {kind}': _of_another_kind(kind) for kind in KINDS},
    'no birth': lambda client: client.hdel(KEY, 'birth'),
    'no epoch': lambda client: client.hdel(KEY, 'epoch'),
    'an empty birth': lambda client: client.hset(KEY, 'birth', ''),
    'no key': lambda client: client.hdel(KEY, 'key'),
    'a copy': _copied,
    'bytes as the birth': _field('birth', b'\xff\x00'),
    'bytes as a version': _field(f'v:{USERS}', b'\xff'),
    'bytes as a tag': lambda client: client.hset(KEY, b'v:\xff', b'x'),
    'bytes as a field': lambda client: client.hset(KEY, b'\xfe', b'x'),
    'a doubt of bytes': _field('d:x', b'\xff'),
    'an empty doubt': _field('d:x', b''),
    'a doubt that is a number': _field('d:x', b'7'),
    'a doubt without tags': _field('d:x', b'{"key": "7", "at": 1}'),
    'a doubt with wrong tags': _field('d:x', b'{"tags": [7], "key": "7", "at": 1}'),
    'a doubt with tags by name': _field('d:x', b'{"tags": {"a": "b"}, "key": "7", "at": 1}'),
    'a doubt with lone surrogates': _field('d:x', b'{"tags": ["\\ud800"], "key": "", "at": 1}'),
    'a doubt without an end': _field('d:x', b'[' * 100_000),
    'a doubt of no transaction': _field('d:x', b'{"tags": ["a"], "key": "x", "at": 1}'),
    'a quarantine of bytes': _field('quarantine', b'7,\xff'),
    'a quarantine of no transaction': _field('quarantine', b'7,drop table'),
    'a large state': _field('v:x', b'x' * 17_000_000),
    'many fields': _crowded,
}


#: What a process reads, but no script does.
FOR_SCRIPTS: dict[str, Damage] = {
    'a large doubt': _field('d:x', b'{"tags": ["a"], "at": 1, "key": ""}' + b' ' * 5_000_000),
    'a doubt without a time': _field('d:x', b'{"tags": ["a"], "key": ""}'),
}


@pytest.fixture(autouse=True, params=['all is sent', 'changes are sent'])
def _sent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == 'changes are sent':
        with_a_log(monkeypatch)


@pytest.fixture
def warm(quarantined: RedisTagStore) -> RedisTagStore:
    """A store with a value, a doubt, versions of its own, and no quarantine."""
    settle_down(quarantined)
    quarantined.register('main', [TREE])
    quarantined.publish('main', 'v', [USERS, PAGES])
    put_in_doubt(quarantined, 'main', 'w', PAGES, transaction_key='7')
    assert quarantined.snapshot('main').quarantine is None
    assert fill(quarantined, quarantined.snapshot('main').stamp([USERS]))
    return quarantined


def damaged(client: Any, damage: str) -> None:
    """Damage the tenant's state, and renew its epoch, which every reader compares."""
    {**DAMAGES, **FOR_SCRIPTS}[damage](client)
    if client.type(KEY) == b'hash' and client.hexists(KEY, 'epoch'):
        client.hset(KEY, 'epoch', 'another')


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_state_is_a_new_birth(
    warm: RedisTagStore, client: redis.Redis, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The next reader has a new birth in quarantine, and nothing that was stored is valid."""
    before = warm.snapshot('main')
    damaged(client, damage)
    after = warm.snapshot('main')
    assert after.reachable
    assert after.birth not in (before.birth, *before.versions.values())
    assert after.versions == {}
    assert after.quarantine == (), 'writers whose doubts are lost must end first'
    assert not after.agrees(before.stamp([USERS]))
    assert warm.snapshot('main') is after, 'it is replaced once'
    assert caplog.text.count('was damaged') == 1
    assert not fill(warm, after.stamp([USERS]))
    assert fill(warm, settle_down(warm).stamp([USERS]))


@pytest.mark.parametrize('damage', [*DAMAGES, *FOR_SCRIPTS])
def test_every_script_takes_a_damaged_state(
    warm: RedisTagStore, client: redis.Redis, damage: str
) -> None:
    """No script fails, whichever comes first; then the tenant's old stamps do not hold."""
    stamp = warm.snapshot('main').stamp([USERS])
    scripts: list[Callable[[], object]] = [
        lambda: put_in_doubt(warm, 'main', 'x', USERS),
        lambda: warm.publish('main', 'x', [USERS]),
        lambda: warm.end_doubt('main', 'x'),
        lambda: warm.settle('main', 'x', None),
        lambda: warm.settle('main', 'x', 60),
        lambda: warm.quarantine('main', 'birth', []),
        lambda: warm.register('main', ['property:another']),
        lambda: warm.renew('main'),
        lambda: warm.forget('main', 60),
        lambda: fill(warm, stamp),
    ]
    for script in scripts:
        damaged(client, damage)
        script()
        warm.snapshot('main')
    assert not warm.snapshot('main').agrees(stamp)
    assert not fill(warm, stamp)


def test_a_damaged_doubt_is_a_conflict_of_what_was_read(
    warm: RedisTagStore, client: redis.Redis
) -> None:
    """What a writer has read from the cache does not hold, if a doubt beside it can't be read."""
    before = warm.snapshot('main')
    client.hset(KEY, 'd:x', '{')
    assert not fill(warm, before.stamp([USERS]))
    assert warm.snapshot('main').quarantine == ()


def test_a_new_doubt_survives_the_damage_of_another(
    warm: RedisTagStore, client: redis.Redis
) -> None:
    """A writer that finds a damaged doubt of its own has its tags in doubt afterwards."""
    client.hset(KEY, 'd:w', '{')
    assert put_in_doubt(warm, 'main', 'w', USERS, transaction_key='7') == {USERS}
    after = warm.snapshot('main')
    assert after.in_doubt == {USERS}
    assert after.quarantine == ()


def test_several_processes_replace_a_state_once(
    warm: RedisTagStore, quarantined: RedisTagStore, client: redis.Redis
) -> None:
    """A process that finds the damage late leaves the new birth alone."""
    damaged(client, 'bytes as a version')
    keys = warm._key('main', None), warm._list_key('main')
    epoch: Any = client.hget(KEY, 'epoch')
    born = warm.snapshot('main')
    assert warm._run_on(keys, 'replace', epoch, 'late') == 0
    assert warm.snapshot('main') is born


def test_a_state_that_is_damaged_on_and_on(
    warm: RedisTagStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is damaged again at once counts as one that can't be reached."""
    original = warm.scripts.run

    def run(name: str, *arguments: Any) -> Any:
        if name == 'snapshot':
            damaged(client, 'bytes as a version')
        return original(name, *arguments)

    monkeypatch.setattr(warm.scripts, 'run', run)
    with pytest.raises(StoreUnreachable, match='goes on damaging'):
        warm.snapshot('main')


def test_a_doubt_from_the_future_is_settled_after_its_lease(
    store: RedisTagStore, client: redis.Redis
) -> None:
    """If the server's clock was set back, a doubt that has no transaction's key grows old anew."""
    put_in_doubt(store, 'main', 'w', USERS)
    doubt = json.loads(client.hget(KEY, 'd:w'))  # type: ignore[arg-type]
    for at in (doubt['at'] + 3600, float('inf'), float('nan')):
        client.hset(KEY, 'd:w', json.dumps({**doubt, 'at': at}).replace('Infinity', '1e999'))
        store.settle('main', 'w', 60)
        if 'd:w' not in {name.decode() for name in client.hkeys(KEY)}:  # type: ignore[union-attr]
            put_in_doubt(store, 'main', 'w', USERS)
            continue
        now = json.loads(client.hget(KEY, 'd:w'))['at']  # type: ignore[arg-type]
        assert abs(now - doubt['at']) < 3000


def test_a_forgetting_in_the_future(store: RedisTagStore, client: redis.Redis) -> None:
    """A time that can't be read, or in the future, does not keep versions from being forgotten."""
    for last in ('1e300', 'x', ''):
        store.register('main', [TREE])
        client.hset(KEY, 'forgotten', last)
        store.forget('main', 60)
        assert store.snapshot('main').versions == {}
    store.register('main', [TREE])
    store.forget('main', 60)
    assert TREE in store.snapshot('main').versions


# the list of identities

LISTS: dict[str, Damage] = {
    **{f'a {kind}': _of_another_kind(kind, LIST) for kind in KINDS},
    'bytes as the token': lambda client: client.hset(LIST, 'token', b'\xff'),
    'no token': lambda client: client.hdel(LIST, 'token'),
    'no run_id': lambda client: client.hdel(LIST, 'run_id'),
    'a large token': lambda client: client.hset(LIST, 'token', b'x' * 1_000_000),
    'many identities': lambda client: client.hset(
        LIST, mapping={f'i:{number}': '1' for number in range(1001)}
    ),
    'moments that are none': lambda client: client.hset(
        LIST,
        mapping={b'i:a': 'x', b'i:b': 'nan', b'i:c': '1e999', b'i:d': '', b'i:\xff': b'\xff'},
    ),
}


@pytest.mark.parametrize('damage', LISTS)
def test_a_damaged_list_of_identities(
    store: RedisTagStore, client: redis.Redis, damage: str
) -> None:
    """Processes ask their database again, and go on with a list that is in order."""
    found(store, 'main', ONE)
    LISTS[damage](client)
    for identity in (ONE, ONE, TWO, TWO, ONE, ONE):
        store.unidentified('main')
        store.identify('main', identity, store.snapshot('main').identities)
    assert store.snapshot('main').identified
    assert store.snapshot('main').identity == ONE
    assert client.hlen(LIST) <= KEPT_IDENTITIES + 2


@pytest.mark.parametrize('damage', LISTS)
def test_a_reader_of_a_replica_follows_what_it_can_read(
    store: RedisTagStore, client: redis.Redis, damage: str
) -> None:
    """A list that can't be read leaves a replica's reader with its own identity."""
    found(store, 'main', ONE)
    LISTS[damage](client)
    store.follow('main', TWO, '')
    assert store.identity('main') in (ONE, TWO)


def test_an_empty_epoch(warm: RedisTagStore, client: redis.Redis) -> None:
    """A process that knows no epoch yet does not take it for the one that it knows."""
    before = warm.snapshot('main')
    client.hset(KEY, 'epoch', '')
    other = RedisTagStore(warm.client, NAMESPACE, quarantined=True)
    assert other.snapshot('main').birth != before.birth
