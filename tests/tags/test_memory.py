"""The tag store of the embedded default does what every tag store must."""

from __future__ import annotations

import pytest

from onegov_ormcache.tags.memory import MemoryTagStore
from onegov_ormcache.tags.snapshot import Stamp, TagStore
from tests.tags.conformance import USERS, TagStoreConformance, put_in_doubt


class TestMemoryTagStore(TagStoreConformance):
    """All that holds for tag stores in general."""

    @pytest.fixture
    def store(self) -> MemoryTagStore:
        """A new store."""
        return MemoryTagStore()

    @pytest.fixture
    def other(self, store: MemoryTagStore) -> MemoryTagStore:
        """The same, as it has no clients."""
        return store

    def fill(self, store: MemoryTagStore, schema: str, stamp: Stamp) -> bool:
        """Store nothing, and tell if it was asked to."""
        stored: list[str] = []
        allowed = store.fill(schema, stamp, lambda: stored.append(schema))
        assert allowed == bool(stored)
        return allowed


def test_is_of_one_process() -> None:
    """Whoever sets an application up must refuse it to a second process."""
    store: TagStore = MemoryTagStore()
    assert store.single_process


def test_lease_goes_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doubt is settled once its lease is over, and not a moment before."""
    now = 1000.0
    monkeypatch.setattr('onegov_ormcache.tags.memory.time.monotonic', lambda: now)
    store = MemoryTagStore()
    put_in_doubt(store, 'main', 'w', USERS)
    now += 9.99
    store.settle('main', 'w', 10)
    assert store.snapshot('main').in_doubt == {USERS}
    now += 0.01
    store.settle('main', 'w', 10)
    assert store.snapshot('main').in_doubt == frozenset()


def test_quarantine_is_none_of_its_concern() -> None:
    """It is lost only together with its writers: there is nobody to wait for."""
    store = MemoryTagStore()
    before = store.snapshot('main')
    store.quarantine('main', before.birth, ['7'])
    assert store.snapshot('main') == before
    assert before.quarantine is None


def test_value_is_stored_before_the_next_change() -> None:
    """While a value is being stored no doubt comes in between, and no error gets lost."""
    store = MemoryTagStore()
    stamp = store.snapshot('main').stamp([USERS])

    def failing() -> None:
        assert store._lock.present.locked()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.fill('main', stamp, failing)
    assert store.fill('main', stamp, lambda: None)
