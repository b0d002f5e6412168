"""The application that the command line loads: its settings come from an environment variable."""

from __future__ import annotations

import json
import os
from typing import Any

from onegov_ormcache import OrmCache, OrmCacheApp, OrmCacheMiddleware, orm_cached, rows
from tests.support.models import Base, Document, User

print('an application may print when it is imported')

#: The environment variable, with JSON.
SETTINGS = 'CLI_TOWN_SETTINGS'


class Town(OrmCacheApp):
    """An application with a property of each kind that the commands tell apart."""

    @orm_cached(policy='on-table-change:users')
    def names(self) -> list[str]:
        """The names of the users."""
        return [name for (name,) in self.session().query(User.name).order_by(User.name)]

    @orm_cached(policy=rows(User.id))
    def name(self, id: int) -> str | None:
        """The name of one user."""
        found: str | None = self.session().query(User.name).filter(User.id == id).scalar()
        return found

    @orm_cached(policy='on-table-change:users')
    def found(self, words: str) -> str:
        """What is looked for, whatever it is."""
        return f'nothing for {words}'

    @orm_cached(policy=[])
    def forgotten(self) -> int:
        """Its policy names nothing."""
        return 1

    @orm_cached(policy='on-table-change:users')
    def careless(self) -> int:
        """It reads a table that its policy does not mention."""
        return self.session().query(Document).count()

    @orm_cached(policy='on-table-change:groups')
    def never(self) -> list[object]:
        """Its values are not what can be stored: it is always computed."""
        self.session().query(User).with_for_update().all()
        return []


@Town.setting_section(section='orm_cache')
def orm_cache_settings() -> dict[str, Any]:
    return {'base': Base, **json.loads(os.environ[SETTINGS])}


def fresh() -> Town:
    """Return an app whose class is not committed yet, so that it reads its settings now."""
    names = {'__module__': Town.__module__, '__qualname__': Town.__qualname__}
    app_class: Any = type(Town)('Town', (Town,), names)  # type: ignore[misc]
    made: Town = app_class()
    return made


def make() -> OrmCacheMiddleware:
    """Return the WSGI application."""
    return OrmCacheMiddleware(fresh(), schema='main')


class Wrapped:
    """A WSGI middleware of others."""

    def __init__(self) -> None:
        self.app = make()


def make_cache() -> OrmCache:
    """Return a cache without Morepath."""
    return OrmCache(base=Base, **json.loads(os.environ[SETTINGS]))


class Holder:
    """An object that has a cache."""

    def __init__(self) -> None:
        self.orm_cache = make_cache()


def make_holder() -> Holder:
    """Return an object that has a cache."""
    return Holder()


class Wrong(OrmCacheApp):
    """An application whose policy names a table that it does not have."""

    @orm_cached(policy='on-table-change:usrs')
    def names(self) -> list[str]:
        return []


Wrong.setting_section(section='orm_cache')(orm_cache_settings)

nothing = None
