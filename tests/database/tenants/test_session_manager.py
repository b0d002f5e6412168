"""A session manager refuses a base or URL that it can't use, and tells conflicts by their code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sqlalchemy import MetaData
from sqlalchemy.exc import DBAPIError, OperationalError

from onegov_ormcache.database.session_manager import SessionManager, metadatas_of
from onegov_ormcache.errors import ConfigurationError, DatabaseUnreachable
from tests.database.fakes import Base, Item, names, open_scope


def test_bases() -> None:
    """A base is a declarative base, a MetaData, or several of these."""
    metadata = MetaData()
    assert metadatas_of(Base) == [Base.metadata]
    assert metadatas_of(metadata) == [metadata]
    assert metadatas_of((Base, metadata)) == [Base.metadata, metadata]
    for wrong in (None, object, [], [Base, None], 'base', 7):
        with pytest.raises(ConfigurationError, match='base'):
            metadatas_of(wrong)


@pytest.mark.parametrize(
    'wrong',
    [
        '',
        'nonsense',
        'mysql://localhost/x',
        'postgresql+nonsense://localhost/x',
        'sqlite://',
        'sqlite:///:memory:',
        'sqlite:///folder?mode=ro',
    ],
)
def test_wrong_dsn(wrong: str) -> None:
    """A URL that can not be used is told before anybody connects."""
    with pytest.raises(DatabaseUnreachable, match='dsn'):
        SessionManager(wrong, Base)


@pytest.mark.parametrize('driver', ['psycopg', 'psycopg2'])
def test_driver_that_is_not_installed(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message says what to install, and how the URL begins with the driver that this is."""
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(DatabaseUnreachable) as raised:
        SessionManager(f'postgresql+{driver}://u:secret@localhost/x', Base)
    assert 'pip install "onegov_ormcache[postgres]"' in str(raised.value)
    assert 'write postgresql+psycopg://' in str(raised.value)
    assert 'secret' not in str(raised.value)


def test_nobody_listens(tmp_path: Path) -> None:
    """A database that can't be reached is told by the first look, without its password."""
    manager = SessionManager(f'postgresql+psycopg://u:secret@/x?host={tmp_path}', Base)
    with pytest.raises(DatabaseUnreachable) as raised:
        manager.database.check()
    assert 'secret' not in str(raised.value)
    (tmp_path / 'file').touch()
    with pytest.raises(DatabaseUnreachable):
        SessionManager(f'sqlite:///{tmp_path}/file', Base).database.check()


def test_concurrent_writers_on_sqlite(folder: Path, tenant: str) -> None:
    """Of two transactions that have read and now write, the second can be tried again."""
    manager = SessionManager(
        f'sqlite:///{folder}', Base, engine_options={'connect_args': {'timeout': 0}}
    )
    manager.ensure_schema_exists(tenant)
    with open_scope(manager, tenant) as one, open_scope(manager, tenant) as two:
        for scope in (one, two):
            assert scope.session().query(Item).all() == []
        one.session().add(Item(name='one'))
        one.session().flush()
        two.session().add(Item(name='two'))
        with pytest.raises(OperationalError) as locked:
            two.session().flush()
        assert manager.database.is_conflict(locked.value)
        two.session().rollback()
        two.session().query(Item).all()
        one.session().commit()
        two.session().add(Item(name='two'))
        with pytest.raises(OperationalError) as stale:
            two.session().flush()
        assert manager.database.is_conflict(stale.value), 'its view is older'
        two.session().rollback()
        two.session().add(Item(name='two'))
        two.session().commit()
    assert names(manager, tenant) == {'one', 'two'}
    manager.dispose()


def test_conflicts(postgres: SessionManager, sqlite: SessionManager) -> None:
    """Only what a new attempt may resolve is a conflict."""

    class Error(Exception):
        def __init__(self, sqlstate: str | None, code: int | None) -> None:
            self.sqlstate = sqlstate
            self.sqlite_errorcode = code

    def wrapped(sqlstate: str | None = None, code: int | None = None) -> DBAPIError:
        return DBAPIError('SELECT', {}, Error(sqlstate, code))

    for state in ('40001', '40P01'):
        assert postgres.database.is_conflict(wrapped(state))
    for unlike in ('23505', None):
        assert not postgres.database.is_conflict(wrapped(unlike))
    for code in (5, 5 | 2 << 8):
        assert sqlite.database.is_conflict(wrapped(code=code))
    for other in (19, None):
        assert not sqlite.database.is_conflict(wrapped(code=other))
    for database in (postgres.database, sqlite.database):
        assert not database.is_conflict(ZeroDivisionError())


def test_outcomes_at_commit(postgres: SessionManager, sqlite: SessionManager) -> None:
    """Only an answer of the server tells that nothing was committed."""

    class Error(Exception):
        sqlstate: str | None = None
        sqlite_errorcode: int | None = None

    def error(**attributes: object) -> Error:
        made = Error()
        vars(made).update(attributes)
        return made

    for state in ('23503', '40001', '40P01', '25P02', 'P0001'):
        assert postgres.database.refused(error(sqlstate=state))
    for open_state in ('08006', '08P01', '57P01', '57014', '40003', None):
        assert not postgres.database.refused(error(sqlstate=open_state))
    assert not postgres.database.refused(KeyboardInterrupt())
    for code in (5, 13, 19, 787):
        assert sqlite.database.refused(error(sqlite_errorcode=code))
    for unclear in (10, 11, None):
        assert not sqlite.database.refused(error(sqlite_errorcode=unclear))
    assert not sqlite.database.refused(KeyboardInterrupt())
