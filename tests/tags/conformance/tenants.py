"""Tenants do not affect one another, a renewal voids all versions of one tenant, and no version
stands for two values.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from onegov_ormcache.tags.snapshot import TagStore
from tests.tags.conformance.store_under_test import (
    PAGES,
    TREE,
    USERS,
    StoreUnderTest,
    put_in_doubt,
)


class Tenants(StoreUnderTest):
    """Tenants, their renewal, and many threads."""

    def test_tenants_are_apart(self, store: TagStore, schema: str, stranger: str) -> None:
        """No operation on one tenant affects another tenant."""
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
        """After a renewal no tag has its old version, and no value with an old stamp is stored."""
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
        """A renewal keeps the doubts of writers that are about to commit."""
        put_in_doubt(store, schema, 'w', USERS, transaction_key='7')
        store.renew(schema)
        after = store.snapshot(schema)
        assert after.in_doubt == {USERS}
        assert after.doubts['w'].transaction_key == '7'
        assert not self.fill(store, schema, after.stamp([USERS]))

    def test_one_version_one_value(self, store: Any, other: Any, schema: str) -> None:
        """With many writers, some of which die, no version ever stands for two values.

        `committed` stands for the database: one number per tag. A writer puts a tag in doubt.
        Then it rolls back; or it changes the number, and publishes, or dies and is settled.
        Readers store the number that they read, with the version of their snapshot.
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
