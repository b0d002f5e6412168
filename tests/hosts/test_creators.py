"""What creators of a host's properties do with its sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError, InvalidRequestError, PendingRollbackError

from onegov_ormcache import orm_cached, request_cached
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


def fails(board: Board) -> Any:
    board.host.session().add(User(name='Bob'))
    board.host.session().flush()
    raise KeyError('failed')


def fails_in_a_flush(board: Board) -> Any:
    board.host.session().add_all([User(name='Bob'), User(name='Bob')])
    board.host.session().flush()


def closes(board: Board) -> Any:
    board.host.session().close()
    return list(board.host.session().scalars(select(User.name)))


def removes(board: Board) -> Any:
    board.host.sessions.remove()
    return list(board.host.session().scalars(select(User.name)))


def commits(board: Board) -> Any:
    board.host.session().commit()
    return list(board.host.session().scalars(select(User.name)))


def rolls_back(board: Board) -> Any:
    board.host.session().rollback()
    return list(board.host.session().scalars(select(User.name)))


def reads_within_a_creator(board: Board) -> Any:
    return [*board.names, *(user.name for user in board.all)]


@pytest.mark.parametrize(
    ('creator', 'error'),
    [
        (fails, KeyError),
        (fails_in_a_flush, IntegrityError),
        (closes, InvalidRequestError),
        (removes, None),
        (commits, None),
        (rolls_back, None),
        (reads_within_a_creator, None),
    ],
)
def test_creator_that_misbehaves(
    host: Host, elsewhere: Host, creator: Callable[[Board], Any], error: Any
) -> None:
    """Whatever a creator does, the host has its own session again, and nothing wrong is stored."""
    board, session = board_with(host, creator), host.session()
    assert elsewhere.board.names == []
    elsewhere.session().rollback()
    session.add(User(name='Ada'))
    if error is not None:
        with pytest.raises(error):
            board.value
    else:
        board.value
    assert host.session() is session
    assert len(host.sessions.registry.registry) == 1
    if error is IntegrityError:
        with pytest.raises(PendingRollbackError):
            session.execute(select(User))
    session.rollback()
    expected = ['Ada'] if creator is commits else []
    assert host.board.names == elsewhere.board.names == expected
    elsewhere.add(User(name='Eve'))
    session.rollback()
    assert host.board.names == [*expected, 'Eve']


def test_creator_that_stays_with_another_tenant(host: Host, other_tenant: str) -> None:
    """What a creator has read of the tenant to which it has switched is not stored."""

    def creator(board: Board) -> Any:
        host.schema = other_tenant
        return list(host.session().scalars(select(User.name)))

    with host.at(other_tenant):
        host.add(User(name='Olga'))
    board, schema = board_with(host, creator), host.schema
    assert board.value == ['Olga']
    assert host.schema == other_tenant
    host.session().rollback()
    host.schema = schema
    with host.at(other_tenant):
        host.session().scalars(select(User)).one().name = 'Oleg'
        host.session().commit()
    host.session().rollback()
    assert board.value == ['Oleg']


def test_merged_rows(host: Host) -> None:
    """Objects in rows and in nested collections are those of the present session, too."""

    class Merging(Board):
        @request_cached(merge=True)
        def rows(self) -> Any:
            return host.session().execute(select(User, User.name)).all()

        @request_cached(merge=True)
        def nested(self) -> Any:
            return {'all': [(user, {user}) for user in host.session().scalars(select(User))]}

    board = Merging(host, Runs())
    host.add(User(name='Ada'))
    assert board.rows[0].name == 'Ada'
    assert len(board.nested['all']) == 1
    host.session().close()
    ((user, name),) = board.rows
    ((same, together),) = board.nested['all']
    assert user is same
    assert together == {user}
    assert user in host.session()
    assert name == 'Ada'
    host.session().delete(user)
    host.session().commit()
    assert board.rows == []
    assert board.nested == {'all': []}
