"""Passes of a request through the routing, until it reaches a view.

This module does not know what a response differs by, nor where it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cached_views import CachedView
from .guarding import PASS
from .tween import Handler


class ViewReached(BaseException):
    """Ends a pass through the routing: it has reached another view than the one it is made for.

    No error, so that no application takes it for one.
    """

    def __init__(self, view: CachedView | None, app: Any) -> None:
        super().__init__()
        self.view = view
        self.app = app


class Pass:
    """One pass of a request through the routing; ends it at a view that must not run now.

    :param view: the cached view for which it is made; None: it may be any.
    :param has_written: returns whether the routing has changed the database.
    """

    def __init__(self, view: CachedView | None, has_written: Callable[[], bool]) -> None:
        self._view = view
        self._has_written = has_written
        #: True once it has reached a view.
        self.has_arrived = False
        #: True once it has reached the view for which it is made.
        self.was_right = False
        #: What it was ended with.
        self.ended_by: ViewReached | None = None

    def reached(self, view: CachedView | None, app: Any) -> None:
        """Take notice of the view that the routing has reached.

        :raises ViewReached: if the view must not run now.
        """
        if self.has_arrived:
            return  # the view has called another one
        self.has_arrived = True
        self.was_right = view is self._view
        # another pass would write what this one has written a second time
        if not self.was_right and not self._has_written():
            self.ended_by = ViewReached(view, app)
            raise self.ended_by


def through(request: Any, handler: Handler, made_for: Pass) -> Any:
    """Let the rest of the application answer a request.

    :raises ViewReached: if it reaches a cached view that is not the one that is expected.
    """
    request.environ[PASS] = made_for
    try:
        response = handler(request)
    except BaseException:
        if made_for.ended_by is None:
            raise
    else:
        if made_for.ended_by is None:
            return response
    finally:
        request.environ.pop(PASS, None)
    raise made_for.ended_by  # also where a tween has made an answer or an error of it


def restore(request: Any, attributes: dict[str, Any], environ: dict[str, Any]) -> None:
    """Give a request the attributes and the environment that it had."""
    own = vars(request)
    own.clear()
    own.update(attributes)
    own['_after'] = list(attributes['_after'])
    own['unconsumed'] = list(attributes['unconsumed'])
    own['_link_prefix_cache'] = {}
    request.environ.clear()
    request.environ.update(environ)
