"""The promise, on a framework that keeps its own sessions and transactions, in two processes."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from threading import Event
from typing import Any

import pytest

from tests.functional.framework_towns import Process, Towns, served
from tests.support.servers import drop_schemas

#: The ways in which the framework can be configured.
KINDS: dict[str, dict[str, Any]] = {
    'one phase': {},
    'two phases': {'twophase': True},
    'kept sessions': {'keep_session': True},
    'read committed': {'isolation_level': 'READ COMMITTED'},
}

TOWNS = ('springfield', 'shelbyville')

#: Changes, each with the properties that show it. They are made one after the other.
CHANGES: dict[str, tuple[Callable[[Process, Callable[[str], str]], object], set[str]]] = {
    'insert': (lambda p, at: p.post(at('users'), name='Dan', role='admin'), {'users', 'admins'}),
    'update': (lambda p, at: p.post(at('users/2'), name='Bill'), {'users'}),
    'membership': (lambda p, at: p.post(at('users/3/groups'), group='Works'), {'users'}),
    'role': (lambda p, at: p.post(at('users/2'), role='admin'), {'admins'}),
    'delete': (lambda p, at: p.delete(at('users/1')), {'users', 'admins', 'homepage'}),
    'text': (lambda p, at: p.post(at('text'), end='!'), {'users', 'admins'}),
    'state': (lambda p, at: p.post(at('tickets/1'), state='closed'), {'ticket_counts'}),
    'bulk': (lambda p, at: p.post(at('bulk')), {'ticket_counts', 'homepage'}),
    'page': (lambda p, at: p.post(at('pages'), title='News'), {'pages_tree', 'by_parent'}),
    'move': (lambda p, at: p.post(at('pages/3/move'), parent=5), {'pages_tree', 'by_parent'}),
    'cascade': (lambda p, at: p.delete(at('pages/1')), {'pages_tree', 'by_parent', 'homepage'}),
    'document': (lambda p, at: p.post(at('documents'), title='Map', year=1999), {'by_year'}),
    'letter': (lambda p, at: p.post(at('documents/3'), addressee='us'), {'by_year'}),
    'json': (lambda p, at: p.post(at('documents/2'), pages='7'), {'by_year'}),
    'amount': (lambda p, at: p.post(at('amounts'), label='x', value='0.10'), {'amounts'}),
    'rename': (lambda p, at: p.post(at('rename'), name='Rex & Co'), {'org', 'footer', 'homepage'}),
}


@pytest.fixture(params=KINDS)
def towns(
    request: pytest.FixtureRequest, postgres_dsn: str, redis_url: str
) -> Iterator[Towns]:
    """Two towns, on the framework in each of its kinds."""
    with served(postgres_dsn, redis_url, *TOWNS, **KINDS[request.param]) as towns:
        yield towns
    drop_schemas(postgres_dsn, towns.namespace)


def values(process: Process, path: str, **headers: str) -> Any:
    """What a process shows of the properties of the application."""
    shown = process.get(path, **headers)
    del shown['visible_pages']
    return shown


def test_every_change_is_seen_by_all(towns: Towns) -> None:
    """After each change both processes show what the database has, and another town nothing."""
    path = towns.path('springfield')
    other = towns.truth('shelbyville')
    shown = towns.truth('springfield')
    for process in towns.processes:
        assert values(process, path) == shown
        assert values(process, towns.path('shelbyville')) == other
    for name, (change, affected) in CHANGES.items():
        for process in towns.processes:
            values(process, path)  # all is cached everywhere
        change(towns.processes[0], lambda rest: towns.path('springfield', rest))
        before, shown = shown, towns.truth('springfield')
        assert affected <= {key for key in shown if shown[key] != before[key]}, name
        for process in (*towns.processes, *towns.processes):
            assert values(process, path) == shown, name
        assert values(towns.processes[1], towns.path('shelbyville')) == other, name
        towns.processes.reverse()


def test_nothing_is_left_of_a_request_that_fails(towns: Towns) -> None:
    """What a request has changed and shown itself before it failed is seen by nobody."""
    path, before = towns.path('springfield'), towns.truth('springfield')
    for process in towns.processes:
        with pytest.raises(urllib.error.HTTPError) as caught:
            process.post(towns.path('springfield', 'fail'))
        assert caught.value.code == 500
        for each in towns.processes:
            assert values(each, path) == before


def test_own_change_is_seen_within_its_request(towns: Towns) -> None:
    """A view that changes a ticket shows the counts after its change."""
    first, second = towns.processes
    counts = first.get(towns.path('springfield'))['ticket_counts']
    shown = second.post(towns.path('springfield', 'tickets/1'), state='closed')
    assert shown['closed'] == counts['closed'] + 1
    assert first.get(towns.path('springfield'))['ticket_counts'] == shown


def test_values_by_role(towns: Towns) -> None:
    """Each role has values of its own, in both processes."""
    path = towns.path('springfield', 'values/visible_pages')
    for process in towns.processes:
        public = process.get(path)
        assert 'Springfield Minutes' not in public
        assert 'Springfield Minutes' in process.get(path, **{'X-Role': 'member'})
        assert process.get(path) == public
    towns.processes[0].post(towns.path('springfield', 'pages'), title='News')
    for process in towns.processes:
        assert 'News' in process.get(path)
        assert 'News' in process.get(path, **{'X-Role': 'member'})


def test_keys_that_a_view_deletes_by_hand(towns: Towns) -> None:
    """A view may iterate the keys and delete from its own caches, while others read."""
    path, keys = towns.path('springfield'), towns.path('springfield', 'keys')
    (process, other), before = towns.processes, towns.truth('springfield')
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(values, process, path) for _ in range(8)]
        deleted = [pool.submit(process.get, keys) for _ in range(4)]
        assert all(read.result() == before for read in reads)
        assert all(isinstance(done.result(), list) for done in deleted)
    other.post(towns.path('springfield', 'users/1'), name='Eve')
    assert process.get(keys)
    assert process.get(path)['users'][0]['name'] == 'Eve'


def test_no_read_is_stale_under_load(towns: Towns) -> None:
    """While both processes write and read, each read shows all that was acknowledged before."""
    path, users = towns.path('springfield', 'values/users'), towns.path('springfield', 'users')
    acknowledged: list[str] = []
    refused: list[int] = []
    done = Event()
    stale: list[tuple[set[str], set[str]]] = []
    reads = 0

    def write(process: Process, number: int) -> None:
        try:
            process.post(users, name=f'user {number}', role='member')
        except urllib.error.HTTPError:
            refused.append(number)  # both attempts met other writers
        else:
            acknowledged.append(f'user {number}')

    def read(process: Process) -> int:
        count = 0
        while not done.is_set():
            known = set(acknowledged)
            shown = {user['name'] for user in process.get(path)}
            count += 1
            if not known <= shown:
                stale.append((known, shown))
        return count

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read, process) for process in (*towns.processes, *towns.processes)]
        processes = cycle(towns.processes)
        list(pool.map(lambda n: write(next(processes), n), range(60)))
        done.set()
        reads = sum(reader.result() for reader in readers)
    assert not stale
    assert len(acknowledged) + len(refused) == 60
    assert len(acknowledged) > 20
    assert reads > 20
    shown = {user['name'] for user in towns.truth('springfield')['users']}
    assert set(acknowledged) <= shown
