"""The Dectate actions behind ``App.orm_cached``, ``App.request_cached`` and ``prefetch``.

``App.orm_cached`` and ``App.request_cached`` are composites, because a composite sees the
decorated function, whose name is by default the property's. A composite yields one
:class:`PropertyAction`. Dectate compares the identifiers of these actions: two equal ones in
one class are a conflict, and one in a subclass overrides the equal one of its base class.
"""

from __future__ import annotations

import keyword
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
)

from dectate import Action, Composite, directive
from dectate.app import BoundDirectiveMethod, DirectiveMethod
from dectate.config import Directive
from morepath.directive import HtmlAction, JsonAction, ViewAction

from ..core.arguments import Many
from ..core.decorators import is_decorator_of, make_orm_cached
from ..core.descriptors import CachedDescriptor, OrmCacheDescriptor, RequestCacheDescriptor
from ..core.expiry import Expires
from ..core.policies import CachePolicy
from ..core.prefetching import prefetch
from ..core.properties import location
from ..core.variants import Vary
from ..errors import PropertyConflictError, PropertyError
from .cached_views import CachingResponses, ResponseOptions
from .listings import PropertyListing

if TYPE_CHECKING:
    from webob import Response as BaseResponse

    FunctionT = TypeVar('FunctionT', bound=Callable[Concatenate[Any, ...], Any])
    AttributeT = TypeVar('AttributeT', bound=Callable[[Any], Any])

    class OrmCachedDirectiveCall(Directive):
        """What type checkers see of ``App.orm_cached(...)``: it leaves the creator as it is."""

        def __call__(self, wrapped: FunctionT) -> FunctionT:  # type: ignore[override]
            return wrapped

    class RequestCachedDirectiveCall(Directive):
        """What type checkers see of ``App.request_cached(...)``: its creators take no arguments
        beside the instance."""

        def __call__(self, wrapped: AttributeT) -> AttributeT:  # type: ignore[override]
            return wrapped


P = ParamSpec('P')
D = TypeVar('D', bound=Directive)

Target = Literal['app', 'request']


class PropertyOwner(Protocol):
    """An application class on which :class:`PropertyAction` installs properties."""

    @classmethod
    def install_property(
        cls, target: Target, descriptor: CachedDescriptor[Any], where: str
    ) -> None:
        """Install a property on the class, or on its request class."""


class PropertyAction(Action):
    """Installs one property on the app class, or on its request class.

    A directive makes it, and Dectate performs it for the class and for each subclass.

    :param target: ``'app'`` or ``'request'``.
    """

    app_class_arg = True

    def __init__(self, name: str, target: Target) -> None:
        self.name = name
        self.target = target

    def identifier(self, app_class: type[PropertyOwner]) -> tuple[Target, str]:
        return self.target, self.name

    def perform(self, obj: CachedDescriptor[Any], app_class: type[PropertyOwner]) -> None:
        app_class.install_property(self.target, obj.for_app(app_class), self._where())

    def _where(self) -> str:
        return f'{self.name} ({self.code_info.filelineno() if self.code_info else "?"})'


class OrmCachedListing(PropertyListing):
    """What a query of ``orm_cached`` finds, however it is declared."""

    depends = [PropertyAction]
    kind = OrmCacheDescriptor


class RequestCachedListing(PropertyListing):
    """What a query of ``request_cached`` finds, however it is declared."""

    depends = [PropertyAction]
    kind = RequestCacheDescriptor


class PropertyDirective(Composite, Generic[D]):
    """The base of the directives ``orm_cached`` and ``request_cached``."""

    filter_convert = PropertyListing.filter_convert

    def __init__(self, name: str | None, target: Target) -> None:
        self.name = name
        self.target = target

    def descriptor(self, creator: Any) -> CachedDescriptor[Any]:
        """Return a descriptor whose value the creator computes."""
        raise NotImplementedError

    def actions(self, obj: Any) -> Iterator[tuple[Action, Any]]:
        where = self.code_info.filelineno() if self.code_info else '?'
        if self.target not in ('app', 'request'):
            raise PropertyError(f"{where}: target is {self.target!r}; expected 'app' or 'request'")
        name = self.name if self.name is not None else getattr(obj, '__name__', None)
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise PropertyError(f'{where}: {name!r} can not be the name of a property; use name=')
        self.name = name
        action = PropertyAction(name, self.target)
        action.directive = self.directive
        yield action, self.descriptor(obj)


class PropertyDirectiveMethod(DirectiveMethod[Any, P], Generic[P, D]):
    """The class method of a property's directive, which refuses to be used as
    ``@App.orm_cached``, without parentheses.

    Dectate would wait for a function to be decorated, and the property would not exist.
    """

    def __get__(self, instance: Any, owner: Any, /) -> BoundPropertyDirective[P, D]:
        return BoundPropertyDirective(owner, self.__func__)


class BoundPropertyDirective(BoundDirectiveMethod[Any, P], Generic[P, D]):
    """A :class:`PropertyDirectiveMethod` as an attribute of an app class."""

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> D:
        creator: Any = arguments[0] if arguments else None
        if is_decorator_of(creator, sys._getframe(1)):
            raise PropertyError(
                f'{creator.__name__} ({location(creator)}): a directive is used without '
                'parentheses; write @App.orm_cached(policy=...), or @App.request_cached()'
            )
        # not by super(): Dectate looks for the caller's file and line at a fixed depth
        made: Any = self.__func__(self.__objclass__, *arguments, **options)
        return made  # type: ignore[no-any-return]


def property_directive(
    action_factory: Callable[P, PropertyDirective[D]],
) -> PropertyDirectiveMethod[P, D]:
    """Return the class method with which an app class declares properties."""
    return PropertyDirectiveMethod(directive(action_factory).__func__)


class OrmCachedDirective(PropertyDirective['OrmCachedDirectiveCall']):
    """Declare an orm-cached property.

    :param policy: the changes that evict it, see :func:`onegov_ormcache.orm_cached`.
    :param by_role: keep a value for each role of ``request.identity``.
    :param name: the property's name; by default the function's.
    :param target: ``'app'``, or ``'request'`` for a property of the request.
    :param vary: see :func:`onegov_ormcache.orm_cached`.
    :param frozen: see :func:`onegov_ormcache.orm_cached`.
    :param expires: see :func:`onegov_ormcache.orm_cached`.
    :param many: see :func:`onegov_ormcache.orm_cached`.
    """

    query_classes = [OrmCachedListing]

    def __init__(
        self,
        policy: CachePolicy,
        by_role: bool = False,
        name: str | None = None,
        target: Target = 'app',
        vary: Vary | None = None,
        frozen: bool = False,
        expires: Expires = None,
        many: Many | None = None,
    ) -> None:
        super().__init__(name, target)
        self.policy = policy
        self.expires = expires
        self.many = many
        self.frozen = frozen
        self.vary = vary
        self.by_role = by_role

    def descriptor(self, creator: Any) -> CachedDescriptor[Any]:
        return make_orm_cached(
            self.policy, creator, self.by_role, self.name, self.vary, self.frozen,
            self.expires, self.many,
        )  # fmt: skip


class RequestCachedDirective(PropertyDirective['RequestCachedDirectiveCall']):
    """Declare a request-cached property.

    :param name: the property's name; by default the function's.
    :param target: ``'app'``, or ``'request'`` for a property of the request.
    :param merge: see :func:`onegov_ormcache.request_cached`.
    """

    query_classes = [RequestCachedListing]

    def __init__(
        self, name: str | None = None, target: Target = 'app', merge: bool = False
    ) -> None:
        super().__init__(name, target)
        self.merge = merge

    def descriptor(self, creator: Any) -> CachedDescriptor[Any]:
        return RequestCacheDescriptor(creator, self.name, self.merge)


class Prefetching:
    """Adds the option ``prefetch`` to the action of a view directive.

    :param prefetch: the name of an orm-cached property of the request or its app, or several
        names. The values are fetched in one round trip before the view runs.
    """

    def __init__(self, *arguments: Any, prefetch: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prefetch = (prefetch,) if isinstance(prefetch, str) else tuple(prefetch)

    def perform(self, obj: Any, **config: Any) -> None:
        view = obj
        if self.prefetch:
            view = prefetching(obj, self.prefetch)
            # the properties may be installed later, so the app class checks the names at the end
            action: Any = self
            where = action.code_info.filelineno() if action.code_info else '?'
            config['app_class'].prefetches.append(Prefetch(where, self.prefetch))
        super().perform(view, **config)  # type: ignore[misc]


class Prefetch(NamedTuple):
    """The names that a view's option ``prefetch`` gives, with the file and line of the view."""

    where: str
    names: tuple[str, ...]

    def check(self, owners: Iterable[type]) -> None:
        """Raise :class:`PropertyError` for a name that is no orm-cached property, or that of
        one that takes arguments.

        :param owners: the classes whose properties the names may be: that of the app, and those
            of the requests that it may answer.
        """
        owners = tuple(owners)
        for name in self.names:
            found = [getattr(owner, name, None) for owner in owners]
            properties = [each for each in found if isinstance(each, OrmCacheDescriptor)]
            if not properties:
                raise PropertyError(
                    f'{self.where}: prefetch names {name!r}, which is no orm-cached property of '
                    f'{owners[0].__qualname__} or of its requests'
                )
            if all(each.parameters for each in properties):
                raise PropertyError(
                    f'{self.where}: prefetch names {properties[0].where}, which takes arguments; '
                    f'call request.prefetch({name!r}, args=[...]) in the view'
                )


def prefetching(view: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """Return a view that fetches the properties of these names, then calls the given one."""

    @wraps(view)
    def prefetched(model: Any, request: Any, *arguments: Any) -> Any:
        prefetch((request, request.app), names)
        return view(model, request, *arguments)

    return prefetched


class ViewOptions:
    """What type checkers see of the options of a view directive: those of Morepath, and
    ``prefetch`` and ``cached``."""

    if TYPE_CHECKING:

        def __init__(
            self,
            model: type[Any],
            render: Callable[[Any, Any], BaseResponse] | None = None,
            template: str | None = None,
            load: Callable[[Any], Any] | None = None,
            permission: object | None = None,
            internal: bool = False,
            *,
            prefetch: Sequence[str] = (),
            cached: bool | ResponseOptions = False,
            **predicates: Any,
        ) -> None: ...


class PrefetchingViewAction(  # type: ignore[misc]
    ViewOptions, CachingResponses, Prefetching, ViewAction
):
    """``App.view`` with the options ``prefetch`` and ``cached``."""

    group_class = ViewAction


class PrefetchingJsonAction(  # type: ignore[misc]
    ViewOptions, CachingResponses, Prefetching, JsonAction
):
    """``App.json`` with the options ``prefetch`` and ``cached``."""


class PrefetchingHtmlAction(  # type: ignore[misc]
    ViewOptions, CachingResponses, Prefetching, HtmlAction
):
    """``App.html`` with the options ``prefetch`` and ``cached``."""


def refuse_existing(owner: type, descriptor: CachedDescriptor[Any], where: str) -> None:
    """Raise if a property would hide another attribute of its class.

    It may hide a cached property of a base class, because this is how a subclass overrides one.

    :param owner: the class that has the property, or is to get it.
    :param where: the property's name, file and line, for the message.
    :raises PropertyConflictError: if it hides any other attribute.
    """
    for cls in owner.__mro__:
        existing = vars(cls).get(descriptor.name)
        if existing is None and cls.__module__.startswith('morepath.'):
            # attributes that only instances have, such as request.app, are annotated
            existing = vars(cls).get('__annotations__', {}).get(descriptor.name)
        if existing is None or existing is descriptor:
            continue
        if isinstance(existing, CachedDescriptor) and cls is not owner:
            return
        what = (
            f'a property declared at {existing.location}'
            if isinstance(existing, CachedDescriptor)
            else f'an attribute of {cls.__module__}.{cls.__qualname__}'
        )
        raise PropertyConflictError(
            f'{where}: {owner.__qualname__}.{descriptor.name} is already {what}; use another name'
        )
