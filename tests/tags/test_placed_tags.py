"""A tenant's snapshot is merged from its own and those of shared tables."""

from __future__ import annotations

import random

import pytest

from onegov_ormcache.errors import SnapshotConflict
from onegov_ormcache.tags.memory import MemoryTagStore
from onegov_ormcache.tags.overlays import Overlay
from onegov_ormcache.tags.places import PlacedTagStore
from tests.tags.conformance import MENU, TREE, USERS, put_in_doubt

SHARED = 'table:common.users'

ROWS = [f'rows:books.id:int/{number}' for number in range(1000)]


@pytest.fixture
def placed() -> PlacedTagStore:
    """A store for tenants that share a table, and one tenant with many tags."""
    placed = PlacedTagStore(MemoryTagStore(), ['common.users'])
    placed.register('main', [TREE])
    placed.publish('main', 'w', ROWS)
    return placed


def test_conflict_at_another_place(placed: PlacedTagStore) -> None:
    """A conflict tells its tag, wherever the place of the tag is."""
    before = placed.snapshot('main')
    for tag in (SHARED, USERS):
        placed.publish('main', 'w', [tag])
        with pytest.raises(SnapshotConflict) as raised:
            put_in_doubt(placed, 'main', 'v', 'table:own', read=before.stamp([tag]))
        assert raised.value.tag == tag
        assert not placed.snapshot('main').doubts


def test_merged_snapshot(placed: PlacedTagStore) -> None:
    """It has the versions of each tag's place, and copies none of the tenant's many."""
    choose = random.Random(1)
    for _ in range(100):
        before = placed.snapshot('main')
        tags = choose.sample([SHARED, USERS, *ROWS[:10]], 2)
        assert put_in_doubt(placed, 'main', 'w', *tags) >= {*tags, TREE}
        placed.publish('main', 'w', tags)
        merged = placed.snapshot('main')
        assert isinstance(merged.versions, Overlay)
        assert isinstance(before.versions, Overlay)
        assert merged.versions.base is before.versions.base
        assert merged.unsettled(before) == {*tags, TREE}
        own, shared = merged.of_place('main'), merged.of_place('common')
        expected = dict(own.versions) | {SHARED: shared.version(SHARED)}
        assert merged.versions == expected
        assert merged.property_tags == {TREE}
    placed.register('main', [MENU])
    assert placed.snapshot('main').property_tags == {TREE, MENU}
