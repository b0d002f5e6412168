"""Runs of cached views: a guarded request is answered as the run of a creator.

This module does not know how a stored response is found, nor how it is sent.
"""

from __future__ import annotations

from typing import Any, Protocol

import morepath
from webob.exc import HTTPException
from webob.request import BaseRequest

from ..core.runs import Run
from ..core.scope import RequestScope
from ..errors import AuditError
from .auditing import remember
from .cache import AppCache
from .cached_views import CachedView
from .guarding import GUARD, Guard, foreign_names, guard, guarded_identity
from .mounting import mounted_as
from .passes import Pass, through
from .responses import NOTHING, capture, is_streamed, why_not
from .tween import Handler

#: The attributes of a request that tell where it was routed.
ROUTED = ('app', 'unconsumed', 'view_name', 'view_code_info', 'path_code_info')


class AnsweredRequest(Protocol):
    """The request that a run works for, as :class:`.Answer` knows it."""

    cache: AppCache
    scope: RequestScope
    request: Any
    handler: Handler
    #: The attributes that the request had before it was routed.
    given: dict[str, Any]
    environ: dict[str, Any]

    @property
    def seen(self) -> dict[str, Any]:
        """The attributes that the request has for the view."""

    @property
    def seen_environ(self) -> dict[str, Any]:
        """What the identity policy has put into the environment."""

    def rewind(self) -> None:
        """Let the next pass read the request's body from the start."""


class ViewRun:
    """Runs a cached view for one request, and returns its response in the form that is stored.

    It is the instance of the call that :class:`.Answer` makes, as an app is of a property's.

    :param identity: the identity that the key has.
    :param app: the app that has told it.
    :param key: the whole key.
    """

    def __init__(
        self, answer: AnsweredRequest, view: CachedView, identity: Any, app: Any, key: str
    ) -> None:
        self._answer = answer
        self._view = view
        self._app = app
        # the identity as the view may see it, once it has seen it
        self._identities: list[Any] = []
        self._options = view.options
        self._key = key
        self._identity = identity
        self._request: Any = None
        self._guard = Guard(view.options.covered, self._identified, self._report)
        self._run: Run | None = None
        #: True once the view was run for this request.
        self.has_run = False
        #: True once a view was reached.
        self.has_arrived = False
        #: What the view has asked for after its response, if it has raised it.
        self.after: list[Any] = []
        self._is_stored = False
        #: True if the view has read what the key does not have.
        self.has_reported = False
        #: True if the view must run as if it was not cached: its body is made while it is sent,
        #: for which the session of a run is too short; or it needs a plain environment.
        self.must_run_again = False
        #: True if the view has changed the database.
        self.has_written = False
        #: The response of the view, if it is not stored.
        self.response: Any = None
        #: The exception that the view has raised as its response, if it is not stored.
        self.raised: HTTPException | None = None

    def create(self) -> Any:
        """Let the application answer a guarded request; return the response as it is stored.

        :return: :data:`NOTHING` if it is not stored.
        :raises ViewReached: if another view is reached.
        """
        answer = self._answer
        self._run = answer.scope.runs[-1]
        self.has_run = True
        self._request = answer.request.app.request({**answer.environ, **answer.seen_environ})
        guard(self._request, self._guard, answer.seen)
        answer.rewind()
        made_for = Pass(self._view, self._has_written)
        try:
            response = through(self._request, answer.handler, made_for)
            was_raised = False
        except HTTPException as error:
            # a view may raise its response. It ends here, because what the run has written must
            # be flushed
            response, was_raised = error, True
        except TypeError as error:
            if not is_of_webob(error):
                raise
            self._leave('it gives its environment to code that takes a plain dictionary alone')
            return NOTHING
        self.has_arrived = made_for.has_arrived
        reason = self._why_not(response) if made_for.was_right else 'it was not reached'
        if was_raised:
            self.after = self._request._after
            reason = reason or (self.after and 'it raises it, and asks for more after it') or None
        if reason is None:
            self._is_stored = True
            return tuple(capture(response, self._key, was_raised=was_raised))
        if was_raised and response.status_code >= 400:
            raise response
        if is_streamed(response):
            self._leave(reason)
        self._run.taint(reason)
        if was_raised:
            self.raised = response
        else:
            self.response = response
        return NOTHING

    def _leave(self, reason: str) -> None:
        """Let the view run again, as if it was not cached."""
        assert self._run is not None
        self._run.taint(reason)
        self.must_run_again = True
        self.has_written = self._has_written()

    def finished(self) -> None:
        """Tell the request where it was routed, for tweens and views of exceptions."""
        if self._request is None:
            return
        remember(self._answer.request)
        routed, usual = vars(self._request), self._answer.request
        vars(usual).update({n: routed[n] for n in ROUTED if n in routed})
        if not self._is_stored:
            # views of exceptions and tweens may look at what the view has set
            vars(usual).update({n: routed[n] for n in foreign_names(routed) if n != GUARD})
            usual.environ.update(self._request.environ.own())

    def _has_written(self) -> bool:
        assert self._run is not None
        if self._run.session is not None:
            self._run.session.flush()
        self._answer.scope.ask()
        return self._run.has_written

    def _why_not(self, response: Any) -> str | None:
        options = self._options
        return why_not(
            response, options.statuses, options.headers, options.max_size,
            is_private=options.is_private,
        )  # fmt: skip

    def _identified(self, request: Any) -> Any:
        """Return the identity as the view may see it."""
        options, given = self._options, self._answer.given
        is_of_key = 'identity' in given or place_of(request.app) == place_of(self._app)
        if options.public or not (is_of_key or self._identities):
            # what another app tells now, the key of another request may not tell
            self._guard.read(f'the identity of {type(request.app).__qualname__}')
        if self._identities:
            return self._identities[0]  # as Morepath, which asks the app that is the first
        if 'identity' in given:
            identity = given['identity']
        elif is_of_key and not options.public:
            identity = self._identity
        else:
            number = len(request._after)
            identity = self._guard.unwatched(lambda: identified(request.app, request))
            del request._after[number:]
        shown = guarded_identity(identity, self._guard) if options.by_role else identity
        self._identities.append(shown)
        return shown

    def _report(self, what: str) -> None:
        """Keep the response from being stored, because of what was read of the request.

        :raises AuditError: if the setting ``audit`` is ``'error'``.
        """
        if self._run is None:
            return
        self.has_reported = True
        reason = f'it reads {what} of the request, which its response does not differ by'
        self._run.taint(reason)  # a view may catch the error
        if self._answer.cache.settings.audit == 'error':
            raise AuditError(f'{self._run.prop.where}: {reason}')


def is_of_webob(error: TypeError) -> bool:
    """Return whether WebOb has refused a guarded environment, which it could not use."""
    code = None
    traceback = error.__traceback__
    while traceback is not None:
        code, traceback = traceback.tb_frame.f_code, traceback.tb_next
    return code is BaseRequest.__init__.__code__


def place_of(app: Any) -> tuple[Any, ...]:
    """Return what tells an app from others that answer requests of its root app."""
    return tuple(type(each) for each in app.ancestors()), mounted_as(app)


def identified(app: Any, request: Any) -> Any:
    """Return the identity that an app gives a request, as ``request.identity`` does."""
    claimed = app._identify(request)
    if claimed is None or claimed is morepath.NO_IDENTITY or not app._verify_identity(claimed):
        return morepath.NO_IDENTITY
    return claimed
