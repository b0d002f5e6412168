"""The request class of an app, on which properties with ``target='request'`` are installed.

It does not know how their values are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_origin

import morepath

from ..core.prefetching import prefetch
from .cache import AppCache, nearest_for_request

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    AppT = TypeVar('AppT', bound=morepath.App, default=morepath.App, covariant=True)
else:
    from typing import TypeVar

    AppT = TypeVar('AppT', bound=morepath.App, covariant=True)


class OrmCacheRequest(morepath.Request[AppT]):
    """A request with the cached properties of the app that answers it. For type checkers,
    ``OrmCacheRequest[App]`` is one whose ``app`` is an ``App``.

    Morepath makes it from the root app's request class, also when a mounted app answers it.
    It then has the mounted app's properties too, which come before the root app's.
    """

    @property
    def orm_cache(self) -> AppCache:
        """The root app's cache.

        :raises OrmCacheError: if the root app is not set up.
        """
        root: Any = self.app.root
        cache: AppCache = root.orm_cache
        return cache

    def prefetch(self, *names: str, args: Iterable[Any] | None = None) -> None:
        """Fetch values of these properties from the shared tier, in one round trip; see
        :meth:`OrmCacheApp.prefetch`.

        :param names: names of orm-cached properties of the request, or else of its app.
        """
        prefetch((self, self.app), names, args)

    def evict(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Evict values of an orm-cached property of the request; see
        :meth:`.OrmCacheApp.evict`."""
        self.orm_cache.evict(self, name, *args, **kwargs)

    def refresh(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Evict one value and return it, computed anew; see :meth:`.OrmCache.refresh`."""
        return self.orm_cache.refresh(self, name, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # the root app's request class has no such attribute; that of the app that answers
        # may have it
        app = vars(self).get('app')
        if app is not None and (nearest := nearest_for_request(app, name)):
            return nearest[0].__get__(self, type(self))
        raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')


def own_request_class(app_class: type[morepath.App]) -> type[Any]:
    """Return a request class for this app class alone, derived from the one it declares.

    Apps may share the declared class, so properties must not be installed on it.
    """
    named: Any = app_class.request_class
    declared: Any = get_origin(named) or named  # OrmCacheRequest, of OrmCacheRequest[App]
    base = vars(declared).get('orm_cache_base', declared)
    bases = (base,) if issubclass(base, OrmCacheRequest) else (base, OrmCacheRequest)
    namespace = {
        '__module__': app_class.__module__,
        '__qualname__': f'{app_class.__qualname__}.{base.__name__}',
        'orm_cache_base': base,
    }
    return type(base.__name__, bases, namespace)
