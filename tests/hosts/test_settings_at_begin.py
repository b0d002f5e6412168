"""What a host sets at the begin of a transaction, such as its search path, lasts until its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import sessionmaker

from onegov_ormcache import observe
from onegov_ormcache.errors import TextualControlError
from tests.support.counting import Runs
from tests.support.models import Base, User
from tests.support.servers import RedisServer

from .host import Host

LEVELS = ['READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE']


@pytest.mark.parametrize('level', LEVELS)
def test_path_lasts_in_the_first_transaction(
    make_host: Callable[..., Host], runs: Runs, level: str
) -> None:
    """The first transaction of a tenant, whose quarantine ends then, keeps the search path."""
    host = make_host(sets_path_at_begin=True, isolation_level=level)
    assert host.board.names == []
    host.add(User(name='Ada'))
    assert host.board.names == ['Ada']
    host.session().rollback()
    elsewhere = make_host(sets_path_at_begin=True, isolation_level=level)
    assert elsewhere.board.titles == []
    elsewhere.session().rollback()
    runs_before = runs.count('names')
    assert elsewhere.board.names == ['Ada']
    assert runs.count('names') == runs_before


@pytest.mark.parametrize('level', LEVELS)
def test_path_lasts_after_a_loss(
    make_host: Callable[..., Host], own_redis: RedisServer, runs: Runs, level: str
) -> None:
    """The transaction that ends the quarantine after a loss of the tag store keeps it, too."""
    host = make_host(sets_path_at_begin=True, isolation_level=level, redis_url=own_redis.url)
    host.add(User(name='Ada'))
    assert host.board.names == ['Ada']
    host.session().rollback()
    with own_redis.client() as client:
        client.flushall()
    for _ in range(3):
        assert host.board.names == ['Ada']
        host.add(User(name='Bob'))
        assert host.board.names == ['Ada', 'Bob']
        host.session().delete(host.session().query(User).filter_by(name='Bob').one())
        host.session().commit()
    host.session().rollback()
    assert host.board.names == ['Ada']
    host.session().rollback()
    runs_before = runs.count('names')
    assert host.board.names == ['Ada']
    assert runs.count('names') == runs_before


def test_view_of_the_end_of_a_quarantine(
    make_host: Callable[..., Host],
    own_redis: RedisServer,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A view that the questions about a quarantine have taken is not stored from: it is older
    than the snapshot that is taken after them."""
    options = {'redis_url': own_redis.url, 'isolation_level': 'REPEATABLE READ'}
    host = make_host(sets_path_at_begin=True, **options)
    elsewhere = make_host(**options)
    host.add(User(name='Ada'))
    assert host.board.names == ['Ada']
    host.session().rollback()
    with own_redis.client() as client:
        client.flushall()
    with host.engine.connect() as writer:  # the quarantine lasts as long as its transaction
        writer.execute(text('SELECT pg_current_xact_id()'))
        assert host.board.names == ['Ada']
        host.session().rollback()
    end_quarantine = host.cache.settler.end_quarantine

    def end_and_change(*arguments: Any) -> None:
        end_quarantine(*arguments)
        monkeypatch.undo()
        elsewhere.add(User(name='Bob'))

    monkeypatch.setattr(host.cache.settler, 'end_quarantine', end_and_change)
    names = host.board.names
    host.session().rollback()
    assert names == ['Ada']
    assert host.board.names == elsewhere.board.names == ['Ada', 'Bob']


def test_prevented_rollback(host: Host) -> None:
    """A transaction whose rollback a listener prevents is rolled back before the next one."""

    def prevent(connection: object) -> None:
        event.remove(host.engine, 'rollback', prevent)
        raise RuntimeError('prevented')

    event.listen(host.engine, 'rollback', prevent)
    with host.engine.connect().execution_options(schema=host.schema) as connection:
        connection.execute(text("INSERT INTO users (name) VALUES ('Ada')"))
        with pytest.raises(RuntimeError, match='prevented'):
            connection.rollback()
        connection.execute(text("INSERT INTO users (name) VALUES ('Bob')"))
        connection.commit()
    assert host.board.names == ['Bob']


def test_begin_by_a_text_is_refused(tmp_path: Path) -> None:
    """A listener that begins SQLite's transactions by a text gets an error at the first one."""
    engine = create_engine(f'sqlite:///{tmp_path}/town.sqlite')
    event.listen(engine, 'begin', lambda connection: connection.exec_driver_sql('BEGIN'))
    observe(
        engine=engine,
        sessions=sessionmaker(engine),
        metadata=Base,
        schema_of=lambda connection: 'public',
    )
    with pytest.raises(TextualControlError, match='begins or ends the transaction by its text'):
        Base.metadata.create_all(engine)
