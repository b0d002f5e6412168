"""The Morepath tween: a transaction for each request, tried again after a conflict.

It opens no scope and knows no tenants: :mod:`.middleware` does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import sleep
from typing import Any

from morepath.core import excview_tween_factory
from webob.exc import HTTPOk, HTTPRedirection

from ..core.scope import RequestScope, innermost_scope
from .app import OrmCacheApp
from .cache import ROOT_ATTRIBUTE, AppCache
from .unavailable import UNREACHABLE, unavailable

Handler = Callable[[Any], Any]

#: The longest wait before the second attempt at a request, in seconds. It doubles with each
#: further attempt, up to :data:`LONGEST_WAIT`.
FIRST_WAIT = 0.02

#: The longest wait before any attempt, in seconds.
LONGEST_WAIT = 0.5

#: The number of attempts that are given up for a torn page. If they all met one, the tables
#: change faster than the page is made, and further attempts would not do better.
ATTEMPTS_WITHOUT_TORN_PAGES = 2


# under EXCVIEW, which calls the application's views for exceptions: above it, the tween would
# see the response of such a view instead of a conflict, and would not try again
@OrmCacheApp.tween_factory(under=excview_tween_factory)
def transaction_tween_factory(app: OrmCacheApp, handler: Handler) -> Handler:
    """Return a tween that commits or rolls back each request, and retries after a conflict."""

    def transaction_tween(request: Any) -> Any:
        cache: AppCache | None = vars(app).get(ROOT_ATTRIBUTE)
        scope = innermost_scope(cache)
        if cache is None or scope is None or cache.ambient is not None:
            return handler(request)  # the app is served without its middleware, or has a host
        if not cache.settings.tween:
            return handler(request)
        return Attempts(scope, request, handler, cache).run()

    return transaction_tween


def back_off(attempts: int) -> float:
    """Return the seconds to wait before the next attempt: at random, and longer after each.

    Requests that have met one another would otherwise meet again. See "Exponential Backoff And
    Jitter" (AWS Architecture Blog, 2015), "full jitter".

    :param attempts: the number of attempts that have failed.
    """
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempts - 1)))


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
        number = 0
        while True:
            number += 1
            is_last = number == self.settings.attempts
            self.scope.torn_pages.are_refused = (
                self.settings.check_torn_pages
                # nobody would try again after the last attempt, so it has no error for that
                and not is_last
                and number <= ATTEMPTS_WITHOUT_TORN_PAGES
            )
            try:
                return self.attempt()
            except UNREACHABLE as error:
                raise unavailable() from error
            except Exception as error:
                if not self.cache.is_conflict(error):
                    raise
                if is_last:
                    raise unavailable() from error
            finally:
                self.scope.torn_pages.are_refused = False
            vars(self.request).clear()
            vars(self.request).update(attributes)
            self.request.environ.clear()
            self.request.environ.update(environ)
            self.request.reset()
            sleep(back_off(number))

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
