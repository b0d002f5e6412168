"""The Morepath side: one transaction per request, tried again after a conflict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from morepath.core import excview_tween_factory
from webob.exc import HTTPOk, HTTPRedirection

from ..core.scope import RequestScope
from ..database.transactions import current_scope
from ..errors import RetryableConflict
from .app import OrmCacheApp
from .cache import ATTRIBUTE
from .settings import AppSettings

Handler = Callable[[Any], Any]


# under EXCVIEW: above it, an application's view for Exception would hide conflicts
@OrmCacheApp.tween_factory(under=excview_tween_factory)
def transaction_tween_factory(app: OrmCacheApp, handler: Handler) -> Handler:
    """Commit what a request did, or roll it back; try again after a conflict."""

    def transaction_tween(request: Any) -> Any:
        scope = current_scope.get()
        if scope is None or scope.cache is not vars(app).get(ATTRIBUTE):
            return handler(request)  # the app is served without the middleware
        return Attempts(scope, request, handler, app.orm_cache.settings).run()

    return transaction_tween


class Attempts:
    """The attempts of one request, until one of them commits or fails for good."""

    def __init__(
        self, scope: RequestScope, request: Any, handler: Handler, settings: AppSettings
    ) -> None:
        self.scope = scope
        self.request = request
        self.handler = handler
        self.settings = settings

    def run(self) -> Any:
        """The response of the attempt that counts; a raised one is raised again."""
        # the first attempt reads the body, a second one must find it again
        self.request.make_body_seekable()
        attributes, environ = dict(vars(self.request)), dict(self.request.environ)
        left = self.settings.attempts
        while True:
            left -= 1
            try:
                return self.attempt()
            except Exception as error:
                if left == 0 or not self.is_conflict(error):
                    raise
            vars(self.request).clear()
            vars(self.request).update(attributes)
            self.request.environ.clear()
            self.request.environ.update(environ)
            self.request.reset()

    def attempt(self) -> Any:
        """One transaction, with an empty request tier before and nothing left after."""
        done = False
        try:
            try:
                response = self.handler(self.request)
            except (HTTPOk, HTTPRedirection):
                # raised as a shortcut: a response all the same
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
        veto = self.settings.commit_veto
        return veto is not None and veto(self.request, response)

    def is_conflict(self, error: BaseException) -> bool:
        """Whether a new attempt may succeed: the error, or one it came from, says so."""
        database = self.scope.session_manager.database
        return any(
            isinstance(cause, RetryableConflict) or database.is_conflict(cause)
            for cause in causes(error)
        )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those it was raised from or beside."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
