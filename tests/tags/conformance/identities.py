"""Each identity of a tenant's database has versions of its own, and a crowded tenant forgets."""

from __future__ import annotations

from onegov_ormcache.tags.snapshot import TagStore
from tests.tags.conformance.store_under_test import (
    PAGES,
    TREE,
    USERS,
    StoreUnderTest,
    put_in_doubt,
)

ONE, TWO = '1.1.5.100.7', '2.1.5.100.7'

#: Seconds that no test lasts.
LONG = 1e6


def found(store: TagStore, schema: str, identity: str) -> None:
    """Do what a process does whose transaction has found an identity."""
    store.identify(schema, identity, store.unidentified(schema).identities)


class Identities(StoreUnderTest):
    """Identities, and the bound of what a tenant keeps."""

    def test_no_identity_at_first(self, store: TagStore, schema: str) -> None:
        """A process knows no identity before it was told one, and can use no value until then."""
        assert store.identity(schema) is None
        before = store.unidentified(schema)
        assert not before.usable
        assert 'not identified' in repr(before)
        found(store, schema, ONE)
        assert store.identity(schema) == ONE
        assert store.snapshot(schema).identity == ONE
        assert store.snapshot(schema).usable

    def test_identities_are_apart(self, store: TagStore, schema: str) -> None:
        """No version of one identity is one of another, and a fill for the other is refused."""
        found(store, schema, ONE)
        put_in_doubt(store, schema, 'w', USERS)
        one = store.snapshot(schema)
        found(store, schema, TWO)
        two = store.snapshot(schema)
        assert two.birth != one.birth
        assert two.doubts == {}
        assert not two.agrees(one.stamp([USERS]))
        assert not two.agrees(one.stamp([PAGES]))
        assert not self.fill(store, schema, one.stamp([PAGES]))
        assert self.fill(store, schema, two.stamp([USERS, PAGES]))

    def test_identity_that_comes_back(self, store: TagStore, schema: str) -> None:
        """Of two databases with one name, each keeps its versions while the other has changes."""
        found(store, schema, ONE)
        put_in_doubt(store, schema, 'w', USERS)
        store.publish(schema, 'w', [USERS])
        one = store.snapshot(schema)
        found(store, schema, TWO)
        put_in_doubt(store, schema, 'v', USERS)
        store.publish(schema, 'v', [USERS])
        store.renew(schema)
        found(store, schema, ONE)
        again = store.snapshot(schema)
        assert (again.birth, again.epoch, again.versions) == (one.birth, one.epoch, one.versions)

    def test_assumed_identity(self, store: TagStore, schema: str) -> None:
        """A doubt of a writer whose identity was only assumed lies with that identity."""
        store.assume(schema, ONE)
        assert store.identity(schema) == ONE
        put_in_doubt(store, schema, 'w', USERS)
        found(store, schema, ONE)
        assert store.snapshot(schema).in_doubt == {USERS}

    def test_forget(self, store: TagStore, other: TagStore, schema: str) -> None:
        """After `forget` no tag has a version of its own, nor one that it had before."""
        put_in_doubt(store, schema, 'w', USERS)
        store.publish(schema, 'w', [USERS])
        store.register(schema, [TREE])
        before = store.snapshot(schema)
        assert before.versions.keys() == {USERS, TREE}
        put_in_doubt(store, schema, 'v', PAGES, known=[TREE], transaction_key='7')
        store.forget(schema, LONG)
        for after in (store.snapshot(schema), other.snapshot(schema)):
            assert after.versions == {}
            assert after.unsettled(before) is None
            assert not any(after.agrees(before.stamp([tag])) for tag in (USERS, PAGES, TREE))
            assert after.in_doubt == {PAGES}, 'its writer is still about to commit'
            assert after.doubts['v'].transaction_key == '7'
        assert not self.fill(store, schema, before.stamp([USERS]))
        assert not self.fill(store, schema, after.stamp([TREE])), 'it must be registered again'
        assert self.fill(store, schema, after.stamp([USERS]))

    def test_forget_once_in_an_interval(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """Two applications with many tags each can't make one another forget all the time."""
        store.forget(schema, LONG)
        store.register(schema, [TREE])
        before = store.snapshot(schema)
        other.forget(schema, LONG)
        assert store.snapshot(schema) == before
        other.forget(schema, 0)
        assert store.snapshot(schema).versions == {}
