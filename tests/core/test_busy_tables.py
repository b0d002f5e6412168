"""Readers of a busy table: they wait for a value, for one run at most, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached, steps
from onegov_ormcache.steps import Step
from tests.support.applications import Applications, change, committed, value
from tests.support.models import User
from tests.support.outside import until

#: Seconds after which a test that is wrong ends.
LONG = 60

READERS = 6


class App(OrmCacheApp):
    """Its creators call `meanwhile` after they have read the database."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def names_now(self) -> list[str]:
        names = [row.name for row in self.session().query(User.name).order_by(User.name)]
        type(self).meanwhile()
        return names

    @orm_cached(policy='on-table-change:users')
    def named(self) -> list[str]:
        return self.names_now()

    @orm_cached(policy='auto')
    def auto(self) -> list[str]:
        return self.names_now()


class Crowd:
    """Reads in several threads, each in a scope of its own; counts creator runs and waits."""

    def __init__(self, tenant: str, pool: ThreadPoolExecutor) -> None:
        self._tenant = tenant
        self._pool = pool
        self._lock = threading.Lock()
        self.steps: list[Step] = []

    def take(self, step: Step) -> None:
        with self._lock:
            self.steps.append(step)

    def read(self, app: App, name: str, own: str | None = None) -> Future[list[str]]:
        """Read a property in a thread; with `own`, after an own change that is rolled back."""

        def read() -> list[str]:
            with app.request_scope(self._tenant) as scope:
                if own is not None:
                    scope.session().add(User(name=own))
                return list(getattr(app, name))

        return self._pool.submit(read)

    def count(self, step: Step) -> int:
        with self._lock:
            return self.steps.count(step)


@pytest.fixture
def crowd(tenant: str) -> Iterator[Crowd]:
    """A crowd that has ended with the test."""
    with ThreadPoolExecutor(READERS + 2) as pool:
        made = Crowd(tenant, pool)
        steps.listener = made.take
        try:
            yield made
        finally:
            steps.listener = None


@contextmanager
def each_run(do: Callable[[], object]) -> Iterator[None]:
    """Do something in each run of a creator within the block."""
    before, App.meanwhile = App.meanwhile, staticmethod(do)
    try:
        yield
    finally:
        App.meanwhile = before


def started(applications: Applications, tenant: str) -> App:
    """Return an app whose tenant has one user, and none of whose values is cached."""
    app = applications.start(App)
    change(app, tenant, User(name='old'))
    with app.request_scope(tenant) as scope:
        scope.session().connection()  # the quarantine has ended
    return app


@pytest.mark.parametrize('name', ['named', 'auto'])
def test_waits_for_the_value_of_one_run(
    applications: Applications, tenant: str, crowd: Crowd, name: str
) -> None:
    """One reader of a cold value computes it, and the others wait for its value."""
    app = started(applications, tenant)
    with each_run(lambda: until(lambda: crowd.count(Step.WAIT) == READERS - 1, LONG)):
        reads = [crowd.read(app, name) for _ in range(READERS)]
        assert [read.result(LONG) for read in reads] == [['old']] * READERS
    assert crowd.count(Step.CREATOR) == 1


@pytest.mark.parametrize('name', ['named', 'auto'])
def test_those_who_waited_compute_side_by_side(
    applications: Applications, tenant: str, crowd: Crowd, name: str
) -> None:
    """If the run for which they waited could not be stored, all who waited compute at once."""
    app = started(applications, tenant)
    other = applications.elsewhere(app)
    side_by_side = threading.Barrier(READERS - 1)

    def meanwhile() -> None:
        if crowd.count(Step.CREATOR) == 1:
            until(lambda: crowd.count(Step.WAIT) == READERS - 1, LONG)
            change(other, tenant, User(name='new'))
        else:
            side_by_side.wait(LONG)

    with each_run(meanwhile):
        reads = [crowd.read(app, name) for _ in range(READERS)]
        found = [read.result(LONG) for read in reads]
    assert found.count(['old']) >= 1
    assert crowd.count(Step.CREATOR) == READERS
    assert crowd.count(Step.WAIT) == READERS - 1


def test_does_not_wait_for_an_older_version(
    applications: Applications, tenant: str, crowd: Crowd
) -> None:
    """A reader after a commit does not wait for the run of one from before it."""
    app = started(applications, tenant)
    other = applications.elsewhere(app)

    def meanwhile() -> None:
        if crowd.count(Step.CREATOR) == 1:
            change(other, tenant, User(name='new'))
            assert crowd.read(app, 'named').result(LONG) == ['new', 'old']

    with each_run(meanwhile):
        assert crowd.read(app, 'named').result(LONG) == ['old']
    assert crowd.count(Step.WAIT) == 0
    assert crowd.count(Step.CREATOR) == 2
    assert value(other, tenant, lambda app: app.named) == ['new', 'old']
    assert crowd.count(Step.CREATOR) == 2, 'the newer value was stored'


@pytest.mark.parametrize('name', ['named', 'auto'])
def test_own_changes_side_by_side(
    on_servers: Applications, tenant: str, crowd: Crowd, name: str
) -> None:
    """Transactions with own changes do not wait for one another."""
    app = started(on_servers, tenant)
    assert value(app, tenant, lambda app: getattr(app, name)) == ['old']
    side_by_side = threading.Barrier(READERS)
    with each_run(lambda: side_by_side.wait(LONG)):
        reads = [crowd.read(app, name, own=f'a{n}') for n in range(READERS)]
        found = [read.result(LONG) for read in reads]
    assert found == [[f'a{n}', 'old'] for n in range(READERS)]
    assert crowd.count(Step.WAIT) == 0


@pytest.mark.parametrize('name', ['named', 'auto'])
def test_side_by_side_beside_a_doubt(
    applications: Applications, tenant: str, crowd: Crowd, name: str
) -> None:
    """Readers beside a doubt that lasts do not wait for one another."""
    app = started(applications, tenant)
    other = applications.elsewhere(app)
    assert value(app, tenant, lambda app: getattr(app, name)) == ['old']
    side_by_side, over = threading.Barrier(READERS), threading.Event()
    in_doubt = threading.Event()

    def take(step: Step) -> None:
        crowd.take(step)
        if step is Step.COMMIT:
            in_doubt.set()
            assert over.wait(LONG)

    def commit() -> None:
        with committed(other, tenant) as scope:
            scope.session().add(User(name='new'))

    steps.listener = take
    writer = threading.Thread(target=commit)
    writer.start()
    try:
        assert in_doubt.wait(LONG)
        with each_run(lambda: side_by_side.wait(LONG)):
            reads = [crowd.read(app, name) for _ in range(READERS)]
            assert [read.result(LONG) for read in reads] == [['old']] * READERS
    finally:
        over.set()
        writer.join()
    assert crowd.count(Step.WAIT) == 0
    assert value(app, tenant, lambda app: getattr(app, name)) == ['new', 'old']


ONE_CONNECTION = {'pool_size': 1, 'max_overflow': 0, 'pool_timeout': LONG}


def test_the_only_connection(on_servers: Applications, tenant: str, crowd: Crowd) -> None:
    """A reader that has the pool's only connection does not wait for one who waits for it."""
    app: App = on_servers.start(App, engine_options=ONE_CONNECTION)
    change(app, tenant, User(name='old'))
    with app.request_scope(tenant) as scope:
        scope.session().connection()
        reads = [crowd.read(app, 'named') for _ in range(3)]
        until(lambda: crowd.count(Step.WAIT) == 2, LONG)
        assert app.named == ['old']
    assert [read.result(LONG) for read in reads] == [['old']] * 3


def test_who_waits_needs_no_connection(
    on_servers: Applications, tenant: str, crowd: Crowd
) -> None:
    """The creator has the pool's only connection while all others wait for its value."""
    app: App = on_servers.start(App, engine_options=ONE_CONNECTION)
    change(app, tenant, User(name='old'))
    with each_run(lambda: until(lambda: crowd.count(Step.WAIT) == READERS - 1, LONG)):
        reads = [crowd.read(app, 'named') for _ in range(READERS)]
        assert [read.result(LONG) for read in reads] == [['old']] * READERS


@pytest.mark.parametrize('name', ['named', 'auto'])
def test_commands_of_a_crowd(
    on_servers: Applications,
    tenant: str,
    crowd: Crowd,
    redis_commands: Callable[[], Any],
    name: str,
) -> None:
    """Of the callers of a process one looks and fills; the others find the value in its process
    tier, and begin no transaction."""
    app = started(on_servers, tenant)
    transactions = crowd.count(Step.VIEW)
    with (
        each_run(lambda: until(lambda: crowd.count(Step.WAIT) == READERS - 1, LONG)),
        redis_commands() as redis,
    ):
        reads = [crowd.read(app, name) for _ in range(READERS)]
        assert [read.result(LONG) for read in reads] == [['old']] * READERS
    # on a busy machine the lock may be renewed meanwhile
    assert sum('_extend_' not in command[1] for command in redis.commands) == READERS + 2
    assert crowd.count(Step.VIEW) == transactions + 1


def test_a_creator_that_fails(applications: Applications, tenant: str, crowd: Crowd) -> None:
    """If the run for which others wait ends with an error, each of them computes the value."""
    app = started(applications, tenant)

    def meanwhile() -> Any:
        if crowd.count(Step.CREATOR) == 1:
            until(lambda: crowd.count(Step.WAIT) == READERS - 1, LONG)
            raise ZeroDivisionError

    with each_run(meanwhile):
        reads = [crowd.read(app, 'named') for _ in range(READERS)]
        errors = [read.exception(LONG) for read in reads]
    assert [type(error) for error in errors if error] == [ZeroDivisionError]


@pytest.mark.parametrize('number', range(5))
def test_a_newborn_tenant_has_one_run(
    on_servers: Applications, tenant: str, crowd: Crowd, number: int
) -> None:
    """Two processes that read a tenant from its creation on run its creator once."""
    one = on_servers.start(App)
    two = on_servers.again(type(one))
    reads = [crowd.read((one, two)[n % 2], 'named') for n in range(READERS)]
    assert [read.result(LONG) for read in reads] == [[]] * READERS
    assert crowd.count(Step.CREATOR) == 1
