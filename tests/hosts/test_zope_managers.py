"""A host whose transactions are those of the package `transaction`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from fixtures.framework.models import Page, User
from fixtures.framework.town import Town
from fixtures.framework.values import TYPES
from onegov_ormcache import orm_cached
from tests.support.backends import Backend

KINDS: list[dict[str, Any]] = [
    {},
    {'twophase': True},
    {'keep_session': True},
    {'isolation_level': 'READ COMMITTED'},
]


class BusyTown(Town):
    """A town with a creator that writes, and one that reports a change."""

    @orm_cached(policy='on-table-change:users')
    def adds(self) -> int:
        self.session().add(Page(title='by a creator'))
        return len(self.session().scalars(select(User.id)).all())

    @orm_cached(policy='on-table-change:users')
    def marks(self) -> int:
        self.mark_changed('tickets')
        return 1


class OtherProcess:
    """Changes a town by an engine of the same program, outside of all transactions of zope."""

    def __init__(self, town: BusyTown) -> None:
        self._engine = town.session_manager.engine.execution_options(schema=town.schema)

    def rename(self, name: str) -> None:
        with Session(self._engine) as session:
            session.scalars(select(User)).one().name = name
            session.commit()


@pytest.fixture(params=KINDS, ids=str)
def town(
    request: pytest.FixtureRequest, servers_backend: Backend, make_tenant: Callable[[str], str]
) -> Iterator[BusyTown]:
    """A town with an administrator."""
    settings, namespace = servers_backend.settings, make_tenant('town')
    app = BusyTown()
    app.configure_application(
        settings['dsn'],
        redis_url=settings['redis_url'],
        namespace=namespace,
        orm_cache={'types': TYPES},
        **request.param,
    )
    app.set_application_id(f'{namespace}/a')
    app.session().add(User(name='Ada', role='admin'))
    commit(app)
    yield app
    abort(app)
    app.close()


def commit(town: Town) -> None:
    transaction.commit()
    town.session_manager.release_sessions()


def abort(town: Town) -> None:
    transaction.abort()
    town.session_manager.release_sessions()


def test_hooks_read(town: BusyTown) -> None:
    """A hook before the commit sees the transaction's changes; what one sees after it, the next
    transaction does not take for its own."""
    seen: list[Any] = []
    transaction.begin()
    assert town.admins == ('Ada',)
    commit(town)
    transaction.begin()
    hooks = transaction.get()
    town.session().scalars(select(User)).one().name = 'Eve'
    hooks.addBeforeCommitHook(lambda: seen.append(town.admins))
    commit(town)
    transaction.begin()
    assert town.admins == ('Eve',)
    transaction.get().addAfterCommitHook(lambda succeeded: seen.append(town.admins))
    commit(town)
    OtherProcess(town).rename('Bob')
    transaction.begin()
    assert town.admins == ('Bob',)
    assert seen == [('Eve',), ('Eve',)]


def test_hook_writes(town: BusyTown) -> None:
    """What a hook before the commit writes is seen as everything else."""
    hooks = transaction.get()
    hooks.addBeforeCommitHook(lambda: town.session().add(User(name='Bob', role='admin')))
    assert town.admins == ('Ada',)
    town.session().add(Page(title='x'))
    commit(town)
    assert town.admins == ('Ada', 'Bob')


def test_creator_writes(town: BusyTown) -> None:
    """What a creator writes or reports is committed, though nothing else has changed."""
    assert town.adds == 1
    commit(town)
    assert [node.title for node in town.pages_tree] == ['by a creator']
    with town.recording() as events:
        assert town.ticket_counts.total == 0
        commit(town)
        assert town.marks == 1
        commit(town)
        assert town.ticket_counts.total == 0
    tickets = [each.tier for each in events if 'ticket_counts' in str(each)]
    assert tickets == ['creator', 'creator']


def test_savepoint_and_doom(town: BusyTown) -> None:
    """Nothing is left of what was rolled back to a savepoint, or was doomed."""
    town.session().execute(text('SELECT 1'))  # joins
    savepoint = transaction.savepoint()
    town.session().add(User(name='Bob', role='admin'))
    assert town.admins == ('Ada', 'Bob')
    savepoint.rollback()
    assert town.admins == ('Ada',)
    commit(town)
    town.session().add(User(name='Bob', role='admin'))
    assert town.admins == ('Ada', 'Bob')
    transaction.doom()
    with pytest.raises(transaction.interfaces.DoomedTransaction):
        transaction.commit()
    abort(town)
    assert town.admins == ('Ada',)


def test_attempts(town: BusyTown) -> None:
    """A loop of attempts ends with a value that was made of the last commit."""
    other, attempts = OtherProcess(town), 0
    for attempt in transaction.manager.attempts(3):
        with attempt:
            attempts += 1
            name = town.admins[0]
            if attempts == 1:
                other.rename('Bob')
            town.session().scalars(select(User)).one().name = f'{name} {attempts}'
        town.session_manager.release_sessions()
    names = town.session().scalars(text('SELECT name FROM users')).all()
    assert list(town.admins) == names
    assert names in (['Bob 2'], ['Ada 1'])
