"""What creators of a host's properties do with its sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import create_engine, select

from onegov_ormcache import orm_cached
from tests.support.counting import Runs
from tests.support.models import Document, User

from .host import Board, Host


def board_with(host: Host, creator: Callable[[Board], Any]) -> Any:
    """Return a board with one more property, `value`, which names all users."""
    return type('Another', (Board,), {'value': orm_cached(policy=User)(creator)})(host, Runs())


def test_session_beside_that_of_a_creator(host: Host) -> None:
    """A session that a creator makes, and ends, takes nothing from the creator's own one."""

    def creator(board: Board) -> Any:
        host.session().add(Document(kind='document', title='written'))
        with host.factory(bind=host.engine.execution_options(schema=host.schema)) as session:
            return list(session.scalars(select(User.name)))

    assert board_with(host, creator).value == []
    host.session().commit()
    assert host.board.titles == ['written']


def test_listener_that_looks_at_a_session(host: Host) -> None:
    """A creator's session has what the host has noted at its session."""
    host.session().info['user'] = 'Ada'
    board = board_with(host, lambda board: [str(host.session().info.get('user'))])
    assert board.value == ['Ada']
    assert host.session().info['user'] == 'Ada'


def test_second_engine_of_a_session(host: Host, elsewhere: Host) -> None:
    """What a session reads by an engine that nobody observes is not stored."""
    engine = create_engine(
        host.backend['dsn'], connect_args={'options': f'-c search_path={host.schema}'}
    )
    binds = {Document: engine}
    for _ in range(2):
        bind = host.engine.execution_options(schema=host.schema)
        host.sessions.registry.set(host.factory(bind=bind, binds=binds))
        assert host.board.names == host.board.titles == []
        host.sessions.remove()
    assert host.board.runs.count('names') == 1
    assert host.board.runs.count('titles') == 2
    engine.dispose()
