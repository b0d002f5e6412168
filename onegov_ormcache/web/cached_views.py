"""Cached views: the option ``cached`` of the view directives, and the views that have it.

A cached view is declared like an orm-cached property of the policy ``auto``: its values are whole
responses. This module knows by what a response differs. It does not know how it is found or sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import MemberDescriptorType
from typing import Any

import morepath
from dectate import convert_bool
from morepath.directive import ViewAction
from morepath.view import View

from ..core.descriptors import CachedDescriptor
from ..core.expiry import Expires, check_expires
from ..core.properties import location
from ..core.variants import Vary, key_text, role_of
from ..errors import PropertyConflictError, PropertyError, VariantError
from .guarding import (
    HOST_KEYS,
    PASS,
    GuardedRequest,
    foreign_names,
    header_key,
    is_opaque,
    looks_at,
)
from .responses import StoredResponse, checked

#: The methods whose responses are cached.
METHODS = ('GET', 'HEAD')

#: The statuses that a cached view may be asked to store: no error of a server, and nothing that
#: is about the user alone.
STATUSES = frozenset((200, 301, 302, 303, 307, 308, 404, 410))


@dataclass(frozen=True)
class ResponseOptions:
    """The options of a cached view; made by :func:`cached`, which describes them."""

    by_role: bool
    public: bool
    by_host: bool
    vary: Vary | None
    headers: tuple[str, ...]
    statuses: frozenset[int]
    expires: Expires
    max_size: int | None

    @property
    def is_private(self) -> bool:
        """True if a response is for one user."""
        return not (self.by_role or self.public)

    @property
    def is_for_all(self) -> bool:
        """True if whoever sends the same request, with the headers of ``Vary``, gets the same
        response: a cache that does not ask the application may serve it."""
        return self.public and self.vary is None

    @property
    def covered(self) -> frozenset[str]:
        """The keys of the WSGI environment that a response's key has."""
        host = HOST_KEYS if self.by_host else ()
        return frozenset((*map(header_key, self.headers), *host))

    @property
    def varies(self) -> tuple[Vary, ...]:
        """The functions of a request by which a response differs."""
        by_user = () if self.public else (role_of,)
        return (*by_user, *((self.vary,) if self.vary else ()))

    def key(
        self, root: morepath.App, request: morepath.Request, identity: Any, given: dict[str, Any]
    ) -> str:
        """Return the part of a response's key beside its view.

        :param identity: the request's identity; not used for a public response.
        :param given: the attributes of the request before it is routed.
        :raises VariantError: if the identity, or what ``vary`` returns, can't be part of a key.
        """
        environ = request.environ
        parts: list[Any] = [
            f'{type(root).__module__}.{type(root).__qualname__}',
            environ.get('REQUEST_METHOD'),
            environ.get('SCRIPT_NAME', ''),
            environ.get('PATH_INFO', ''),
            environ.get('QUERY_STRING', ''),
            environ.get('CONTENT_TYPE') or '',
            # tweens may have changed these
            tuple(given['unconsumed']), foreign_names(given),
            tuple((name.lower(), environ.get(header_key(name))) for name in self.headers),
        ]
        if self.by_host:
            parts.append(('host', *(str(environ.get(key)) for key in sorted(HOST_KEYS))))
        if not self.public:
            parts.append(('role' if self.by_role else 'user', self.user(identity)))
        if self.vary is not None:
            parts.append(('vary', self.vary(request)))
        return key_text(tuple(parts), f'{environ.get("PATH_INFO")!r}: a part of the key')

    def user(self, identity: Any) -> Any:
        """Return the part of a key that tells users apart."""
        if self.public or identity is morepath.NO_IDENTITY:
            return None
        kind = f'{type(identity).__module__}.{type(identity).__qualname__}'
        if self.by_role:
            return kind, getattr(identity, 'role', None)
        return kind, told_by(identity)


def told_by(identity: Any) -> tuple[tuple[str, Any], ...]:
    """Return all that tells an identity from others: its attributes, and what it exports, which
    may be more or less than these.

    :raises VariantError: if it has nothing of this, or can tell of itself by other ways.
    """
    usual = type(identity)
    facts = dict(getattr(identity, '__dict__', {}))
    for each in usual.__mro__:
        for name, slot in vars(each).items():
            if isinstance(slot, MemberDescriptorType) and hasattr(identity, name):
                facts[name] = getattr(identity, name)
    facts.pop('_names', None)  # Morepath's own, the names of attributes
    if hasattr(identity, 'as_dict'):
        facts.update((('exported', name), value) for name, value in identity.as_dict().items())
    if not facts or is_opaque(usual):
        raise VariantError(f'an identity of {usual.__qualname__} can not be told from others')
    return tuple(sorted(facts.items(), key=lambda item: repr(item[0])))


def cached(
    *,
    by_role: bool = False,
    public: bool = False,
    by_host: bool = True,
    vary: Vary | None = None,
    headers: Sequence[str] = (),
    statuses: Collection[int] = (200,),
    expires: Expires = None,
    max_size: int | None = None,
) -> ResponseOptions:
    """Return the option ``cached`` of a view directive, where True does not say enough::

        @App.html(model=Page, cached=cached(by_role=True, headers=['Accept-Language']))
        def page(self, request): ...

    A response differs by tenant, application, method, path and query string; by the whole identity
    of the user; and by the host and the scheme, because links have them. It depends on all tables
    that the routing and the view have read, like the values of properties with the policy
    ``auto``.

    :param by_role: differ by ``request.identity.role`` alone, not by the whole identity.
    :param public: differ by nothing of the user.
    :param by_host: pass False for responses without links, which are the same under each host.
    :param vary: a function of the request; the response differs by what it returns, too.
    :param headers: names of request headers that the response differs by. It gets a ``Vary``.
    :param statuses: the statuses that are stored; beside 200 those of redirects, 404 and 410.
    :param expires: seconds after which a response ends by itself, or a function of the
        :class:`StoredResponse` that returns the moment, as a datetime with a time zone.
    :param max_size: the most bytes that a body may have to be stored; by default as many as the
        setting ``max_value_size`` allows.
    :raises PropertyError: if an option is wrong.
    """
    where = 'cached'
    flags = {'by_role': by_role, 'public': public, 'by_host': by_host}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise PropertyError(f'{where}: {name}={flag!r}; expected True or False')
    if by_role and public:
        raise PropertyError(f'{where}: by_role and public exclude one another')
    if vary is not None and not callable(vary):
        raise PropertyError(f'{where}: vary={vary!r} is no function')
    for name, items in (('headers', headers), ('statuses', statuses)):
        if not isinstance(items, Iterable):
            raise PropertyError(f'{where}: {name}={items!r}; expected a sequence')
    names = (headers,) if isinstance(headers, str) else tuple(headers)
    for name in names:
        if not isinstance(name, str) or not name.replace('-', '').isalnum() or not name.isascii():
            raise PropertyError(f'{where}: {name!r} can not be the name of a header')
    unknown = [each for each in statuses if not isinstance(each, int) or each not in STATUSES]
    if unknown:
        raise PropertyError(
            f'{where}: statuses has {unknown[0]!r}; expected some of {sorted(STATUSES)}'
        )
    check_expires(expires, where)
    is_size = isinstance(max_size, int) and not isinstance(max_size, bool) and max_size > 0
    if max_size is not None and not is_size:
        raise PropertyError(f'{where}: max_size={max_size!r}; expected a number of bytes above 0')
    return ResponseOptions(
        by_role, public, by_host, vary, names, frozenset(statuses), expires, max_size
    )


#: The options of ``cached=True``.
DEFAULT = cached()


class CachedView(CachedDescriptor[StoredResponse]):
    """A view with the option ``cached``, as the declaration of a property.

    Made for each app class that has the view, when the class is committed. The instances of which
    it is a property are runs of the view, see :mod:`.answering`.

    :param view: the function.
    :param name: names the view among those of its app class.
    """

    is_response = True

    def __init__(self, view: Any, name: str, options: ResponseOptions) -> None:
        super().__init__(_create, name)
        self.view = view
        self.location = location(view)
        self.options = options
        self.expires = options.expires
        self.varies = options.varies

    def create(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        return instance.create()

    def covers(self, varies: Collection[Vary], instance: Any) -> bool:
        # what a function has read of the guarded request is known; not what else it has read
        return super().covers(varies, instance) or (
            isinstance(instance, GuardedRequest)
            and all(looks_at(each, instance) for each in set(varies) - set(self.varies))
        )

    def checked(self, value: Any) -> Any:
        return checked(value)


def _create(run: Any) -> Any:
    return run.create()


class TrackedView(View):
    """A view that tells the pass through the routing that has reached it.

    Morepath makes the views; :class:`CachingResponses` gives them this class.
    """

    #: None for a view that is not cached.
    cached_view: CachedView | None = None

    def __call__(self, app: Any, obj: object, request: Any) -> Any:
        made_for = request.environ.get(PASS)
        if made_for is not None:
            made_for.reached(self.cached_view, request.app)
        return super().__call__(app, obj, request)


class CachingResponses:
    """Adds the option ``cached`` to the action of a view directive.

    :param cached: True, or the result of :func:`cached`, to cache the view's responses. The filter
        ``cached=True`` of a query finds them all.
    """

    filter_convert = {**ViewAction.filter_convert, 'cached': convert_bool}
    filter_compare = {
        **ViewAction.filter_compare,
        'cached': lambda cached, wanted: (cached is not False) == wanted,
    }

    def __init__(
        self, *arguments: Any, cached: bool | ResponseOptions = False, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.cached = cached

    def perform(self, obj: Any, **config: Any) -> None:
        super().perform(obj, **config)  # type: ignore[misc]
        action: Any = self
        app_class: Any = config['app_class']
        view = app_class.get_view.by_predicates(**action.key_dict()).component
        # Morepath's action makes the view and registers it, and has no name for its class
        view.__class__ = TrackedView
        if self.cached is not False:
            view.cached_view = cached_view(action, obj, app_class)
            app_class.cached_views.append(view.cached_view)


def cached_view(action: Any, view: Any, app_class: Any) -> CachedView:
    """Return the declaration of a view's responses.

    :param action: the directive's action, an instance of :class:`CachingResponses`.
    :raises PropertyError: if the view's responses can't be cached.
    :raises PropertyConflictError: if the app class has a cached view of the same name.
    """
    where = action.code_info.filelineno() if action.code_info else '?'
    options = DEFAULT if action.cached is True else action.cached
    if not isinstance(options, ResponseOptions):
        raise PropertyError(
            f'{where}: cached={action.cached!r}; expected True, or cached(...) of onegov_ormcache'
        )
    method = action.predicates.get('request_method', 'GET')
    if method not in METHODS:
        raise PropertyError(f'{where}: cached is for views of GET or HEAD, and not of {method}')
    if action.internal:
        raise PropertyError(f'{where}: an internal view has no response that can be cached')
    if action.load is not None:
        raise PropertyError(f'{where}: a view with load reads the body; it can not be cached')
    model = action.model
    if isinstance(model, type) and issubclass(model, BaseException):
        raise PropertyError(f'{where}: a view for an exception can not be cached')
    predicates = [f'{name}={_text(value)}' for name, value in sorted(action.predicates.items())]
    name = f'view({", ".join([_text(model), *predicates])})'
    for other in app_class.cached_views:
        if other.name == name:
            raise PropertyConflictError(
                f'{where}: {app_class.__qualname__} has another cached view of this name, at '
                f'{other.location}: {name}. They would share their responses; rename the model'
            )
    return CachedView(view, name, options)


def _text(value: Any) -> str:
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    return repr(value)

