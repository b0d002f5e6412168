"""The answer to a request by a cached response: found, or made by one run of its view.

A tween directly under that of the transaction looks for a response before the routing. If there
is none, it lets the rest of the application answer a guarded request, as the run of a creator.
Which view a URL leads to is learned when a request reaches it; that is a hint, and may be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import morepath
from sqlalchemy.exc import SQLAlchemyError
from webob.exc import HTTPException

from ..core.computing import log_once
from ..core.reading import Reading, told
from ..core.runs import Run
from ..core.scope import RequestScope, innermost_scope
from ..errors import AuditError, SnapshotConflict, VariantError
from .app import OrmCacheApp
from .auditing import remember
from .cache import ROOT_ATTRIBUTE, AppCache
from .cached_views import METHODS, CachedView, ResponseOptions
from .guarding import GUARD, PASS, Guard, foreign_names, guard, guarded_identity
from .mounting import mounted_as
from .reached_views import ReachedView
from .responses import (
    NOTHING,
    StoredResponse,
    capture,
    headers_beside,
    is_current,
    is_streamed,
    made,
    not_modified,
    why_not,
)
from .surrogate_keys import SEPARATORS
from .tween import Handler, transaction_tween_factory

#: How often a request is routed anew, because it has reached another view than the one that was
#: expected. A view that is chosen at random could go on for ever.
MOST_PASSES = 3


#: The keys of the environment by which a URL is remembered.
URL_KEYS = ('REQUEST_METHOD', 'SCRIPT_NAME', 'PATH_INFO')

#: The headers that may have surrogate keys, in small letters.
KEYED = frozenset(map(str.lower, SEPARATORS))

#: The attributes of a request that tell where it was routed.
ROUTED = ('app', 'unconsumed', 'view_name', 'view_code_info', 'path_code_info')


class ViewReached(BaseException):
    """Ends a pass through the routing: it has reached another view than the one it is made for.

    No error, so that no application takes it for one.
    """

    def __init__(self, view: CachedView | None, app: Any) -> None:
        super().__init__()
        self.view = view
        self.app = app


class Pass:
    """One way through the routing, until it reaches a view.

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


@OrmCacheApp.tween_factory(under=transaction_tween_factory)
def response_tween_factory(app: OrmCacheApp, handler: Handler) -> Handler:
    """Return a tween that answers requests by cached responses."""

    def response_tween(request: Any) -> Any:
        cache: AppCache | None = vars(app).get(ROOT_ATTRIBUTE)
        scope = innermost_scope(cache)
        if cache is None or scope is None or not cache.caches_views:
            return handler(request)
        if request.method not in METHODS or not cache.settings.uses_responses(request):
            return handler(request)
        return Answer(cache, scope, request, handler).response()

    return response_tween


class Answer:
    """The answer to one request; made by the tween.

    :param handler: the rest of the application.
    """

    def __init__(
        self, cache: AppCache, scope: RequestScope, request: Any, handler: Handler
    ) -> None:
        self.cache = cache
        self.scope = scope
        self.request = request
        self.handler = handler
        #: The attributes and the environment of the request, before it is routed.
        self.given = {
            **vars(request), '_after': list(request._after), 'unconsumed': list(request.unconsumed)
        }  # fmt: skip
        self.environ = dict(request.environ)
        # what the identity policy has given the request when it identified the user
        self._identified: dict[str, Any] = {}
        self._identified_after: list[Any] = []
        self.url = ' '.join(str(self.environ.get(key, '')) for key in URL_KEYS)

    def response(self) -> Any:
        """Return the response, or raise what the application raises."""
        root = self.request.app
        hint = self.cache.views_reached.get(self.url)
        if hint is not None and hint.is_streamed:
            return self.uncached()
        view: CachedView | None = None
        app = root
        if hint is not None and (hint.view.options.public or hint.is_of_root):
            view = hint.view
        for _ in range(MOST_PASSES):
            try:
                if view is None:
                    made_for = Pass(None, partial(self.has_changed, self.changed()))
                    return through(self.request, self.handler, made_for)
                owner = type(app) if hint is None else hint.app_class
                return self.cached(view, owner, app)
            except ViewReached as reached:
                view, app = reached.view, reached.app
            self.restore()
            if view is None:
                self.cache.views_reached.forget(self.url)
                break
            reached_view = ReachedView(view, type(app), is_of_root=app is root)
            hint = self.cache.views_reached.learn(self.url, reached_view)
        return self.uncached()

    def uncached(self) -> Any:
        """Let the application answer, as if nothing was cached."""
        self.restore()
        return self.handler(self.request)

    def has_changed(self, before: set[str] | None) -> bool:
        """Return whether the request has changed more than these tags, or may have."""
        now = self.changed()
        return now is None or now != before

    def changed(self) -> set[str] | None:
        """Return the tags that the request has changed so far; None if its transaction has
        failed, of which the application must hear by itself."""
        self.scope.flush()
        try:
            self.scope.ask()
        except SQLAlchemyError:
            return None
        return set().union(*(path.tags for path in self.scope.transactions))

    def restore(self) -> None:
        """Give the request the attributes and the environment that it had before it was routed."""
        restore(self.request, self.given, self.environ)
        self.rewind()

    def rewind(self) -> None:
        """Let the next pass read the request's body from the start."""
        if self.environ.get('webob.is_body_seekable'):  # as the tween of the transaction sees to
            self.environ['wsgi.input'].seek(0)

    def cached(self, view: CachedView, owner: type, app: Any) -> Any:
        """Return the response of a cached view, from the nearest tier that has it; else run the
        view.

        :param owner: the class of the app that has the view.
        :param app: that app, or the root app for a view that is found before the routing.
        :raises ViewReached: if the request leads to another view.
        :raises SnapshotConflict: if the request must be tried again.
        """
        scope, options = self.scope, view.options
        prop = scope.cache.registry.property_of(view, owner)
        try:
            identity = None if options.public else self.identity(app)
            variant = options.key(self.request.app.root, self.request, identity, self.given)
        except VariantError as error:
            log_once(prop, f'{prop.where} is not stored: {error}', subject='stored')
            return self.uncached()
        finally:
            self.restore()
        scope.check_open()
        scope.flush()
        run = ViewRun(self, view, identity, app, f'{prop.key}{variant}')
        call = prop.call(run, variant=variant)
        reading = Reading(scope, call)
        try:
            entry = reading.entry()
        finally:
            run.finished()
        stored = told(scope, call, entry, reading.tier)
        if stored != NOTHING:
            is_shared = reading.is_stored and options.is_for_all and stored.code == 200
            keys = self.keys(entry.tags) if is_shared else ()
            return self.sent(stored, options, run, keys)
        if run.must_run_again:
            self.cache.views_reached.learn(self.url, ReachedView(view, owner, is_streamed=True))
            if run.has_written:
                # the tween rolls back and tries again, which is not cached
                raise SnapshotConflict(f'{prop.where}: it writes, and its body is streamed')
        if run.must_run_again or not run.has_run:
            return self.uncached()
        if run.raised is not None:
            self.request._after = [*self.after(), *run.after]
            raise run.raised
        if run.has_arrived:
            self.run_after(run.response)
        return run.response

    def identity(self, app: Any) -> Any:
        """Return the identity that the app would give the request.

        The request is not told, as another app than this one may answer it.
        """
        if 'identity' in self.given:
            return self.given['identity']
        self.request.app = app
        identity = identified(app, self.request)
        own = vars(self.request)
        self._identified = {
            name: own[name] for name in foreign_names(own) if name not in self.given
        }  # fmt: skip
        self._identified_after = own['_after'][len(self.given['_after']):]
        return identity

    @property
    def seen(self) -> dict[str, Any]:
        """The attributes that the request has for the view."""
        return {**self._identified, **self.given}

    def after(self) -> list[Any]:
        """Return what others than the view have asked for after the response."""
        return [*self.given['_after'], *self._identified_after]

    def run_after(self, response: Any) -> None:
        """Do what others than the view have asked for: in its run, nobody knew of it."""
        self.request._after = self.after()
        self.request._run_after(response)

    def keys(self, tags: Collection[str]) -> Sequence[str]:
        """Return the surrogate keys of a response with these tags; none without the setting."""
        surrogate_keys = self.cache.surrogate_keys
        if surrogate_keys is None:
            return ()
        schema = self.scope.schema
        # the tenant's own place is always one: its evict_all concerns each response
        return surrogate_keys.of_response({schema: (), **self.cache.by_place(schema, tags)})

    def sent(
        self, stored: StoredResponse, options: ResponseOptions, run: ViewRun, keys: Sequence[str]
    ) -> Any:
        """Return a stored response as it is sent to this client: whole, or as a 304.

        :param run: has found it.
        :param keys: its surrogate keys.
        :raises HTTPException: if the view has raised it.
        """
        # a shared cache may show a page by a role to another, while it can't ask
        is_private = not options.public or run.has_reported
        also = headers_beside(stored, options.headers, is_private=is_private)
        name = self.cache.settings.cache_status
        if name is not None:
            also.append(('Cache-Status', f'{name}; {"fwd=miss" if run.has_run else "hit"}'))
        response = made(stored, also)
        if self.cache.surrogate_keys is not None:
            self.cache.surrogate_keys.add_to(response, keys)
        if stored.kind == 'raised':
            self.request._after = self.after()
            raise response
        if is_current(self.environ.get('HTTP_IF_NONE_MATCH'), response):
            response = not_modified(response, also=KEYED if keys else ())
        self.run_after(response)
        return response


class ViewRun:
    """One run of a cached view for a request, whose response is stored; the instance of its call.

    :param identity: the identity that the key has.
    :param app: the app that has told it.
    :param key: the whole key.
    """

    def __init__(
        self, answer: Answer, view: CachedView, identity: Any, app: Any, key: str
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
        #: True if the body is made while it is sent, for which the session of a run is too short.
        self.must_run_again = False
        #: True if the view has changed the database.
        self.has_written = False
        #: The response of the view, if it is not stored.
        self.response: Any = None
        #: The exception that the view has raised as its response, if it is not stored.
        self.raised: HTTPException | None = None

    @property
    def app(self) -> Any:
        """The root app."""
        return self._answer.request.app.root

    def create(self) -> Any:
        """Let the application answer a guarded request; return the response as it is stored.

        :return: :data:`NOTHING` if it is not stored.
        :raises ViewReached: if another view is reached.
        """
        answer = self._answer
        self._run = answer.scope.runs[-1]
        self.has_run = True
        self._request = answer.request.app.request(dict(answer.environ))
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
        self._run.taint(reason)
        self.must_run_again = is_streamed(response)
        self.has_written = self.must_run_again and self._has_written()
        if was_raised:
            self.raised = response
        else:
            self.response = response
        return NOTHING

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


def place_of(app: Any) -> tuple[Any, ...]:
    """Return what tells an app from others that answer requests of its root app."""
    return tuple(type(each) for each in app.ancestors()), mounted_as(app)


def identified(app: Any, request: Any) -> Any:
    """Return the identity that an app gives a request, as ``request.identity`` does."""
    claimed = app._identify(request)
    if claimed is None or claimed is morepath.NO_IDENTITY or not app._verify_identity(claimed):
        return morepath.NO_IDENTITY
    return claimed


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
