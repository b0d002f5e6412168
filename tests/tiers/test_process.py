"""The process tier is bounded in bytes, and each tenant sees its own part."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from onegov_ormcache.tiers.process import OVERHEAD, ProcessTier, Slot, StoredValue
from onegov_ormcache.tiers.serializer import Encoded


def slot(size: int = 100, *, immutable: bool = False, value: object = None) -> Slot:
    return Slot(StoredValue({'table:users': 'v1'}, Encoded(b'x' * size, immutable), None), value)


def test_gives_what_was_put() -> None:
    """A value is given as it was put, again and again, until it is removed."""
    tier = ProcessTier(10_000)
    first = slot()
    assert tier.get('main|users') is None
    tier.put('main|users', first)
    assert tier.get('main|users') is first
    assert tier.get('main|users') is first
    tier.remove('main|users')
    tier.remove('main|users')
    assert tier.get('main|users') is None
    assert tier.bytes_held == 0


def test_newer_values_replace_older_ones() -> None:
    """One key has one value, and its bytes count once."""
    tier = ProcessTier(10_000)
    tier.put('key', slot(5000))
    tier.put('key', newer := slot(100))
    assert tier.get('key') is newer
    assert tier.bytes_held == OVERHEAD + 100
    assert tier.held() == ['key']


def test_immutable_values_count_for_more() -> None:
    """A value that is kept beside its bytes counts as memory, too."""
    tier = ProcessTier(100_000)
    tier.put('mutable', slot(1000))
    assert tier.bytes_held == OVERHEAD + 1000
    tier.put('immutable', slot(1000, value='x' * 1000))
    assert tier.bytes_held == 2 * OVERHEAD + 5000


def test_is_bounded() -> None:
    """However much is put in, no more bytes are held than were allowed."""
    tier = ProcessTier(10 * (OVERHEAD + 100))
    for number in range(100):
        tier.put(f'key{number}', slot())
        assert tier.bytes_held <= 10 * (OVERHEAD + 100)
    assert tier.held() == [f'key{number}' for number in range(90, 100)]


def test_small_values_are_bounded_too() -> None:
    """A value without bytes counts with the memory of its bookkeeping."""
    tier = ProcessTier(10 * OVERHEAD)
    for number in range(100):
        tier.put(f'key{number}', slot(0))
    assert len(tier.held()) == 10


def test_least_recently_used_goes_first() -> None:
    """The least recently used value is removed first; a value that was just read stays."""
    tier = ProcessTier(3 * (OVERHEAD + 100))
    for key in 'abc':
        tier.put(key, slot())
    assert tier.get('a')
    tier.put('d', slot())
    assert sorted(tier.held()) == ['a', 'c', 'd']


@pytest.mark.parametrize('size', [0, 1, OVERHEAD])
def test_too_large_values(size: int) -> None:
    """A value that is larger than the tier is not kept, and throws nothing out."""
    tier = ProcessTier(size)
    tier.put('key', slot())
    assert (tier.held(), tier.bytes_held) == ([], 0)


def test_too_large_value_ends_the_older_one() -> None:
    """A value that is too large to be kept removes the older value of its key, and no other."""
    tier = ProcessTier(2 * (OVERHEAD + 100))
    tier.put('key', slot())
    tier.put('other', slot())
    tier.put('key', slot(10_000))
    assert tier.held() == ['other']


def test_tenants_have_their_own_view() -> None:
    """A tenant's view is a mapping of its own keys; another's are not in it."""
    tier = ProcessTier(100_000)
    main, other = tier.of('main|'), tier.of('main2|')
    main['users'] = mine = slot()
    other['users'] = theirs = slot()
    main['pages'] = slot()
    assert (main['users'], other['users']) == (mine, theirs)
    assert (set(main), len(main)) == ({'users', 'pages'}, 2)
    assert (set(other), len(other)) == ({'users'}, 1)
    assert sorted(tier.held()) == ['main2|users', 'main|pages', 'main|users']
    del main['users']
    assert 'users' not in main
    assert main.get('users') is None
    assert 'users' in other
    with pytest.raises(KeyError):
        main['users']
    main.clear()
    assert (list(main), list(other)) == ([], ['users'])


def test_many_threads() -> None:
    """Threads that put, get and remove at once neither fail nor break the bound."""
    tier = ProcessTier(5 * (OVERHEAD + 100))

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(500):
            key = f'key{choose.randrange(10)}'
            what = choose.choice([tier.remove, tier.get, None])
            if what is None:
                tier.put(key, slot(choose.randrange(200), value=key))
            elif (found := what(key)) is not None:
                assert found.value == key
            assert tier.bytes_held <= 5 * (OVERHEAD + 100)
            list(tier.of('key'))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    for key in tier.held():
        tier.remove(key)
    assert tier.bytes_held == 0
