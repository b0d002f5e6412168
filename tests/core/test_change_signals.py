"""Signals tell an application's handlers of changed objects; muted ones still evict."""

from __future__ import annotations

from typing import Any

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import User


def test_signals_tell_objects(applications: Applications, tenant: str) -> None:
    """Handlers get the schema as sender and the changed object, once per change."""
    app = applications.start(OrmCacheApp)
    manager = app.session_manager
    seen: list[Any] = []

    def inserted(schema: str, obj: Any) -> None:
        seen.append(('insert', schema, obj.name))

    def updated(schema: str, obj: Any) -> None:
        seen.append(('update', schema, obj.name))

    def deleted(schema: str, obj: Any) -> None:
        seen.append(('delete', schema, obj.name))

    manager.on_insert.connect(inserted)
    manager.on_update.connect(updated, sender=tenant)
    manager.on_delete.connect(deleted)
    with committed(app, tenant) as scope:
        session = scope.session()
        user = User(name='a')
        session.add(user)
        session.flush()
        user.name = 'b'
        session.flush()
        session.delete(user)
    assert seen == [(kind, tenant, name) for kind, name in
                    (('insert', 'a'), ('update', 'b'), ('delete', 'b'))]  # fmt: skip


def test_muted_signals(applications: Applications, tenant: str, runs: Runs) -> None:
    """With muted signals no handler is called, and nothing that changed is missed."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def users(self) -> int:
            runs('users')
            return user_count(self)

        @orm_cached(policy=lambda obj: isinstance(obj, User) and obj.name == 'a')
        def by_function(self) -> int:
            runs('by_function')
            return int(self.session().query(User).filter_by(name='a').count())

    app = applications.start(App)
    other = applications.elsewhere(app)
    seen: list[Any] = []

    def inserted(schema: str, obj: Any) -> None:
        seen.append(obj.name)

    app.session_manager.on_insert.connect(inserted)
    read = lambda app: (app.users, app.by_function)  # noqa: E731
    assert value(other, tenant, read) == (0, 0)
    with app.session_manager.muted(), committed(app, tenant) as scope:
        scope.session().add(User(name='a'))
        assert read(app) == (1, 1)
        scope.session().add(User(name='b'))
    assert seen == []
    assert value(other, tenant, read) == (2, 1)
    change(app, tenant, User(name='c'))
    assert seen == ['c']
    ran = runs.count('by_function')
    assert value(other, tenant, read) == (3, 1)
    assert runs.count('by_function') == ran, 'c does not concern the policy'
