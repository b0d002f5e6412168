"""Versions with changes laid over them are the same as a mapping that was changed."""

from __future__ import annotations

import random

import pytest

from onegov_ormcache.tags.overlays import MERGED_PART, SMALL, Overlay, differing, with_changes


@pytest.mark.parametrize('size', [0, 10, SMALL, SMALL + 1, 1000])
def test_is_like_a_dictionary(size: int) -> None:
    """However often a mapping is changed, it has what a dictionary has; earlier ones stay."""
    choose = random.Random(size)
    expected = {f'k{number}': 'first' for number in range(size)}
    present, earlier = with_changes({}, expected), []
    for step in range(300):
        names = [f'k{choose.randrange(size + step + 1)}' for _ in range(choose.randrange(5))]
        changes = dict.fromkeys(names, str(step))
        earlier.append((present, dict(expected)))
        expected |= changes
        present = with_changes(present, changes)
        assert len(present) == len(expected)
        before, known = earlier[choose.randrange(len(earlier))]
        changed = {key for key in expected if known.get(key) != expected[key]}
        assert differing(present, before) >= changed
    for mapping, wanted in (*earlier, (present, expected)):
        assert dict(mapping) == wanted
        assert mapping == wanted
        assert all(mapping[key] == mapping.get(key) == wanted[key] for key in wanted)
        assert mapping.keys() == wanted.keys()
        assert 'other' not in mapping
        assert mapping.get('other') is None
        assert mapping.get('other', 'x') == 'x'
        with pytest.raises(KeyError):
            mapping['other']


def test_what_a_change_copies() -> None:
    """Of a large mapping, a change copies earlier changes alone, and the whole now and then."""
    present = with_changes({}, {f'k{number}': 'x' for number in range(10_000)})
    copies = 0
    for number in range(10_000):
        before, present = present, with_changes(present, {f'k{number}': 'y'})
        if not isinstance(present, Overlay):
            copies += 1
        else:
            assert len(present.changes) <= 10_000 // MERGED_PART
            base = before.base if isinstance(before, Overlay) else before
            assert present.base is base
            assert len(differing(present, before)) == len(present.changes)
    assert copies <= MERGED_PART


def test_small_mappings_are_dictionaries() -> None:
    """Reads of a tenant with few tags take as long as those of a dictionary."""
    assert type(with_changes({'a': 'b'}, {'c': 'd'})) is dict
