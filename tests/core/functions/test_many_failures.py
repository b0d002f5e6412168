"""Several values of a function at once, where something fails, changes, or gets lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import ProgrammingError

from onegov_ormcache import steps
from onegov_ormcache.steps import Step
from tests.core.functions.conftest import started
from tests.core.functions.directory import App, users
from tests.support.applications import Applications, committed, value
from tests.support.counting import Runs
from tests.support.models import User
from tests.support.outages import end_pauses
from tests.support.outside import until
from tests.support.servers import RedisServer
from tests.support.wires import Wire

#: Seconds after which a test that is wrong ends.
LONG = 60


@pytest.fixture
def taken() -> Iterator[list[Step]]:
    """The steps that were taken, in all threads."""
    seen: list[Step] = []
    steps.listener = seen.append
    try:
        yield seen
    finally:
        steps.listener = None


def each_run(app: App, monkeypatch: Any, do: Callable[[Any], object]) -> None:
    """Call a function with the argument of each run of `user`."""
    monkeypatch.setattr(type(app), 'meanwhile', staticmethod(do), raising=False)


def fail_for(*ids: int) -> Callable[[int], None]:
    """Return a function that fails for these ids."""

    def fail(id: int) -> None:
        if id in ids:
            raise LookupError(id)

    return fail


def test_a_creator_that_fails(
    app: App, applications: Applications, tenant: str, runs: Runs, monkeypatch: Any,
    taken: list[Step],
) -> None:  # fmt: skip
    """The error is the creator's. What was computed before is stored, nobody waits for the rest,
    and nothing of it stays in the way."""
    each_run(app, monkeypatch, fail_for(3))
    with app.request_scope(tenant):
        for _ in range(2):
            with pytest.raises(LookupError):
                app.user.many([1, 2, 3, 4])
    assert runs.count('user') == 4
    each_run(app, monkeypatch, fail_for())
    elsewhere = applications.elsewhere(app)
    assert value(elsewhere, tenant, lambda app: app.user.many([1, 2, 3, 4])) == users(1, 2, 3, 4)
    assert runs.count('user') == 6
    assert Step.WAIT not in taken


def test_many_that_fails(
    app: App, applications: Applications, tenant: str, runs: Runs, monkeypatch: Any,
    taken: list[Step],
) -> None:  # fmt: skip
    """An error of `many` is that of the call, and leaves no claim."""

    def fail(self: Any, ids: Sequence[int]) -> Any:
        self.session().execute(update(User).values(name=User.name + '!'))
        raise LookupError

    monkeypatch.setattr(type(app), 'many', fail, raising=False)
    with app.request_scope(tenant), pytest.raises(LookupError):
        app.at_once.many([1, 2])
    monkeypatch.setattr(type(app), 'many', lambda self, ids: {}, raising=False)
    elsewhere = applications.elsewhere(app)
    assert value(elsewhere, tenant, lambda app: app.at_once.many([1, 2])) == users(1, 2)
    assert Step.WAIT not in taken


def test_a_failed_transaction(server_app: App, tenant: str, monkeypatch: Any) -> None:
    """An error of the database in one creator is that of the call, and leaves the session as one
    outside of a creator would."""
    app = server_app

    def fail(id: int) -> None:
        if id == 2:
            app.session().connection().exec_driver_sql('SELECT nothing')

    each_run(app, monkeypatch, fail)
    with app.request_scope(tenant) as scope:
        with pytest.raises(ProgrammingError):
            app.user.many([1, 2, 3])
        scope.session().rollback()
        each_run(app, monkeypatch, fail_for())
        assert app.user.many([1, 2, 3]) == users(1, 2, 3)


def test_calls_of_one_value(
    app: App, applications: Applications, tenant: str, runs: Runs, taken: list[Step]
) -> None:
    """Items that are one call do not wait for one another, whichever tier has the value."""
    items = [1, (1,), (1, 'de')]
    for each in (app, app, applications.elsewhere(app)):
        for _ in range(2):
            found = value(each, tenant, lambda app: app.in_words.many(items))
            assert found == {item: ['user 1', 'de', False] for item in items}
    assert runs.count('in_words') == 1
    assert Step.WAIT not in taken


def test_creators_that_change_something(
    app: App, applications: Applications, tenant: str, monkeypatch: Any
) -> None:
    """After a creator has changed the rows of an item that came before, the transaction sees
    its change; after the rollback nobody does."""
    value(app, tenant, lambda app: app.user(1))

    def rename(id: int) -> None:
        if id == 3:
            app.session().execute(update(User).where(User.id < 3).values(name=User.name + '!'))

    each_run(app, monkeypatch, rename)
    for _ in range(2):
        with app.request_scope(tenant):
            app.user.many([1, 2, 3, 4])
            assert app.user.many([1, 2]) == {1: ['user 1!'], 2: ['user 2!']}
            assert app.user(1) == ['user 1!']
    each_run(app, monkeypatch, fail_for())
    elsewhere = applications.elsewhere(app)
    assert value(elsewhere, tenant, lambda app: app.user.many([1, 2, 3])) == users(1, 2, 3)


def test_creators_that_end_the_transaction(
    app: App, applications: Applications, tenant: str, runs: Runs, monkeypatch: Any
) -> None:
    """A creator may commit or roll back. Its own value is not stored, and the other values are
    right in this transaction and in others."""
    scopes: list[Any] = []

    def end(id: int) -> None:
        if id == 2:
            session = scopes[-1].session()
            session.execute(update(User).where(User.id == 4).values(name=f'x{len(scopes)}'))
            session.commit()
        if id == 3:
            scopes[-1].session().rollback()

    each_run(app, monkeypatch, end)
    for number in 1, 2:
        with app.request_scope(tenant) as scope:
            scopes.append(scope)
            expected = {**users(1, 2, 3), 4: [f'x{number}']}
            assert app.user.many([1, 2, 3, 4]) == expected
            assert app.user.many([4, 1]) == {4: [f'x{number}'], **users(1)}
    each_run(app, monkeypatch, fail_for())
    elsewhere = applications.elsewhere(app)
    assert value(elsewhere, tenant, lambda app: app.user(4)) == ['x2']


def test_redis_is_lost_in_the_middle(
    on_servers: Applications, own_redis: RedisServer, app_class: type[App], tenant: str,
    runs: Runs, monkeypatch: Any,
) -> None:  # fmt: skip
    """A store that is lost while values are computed costs nobody a value; when it is back, they
    are cached."""
    with Wire(own_redis.url) as wire:
        app = on_servers.start(app_class, redis_url=wire.url)
        with committed(app, tenant) as scope:
            scope.session().add_all(User(id=id, name=f'user {id}') for id in range(1, 5))
        assert value(app, tenant, lambda app: app.user.many([1])) == users(1)
        each_run(app, monkeypatch, lambda id: wire.cut() if id == 3 else None)
        with app.request_scope(tenant):
            assert app.user.many([1, 2, 3, 4]) == users(1, 2, 3, 4)
            assert app.user.many([4, 3, 2, 1]) == users(4, 3, 2, 1)
        # lost before the look
        assert value(app, tenant, lambda app: app.user.many([1, 2])) == users(1, 2)
        each_run(app, monkeypatch, fail_for())
        wire.mend()
        end_pauses()
        for _ in range(3):
            assert value(app, tenant, lambda app: app.user.many([1, 2, 3])) == users(1, 2, 3)
    before = runs.count('user')
    assert before < 15


def test_a_failing_neighbour(
    app: App, tenant: str, runs: Runs, monkeypatch: Any
) -> None:
    """Who waits for an item of another caller whose creator fails, computes it itself then."""
    begun, waits = threading.Event(), threading.Event()
    failing = threading.local()

    def fail(id: int) -> None:
        if id == 2 and getattr(failing, 'is_set', False):
            begun.set()
            assert waits.wait(LONG)
            raise LookupError(id)

    each_run(app, monkeypatch, fail)

    def fails() -> None:
        failing.is_set = True
        with pytest.raises(LookupError):
            value(app, tenant, lambda app: app.user.many([1, 2]))

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(fails)
        assert begun.wait(LONG)
        steps.listener = lambda step: waits.set() if step is Step.WAIT else None
        try:
            other = pool.submit(value, app, tenant, lambda app: app.user.many([3, 2, 1]))
            assert other.result(LONG) == users(3, 2, 1)
            one.result(LONG)
        finally:
            steps.listener = None
    assert runs.count('user') == 4


def test_waiting_for_several_values(
    app_class: type[App], on_servers: Applications, tenant: str, runs: Runs, monkeypatch: Any,
    taken: list[Step],
) -> None:  # fmt: skip
    """While a process waits for one value, its other threads need not wait for that one to get
    another: it may depend on what they compute."""
    app = started(on_servers, app_class, tenant, lock_timeout=LONG)
    second, third = on_servers.again(type(app)), on_servers.again(type(app))
    begun = {id: threading.Event() for id in (2, 3, 9)}
    are_waiting, is_computed = threading.Event(), threading.Event()

    def meanwhile(id: int) -> None:
        begun[id].set()
        if id == 2:
            assert are_waiting.wait(LONG)
            second.user(9)
        elif id == 3:
            assert is_computed.wait(LONG)
        else:
            app.user(3)

    each_run(app, monkeypatch, meanwhile)
    with ThreadPoolExecutor(4) as pool:

        def read(each: App, id: int) -> Any:
            found = pool.submit(value, each, tenant, lambda app: app.user(id))
            assert begun[id].wait(LONG)
            return found

        others = [read(second, 2), read(third, 3)]
        several = pool.submit(value, app, tenant, lambda app: app.user.many([2, 3]))
        until(lambda: taken.count(Step.WAIT) == 1, LONG)
        others.append(read(app, 9))
        until(lambda: taken.count(Step.WAIT) == 2, LONG)
        are_waiting.set()
        until(lambda: taken.count(Step.WAIT) == 3, LONG)
        is_computed.set()
        # with a cycle, the first one would go on after the timeout of locks
        assert several.result(LONG / 2) == users(2, 3)
        assert [each.result(LONG) for each in others] == [['user 2'], ['user 3'], ['user 9']]
    assert runs.count('user') == 3
