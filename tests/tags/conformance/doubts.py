"""A writer's tags are in doubt from its announcement until it publishes, ends or is settled."""

from __future__ import annotations

import pytest

from onegov_ormcache.errors import SnapshotConflict
from onegov_ormcache.tags.snapshot import TagStore
from tests.tags.conformance.store_under_test import (
    FILES,
    PAGES,
    TREE,
    USERS,
    StoreUnderTest,
    publish_at_once,
    put_in_doubt,
)

#: Seconds that no test lasts.
LONG = 1e9


class Doubts(StoreUnderTest):
    """Doubts, how they are settled, and what a writer in doubt has read."""

    # doubts

    def test_doubt_shows(self, store: TagStore, other: TagStore, schema: str) -> None:
        """A doubt is seen by everybody, with its tags and its transaction id."""
        put_in_doubt(store, schema, 'w', USERS, PAGES, transaction_key='4711')
        put_in_doubt(store, schema, 'v', FILES)
        for snapshot in (store.snapshot(schema), other.snapshot(schema)):
            assert set(snapshot.doubts) == {'w', 'v'}
            assert snapshot.doubts['w'].tags == {USERS, PAGES}
            assert snapshot.doubts['w'].transaction_key == '4711'
            assert snapshot.doubts['v'].tags == {FILES}
            assert snapshot.doubts['v'].transaction_key == ''
            assert snapshot.in_doubt == {USERS, PAGES, FILES}

    def test_doubt_keeps_versions(self, store: TagStore, schema: str) -> None:
        """A doubt alone changes no version: it may come to nothing."""
        before = store.snapshot(schema)
        put_in_doubt(store, schema, 'w', USERS)
        assert store.snapshot(schema).version(USERS) == before.version(USERS)

    def test_doubt_without_tags(self, store: TagStore, schema: str) -> None:
        """A doubt of nothing is a doubt of nothing, whatever is done with it."""
        before = store.snapshot(schema)
        assert put_in_doubt(store, schema, 'w') == frozenset()
        assert store.snapshot(schema).in_doubt == frozenset()
        assert self.fill(store, schema, before.stamp([USERS]))
        store.settle(schema, 'w', None)
        assert store.snapshot(schema).doubts == {}

    def test_second_doubt_replaces_the_first(self, store: TagStore, schema: str) -> None:
        """A writer has one doubt; it may be sent again after a lost answer."""
        put_in_doubt(store, schema, 'w', USERS, transaction_key='7')
        put_in_doubt(store, schema, 'w', USERS, transaction_key='7')
        assert len(store.snapshot(schema).doubts) == 1
        store.end_doubt(schema, 'w')
        assert store.snapshot(schema).doubts == {}

    def test_doubts_of_a_writer_add_up(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """What a second doubt does not name stays in doubt: the two may arrive in any order."""
        before = store.snapshot(schema)
        put_in_doubt(store, schema, 'w', USERS, PAGES)
        assert put_in_doubt(store, schema, 'w', PAGES, FILES) == {USERS, PAGES, FILES}
        assert other.snapshot(schema).in_doubt == {USERS, PAGES, FILES}
        store.publish(schema, 'w', [PAGES])
        after = store.snapshot(schema)
        assert after.in_doubt == frozenset()
        for tag in (USERS, PAGES, FILES):
            assert after.version(tag) != before.version(tag)

    def test_answer_that_is_left(self, store: TagStore, other: TagStore, schema: str) -> None:
        """A doubt whose answer nobody waits for stands like any other."""
        store.doubt(schema, 'w', [USERS], (), '7', {}).leave()
        assert store.snapshot(schema).in_doubt == {USERS}
        store.doubt(schema, 'v', [PAGES], (), '8', {})
        assert store.snapshot(schema).in_doubt == {USERS, PAGES}

    def test_many_tags(self, store: TagStore, schema: str) -> None:
        """A transaction may change more tags than any application has."""
        tags = [f'table:t{number}' for number in range(10_000)]
        assert put_in_doubt(store, schema, 'w', *tags) == set(tags)
        assert store.snapshot(schema).in_doubt == set(tags)
        before = store.snapshot(schema)
        store.publish(schema, 'w', tags)
        after = store.snapshot(schema)
        assert after.doubts == {}
        assert not any(after.version(tag) == before.version(tag) for tag in tags)

    def test_end_doubt_keeps_versions(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """After a rollback everything is as before, and only that writer's doubt ends."""
        before = store.snapshot(schema)
        put_in_doubt(store, schema, 'w', USERS)
        put_in_doubt(store, schema, 'v', PAGES)
        store.end_doubt(schema, 'w')
        for after in (store.snapshot(schema), other.snapshot(schema)):
            assert set(after.doubts) == {'v'}
            assert after.in_doubt == {PAGES}
            assert after.stamp([USERS, PAGES]) == before.stamp([USERS, PAGES])

    def test_one_of_two_doubts_ends(self, store: TagStore, schema: str) -> None:
        """A tag stays in doubt until its last writer's doubt ends."""
        put_in_doubt(store, schema, 'w', USERS)
        put_in_doubt(store, schema, 'v', USERS, PAGES)
        store.publish(schema, 'v', [USERS, PAGES])
        assert store.snapshot(schema).in_doubt == {USERS}
        store.end_doubt(schema, 'w')
        assert store.snapshot(schema).in_doubt == frozenset()

    # settling

    def test_settle_gives_new_versions(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """A settled doubt counts as a commit of its tags."""
        before = store.snapshot(schema)
        put_in_doubt(store, schema, 'w', USERS, PAGES)
        put_in_doubt(store, schema, 'v', FILES)
        other.settle(schema, 'w', None)
        after = store.snapshot(schema)
        assert set(after.doubts) == {'v'}
        assert after.version(USERS) != before.version(USERS)
        assert after.version(PAGES) != before.version(PAGES)
        assert after.version(FILES) == before.version(FILES)

    def test_settling_twice_is_harmless(self, store: TagStore, schema: str) -> None:
        """The second one to settle a doubt changes nothing at all."""
        put_in_doubt(store, schema, 'w', USERS)
        store.settle(schema, 'w', None)
        settled = store.snapshot(schema)
        store.settle(schema, 'w', None)
        store.settle(schema, 'w', 0)
        assert store.snapshot(schema) == settled

    def test_settling_nobody_is_harmless(self, store: TagStore, schema: str) -> None:
        """An unknown writer has nothing to be settled, and nobody else is touched."""
        put_in_doubt(store, schema, 'w', USERS)
        before = store.snapshot(schema)
        store.settle(schema, 'nobody', None)
        store.settle(schema, 'nobody', 0)
        assert store.snapshot(schema) == before

    def test_settling_beside_the_writer(self, store: TagStore, schema: str) -> None:
        """A writer that lives may publish after it was settled: one more new version."""
        put_in_doubt(store, schema, 'w', USERS)
        store.settle(schema, 'w', None)
        settled = store.snapshot(schema)
        store.publish(schema, 'w', [USERS])
        assert store.snapshot(schema).version(USERS) != settled.version(USERS)
        assert store.snapshot(schema).doubts == {}

    def test_lease_that_lasts(self, store: TagStore, other: TagStore, schema: str) -> None:
        """Nobody settles a doubt whose lease has not run out."""
        put_in_doubt(store, schema, 'w', USERS)
        before = store.snapshot(schema)
        store.settle(schema, 'w', LONG)
        other.settle(schema, 'w', LONG)
        assert store.snapshot(schema) == before

    def test_lease_that_ran_out(self, store: TagStore, schema: str) -> None:
        """A doubt that is older than the lease is settled."""
        put_in_doubt(store, schema, 'w', USERS)
        before = store.snapshot(schema)
        store.settle(schema, 'w', 0)
        after = store.snapshot(schema)
        assert after.doubts == {}
        assert after.version(USERS) != before.version(USERS)

    # what a SERIALIZABLE writer has read

    def test_read_that_holds(self, store: TagStore, schema: str) -> None:
        """A writer goes on if what it read is as it was, also beside other doubts."""
        read = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(store, schema, 'v', FILES)
        assert put_in_doubt(store, schema, 'w', USERS, read=read) == {USERS}
        assert set(store.snapshot(schema).doubts) == {'v', 'w'}

    def test_read_that_changed(self, store: TagStore, other: TagStore, schema: str) -> None:
        """A writer that has read what changed since is refused, and leaves no trace."""
        read = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(other, schema, 'v', PAGES)
        publish_at_once(other, schema, 'v', [PAGES])
        before = store.snapshot(schema)
        with pytest.raises(SnapshotConflict, match=PAGES) as raised:
            put_in_doubt(store, schema, 'w', USERS, read=read)
        assert raised.value.tag == PAGES
        assert store.snapshot(schema) == before

    def test_read_that_is_in_doubt(self, store: TagStore, other: TagStore, schema: str) -> None:
        """Of two writers that each read what the other changes, the second is refused."""
        read = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(store, schema, 'v', USERS, read=read)
        before = store.snapshot(schema)
        with pytest.raises(SnapshotConflict, match=USERS) as raised:
            put_in_doubt(other, schema, 'w', PAGES, read=read)
        assert raised.value.tag == USERS
        assert store.snapshot(schema) == before

    def test_computed_that_holds(self, store: TagStore, schema: str) -> None:
        """A writer goes on if what it computed is as it was, also beside other doubts."""
        computed = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(store, schema, 'v', FILES)
        assert put_in_doubt(store, schema, 'w', USERS, computed=computed) == {USERS}

    def test_computed_that_changed(self, store: TagStore, other: TagStore, schema: str) -> None:
        """A writer that has computed what changed since is refused, and leaves no trace."""
        snapshot = store.snapshot(schema)
        put_in_doubt(other, schema, 'v', PAGES)
        publish_at_once(other, schema, 'v', [PAGES])
        before = store.snapshot(schema)
        with pytest.raises(SnapshotConflict, match=PAGES) as raised:
            put_in_doubt(
                store, schema, 'w', USERS,
                read=snapshot.stamp([USERS]), computed=snapshot.stamp([PAGES]),
            )  # fmt: skip
        assert raised.value.tag == PAGES
        assert store.snapshot(schema) == before

    def test_computed_that_is_in_doubt(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """Of two writers that each computed what the other changes, the second is refused."""
        computed = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(store, schema, 'v', USERS, computed=computed)
        with pytest.raises(SnapshotConflict, match=USERS):
            put_in_doubt(other, schema, 'w', PAGES, computed=computed)

    def test_computed_before_a_renewal(self, store: TagStore, schema: str) -> None:
        """A renewal stands for changes that nobody knows, so a writer that computed before it is
        refused."""
        store.register(schema, [TREE])
        for tag in USERS, TREE:
            computed = store.snapshot(schema).stamp([tag])
            store.renew(schema)
            with pytest.raises(SnapshotConflict, match=tag):
                put_in_doubt(store, schema, 'w', PAGES, computed=computed)

    def test_own_doubt_is_no_conflict(self, store: TagStore, schema: str) -> None:
        """A writer whose doubt is sent again is not in its own way."""
        read = store.snapshot(schema).stamp([USERS])
        put_in_doubt(store, schema, 'w', USERS, read=read)
        assert put_in_doubt(store, schema, 'w', USERS, read=read) == {USERS}
