"""A transaction sees its own changes of rows, whatever it has changed and read before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from tests.support.applications import Applications, change, committed, value
from tests.support.models import User


class App(OrmCacheApp):
    @orm_cached(policy=rows(User.id))
    def name(self, id: int) -> str:
        return str(self.session().scalar(select(User.name).where(User.id == id)))


def by_its_object(session: Session, name: str) -> None:
    session.get_one(User, 1).name = name
    session.flush()


def by_its_key(session: Session, name: str) -> None:
    session.execute(update(User).where(User.id == 1).values(name=name))


def by_another_column(session: Session, name: str) -> None:
    session.execute(update(User).where(User.name.like('%')).values(name=name))


@pytest.fixture
def app(applications: Applications, tenant: str) -> App:
    """An application with one user, whose name is cached."""
    app: App = applications.start(App)
    change(app, tenant, User(id=1, name='Ada'))
    assert value(app, tenant, lambda app: app.name(1)) == 'Ada'
    return app


@pytest.mark.parametrize('first', [by_its_object, by_its_key, by_another_column])
@pytest.mark.parametrize('second', [by_its_object, by_its_key, by_another_column])
def test_own_changes_are_seen(
    app: App,
    tenant: str,
    first: Callable[[Session, str], None],
    second: Callable[[Session, str], None],
) -> None:
    """Each change of a row is seen by the next read, also if the rows of its bucket, or all rows,
    count as changed already."""
    with committed(app, tenant) as scope:
        for number, change_row in enumerate((first, second, second)):
            change_row(scope.session(), f'Ada {number}')
            assert app.name(1) == f'Ada {number}'
            assert app.name.many([1]) == {1: f'Ada {number}'}
    assert value(app, tenant, lambda app: app.name(1)) == 'Ada 2'
