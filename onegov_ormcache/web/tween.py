"""The Morepath tween: a transaction for each request, tried again after a conflict.

It opens no scope and knows no tenants: :mod:`.middleware` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from morepath.core import excview_tween_factory
from webob.exc import HTTPOk, HTTPRedirection

from ..core.scope import RequestScope, innermost_scope
from .app import OrmCacheApp
from .cache import ROOT_ATTRIBUTE, AppCache

Handler = Callable[[Any], Any]


# under EXCVIEW, which calls the application's views for exceptions: above it, the tween would
# see the response of such a view instead of a conflict, and would not try again
@OrmCacheApp.tween_factory(under=excview_tween_factory)
def transaction_tween_factory(app: OrmCacheApp, handler: Handler) -> Handler:
    """Return a tween that commits or rolls back each request, and retries after a conflict."""

    def transaction_tween(request: Any) -> Any:
        cache: AppCache | None = vars(app).get(ROOT_ATTRIBUTE)
        scope = innermost_scope(cache)
        if cache is None or scope is None:
            return handler(request)  # the app is served without its middleware
        return Attempts(scope, request, handler, cache).run()

    return transaction_tween


class Attempts:
    """The attempts at one request, until one of them commits or fails for good.

    The tween makes it for each request.

    :param scope: the request's scope.
    :param handler: the rest of the application, which answers the request.
    """

    def __init__(
        self, scope: RequestScope, request: Any, handler: Handler, cache: AppCache
    ) -> None:
        self.scope = scope
        self.request = request
        self.handler = handler
        self.cache = cache
        self.settings = cache.settings

    def run(self) -> Any:
        """Return the response of the last attempt; raise what it raised.

        Between two attempts the request and its environment are restored, so that an
        attempt sees nothing of those before it.
        """
        # an attempt reads the body, and the next one reads it again from the start
        self.request.make_body_seekable()
        attributes, environ = dict(vars(self.request)), dict(self.request.environ)
        left = self.settings.attempts
        while True:
            left -= 1
            try:
                return self.attempt()
            except Exception as error:
                if left == 0 or not self.cache.is_conflict(error):
                    raise
            vars(self.request).clear()
            vars(self.request).update(attributes)
            self.request.environ.clear()
            self.request.environ.update(environ)
            self.request.reset()

    def attempt(self) -> Any:
        """Answer the request in a transaction, and commit it.

        If the handler raises or the response is vetoed, or if the commit fails, roll back
        and empty the request tier.
        """
        done = False
        try:
            try:
                response = self.handler(self.request)
            except (HTTPOk, HTTPRedirection):
                # a view may raise its response: this is no error, so it commits
                self.scope.commit()
                done = True
                raise
            if not self.is_vetoed(response):
                self.scope.commit()
                done = True
            return response
        finally:
            if not done:
                self.scope.reset()

    def is_vetoed(self, response: Any) -> bool:
        """Return whether the setting ``commit_veto`` rolls this response back."""
        veto = self.settings.commit_veto
        return veto is not None and veto(self.request, response)
