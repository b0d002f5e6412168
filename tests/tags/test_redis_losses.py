"""After Redis has lost its data no old value is valid, and no value is stored in quarantine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
import redis

from onegov_ormcache.tags.redis import RedisTagStore
from tests.support.servers import RedisServer
from tests.tags.conformance import PAGES, TREE, USERS, put_in_doubt
from tests.tags.redis_store import KEY, commit, fill, settle_down

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
    """The first command after a restart, of any kind, makes a new birth, and no fill with an
    old stamp is accepted."""
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
    """At whatever moment the key is lost, a new birth begins a quarantine that refuses fills."""
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
    """A call that names an earlier birth does not change the quarantine of the present one."""
    born = quarantined.snapshot('main')
    client.delete(KEY)
    again = quarantined.snapshot('main')
    quarantined.quarantine('main', born.birth, [])
    quarantined.quarantine('main', born.birth, ['7'])
    assert quarantined.snapshot('main') is again
    assert again.quarantine == ()


def test_quarantine_that_has_ended(quarantined: RedisTagStore) -> None:
    """After the end of a quarantine, a call to end it again or to begin one changes nothing."""
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
    """A renewal does not end a quarantine, as it says nothing of the writers that are awaited."""
    quarantined.snapshot('main')
    quarantined.renew('main')
    after = quarantined.snapshot('main')
    assert after.quarantine == ()
    assert not fill(quarantined, after.stamp([USERS]))
