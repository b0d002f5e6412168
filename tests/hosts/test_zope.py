"""The transactions of the packages `transaction` and `zope.sqlalchemy`, in one and two phases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
import zope.sqlalchemy
from sqlalchemy import create_engine, text, update
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from onegov_ormcache import OrmCache, observe, orm_cached
from onegov_ormcache import zope as integration
from onegov_ormcache.database.sessions import RunSession
from onegov_ormcache.errors import ConfigurationError, SnapshotConflict
from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.models import Base, Document, User

from .host import Host

#: How the host's sessions take part in transactions.
KINDS: dict[str, dict[str, Any]] = {
    'one phase': {},
    'two phases': {'session_options': {'twophase': True}},
    'serializable': {'isolation_level': 'SERIALIZABLE'},
}


def integrate(host: Host, **options: Any) -> integration.Integration:
    """Let a host commit by the package `transaction`."""
    zope.sqlalchemy.register(host.sessions, **options)
    return integration.integrate(host.cache, **options)


@pytest.fixture(params=KINDS)
def zope_host(request: pytest.FixtureRequest, make_host: Callable[..., Host]) -> Iterator[Host]:
    """A host whose sessions join the transactions of the thread."""
    host = make_host(**KINDS[request.param])
    integrate(host)
    yield host
    transaction.abort()


def test_commit_and_abort(zope_host: Host, elsewhere: Host) -> None:
    """What is committed is seen by others, what is aborted by nobody, own changes at once."""
    host = zope_host
    host.session().add(User(name='Ada'))
    assert host.board.names == ['Ada']
    assert elsewhere.board.names == []
    transaction.commit()
    elsewhere.session().rollback()
    assert host.board.names == elsewhere.board.names == ['Ada']
    host.session().add(User(name='Bob'))
    assert host.board.counts == [2, 0]
    transaction.abort()
    assert host.board.counts == [1, 0]
    assert host.board.names == ['Ada']


@pytest.mark.parametrize('end', ['commit', 'abort', 'begin'])
def test_transaction_that_uses_no_session(zope_host: Host, elsewhere: Host, end: str) -> None:
    """A snapshot ends with the transaction, also if no session has joined it."""
    # the first value of a new tenant is not stored in a transaction of two phases
    assert elsewhere.board.names == []
    elsewhere.session().rollback()
    assert zope_host.board.names == []
    transaction.commit()
    transaction.begin()
    assert zope_host.board.names == []
    assert not zope_host.session().in_transaction()
    elsewhere.add(User(name='Ada'))
    assert zope_host.board.names == []
    getattr(transaction, end)()
    assert zope_host.board.names == ['Ada']


def test_savepoint(zope_host: Host) -> None:
    """Nothing is left of what was rolled back to a savepoint of the transaction."""
    zope_host.session().add(User(name='Ada'))
    savepoint = transaction.savepoint()
    zope_host.session().add(User(name='Bob'))
    assert zope_host.board.names == ['Ada', 'Bob']
    savepoint.rollback()
    assert zope_host.board.names == ['Ada']
    transaction.commit()
    assert zope_host.board.names == ['Ada']


def test_hook_after_the_commit(zope_host: Host, elsewhere: Host) -> None:
    """What runs after a commit sees the new versions. A hook can't use a session that joins the
    transaction, so the value that it shows was computed by another process after the commit."""
    host = zope_host
    host.board.names
    elsewhere.board.names
    elsewhere.session().rollback()
    seen: list[Any] = []

    def hook(success: bool) -> None:
        seen.append((success, elsewhere.board.names, host.board.names))

    host.session().add(User(name='Ada'))
    transaction.get().addAfterCommitHook(hook)
    transaction.commit()
    assert seen == [(True, ['Ada'], ['Ada'])]


def test_mark_changed_alone(zope_host: Host, elsewhere: Host, runs: Runs) -> None:
    """A change that is only reported is committed, though no session has flushed anything."""
    elsewhere.board.names
    elsewhere.session().rollback()
    zope_host.cache.mark_changed('users')
    transaction.commit()
    elsewhere.board.names
    assert runs.count('names') == 2


def test_text_that_is_marked(zope_host: Host, elsewhere: Host) -> None:
    """A text evicts what it has changed, if zope.sqlalchemy commits it."""
    elsewhere.add(User(name='Ada'))
    assert elsewhere.board.names == ['Ada']
    elsewhere.session().rollback()
    zope_host.session().execute(text("UPDATE users SET name = 'Eve'"))
    assert zope_host.board.names == ['Eve']
    transaction.commit()  # zope.sqlalchemy has seen no change
    assert zope_host.board.names == elsewhere.board.names == ['Ada']
    elsewhere.session().rollback()
    zope_host.session().execute(text("UPDATE users SET name = 'Eve'"))
    zope.sqlalchemy.mark_changed(zope_host.session())
    transaction.commit()
    assert zope_host.board.names == elsewhere.board.names == ['Eve']


def test_creator_that_writes(zope_host: Host, elsewhere: Host, runs: Runs) -> None:
    """What a creator writes by its own session is committed with the transaction."""
    host = zope_host

    class Writing(type(host.board)):  # type: ignore[misc]
        @orm_cached(policy=User)
        def written(self) -> Any:
            session = self.host.session()
            assert isinstance(session, RunSession)
            session.execute(update(User).values(name='Eve'))
            return 'done'

    host.session().add(User(name='Ada'))
    transaction.commit()
    assert Writing(host, runs).written == 'done'
    transaction.commit()
    assert elsewhere.board.names == host.board.names == ['Eve']


def test_conflict_is_tried_again(zope_host: Host, elsewhere: Host) -> None:
    """A conflict of the cache is one that the transaction manager tries again."""
    attempts = 0
    for attempt in transaction.manager.attempts(2):
        with attempt:
            attempts += 1
            zope_host.session().add(User(name=f'Ada {attempts}'))
            zope_host.session().flush()
            if attempts == 1:
                raise SnapshotConflict('on purpose')
    assert attempts == 2
    assert elsewhere.board.names == ['Ada 2']


def test_write_skew_at_the_commit(make_host: Callable[..., Host]) -> None:
    """Two writers that each read through the cache what the other changes: the second one tries
    again, by the host's own means, and sees the first one's change."""
    first, second = (make_host(isolation_level='SERIALIZABLE') for _ in range(2))
    integrate(first)
    transaction.commit()
    assert first.board.names == second.board.names == []
    assert first.board.titles == second.board.titles == []
    transaction.commit()
    second.session().rollback()
    seen: list[Any] = []
    for attempt in transaction.manager.attempts(3):
        with attempt:
            seen.append(first.board.names)
            first.session().add(Document(kind='document', title=f'{len(seen)}'))
            first.session().flush()
            if len(seen) == 1:
                assert second.board.titles == []
                second.add(User(name='Ada'))
    assert seen == [[], ['Ada']]
    assert first.board.titles == ['2']


def test_error_of_another_kind_is_not_tried_again(zope_host: Host) -> None:
    """An error that is no conflict leaves the transaction manager as it is."""
    attempts = []
    with pytest.raises(ZeroDivisionError):
        for attempt in transaction.manager.attempts(2):
            with attempt:
                attempts.append(zope_host.board.names)
                raise ZeroDivisionError
    assert attempts == [[]]


def test_kept_sessions(make_host: Callable[..., Host], elsewhere: Host) -> None:
    """With sessions that are kept, whose transaction stays open, each transaction of the host
    gets a snapshot of its own."""
    host = make_host()
    integrate(host, keep_session=True)
    assert host.board.names == []
    transaction.commit()
    assert host.session().in_transaction()
    elsewhere.add(User(name='Ada'))
    transaction.begin()
    assert host.board.names == ['Ada']
    host.session().add(User(name='Bob'))
    transaction.commit()
    elsewhere.session().rollback()
    assert host.board.names == elsewhere.board.names == ['Ada', 'Bob']
    host.session().rollback()


def test_registered_class(servers_backend: Backend, host: Host, runs: Runs) -> None:
    """Sessions of a class that was registered join; those of creators do not."""

    class Joining(Session):
        pass

    integration.register(Joining)
    sessions = scoped_session(sessionmaker(class_=Joining))
    engine = create_engine(servers_backend.settings['dsn'])
    observer = observe(
        engine=engine,
        sessions=sessions,
        metadata=Base,
        schema_of=lambda connection: connection.get_execution_options().get('schema'),
    )
    schema = str(host.schema)
    sessions.configure(bind=engine.execution_options(schema=schema))
    host.add(User(name='Ada'))
    settings = {key: servers_backend.settings[key] for key in ('redis_url', 'namespace')}
    with OrmCache(observer=observer, **settings) as cache:
        integration.integrate(cache)
        cache.enter_scope(schema)

        class Town:
            orm_cache = cache

            @orm_cached(policy=User)
            def names(self) -> Any:
                sessions().connection().exec_driver_sql(f'SET search_path TO "{schema}"')
                return [user.name for user in sessions().query(User)]

        assert Town().names == ['Ada']
        sessions().add(User(name='Bob'))
        transaction.commit()
        assert Town().names == ['Ada', 'Bob']
        transaction.abort()
    engine.dispose()


def test_integrated_once(zope_host: Host) -> None:
    """A cache that several threads integrate follows each manager once."""
    found = integration.integrate(zope_host.cache)
    assert integration.integrate(zope_host.cache) is found


def test_cache_without_host(servers_backend: Backend) -> None:
    """A cache that makes its sessions itself can't follow the transactions of others."""
    with (
        OrmCache(base=Base, **servers_backend.settings) as cache,
        pytest.raises(ConfigurationError, match='observe'),
    ):
        integration.integrate(cache)


@pytest.mark.parametrize('package', ['transaction', 'zope.interface', 'zope.sqlalchemy'])
def test_missing_extra_is_named(package: str) -> None:
    """Without the packages of the extra, the import says what to install."""
    program = (
        f'import sys\nsys.modules[{package!r}] = None\n'
        'from onegov_ormcache.errors import MissingExtraError\n'
        'try:\n    import onegov_ormcache.zope\n'
        'except MissingExtraError as error:\n    print(error)\n'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.stdout.strip() == (
        f'onegov_ormcache.zope needs {package}: python -m pip install "onegov_ormcache[zope]"'
    ), done.stderr
