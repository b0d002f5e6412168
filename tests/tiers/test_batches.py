"""Several values are claimed, stored and left in one command, each judged by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from time import monotonic

import pytest
import redis

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tiers import shared
from onegov_ormcache.tiers.batches import BATCH, BATCH_BYTES, ToFill, batches
from onegov_ormcache.tiers.claims import Claim, RedisClaim
from onegov_ormcache.tiers.locks import RENEWER
from onegov_ormcache.tiers.process import StoredValue
from onegov_ormcache.tiers.serializer import Encoded
from onegov_ormcache.tiers.shared import Fill
from tests.support.counting import RedisCommands
from tests.support.outside import until
from tests.support.servers import RedisServer
from tests.tags.conformance import PAGES, TREE, USERS, put_in_doubt
from tests.tiers.processes import Process, on

NAMES = ('a', 'b', 'c')

#: The states of a claim.
NOBODY, HELD, TAKEN = (False, False), (True, False), (False, True)


def lock_of(claim: Claim) -> str:
    assert isinstance(claim, RedisClaim)
    return claim.lock[0]


def states(claims: Sequence[Claim]) -> list[tuple[bool, bool]]:
    return [(claim.is_held, claim.is_taken) for claim in claims]


def states_of(process: Process, names: Sequence[str]) -> dict[str, object]:
    """Look for values in one command; return for each the claim's state, and the bytes."""
    claims = [process.claim(name) for name in names]
    found = process.tier.look_many(claims)
    after = states(claims)
    process.tier.leave_many(claims)
    return {
        name: (state, None if stored is None else stored.encoded.data)
        for name, state, stored in zip(names, after, found, strict=True)
    }


def scripts_of(seen: RedisCommands) -> list[str]:
    """The scripts that were run, without those by which locks are renewed."""
    assert {command[0] for command in seen.commands} <= {'FCALL'}
    names = [command[1].split('_')[1] for command in seen.commands]
    return [name for name in names if name != 'extend']


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Each test leaves its claims: others would go on to be renewed."""
    yield
    assert not [lock for lock in RENEWER._held if isinstance(lock, RedisClaim)]


def test_cold_values(either: Process) -> None:
    """Cold values are claimed, stored and found again."""
    claims = [either.claim(name) for name in NAMES]
    assert either.tier.look_many(claims) == [None] * 3
    assert states(claims) == [HELD] * 3
    fills = [
        Fill(name, either.value(name.encode()), None, claim)
        for name, claim in zip(NAMES, claims, strict=True)
    ]
    assert either.tier.fill_many('main', fills) == [True] * 3
    either.tier.leave_many(claims)
    again = [either.claim(name) for name in reversed(NAMES)]
    assert [found.encoded.data for found in either.tier.look_many(again)] == [b'c', b'b', b'a']
    either.tier.leave_many(again)
    assert all(either.tier.claim('main', name, {}, {}).enter() for name in NAMES)


def test_no_values(either: Process) -> None:
    """A batch may be empty."""
    assert either.tier.look_many([]) == []
    assert either.tier.fill_many('main', []) == []
    either.tier.leave_many([])


def test_claims_that_are_left(either: Process) -> None:
    """Claims that are left without values let others compute."""
    claims = [either.claim(name) for name in NAMES]
    either.tier.look_many(claims)
    either.tier.leave_many(claims)
    assert states(claims) == [NOBODY] * 3
    again = [either.claim(name) for name in NAMES]
    assert either.tier.look_many(again) == [None] * 3
    assert states(again) == [HELD] * 3
    either.tier.leave_many(again)


def test_each_fill_is_judged_by_itself(either: Process) -> None:
    """Of several values, those whose stamps hold are stored, and all locks are given back."""
    older = either.stamp(USERS)
    put_in_doubt(either.tags, 'main', 'w', USERS)
    either.tags.publish('main', 'w', [USERS])
    put_in_doubt(either.tags, 'main', 'w2', PAGES)
    present = either.stamp(USERS)
    expected: dict[str, tuple[dict[str, str], bool]] = {
        'holds': (present, True),
        'old': (older, False),
        'guessed': ({USERS: 'guessed'}, False),
        'in doubt': (either.stamp(USERS, PAGES), False),
        'not registered': (either.stamp(TREE), False),
        'holds, too': (present, True),
    }
    claims = [either.claim(name) for name in expected]
    either.tier.look_many(claims)
    fills = [
        Fill(name, StoredValue(stamp, Encoded(name.encode(), True), None), None, claim)
        for (name, (stamp, _)), claim in zip(expected.items(), claims, strict=True)
    ]
    assert either.tier.fill_many('main', fills) == [stored for _, stored in expected.values()]
    either.tier.leave_many(claims)
    for name, (_, is_stored) in expected.items():
        assert (either.get(name) is not None) == is_stored, name
    either.tags.end_doubt('main', 'w2')
    again = [either.claim(name) for name in expected]
    either.tier.look_many(again)
    assert not any(claim.is_taken for claim in again), 'the locks were given back'
    either.tier.leave_many(again)


def test_compared_stamps(either: Process) -> None:
    """The part of a stamp that a fill names is compared, not the whole."""
    stored = StoredValue({**either.stamp(), 'table:elsewhere': 'v'}, Encoded(b'x', True), None)
    fills = [Fill('part', stored, either.stamp()), Fill('whole', stored)]
    assert either.tier.fill_many('main', fills) == [True, False]
    assert either.get('part') == stored


# on Redis


def test_a_mixture(one: Process, other: Process, client: redis.Redis) -> None:
    """In a batch, each value is found, held or taken as if it alone had been looked for; one that
    is damaged is a miss, and no harm to the others."""

    def place(name: str) -> str:
        return str(one.tier._name('main', name))

    assert one.tier.fill('main', 'stale', one.value(b'stale'))
    put_in_doubt(one.tags, 'main', 'w', USERS)
    one.tags.publish('main', 'w', [USERS])
    assert one.tier.fill('main', 'found', one.value(b'found'))
    assert one.tier.fill('main', 'lasting', one.value(b'lasting', monotonic() + 100))
    client.persist(place('lasting'))
    client.copy(place('found'), place('copied'))
    client.set(place('bytes'), b'\x00\xff' * 50)
    client.set(place('empty'), b'')
    client.rpush(place('list'), 'x')
    taken = other.claim('taken')
    taken.look()
    expected: dict[str, object] = {
        'list': (HELD, None),
        'found': (NOBODY, b'found'),
        'stale': (HELD, b'stale'),
        'cold': (HELD, None),
        'bytes': (HELD, None),
        'taken': (TAKEN, None),
        'copied': (HELD, None),
        'lasting': (HELD, None),
        'empty': (HELD, None),
    }
    assert states_of(one, list(expected)) == expected
    for name in expected:
        assert states_of(one, [name]) == {name: expected[name]}
    found = one.tier.get_many('main', list(expected))
    assert found.keys() == {'found', 'stale'}
    taken.leave()


def test_a_damaged_doubt(one: Process, client: redis.Redis) -> None:
    """If a doubt can't be read, no value of the batch is stored: any may be what it was about."""
    stamp = one.stamp()
    client.hset(one.tags._key('main', None), 'd:w', 'nonsense')
    stored = [StoredValue(each, Encoded(b'x', True), None) for each in (stamp, {}, stamp)]
    fills = [Fill(name, each) for name, each in zip(NAMES, stored, strict=True)]
    assert one.tier.fill_many('main', fills) == [False] * 3


def test_counted_commands(own_redis: RedisServer, namespace: str) -> None:
    """Fifty cold values take one command to claim and one to store; fifty claims that are left
    take one, and none if they hold no lock."""
    names = [str(number) for number in range(50)]
    with closing(connect(own_redis.url, 10)) as client:
        process = on(client, namespace)
        value = process.value()
        claims = [process.claim(name) for name in names]
        with RedisCommands(own_redis.url) as seen:
            process.tier.look_many(claims)
            process.tier.leave_many(claims)
        assert scripts_of(seen) == ['claim', 'unclaim']
        assert [key for key in client.scan_iter() if b':lock:' in key] == []
        claims = [process.claim(name) for name in names]
        fills = [
            Fill(name, value, None, claim) for name, claim in zip(names, claims, strict=True)
        ]
        with RedisCommands(own_redis.url) as seen:
            process.tier.look_many(claims)
            assert all(process.tier.fill_many('main', fills))
            process.tier.leave_many(claims)
        assert scripts_of(seen) == ['claim', 'fill']
        assert [key for key in client.scan_iter() if b':lock:' in key] == []
        claims = [process.claim(name) for name in names]
        with RedisCommands(own_redis.url) as seen:
            assert None not in process.tier.look_many(claims)
            process.tier.leave_many(claims)
        assert scripts_of(seen) == ['claim']


def test_all_locks_are_renewed(one: Process, client: redis.Redis) -> None:
    """Each lock of a batch is renewed while its holder computes."""
    claims = [one.claim(name) for name in NAMES]
    one.tier.look_many(claims)
    for claim in claims:
        lock = lock_of(claim)
        last = [int(client.pttl(lock))]

        def is_renewed(lock: str = lock, last: list[int] = last) -> bool:
            last.append(int(client.pttl(lock)))
            return last[-1] > last[-2]

        until(is_renewed, 30)
    one.tier.leave_many(claims)


def to_fill(size: int) -> ToFill:
    return ToFill({}, 'key', b'x' * size, None, None)


def test_batches_have_a_bound() -> None:
    """A batch has so many values and bytes at most, or one value that alone has more."""
    values = [(number, to_fill(1)) for number in range(2 * BATCH + 1)]
    found = list(batches(values))
    assert [len(batch) for batch in found] == [BATCH, BATCH, 1]
    assert [each for batch in found for each in batch] == values
    sizes = [BATCH_BYTES - 10, 10, 10, 5 * BATCH_BYTES, 1, BATCH_BYTES, 1]
    found = list(batches(enumerate(map(to_fill, sizes))))
    numbers = [[number for number, _ in batch] for batch in found]
    assert numbers == [[0, 1], [2], [3], [4], [5], [6]]


def test_several_batches(one: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """More values than one command may have get the same answers, in their order."""
    monkeypatch.setattr(shared, 'BATCH', 2)
    monkeypatch.setattr('onegov_ormcache.tiers.batches.BATCH', 2)
    names = [str(number) for number in range(5)]
    claims = [one.claim(name) for name in names]
    assert one.tier.look_many(claims) == [None] * 5
    fills = [
        Fill(name, one.value(name.encode()), {USERS: 'old'} if name == '2' else None, claim)
        for name, claim in zip(names, claims, strict=True)
    ]
    assert one.tier.fill_many('main', fills) == [True, True, False, True, True]
    assert states(claims) == [NOBODY] * 5
    one.tier.leave_many(claims)
    again = [one.claim(name) for name in names]
    found = one.tier.look_many(again)
    assert [each and each.encoded.data for each in found] == [b'0', b'1', None, b'3', b'4']
    one.tier.leave_many(again)


def test_what_is_not_sent(one: Process, client: redis.Redis) -> None:
    """A value that is too large, or has expired, is not stored; the others are. Its lock is given
    back when its claim is left."""
    sizes = {'small': 10, 'large': shared.MAX_VALUE_SIZE + 1, 'last': 10, 'late': 10}
    claims = [one.claim(name) for name in sizes]
    one.tier.look_many(claims)
    fills = [
        Fill(name, one.value(b'x' * size, 0.0 if name == 'late' else None), None, claim)
        for (name, size), claim in zip(sizes.items(), claims, strict=True)
    ]
    assert one.tier.fill_many('main', fills) == [True, False, True, False]
    assert [claim.is_held for claim in claims] == [False, True, False, True]
    one.tier.leave_many(claims)
    assert not any(client.exists(lock_of(claim)) for claim in claims)


def test_a_full_server(
    own_redis: RedisServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If Redis is full, no value is stored, all locks are given back, and the log says it once."""
    with closing(connect(own_redis.url, 10)) as client:
        process = on(client, namespace)
        claims = [process.claim(name) for name in NAMES]
        process.tier.look_many(claims)
        client.config_set('maxmemory', '1')
        fills = [
            Fill(name, process.value(), None, claim)
            for name, claim in zip(NAMES, claims, strict=True)
        ]
        with RedisCommands(own_redis.url) as seen:
            assert process.tier.fill_many('main', fills) == [False] * 3
        assert scripts_of(seen) == ['unclaim'], 'MONITOR does not show what was refused'
        assert not any(client.exists(lock_of(claim)) for claim in claims)
        assert process.tier.fill_many('main', fills) == [False] * 3
        assert caplog.text.count('maxmemory') == 1
        process.tier.leave_many(claims)


def test_an_unreachable_server(own_redis: RedisServer, namespace: str) -> None:
    """A look and a fill say that the server is gone; to leave raises no error, and lets those go
    on that wait in this process."""
    with closing(connect(own_redis.url, 1)) as client:
        process = on(client, namespace)
        claims, late = [process.claim(name) for name in NAMES], process.claim('late')
        value = process.value()
        process.tier.look_many(claims)
        assert states(claims) == [HELD] * 3
        own_redis.kill()
        with pytest.raises(StoreUnreachable):
            process.tier.look_many([late])
        with pytest.raises(StoreUnreachable):
            process.tier.fill_many('main', [Fill('a', value, None, claims[0])])
        process.tier.leave_many([*claims, late])
        assert states(claims) == [NOBODY] * 3
        entered = [process.tier.claim('main', name, {}, {}) for name in NAMES]
        assert all(claim.enter() for claim in entered)
        process.tier.leave_many(entered)


def test_a_reply_that_was_lost(one: Process) -> None:
    """Who asks again with the same tokens has the locks; nobody else has."""
    expected = b'magic', 1000, 1000
    values = [(one.tier._name('main', name), (f'lock {name}', 'mine')) for name in NAMES]
    for _ in range(2):
        answers = one.tags.claim_many('main', values, 60, {}, expected)
        assert answers == [(True, (None, -1))] * 3
    others = [(key, (name, 'theirs')) for key, (name, _) in values]
    assert one.tags.claim_many('main', others, 60, {}, expected) == [(False, (None, -1))] * 3
    one.tags.unclaim_many('main', [lock for _, lock in others])
    assert one.tags.holder(values[0][1]) == b'mine', 'a lock of somebody else stays'
    one.tags.unclaim_many('main', [lock for _, lock in values])
    assert [one.tags.holder(lock) for _, lock in values] == [None] * 3
