"""Random orders of what applications do, on the real code, against a model of the promise.

Many request scopes are open at once, in one thread, in two applications that stand
for two processes. The model is plain: the states that the database had, one after
the other, and each scope's own row. What a property gives must be one of the states
since the scope's transaction began, with the scope's own change; what comes from a
tier must be the state at that begin; under a lasting view all of it must be one state.

``--hypothesis-profile=long`` walks more and longer ways.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from onegov_ormcache import RetryableConflict, steps
from onegov_ormcache.core.scope import RequestScope
from onegov_ormcache.steps import Step
from onegov_ormcache.tags.settling import Settler
from tests.consistency.interleaving import Died
from tests.consistency.town import (
    EXPECTED,
    PARTS,
    PROPERTIES,
    Identity,
    Row,
    State,
    Town,
    parts_of,
    possible,
)
from tests.support.applications import Applications
from tests.support.backends import Backend
from tests.support.examples import examples
from tests.support.servers import RedisServer, drop_schemas, libpq_url

#: Rows that scopes of one tenant may have for their own, one each.
SLOTS = range(1, 6)

LEVELS = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')


@dataclass
class Seen:
    """A value that a transaction was given."""

    name: str
    value: Any
    role: str
    own: Row | None
    hit: bool


@dataclass(eq=False)
class Open:
    """A request scope that is open, and what the model knows of it."""

    scope: RequestScope
    app: Town
    tenant: str
    slot: int
    role: str
    lasts: bool
    #: Its own row, as its transaction has it.
    row: Row | None
    closed: bool = False
    savepoints: list[tuple[Any, Row | None]] = field(default_factory=list)
    #: Which states of the database its transaction may see.
    first: int | None = None
    last: int | None = None
    #: Until which state its snapshot may have been taken.
    snapshot: int | None = None
    seen: list[Seen] = field(default_factory=list)
    #: What a request-cached property may have kept since the scope was opened.
    kept: list[Any] = field(default_factory=list)


class World:
    """What an example runs on: applications, a database to look at, a store to lose."""

    def __init__(self, tenants: list[str], apps: dict[str, list[Town]]) -> None:
        self.tenants = tenants
        self.apps = apps
        self.level = next(iter(apps))

    @property
    def servers(self) -> bool:
        return len(self.apps) > 1

    @property
    def lasts(self) -> bool:
        return self.level != 'READ COMMITTED'

    def all_apps(self) -> list[Town]:
        return [app for apps in self.apps.values() for app in apps]

    def truth(self, tenant: str) -> State:
        """What is committed, as the database itself says."""
        users = self.query(tenant, 'SELECT id, name FROM users')
        documents = self.query(tenant, 'SELECT owner_id, title, state FROM documents')
        found = {owner: (title, state == 'public') for owner, title, state in documents}
        members = {user for (user,) in self.query(tenant, 'SELECT user_id FROM membership')}
        return {
            user: Row(name, *found.get(user, (None, False)), user in members)
            for user, name in users
        }

    def query(self, tenant: str, statement: str) -> list[Any]:
        raise NotImplementedError

    def empty(self, tenant: str) -> None:
        """Begin an example with no rows, and nothing cached."""
        for table in ('membership', 'documents', 'users', 'groups'):
            self.query(tenant, f'DELETE FROM {table}')
        self.query(tenant, "INSERT INTO groups (id, name) VALUES (1, 'all')")
        for app in self.all_apps():
            app.orm_cache.tags.renew(tenant)

    def connection_ender(self, opened: Open) -> Callable[[], object]:
        """What ends the connection that the scope has now, as far as there is one."""
        return lambda: None

    def lose_store(self, how: int) -> None:
        """The store loses something."""


class Embedded(World):
    """SQLite and memory: one application, a view per transaction."""

    def __init__(self, folder: Path, tenants: list[str], app: Town) -> None:
        super().__init__(tenants, {'SQLite': [app]})
        self._folder = folder

    def query(self, tenant: str, statement: str) -> list[Any]:
        file = self._folder / f'{tenant}.sqlite'
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()


class OnServers(World):
    """PostgreSQL and a Redis of its own: two applications, as good as processes."""

    def __init__(
        self, dsn: str, redis: RedisServer, tenants: list[str], apps: dict[str, list[Town]]
    ) -> None:
        super().__init__(tenants, apps)
        self.connection = psycopg.connect(libpq_url(dsn), autocommit=True)
        self._redis = redis
        self._client = redis.client()

    def query(self, tenant: str, statement: str) -> list[Any]:
        path = sql.SQL('SET search_path TO {}').format(sql.Identifier(tenant))
        self.connection.execute(path)
        cursor = self.connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def empty(self, tenant: str) -> None:
        self._client.flushall()
        super().empty(tenant)

    def connection_ender(self, opened: Open) -> Callable[[], object]:
        session = opened.scope.opened_session
        if opened.closed or session is None or not session.in_transaction():
            return lambda: None
        with opened.scope.active():
            driver: Any = session.connection().connection.dbapi_connection
        pid = driver.info.backend_pid
        return lambda: self.connection.execute('SELECT pg_terminate_backend(%s, 5000)', [pid])

    def lose_store(self, how: int) -> None:
        if how == 0:
            self._client.flushall()
        elif how == 1:
            self._redis.save()
        elif how == 2:
            self._redis.kill()
            self._redis.start()
        elif how < 6:
            keys = sorted(self._client.keys('*'))
            if keys:
                self._client.delete(keys[how % len(keys)])


class CacheMachine(RuleBasedStateMachine):
    """One example: scopes that open, read, change, end and die."""

    scopes = Bundle('scopes')

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.opened: list[Open] = []
        self.counter = 0
        self.history: dict[str, list[State]] = {}

    @initialize(level=st.sampled_from(LEVELS))
    def begin(self, level: str) -> None:
        if level in self.world.apps:
            self.world.level = level
        for tenant in self.world.tenants:
            self.world.empty(tenant)
            self.history[tenant] = [{}]

    # the model

    def look(self, tenant: str) -> int:
        """The number of the state that the database has now."""
        states = self.history[tenant]
        truth = self.world.truth(tenant)
        if states[-1] != truth:
            states.append(truth)
        return len(states) - 1

    def touch(self, opened: Open) -> None:
        """The scope is about to do something: its transaction has begun by then."""
        if opened.first is None:
            opened.first = self.look(opened.tenant)

    def done(self, opened: Open) -> None:
        """The scope has done something: its snapshot or view may be taken by now."""
        if opened.closed or opened.first is None:
            return
        now = self.look(opened.tenant)
        if opened.snapshot is None and opened.scope._snapshot is not None:
            opened.snapshot = now
        if opened.last is None and any(p.keeps_view for p in opened.scope.transactions):
            opened.last = now

    def ended(self, opened: Open) -> None:
        """The scope's transaction has ended, one way or another."""
        opened.first = opened.last = opened.snapshot = None
        opened.seen.clear()
        opened.savepoints.clear()
        opened.row = self.history[opened.tenant][self.look(opened.tenant)].get(opened.slot)

    def could_see(self, seen: Seen, opened: Open, number: int) -> bool:
        """Whether the value is that of the state with this number and the own change."""
        state = dict(self.history[opened.tenant][number])
        state.pop(opened.slot, None)
        if seen.own is not None:
            state[opened.slot] = seen.own
        return bool(EXPECTED[seen.name](state, seen.role) == seen.value)

    def check(self, opened: Open) -> None:
        """What the scope was given must be what was promised."""
        assert opened.first is not None
        now = self.look(opened.tenant)
        last = now if opened.last is None else opened.last
        states = range(opened.first, last + 1)
        loose = [seen for seen in opened.seen if not self.was_kept(seen, opened)]
        for seen in loose:
            assert any(self.could_see(seen, opened, n) for n in states), (
                f'{seen} is none of {self.history[opened.tenant][opened.first : last + 1]}'
            )
        if opened.lasts:
            assert any(all(self.could_see(seen, opened, n) for seen in loose) for n in states), (
                f'{loose} are not of one state'
            )
        hits = [seen for seen in loose if seen.hit]
        snapshots = range(opened.first, (now if opened.snapshot is None else opened.snapshot) + 1)
        assert any(all(self.could_see(seen, opened, n) for seen in hits) for n in snapshots), (
            f'{hits} are not of one snapshot'
        )

    @staticmethod
    def was_kept(seen: Seen, opened: Open) -> bool:
        """Whether a value was made of what a request-cached property keeps to the scope's end."""
        return seen.name == 'framed' and not seen.hit and seen.value[1:] in opened.kept

    # what scopes do

    def open(self, app: int, tenant: int, role: str) -> Open | None:
        name = self.world.tenants[tenant]
        taken = {other.slot for other in self.opened if other.tenant == name}
        free = [slot for slot in SLOTS if slot not in taken]
        if not free:
            return None
        apps = self.world.apps[self.world.level]
        chosen = apps[app % len(apps)]
        scope = chosen.open_scope(name, create=True)
        row = self.history[name][self.look(name)].get(free[0])
        opened = Open(scope, chosen, name, free[0], role, self.world.lasts, row)
        self.opened.append(opened)
        return opened

    def close(self, opened: Open) -> None:
        if not opened.closed:
            opened.closed = True
            self.opened.remove(opened)
            with opened.scope.active():
                opened.scope.close()

    def attempt(self, opened: Open, do: Callable[[], object]) -> bool:
        """Do something in a scope; what fails is rolled back. False if it failed."""
        if opened.closed:
            return False
        self.touch(opened)
        outside = opened.app.identity
        try:
            with opened.scope.active():
                opened.app.identity = Identity(opened.role)
                do()
        except (DBAPIError, RetryableConflict, InvalidRequestError) as error:
            note(f'failed: {error!r}'[:200])
            with opened.scope.active():
                opened.scope.reset()
            self.ended(opened)
            return False
        except Died:
            self.close(opened)
            return False
        finally:
            opened.app.identity = outside
        self.done(opened)
        return True

    def read(self, opened: Open, name: str) -> None:
        def do() -> None:
            with opened.app.recording() as events:
                value = getattr(opened.app, name)
            last = events[-1].tier
            tiers = {event.name.split('.')[-1]: event.tier for event in events[:-1]}
            for part, given in parts_of(name, value):
                tier = tiers.get(part) if last == 'creator' and name in PARTS else last
                hit = tier in ('process', 'shared')
                opened.seen.append(Seen(part, given, opened.role, opened.row, hit))
            if name == 'framed':
                opened.kept.append(list(value[1:]))

        if self.attempt(opened, do):
            try:
                self.check(opened)
            finally:
                opened.kept = [kept for kept in opened.kept if self.is_kept(opened, kept)]

    @staticmethod
    def is_kept(opened: Open, value: Any) -> bool:
        """Whether a request-cached property of the scope holds the value."""
        return any(entry.encoded is None and entry.value == value for entry in tier_of(opened))

    def change(self, opened: Open, kind: int) -> None:
        changes = possible(opened.row)
        name = list(changes)[kind % len(changes)]
        self.counter += 1

        def do() -> None:
            session = opened.scope.session()
            session.flush()
            session.expunge_all()
            opened.row = changes[name](session, opened.slot, opened.row, str(self.counter))

        note(f'{name} in slot {opened.slot}')
        self.attempt(opened, do)

    def commit(self, opened: Open) -> None:
        row = opened.row
        if self.attempt(opened, lambda: opened.scope.commit()) and not opened.closed:
            self.ended(opened)
            assert opened.row == row, 'what was committed is in the database'

    def write(self, app: int, tenant: int, kind: int) -> None:
        """Another request, from its begin to its end."""
        if opened := self.open(app, tenant, 'member'):
            self.change(opened, kind)
            self.commit(opened)
            self.close(opened)

    def look_in(self, app: int, tenant: int, *names: str) -> None:
        """Another request that only reads."""
        if opened := self.open(app, tenant, 'member'):
            for name in names:
                self.read(opened, name)
            self.close(opened)

    # the rules

    @rule(
        target=scopes,
        app=st.integers(0, 1),
        tenant=st.integers(0, 1),
        role=st.sampled_from(['member', 'admin']),
    )
    def open_scope(self, app: int, tenant: int, role: str) -> Any:
        opened = self.open(app, tenant, role)
        return multiple() if opened is None else opened

    @rule(opened=scopes, name=st.sampled_from(PROPERTIES))
    def read_property(self, opened: Open, name: str) -> None:
        self.read(opened, name)

    @rule(opened=scopes, kind=st.integers(0, 11))
    def change_rows(self, opened: Open, kind: int) -> None:
        self.change(opened, kind)

    @rule(opened=scopes)
    def begin_savepoint(self, opened: Open) -> None:
        def do() -> None:
            opened.savepoints.append((opened.scope.session().begin_nested(), opened.row))

        self.attempt(opened, do)

    @rule(opened=scopes, release=st.booleans())
    def end_savepoint(self, opened: Open, release: bool) -> None:
        if opened.closed or not opened.savepoints:
            return
        savepoint, row = opened.savepoints.pop()
        if self.attempt(opened, savepoint.commit if release else savepoint.rollback):
            opened.row = opened.row if release else row

    @rule(opened=scopes)
    def commit_scope(self, opened: Open) -> None:
        self.commit(opened)

    @rule(opened=scopes)
    def roll_back_scope(self, opened: Open) -> None:
        if self.attempt(opened, lambda: opened.scope.session().rollback()):
            self.ended(opened)

    @rule(opened=consumes(scopes))
    def close_scope(self, opened: Open) -> None:
        self.close(opened)

    @rule(opened=consumes(scopes))
    def end_connection(self, opened: Open) -> None:
        if not opened.closed:
            self.world.connection_ender(opened)()
            self.close(opened)

    @rule(
        opened=scopes,
        step=st.sampled_from([Step.DOUBT, Step.COMMIT, Step.PUBLISH]),
        connection=st.booleans(),
        kind=st.integers(0, 11),
    )
    def die_while_committing(
        self, opened: Open, step: Step, connection: bool, kind: int
    ) -> None:
        self.look_in(1, self.world.tenants.index(opened.tenant), *PROPERTIES)
        self.change(opened, kind)
        end_connection = self.world.connection_ender(opened)

        def die() -> None:
            if connection and self.world.servers and step is not Step.PUBLISH:
                end_connection()
            else:
                raise Died

        with between(step, die):
            self.commit(opened)

    @rule(opened=scopes, cut=st.booleans(), kind=st.integers(0, 11))
    def commit_without_an_answer(self, opened: Open, cut: bool, kind: int) -> None:
        self.look_in(1, self.world.tenants.index(opened.tenant), *PROPERTIES)
        self.change(opened, kind)
        end_connection = self.world.connection_ender(opened)

        def unanswered(checkout: Any) -> None:
            if cut and self.world.servers:
                end_connection()
                checkout.dbapi_connection.execute('SELECT 1')  # raises what a COMMIT would
            raise Died

        engine = opened.app.session_manager.database.engine(opened.tenant)
        with after_each_commit(engine, unanswered):
            self.commit(opened)

    @rule(
        opened=scopes,
        step=st.sampled_from([Step.DOUBT, Step.COMMIT, Step.PUBLISH]),
        app=st.integers(0, 1),
        name=st.sampled_from(PROPERTIES),
        loss=st.none() | st.integers(0, 5),
        kind=st.integers(0, 11),
    )
    def commit_while_others_read(
        self, opened: Open, step: Step, app: int, name: str, loss: int | None, kind: int
    ) -> None:
        self.change(opened, kind)

        def others() -> None:
            if loss is not None:
                self.world.lose_store(loss)
            self.look_in(app, self.world.tenants.index(opened.tenant), name)
            self.look_in(app, self.world.tenants.index(opened.tenant), name)

        with between(step, others):
            self.commit(opened)

    @rule(
        opened=scopes,
        name=st.sampled_from(PROPERTIES),
        step=st.sampled_from(
            [
                Step.SNAPSHOT,
                Step.VIEW,
                Step.SECOND_SNAPSHOT,
                Step.PROCESS_TIER,
                Step.SHARED_TIER,
                Step.CREATOR,
                Step.FILL,
            ]
        ),
        app=st.integers(0, 1),
        kind=st.integers(0, 11),
    )
    def read_while_another_commits(
        self, opened: Open, name: str, step: Step, app: int, kind: int
    ) -> None:
        with between(
            step, lambda: self.write(app, self.world.tenants.index(opened.tenant), kind)
        ):
            self.read(opened, name)

    @rule(app=st.integers(0, 1), tenant=st.integers(0, 1), kind=st.integers(0, 11))
    def another_commits(self, app: int, tenant: int, kind: int) -> None:
        self.write(app, tenant, kind)

    @rule(app=st.integers(0, 1), tenant=st.integers(0, 1))
    def another_reads(self, app: int, tenant: int) -> None:
        self.look_in(app, tenant, *PROPERTIES)

    @rule(opened=scopes, kind=st.integers(0, 11), name=st.sampled_from(PROPERTIES))
    def read_what_is_undone(self, opened: Open, kind: int, name: str) -> None:
        self.begin_savepoint(opened)
        self.change(opened, kind)
        self.read(opened, name)
        self.end_savepoint(opened, release=False)
        self.read(opened, name)

    @precondition(lambda self: self.world.servers)
    @rule(how=st.integers(0, 15))
    def store_loses(self, how: int) -> None:
        self.world.lose_store(how)

    @rule(app=st.integers(0, 1))
    def process_forgets(self, app: int) -> None:
        apps = self.world.apps[self.world.level]
        tier = apps[app % len(apps)].orm_cache.process_tier
        for key in tier.held():
            tier.remove(key)

    # the end

    def teardown(self) -> None:
        """All is given back, and nothing is in doubt for ever."""
        for opened in list(self.opened):
            self.close(opened)
        if not self.history:
            return
        for app in self.world.apps[self.world.level]:
            if not self.world.servers:
                cache = app.orm_cache
                cache.settler = Settler(cache.tags, lease=0.0)
            for tenant in self.world.tenants:
                self.becomes_quiet(app, tenant)

    def becomes_quiet(self, app: Town, tenant: str) -> None:
        """Every property gives what the database has, and soon without its creator."""
        truth = self.world.truth(tenant)
        ran: list[str] = []
        for _ in range(40):
            ran = []
            for role in ('member', 'admin'):
                app.identity = Identity(role)
                for name in PROPERTIES:
                    with app.request_scope(tenant), app.recording() as events:
                        value = getattr(app, name)
                    for part, given in parts_of(name, value):
                        assert given == EXPECTED[part](truth, role), f'{name} in quiet'
                    ran += [name for event in events if event.tier == 'creator']
            if not ran:
                return
            time.sleep(0.03)
        raise AssertionError(f'the creators of {sorted(set(ran))} run again and again')


def tier_of(opened: Open) -> list[Any]:
    return list(opened.scope.tier.values())


class between:
    """Do something the first time that a step is about to be taken in the block."""

    def __init__(self, step: Step, do: Callable[[], object]) -> None:
        self._step = step
        self._do = do

    def __enter__(self) -> None:
        steps.listener = self._listen

    def __exit__(self, *exc_info: object) -> None:
        steps.listener = None

    def _listen(self, step: Step) -> None:
        if step is self._step:
            steps.listener = None
            self._do()


@contextmanager
def after_each_commit(engine: Engine, do: Callable[[Any], object]) -> Iterator[None]:
    """Do something when the database has committed, and the client has not heard of it."""
    watch = engine.dialect.do_commit.__self__  # type: ignore[attr-defined]
    original = watch._original

    def commit(checkout: Any) -> None:
        original.do_commit(checkout)
        do(checkout)

    watch._original = original._replace(do_commit=commit)
    try:
        yield
    finally:
        watch._original = original


# the tests


def walks(number: int) -> settings:
    """So many walks of thirty steps; with the profile `long`, more and longer ones."""
    is_long = settings.get_current_profile_name() == 'long'
    return examples(
        number,
        stateful_step_count=60 if is_long else 30,
        suppress_health_check=list(HealthCheck),
    )


def names_of_tenants() -> list[str]:
    return [f't{uuid4().hex[:12]}_{name}' for name in ('one', 'two')]


#: Cold locks and database locks are not waited for: all scopes are in one thread.
IMPATIENT = {'lock_timeout': 0.02, 'lease': 600.0}


#: Seconds for a walk that fails, too: Hypothesis looks for a shorter one for five minutes.
pytestmark = pytest.mark.timeout(600)


class TestEmbedded:
    """SQLite files and memory."""

    @pytest.fixture
    def world(self, tmp_path: Path, namespace: str) -> Iterator[World]:
        dsn = f'sqlite:///{tmp_path}/tenants'
        backend = Backend('embedded', {'dsn': dsn, 'redis_url': None, 'namespace': namespace})
        with ExitStack() as stack:
            options = {'connect_args': {'timeout': 0.01}}
            app = Applications(backend, stack).start(Town, engine_options=options, **IMPATIENT)
            tenants = names_of_tenants()
            for tenant in tenants:
                with app.request_scope(tenant):
                    pass
            yield Embedded(tmp_path / 'tenants', tenants, app)

    def test_promise(self, world: World) -> None:
        """No order of reads, changes, ends and deaths breaks the promise."""
        run_state_machine_as_test(lambda: CacheMachine(world), settings=walks(60))


class TestOnServers:
    """PostgreSQL and Redis, under each isolation level."""

    @pytest.fixture
    def world(
        self, postgres_dsn: str, own_redis: RedisServer, namespace: str
    ) -> Iterator[World]:
        common = {'dsn': postgres_dsn, 'redis_url': own_redis.url}
        tenants = names_of_tenants()
        apps: dict[str, list[Town]] = {}
        with ExitStack() as stack:
            for level in LEVELS:
                own = f'{namespace}-{level.replace(" ", "-")}'
                backend = Backend('servers', {**common, 'namespace': own})
                applications = Applications(backend, stack)
                options = {
                    'isolation_level': level,
                    'connect_args': {'options': '-c lock_timeout=200ms'},
                }
                app = applications.start(Town, engine_options=options, **IMPATIENT)
                apps[level] = [app, applications.elsewhere(app)]
                for tenant in tenants:
                    with app.request_scope(tenant):
                        pass
            world = OnServers(postgres_dsn, own_redis, tenants, apps)
            yield world
            world.connection.close()
        for tenant in tenants:
            drop_schemas(postgres_dsn, tenant)

    def test_promise(self, world: World) -> None:
        """No order of reads, changes, ends, deaths and losses breaks the promise."""
        run_state_machine_as_test(lambda: CacheMachine(world), settings=walks(40))
