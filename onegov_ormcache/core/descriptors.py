"""The cached properties: what a developer writes, and what reading them does.

A descriptor is made once, where a property is declared. On each class that has it, it is a
:class:`~onegov_ormcache.core.properties.Property`, with a key and tags of its own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, Protocol, Self, TypeVar, cast, overload

from sqlalchemy.orm import Query

from ..database.transactions import current_scope
from ..errors import (
    OutsideScopeError,
    PropertyConflictError,
    PropertyError,
    ValueNotCacheable,
)
from ..tiers.refusals import is_orm_object
from .computing import fetched
from .policies import CachePolicy, check_policy
from .properties import Property
from .reading import read, read_request_cached
from .scope import RequestScope
from .variants import Vary, role_of, variant_key

T = TypeVar('T')

get_current_scope = current_scope.get

#: How many of the keys that a process has used each descriptor remembers.
REMEMBERED_KEYS = 10_000

#: Who has read a property that was not read.
NOBODY: Any = object()

Creator = Callable[[Any], T]


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
    is_request_cached = False

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
        declared, owner = scope.cache.resolve(self, instance)
        prop = scope.cache.property_of(declared, owner)
        descriptor = cast('CachedDescriptor[T]', declared)
        number = scope.snapshot_number
        value = descriptor.read(scope, instance, prop)
        if number == scope.snapshot_number:  # else the value is not in the request tier either
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

    is_request_cached = True

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
    """Return the innermost current scope of the cache that an object's properties are of.

    :raises OutsideScopeError: if there is none.
    """
    scope: RequestScope | None = current_scope.get()
    while scope is not None and not scope.cache.is_cache_of(instance):
        scope = scope.outer
    if scope is None:
        what = f'{descriptor.name} ({descriptor.location})' if descriptor else repr(instance)
        raise OutsideScopeError(
            f'{what} was read outside of a request scope; open one: '
            'with app.request_scope(schema): ..., or: with cache.scope(schema): ...'
        )
    return scope


def cached_descriptors(owner: type) -> Iterator[tuple[CachedDescriptor[Any], type]]:
    """Yield the cached properties of a class, each with the class that declares it."""
    seen: set[str] = set()
    for cls in owner.__mro__:
        for name, value in vars(cls).items():
            if isinstance(value, CachedDescriptor) and name not in seen:
                yield value, cls
            seen.add(name)


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
