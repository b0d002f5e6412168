"""The WSGI side: opens and closes the request scope, and binds the tenant's schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from webob.exc import HTTPNotFound

from ..core.scope import RequestScope
from ..errors import ConfigurationError
from .app import HOST, OrmCacheApp

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

SchemaOfRequest = Callable[[dict[str, Any]], 'str | None']


class OrmCacheMiddleware:
    """The WSGI application: a root app in which each request has a scope of its own.

    It sets the app up, so that a wrong setting or an unreachable server is an
    error when the application is made, not at the first request.

    :param app: the root app.
    :param schema: the tenant's schema, created if there is none; or a function of
        the WSGI environment that gives the name of a schema that exists. None, or a
        name that the database does not have, is answered with 404, and nothing is
        created. By default the ``schema`` that a host class provides.
    :raises OrmCacheError: see :meth:`OrmCacheApp.setup_orm_cache`.
    """

    def __init__(self, app: OrmCacheApp, schema: str | SchemaOfRequest | None = None) -> None:
        if not isinstance(app, OrmCacheApp):
            raise ConfigurationError(f'{app!r} is no OrmCacheApp')
        self.app = app
        self._schema = schema
        cache = app.ensure_orm_cache()
        if schema is None and not HOST['schema'].is_provided(app):
            raise ConfigurationError('The middleware needs a schema: a name, or a function')
        if isinstance(schema, str):
            cache.session_manager.check_schema(schema)

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        scope = self._open(environ)
        if scope is None:
            return HTTPNotFound()(environ, start_response)
        try:
            with scope.active():
                body = self.app(environ, start_response)
        except BaseException:
            close(scope)
            raise
        return ScopedBody(scope, body)

    def _open(self, environ: WSGIEnvironment) -> RequestScope | None:
        """The request's scope; None if there is no such tenant."""
        if isinstance(self._schema, str):
            return self.app.open_scope(self._schema, create=True)
        manager = self.app.ensure_orm_cache().session_manager
        schema = self._schema(environ) if self._schema else self.app.schema
        if schema is None or not manager.has_schema(schema):
            return None
        return self.app.open_scope(schema, create=False)


class ScopedBody:
    """A response's body, during which the scope lives; closed by the server."""

    def __init__(self, scope: RequestScope, body: Iterable[bytes]) -> None:
        self._scope = scope
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._body)
        while True:
            # other requests may be served between two chunks, also by this thread
            with self._scope.active():
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
            yield chunk

    def close(self) -> None:
        try:
            if (close_body := getattr(self._body, 'close', None)) is not None:
                with self._scope.active():
                    close_body()
        finally:
            close(self._scope)


def close(scope: RequestScope) -> None:
    """Close a scope as the current one, as those who listen to its session may expect."""
    with scope.active():
        scope.close()
