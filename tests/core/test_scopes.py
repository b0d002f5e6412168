"""A scope ends for good, keeps what is its own, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest
import redis
from sqlalchemy import func, insert, select

from onegov_ormcache import OrmCache, orm_cached
from onegov_ormcache.database import catalog, oracle
from onegov_ormcache.errors import OutsideScopeError, ScopeClosedError, SecondProcessError
from tests.core.plain_objects import Names, add
from tests.support.backends import Backend
from tests.support.models import Base, User

COUNT = select(func.count()).select_from(User)


def test_closed_scope_refuses(cache: OrmCache, tenant: str) -> None:
    """A scope that is closed refuses, and so do its session, its connections and properties,
    however they were kept."""
    names = Names(cache)
    add(cache, tenant, User(id=1, name='a'))
    with cache.scope(tenant) as scope:
        session, user = scope.session(), scope.session().get_one(User, 1)
        connection = cache.session_manager.engine.connect()
        connection.execute(COUNT)
        connection.commit()
        engine = session.get_bind()
        names.users
        context = copy_context()
    uses: list[Callable[[], Any]] = [
        scope.session,
        lambda: session.execute(COUNT),
        lambda: session.get(User, 1),
        lambda: session.add(user) or session.flush() or user.groups,
        session.connection,
        lambda: connection.execute(COUNT),
        lambda: engine.connect().execute(COUNT),
        lambda: context.run(lambda: names.users),
        lambda: context.run(lambda: names.first),
        lambda: context.run(lambda: cache.prefetch(names, 'users')),
        lambda: context.run(cache.session),
        lambda: context.run(lambda: cache.session_manager.engine.connect().execute(COUNT)),
    ]
    for use in uses:
        with pytest.raises(ScopeClosedError, match=rf'{tenant}.* is closed.*open another'):
            use()
    assert issubclass(ScopeClosedError, OutsideScopeError)
    connection.close()
    for close in session.close, scope.close, scope.close:
        close()
    assert 'closed' in repr(scope)


def test_connection_keeps_its_scope(
    cache: OrmCache, tenant: str, make_tenant: Callable[[str], str]
) -> None:
    """A connection that is used again within the scope of another tenant works for the tenant of
    the scope it was first used in, and evicts there."""
    second = make_tenant('second')
    names = Names(cache)
    add(cache, second, User(name='b'))
    with cache.scope(tenant) as scope, cache.session_manager.engine.connect() as connection:
        assert connection.scalar(COUNT) == 0
        connection.commit()
        with cache.scope(second):
            assert connection.scalar(COUNT) == 0
            assert names.users == (('b',),)
        assert names.users == ()
        connection.rollback()
        scope.session().rollback()
        with cache.scope(second):
            connection.execute(insert(User).values(name='a'))
            connection.commit()
            assert names.users == (('b',),)
        assert names.users == (('a',),)


def test_nothing_of_a_scope_stays(cache: OrmCache, tenant: str) -> None:
    """When a scope has ended, it is collected with its sessions and objects; so is a session that
    was kept and used."""
    kept: list[Any] = []

    class Keeping:
        orm_cache = cache

        @orm_cached(policy='auto')
        def count(self) -> Any:
            session = cache.session()
            kept.append(session)
            return len(session.query(User).all())

    add(cache, tenant, User(id=1, name='a'))
    with cache.scope(tenant) as scope:
        kept += [scope, cache.session(), cache.session().get(User, 1)]
        with cache.session_manager.engine.connect() as connection:
            connection.execute(COUNT)
            kept.append(connection)
        assert Keeping().count == 1
        kept += [scope.session().connection(), *scope.transactions]
    with pytest.raises(ScopeClosedError):
        kept[1].execute(COUNT)
    assert len(kept) == 7
    references = [weakref.ref(one) for one in kept]
    kept.clear()
    del scope, connection
    gc.collect()
    assert [reference() for reference in references] == [None] * 7


def test_fork_within_a_scope(embedded_backend: Backend) -> None:
    """On the embedded default a child that is forked within a scope is refused in this scope,
    also values that its parent has read; the parent goes on."""
    with OrmCache(base=Base, **embedded_backend.settings) as cache, cache.scope('main') as scope:
        names = Names(cache)
        assert names.users == ()
        child = os.fork()
        if child == 0:
            refused = 0
            uses = (
                lambda: names.users,
                lambda: names.groups,
                cache.session,
                lambda: cache.prefetch(names, 'groups'),
                lambda: cache.session_manager.engine.connect().execute(COUNT),
            )
            for use in uses:
                try:
                    use()
                except SecondProcessError:
                    refused += 1
                except BaseException:
                    os._exit(99)
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        assert names.users == ()
        scope.session().add(User(name='a'))
        assert names.users == (('a',),)


def lose(backend: Backend) -> None:
    """Delete all that the back end has on Redis, so that each tenant is born anew."""
    settings = backend.settings
    with redis.Redis.from_url(settings['redis_url']) as client:
        client.delete(*client.keys(f'*{settings["namespace"]}*'))


@pytest.mark.parametrize(
    ('module', 'question'),
    [(oracle, 'WRITERS'), (catalog, 'FUNCTIONS')],
    ids=['writers', 'functions'],
)
def test_question_that_fails(
    servers_backend: Backend,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    module: Any,
    question: str,
) -> None:
    """A question to the database that fails, about a quarantine or about functions, is no error of
    the view, whose transaction goes on."""

    class Calling:
        @orm_cached(policy='auto')
        def lengths(self) -> Any:
            return select(func.length(User.name).label('length'))

    with OrmCache(base=Base, **servers_backend.settings) as cache:
        add(cache, tenant, User(name='a'))
        calling: Any = Calling()
        calling.orm_cache = cache
        monkeypatch.setattr(module, question, 'SELECT 1 / 0')
        lose(servers_backend)
        with cache.scope(tenant) as scope:
            scope.session().add(User(name='b'))
            scope.session().flush()
            assert [path.tags >= {'table:users'} for path in scope.transactions] == [True]
            assert len(calling.lengths) == 2
            assert scope.session().scalar(COUNT) == 2
            scope.commit()
        with cache.scope(tenant) as scope:
            assert len(calling.lengths) == 2
            assert scope.session().scalar(COUNT) == 2
    messages = [record.getMessage() for record in caplog.records]
    asked = [message for message in messages if 'can not be asked' in message]
    assert bool(asked) == (question == 'WRITERS')
