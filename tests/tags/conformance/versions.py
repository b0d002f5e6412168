"""A tenant is born with a version for every tag, and each commit gives its tags new ones."""

from __future__ import annotations

import pytest

from onegov_ormcache.tags.snapshot import TagStore
from tests.tags.conformance.store_under_test import (
    FILES,
    MENU,
    PAGES,
    TREE,
    USERS,
    StoreUnderTest,
    publish_at_once,
    put_in_doubt,
)


class Versions(StoreUnderTest):
    """Births, epochs and versions."""

    def test_checks(self, store: TagStore) -> None:
        """A store that can be reached says so."""
        store.check()

    def test_is_born_on_first_use(self, store: TagStore, other: TagStore, schema: str) -> None:
        """The first look at a tenant gives it a birth, which is every tag's version."""
        born = store.snapshot(schema)
        assert born.birth
        assert born.epoch
        assert born.reachable
        assert born.quarantine is None
        assert born.version(USERS) == born.version(PAGES) == born.birth
        assert (born.doubts, born.in_doubt) == ({}, frozenset())
        assert other.snapshot(schema).birth == born.birth

    @pytest.mark.parametrize('change', ['doubt', 'publish', 'end_doubt', 'settle', 'fill'])
    def test_is_born_by_any_method(self, store: TagStore, schema: str, change: str) -> None:
        """A tenant that nobody has looked at yet can be changed all the same."""
        if change == 'doubt':
            assert put_in_doubt(store, schema, 'w', USERS) == {USERS}
            store.end_doubt(schema, 'w')
        elif change == 'publish':
            store.publish(schema, 'w', [USERS])
        elif change == 'end_doubt':
            store.end_doubt(schema, 'w')
        elif change == 'settle':
            store.settle(schema, 'w', None)
        else:
            assert not self.fill(store, schema, {USERS: 'guessed'})
        snapshot = store.snapshot(schema)
        assert snapshot.birth
        assert snapshot.in_doubt == frozenset()

    def test_unchanged_tenant_keeps_its_epoch(self, store: TagStore, schema: str) -> None:
        """Looking changes nothing: the same snapshot is given again."""
        first = store.snapshot(schema)
        assert store.snapshot(schema) is first

    def test_publish_renews_just_these_tags(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """A commit gives its own tags new versions, and the tenant a new epoch."""
        before = store.snapshot(schema)
        put_in_doubt(store, schema, 'w', USERS, PAGES)
        store.publish(schema, 'w', [USERS, PAGES])
        for after in (store.snapshot(schema), other.snapshot(schema)):
            assert after.birth == before.birth
            assert after.epoch != before.epoch
            assert after.version(USERS) != before.version(USERS)
            assert after.version(PAGES) != before.version(PAGES)
            assert after.version(FILES) == before.version(FILES)
            assert (after.doubts, after.in_doubt) == ({}, frozenset())
            assert not after.agrees(before.stamp([USERS]))
            assert after.agrees(before.stamp([FILES]))

    def test_tenant_with_many_tags(self, store: TagStore, other: TagStore, schema: str) -> None:
        """Of 1,000 tags, a commit changes its own, and each reader sees just that, whichever
        snapshot it knows; doubts and tags of properties are those of the moment."""
        tags = [f'rows:books.id:int/{number}' for number in range(1000)]
        store.register(schema, [TREE])
        publish_at_once(store, schema, 'v', tags)
        first = other.snapshot(schema)
        for number in range(0, 1000, 7):
            before = store.snapshot(schema)
            in_doubt = put_in_doubt(store, schema, 'w', tags[number])
            assert in_doubt == {tags[number], TREE}
            between = store.snapshot(schema)
            assert (between.in_doubt, set(between.doubts)) == (in_doubt, {'w'})
            assert between.versions == before.versions
            assert between.unsettled(before) == in_doubt
            publish_at_once(store, schema, 'w', [tags[number]])
            after = store.snapshot(schema)
            assert after.doubts == {}
            assert after.unsettled(before) == after.unsettled(between) == in_doubt
            assert after.property_tags == {TREE}
            if number % 21 == 0:
                assert other.snapshot(schema) == after
        last = store.snapshot(schema)
        assert last.unsettled(first) == {TREE, *tags[::7]}
        assert len(last.versions) == len(tags) + 1
        store.register(schema, [MENU])
        assert store.snapshot(schema).property_tags == {TREE, MENU}
        assert other.snapshot(schema) == store.snapshot(schema)

    def test_tokens_never_repeat(self, store: TagStore, schema: str) -> None:
        """No version and no epoch is ever given twice."""
        tokens: list[str] = []
        for number in range(50):
            put_in_doubt(store, schema, f'w{number}', USERS)
            store.publish(schema, f'w{number}', [USERS])
            if number % 10 == 0:
                store.renew(schema)
            snapshot = store.snapshot(schema)
            tokens.append(snapshot.version(USERS))
            # a version may be the token of the epoch that brought it
            if snapshot.epoch != tokens[-1]:
                tokens.append(snapshot.epoch)
        assert len(set(tokens)) == len(tokens)
        assert all(len(token) >= 16 for token in tokens)

    def test_every_change_renews_the_epoch(self, store: TagStore, schema: str) -> None:
        """Whoever knows the epoch before a change notices the change."""
        epochs = [store.snapshot(schema).epoch]
        put_in_doubt(store, schema, 'w', USERS)
        epochs.append(store.snapshot(schema).epoch)
        store.end_doubt(schema, 'w')
        epochs.append(store.snapshot(schema).epoch)
        put_in_doubt(store, schema, 'w', USERS)
        epochs.append(store.snapshot(schema).epoch)
        store.settle(schema, 'w', None)
        epochs.append(store.snapshot(schema).epoch)
        store.publish(schema, 'w', [USERS])
        epochs.append(store.snapshot(schema).epoch)
        store.renew(schema)
        epochs.append(store.snapshot(schema).epoch)
        assert len(set(epochs)) == len(epochs)

    def test_old_snapshots_stay_as_they_were(self, store: TagStore, schema: str) -> None:
        """A snapshot is of one moment: later changes do not show in it."""
        before = store.snapshot(schema)
        version, epoch = before.version(USERS), before.epoch
        put_in_doubt(store, schema, 'w', USERS)
        store.publish(schema, 'w', [USERS])
        assert (before.version(USERS), before.epoch) == (version, epoch)
        assert before.in_doubt == frozenset()
