"""Objects that a listener expires or refreshes in the flush that has written their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session, object_session

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from tests.support.applications import Applications, change, committed, value
from tests.support.models import User


class App(OrmCacheApp):
    @orm_cached(policy=rows(User.id))
    def name(self, id: int) -> str | None:
        return self.session().scalar(select(User.name).where(User.id == id))

    @orm_cached(policy=lambda user: user.id == 1)
    def first(self) -> str | None:
        return self.session().scalar(select(User.name).where(User.id == 1))


def expire_attribute(session: Session, user: Any) -> None:
    session.expire(user, ['name'])


def refresh_attribute(session: Session, user: Any) -> None:
    session.refresh(user, ['name'])


@pytest.mark.parametrize(
    'forget', [Session.expire, Session.refresh, expire_attribute, refresh_attribute]
)
@pytest.mark.parametrize('with_another', [False, True])
def test_a_listener_that_loads_an_object_anew(
    applications: Applications,
    tenant: str,
    forget: Callable[[Session, Any], None],
    with_another: bool,
) -> None:
    """The change of an object is noticed although the object does not show it any more when the
    flush ends, also if another object of its class does."""

    def written(mapper: object, connection: object, user: User) -> None:
        session = object_session(user)
        if user.id == 1 and session is not None:
            forget(session, user)

    app = applications.start(App)
    change(app, tenant, User(id=1, name='a'), User(id=2, name='b'))

    def read(app: Any) -> tuple[Any, ...]:
        return app.name(1), app.name(2), app.first

    assert value(app, tenant, read) == ('a', 'b', 'a')
    event.listen(User, 'after_update', written)
    try:
        with committed(app, tenant) as scope:
            users = [scope.session().get_one(User, id) for id in (1, 2)]
            users[0].name = 'new'
            if with_another:
                users[1].name = 'other'
    finally:
        event.remove(User, 'after_update', written)
    assert value(app, tenant, read) == ('new', 'other' if with_another else 'b', 'new')
