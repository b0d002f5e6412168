"""Properties are read without a `with` block, for the tenant and in the transaction of a host."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text, update
from sqlalchemy.orm import sessionmaker

from onegov_ormcache import OrmCache, observe, orm_cached
from onegov_ormcache.database.transactions import current_scope
from onegov_ormcache.errors import ConfigurationError, OutsideScopeError
from tests.support.counting import Runs
from tests.support.models import Base, Document, User

from .host import Host


def test_values_are_shared(host: Host, elsewhere: Host, runs: Runs) -> None:
    """What one process has computed, the other one is served from the shared tier."""
    host.add(User(name='Ada'))
    assert host.board.names == host.board.names == ['Ada']
    host.session().rollback()
    assert host.board.names == elsewhere.board.names == ['Ada']
    assert runs.count('names') == 1


def test_change_is_seen_by_the_next_transaction(host: Host, elsewhere: Host) -> None:
    """A snapshot ends with the host's transaction, and so does all that was read."""
    assert host.board.names == []
    elsewhere.add(User(name='Ada'))
    assert host.board.names == []
    host.session().commit()
    assert host.board.names == ['Ada']


@pytest.mark.parametrize('end', ['commit', 'rollback', 'close', 'remove', 'unit_ended'])
def test_snapshot_ends_without_use_of_the_database(
    host: Host, elsewhere: Host, end: str
) -> None:
    """A transaction that used nothing of the database ends the snapshot, too."""
    host.board.names
    host.session().rollback()
    assert host.board.names == []  # by the process tier, without a connection
    assert not host.session().in_transaction()
    elsewhere.add(User(name='Ada'))
    assert host.board.names == []
    if end == 'remove':
        host.sessions.remove()
    elif end == 'unit_ended':
        host.cache.unit_ended()
    else:
        getattr(host.session(), end)()
    assert host.board.names == ['Ada']


def test_own_change_is_seen_at_once(host: Host, elsewhere: Host, runs: Runs) -> None:
    """A transaction sees its own changes, others only what is committed, nobody what is not."""
    assert host.board.counts == [0, 0]
    host.session().add(User(name='Ada'))
    assert host.board.names == ['Ada']
    assert host.board.counts == [1, 0]
    assert elsewhere.board.names == []
    host.session().rollback()
    assert host.board.counts == [0, 0]
    assert host.board.names == elsewhere.board.names == []


def test_savepoint(host: Host) -> None:
    """Nothing is left of what was rolled back to a savepoint."""
    host.session().add(User(name='Ada'))
    assert host.board.names == ['Ada']
    savepoint = host.session().begin_nested()
    host.session().add(User(name='Bob'))
    assert host.board.names == ['Ada', 'Bob']
    savepoint.rollback()
    assert host.board.names == ['Ada']
    host.session().commit()
    assert host.board.names == ['Ada']


def test_switched_schema(host: Host, other_tenant: str) -> None:
    """Between two reads the host works for another tenant, whose values it gets."""
    host.add(User(name='Ada'))
    with host.at(other_tenant):
        host.add(User(name='Olga'))
    for _ in range(3):
        assert host.board.names == ['Ada']
        with host.at(other_tenant):
            assert host.board.names == host.board.names == ['Olga']
    host.session().rollback()
    with host.at(other_tenant):
        assert host.board.names == ['Olga']


def test_interleaved_transactions(host: Host, other_tenant: str) -> None:
    """The transactions of two tenants in one thread end each by itself."""
    host.session().add(User(name='Ada'))
    assert host.board.names == ['Ada']
    with host.at(other_tenant):
        host.session().add(User(name='Olga'))
        assert host.board.names == ['Olga']
    assert host.board.names == ['Ada']
    host.session().rollback()
    assert host.board.names == []
    with host.at(other_tenant):
        assert host.board.names == ['Olga']
        host.session().commit()
    with host.at(other_tenant):
        assert host.board.names == ['Olga']


def test_session_of_another_schema(host: Host, elsewhere: Host, other_tenant: str) -> None:
    """A session's change belongs to its own tenant, whichever the host works for meanwhile."""
    with host.at(other_tenant):
        session = host.session()
        assert host.board.with_a == host.board.names == []
        session.rollback()
    assert host.board.names == []
    session.add(User(name='Ada'))
    session.flush()
    session.commit()
    for each in host, elsewhere:
        assert each.board.names == []
        with each.at(other_tenant):
            assert each.board.names == each.board.with_a == ['Ada']


def test_two_tenants_in_a_creator(host: Host, other_tenant: str, runs: Runs) -> None:
    """A value that was made of another tenant's is not stored."""
    host.add(User(name='Ada'))
    with host.at(other_tenant):
        host.add(User(name='Olga'))

    def creator(board: Any) -> Any:
        with host.at(other_tenant):
            others = board.names
        return [*others, *host.session().scalars(text('SELECT name FROM users'))]

    from onegov_ormcache import orm_cached

    board = type('Both', (type(host.board),), {'both': orm_cached(policy=User)(creator)})
    both = board(host, runs)
    assert both.both == ['Olga', 'Ada']
    with host.at(other_tenant):
        host.add(User(name='Oleg'))
    host.session().rollback()
    assert both.both == ['Olga', 'Oleg', 'Ada']


def test_closed_session_comes_back_anew(host: Host, elsewhere: Host) -> None:
    """The scope goes on with the session that the registry has next."""
    host.session().add(User(name='Ada'))
    assert host.board.names == ['Ada']
    host.sessions.remove()
    assert host.board.names == []
    host.session().add(User(name='Bob'))
    assert host.board.names == ['Bob']
    host.session().commit()
    assert host.board.names == elsewhere.board.names == ['Bob']


def test_pending_objects_of_a_new_session(host: Host) -> None:
    """A hit of the request tier does not hide what a session of later has pending."""
    assert host.board.names == host.board.names == []
    host.sessions.remove()
    assert host.board.names == host.board.names == []
    host.session().add(User(name='Ada'))
    assert host.board.names == ['Ada']


def test_begin_request(host: Host, elsewhere: Host, runs: Runs) -> None:
    """A request begins without any value of the one before, request-cached ones included."""
    host.add(User(name='Ada'))
    first = host.board.first
    assert first is host.board.first
    host.session().rollback()
    host.cache.begin_request()
    assert host.board.first is not None
    assert runs.count('first') == 2


def test_threads_are_apart(host: Host, tenant: str) -> None:
    """A thread has a scope of its own, which does not see another's uncommitted changes."""
    host.session().add(User(name='Ada'))
    assert host.board.names == ['Ada']

    def read() -> Any:
        host.schema = tenant
        try:
            return host.board.names, host.board.names
        finally:
            host.sessions.remove()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(read).result() == ([], [])
        # also with a copy of this thread's context
        assert pool.submit(contextvars.copy_context().run, read).result() == ([], [])
    assert host.board.names == ['Ada']


def test_thread_without_tenant(host: Host) -> None:
    """A thread for which the host has no tenant reads nothing, whatever another one has read."""
    host.board.names
    errors: list[BaseException] = []

    def read() -> None:
        try:
            host.board.names
        except OutsideScopeError as error:
            errors.append(error)

    context = contextvars.copy_context()
    thread = Thread(target=context.run, args=(read,))
    thread.start()
    thread.join()
    assert 'enter_scope' in str(errors[0])


def test_no_tenant(host: Host) -> None:
    """A property can't be read while the host works for no tenant."""
    host.board.names
    host.schema = None
    with pytest.raises(OutsideScopeError, match='enter_scope'):
        host.board.names


def test_host_has_other_schema_than_it_enters(host: Host, other_tenant: str) -> None:
    """A tenant that the host itself does not work for can't be entered."""
    with pytest.raises(ConfigurationError, match='switch its own schema first'):
        host.cache.enter_scope(other_tenant)
    assert host.cache.enter_scope(str(host.schema)) is host.cache.current_scope()


def test_scope_in_a_block(host: Host, elsewhere: Host, tenant: str) -> None:
    """A block works too; its end ends the snapshot, and leaves the host's session alone."""
    with host.cache.scope(tenant):
        assert host.board.names == []
    session = host.session()
    session.rollback()
    elsewhere.add(User(name='Ada'))
    with host.cache.scope(tenant):
        assert host.board.names == ['Ada']
    assert host.session() is session


def test_many_tenants_leave_no_scopes(host: Host, tenant: str) -> None:
    """A thread that works for many tenants keeps a bounded number of scopes."""
    scopes = host.cache.ambient
    assert scopes is not None
    for number in range(200):
        scopes.scope(f'{tenant}{number}')
    assert len(scopes._here.scopes) <= 64
    scopes.begin_request()
    assert len(scopes._here.scopes) <= 1


def test_lost_connection_ends_the_snapshot(host: Host, elsewhere: Host) -> None:
    """A transaction whose connection is gone keeps no snapshot alive."""
    assert host.board.names == []
    host.session().connection().invalidate()
    host.session().close()
    host.cache.begin_request()
    elsewhere.add(User(name='Ada'))
    host.cache.begin_request()
    assert host.board.names == ['Ada']


def test_child_has_scopes_of_its_own(host: Host) -> None:
    """A forked child does not use what its parent's transaction has read."""
    host.session().add(User(name='Ada'))
    assert host.board.names == ['Ada']
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            host.engine.dispose(close=False)
            host.sessions.registry.clear()
            os.write(write, repr(host.board.names).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b'[]'


def test_core_statements(host: Host, elsewhere: Host) -> None:
    """Changes by Core, by a text, and by a connection of the host's own are changes too."""
    host.add(User(name='Ada'), User(name='Bob'))
    assert elsewhere.board.names == ['Ada', 'Bob']
    host.session().execute(update(User).where(User.name == 'Ada').values(name='Eve'))
    host.session().commit()
    elsewhere.cache.unit_ended()
    elsewhere.session().rollback()
    assert elsewhere.board.names == ['Eve', 'Bob']
    with host.engine.connect().execution_options(schema=host.schema) as connection:
        connection.execute(text("UPDATE users SET name = 'Cyd' WHERE name = 'Bob'"))
        connection.commit()
    elsewhere.session().rollback()
    assert elsewhere.board.names == ['Eve', 'Cyd']


def test_functions_policies_are_asked(host: Host, elsewhere: Host, runs: Runs) -> None:
    """A function policy is asked about the objects that a host's session has flushed."""
    host.add(User(name='Ada'))
    assert elsewhere.board.with_a == ['Ada']
    elsewhere.session().rollback()
    host.add(User(name='Bob'), Document(kind='document', title='x'))
    assert elsewhere.board.with_a == ['Ada']
    assert runs.count('with_a') == 1
    elsewhere.session().rollback()
    host.add(User(name='Amy'))
    assert elsewhere.board.with_a == ['Ada', 'Amy']


def test_merged_objects(host: Host, runs: Runs) -> None:
    """With `merge`, objects belong to the present session; without, they are those of then."""
    host.add(User(name='Ada'), User(name='Bob'))
    first, everybody = host.board.first, host.board.all
    assert [user.name for user in everybody] == ['Ada', 'Bob']
    assert host.board.all is everybody
    host.session().rollback()
    host.session().close()
    merged = host.board.all
    assert all(user in host.session() for user in merged)
    assert [user.name for user in merged] == ['Ada', 'Bob']
    assert host.board.first is first
    assert first not in host.session()
    assert runs.count('all') == 1


def test_merged_objects_are_those_of_the_database(host: Host, elsewhere: Host, runs: Runs) -> None:
    """A merge copies no old state, and computes again if an object is gone."""
    host.add(User(name='Ada'), User(name='Bob'))
    assert len(host.board.all) == 2
    host.session().close()
    elsewhere.session().execute(update(User).where(User.name == 'Ada').values(name='Eve'))
    elsewhere.session().commit()
    assert [user.name for user in host.board.all] == ['Eve', 'Bob']
    assert not host.session().dirty
    host.session().close()
    elsewhere.session().execute(text('DELETE FROM users'))
    elsewhere.session().commit()
    assert host.board.all == []
    assert runs.count('all') == 2


def test_shown_values(make_host: Callable[..., Host]) -> None:
    """Nothing of this host has a mapping of its own to be shown values in; see the framework."""
    assert make_host().cache.ambient is not None


def test_own_change_in_a_session_that_a_function_returns(tmp_path: Path) -> None:
    """A host without a registry, whose function returns its session, sees its own changes."""
    engine = create_engine(f'sqlite:///{tmp_path}/town.sqlite')
    factory = sessionmaker(bind=engine)
    observer = observe(
        engine=engine,
        sessions=factory,
        metadata=Base,
        schema_of=lambda connection: 'public',
        schema=lambda: 'public',
        session=lambda: session,
    )
    Base.metadata.create_all(engine)
    session = factory()

    class Town:
        orm_cache = cache = OrmCache(observer=observer)

        @orm_cached(policy=User)
        def names(self) -> list[str]:
            return list(self.cache.session().scalars(select(User.name)))

    with session, Town.cache:
        assert Town().names == []
        session.add(User(name='Ada'))
        assert Town().names == ['Ada']
        session.rollback()
        assert Town().names == []


def test_closed_cache_leaves_no_scope(host: Host) -> None:
    """The scope of a closed cache is not the current one of the thread that has closed it."""
    assert host.board.names == []
    assert current_scope.get() is not None
    host.cache.close()
    assert current_scope.get() is None
