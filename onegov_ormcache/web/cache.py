"""The cache of a root app, which finds the properties of apps and of requests.

It does not know how their values are read, stored and evicted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any

import morepath

from ..core.cache import OrmCache
from ..core.descriptors import ATTRIBUTE, CachedDescriptor, cached_descriptors
from ..core.properties import Declaration
from ..database.hosts import HostObserver
from ..database.session_manager import SessionManager
from .auditing import watching
from .mounting import mounted_as
from .reached_views import ViewsReached
from .settings import AppSettings
from .surrogate_keys import SurrogateKeys, named_headers

#: The attribute in which a root app keeps its cache. Mounted apps and requests use the cache
#: of their root app.
ROOT_ATTRIBUTE = '_orm_cache'


class AppCache(OrmCache):
    """The cache of one root app. ``setup_orm_cache`` makes it, ``close_orm_cache`` closes it.

    Mounted apps, which Morepath makes anew for each request, use it too.

    :param settings: the settings of the root app's class.
    :param sessions: who makes the sessions: the package's session manager, or a host, of which
        this is the observer.
    :param app_classes: the classes of the root app and of the apps mounted in it.
    :param host: what :class:`.AmbientScopes` must know of a host.
    :raises OrmCacheError: see :class:`.OrmCache`.
    """

    settings: AppSettings

    def __init__(
        self,
        settings: AppSettings,
        sessions: SessionManager | HostObserver,
        app_classes: set[type[morepath.App]],
        **host: Any,
    ) -> None:
        declared: list[tuple[CachedDescriptor[Any], type]]
        declared = [(d, cls) for cls in app_classes for d, _ in descriptors_of(cls)]
        views = [(v, cls) for cls in app_classes for v in vars(cls).get('cached_views', ())]
        declared += views
        #: True if a view of the applications is cached.
        self.caches_views = bool(views)
        #: What was learned of the views that URLs lead to.
        self.views_reached = ViewsReached()
        #: Makes the keys by which a CDN knows responses; None without the setting
        #: ``surrogate_secret``.
        self.surrogate_keys: SurrogateKeys | None = None
        if settings.surrogate_secret is not None:
            headers = named_headers(settings.surrogate_keys)
            self.surrogate_keys = SurrogateKeys(
                headers, settings.namespace, settings.surrogate_secret
            )
        self._open(settings, sessions, declared, **host)

    def keys_of(self, place: str, tags: Collection[str]) -> frozenset[str]:
        """Return the surrogate keys of the responses with one of these tags; none without the
        setting ``surrogate_secret``.

        :param place: the schema that the tags belong to.
        """
        keys = self.surrogate_keys
        return frozenset() if keys is None else keys.of_change(place, tags)

    def is_cache_of(self, instance: Any) -> bool:
        """Return whether this is the cache of the root app of an app or request, or of
        another object that says so."""
        app = app_of(instance)
        if app is None:
            return super().is_cache_of(instance)
        return vars(app.root).get(ROOT_ATTRIBUTE) is self

    def resolve(self, declaration: Declaration, instance: Any) -> tuple[Declaration, type]:
        """Return the declaration that a read of ``declaration`` on an app or request means,
        and the app class whose property it is.

        A request has the root app's request class, also when a mounted app answers it. So a
        request's property is looked up by name: on the request class of the app that answers,
        then on those of the apps that this app is mounted in, the nearest first. A
        declaration that an overriding property reads by ``super()`` means itself.
        """
        app = app_of(instance)
        if app is instance or app is None:
            return declaration, type(instance)
        found = getattr(type(instance), declaration.name, None)
        is_request = isinstance(instance, morepath.Request)
        if not is_request or (found is not None and found is not declaration):
            return declaration, type(app)
        return nearest_for_request(app, declaration.name) or (declaration, type(app))

    def context_key(self, instance: Any) -> str:
        """Return the variables with which an app, or the app that answers a request, is mounted,
        as a part of a value's key.

        :raises VariantError: if a variable can't be part of a key.
        """
        app = app_of(instance)
        return '' if app is None else mounted_as(app)

    def watching(self, instance: Any) -> AbstractContextManager[None]:
        """Return a context manager in which reads of the request are audited, if the setting
        ``audit`` is on."""
        return super().watching(instance) if self.settings.audit == 'off' else watching(instance)

    def find(self, instance: Any, name: str) -> Declaration | None:
        """Return the cached property of this name that an app or request has; None if it has
        none."""
        app = app_of(instance)
        if app is instance or app is None or hasattr(type(instance), name):
            return super().find(instance, name)
        nearest = nearest_for_request(app, name)
        return nearest and nearest[0]


def app_of(instance: Any) -> morepath.App | None:
    """Return the app itself, if an app is given, or the app that answers a request.

    Any other object belongs to its attribute ``app``, if that is an app, unless it has the
    attribute ``orm_cache``, which says itself which cache its properties belong to. For all
    other objects the result is None.
    """
    if isinstance(instance, morepath.App):
        return instance
    if isinstance(instance, morepath.Request) or not hasattr(instance, ATTRIBUTE):
        app = getattr(instance, 'app', None)
        return app if isinstance(app, morepath.App) else None
    return None


def nearest_for_request(
    app: morepath.App, name: str
) -> tuple[CachedDescriptor[Any], type[morepath.App]] | None:
    """Find a request's property by name, on the request class of an app or else on those of
    the apps that it is mounted in, the nearest first.

    :return: the property and the class of the app that has it; None if no app has it.
    """
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
