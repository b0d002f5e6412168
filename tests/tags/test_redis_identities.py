"""Processes that share a Redis learn from one another that a database has another identity."""

from __future__ import annotations

from contextlib import closing

import pytest
import redis

from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags import redis as redis_tags
from onegov_ormcache.tags.redis import RedisTagStore
from tests.support.servers import RedisServer
from tests.tags.conformance import ONE, TWO, USERS, found
from tests.tags.redis_store import NAMESPACE, commit, fill

LIST = '{town:main}:identities'


@pytest.fixture
def other(client: redis.Redis) -> RedisTagStore:
    """The store of another process."""
    return RedisTagStore(client, NAMESPACE, quarantined=False)


def test_new_identity_makes_all_ask_again(store: RedisTagStore, other: RedisTagStore) -> None:
    """After one process has found a new identity, all others must ask their database before
    they use a value again."""
    found(store, 'main', ONE)
    found(other, 'main', ONE)
    known = store.snapshot('main')
    assert known.usable
    assert other.snapshot('main') == known
    found(other, 'main', TWO)
    asked = store.snapshot('main')
    assert not asked.identified
    assert asked.identities != known.identities
    store.identify('main', ONE, asked.identities)
    again = store.snapshot('main')
    assert (again.birth, again.identity) == (known.birth, ONE), 'its database is still the same'
    assert other.snapshot('main').identity == TWO


def test_answer_that_is_too_old(store: RedisTagStore, other: RedisTagStore) -> None:
    """A process must ask again if a new identity came between its question and its answer."""
    for identity in (ONE, '9.9.9.9.9'):  # one that the list has, one that is new too
        found(store, 'main', ONE)
        before = store.snapshot('main')
        found(other, 'main', f'{identity}0')
        store.identify('main', identity, before.identities)
        assert not store.snapshot('main').identified
        store.identify('main', identity, store.snapshot('main').identities)
        assert store.snapshot('main').usable


def test_second_thread_keeps_what_the_first_has_found(
    store: RedisTagStore, other: RedisTagStore
) -> None:
    """Of threads that find the same identity at once, the slow one does not undo the first."""
    before = store.unidentified('main').identities
    store.identify('main', ONE, before)
    store.identify('main', ONE, before)
    assert store.snapshot('main').usable
    other.identify('main', ONE, before)
    assert not other.snapshot('main').identified, 'it can not know whether it was the same'


def test_lost_list(store: RedisTagStore, client: redis.Redis) -> None:
    """If the list is lost alone, all processes ask again, and go on with their versions."""
    found(store, 'main', ONE)
    commit(store, USERS)
    known = store.snapshot('main')
    client.delete(LIST)
    assert not store.snapshot('main').identified
    found(store, 'main', ONE)
    assert store.snapshot('main').versions == known.versions


def test_list_of_an_older_dump(store: RedisTagStore, own_redis: RedisServer) -> None:
    """A list that a dump brings back is not trusted: it may lack an identity."""
    found(store, 'main', ONE)
    own_redis.save()
    with closing(connect(own_redis.url, 10)) as client:
        found(RedisTagStore(client, NAMESPACE, quarantined=False), 'main', TWO)
    own_redis.kill()
    own_redis.start()
    assert not store.snapshot('main').identified


def test_old_identities_are_dropped(
    store: RedisTagStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant keeps a bounded number of identities; the versions of the others expire."""
    monkeypatch.setattr(redis_tags, 'KEPT_IDENTITIES', 3)
    for number in range(6):
        found(store, 'main', f'{number}.1.1.1.1')
    expected = {f'{{town:main}}:tags:{number}.1.1.1.1'.encode() for number in (3, 4, 5)}
    assert set(client.scan_iter('*:tags*')) == expected
    assert client.hlen(LIST) == 2 + 3
    week = range(redis_tags.KEPT_SECONDS - 60, redis_tags.KEPT_SECONDS + 1)
    assert {client.ttl(key) in week for key in expected} == {True, False}
    assert client.ttl('{town:main}:tags:5.1.1.1.1') == -1
    found(store, 'main', '3.1.1.1.1')
    assert client.ttl('{town:main}:tags:3.1.1.1.1') == -1, 'its database is in use'


def test_identities_that_nobody_finds_are_dropped(
    store: RedisTagStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An identity that no process has found for long goes when a new one comes."""
    found(store, 'main', ONE)
    client.hset(LIST, f'i:{ONE}', '1')
    found(store, 'main', TWO)
    assert client.hexists(LIST, f'i:{ONE}') is False
    assert not client.exists(f'{{town:main}}:tags:{ONE}')


def test_follow(store: RedisTagStore, other: RedisTagStore) -> None:
    """A replica's reader goes on with the versions of the primary that was found last."""
    found(store, 'main', '1.1.5.100.7')
    found(store, 'main', '2.1.5.100.7')
    found(store, 'main', '3.1.5.999.7')
    other.follow('main', '8.8.5.100.7', other.unidentified('main').identities)
    assert other.snapshot('main').identity == '2.1.5.100.7'
    other.follow('main', '8.8.6.100.7', other.unidentified('main').identities)
    assert other.snapshot('main').identity == '8.8.6.100.7', 'no primary was found'


def test_outage_while_identifying(store: RedisTagStore, own_redis: RedisServer) -> None:
    """If Redis can't be told the identity, later doubts lie with it all the same."""
    before = store.unidentified('main').identities
    own_redis.kill()
    with pytest.raises(redis_tags.StoreUnreachable):
        store.identify('main', ONE, before)
    own_redis.start()
    assert store.identity('main') == ONE
    assert not store.snapshot('main').identified
    found(store, 'main', ONE)
    assert fill(store, store.snapshot('main').stamp([USERS]))
