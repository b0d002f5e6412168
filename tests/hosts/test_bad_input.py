"""What a host does wrong is an error that says what to do, or harmless."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import transaction
from sqlalchemy import Connection, create_engine, insert, text
from sqlalchemy.orm import Session, object_session, sessionmaker

from fixtures.framework.models import User as Townsman
from fixtures.framework.town import Town
from fixtures.framework.values import TYPES
from onegov_ormcache import OrmCache, SessionManager, observe
from onegov_ormcache.errors import (
    AutocommitError,
    ConfigurationError,
    InvalidSchemaError,
    OrmCacheError,
    OutsideScopeError,
    TextualControlError,
)
from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.host import schema_option
from tests.support.models import Base, User

from .bare import MakeBareHost
from .host import Board, Host


def test_engine_observed_twice(host: Host) -> None:
    """An engine is observed once, also by the name of its options."""
    for engine in host.engine, host.engine.execution_options(schema='x'):
        with pytest.raises(ConfigurationError, match='observe each engine once'):
            observe(
                engine=engine, sessions=sessionmaker(), metadata=Base, schema_of=schema_option
            )


def test_second_cache_of_an_observer(host: Host) -> None:
    """An observer has one cache."""
    with pytest.raises(ConfigurationError, match='close that one, or observe once for each'):
        OrmCache(observer=host.observer, redis_url=host.backend['redis_url'])
    assert host.board.names == []


def test_engine_that_nobody_observes(host: Host, elsewhere: Host) -> None:
    """Nothing is read by a session of another engine, nor can it report a change."""
    options = {'options': f'-c search_path={host.schema}'}
    engine = create_engine(
        host.backend['dsn'], isolation_level='REPEATABLE READ', connect_args=options
    )
    assert host.board.names == []
    host.sessions.remove()
    with host.factory(bind=engine.execution_options(schema=host.schema)) as session:
        session.execute(text('SELECT count(*) FROM users'))
        elsewhere.add(User(name='Ada'))
        host.sessions.registry.set(session)
        with pytest.raises(ConfigurationError, match='give it to observe'):
            host.board.names
        with pytest.raises(OrmCacheError, match='give it to observe'):
            host.cache.mark_changed('users')
    host.sessions.remove()
    assert host.board.names == elsewhere.board.names == ['Ada']
    engine.dispose()


def test_session_of_a_factory_that_nobody_observes(host: Host) -> None:
    """Values can't be read by a session that does not tell what it has pending."""
    host.sessions.registry.set(Session(host.engine.execution_options(schema=host.schema)))
    with pytest.raises(ConfigurationError, match='nobody observes'):
        host.board.names
    host.sessions.remove()
    assert host.board.names == []


@pytest.mark.parametrize('schema', ['pg_catalog', '', 'a"b', 'a|b', 'a:b', 'x' * 64, 7, b'x'])
def test_no_name_of_a_tenant(host: Host, schema: Any) -> None:
    """A connection whose tenant has an impossible name is refused; others go on."""
    with pytest.raises(InvalidSchemaError, match='can not be the name of a tenant'):
        host.engine.connect().execution_options(schema=schema).execute(text('SELECT 1'))
    with pytest.raises(InvalidSchemaError, match='can not be the name of a tenant'):
        host.cache.enter_scope(schema)
    assert host.board.names == []
    assert host.engine.pool.checkedout() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize('name', ['Zürich Stadt', "d'Arc", 'a.b', 'a%b', '1-2', 'SELECT', 'a\\b'])
def test_odd_name(host: Host, elsewhere: Host, tenant: str, name: str) -> None:
    """A tenant may have a name that must be quoted in SQL."""
    schema = f'{tenant} {name}'[:63]
    with host.engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"'.replace('%', '%%'))
        connection.exec_driver_sql(f'SET search_path TO "{schema}"'.replace('%', '%%'))
        Base.metadata.create_all(connection)
    for each in host, elsewhere:
        each.schema = schema
        assert each.board.names == []
        each.session().rollback()
    host.add(User(name='Ada'))
    assert host.board.counts == elsewhere.board.counts == [1, 0]
    assert elsewhere.board.names == elsewhere.board.names == ['Ada']


def test_schema_of_raises(make_bare_host: MakeBareHost) -> None:
    """The host's own error comes through, and nothing is left of the transaction."""
    here: dict[str, Any] = {}

    def schema_of(connection: Connection) -> Any:
        return here['schema']

    host = make_bare_host(observed={'schema_of': schema_of}, pool_size=1, max_overflow=0)
    for _ in range(3):
        with pytest.raises(KeyError, match='schema'):
            host.session.execute(text('SELECT 1'))
        host.session.rollback()
    here['schema'] = host.schema
    assert host.names == []
    host.session.execute(insert(User).values(name='Ada'))
    del here['schema']
    with pytest.raises(KeyError, match='schema'):
        host.session.execute(text('SELECT 1'))
    here['schema'] = host.schema
    host.session.rollback()
    assert host.names == []


def test_schema_raises(make_bare_host: MakeBareHost) -> None:
    """A host whose function raises where it has no tenant can close its sessions there."""
    here: dict[str, Any] = {}
    host = make_bare_host(observed={'schema': lambda: here['schema']})
    here['schema'] = host.schema
    host.session.add(User(name='Ada'))
    assert host.names == ['Ada']
    session, host.session = host.session, host.new_session()
    del here['schema']
    session.commit()
    session.close()
    with pytest.raises(KeyError, match='schema'):
        host.names
    here['schema'] = host.schema
    assert host.names == ['Ada']


def test_neither_scope_nor_host(host: Host) -> None:
    """A property of an object without cache, or of a closed one, says what is missing."""
    board = Board(host, Runs())
    del board.orm_cache
    with pytest.raises(OutsideScopeError, match="no attribute 'orm_cache'"):
        board.names
    host.cache.close()
    with pytest.raises(OutsideScopeError, match='enter_scope'):
        host.board.names


def test_cache_of_its_own_beside_a_host(host: Host) -> None:
    """An application that makes its sessions can be in the same process as a host."""
    assert host.board.names == []
    manager = SessionManager(host.backend['dsn'], Base)
    with closing(OrmCache(session_manager=manager, redis_url=host.backend['redis_url'])) as cache:
        with pytest.raises(OutsideScopeError, match='outside of a request scope'):
            manager.database.engine('x').connect().execute(text('SELECT 1'))
        with cache.scope(str(host.schema)) as scope:
            assert scope.session().scalars(text('SELECT name FROM users')).all() == []
            assert host.board.names == []


def test_commit_by_the_driver(host: Host, elsewhere: Host) -> None:
    """A commit of which nobody could be told is refused, and rolled back."""
    assert elsewhere.board.names == []
    elsewhere.session().rollback()
    change = f'INSERT INTO "{host.schema}".users (name) VALUES (\'Ada\')'
    with closing(host.engine.raw_connection()) as raw:
        raw.cursor().execute('CREATE TEMPORARY TABLE own AS SELECT 1')
        raw.commit()  # no other connection sees this
        raw.cursor().execute(change)
        with pytest.raises(TextualControlError, match=r'engine\.begin\(\)'):
            raw.commit()
    with closing(host.engine.raw_connection()) as raw:
        driver: Any = raw.driver_connection
        with pytest.raises(TextualControlError, match=r'engine\.begin\(\)'):
            with driver.transaction():
                driver.execute(change)
    connection: Any = host.session().connection()
    connection.exec_driver_sql(change)
    with pytest.raises(TextualControlError, match='of the session or of its connection'):
        connection.connection.commit()
    host.session().rollback()
    assert host.board.names == elsewhere.board.names == []


def test_autocommit(host: Host) -> None:
    """A connection in AUTOCOMMIT is refused, wherever the option comes from."""
    engine = host.engine.execution_options(schema=host.schema, isolation_level='AUTOCOMMIT')
    with engine.connect() as connection, pytest.raises(AutocommitError):
        connection.execute(text('SELECT 1'))


@pytest.fixture
def town(servers_backend: Backend, make_tenant: Callable[[str], str]) -> Iterator[Town]:
    """A town on the framework."""
    settings = servers_backend.settings
    app = TownWithOtherCache()
    namespace = make_tenant('town')
    app.configure_application(
        settings['dsn'],
        redis_url=settings['redis_url'],
        namespace=namespace,
        orm_cache={'types': TYPES},
    )
    app.set_application_id(f'{namespace}/a')
    yield app
    transaction.abort()
    app.close()


class TownWithOtherCache(Town):
    """Its `cache` is no region of dogpile."""

    cache: Any = 'redis'


def test_cache_that_is_no_region(town: Town) -> None:
    """What a host has as `cache` is its own matter."""
    town.session().add(Townsman(name='Ada', role='admin'))
    assert town.admins == ('Ada',)
    transaction.commit()
    assert town.admins == ('Ada',)
    assert town.cache == 'redis'


def test_signal_of_another_thread(town: Town) -> None:
    """A handler evicts for the session of the object, in whichever thread it is called."""
    assert town.users == ()
    transaction.abort()
    handler = town.descriptor_bound_orm_change_handler(Town.users)
    ada = Townsman(name='Ada', role='admin')
    town.session().add(ada)
    assert len(town.users) == 1
    town.session().execute(text("UPDATE users SET name = 'Eve'"))
    schema, session = town.schema, object_session(ada)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(handler, schema, ada, session=session).result()
        pool.submit(handler, schema, obj=ada).result()
    assert [user.name for user in town.users] == ['Eve']
    transaction.commit()
    assert [user.name for user in town.users] == ['Eve']


def test_signal_of_an_unobserved_session(town: Town) -> None:
    """A handler refuses an object whose commit would evict nothing."""
    handler = town.descriptor_bound_orm_change_handler(Town.users)
    with Session() as session:
        ada = Townsman(name='Ada', role='admin')
        session.add(ada)
        with pytest.raises(ConfigurationError, match='nobody observes'):
            handler(town.schema, ada)
        with pytest.raises(ConfigurationError, match='nobody observes'):
            handler(town.schema, Townsman(name='Bob'), session=session)
    handler(town.schema, Townsman(name='Bob'))  # of no session: there is no change


def test_thread_of_a_pool(host: Host, elsewhere: Host, tenant: str) -> None:
    """A session that one thread has begun may be flushed and committed by another one."""
    assert elsewhere.board.names == elsewhere.board.with_a == []
    elsewhere.session().rollback()
    session = host.session()
    session.add(User(name='Ada'))
    session.flush()

    def go_on() -> None:
        session.add(User(name='Amy'))
        session.commit()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(go_on).result()
    assert host.board.names == elsewhere.board.names == ['Ada', 'Amy']
    assert host.board.with_a == elsewhere.board.with_a == ['Ada', 'Amy']
