"""Defects of the seed by which a request read a stale value: one test each.

The seed is the module that this package re-implements. Each test holds on both back ends, and
would fail on that module. The same is true of the other files called test_seed_*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.errors import TextualControlError
from tests.functional.every_policy import Library, names
from tests.support.applications import Applications, change, committed, value
from tests.support.models import Document, Group, Letter, User
from tests.support.servers import RedisServer


def test_fill_between_flush_and_commit(applications: Applications, tenant: str) -> None:
    """A value that another process caches between a flush and its commit is not valid after the
    commit."""
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
    """A value and its stamp are one key, so that no eviction can come between two fetches."""
    app = on_servers.start(Library, redis_url=own_redis.url)
    value(app, tenant, names)
    keys = own_redis.client().keys('*')
    kinds = sorted(key.split(b'}')[1].split(b':')[1] for key in keys)
    assert kinds == [b'identities', b'tags', b'value']


def test_function_policy_sees_the_state_before(applications: Applications, tenant: str) -> None:
    """A change evicts if the function policy is true of the object before or after it."""
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
    """Changes evict also if no signal of the unit of work reports the changed table."""
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


@pytest.mark.parametrize(
    'sql',
    ['COMMIT', 'end', '-- so\nROLLBACK', '/* so */ BEGIN', "PREPARE TRANSACTION 'x'"],
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
    """Changes that a textual ROLLBACK TO SAVEPOINT undoes are not seen any more."""
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
