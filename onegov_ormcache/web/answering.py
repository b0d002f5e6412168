"""The answer to a request by a cached response: found, or made by one run of its view.

A tween directly under that of the transaction looks for a response before the routing. If there
is none, it lets the rest of the application answer a guarded request, as the run of a creator.
Which view a URL leads to is learned when a request reaches it; that is a hint, and may be wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ..core.computing import log_once
from ..core.reading import Reading, told
from ..core.scope import RequestScope, innermost_scope
from ..errors import SnapshotConflict, VariantError
from .app import OrmCacheApp
from .cache import ROOT_ATTRIBUTE, AppCache
from .cached_views import METHODS, CachedView, ResponseOptions
from .guarding import foreign_names
from .passes import Pass, ViewReached, restore, through
from .reached_views import ReachedView
from .responses import NOTHING, StoredResponse, headers_beside, is_current, made, not_modified
from .surrogate_keys import SEPARATORS
from .tween import Handler, transaction_tween_factory
from .view_runs import ViewRun, identified

#: How often a request is routed anew, because it has reached another view than the one that was
#: expected. A view that is chosen at random could go on for ever.
MOST_PASSES = 3

#: The keys of the environment by which a URL is remembered.
URL_KEYS = ('REQUEST_METHOD', 'SCRIPT_NAME', 'PATH_INFO')

#: The headers that may have surrogate keys, in small letters.
KEYED = frozenset(map(str.lower, SEPARATORS))


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
        self.seen_environ: dict[str, Any] = {}
        self._identified_after: list[Any] = []
        self.url = ' '.join(str(self.environ.get(key, '')) for key in URL_KEYS)

    def response(self) -> Any:
        """Return the response, or raise what the application raises."""
        root = self.request.app
        hint = self.cache.views_reached.get(self.url)
        if hint is not None and hint.is_uncached:
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
            self.cache.views_reached.learn(self.url, ReachedView(view, owner, is_uncached=True))
            if run.has_written:
                # the tween rolls back and tries again, which is not cached
                raise SnapshotConflict(f'{prop.where}: it writes, and must run again')
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
        self.seen_environ = {
            key: value for key, value in self.request.environ.items()
            if value is not self.environ.get(key) and not key.startswith('webob.')
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
