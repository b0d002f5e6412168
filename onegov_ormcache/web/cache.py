"""The cache of a root app: it knows which properties an app and a request have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import morepath

from ..core.cache import OrmCache
from ..core.descriptors import CachedDescriptor, cached_descriptors
from ..core.properties import Declaration
from ..database.session_manager import SessionManager
from .settings import AppSettings

#: Where a root app has its cache; mounted apps and requests use that of their root app.
ATTRIBUTE = '_orm_cache'


class AppCache(OrmCache):
    """Made when a root app is set up; mounted apps, which are made anew for each request,
    use it too.

    :param app_classes: the root app's class, and those of the apps mounted in it.
    """

    settings: AppSettings

    def __init__(
        self,
        settings: AppSettings,
        session_manager: SessionManager,
        app_classes: set[type[morepath.App]],
    ) -> None:
        declared = [(d, cls) for cls in app_classes for d, _ in descriptors_of(cls)]
        self._open(settings, session_manager, declared)

    def is_cache_of(self, instance: Any) -> bool:
        return vars(app_of(instance).root).get(ATTRIBUTE) is self

    def resolve(self, declaration: Declaration, instance: Any) -> tuple[Declaration, type]:
        """Return the declaration that is meant, and the application class whose property it is.

        A request is made by the root app's request class: the property of this name that
        counts is the one of the app that answers it, or of the nearest it is mounted in.
        A property that is read by ``super()`` is meant itself.
        """
        app = app_of(instance)
        found = getattr(type(instance), declaration.name, None)
        if app is instance or (found is not None and found is not declaration):
            return declaration, type(app)
        return nearest_for_request(app, declaration.name) or (declaration, type(app))

    def find(self, instance: Any, name: str) -> Declaration | None:
        if not isinstance(instance, morepath.App) and not hasattr(type(instance), name):
            nearest = nearest_for_request(instance.app, name)
            return nearest and nearest[0]
        return super().find(instance, name)


def app_of(instance: Any) -> morepath.App:
    """Return the app that a property of an app or request belongs to."""
    app: morepath.App = instance if isinstance(instance, morepath.App) else instance.app
    return app


def nearest_for_request(
    app: morepath.App, name: str
) -> tuple[CachedDescriptor[Any], type[morepath.App]] | None:
    """Return the cached property of this name that requests have in an app, or in the nearest
    app that it is mounted in, with the class of that app."""
    for ancestor in app.ancestors():
        found = getattr(ancestor.request_class, name, None)
        if isinstance(found, CachedDescriptor):
            return found, type(ancestor)
    return None


def descriptors_of(
    app_class: type[morepath.App],
) -> Iterator[tuple[CachedDescriptor[Any], type]]:
    """Yield the cached properties of an app class and its request class, each with the class
    that declares it."""
    yield from cached_descriptors(app_class)
    yield from cached_descriptors(app_class.request_class)
