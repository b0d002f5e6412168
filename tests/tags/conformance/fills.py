"""A value is stored only if its stamp holds and all writers can know its tags."""

from __future__ import annotations

from onegov_ormcache.tags.snapshot import TagStore
from tests.tags.conformance.store_under_test import (
    MENU,
    PAGES,
    TREE,
    USERS,
    StoreUnderTest,
    publish_at_once,
    put_in_doubt,
)


class Fills(StoreUnderTest):
    """Values that are stored or refused, and the tags of function policies."""

    # filling

    def test_fill_with_what_holds(self, store: TagStore, schema: str) -> None:
        """A value may be stored if its stamp is the snapshot's, before and after changes."""
        assert self.fill(store, schema, store.snapshot(schema).stamp([USERS, PAGES]))
        put_in_doubt(store, schema, 'w', USERS)
        store.publish(schema, 'w', [USERS])
        assert self.fill(store, schema, store.snapshot(schema).stamp([USERS, PAGES]))

    def test_fill_with_an_old_version(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """A value that was made before a commit is not stored after it."""
        stamp = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(other, schema, 'w', USERS)
        publish_at_once(other, schema, 'w', [USERS])
        assert not self.fill(store, schema, stamp)
        assert self.fill(store, schema, {PAGES: stamp[PAGES]})

    def test_fill_beside_a_doubt(self, store: TagStore, other: TagStore, schema: str) -> None:
        """A value with a tag in doubt is not stored; a value with other tags is."""
        stamp = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(other, schema, 'w', USERS)
        assert not self.fill(store, schema, stamp)
        assert not self.fill(store, schema, {USERS: stamp[USERS]})
        assert self.fill(store, schema, {PAGES: stamp[PAGES]})
        other.end_doubt(schema, 'w')
        assert self.fill(store, schema, stamp)

    def test_fill_leaves_the_epoch(self, store: TagStore, schema: str) -> None:
        """Storing a value that depends only on tables leaves the tenant's epoch as it is."""
        snapshot = store.snapshot(schema)
        assert self.fill(store, schema, snapshot.stamp([USERS]))
        assert store.snapshot(schema) is snapshot

    def test_fill_without_registration(self, store: TagStore, schema: str) -> None:
        """A value of a function policy is stored only when all writers can know its tag."""
        before = store.snapshot(schema)
        assert not self.fill(store, schema, before.stamp([USERS, TREE]))
        assert store.snapshot(schema) == before
        store.register(schema, [TREE])
        assert not self.fill(store, schema, before.stamp([USERS, TREE]))
        assert self.fill(store, schema, store.snapshot(schema).stamp([USERS, TREE]))

    def test_register(self, store: TagStore, other: TagStore, schema: str) -> None:
        """`register` makes a function policy's tag known to all writers, by a new epoch; a
        second call changes nothing."""
        before = store.snapshot(schema)
        store.register(schema, [TREE])
        after = other.snapshot(schema)
        assert after.versions.keys() == {TREE}
        assert after.version(TREE) != before.version(TREE)
        assert after.epoch != before.epoch
        store.register(schema, [TREE])
        assert other.snapshot(schema) == after

    def test_register_beside_a_doubt(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """A writer that is about to commit, and could not know the tag, evicts it all the same."""
        put_in_doubt(other, schema, 'w', USERS)
        store.register(schema, [TREE])
        registered = store.snapshot(schema)
        assert registered.in_doubt == {USERS, TREE}
        assert not self.fill(store, schema, registered.stamp([TREE]))
        publish_at_once(other, schema, 'w', [USERS])
        after = store.snapshot(schema)
        assert not after.in_doubt
        assert after.version(TREE) != registered.version(TREE)

    # properties that a writer's code does not know

    def test_unknown_properties_are_put_in_doubt(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """Any change puts in doubt the function policies' tags that the writer does not know."""
        store.register(schema, [TREE, MENU])
        before = store.snapshot(schema)
        tags = put_in_doubt(other, schema, 'w', USERS, known=[MENU])
        assert tags == {USERS, TREE}
        assert store.snapshot(schema).in_doubt == {USERS, TREE}
        assert not self.fill(store, schema, before.stamp([TREE]))
        publish_at_once(other, schema, 'w', tags)
        after = store.snapshot(schema)
        assert after.version(TREE) != before.version(TREE)
        assert after.version(MENU) == before.version(MENU)

    def test_unknown_properties_are_settled(self, store: TagStore, schema: str) -> None:
        """If the writer has died, the tags that it did not know get new versions as well."""
        store.register(schema, [TREE])
        before = store.snapshot(schema)
        put_in_doubt(store, schema, 'w', USERS)
        store.settle(schema, 'w', None)
        assert store.snapshot(schema).version(TREE) != before.version(TREE)

    def test_known_properties_that_changed(self, store: TagStore, schema: str) -> None:
        """A function policy's tag that the writer itself names as changed is in doubt once."""
        store.register(schema, [TREE])
        assert put_in_doubt(store, schema, 'w', USERS, TREE, known=[TREE]) == {USERS, TREE}
        assert put_in_doubt(store, schema, 'v', USERS, TREE) == {USERS, TREE}
