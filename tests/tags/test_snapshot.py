"""Tags of rows, and the snapshots that come after changes."""

from __future__ import annotations

import pytest

from onegov_ormcache.tags.snapshot import Doubt, Snapshot, whole_tag


@pytest.mark.parametrize(
    ('tag', 'whole'),
    [
        ('rows:books.id:int/0', 'property:rows:books.id:int'),
        ('rows:books.id:int/255', 'property:rows:books.id:int'),
        ('rows:a/b.id:str/17', 'property:rows:a/b.id:str'),
        ('rows:books.id:int/256', None),
        ('rows:books.id:int/07', None),
        ('rows:books.id:int/-1', None),
        ('rows:books.id:int/', None),
        ('rows:books.id:int', None),
        ('rows:17', None),
        ('property:rows:books.id:int', None),
        ('table:rows:books/17', None),
    ],
)
def test_whole_tag(tag: str, whole: str | None) -> None:
    """A bucket's tag tells which tag stands for all buckets; no other tag is one of a bucket."""
    assert whole_tag(tag) == whole


def test_after_changes() -> None:
    """A snapshot after changes is what one that was read as a whole would be."""
    doubts = {'w': Doubt(frozenset({'a'}), '7'), 'v': Doubt(frozenset({'b'}), '')}
    before = Snapshot.of(
        'birth', 'one', {'a': '1', 'property:x': '1', 'property:y': '1'}, doubts, ('7',), 'i', 't'
    )
    new = Doubt(frozenset({'c'}), '')
    after = before.after(
        'two', {'a': '2', 'property:z': '2'}, {'u': new}, gone=['property:x'], ended=['w', 'none']
    )
    versions = {'a': '2', 'property:y': '1', 'property:z': '2'}
    doubts = {'v': doubts['v'], 'u': new}
    assert after == Snapshot.of('birth', 'two', versions, doubts, ('7',), 'i', 't')
    assert after.property_tags == {'property:y', 'property:z'}
    assert after.in_doubt == {'b', 'c'}
    assert before.version('a') == '1'
