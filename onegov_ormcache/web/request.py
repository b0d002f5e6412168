"""The request class of an app: where properties with ``target='request'`` are installed."""

from __future__ import annotations

from typing import Any

import morepath

from ..core.prefetching import prefetch
from .cache import nearest_for_request


class OrmCacheRequest(morepath.Request):
    """A request that has the cached properties of the app that answers it.

    It is made by the root app's request class also when a mounted app answers it;
    the mounted app's own properties come first then.
    """

    def prefetch(self, *names: str) -> None:
        """Fetch these properties of the request and its app in one round trip; see
        :meth:`OrmCacheApp.prefetch`."""
        prefetch((self, self.app), names)

    def __getattr__(self, name: str) -> Any:
        # not on the root app's request class: on that of the app it was handed to?
        app = vars(self).get('app')
        if app is not None and (nearest := nearest_for_request(app, name)):
            return nearest[0].load(self)
        raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')


def own_request_class(app_class: type[morepath.App]) -> type[Any]:
    """A request class for this app class alone, derived from the one it declares."""
    declared: Any = app_class.request_class
    base = vars(declared).get('orm_cache_base', declared)
    bases = (base,) if issubclass(base, OrmCacheRequest) else (base, OrmCacheRequest)
    namespace = {
        '__module__': app_class.__module__,
        '__qualname__': f'{app_class.__qualname__}.{base.__name__}',
        'orm_cache_base': base,
    }
    return type(base.__name__, bases, namespace)
