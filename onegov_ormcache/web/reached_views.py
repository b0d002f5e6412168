"""Remembers which view each URL has led to, to look for a response before the routing.

That is a hint: which view a URL leads to may change. A response is found by the key of its view,
and its stamp has all that the routing has read.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

from cachetools import LRUCache

from ..forks import OwnLock

#: The most URLs of which a process remembers where they lead.
MOST_URLS = 10_000


class ReachedView(NamedTuple):
    """The view that a URL has led to."""

    view: Any  # a CachedView, which a type checker would take for a property of this class
    #: The class of the app that has it.
    app_class: type
    #: True if that is the root app, and not another one of its class that is mounted.
    is_of_root: bool = False
    #: True if it must run as if it was not cached, because its body is streamed for example.
    is_uncached: bool = False


class ViewsReached:
    """The views that the URLs of a cache's applications have led to; used by all threads."""

    def __init__(self) -> None:
        # by the hash of a URL, which may be as long as the WSGI server allows
        self._views: LRUCache[bytes, ReachedView] = LRUCache(MOST_URLS)
        self._lock = OwnLock()

    def get(self, url: str) -> ReachedView | None:
        """Return the view that a URL has led to; None if that is not known."""
        with self._lock.present:
            return self._views.get(_hash(url))

    def learn(self, url: str, reached: ReachedView) -> ReachedView:
        """Remember the view that a URL leads to, and return it."""
        with self._lock.present:
            self._views[_hash(url)] = reached
        return reached

    def forget(self, url: str) -> None:
        """Forget the view of a URL, which has led to one that is not cached."""
        with self._lock.present:
            self._views.pop(_hash(url), None)


def _hash(url: str) -> bytes:
    return blake2b(url.encode(errors='surrogatepass'), digest_size=16).digest()
