"""What every tag store must do: inherit the suite and give it the store.

Made in the manner of dogpile.cache's back-end suites, so that a store of another
kind can be held to the same promises::

    class TestMyTagStore(TagStoreConformance):
        @pytest.fixture
        def store(self) -> MyTagStore: ...

        @pytest.fixture
        def other(self, store: MyTagStore) -> MyTagStore: ...  # a second client of it

        def fill(self, store: MyTagStore, schema: str, stamp: Stamp) -> bool: ...

Tenants are born on their first use and must not begin in quarantine here.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from onegov_ormcache.errors import SnapshotConflict
from onegov_ormcache.tags.snapshot import Stamp, TagStore

USERS, PAGES, FILES = 'table:users', 'table:pages', 'table:files'
TREE, MENU = 'property:town.App.tree', 'property:town.App.menu'

#: Seconds that no test lasts.
LONG = 1e9


def put_in_doubt(
    store: TagStore,
    schema: str,
    writer: str,
    *tags: str,
    known: Collection[str] = (),
    transaction_id: str = '',
    read: Stamp | None = None,
) -> frozenset[str]:
    return store.doubt(schema, writer, tags, known, transaction_id, read or {})


class TagStoreConformance:
    """Inherit it, and give `store`, `other` and `fill`; see above."""

    @pytest.fixture
    def store(self) -> Any:
        """The store under test, empty or with other tenants in it."""
        raise NotImplementedError

    @pytest.fixture
    def other(self, store: Any) -> Any:
        """A second client of the same store; the same one if it can have only one."""
        raise NotImplementedError

    @pytest.fixture
    def schema(self) -> str:
        """A tenant that the store has never heard of."""
        return f'tenant-{uuid4().hex[:12]}'

    @pytest.fixture
    def stranger(self) -> str:
        """A second such tenant."""
        return f'stranger-{uuid4().hex[:12]}'

    def fill(self, store: Any, schema: str, stamp: Stamp) -> bool:
        """Store any value with this stamp; whether the store allowed it."""
        raise NotImplementedError

    # births, epochs, versions

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

    # doubts

    def test_doubt_shows(self, store: TagStore, other: TagStore, schema: str) -> None:
        """A doubt is seen by everybody, with its tags and its transaction id."""
        put_in_doubt(store, schema, 'w', USERS, PAGES, transaction_id='4711')
        put_in_doubt(store, schema, 'v', FILES)
        for snapshot in (store.snapshot(schema), other.snapshot(schema)):
            assert set(snapshot.doubts) == {'w', 'v'}
            assert snapshot.doubts['w'].tags == {USERS, PAGES}
            assert snapshot.doubts['w'].transaction_id == '4711'
            assert snapshot.doubts['v'].tags == {FILES}
            assert snapshot.doubts['v'].transaction_id == ''
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
        put_in_doubt(store, schema, 'w', USERS, transaction_id='7')
        put_in_doubt(store, schema, 'w', USERS, transaction_id='7')
        assert len(store.snapshot(schema).doubts) == 1
        store.end_doubt(schema, 'w')
        assert store.snapshot(schema).doubts == {}

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
        other.publish(schema, 'v', [PAGES])
        before = store.snapshot(schema)
        with pytest.raises(SnapshotConflict, match=PAGES):
            put_in_doubt(store, schema, 'w', USERS, read=read)
        assert store.snapshot(schema) == before

    def test_read_that_is_in_doubt(self, store: TagStore, other: TagStore, schema: str) -> None:
        """Of two writers that each read what the other changes, the second is refused."""
        read = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(store, schema, 'v', USERS, read=read)
        before = store.snapshot(schema)
        with pytest.raises(SnapshotConflict, match=USERS):
            put_in_doubt(other, schema, 'w', PAGES, read=read)
        assert store.snapshot(schema) == before

    def test_own_doubt_is_no_conflict(self, store: TagStore, schema: str) -> None:
        """A writer whose doubt is sent again is not in its own way."""
        read = store.snapshot(schema).stamp([USERS])
        put_in_doubt(store, schema, 'w', USERS, read=read)
        assert put_in_doubt(store, schema, 'w', USERS, read=read) == {USERS}

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
        other.publish(schema, 'w', [USERS])
        assert not self.fill(store, schema, stamp)
        assert self.fill(store, schema, {PAGES: stamp[PAGES]})

    def test_fill_beside_a_doubt(self, store: TagStore, other: TagStore, schema: str) -> None:
        """No value is stored with a tag in doubt; with other tags it is."""
        stamp = store.snapshot(schema).stamp([USERS, PAGES])
        put_in_doubt(other, schema, 'w', USERS)
        assert not self.fill(store, schema, stamp)
        assert not self.fill(store, schema, {USERS: stamp[USERS]})
        assert self.fill(store, schema, {PAGES: stamp[PAGES]})
        other.end_doubt(schema, 'w')
        assert self.fill(store, schema, stamp)

    def test_fill_leaves_the_epoch(self, store: TagStore, schema: str) -> None:
        """Storing a value that depends on tables is no change of the tenant."""
        snapshot = store.snapshot(schema)
        assert self.fill(store, schema, snapshot.stamp([USERS]))
        assert store.snapshot(schema) is snapshot

    def test_fill_without_registration(self, store: TagStore, schema: str) -> None:
        """A value of a function policy is stored only when all who write can know its tag."""
        before = store.snapshot(schema)
        assert not self.fill(store, schema, before.stamp([USERS, TREE]))
        assert store.snapshot(schema) == before
        store.register(schema, [TREE])
        assert not self.fill(store, schema, before.stamp([USERS, TREE]))
        assert self.fill(store, schema, store.snapshot(schema).stamp([USERS, TREE]))

    def test_register(self, store: TagStore, other: TagStore, schema: str) -> None:
        """The tag of a function policy is told to all who write, by a new epoch, once."""
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
        """Who is about to commit, and could not know the tag, evicts it all the same."""
        put_in_doubt(other, schema, 'w', USERS)
        store.register(schema, [TREE])
        registered = store.snapshot(schema)
        assert registered.in_doubt == {USERS, TREE}
        assert not self.fill(store, schema, registered.stamp([TREE]))
        other.publish(schema, 'w', [USERS])
        after = store.snapshot(schema)
        assert not after.in_doubt
        assert after.version(TREE) != registered.version(TREE)

    # properties that a writer's code does not know

    def test_unknown_properties_are_put_in_doubt(
        self, store: TagStore, other: TagStore, schema: str
    ) -> None:
        """Any change concerns the property tags that the writer can not judge."""
        store.register(schema, [TREE, MENU])
        before = store.snapshot(schema)
        tags = put_in_doubt(other, schema, 'w', USERS, known=[MENU])
        assert tags == {USERS, TREE}
        assert store.snapshot(schema).in_doubt == {USERS, TREE}
        assert not self.fill(store, schema, before.stamp([TREE]))
        other.publish(schema, 'w', tags)
        after = store.snapshot(schema)
        assert after.version(TREE) != before.version(TREE)
        assert after.version(MENU) == before.version(MENU)

    def test_unknown_properties_are_settled(self, store: TagStore, schema: str) -> None:
        """They get new versions with the rest if their writer has died."""
        store.register(schema, [TREE])
        before = store.snapshot(schema)
        put_in_doubt(store, schema, 'w', USERS)
        store.settle(schema, 'w', None)
        assert store.snapshot(schema).version(TREE) != before.version(TREE)

    def test_known_properties_that_changed(self, store: TagStore, schema: str) -> None:
        """A property tag that the writer itself found changed is in doubt, once."""
        store.register(schema, [TREE])
        assert put_in_doubt(store, schema, 'w', USERS, TREE, known=[TREE]) == {USERS, TREE}
        assert put_in_doubt(store, schema, 'v', USERS, TREE) == {USERS, TREE}

    # tenants, renewal, threads

    def test_tenants_are_apart(self, store: TagStore, schema: str, stranger: str) -> None:
        """What happens to a tenant is no other tenant's concern."""
        mine, theirs = store.snapshot(schema), store.snapshot(stranger)
        assert mine.birth != theirs.birth
        assert not self.fill(store, schema, theirs.stamp([USERS]))
        store.register(stranger, [TREE])
        assert put_in_doubt(store, schema, 'w', USERS) == {USERS}
        store.end_doubt(stranger, 'w')
        assert store.snapshot(schema).in_doubt == {USERS}
        between = store.snapshot(stranger)
        store.publish(schema, 'w', [USERS])
        store.renew(schema)
        assert store.snapshot(stranger) == between

    def test_renew_voids_everything(self, store: TagStore, other: TagStore, schema: str) -> None:
        """A new birth: no tag keeps its version, no value with an old stamp is stored."""
        put_in_doubt(store, schema, 'w', USERS)
        store.publish(schema, 'w', [USERS])
        store.register(schema, [TREE])
        before = store.snapshot(schema)
        assert self.fill(store, schema, before.stamp([USERS, TREE]))
        store.renew(schema)
        for after in (store.snapshot(schema), other.snapshot(schema)):
            assert after.birth != before.birth
            assert after.unsettled(before) is None
            for tag in (USERS, PAGES, TREE):
                assert after.version(tag) != before.version(tag)
        assert not self.fill(store, schema, before.stamp([PAGES]))
        assert self.fill(store, schema, store.snapshot(schema).stamp([USERS, TREE]))

    def test_renew_keeps_doubts(self, store: TagStore, schema: str) -> None:
        """Who is about to commit still is: its doubt is not forgotten with the versions."""
        put_in_doubt(store, schema, 'w', USERS, transaction_id='7')
        store.renew(schema)
        after = store.snapshot(schema)
        assert after.in_doubt == {USERS}
        assert after.doubts['w'].transaction_id == '7'
        assert not self.fill(store, schema, after.stamp([USERS]))

    def test_one_version_one_value(self, store: Any, other: Any, schema: str) -> None:
        """With many writers, some of which die, no version ever stands for two values.

        The numbers in `committed` are the database. A writer changes one in doubt; then
        it publishes, or dies and is settled; or it rolls back before the change. Readers
        store what they read with their snapshot's version.
        """
        tags = [f'table:t{number}' for number in range(3)]
        committed = dict.fromkeys(tags, 0)
        filled: dict[tuple[str, str], set[int]] = {}
        lock = threading.Lock()
        numbers = iter(range(1, 1_000_000))

        def write(client: TagStore, seed: int) -> None:
            choose = random.Random(seed)
            for step in range(60):
                tag, writer = choose.choice(tags), f'{seed}-{step}'
                put_in_doubt(client, schema, writer, tag)
                what = choose.choice(['publish', 'die', 'roll back'])
                if what == 'roll back':
                    client.end_doubt(schema, writer)
                    continue
                with lock:
                    committed[tag] = next(numbers)
                if what == 'publish':
                    client.publish(schema, writer, [tag])
                else:
                    client.settle(schema, writer, None)

        def read(client: Any, seed: int) -> None:
            choose = random.Random(seed)
            for _ in range(150):
                tag = choose.choice(tags)
                snapshot = client.snapshot(schema)
                value = committed[tag]
                if self.fill(client, schema, snapshot.stamp([tag])):
                    with lock:
                        filled.setdefault((tag, snapshot.version(tag)), set()).add(value)

        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(write, (store, other)[n % 2], n) for n in range(4)]
            jobs += [pool.submit(read, (store, other)[n % 2], n) for n in range(4)]
            for job in jobs:
                job.result()

        assert filled
        assert [values for values in filled.values() if len(values) > 1] == []
        after = store.snapshot(schema)
        assert after.doubts == {}
        for (tag, version), values in filled.items():
            if after.version(tag) == version:
                assert values == {committed[tag]}
