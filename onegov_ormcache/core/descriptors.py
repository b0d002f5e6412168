"""The cached properties: what a developer writes, and what reading them does.

A descriptor is made once, where a property is declared; a :class:`Property` is a
descriptor on one application class, with its key and its tags, known when the
application is committed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, cast, overload

from sqlalchemy.orm import Query

from ..database.transactions import current_scope
from ..errors import (
    OutsideScopeError,
    PropertyConflictError,
    PropertyError,
    ValueNotCacheable,
)
from ..tags.snapshot import PROPERTY_TAG
from ..tiers.refusals import is_orm_object
from .policies import CachePolicy, Policy, check_policy
from .reading import app_of, fetched, read, read_request_cached
from .variants import Vary, role_of, variant_key

if TYPE_CHECKING:
    from .cache import Runtime
    from .scope import RequestScope

T = TypeVar('T')

get_current_scope = current_scope.get

#: How many of the keys that a process has used each descriptor remembers.
REMEMBERED_KEYS = 10_000

#: Who has read a property that was not read.
NOBODY: Any = object()

Creator = Callable[[Any], T]


class Property:
    """A descriptor on one application class, made by that application's runtime.

    :param owner: the concrete application class.
    :param release: the application's release.
    """

    def __init__(
        self, descriptor: CachedDescriptor[Any], owner: type, policy: Policy, release: str
    ) -> None:
        self.descriptor = descriptor
        self.name = descriptor.name
        self.where = f'{owner.__module__}.{owner.__qualname__}.{_place(descriptor, owner)}'
        #: What its values are kept under, before tenant and variant.
        self.key = f'{release}:{self.where}'
        self.auto = policy.auto
        self.is_request_cached = isinstance(descriptor, RequestCacheDescriptor)
        self.functions = policy.functions
        self.function_tag = PROPERTY_TAG + self.key if policy.functions else None
        #: The tags that the policy declares.
        self.tags = policy.tags | ({self.function_tag} if self.function_tag else set())
        #: Whether the last run could not be stored, so that waiting for one is useless.
        self.never_stored = False
        #: What was said of it in the log, each once.
        self.reasons: set[str] = set()


def _place(descriptor: CachedDescriptor[Any], owner: Any) -> str:
    """What tells a property from all others of the same application class."""
    name = descriptor.name
    if getattr(owner, name, None) is descriptor:
        return name
    if getattr(getattr(owner, 'request_class', None), name, None) is descriptor:
        return f'request.{name}'
    # overridden, and read by super()
    creator: Any = descriptor.creator
    declared = f'{creator.__module__}.{creator.__qualname__}'
    return f'super({declared}).{name}'


class CachedDescriptor(Generic[T]):
    """What orm-cached and request-cached properties have in common.

    :param creator: a function of the app or request that computes the value.
    :param name: the property's name, if it is not the creator's.
    :raises PropertyError: if the creator can't be called with just the instance.
    """

    #: What its values differ by, beside tenant and class.
    varies: tuple[Vary, ...] = ()
    vary: Vary | None = None
    cache_policy: CachePolicy = 'auto'
    frozen = False

    def __init__(self, creator: Creator[T], name: str | None = None) -> None:
        self.creator = creator
        self.name: str = name or str(getattr(creator, '__name__', repr(creator)))
        self.location = location(creator)
        self.__doc__ = creator.__doc__
        check_creator(creator, f'{self.name} ({self.location})')

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...

    @overload
    def __get__(self, instance: Any, owner: type[Any]) -> T: ...

    def __get__(self, instance: Any | None, owner: type[Any]) -> Self | T:
        # every read comes through here: no call that can be spared (tests/benchmarks)
        try:
            scope = get_current_scope()
            read_by, value, variant, role = scope.hits[self]
        except (KeyError, AttributeError):
            read_by = NOBODY
        if read_by is instance and (
            not variant
            or (self.vary is None and role is role_of(instance))
            or variant == self.variant(instance)
        ):
            modified, new, deleted = scope.pending
            if not (modified or new or deleted):
                return value  # type: ignore[no-any-return]
        return self if instance is None else self.load(instance)

    def load(self, instance: Any) -> T:
        """The property's value for this app or request.

        :raises OutsideScopeError: outside of a request scope.
        """
        scope = scope_of(instance, self)
        scope.flush()
        descriptor, owner = declared_for(self, instance)
        prop = scope.runtime.property(descriptor, owner)
        era = scope.era
        value: T = descriptor.read(scope, instance, prop)
        if era == scope.era:  # else the value is not in the request tier either
            role = role_of(instance) if self.varies else None
            scope.remember_hit(self, instance, value, self.variant(instance), role)
        return value

    def read(self, scope: RequestScope, instance: Any, prop: Property) -> T:
        """The value in a scope that was found and flushed."""
        raise NotImplementedError

    def variant(self, instance: Any) -> str:
        """Which of the property's variants the app or request sees, as the end of its key.

        :raises VariantError: if ``vary`` gives what is no key.
        """
        if not self.varies:
            return ''
        return variant_key(self.varies, instance, f'{self.name} ({self.location})')

    def create(self, instance: Any) -> T:
        """Run the creator; queries are fetched whole."""
        scope = scope_of(instance)
        return cast('T', fetched(scope, self.creator(instance)))

    def for_app(self, app_class: type) -> CachedDescriptor[T]:
        """A descriptor of the same property, to be installed on another class."""
        raise NotImplementedError


class OrmCacheDescriptor(CachedDescriptor[T]):
    """An orm-cached property; made by :func:`orm_cached` or the directive.

    ORM objects can't be its values: they belong to one session.

    :param cache_policy: which changes evict it, see :mod:`onegov_ormcache.policies`.
    :param creator: a function of the app or request that computes the value; a
        ``Query`` or ``select()`` that it returns is fetched whole.
    :param by_role: keep a value for each role of ``instance.identity``.
    :param name: the property's name, if it is not the creator's.
    :param vary: keep a value for each key that this function of the app or request gives.
    :param frozen: make lists, dicts and sets of the value immutable, and share it.
    :raises PolicyError: if the policy is of no known kind.
    """

    def __init__(
        self,
        cache_policy: CachePolicy,
        creator: Creator[T],
        by_role: bool = False,
        name: str | None = None,
        vary: Vary | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(creator, name)
        self.frozen = frozen
        if vary is not None and not callable(vary):
            raise PropertyError(f'{self.name} ({self.location}): vary={vary!r} is no function')
        self.vary = vary
        self.varies = (*((role_of,) if by_role else ()), *((vary,) if vary else ()))
        check_policy(cache_policy, f'{self.name} ({self.location})')
        self.cache_policy = cache_policy
        self.by_role = by_role
        #: The keys, with their variants, that this process has used.
        self.used_cache_keys: set[str] = set()

    @property
    def cache_key_prefix(self) -> str:
        """The property's name, which all its keys begin with on each class."""
        return self.name

    def cache_key(self, instance: Any) -> str:
        """The property's name with the variant that this instance sees."""
        return self.name + self.variant(instance)

    def read(self, scope: RequestScope, instance: Any, prop: Property) -> T:
        key = prop.key + self.variant(instance)
        if len(self.used_cache_keys) < REMEMBERED_KEYS:
            self.used_cache_keys.add(key)
        return cast('T', read(scope, instance, prop, key))

    def assert_no_orm_objects(self, obj: object) -> None:
        """Raise :class:`ValueNotCacheable` if there is an ORM object in it, at any depth.

        Loading does so too, through the serializer, which names the place.
        """
        seen: set[int] = set()
        left = [obj]
        while left:
            value = left.pop()
            if id(value) in seen or isinstance(value, (str, bytes)):
                continue
            seen.add(id(value))
            if is_orm_object(value):
                raise ValueNotCacheable(f'{self.name}: ORM objects can not be cached: {value!r}')
            if isinstance(value, Mapping):
                left += [*value.keys(), *value.values()]
            elif isinstance(value, Collection):
                left += value

    def for_app(self, app_class: type) -> OrmCacheDescriptor[T]:
        return OrmCacheDescriptor(
            self.cache_policy, self.creator, self.by_role, self.name, self.vary, self.frozen
        )


class RequestCacheDescriptor(CachedDescriptor[T]):
    """A request-cached property; made by :func:`request_cached` or the directive.

    Its values live as long as the request scope and may hold ORM objects.
    """

    def read(self, scope: RequestScope, instance: Any, prop: Property) -> T:
        # a class can be mounted twice, with different arguments
        key = (prop.key, id(instance))
        return cast('T', read_request_cached(scope, instance, prop, key))

    def for_app(self, app_class: type) -> RequestCacheDescriptor[T]:
        return RequestCacheDescriptor(self.creator, self.name)


class OrmCachedDecorator(Protocol):
    """What :func:`orm_cached` returns."""

    @overload
    def __call__(self, creator: Creator[Query[T]]) -> OrmCacheDescriptor[tuple[T, ...]]: ...

    @overload
    def __call__(self, creator: Creator[T]) -> OrmCacheDescriptor[T]: ...


def orm_cached(
    policy: CachePolicy,
    by_role: bool = False,
    vary: Vary | None = None,
    frozen: bool = False,
) -> OrmCachedDecorator:
    """Declare an orm-cached property in the body of an app or request class.

    :param policy: ``'on-table-change:users'``, several tables
        (``'on-table-change:users,groups'``), a mapped class, a function of the
        changed object, ``'auto'``, or a list of these.
    :param by_role: keep a value for each role of ``request.identity``; short for a
        ``vary`` that gives the role.
    :param vary: a function of the app or request; a value is kept for each key that it
        gives: None, a number, string, date, UUID, enum member, or a tuple of these.
    :param frozen: give the value with its lists as tuples, its dicts as frozendicts and its
        sets as frozensets. Requests then share it, which saves decoding a large one for each.
    :raises PropertyError: if the creator needs arguments.
    :raises PolicyError: if the policy is of no known kind.
    :raises PropertyConflictError: if the class body has such a property already.
    """

    def decorate(creator: Creator[Any]) -> OrmCacheDescriptor[Any]:
        descriptor = OrmCacheDescriptor(policy, creator, by_role, vary=vary, frozen=frozen)
        refuse_second(descriptor, sys._getframe(1).f_locals)
        return descriptor

    return cast('OrmCachedDecorator', decorate)


def request_cached(creator: Creator[T]) -> RequestCacheDescriptor[T]:
    """Declare a request-cached property in the body of an app or request class.

    Its value is computed once per request scope, and may hold ORM objects.

    :raises PropertyError: if the creator needs arguments.
    :raises PropertyConflictError: if the class body has such a property already.
    """
    descriptor = RequestCacheDescriptor(creator)
    refuse_second(descriptor, sys._getframe(1).f_locals)
    return descriptor


def scope_of(instance: Any, descriptor: CachedDescriptor[Any] | None = None) -> RequestScope:
    """The current request scope of the instance's root app.

    :raises OutsideScopeError: if there is none.
    """
    runtime: Runtime | None = vars(app_of(instance).root).get('orm_cache_runtime')
    scope: Any = current_scope.get()
    while scope is not None and scope.runtime is not runtime:
        scope = scope.outer
    if scope is None:
        what = f'{descriptor.name} ({descriptor.location})' if descriptor else repr(instance)
        raise OutsideScopeError(
            f'{what} was read outside of a request scope; open one: '
            'with app.request_scope(schema): ...'
        )
    return cast('RequestScope', scope)


def declared_for(
    descriptor: CachedDescriptor[Any], instance: Any
) -> tuple[CachedDescriptor[Any], type]:
    """The property that is meant, and the application class whose it is.

    A request is made by the root app's request class: the property of this name that
    counts is the one of the app that answers it, or of the nearest it is mounted in.
    What is read by ``super()`` is meant itself.
    """
    app = app_of(instance)
    found = getattr(type(instance), descriptor.name, None)
    if app is instance or (found is not None and found is not descriptor):
        return descriptor, type(app)
    for ancestor in app.ancestors():
        declared = getattr(ancestor.request_class, descriptor.name, None)
        if isinstance(declared, CachedDescriptor):
            return declared, type(ancestor)
    return descriptor, type(app)


def check_creator(creator: Callable[..., Any], where: str) -> None:
    """Raise :class:`PropertyError` if the creator can't be called with one argument."""
    if not callable(creator):
        raise PropertyError(f'{where}: {creator!r} is no function')
    try:
        inspect.signature(creator).bind(object())
    except TypeError as error:
        raise PropertyError(
            f'{where}: a creator is called with the app or request alone: {error}'
        ) from None
    except ValueError:
        pass  # a builtin that does not tell
    if inspect.iscoroutinefunction(creator) or inspect.isgeneratorfunction(creator):
        raise PropertyError(f'{where}: a creator returns its value; it can not await or yield')


def refuse_second(descriptor: CachedDescriptor[Any], namespace: Any) -> None:
    """Raise if a class body declares two properties of one name."""
    other = namespace.get(descriptor.name) if '__qualname__' in namespace else None
    if isinstance(other, CachedDescriptor):
        raise PropertyConflictError(
            f'{namespace["__qualname__"]} has two properties {descriptor.name!r}: '
            f'{other.location} and {descriptor.location}'
        )


def location(function: Any) -> str:
    """File and line of a function's definition, as far as they are known."""
    code = getattr(inspect.unwrap(function), '__code__', None) if callable(function) else None
    return f'{code.co_filename}:{code.co_firstlineno}' if code else repr(function)
