"""One test per known defect of the module that this package re-implements.

Each holds on both back ends, and would fail on that module.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import redis
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from onegov_ormcache.errors import StoreUnreachable, TextualControlError, ValueNotCacheable
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import before
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import FileRuns, RedisCommands, Runs, SqlStatements
from tests.support.models import Document, Group, Letter, User, membership
from tests.support.servers import RedisServer

RedisOps = Callable[[int], AbstractContextManager[RedisCommands]]
Queries = Callable[[int], AbstractContextManager[SqlStatements]]


class Library(OrmCacheApp):
    """An application with a property for each kind of policy."""

    runs = Runs()

    @orm_cached(policy='on-table-change:users')
    def users(self) -> Any:
        self.runs('users')
        return self.session().query(User.name).order_by(User.name)

    @orm_cached(policy='on-table-change:membership')
    def members(self) -> Any:
        return self.session().query(membership.c.user_id, membership.c.group_id)

    @orm_cached(policy='on-table-change:documents')
    def titles(self) -> Any:
        return self.session().query(Document.title).order_by(Document.title)

    @orm_cached(policy='on-table-change:letters')
    def addresses(self) -> Any:
        return self.session().query(Letter.address)

    @orm_cached(policy=lambda obj: isinstance(obj, Document) and obj.state == 'public')
    def public(self) -> Any:
        query = self.session().query(Document.title).filter(Document.state == 'public')
        return query.order_by(Document.title)


def names(app: Library) -> list[str]:
    return [row.name for row in app.users]


def test_fill_between_flush_and_commit(applications: Applications, tenant: str) -> None:
    """What another process caches between a flush and its commit is gone after the commit."""
    app = applications.start(Library)
    other = applications.elsewhere(app)
    change(app, tenant, User(name='old'))
    with app.request_scope(tenant) as scope:
        scope.session().query(User).one().name = 'new'
        scope.session().flush()
        assert value(other, tenant, names) == ['old']
        scope.session().commit()
    assert value(other, tenant, names) == ['new']
    assert value(app, tenant, names) == ['new']


@pytest.mark.parametrize('level', ['REPEATABLE READ', 'SERIALIZABLE'])
def test_fill_from_an_old_view(on_servers: Applications, tenant: str, level: str) -> None:
    """A reader whose view is older than a commit does not cache the old value after it."""
    app = on_servers.start(Library, engine_options={'isolation_level': level})
    other = on_servers.elsewhere(app)
    change(app, tenant, User(name='old'))
    with app.request_scope(tenant) as scope:
        scope.session().execute(select(func.count()).select_from(Group)).one()
        change(other, tenant, User(name='new'))
        assert names(app) == ['old'], 'one view for the whole transaction'
    assert value(app, tenant, names) == ['new', 'old']
    assert value(other, tenant, names) == ['new', 'old']


def test_uncommitted_changes_stay_in_their_transaction(
    applications: Applications, tenant: str
) -> None:
    """A transaction sees its own changes, nobody else does, and a rollback leaves nothing."""
    app = applications.start(Library)
    other = applications.elsewhere(app)
    assert value(app, tenant, names) == []
    with app.request_scope(tenant) as scope:
        scope.session().add(User(name='mine'))
        assert names(app) == ['mine']
        assert value(other, tenant, names) == []
        scope.session().rollback()
        assert names(app) == []
    assert value(app, tenant, names) == []
    assert value(other, tenant, names) == []


def test_writer_that_never_read_evicts(on_servers: Applications, tenant: str) -> None:
    """A process that never read a property evicts it all the same, for every role."""

    class Roles(OrmCacheApp):
        identity: Any = None

        @orm_cached(policy='on-table-change:users', by_role=True)
        def count(self) -> int:
            return self.session().query(User).count()

    class Identity:
        def __init__(self, role: str) -> None:
            self.role = role

    reader = on_servers.start(Roles)
    writer = on_servers.elsewhere(reader)
    for role in 'admin', 'member':
        reader.identity = Identity(role)
        assert value(reader, tenant, lambda app: app.count) == 0
    change(writer, tenant, User(name='new'))
    for role in 'admin', 'member':
        reader.identity = Identity(role)
        assert value(reader, tenant, lambda app: app.count) == 1


def test_value_and_stamp_are_one_key(
    on_servers: Applications, tenant: str, own_redis: RedisServer
) -> None:
    """A property is one key, so that no eviction can come between two fetches."""
    app = on_servers.start(Library, redis_url=own_redis.url)
    value(app, tenant, names)
    keys = own_redis.client().keys('*')
    assert sorted(key.split(b'}')[1].split(b':')[1] for key in keys) == [b'tags', b'value']


def test_function_policy_sees_the_state_before(applications: Applications, tenant: str) -> None:
    """An object that leaves or enters what a function policy looks for evicts."""
    app = applications.start(Library)
    read = lambda app: [row.title for row in app.public]  # noqa: E731
    change(app, tenant, Document(kind='document', title='a', state='public'))
    assert value(app, tenant, read) == ['a']
    with committed(app, tenant) as scope:
        scope.session().query(Document).one().state = 'secret'
    assert value(app, tenant, read) == []
    with committed(app, tenant) as scope:
        scope.session().query(Document).one().state = 'public'
    assert value(app, tenant, read) == ['a']
    with committed(app, tenant) as scope:
        scope.session().delete(scope.session().query(Document).one())
    assert value(app, tenant, read) == []


def test_pending_objects_are_flushed(applications: Applications, tenant: str) -> None:
    """New and deleted objects are flushed before a read, not only dirty ones."""
    app = applications.start(Library)
    with app.request_scope(tenant) as scope:
        session = scope.session()
        assert names(app) == []
        user = User(name='new')
        session.add(user)
        assert names(app) == ['new']
        session.delete(user)
        assert names(app) == []


def upsert(scope: Any) -> Any:
    dialect = scope.session().get_bind().dialect.name
    module = postgresql if dialect == 'postgresql' else sqlite
    statement = module.insert(User).values(id=101, name='upserted')
    return statement.on_conflict_do_update(index_elements=['id'], set_={'name': 'upserted'})


CHANGES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    'secondary table': (
        lambda scope: scope.session().add(
            Group(name='g', users=[scope.session().get(User, 101)]),
        ),
        lambda app: len(app.members),
    ),
    'base table of joined inheritance': (
        lambda scope: setattr(scope.session().get(Letter, 102), 'title', 'renamed'),
        lambda app: app.titles,
    ),
    'joined table': (
        lambda scope: setattr(scope.session().get(Letter, 102), 'address', 'elsewhere'),
        lambda app: app.addresses,
    ),
    'cascade in the database': (
        lambda scope: scope.session().delete(scope.session().get(User, 101)),
        lambda app: app.titles,
    ),
    'core insert': (
        lambda scope: scope.session().execute(insert(User).values(name='core')),
        lambda app: app.users,
    ),
    'core update': (
        lambda scope: scope.session().execute(update(User).values(name='core')),
        lambda app: app.users,
    ),
    'core delete': (
        lambda scope: scope.session().execute(delete(Document).where(Document.id == 101)),
        lambda app: app.titles,
    ),
    'core on the connection': (
        lambda scope: scope.session().connection().execute(insert(User).values(name='core')),
        lambda app: app.users,
    ),
    'query update': (
        lambda scope: scope.session().query(User).update({'name': 'query'}),
        lambda app: app.users,
    ),
    'bulk insert': (
        lambda scope: scope.session().execute(insert(User), [{'name': 'a'}, {'name': 'b'}]),
        lambda app: app.users,
    ),
    'bulk save': (
        lambda scope: scope.session().bulk_save_objects([User(name='bulk')]),
        lambda app: app.users,
    ),
    'upsert': (
        lambda scope: scope.session().execute(upsert(scope)),
        lambda app: app.users,
    ),
    'text': (
        lambda scope: scope.session().execute(text("UPDATE users SET name = 'text'")),
        lambda app: app.users,
    ),
    'bulk change under a function policy': (
        lambda scope: scope.session().execute(update(Document).values(state='public')),
        lambda app: app.public,
    ),
}


@pytest.mark.parametrize('kind', CHANGES)
def test_every_kind_of_change_evicts(applications: Applications, tenant: str, kind: str) -> None:
    """Changes that no signal of the unit of work tells by table are seen all the same."""
    make, read = CHANGES[kind]
    app = applications.start(Library)
    other = applications.elsewhere(app)
    user = User(id=101, name='first')
    change(
        app,
        tenant,
        user,
        Document(id=101, kind='document', title='a', owner=user),
        Letter(id=102, title='b', address='here'),
    )
    before = value(other, tenant, read)
    assert value(other, tenant, read) == before
    with committed(app, tenant) as scope:
        make(scope)
    after = value(other, tenant, read)
    assert after != before
    with committed(app, tenant) as scope:
        app.request_cache.clear()
        assert read(app) == after


def test_orm_objects_are_refused_at_any_depth(applications: Applications, tenant: str) -> None:
    """An ORM object in a list in a dictionary is refused, with its place."""

    class Wrong(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def nested(self) -> Any:
            return {'page': [1, self.session().query(User).first()]}

    app = applications.start(Wrong)
    change(app, tenant, User(name='a'))
    with pytest.raises(ValueNotCacheable, match=r"nested\['page'\]\[1\].*ORM objects"):
        value(app, tenant, lambda app: app.nested)


def test_properties_of_one_qualified_name_are_apart(
    applications: Applications, tenant: str
) -> None:
    """Two properties made by one factory, and two classes of one name, share no value."""

    def reading(number: int) -> Any:
        @orm_cached(policy='on-table-change:users')
        def creator(self: OrmCacheApp) -> int:
            return number

        return creator

    def make_class(module: str, first: int) -> type[OrmCacheApp]:
        body = {'__module__': module, 'a': reading(first), 'b': reading(first + 1)}
        return type('Same', (OrmCacheApp,), body)

    one, two = make_class('one', 1), make_class('two', 3)
    seen = []
    for app_class in one, two:
        app = applications.start(app_class)
        seen.append(value(app, tenant, lambda app: (app.a, app.b)))
        app.close_orm_cache()
    assert seen == [(1, 2), (3, 4)]


def test_mutable_values_are_each_requests_own(applications: Applications, tenant: str) -> None:
    """What a request does to a value is seen by itself alone."""

    class Lists(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def lists(self) -> Any:
            return {'numbers': [1, 2]}

    app = applications.start(Lists)
    for _ in range(3):
        with app.request_scope(tenant):
            assert app.lists == {'numbers': [1, 2]}
            app.lists['numbers'].append(3)
            assert app.lists is app.lists
            assert app.lists == {'numbers': [1, 2, 3]}


def test_threads_share_no_request_state(applications: Applications, make_tenant: Any) -> None:
    """Two threads serve two tenants at the same moment with one app."""

    class Tenants(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def only(self) -> Any:
            return self.session().query(User.name).scalar()

        @request_cached
        def orm(self) -> Any:
            return self.session().query(User).one()

    app = applications.start(Tenants)
    tenants = [make_tenant(name) for name in ('one', 'two')]
    for tenant in tenants:
        change(app, tenant, User(name=tenant))
    barrier = threading.Barrier(2)

    def serve(tenant: str) -> list[tuple[str, str, str]]:
        seen = []
        for _ in range(20):
            with app.request_scope(tenant):
                barrier.wait(30)
                seen.append((app.schema, app.only, app.orm.name))
        return seen

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(serve, tenants))
    assert results == [[(tenant, tenant, tenant)] * 20 for tenant in tenants]


class Many(OrmCacheApp):
    """An application with ten properties of one table."""


def _property(number: int) -> Any:
    def creator(self: OrmCacheApp) -> int:
        return self.session().query(User).count() * 100 + number

    return creator


for _number in range(10):
    Many.orm_cached(policy='on-table-change:users', name=f'p{_number}')(_property(_number))


def read_many(app: Any) -> list[int]:
    return [getattr(app, f'p{number}') for number in range(10)]


def test_warm_request_is_one_round_trip(
    applications: Applications, tenant: str, redis_ops: RedisOps, db_queries: Queries
) -> None:
    """A warm request costs one Redis command and no SQL, for any number of properties."""
    app = applications.start(Many)
    value(app, tenant, read_many)
    value(app, tenant, read_many)
    with redis_ops(1), db_queries(0) as seen, app.request_scope(tenant):
        assert read_many(app) == list(range(10))
        assert read_many(app) == list(range(10))
    assert seen.checkouts == 0


def test_commit_costs_the_same_for_any_number_of_objects(
    applications: Applications,
    tenant: str,
    redis_commands: Callable[[], Any],
    sql_statements: Callable[[], Any],
) -> None:
    """A commit is two round trips, and one statement more, for 1 object or 1,000."""
    app = applications.start(Many)
    value(app, tenant, read_many)
    costs = []
    for count in 1, 1000:
        with app.request_scope(tenant) as scope:
            session = scope.session()
            session.connection()
            session.add_all(User(name=f'{count}-{n}') for n in range(count))
            session.flush()
            with redis_commands() as redis, sql_statements() as sql:
                session.commit()
            costs.append((redis.count, sql.count))
    servers = applications.backend.name == 'servers'
    assert costs == [(2, 1) if servers else (0, 0)] * 2
    assert value(app, tenant, read_many) == [100_100 + n for n in range(10)]


HERD = """
import sys, threading
from tests.functional.test_seed_defects import herd_app
app = herd_app(*sys.argv[1:4], sys.argv[5])
barrier = threading.Barrier(4)
def read():
    barrier.wait()
    with app.request_scope(sys.argv[4]):
        seen.append(app.slow)
seen = []
threads = [threading.Thread(target=read) for _ in range(4)]
print('ready', flush=True)
sys.stdin.readline()
for thread in threads: thread.start()
for thread in threads: thread.join()
print(seen, flush=True)
"""


def herd_app(dsn: str, redis_url: str, namespace: str, file: str) -> OrmCacheApp:
    """An app whose creator counts its runs over all processes, and takes its time."""
    runs = FileRuns(file)

    class Herd(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def slow(self) -> int:
            runs('slow')
            if self.session().get_bind().dialect.name == 'postgresql':
                self.session().execute(select(func.pg_sleep(0.2)))
            return self.session().query(User).count()

    from tests.support.models import Base

    settings = {'dsn': dsn, 'redis_url': redis_url, 'namespace': namespace, 'base': Base}
    Herd.setting_section(section='orm_cache')(lambda: settings)
    app = Herd()
    app.setup_orm_cache()
    return app


def test_cold_herd_runs_the_creator_once(
    on_servers: Applications, tenant: str, file_runs: FileRuns
) -> None:
    """Eight threads in two processes that start cold run the creator once."""
    settings = on_servers.backend.settings
    arguments = [settings['dsn'], settings['redis_url'], settings['namespace'], tenant]
    app = herd_app(*arguments[:3], str(file_runs.path))
    with app.request_scope(tenant) as scope:
        scope.session().connection()  # the tenant is born, and its quarantine has ended
    app.close_orm_cache()
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', HERD, *arguments, str(file_runs.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == 'ready\n'
    results = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write('go\n')
        process.stdin.flush()
    for process in processes:
        results.append(process.communicate(timeout=60)[0])
        assert process.returncode == 0
    assert results == ['[0, 0, 0, 0]\n'] * 2
    assert file_runs.count('slow') == 1


def test_reads_go_on_without_redis(
    on_servers: Applications, tenant: str, own_redis: RedisServer
) -> None:
    """Without Redis, reads come from the database, and a commit that changes tables is
    refused; when it is back, all is as before."""
    app = on_servers.start(Library, redis_url=own_redis.url)
    change(app, tenant, User(name='a'))
    assert value(app, tenant, names) == ['a']
    own_redis.kill()
    assert value(app, tenant, names) == ['a']
    with pytest.raises(StoreUnreachable):
        change(app, tenant, User(name='b'))
    assert value(app, tenant, names) == ['a']
    own_redis.start()
    change(app, tenant, User(name='b'))
    assert value(app, tenant, names) == ['a', 'b']


def test_a_stalled_redis_holds_nobody_up(
    on_servers: Applications, tenant: str, own_redis: RedisServer
) -> None:
    """A Redis that does not answer is waited for once per transaction, and no longer than set."""
    app = on_servers.start(Library, redis_url=own_redis.url, redis_timeout=0.05)
    change(app, tenant, User(name='a'))
    asked = 0
    ask = app.orm_cache.tags.snapshot

    def counted(schema: str) -> Any:
        nonlocal asked
        asked += 1
        return ask(schema)

    app.orm_cache.tags.snapshot = counted  # type: ignore[method-assign]
    own_redis.pause()
    try:
        with app.request_scope(tenant):
            assert names(app) == ['a']
            assert len(app.titles) == 0
        assert asked == 1
    finally:
        own_redis.resume()
    assert value(app, tenant, names) == ['a']


def test_outage_policy_continue(
    on_servers: Applications, tenant: str, own_redis: RedisServer
) -> None:
    """With on_outage='continue', commits go through, and nothing stale is left after it."""
    app = on_servers.start(Library, redis_url=own_redis.url, on_outage='continue')
    change(app, tenant, User(name='a'))
    assert value(app, tenant, names) == ['a']
    other = on_servers.elsewhere(app)
    assert value(other, tenant, names) == ['a']
    own_redis.pause()
    try:
        change(app, tenant, User(name='b'))
    finally:
        own_redis.resume()
    assert value(app, tenant, names) == ['a', 'b']
    assert value(other, tenant, names) == ['a', 'b']


def test_memory_is_bounded(applications: Applications, tenant: str) -> None:
    """The process tier keeps to its bound, whatever is read."""

    class Large(OrmCacheApp):
        """Properties of 10 kB each."""

    for number in range(20):
        Large.orm_cached(policy='on-table-change:users', name=f'large{number}')(
            lambda app: b'x' * 10_000
        )
    app = applications.start(Large, process_cache_size=100_000)
    with app.request_scope(tenant):
        for number in range(20):
            assert len(getattr(app, f'large{number}')) == 10_000
    tier = app.orm_cache.process_tier
    assert 0 < tier.bytes_held <= 100_000


@pytest.mark.parametrize(
    'sql',
    ['COMMIT', 'end', '-- so\nROLLBACK', 'SELECT 1; COMMIT', 'BEGIN', "PREPARE TRANSACTION 'x'"],
)
def test_textual_transaction_control(applications: Applications, tenant: str, sql: str) -> None:
    """A text that would begin or end the transaction is refused, before it is executed."""
    app = applications.start(Library)
    with app.request_scope(tenant) as scope:
        scope.session().add(User(name='a'))
        scope.session().flush()
        with pytest.raises(TextualControlError):
            scope.session().execute(text(sql))
        assert names(app) == ['a']
    assert value(app, tenant, names) == []


def test_textual_savepoint(applications: Applications, tenant: str) -> None:
    """What a savepoint undoes by its text is not seen any more."""
    app = applications.start(Library)
    with app.request_scope(tenant) as scope:
        session = scope.session()
        session.execute(text('SAVEPOINT here'))
        session.execute(insert(User).values(name='a'))
        assert names(app) == ['a']
        session.execute(text('ROLLBACK TO SAVEPOINT here'))
        assert names(app) == []
        session.commit()
    assert value(app, tenant, names) == []


def test_a_publish_that_is_tried_twice(
    on_servers: Applications, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply of Redis is lost, the value is read and changed again, and then the script
    runs a second time: no old version comes back."""
    app = on_servers.start(Library)
    other = on_servers.elsewhere(app)
    change(app, tenant, User(name='a'))
    assert value(other, tenant, names) == ['a']
    tags: Any = app.orm_cache.tags
    connection_class = type(tags.client.connection_pool.make_connection())
    read_response = connection_class.read_response
    publishing = False

    def lose_reply(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal publishing
        reply = read_response(self, *arguments, **options)
        if publishing:
            publishing = False
            assert value(other, tenant, names) == ['a', 'b']
            change(other, tenant, User(name='c'))
            self.disconnect()
            raise redis.ConnectionError('the reply is lost')
        return reply

    def about_to_publish() -> None:
        nonlocal publishing
        publishing = True

    monkeypatch.setattr(connection_class, 'read_response', lose_reply)
    with before(Step.PUBLISH, about_to_publish):
        change(app, tenant, User(name='b'))
    assert not publishing
    for reader in other, app:
        assert value(reader, tenant, names) == ['a', 'b', 'c']
