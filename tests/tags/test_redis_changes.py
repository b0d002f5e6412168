"""A reader of a large tenant is sent what has changed, and no script looks at all tags.

What it has then is what it would have if all were sent, whatever becomes of the log.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from onegov_ormcache.errors import SnapshotConflict
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.snapshot import Snapshot, new_token
from tests.support.counting import bytes_sent
from tests.support.servers import RedisServer
from tests.tags.conformance import MENU, PAGES, TREE, USERS, put_in_doubt
from tests.tags.redis_store import (
    KEY,
    LOG,
    NAMESPACE,
    VALUE,
    commit,
    fill,
    settle_down,
    with_a_log,
)
from tests.tags.test_redis_scripts import without_functions

ROWS = [f'rows:books.id:int/{number}' for number in range(10_000)]

#: The entries that a log has at most.
MOST_ENTRIES = 128

#: What a value of the test's key begins with, and the bounds of its bytes; see claim().
EXPECTED = b'head', 1000, 1000

#: The commands that cost as much as a hash has fields.
OF_ALL_FIELDS = {'hkeys', 'hgetall', 'hvals', 'hscan'}


def published(store: RedisTagStore) -> Snapshot:
    """A tenant with 10,000 tags of rows, and two properties."""
    store.register('main', [TREE, MENU])
    for first in range(0, len(ROWS), 1000):
        commit(store, *ROWS[first : first + 1000])
    return store.snapshot('main')


def fresh(store: RedisTagStore) -> Snapshot:
    """The snapshot of a process that knows none yet, to which all is sent."""
    return RedisTagStore(store.client, NAMESPACE, quarantined=False).snapshot('main')


def same(one: Snapshot, other: Snapshot) -> bool:
    return one == other and (one.in_doubt, one.property_tags, len(one.versions)) == (
        other.in_doubt, other.property_tags, len(other.versions),
    )  # fmt: skip


def calls(client: redis.Redis) -> Counter[str]:
    """Return how often each command was executed, in scripts too."""
    stats = client.info('commandstats')
    return Counter({name.removeprefix('cmdstat_'): stats[name]['calls'] for name in stats})


class Replies:
    """Counts the replies to snapshots by what was sent; made for one store."""

    def __init__(self, store: RedisTagStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counted: Counter[str] = Counter()
        original = store.scripts.run

        def run(name: str, *arguments: Any) -> Any:
            reply = original(name, *arguments)
            if name == 'snapshot':
                self.counted[self._kind(reply)] += 1
            return reply

        monkeypatch.setattr(store.scripts, 'run', run)

    @staticmethod
    def _kind(reply: Any) -> str:
        if reply is None:
            return 'nothing'
        return 'changes' if len(reply) == 3 else 'all'


@pytest.fixture
def reader(client: redis.Redis) -> RedisTagStore:
    """Another process."""
    return RedisTagStore(client, NAMESPACE, quarantined=False)  # type: ignore[arg-type]


# costs


def test_bytes_of_a_snapshot(
    store: RedisTagStore, reader: RedisTagStore, client: redis.Redis
) -> None:
    """With 10,000 tags, the snapshot after a commit of three takes a few hundred bytes; so it
    does after 20 commits of the same tags."""
    published(store)
    whole = bytes_sent(client, lambda: reader.snapshot('main'))
    assert whole > 300_000
    for commits in (1, 20):
        for _ in range(commits):
            commit(store, *ROWS[:3])
        assert bytes_sent(client, lambda: reader.snapshot('main')) < 400
        assert same(reader.snapshot('main'), fresh(store))
    assert bytes_sent(client, lambda: reader.snapshot('main')) < 20, 'nothing has changed'


def test_no_script_looks_at_all_tags(
    store: RedisTagStore, reader: RedisTagStore, client: redis.Redis
) -> None:
    """With 10,000 tags, all that runs for a snapshot, a commit or a value executes as few
    commands as with none, and none of them is one of all fields."""
    published(store)
    stamp = reader.snapshot('main').stamp([USERS, TREE, *ROWS[:3]])
    before = calls(client)
    put_in_doubt(store, 'main', 'v', PAGES, known=[TREE, MENU], read=stamp)
    assert fill(store, stamp)
    assert not fill(store, reader.snapshot('main').stamp([PAGES]))
    store.settle('main', 'v', None)
    put_in_doubt(store, 'main', 'v', PAGES)
    store.end_doubt('main', 'v')
    commit(store, *ROWS[:3])
    store.register('main', ['property:another'])
    lock = VALUE + ':lock', new_token()
    store.client.set(VALUE, b'head')
    ((has_lock, _),) = store.claim_many('main', [(VALUE, lock)], 10, {}, EXPECTED)
    assert has_lock is True
    store.unclaim_many('main', [lock])
    assert reader.snapshot('main').property_tags == {TREE, MENU, 'property:another'}
    store.snapshot('main')
    counted = calls(client) - before
    assert not counted.keys() & OF_ALL_FIELDS
    assert counted.total() < 300


@pytest.mark.parametrize('what', ['an epoch', 'a field', 'a damaged list'])
def test_index_that_does_not_hold(
    store: RedisTagStore, reader: RedisTagStore, client: redis.Redis, what: str
) -> None:
    """After a program that knows no index has written, the lists are made anew, once."""
    published(store)
    commit(store, USERS)
    if what == 'a field':
        client.hset(KEY, 'v:property:older', 'version')
    elif what == 'an epoch':
        client.hset(KEY, mapping={'v:property:older': 'version', 'epoch': 'older'})
        client.hdel(KEY, f'v:{USERS}')
    else:
        client.hset(KEY, 'properties', b'\xff')
    before = calls(client)
    in_doubt = put_in_doubt(store, 'main', 'w', USERS)
    assert in_doubt >= {USERS, TREE, MENU}
    assert ('property:older' in in_doubt) == (what != 'a damaged list')
    put_in_doubt(store, 'main', 'v', PAGES)
    assert not fill(store, reader.snapshot('main').stamp([PAGES]))
    store.publish('main', 'w', [])
    store.publish('main', 'v', [])
    assert fill(store, store.snapshot('main').stamp([PAGES]))
    counted = calls(client) - before
    assert 1 <= counted['hkeys'] <= 2
    assert same(store.snapshot('main'), fresh(store))


def test_small_tenants_have_no_log(store: RedisTagStore, client: redis.Redis) -> None:
    """A tenant with few tags has neither index nor log, so it takes no more room."""
    store.register('main', [TREE])
    for number in range(20):
        commit(store, f'table:t{number}')
    assert not client.exists(LOG)
    assert not client.hexists(KEY, 'index')
    commit(store, *ROWS[:20])
    commit(store, USERS)
    assert client.exists(LOG)
    assert client.hexists(KEY, 'index')
    store.forget('main', 0)
    assert not client.hexists(KEY, 'index')
    assert same(store.snapshot('main'), fresh(store))


def test_log_is_bounded(store: RedisTagStore, reader: RedisTagStore, client: redis.Redis) -> None:
    """A log keeps the latest changes, and goes if there are no more; a reader that was away for
    longer is sent all."""
    published(store)
    reader.snapshot('main')
    for _ in range(MOST_ENTRIES):
        commit(store, *ROWS[:3])
    assert client.llen(LOG) == MOST_ENTRIES
    assert int(client.memory_usage(LOG, samples=0)) < 100_000  # type: ignore[arg-type]
    assert 0 < int(client.ttl(LOG)) <= 3600
    assert bytes_sent(client, lambda: reader.snapshot('main')) > 300_000
    for _ in range(MOST_ENTRIES // 2):
        commit(store, *ROWS[:3])
    assert bytes_sent(client, lambda: reader.snapshot('main')) < 400
    commit(store, *ROWS)  # too much for an entry
    commit(store, USERS)
    assert bytes_sent(client, lambda: reader.snapshot('main')) > 300_000
    assert same(reader.snapshot('main'), fresh(store))


def test_server_without_functions(own_redis: RedisServer) -> None:
    """Scripts that are sent one by one do the same."""
    with without_functions(own_redis) as limited:
        store = RedisTagStore(limited, NAMESPACE, quarantined=False)  # type: ignore[arg-type]
        before = published(store)
        assert not store.scripts.has_functions
        commit(store, *ROWS[:3])
        counted = calls(limited)
        after = store.snapshot('main')
        assert not (calls(limited) - counted).keys() & OF_ALL_FIELDS
        assert after.unsettled(before) == {*ROWS[:3], TREE, MENU}
        assert same(after, fresh(store))


# whatever happens, changes give the snapshot that all would give

Step = Callable[[], object]


class World:
    """A tenant with many tags, and whatever may happen to it, drawn at random."""

    def __init__(self, store: RedisTagStore, seed: int) -> None:
        self.store = store
        self.client: Any = store.client
        self.choose = random.Random(seed)
        self.writers: list[str] = []
        self.commits: list[Step] = [
            self.doubt, self.doubt, self.publish, self.publish, self.publish_unannounced,
            self.end, self.settle, self.register, self.unread,
        ]  # fmt: skip
        self.rare: list[Step] = [self.renew, self.forget, self.quarantine, self.bear]
        self.damages: list[Step] = [
            self.lose_log, self.trim_log, self.cut_log, self.damage_entry, self.swap_entries,
            self.repeat_entry, self.forge_entry, self.replace_log, self.write_in_old_form,
            self.write_in_old_form, self.lose_index, self.damage_list,
        ]  # fmt: skip

    def tags(self) -> list[str]:
        names = [f'table:t{number}' for number in range(40)]
        names += [f'property:p{number}' for number in range(10)]
        return self.choose.sample(names, self.choose.randrange(4))

    def doubt(self) -> None:
        writer = self.choose.choice([*self.writers, new_token()])
        tags = self.tags()
        before = fresh(self.store)
        own = before.doubts[writer].tags if writer in before.doubts else set()
        found = put_in_doubt(self.store, 'main', writer, *tags, known=tags[:1])
        assert found == {*tags, *own, *before.property_tags.difference(tags[:1])}
        self.writers.append(writer)

    def unread(self) -> None:
        """Writers and fills are refused for what has changed or is in doubt."""
        before = fresh(self.store)
        for tag in self.tags():
            stamp = before.stamp([tag])
            is_ours = tag not in before.in_doubt
            is_registered = not tag.startswith('property:') or tag in before.property_tags
            may_fill = is_ours and is_registered and before.quarantine is None
            assert fill(self.store, stamp) == may_fill
            if is_ours:
                put_in_doubt(self.store, 'main', 'other', read=stamp)
                self.store.end_doubt('main', 'other')
            else:
                with pytest.raises(SnapshotConflict) as raised:
                    put_in_doubt(self.store, 'main', 'other', read=stamp)
                assert raised.value.tag == tag

    def writer(self) -> str:
        return self.writers.pop() if self.writers else 'nobody'

    def publish(self) -> None:
        self.store.publish('main', self.writer(), self.tags())

    def publish_unannounced(self) -> None:
        self.store.publish('main', 'outside', self.tags())

    def end(self) -> None:
        self.store.end_doubt('main', self.writer())

    def settle(self) -> None:
        self.store.settle('main', self.writer(), self.choose.choice([None, 0, 60]))

    def register(self) -> None:
        self.store.register('main', [tag for tag in self.tags() if tag.startswith('property:')])

    def renew(self) -> None:
        self.store.renew('main')

    def forget(self) -> None:
        self.store.forget('main', 0)

    def quarantine(self) -> None:
        for field, value in (('quarantine', ''), ('epoch', new_token())):
            self.client.hset(KEY, field, value)
        present = fresh(self.store)
        self.store.quarantine('main', present.birth, ['7'])
        if self.choose.random() < 0.8:
            self.store.quarantine('main', present.birth, [])

    def bear(self) -> None:
        if self.choose.random() < 0.5:
            self.client.delete(KEY)
        else:
            self.client.hset(KEY, 'run_id', 'another')

    def lose_log(self) -> None:
        self.client.delete(LOG)

    def trim_log(self) -> None:
        self.write_entries(self.entries()[self.choose.randrange(-4, 4) :])

    def cut_log(self) -> None:
        self.write_entries(self.entries()[:-1])

    def entries(self) -> list[bytes]:
        return self.client.lrange(LOG, 0, -1) if self.client.type(LOG) == b'list' else []

    def write_entries(self, entries: list[bytes]) -> None:
        self.client.delete(LOG)
        if entries:
            self.client.rpush(LOG, *entries)

    def damage_entry(self) -> None:
        if entries := self.entries():
            entry = bytearray(self.choose.choice(entries[-3:]))
            at = self.choose.randrange(len(entry))
            damaged = bytes([*entry[:at], entry[at] ^ 1, *entry[at + 1 :]])
            cut = bytes(entry[:at])
            number = entries.index(bytes(entry))
            entries[number] = self.choose.choice([damaged, cut, b'', b'x' * 50])
            self.write_entries(entries)

    def swap_entries(self) -> None:
        entries = self.entries()
        self.choose.shuffle(entries)
        self.write_entries(entries)

    def repeat_entry(self) -> None:
        if entries := self.entries():
            self.write_entries([*entries, *self.choose.choices(entries, k=3)])

    def forge_entry(self) -> None:
        """Add an entry that is sealed, and has no sense."""
        made = "return redis.call('RPUSH', KEYS[1], redis.sha1hex(ARGV[1]) .. ARGV[1])"
        packed = self.choose.choice([
            b'\xc0', b'\x93\x01\x02\x03', b'\x93\xa1a\xa1b\x91\x07', b'\x90', b'\xc1', b'\xdd',
            b'\x93\xa1a\xa1b\x91\xa5epoch', b'\x91' * 100, b'',
        ])  # fmt: skip
        if self.client.type(LOG) in (b'list', b'none'):
            self.client.eval(made, 1, LOG, packed)

    def replace_log(self) -> None:
        self.client.delete(LOG)
        self.client.set(LOG, b'x')

    def write_in_old_form(self) -> None:
        """Commit, or put in doubt, as a release does that knows neither index nor log."""
        token = new_token()
        fields = {f'v:{tag}': token for tag in self.tags()}
        if self.choose.random() < 0.5:
            self.writers.append(token)
            fields[f'd:{token}'] = '{"tags": ["table:t1", "table:t2"], "key": "", "at": 1}'
        if self.choose.random() < 0.5:
            self.client.hdel(KEY, f'd:{self.writer()}')
        self.client.hset(KEY, mapping={**fields, 'epoch': token})

    def lose_index(self) -> None:
        self.client.hdel(KEY, self.choose.choice(['index', 'writers', 'properties']))

    def damage_list(self) -> None:
        name = self.choose.choice(['index', 'writers', 'properties'])
        if self.client.hexists(KEY, name):
            self.client.hset(KEY, name, self.choose.choice([b'', b'[]', b'{"a": 7}', b'x' * 50]))


def compared(world: World, steps: int, choices: list[Step], reader: RedisTagStore) -> None:
    """Do steps at random; compare what the reader has with what a new process has."""
    for _ in range(steps):
        for _ in range(world.choose.randrange(1, 5)):
            world.choose.choice(choices)()
        present = reader.snapshot('main')
        assert same(present, fresh(reader))
        for tag in world.tags():
            assert present.version(tag) == present.versions.get(tag, present.birth)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('log', ['always', 'large tenants'])
def test_changes_give_what_all_would_give(
    client: Any, seed: int, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any commits, a reader has what a new process has, and is mostly sent changes."""
    if log == 'always':
        with_a_log(monkeypatch)
    reader = RedisTagStore(client, NAMESPACE, quarantined=False)
    world = World(RedisTagStore(client, NAMESPACE, quarantined=False), seed)
    commit(reader, *[f'table:t{number}' for number in range(40)])
    replies = Replies(reader, monkeypatch)
    compared(world, 100, world.commits, reader)
    assert replies.counted['changes'] > 10 * replies.counted['all']


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('log', ['always', 'large tenants'])
def test_changes_with_a_log_that_is_damaged(
    client: Any, seed: int, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is with births, with a log that is lost, shortened, damaged or replaced at any moment,
    with a damaged index, and beside a release that knows neither."""
    if log == 'always':
        with_a_log(monkeypatch)
    reader = RedisTagStore(client, NAMESPACE, quarantined=False)
    world = World(RedisTagStore(client, NAMESPACE, quarantined=False), 100 + seed)
    commit(reader, *[f'table:t{number}' for number in range(40)])
    replies = Replies(reader, monkeypatch)
    steps = [*world.commits * 5, *world.rare, *world.damages]
    compared(world, 120, steps, reader)
    assert replies.counted['all'] > 10
    assert log != 'always' or replies.counted['changes'] > 10


def test_changes_that_can_not_be_read(
    store: RedisTagStore, reader: RedisTagStore, client: redis.Redis, caplog: Any
) -> None:
    """Damage that comes with changes gives the tenant a new birth, as any damage does."""
    before = published(store)
    reader.snapshot('main')
    commit(store, USERS)
    client.hset(KEY, f'v:{USERS}', b'\xff')
    after = reader.snapshot('main')
    assert after.birth != before.birth
    assert after.versions == {}
    assert caplog.text.count('was damaged') == 1
    assert same(store.snapshot('main'), after)


def test_quarantine_of_a_large_tenant(client: Any) -> None:
    """The end of a quarantine is sent as a whole, because each version is a new one."""
    store = RedisTagStore(client, NAMESPACE, quarantined=True)
    reader = RedisTagStore(client, NAMESPACE, quarantined=True)
    commit(store, *ROWS[:100])
    before = reader.snapshot('main')
    assert before.quarantine == ()
    after = settle_down(store)
    assert after.quarantine is None
    assert same(reader.snapshot('main'), after)
    assert reader.snapshot('main').unsettled(before) is None
