"""The numbers of several processes on one Redis: sums, bounds, damage, outages and deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onegov_ormcache import OrmCache
from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.redis_client.client import Client, connect
from onegov_ormcache.statistics import collector, fields, redis, stores
from onegov_ormcache.statistics.collector import Statistics
from onegov_ormcache.statistics.fields import DROPPED, field_of
from onegov_ormcache.statistics.redis import RedisStatistics
from onegov_ormcache.statistics.results import LastRun
from onegov_ormcache.statistics.stores import HOUR, MemoryStatistics
from tests.core.plain_objects import Names
from tests.support.forking import FORKS, in_child
from tests.support.models import Base
from tests.support.outside import until
from tests.support.servers import RedisServer

USERS = 'app.App.users'
HITS = field_of('property', 'process_hits', USERS)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator[Client]:
    """A client of the test's own server."""
    with closing(connect(own_redis.url, 10)) as made:
        yield made


def of_process(client: Client, interval: float | None = None) -> Statistics:
    """Return the numbers as a process makes them."""
    return Statistics(RedisStatistics(client, 'town'), interval)


def hits(statistics: Statistics, tenant: str = 'main') -> int:
    """Return the hits of the property that the tests count."""
    counted = statistics.of(tenant).properties.get(USERS)
    return counted.process_hits if counted is not None else 0


def test_numbers_of_processes_are_added(client: Client) -> None:
    """Whoever asks gets the sums of all processes that have sent their numbers."""
    first, second = of_process(client), of_process(client)
    first.take('main', {HITS: 2})
    first.ran('main', USERS, LastRun(at=1.0, seconds=0.5, size=10, tags=('table:users',)))
    second.take('main', {HITS: 3})
    second.take('other', {HITS: 1})
    assert hits(first) == 2
    second.flush()
    assert hits(first) == hits(second) == 5
    assert first.tenants() == ['main', 'other']
    assert first.history('main')[-1].properties[USERS].hits == 5
    last = second.of('main').properties[USERS].last_run
    assert last == LastRun(at=1.0, seconds=0.5, size=10, tags=('table:users',))


def test_sums_over_all_tenants(client: Client, own_redis: RedisServer) -> None:
    """There are sums over all tenants, which go on counting when the numbers of a tenant are gone,
    and count nothing twice if it could not be sent at once."""
    process = of_process(client)
    process.take('main', {HITS: 2})
    process.take('other', {HITS: 3})
    process.committed('other', ['table:users'], ['table:users'])
    assert process.total().properties[USERS].process_hits == 5
    assert process.total().tags['table:users'].changes == process.total().commits == 1
    assert process.tenants() == ['main', 'other']
    client.delete('{town:main}:statistics')
    assert hits(process) == 0
    own_redis.kill()
    for _ in range(3):
        process.take('main', {HITS: 1})
        with pytest.raises(StoreUnreachable):
            process.flush()
    own_redis.start()
    until(lambda: tried(process), 30)
    assert hits(process) == 3
    assert process.total().properties[USERS].process_hits == 3  # the server has forgotten the rest


def tried(process: Statistics) -> bool:
    """Return whether a process could send its numbers."""
    try:
        process.flush()
    except StoreUnreachable:
        return False
    return True


def test_other_namespaces_have_other_numbers(client: Client) -> None:
    """Applications that share a Redis do not see one another's numbers."""
    of_process(client).take('main', {HITS: 2})
    other = Statistics(RedisStatistics(client, 'village'), None)
    assert hits(other) == 0
    assert other.tenants() == []


def test_numbers_on_a_set_of_servers(set_url: str) -> None:
    """Sentinels and clusters keep the numbers of all tenants."""
    with closing(connect(set_url, 10)) as client:
        process = of_process(client)
        for tenant in ('main', 'other', 'third'):
            process.take(tenant, {HITS: 2})
        assert [hits(process, tenant) for tenant in process.tenants()] == [2, 2, 2]


def test_all_keys_expire(client: Client) -> None:
    """Each key goes, if nobody adds numbers; those of an hour go a day later."""
    process = of_process(client)
    process.take('main', {HITS: 2})
    process.committed('main', ['table:users'], ['table:users'])
    process.flush()
    lifetimes = {bytes(key).decode(): client.ttl(key) for key in client.scan_iter('{town:main}*')}
    assert len(lifetimes) == 3
    assert all(0 < left <= stores.LIFETIME for left in lifetimes.values())
    assert min(lifetimes.values()) <= HOUR * (stores.HOURS + 1)


@pytest.mark.parametrize('command', ['zadd', 'evalsha', 'hgetall'])
def test_a_server_that_refuses_to_keep_numbers(
    client: Client, own_redis: RedisServer, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that does not permit what the numbers need is not lost for the cache; the log
    says so once."""
    process = of_process(client)
    process.take('main', {HITS: 2})
    with closing(own_redis.client()) as plain:
        plain.execute_command('ACL', 'SETUSER', 'default', f'-{command}')
        for _ in range(2):
            with pytest.raises(StoreUnreachable, match=f"{command}' command"):
                process.of('main')
        assert not client.breaker.is_open
        plain.execute_command('ACL', 'SETUSER', 'default', f'+{command}')
    assert hits(process) >= 2
    assert caplog.text.count('does not let us keep statistics') == 1


def test_numbers_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant with more names than there is room for loses numbers, and this is counted."""
    monkeypatch.setattr(redis, 'MAX_FIELDS', 10)
    process = of_process(client)
    for number in range(40):
        process.take('main', {field_of('property', 'misses', f'p{number}'): 1})
    found = process.of('main')
    assert len(found.properties) <= 10
    assert found.dropped == 40 - len(found.properties)
    assert client.hlen('{town:main}:statistics') <= 11
    for _ in range(stores.COMMITS + 5):
        process.committed('main', ['table:users'], ())
    assert len(process.of('main').last_commits) == stores.COMMITS


@pytest.mark.parametrize('is_shared', [True, False])
def test_tags_leave_room_for_properties(
    client: Client, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    """A tenant whose tags are more than there is room for has the numbers of all properties, also
    of those that came later."""
    for module in (redis, fields):
        monkeypatch.setattr(module, 'MAX_FIELDS', 20)
    process = of_process(client) if is_shared else Statistics(MemoryStatistics(), None)
    for number in range(40):
        process.committed('main', [f'rows:books.id/{number}'], ())
    process.flush()
    process.take('main', {HITS: 2})
    process.ran('main', USERS, LastRun(at=1.0, seconds=0.5, size=10))
    found = process.of('main')
    assert found.properties[USERS].process_hits == 2
    assert found.properties[USERS].last_run is not None
    assert 0 < len(found.tags) <= 10 < found.commits == 40


def test_numbers_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for the numbers of a process, before and after they are sent."""
    monkeypatch.setattr(fields, 'MAX_FIELDS', 10)
    for module in (collector, stores):
        monkeypatch.setattr(module, 'MAX_TENANTS', 2)
    process = Statistics(MemoryStatistics(), None)
    counts = {field_of('property', 'misses', f'p{number}'): 1.0 for number in range(40)}
    process.take('main', counts)
    assert len(process.of('main').properties) == 10
    assert process.of('main').dropped == 30
    for number in range(4):
        process.take(f't{number}', {HITS: 1})
    assert len(process.tenants()) <= 2


def test_hours_of_a_process_that_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that keeps its numbers in memory counts each one for its own hour, also if they
    are read hours later."""
    process, now = Statistics(MemoryStatistics(), None), time.time() // HOUR * HOUR + HOUR
    for number in range(3):
        monkeypatch.setattr(time, 'time', lambda at=now + number * HOUR: at)
        process.take('main', {HITS: number + 1})
    monkeypatch.setattr(time, 'time', lambda: now + 4 * HOUR)
    slots = process.history('main')
    assert [slot.properties[USERS].hits for slot in slots] == [1, 2, 3]
    assert [slot.start - now for slot in slots] == [0, HOUR, 2 * HOUR]
    assert hits(process) == 6


def test_hours_of_a_clock_that_was_set_back() -> None:
    """Hours that lie in the future, or long ago, are dropped."""
    store = MemoryStatistics()
    process = Statistics(store, None)
    process.take('main', {HITS: 1})
    process.flush()
    slots = store._tenants['main'].slots
    (hour,) = slots
    slots[hour + 5], slots[hour - 30] = {HITS: 1}, {HITS: 1}
    process.take('main', {HITS: 1})
    assert [slot.start for slot in process.history('main')] == [hour * HOUR]


def test_much_is_sent_in_several_commands(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers beyond what one command takes are sent by others, each once."""
    monkeypatch.setattr(redis, 'BATCH', 3)
    process = of_process(client)
    process.take('main', {field_of('property', 'misses', f'p{n}'): 1.0 for n in range(10)})
    process.committed('main', ['table:users'], ())
    found = process.of('main')
    assert [counted.misses for counted in found.properties.values()] == [1] * 10
    assert (found.commits, len(found.last_commits)) == (1, 1)


@pytest.mark.parametrize('damage', ['another type', 'no numbers', 'not finite', 'no texts'])
def test_damaged_numbers(client: Client, damage: str) -> None:
    """Keys that another program has changed are replaced or left out, and nothing fails."""
    process = of_process(client)
    process.take('main', {HITS: 2})
    process.flush()
    key = '{town:main}:statistics'
    if damage == 'another type':
        for each in list(client.scan_iter(f'{key}*')):
            client.delete(each)
            client.set(each, 'text')
        client.set(f'{key}:commits', 'text')
        assert process.history('main') == []
    elif damage == 'no numbers':
        client.hset(key, mapping={HITS: 'many', field_of('tenant', 'commits'): b'\xff'})
    elif damage == 'not finite':
        run = field_of('property', 'last_run', USERS)
        misses = field_of('property', 'misses', USERS)
        endless = '[Infinity, 0, Infinity, [], ""]'
        client.hset(key, mapping={HITS: 'nan', misses: 'inf', run: endless})
        client.lpush(f'{key}:commits', '[NaN, [], false]')
        assert process.of('main').properties[USERS].misses == 0
        assert process.of('main').last_commits == ()
    else:
        run = field_of('property', 'last_run', USERS)
        client.hset(key, mapping={run: '{', b'\xff\x1f': 'x', 'property': 'y'})
        client.lpush(f'{key}:commits', 'x')
    process.take('main', {HITS: 3})
    process.committed('main', ['table:users'], ())
    assert hits(process) == (5 if damage == 'no texts' else 3)
    assert process.of('main').properties[USERS].last_run is None
    assert process.of('main').last_commits[0].tags == ('table:users',)


def test_store_that_is_away(
    own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers of the time of an outage are sent afterwards; meanwhile nobody waits for them."""
    with OrmCache(
        base=Base, dsn=f'sqlite:///{tmp_path}', redis_url=own_redis.url, redis_timeout=0.2,
        statistics_interval=None,
    ) as cache:  # fmt: skip
        with cache.scope('main'):
            Names(cache).users
        own_redis.kill()
        with cache.scope('main'):
            Names(cache).users
        with pytest.raises(StoreUnreachable):
            cache.statistics.flush()
        cache.statistics.send()
        assert not [record for record in caplog.records if record.exc_info]
        own_redis.start()
        until(lambda: not cache.tags.is_lost, 30)
        counted = cache.statistics.of('main').properties['tests.core.plain_objects.Names.users']
    assert counted.misses == 2
    assert counted.bypasses['outage'] == 1


@pytest.mark.parametrize('fork', FORKS)
def test_children_do_not_send_what_the_parent_has_counted(client: Client, fork: str) -> None:
    """What was counted before a fork is sent once, by the parent."""
    process = of_process(client)
    process.take('main', {HITS: 2})

    def work() -> int:
        process.take('main', {HITS: 1})
        return hits(process)

    assert in_child(FORKS[fork], work) == 1
    assert hits(process) == 3


def test_a_thread_sends(client: Client) -> None:
    """Numbers arrive without a call, until they are closed; closing sends the rest."""
    process, other = of_process(client, 0.05), of_process(client)
    process.take('main', {HITS: 2})
    until(lambda: hits(other) == 2, 30)
    process.take('main', {HITS: 2})
    process.close()
    assert hits(other) == 4


@pytest.mark.parametrize(('end', 'counted'), [('exit', 1), ('kill', 0)])
def test_process_that_ends(
    own_redis: RedisServer, client: Client, tmp_path: Path, end: str, counted: int
) -> None:
    """A process that ends sends the rest; one that is killed loses it, and nothing of others."""
    of_process(client).take('main', {HITS: 1})
    program = (
        'import sys\n'
        'from onegov_ormcache import OrmCache\n'
        'from tests.core.plain_objects import Names\n'
        'from tests.support.models import Base\n'
        'cache = OrmCache(base=Base, dsn=sys.argv[1], redis_url=sys.argv[2], namespace="town")\n'
        'with cache.scope("main"):\n'
        '    Names(cache).users\n'
        'print("read", flush=True)\n'
        'sys.stdin.read()\n'
    )
    arguments = [sys.executable, '-c', program, f'sqlite:///{tmp_path}', own_redis.url]
    pipes: dict[str, Any] = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen(arguments, cwd=ROOT, env={**os.environ}, **pipes) as ended:
        assert ended.stdout is not None
        assert ended.stdout.readline() == b'read\n'
        if end == 'kill':
            ended.send_signal(signal.SIGKILL)
        ended.communicate(timeout=60)
    found = of_process(client).of('main').properties
    assert sum(each.misses for each in found.values()) == counted


def test_names_may_contain_anything() -> None:
    """A tag's or property's name is read as it was written."""
    process = Statistics(MemoryStatistics(), None)
    name = 'table:a\x1fb"\n\udcff'
    process.committed('main', [name], [])
    assert process.of('main').tags[name].changes == 1
    assert fields.field_of('tenant', 'dropped') == DROPPED
