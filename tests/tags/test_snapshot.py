"""The snapshots that come after changes."""

from __future__ import annotations

from onegov_ormcache.tags.snapshot import Doubt, Snapshot


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
