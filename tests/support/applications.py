"""Applications under test: made anew for each test, closed at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from onegov_ormcache import OrmCacheApp
from onegov_ormcache.core.scope import RequestScope
from onegov_ormcache.testing import configured

from .backends import Backend
from .models import Base

AppT = TypeVar('AppT', bound=OrmCacheApp)


class Applications:
    """Makes root apps on a back end; the fixture `applications` gives one."""

    def __init__(self, backend: Backend, stack: ExitStack) -> None:
        self.backend = backend
        self._stack = stack

    def configure(self, app_class: type[AppT], **settings: Any) -> type[AppT]:
        """Return a subclass with the settings of the back end and those that are given."""
        return configured(app_class, **{'base': Base, **self.backend.settings, **settings})

    def start(self, app_class: type[AppT], **settings: Any) -> AppT:
        """Return a root app of the class, configured and set up."""
        return self.again(self.configure(app_class, **settings))

    def again(self, app_class: type[AppT]) -> AppT:
        """Return a root app of a class that is configured; on servers it stands for a process."""
        app = app_class()
        app.setup_orm_cache()
        self._stack.callback(app.close_orm_cache)
        return app

    def elsewhere(self, app: AppT) -> AppT:
        """Return an app that stands for another process; the same app if the back end allows no
        other process."""
        return app if self.backend.name == 'embedded' else self.again(type(app))


@contextmanager
def committed(app: OrmCacheApp, schema: str) -> Iterator[RequestScope]:
    """Open a request scope that commits at the end of the block."""
    with app.request_scope(schema) as scope:
        yield scope
        scope.session().commit()


def change(app: OrmCacheApp, schema: str, *objects: object) -> None:
    """Add the objects in a transaction of their own."""
    with committed(app, schema) as scope:
        scope.session().add_all(objects)


def value(app: OrmCacheApp, schema: str, read: Callable[[Any], Any]) -> Any:
    """Return what `read` reads in a request scope of its own."""
    with app.request_scope(schema):
        return read(app)
