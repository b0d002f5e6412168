"""Several values of a function at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update

from onegov_ormcache import orm_cached
from onegov_ormcache.errors import ArgumentError, CircularPropertyError, PropertyError
from tests.core.functions.directory import App, users
from tests.support.applications import Applications, committed, value
from tests.support.counting import RedisCommands, Runs
from tests.support.models import User

#: Seconds after which a test that is wrong ends.
LONG = 60


@pytest.mark.parametrize(
    ('items', 'ids'),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([3, 1, 3, 2, 1], [3, 1, 2]),
        (range(3, 0, -1), [3, 2, 1]),
        ({5: 'x'}, [5]),
        ([], []),
    ],
)
def test_items(app: App, tenant: str, runs: Runs, items: Iterable[int], ids: list[int]) -> None:
    """Any iterable of items will do; the values come by item, in the order of the items, and a
    repeated item is one."""
    for _ in range(2):
        with app.request_scope(tenant):
            for _ in range(2):
                found = app.user.many(iter(items))
                assert list(found) == ids
                assert found == users(*ids)
    assert runs.count('user') == len(ids)


def test_generators_that_change_something(app: App, tenant: str) -> None:
    """The items are taken first: what a generator changes in the session, the values show."""
    with app.request_scope(tenant) as scope:
        assert app.user.many([1, 2]) == users(1, 2)

        def items() -> Iterable[int]:
            yield 1
            user: Any = scope.session().get(User, 1)
            user.name = 'renamed'

        assert app.user.many(items()) == {1: ['renamed']}


@pytest.mark.parametrize('items', [5, None, object(), [[1]], [{}], [float('nan')], [(1, [])]])
def test_items_that_are_none(app: App, tenant: str, runs: Runs, items: Any) -> None:
    """What is no iterable, or no argument, is refused before anything runs."""
    with app.request_scope(tenant):
        with pytest.raises(ArgumentError, match='in_words'):
            app.in_words.many(items)
        with pytest.raises(ArgumentError, match='in_words'):
            app.prefetch('in_words', args=items if items is not None else 5)
    assert not runs.total


def test_items_of_several_arguments(app: App, tenant: str, runs: Runs) -> None:
    """A tuple has the arguments by position. Items that are one call have one run."""
    with app.request_scope(tenant):
        found = app.in_words.many([1, (1,), (1, 'de'), (1, 'fr'), (2, 'de')])
        assert found == {
            1: ['user 1', 'de', False],
            (1,): ['user 1', 'de', False],
            (1, 'de'): ['user 1', 'de', False],
            (1, 'fr'): ['user 1', 'fr', False],
            (2, 'de'): ['user 2', 'de', False],
        }
        assert app.in_words(2) == ['user 2', 'de', False]
    assert runs.count('in_words') == 3


def test_own_changes(app: App, tenant: str, runs: Runs) -> None:
    """A transaction sees its own changes, flushed or not; after a rollback nothing is left."""
    with app.request_scope(tenant) as scope:
        assert app.user.many([1, 2, 3]) == users(1, 2, 3)
        user: Any = scope.session().get(User, 2)
        user.name = 'renamed'
        assert app.user.many([1, 2, 3]) == {**users(1, 2, 3), 2: ['renamed']}
        # the others keep their values
        assert runs.count('user') == 4
        scope.session().execute(update(User).values(name=User.name + '!'))
        assert app.user.many([1, 2]) == {1: ['user 1!'], 2: ['renamed!']}
        scope.session().rollback()
        assert app.user.many([1, 2, 3]) == users(1, 2, 3)
    assert value(app, tenant, lambda app: app.user.many([3, 2])) == users(3, 2)


def test_round_trips(
    server_app: App, on_servers: Applications, tenant: str, runs: Runs
) -> None:
    """Cold values cost the same commands as one, and warm ones one command for all."""
    app = server_app
    with committed(app, tenant) as scope:
        scope.session().add_all(User(id=id, name=f'user {id}') for id in range(10, 51))
    elsewhere, url = on_servers.again(type(app)), on_servers.backend.settings['redis_url']
    counts = []
    for ids in [1], range(2, 51):
        with RedisCommands(url) as seen:
            value(app, tenant, lambda app, ids=ids: app.user.many(ids))
        counts.append(seen.count)
    assert counts[0] == counts[1]
    value(elsewhere, tenant, lambda app: app.in_words(1))  # so that it knows the tenant
    for each, commands in (app, 1), (elsewhere, 2), (elsewhere, 1):
        with RedisCommands(url) as seen:
            found = value(each, tenant, lambda app: app.user.many(range(1, 51)))
        assert found == users(*range(1, 51))
        assert seen.count == commands
    assert runs.count('user') == 50


def test_herd_of_threads(app: App, tenant: str, runs: Runs) -> None:
    """Threads that ask for overlapping items at once compute each value once."""
    barrier = threading.Barrier(4, timeout=LONG)

    def read(first: int) -> Any:
        barrier.wait()
        return value(app, tenant, lambda app: app.user.many(range(first, first + 4)))

    with ThreadPoolExecutor(4) as pool:
        for first, found in enumerate(pool.map(read, range(1, 5), timeout=LONG), 1):
            assert found == users(*range(first, first + 4))
    assert runs.count('user') == 7


def test_herd_of_processes(
    server_app: App, on_servers: Applications, tenant: str, runs: Runs, monkeypatch: Any
) -> None:
    """Of two processes that compute overlapping items, each waits for what the other computes,
    after it has computed its own."""
    app = server_app
    elsewhere = on_servers.again(type(app))
    begun, both = threading.Event(), threading.Barrier(2, timeout=LONG)

    def meanwhile(id: int) -> None:
        if id == 1:
            begun.set()
        if id in (1, 7):
            both.wait()  # now both have claimed what the other does not compute

    monkeypatch.setattr(type(app), 'meanwhile', meanwhile)

    def read(each: App, ids: Sequence[int]) -> Any:
        return value(each, tenant, lambda app: app.user.many(ids))

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(read, app, range(1, 7))
        assert begun.wait(LONG)
        other = pool.submit(read, elsewhere, range(4, 10))
        assert one.result(LONG) == users(*range(1, 7))
        assert other.result(LONG) == users(*range(4, 10))
    assert runs.count('user') == 9


@pytest.mark.parametrize('leave', [0, 1, 2, 3])
def test_at_once(app: App, tenant: str, runs: Runs, monkeypatch: Any, leave: int) -> None:
    """`many` computes all that is missing in one call; what it leaves out, the creator computes;
    what it gives beside is dropped."""
    asked: list[Any] = []

    def many(self: Any, ids: Sequence[int]) -> Mapping[Any, Any]:
        asked.append(list(ids))
        query = select(User.id, User.name).where(User.id.in_(ids[leave:]))
        return {**{id: [name] for id, name in self.session().execute(query)}, 'more': 1, 77: 1}

    monkeypatch.setattr(type(app), 'many', many, raising=False)
    for _ in range(2):
        with app.request_scope(tenant):
            assert app.at_once.many([3, 1, 2]) == users(3, 1, 2)
            assert list(app.at_once.many([1, 3, 2, 3])) == [1, 3, 2]
    assert asked == [[3, 1, 2]]
    assert runs.count('at_once') == leave
    with committed(app, tenant) as scope:
        user: Any = scope.session().get(User, 2)
        user.name = 'renamed'
    with app.request_scope(tenant):
        assert app.at_once.many([1, 2, 3])[2] == ['renamed']
        assert app.at_once(77) == [None]
    assert asked == [[3, 1, 2], [2]]


@pytest.mark.parametrize('result', [None, [1], 'abc', 5, {1}])
def test_at_once_without_mapping(
    app: App, tenant: str, monkeypatch: Any, result: Any
) -> None:
    """What `many` gives must be a mapping; the error names the property."""
    monkeypatch.setattr(type(app), 'many', lambda self, ids: result, raising=False)
    with app.request_scope(tenant):
        with pytest.raises(PropertyError, match=r'at_once .*many gave .*expected a mapping'):
            app.at_once.many([1, 2])
        assert app.at_once(1) == ['user 1']


@pytest.mark.parametrize('many', ['x', 5, dict, lambda app: {}, lambda app, a, b: {}])
def test_many_that_is_none(many: Any) -> None:
    """A function that can't compute several values is refused where it is declared."""
    with pytest.raises(PropertyError, match=r'user_of .*expected a function of the instance'):

        @orm_cached(policy=User, many=many)
        def user_of(app: Any, id: int) -> int:
            return id


def test_many_of_a_property() -> None:
    """A creator without arguments has no several values."""
    with pytest.raises(PropertyError, match='many is for creators that take arguments'):

        @orm_cached(policy=User, many=lambda app, items: {})
        def users_of(app: Any) -> int:
            return 1


def test_recursive_creators(app: App, tenant: str, runs: Runs) -> None:
    """A creator may read others of the items, before or after their turn; each runs once."""
    for ids in [8, 4, 9], [1, 2, 4, 8]:
        with app.request_scope(tenant):
            assert app.page_path.many(ids) == {
                id: [id >> by for by in (3, 2, 1, 0) if id >> by] for id in ids
            }
    assert runs.count('page_path') == 5
    with app.request_scope(tenant):
        with pytest.raises(CircularPropertyError, match='round -> round'):
            app.round.many([0, 1])
        with pytest.raises(CircularPropertyError, match='round -> round'):
            app.round(2)


def test_many_within_a_creator(app: App, tenant: str, runs: Runs) -> None:
    """A creator that reads several values depends on each of them."""
    for _ in range(2):
        assert value(app, tenant, lambda app: app.everybody) == [*users(1, 2, 3).values()]
    with committed(app, tenant) as scope:
        user: Any = scope.session().get(User, 2)
        user.name = 'renamed'
    assert value(app, tenant, lambda app: app.everybody)[1] == ['renamed']
    assert runs.count('user') == 4
    assert runs.count('everybody') == 2
