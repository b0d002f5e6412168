"""The application that the tests of the test kit test."""

from __future__ import annotations

import os
from typing import Any

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached, rows
from tests.support.models import Base, Group, User

#: Settings that tests change.
SETTINGS: dict[str, Any] = {'base': Base, 'redis_url': 'redis://nowhere.invalid:1/0'}


class Site(OrmCacheApp):
    """An application with properties of each kind."""

    @orm_cached(policy=User)
    def users(self) -> Any:
        return self.session().query(User.name).order_by(User.name)

    @orm_cached(policy=rows(User.id))
    def user_name(self, id: int) -> str | None:
        found: str | None = self.session().query(User.name).filter_by(id=id).scalar()
        return found

    @orm_cached(policy='auto')
    def groups(self) -> int:
        return self.session().query(Group).count()

    @orm_cached(policy=lambda obj: isinstance(obj, User) and obj.name == 'Ada')
    def has_ada(self) -> bool:
        return self.session().query(User).filter_by(name='Ada').count() > 0

    @orm_cached(policy=User, by_role=True)
    def greeting(self) -> str:
        return 'Hello'

    @orm_cached(policy=User)
    def failing(self) -> int:
        raise ZeroDivisionError

    @orm_cached(policy='auto')
    def untold(self) -> int:
        return 1  # reads nothing, so nobody knows what would evict it

    @request_cached
    def first(self) -> User | None:
        return self.session().query(User).first()

    identity = None


@Site.setting_section(section='orm_cache')
def settings() -> dict[str, Any]:
    return {**SETTINGS, 'namespace': os.environ.get('SITE_NAMESPACE', 'site')}


@Site.path(path='')
class Root:
    pass


@Site.json(model=Root, cached=True)
def view(self: Root, request: Any) -> Any:
    """Show the names of all users; with `add`, add one first."""
    if name := request.params.get('add'):
        request.app.session().add(User(name=name))
    return [row.name for row in request.app.users]
