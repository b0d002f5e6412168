"""One test per race that is known from peers, forced in its order on the real code.

Each scenario gives what it found wrong. With all guards it finds nothing; each
guard is one that some scenario misses when it is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import OperationalError

from onegov_ormcache import OrmCacheApp, RetryableConflict, orm_cached, request_cached, steps
from onegov_ormcache.steps import Step
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import Document, User
from tests.support.servers import RedisServer

from .interleaving import Died, before, die
from .mutants import MUTANTS


class App(OrmCacheApp):
    """What the scenarios read."""

    runs = Runs()
    #: What a creator does between its read of the database and its end.
    meanwhile: Callable[[], Any] | None = None

    @orm_cached(policy='on-table-change:users')
    def names(self) -> Any:
        self.runs('names')
        rows = [row.name for row in self.session().query(User.name).order_by(User.name)]
        do, self.meanwhile = self.meanwhile, None
        if do is not None:
            do()
        return rows

    @orm_cached(policy='on-table-change:documents')
    def titles(self) -> Any:
        return [row.title for row in self.session().query(Document.title)]

    @orm_cached(policy='on-table-change:users')
    def outer(self) -> Any:
        return {'names': self.names}

    @request_cached
    def kept(self) -> Any:
        return [row.name for row in self.session().query(User.name).order_by(User.name)]

    #: A session of another scope, that a creator uses in place of its own.
    lender: Any = None

    @orm_cached(policy='on-table-change:users')
    def borrowed(self) -> Any:
        session = self.lender or self.session()
        return [row.name for row in session.query(User.name).order_by(User.name)]

    @orm_cached(policy='on-table-change:users')
    def from_kept(self) -> Any:
        return list(self.kept)


@dataclass
class World:
    """Two processes on the same servers, and one tenant."""

    applications: Applications
    tenant: str
    redis: RedisServer

    def start(self, level: str = 'READ COMMITTED', **settings: Any) -> tuple[App, App]:
        """Two apps, as good as two processes; the tenant has one user, 'old'."""
        settings = {
            'engine_options': {'isolation_level': level},
            'redis_url': self.redis.url,
            'lock_timeout': 0.2,
            **settings,
        }
        one = self.applications.start(App, **settings)
        two = self.applications.again(type(one))
        self.add(one, 'old')
        for _ in range(3):
            # the tenant was born just now: its quarantine ends here
            value(one, self.tenant, lambda app: app.titles)
        App.runs = Runs()
        return one, two

    def add(self, app: App, name: str) -> None:
        change(app, self.tenant, User(name=name))

    def names(self, app: App) -> list[str]:
        return list(value(app, self.tenant, lambda app: app.names))

    def rename(self, scope: Any, name: str = 'new') -> None:
        scope.session().query(User).one().name = name
        scope.session().flush()


@pytest.fixture
def world(on_servers: Applications, tenant: str, own_redis: RedisServer) -> World:
    return World(on_servers, tenant, own_redis)


def driver_connection(scope: Any) -> Any:
    """psycopg's connection, which commits without anybody hearing of it."""
    return scope.session().connection().connection.dbapi_connection


Scenario = Callable[[World], Iterator[str]]


def differs(what: str, found: Any, expected: Any) -> Iterator[str]:
    if found != expected:
        yield f'{what}: {found} and not {expected}'


def evict_before_commit(world: World) -> Iterator[str]:
    """Another process caches between a writer's flush and its commit."""
    writer, reader = world.start()
    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        yield from differs('before the commit', world.names(reader), ['old'])
        scope.session().commit()
    yield from differs('after it', world.names(reader), ['new'])


def fill_between_doubt_and_commit(world: World) -> Iterator[str]:
    """Another process caches while the writer's COMMIT is on its way."""
    writer, reader = world.start()
    with (
        before(Step.COMMIT, lambda: world.names(reader)),
        committed(writer, world.tenant) as scope,
    ):
        world.rename(scope)
    yield from differs('after the commit', world.names(reader), ['new'])


def read_between_commit_and_publish(world: World) -> Iterator[str]:
    """Another process asks after the database's COMMIT, before the new versions."""
    writer, reader = world.start()
    world.names(reader)
    seen = []
    with (
        before(Step.PUBLISH, lambda: seen.append(world.names(reader))),
        committed(writer, world.tenant) as scope,
    ):
        world.rename(scope)
    yield from differs('durable, not published', seen, [['new']])
    yield from differs('afterwards', world.names(reader), ['new'])


def slow_fill_after_a_change(world: World) -> Iterator[str]:
    """A creator has read, then a change is committed, then the old value is to be stored."""
    writer, reader = world.start()

    def rename() -> None:
        with committed(writer, world.tenant) as scope:
            world.rename(scope)

    reader.meanwhile = rename
    world.names(reader)
    yield from differs('the same process', world.names(reader), ['new'])
    yield from differs('another process', world.names(writer), ['new'])


def recached_rollback(world: World) -> Iterator[str]:
    """A writer reads its own change through the cache, and rolls back."""
    writer, reader = world.start()
    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        yield from differs('its own change', writer.names, ['new'])
        yield from differs('elsewhere', world.names(reader), ['old'])
        scope.session().rollback()
        yield from differs('after the rollback', writer.names, ['old'])
    yield from differs('later', world.names(writer), ['old'])


def after_commit_hook(world: World) -> Iterator[str]:
    """What runs after the commit (mail, jobs) already finds the new value."""
    writer, reader = world.start()
    world.names(reader)
    seen = []
    with writer.request_scope(world.tenant) as scope:
        session = scope.session()
        event.listen(session, 'after_commit', lambda session: seen.append(world.names(reader)))
        world.rename(scope)
        session.commit()
    yield from differs('in the hook', seen, [['new']])


def fill_from_an_old_view(world: World) -> Iterator[str]:
    """A transaction whose view is older than a commit fills after it."""
    for level in 'REPEATABLE READ', 'SERIALIZABLE':
        writer, reader = world.start(level)
        with reader.request_scope(world.tenant) as scope:
            scope.session().execute(text('SELECT 1 FROM users')).all()
            with committed(writer, world.tenant) as writing:
                world.rename(writing)
            yield from differs('its own view', reader.names, ['old'])
        yield from differs(level, world.names(reader), ['new'])
        yield from differs(level, world.names(writer), ['new'])
        with committed(writer, world.tenant) as writing:
            writing.session().query(User).delete()
        for app in writer, reader:
            app.close_orm_cache()


def memory_from_an_old_snapshot(world: World) -> Iterator[str]:
    """An object that was loaded before a commit is what a creator reads after it."""
    writer, reader = world.start()
    with reader.request_scope(world.tenant) as scope:
        loaded = scope.session().query(User).one()
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        yield from differs('in memory', loaded.name, 'old')
        found = reader.names
        yield from differs('read anew', found, ['new'])
    yield from differs('later', world.names(writer), ['new'])


def view_between_two_snapshots(world: World) -> Iterator[str]:
    """A change is committed between a transaction's snapshot and its view."""
    writer, reader = world.start('REPEATABLE READ')
    world.names(reader)

    def rename() -> None:
        with committed(writer, world.tenant) as scope:
            world.rename(scope)

    with reader.request_scope(world.tenant) as scope:
        with before(Step.VIEW, rename):
            scope.session().connection()
        direct = [row.name for row in scope.session().query(User.name)]
        yield from differs('cache and view', reader.names, direct)


def value_returned_before_the_view(world: World) -> Iterator[str]:
    """A value was returned, then changed, then the transaction takes its view."""
    writer, reader = world.start('REPEATABLE READ')
    world.names(reader)
    with reader.request_scope(world.tenant) as scope:
        returned = reader.names
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        try:
            direct = [row.name for row in scope.session().query(User.name)]
        except RetryableConflict:
            scope.reset()
            direct = [row.name for row in scope.session().query(User.name)]
            returned = reader.names
        yield from differs('cache and view', returned, direct)


def dead_writer(world: World) -> Iterator[str]:
    """A writer dies after its COMMIT, before the new versions; or before its COMMIT."""
    for step, expected in (Step.PUBLISH, ['new']), (Step.COMMIT, ['old']):
        writer, reader = world.start()
        world.names(reader)
        with writer.request_scope(world.tenant) as scope:
            world.rename(scope)
            try:
                with before(step, die):
                    scope.session().commit()
            except Died:
                pass
        for app in reader, writer:
            yield from differs(f'died before {step}', world.names(app), expected)
        # it is settled by those who meet it: soon nobody runs a creator any more
        for _ in range(200):
            world.names(reader)
            ran = App.runs.count('names')
            world.names(reader)
            if App.runs.count('names') == ran:
                break
        else:
            yield f'died before {step}: the tag stays in doubt'
        with committed(reader, world.tenant) as scope:
            scope.session().query(User).delete()
        for app in writer, reader:
            app.close_orm_cache()


def slow_writer(world: World) -> Iterator[str]:
    """A writer that only takes its time is not settled while its COMMIT is on its way."""
    writer, reader = world.start()
    world.names(reader)

    def read_for_a_while() -> None:
        for _ in range(20):
            seen.append(world.names(reader))
            reader.orm_cache.settler._asked.clear()

    seen: list[Any] = []
    with before(Step.COMMIT, read_for_a_while), committed(writer, world.tenant) as scope:
        world.rename(scope)
    yield from differs('meanwhile', seen, [['old']] * 20)
    yield from differs('after the commit', world.names(reader), ['new'])


def lost_doubt(world: World) -> Iterator[str]:
    """The store forgets a doubt; a reader fills; the writer commits, and dies."""
    writer, reader = world.start()

    def forget_and_read() -> None:
        world.redis.client().flushall()
        for _ in range(3):
            world.names(reader)

    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        try:
            with before(Step.COMMIT, forget_and_read), before(Step.PUBLISH, die):
                scope.session().commit()
        except Died:
            pass
    for app in reader, writer:
        yield from differs('after the commit', world.names(app), ['new'])


def fill_from_within_the_quarantine(world: World) -> Iterator[str]:
    """The same, but the reader's creator is slow, and ends after the quarantine."""
    writer, reader = world.start()

    def forget_and_read() -> None:
        world.redis.client().flushall()
        reader.meanwhile = commit_and_die
        world.names(reader)

    def commit_and_die() -> None:
        connection.commit()
        reader.orm_cache.settler._asked.clear()
        with reader.request_scope(world.tenant) as other:
            other.session().connection()

    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        connection = driver_connection(scope)
        try:
            with before(Step.COMMIT, lambda: (forget_and_read(), die())):
                scope.session().commit()
        except Died:
            pass
    for app in reader, writer:
        yield from differs('after the commit', world.names(app), ['new'])


def read_in_the_quarantine(world: World) -> Iterator[str]:
    """A reader computes in the quarantine, the writer commits and dies, the reader asks again."""
    writer, reader = world.start()

    def forget_and_read() -> None:
        world.redis.client().flushall()
        world.names(reader)

    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        try:
            with before(Step.COMMIT, forget_and_read), before(Step.PUBLISH, die):
                scope.session().commit()
        except Died:
            pass
    # still in quarantine: nobody has asked for a connection since
    yield from differs('after the commit', world.names(reader), ['new'])


def commit_whose_answer_is_lost(world: World) -> Iterator[str]:
    """An interrupt comes after the server has committed, before the writer hears of it."""
    writer, reader = world.start()
    world.names(reader)

    def commit_unheard() -> None:
        connection.commit()
        raise KeyboardInterrupt

    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        connection = driver_connection(scope)
        try:
            with before(Step.COMMIT, commit_unheard):
                scope.session().commit()
        except KeyboardInterrupt:
            pass
    for app in reader, writer:
        yield from differs('after the commit', world.names(app), ['new'])


def carried_over_a_commit(world: World) -> Iterator[str]:
    """A value read before a commit is used by another property after it."""
    writer, reader = world.start()
    with reader.request_scope(world.tenant) as scope:
        yield from differs('first', reader.names, ['old'])
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        scope.session().commit()
        yield from differs('in the new transaction', reader.names, ['new'])
        yield from differs('within another', reader.outer, {'names': ['new']})
    yield from differs('later', value(writer, world.tenant, lambda a: a.outer), {'names': ['new']})


def request_cached_over_a_commit(world: World) -> Iterator[str]:
    """A request-cached value of an earlier transaction is used by an orm-cached property."""
    writer, reader = world.start()
    with reader.request_scope(world.tenant) as scope:
        yield from differs('first', reader.kept, ['old'])
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        scope.session().commit()
        reader.from_kept  # may be old here: request-cached values live as long as the scope
    yield from differs('later', value(writer, world.tenant, lambda a: a.from_kept), ['new'])


def transaction_ends_in_a_creator(world: World) -> Iterator[str]:
    """A creator's transaction ends between its read and its end."""
    writer, reader = world.start()

    def commit_both() -> None:
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        reader.session().commit()

    reader.meanwhile = commit_both
    world.names(reader)
    for app in reader, writer:
        yield from differs('later', world.names(app), ['new'])


def mutation_carried_over(world: World) -> Iterator[str]:
    """What a view did to its copy of a value is not stored within another property."""
    writer, reader = world.start()
    with reader.request_scope(world.tenant):
        reader.names.append('mine')
        yield from differs('its own copy', reader.names, ['old', 'mine'])
        yield from differs('within another', reader.outer, {'names': ['old']})
    yield from differs('later', value(writer, world.tenant, lambda a: a.outer), {'names': ['old']})


def savepoint(world: World) -> Iterator[str]:
    """A change that was undone by a savepoint is not seen any more, by anyone."""
    writer, reader = world.start()
    with writer.request_scope(world.tenant) as scope:
        nested = scope.session().begin_nested()
        world.rename(scope)
        yield from differs('within', writer.names, ['new'])
        nested.rollback()
        yield from differs('undone', writer.names, ['old'])
        scope.session().commit()
    yield from differs('later', world.names(reader), ['old'])


def server_rolled_back_to_a_dump(world: World) -> Iterator[str]:
    """Redis comes back from a dump that is older than what it acknowledged."""
    writer, reader = world.start()
    world.names(reader)
    world.names(reader)
    world.redis.save()
    with committed(writer, world.tenant) as scope:
        world.rename(scope)
    world.redis.kill()
    world.redis.start()
    for app in reader, writer:
        yield from differs('after the restart', world.names(app), ['new'])


def keys_evicted_one_by_one(world: World) -> Iterator[str]:
    """Redis evicts any one of the keys, before or after a change."""
    writer, reader = world.start()
    for round_, when in enumerate(('before', 'after')):
        world.names(reader)
        world.names(reader)
        keys = world.redis.client().keys('*')
        for number, key in enumerate(sorted(keys)):
            expected = f'{round_}-{number}'
            if when == 'before':
                world.redis.client().delete(key)
            with committed(writer, world.tenant) as scope:
                world.rename(scope, expected)
            if when == 'after':
                world.redis.client().delete(key)
            for app in reader, writer:
                yield from differs(f'{key!r} {when}', world.names(app), [expected])
            world.names(reader)


def snapshot_of_an_epoch(world: World) -> Iterator[str]:
    """A process that knows the tenant's last epoch learns of every change."""
    writer, reader = world.start()
    for number in range(3):
        world.names(reader)
        with committed(writer, world.tenant) as scope:
            world.rename(scope, str(number))
        yield from differs('after the change', world.names(reader), [str(number)])


def ends_without_a_statement(world: World) -> Iterator[str]:
    """A transaction that read from the cache alone is rolled back, committed or closed."""
    writer, reader = world.start()
    for number, end in enumerate(('rollback', 'commit', 'close')):
        world.names(reader)
        with reader.request_scope(world.tenant) as scope:
            before_it = reader.names
            with committed(writer, world.tenant) as writing:
                world.rename(writing, end)
            yield from differs('the same transaction', reader.names, before_it)
            getattr(scope.session(), end)()
            yield from differs(f'{number}: after the {end}', reader.names, [end])


def write_skew_through_a_creator(world: World) -> Iterator[str]:
    """The same, when one of the two reads what is not cached, so that its creator runs."""
    one, two = world.start('SERIALIZABLE')
    value(two, world.tenant, lambda app: app.names)
    refused = 0
    with one.request_scope(world.tenant) as first:
        if not one.titles:
            first.session().add(User(name='no title was there'))
        with two.request_scope(world.tenant) as second:
            if two.names == ['old']:
                second.session().add(Document(kind='document', title='no other user was there'))
            first.session().flush()
            second.session().flush()
            for scope in first, second:
                with scope.active():
                    try:
                        scope.session().commit()
                    except (RetryableConflict, OperationalError):
                        refused += 1
                        scope.session().rollback()
    yield from differs('refused', refused, 1)


def session_of_another_scope(world: World) -> Iterator[str]:
    """A creator reads through a transaction that began before its own scope."""
    writer, reader = world.start('REPEATABLE READ')
    with reader.request_scope(world.tenant) as outer:
        outer.session().query(User).count()
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        reader.lender = outer.session()
        with reader.request_scope(world.tenant):
            reader.session().connection()
            reader.borrowed  # what the other's view has, whatever that is
        reader.lender = None
    for app in reader, writer:
        yield from differs('later', value(app, world.tenant, lambda a: a.borrowed), ['new'])


def two_connections_in_one_scope(world: World) -> Iterator[str]:
    """A session and a Core connection of one scope change the same table, each on its own."""
    writer, reader = world.start()
    world.names(reader)
    with writer.request_scope(world.tenant) as scope:
        with writer.session_manager.engine.connect() as connection:
            connection.execute(insert(User).values(name='core'))
            scope.session().add(User(name='orm'))
            yield from differs('its own session', writer.names, ['old', 'orm'])
            scope.session().commit()
            yield from differs('one is committed', world.names(reader), ['old', 'orm'])
            connection.commit()
        yield from differs('both are', world.names(reader), ['core', 'old', 'orm'])
        yield from differs('here too', writer.names, ['core', 'old', 'orm'])


def write_skew(world: World) -> Iterator[str]:
    """Two SERIALIZABLE writers each read through the cache what the other changes."""
    one, two = world.start('SERIALIZABLE')
    for app in one, two:
        value(app, world.tenant, lambda app: (app.names, app.titles))
    refused = 0
    with one.request_scope(world.tenant) as first:
        if not one.titles:
            first.session().add(User(name='no title was there'))
        with two.request_scope(world.tenant) as second:
            if two.names == ['old']:
                second.session().add(Document(kind='document', title='no other user was there'))
            for scope in first, second:
                scope.session().flush()
            for scope in first, second:
                with scope.active():
                    try:
                        scope.session().commit()
                    except RetryableConflict:
                        refused += 1
                        scope.session().rollback()
    yield from differs('refused', refused, 1)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        evict_before_commit, fill_between_doubt_and_commit, read_between_commit_and_publish,
        slow_fill_after_a_change, recached_rollback, after_commit_hook, fill_from_an_old_view,
        memory_from_an_old_snapshot, view_between_two_snapshots, value_returned_before_the_view,
        dead_writer, slow_writer, lost_doubt, fill_from_within_the_quarantine,
        read_in_the_quarantine,
        commit_whose_answer_is_lost, carried_over_a_commit, request_cached_over_a_commit,
        transaction_ends_in_a_creator, mutation_carried_over, savepoint,
        server_rolled_back_to_a_dump, keys_evicted_one_by_one, snapshot_of_an_epoch, write_skew,
        ends_without_a_statement, write_skew_through_a_creator, session_of_another_scope,
        two_connections_in_one_scope,
    )
}  # fmt: skip

#: Which scenario notices that a guard is gone.
NOTICED_BY = {
    'doubt': 'read_between_commit_and_publish',
    'stamp check on fill': 'lost_doubt',
    'stamp check on read': 'snapshot_of_an_epoch',
    'process tier only after the shared one': 'read_in_the_quarantine',
    'snapshot before view': 'fill_from_an_old_view',
    'second snapshot': 'view_between_two_snapshots',
    'own-change bypass': 'recached_rollback',
    'request tier ended by commit': 'carried_over_a_commit',
    'unknown outcome left to settling': 'commit_whose_answer_is_lost',
    'settling': 'dead_writer',
    'savepoint drop': 'savepoint',
    'quarantine': 'lost_doubt',
    'its new birth': 'fill_from_within_the_quarantine',
    'run_id': 'server_rolled_back_to_a_dump',
    'fresh epochs': 'snapshot_of_an_epoch',
    'P5': 'write_skew',
}


@pytest.mark.parametrize('name', SCENARIOS)
def test_race(world: World, name: str) -> None:
    """With all guards, the race does no harm."""
    assert list(SCENARIOS[name](world)) == []


@pytest.mark.parametrize('guard', MUTANTS)
def test_guard_is_needed(world: World, guard: str) -> None:
    """Without the guard, the same race does harm."""
    with MUTANTS[guard]():
        found = list(SCENARIOS[NOTICED_BY[guard]](world))
    assert found


def test_write_skew_check_can_be_turned_off(world: World) -> None:
    """With check_write_skew off, both writers commit, as the docs say."""
    original = world.start

    def start(level: str = '', **settings: Any) -> tuple[App, App]:
        return original(level, check_write_skew=False, **settings)

    world.start = start  # type: ignore[method-assign]
    assert list(write_skew(world)) == ['refused: 0 and not 1']


@pytest.mark.parametrize('interrupted', Step)
@pytest.mark.parametrize('level', ['READ COMMITTED', 'REPEATABLE READ'])
def test_interrupt_at_any_step(world: World, level: str, interrupted: Step) -> None:
    """Wherever an interrupt comes, as a worker's timeout does: what was committed is seen,
    what was not is not, and soon values are cached again."""
    writer, reader = world.start(level)
    taken: set[Step] = set()

    def interrupt(step: Step) -> None:
        if step is interrupted and step not in taken:
            taken.add(step)
            raise KeyboardInterrupt
        taken.add(step)

    def work() -> None:
        world.names(reader)
        with writer.request_scope(world.tenant) as scope:
            with scope.session().begin_nested() as savepoint:
                world.rename(scope, 'undone')
                savepoint.rollback()
            world.rename(scope)
            scope.session().commit()
        with writer.request_scope(world.tenant) as scope:
            world.rename(scope, 'refused')
            with before(Step.COMMIT, driver_connection(scope).close):
                with pytest.raises(OperationalError):
                    scope.session().commit()
        with writer.request_scope(world.tenant) as scope:
            engine = writer.session_manager.database.engine(world.tenant)
            event.listen(engine, 'commit', refuse)
            world.rename(scope, 'refused')
            try:
                with pytest.raises(ZeroDivisionError):
                    scope.session().commit()
            finally:
                event.remove(engine, 'commit', refuse)
        for app in reader, writer, reader:
            world.names(app)
        world.redis.client().flushall()
        for app in reader, writer, reader:
            app.orm_cache.settler._asked.clear()
            world.names(app)

    outer, steps.listener = steps.listener, interrupt
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        steps.listener = outer
    if interrupted not in taken:
        pytest.skip(f'the step {interrupted!r} is not taken under {level}')
    with writer.request_scope(world.tenant) as scope:
        truth = [row.name for row in scope.session().query(User.name)]
    for app in reader, writer:
        assert world.names(app) == truth
    for _ in range(5):
        for app in reader, writer:
            app.orm_cache.settler._asked.clear()
            assert world.names(app) == truth
    ran = App.runs.count('names')
    for app in reader, writer:
        assert world.names(app) == truth
    assert App.runs.count('names') == ran


def refuse(connection: Any) -> None:
    raise ZeroDivisionError('a handler of somebody else')
