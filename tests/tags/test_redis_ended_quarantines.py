"""What a writer has computed in a quarantine holds after its end, unless it has changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from onegov_ormcache.errors import SnapshotConflict
from onegov_ormcache.tags.places import PlacedTagStore
from onegov_ormcache.tags.redis import RedisTagStore
from tests.tags.conformance import FILES, PAGES, TREE, USERS, put_in_doubt
from tests.tags.redis_store import KEY, NAMESPACE, commit, fill


def end(store: RedisTagStore) -> None:
    """End the quarantine."""
    store.quarantine('main', store.snapshot('main').birth, [])


def test_computed_outlasts_the_end(quarantined: RedisTagStore, client: redis.Redis) -> None:
    """A writer goes on whose computed values have not changed, whichever process has ended the
    quarantine, and after the changes of other tags."""
    store, other = quarantined, RedisTagStore(client, NAMESPACE, quarantined=True)

    def change_another_tag() -> None:
        put_in_doubt(other, 'main', 'v', FILES, known=[TREE])
        other.publish('main', 'v', [FILES])

    store.register('main', [TREE])
    commit(store, USERS)
    computed = store.snapshot('main').stamp([USERS, PAGES, TREE])
    store.quarantine('main', store.snapshot('main').birth, ['7'])
    change_another_tag()
    end(other)
    change_another_tag()
    assert put_in_doubt(store, 'main', 'x', USERS, known=[TREE], computed=computed) == {USERS}


def test_read_does_not_outlast_the_end(quarantined: RedisTagStore) -> None:
    """The end is a new birth for all else: no earlier stamp holds, and no value is stored."""
    before = quarantined.snapshot('main')
    end(quarantined)
    after = quarantined.snapshot('main')
    stamp = before.stamp([USERS])
    assert not after.agrees(stamp)
    assert not fill(quarantined, stamp)
    assert after.unsettled(before) is None
    with pytest.raises(SnapshotConflict, match=USERS):
        put_in_doubt(quarantined, 'main', 'w', PAGES, read=stamp)


CHANGES: dict[str, Callable[[RedisTagStore], object]] = {
    'commit': lambda store: commit(store, USERS),
    'doubt': lambda store: put_in_doubt(store, 'main', 'v', USERS),
    'publish of a lost doubt': lambda store: store.publish('main', 'lost', [USERS]),
    'renewal': lambda store: store.renew('main'),
    'forgetting': lambda store: store.forget('main', 0),
}


@pytest.mark.parametrize('own_version', [False, True])
@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('change', CHANGES)
def test_changed_beside_the_end(
    quarantined: RedisTagStore, change: str, when: str, own_version: bool
) -> None:
    """A writer is refused if what it computed changed, before or after the end."""
    store = quarantined
    store.snapshot('main')
    if own_version:
        commit(store, USERS)
    computed = store.snapshot('main').stamp([USERS])
    if when == 'before':
        CHANGES[change](store)
    end(store)
    if when == 'after':
        CHANGES[change](store)
    with pytest.raises(SnapshotConflict, match=USERS):
        put_in_doubt(store, 'main', 'w', PAGES, computed=computed)


def test_computed_does_not_outlast_a_loss(
    quarantined: RedisTagStore, client: redis.Redis
) -> None:
    """After a second loss nobody knows what has changed: the writer is refused."""
    computed = quarantined.snapshot('main').stamp([USERS])
    end(quarantined)
    client.delete(KEY)
    for _ in range(2):
        with pytest.raises(SnapshotConflict, match=USERS):
            put_in_doubt(quarantined, 'main', 'w', PAGES, computed=computed)
        end(quarantined)


def test_read_after_the_end(quarantined: RedisTagStore) -> None:
    """A version of after the end holds until its tag changes, like any other."""
    quarantined.snapshot('main')
    end(quarantined)
    after = quarantined.snapshot('main').stamp([USERS, PAGES])
    assert fill(quarantined, after)
    put_in_doubt(quarantined, 'main', 'w', PAGES, read=after, computed=after)
    quarantined.publish('main', 'w', [PAGES])
    for given in ({'read': after}, {'computed': after}):
        with pytest.raises(SnapshotConflict, match=PAGES):
            put_in_doubt(quarantined, 'main', 'v', USERS, **given)


@pytest.mark.parametrize('ended', [['main'], ['shared'], ['main', 'shared']])
def test_places(quarantined: RedisTagStore, ended: list[str]) -> None:
    """Each place of shared tables has a quarantine of its own, of whose end the same holds."""
    countries = 'table:shared.countries'
    store = PlacedTagStore(quarantined, ['shared.countries'])
    computed = store.snapshot('main').stamp([USERS, countries])
    for place in ended:
        quarantined.quarantine(place, quarantined.snapshot(place).birth, [])
    assert put_in_doubt(store, 'main', 'w', PAGES, computed=computed) == {PAGES}
    store.publish('main', 'w', [PAGES])
    assert put_in_doubt(store, 'main', 'v', countries, computed=computed) == {countries}
    store.publish('main', 'v', [countries])
    with pytest.raises(SnapshotConflict, match=countries):
        put_in_doubt(store, 'main', 'w', PAGES, computed=computed)
    assert not store.snapshot('main').doubts
