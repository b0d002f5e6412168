"""The WSGI middleware: opens and closes the scope of each request, for the request's tenant.

It commits nothing: :mod:`.tween` does.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic

from sqlalchemy.exc import OperationalError
from webob.exc import HTTPNotFound

from ..core.scope import RequestScope
from ..errors import ConfigurationError
from .app import HOST, OrmCacheApp
from .server_timing import timed
from .unavailable import UNREACHABLE, unavailable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: The errors of a scope that can't be opened, because a server is away.
AWAY: tuple[type[Exception], ...] = (*UNREACHABLE, OperationalError)

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    AppT = TypeVar('AppT', bound=OrmCacheApp, default=OrmCacheApp, covariant=True)
else:
    from typing import TypeVar

    AppT = TypeVar('AppT', bound=OrmCacheApp, covariant=True)

SchemaOfRequest = Callable[[dict[str, Any]], 'str | None']


class OrmCacheMiddleware(Generic[AppT]):
    """The WSGI application: a root app in which each request has a scope of its own.

    The program makes it, once for a root app, and gives it to a WSGI server. It sets the
    app up, so that a wrong setting or an unreachable server is an error when the
    application is made, not at the first request.

    :param app: the root app.
    :param schema: the name of the tenant's schema, which is created if it does not exist;
        or a function that takes the WSGI environment and returns the name of an existing
        schema. If the function returns None, or a name that the database does not have,
        the answer is 404 and nothing is created. By default the ``schema`` that a host
        class provides, which must exist too.
    :raises ConfigurationError: if ``app`` is no :class:`OrmCacheApp`, or if no schema is
        given and the host class provides none.
    :raises InvalidSchemaError: if a tenant can't have the name.
    :raises OrmCacheError: see :meth:`OrmCacheApp.setup_orm_cache`.
    """

    def __init__(self, app: AppT, schema: str | SchemaOfRequest | None = None) -> None:
        if not isinstance(app, OrmCacheApp):
            raise ConfigurationError(f'{app!r} is no OrmCacheApp')
        self.app: AppT = app
        self._schema = schema
        cache = app.ensure_orm_cache()
        self._is_timed = cache.settings.server_timing
        if cache.ambient is not None:
            raise ConfigurationError(
                f'{app!r} has sessions and transactions of its own, so it needs no middleware; it '
                'calls begin_request() at the begin of each request'
            )
        if schema is None and not HOST['schema'].is_provided(app):
            raise ConfigurationError('The middleware needs a schema: a name, or a function')
        if isinstance(schema, str):
            cache.session_manager.check_schema(schema)

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer a request. The returned body closes the request's scope when the server
        closes the body."""
        try:
            scope = self._open(environ)
        except AWAY as error:
            log.error('%s', error)
            return unavailable()(environ, start_response)
        if scope is None:
            return HTTPNotFound()(environ, start_response)
        if self._is_timed:
            start_response = timed(scope, start_response)
        try:
            with scope.active():
                body = self.app(environ, start_response)
        except BaseException:
            close(scope)
            raise
        return ScopedBody(scope, body)

    def _open(self, environ: WSGIEnvironment) -> RequestScope | None:
        """Open the scope of a request; return None if there is no such tenant."""
        if isinstance(self._schema, str):
            return self.app.open_scope(self._schema, create=True)
        manager = self.app.ensure_orm_cache().session_manager
        schema = self._schema(environ) if self._schema else self.app.schema
        if schema is None or not manager.has_schema(schema):
            return None
        return self.app.open_scope(schema, create=False)


class ScopedBody:
    """The body of a response, which keeps the request's scope open.

    The middleware makes it. The server reads it, and closes it, which closes the scope. If
    nobody closes it, the scope closes when the last reference to the body is gone. A body that
    the garbage collector has to find gives only its connection back.
    """

    #: True once the process has logged that a body was not closed.
    has_warned = False

    def __init__(self, scope: RequestScope, body: Iterable[bytes]) -> None:
        self._scope = scope
        self._body = body
        self._is_closed = False
        scope.is_streaming = True

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._body)
        while True:
            # between two chunks the scope is not current: this thread may answer other requests
            with self._scope.active():
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
            yield chunk

    def close(self) -> None:
        """Close the body of the app, then the scope."""
        self._is_closed = True
        try:
            if (close_body := getattr(self._body, 'close', None)) is not None:
                with self._scope.active():
                    close_body()
        finally:
            close(self._scope)

    def __del__(self) -> None:
        if self._is_closed or sys.is_finalizing():
            return
        if COLLECTION.is_in_progress():
            # it interrupts this thread anywhere, maybe where it holds a lock that the app's
            # body or a listener needs, so SQLAlchemy's own finalizer returns the connection
            return
        if not ScopedBody.has_warned:
            ScopedBody.has_warned = True
            log.warning(
                'The body of a response was not closed; the WSGI server, or a middleware that '
                'wraps the body, must call its close(), see PEP 3333'
            )
        self.close()


class Collection:
    """Tells whether the garbage collector runs in this thread."""

    def __init__(self) -> None:
        self._thread: int | None = None
        gc.callbacks.append(self._note)

    def is_in_progress(self) -> bool:
        """Return whether this thread is in the middle of a garbage collection."""
        return self._thread == get_ident()

    def _note(self, phase: str, info: object) -> None:
        self._thread = get_ident() if phase == 'start' else None


COLLECTION = Collection()


def close(scope: RequestScope) -> None:
    """Close a scope while it is current, because listeners of its session may read the
    current scope."""
    with scope.active():
        scope.close()
