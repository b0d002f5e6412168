"""An object with cached properties that is neither app nor request, and changes for it."""

from __future__ import annotations

from typing import Any

from onegov_ormcache import OrmCache, orm_cached, request_cached
from tests.support.counting import Runs
from tests.support.models import Group, User


class Names:
    """An object with cached properties, of a class that nobody has prepared."""

    def __init__(self, cache: OrmCache, role: str | None = None) -> None:
        self.orm_cache = cache
        self.identity = type('Identity', (), {'role': role})
        self.runs = Runs()

    @orm_cached(policy='on-table-change:users')
    def users(self) -> Any:
        self.runs('users')
        return self.orm_cache.session().query(User.name).order_by(User.name)

    @orm_cached(policy=lambda obj: isinstance(obj, Group))
    def groups(self) -> int:
        self.runs('groups')
        return self.orm_cache.session().query(Group).count()

    @orm_cached(policy=User, by_role=True)
    def greeting(self) -> str:
        return f'{self.identity.role}: {self.orm_cache.session().query(User).count()}'

    @request_cached
    def first(self) -> User | None:
        return self.orm_cache.session().query(User).first()


def add(cache: OrmCache, tenant: str, *objects: object) -> None:
    """Add the objects in a transaction of their own."""
    with cache.scope(tenant) as scope:
        scope.session().add_all(objects)
        scope.commit()
