"""Descriptors: the cached properties as a developer declares them, and their attribute access.

A descriptor is made once, where a property is declared. For each class that has it, a cache
makes a :class:`~onegov_ormcache.core.properties.Property`, with a key and tags of its own.
This module does not know how a value is found or computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, Never, NoReturn, Self, TypeVar, cast, overload

from ..database.transactions import current_scope
from ..errors import (
    OutsideScopeError,
    PropertyError,
    ValueNotCacheable,
)
from ..tiers.refusals import is_orm_object
from .ambient import is_any_open, scopes_of
from .arguments import (
    NO_ARGUMENTS,
    NO_KEYWORDS,
    Arguments,
    Many,
    Parameters,
    check_creator,
    check_many,
)
from .computing import fetched
from .expiry import Expires, check_expires
from .merging import GoneError, of_session
from .policies import CachePolicy, check_policy
from .properties import Call, Property, location
from .reading import read, read_request_cached
from .scope import RequestScope
from .variants import Vary, role_of, variant_key

T = TypeVar('T')

#: The attribute in which an object with cached properties has its cache.
ATTRIBUTE = 'orm_cache'

get_current_scope = current_scope.get

#: The largest number of used keys that a descriptor remembers.
REMEMBERED_KEYS = 1000

#: Takes the place of a hit's instance if there is no hit; it is identical to no instance.
NOBODY: Any = object()

Creator = Callable[..., T]


class CachedDescriptor(Generic[T]):
    """Base class of orm-cached and request-cached properties.

    Made when a class body or directive declares the property; lives as long as the class.

    :param creator: a function of the instance (an app, a request or another object) that
        computes the value.
    :param name: the property's name, if it is not the creator's.
    :raises PropertyError: if the creator can't be called with the instance, takes any number of
        arguments, or is a coroutine or generator function; and for each assignment to the property
        of an instance.
    """

    #: The functions by which the property varies, beside tenant and class.
    varies: tuple[Vary, ...] = ()
    vary: Vary | None = None
    cache_policy: CachePolicy = 'auto'
    frozen = False
    expires: Expires = None
    many: Many | None = None
    is_request_cached = False
    is_response = False
    #: True if the next read may return the same value without looking any further.
    is_remembered = True

    def __init__(self, creator: Creator[T], name: str | None = None) -> None:
        self.creator = creator
        self.name: str = name or str(getattr(creator, '__name__', repr(creator)))
        self.location = location(creator)
        self.__doc__ = creator.__doc__
        check_creator(creator, self.where)
        self.parameters = Parameters(creator, self.where)

    @property
    def where(self) -> str:
        """The property's name, with its file and line, for messages."""
        return f'{self.name} ({self.location})'

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...

    @overload
    def __get__(self, instance: Any, owner: type[Any]) -> T: ...

    def __get__(self, instance: Any | None, owner: type[Any]) -> Self | T:
        # every read comes through here, so this avoids all calls that it can; the cost is
        # measured in tests/benchmarks
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

    def __set__(self, instance: Any, value: Never) -> NoReturn:
        # without this, the value would hide the property in all requests and for all tenants
        raise PropertyError(
            f'{self.where} is a cached property and can not be assigned: its '
            'creator computes it. A test can replace it on the class: '
            f'monkeypatch.setattr({type(instance).__qualname__}, {self.name!r}, ...)'
        )

    def __delete__(self, instance: Any) -> NoReturn:
        raise PropertyError(
            f'{self.where} is a cached property and can not be deleted: a '
            'committed change of what its policy names evicts it'
        )

    def load(self, instance: Any) -> T:
        """Return the property's value for this instance; compute it if no tier has it.

        :raises OutsideScopeError: outside of a request scope.
        :raises ScopeClosedError: if the current scope is closed.
        """
        return self.load_call(instance, (self, None, ()) if self.is_remembered else None)

    def load_call(
        self,
        instance: Any,
        hit: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = NO_KEYWORDS,
    ) -> T:
        """Return the value for these arguments; compute it if no tier has it.

        :param hit: by what the scope remembers the value, see :meth:`.RequestScope.remember_hit`;
            None: not at all.
        """
        scope, declared, prop = self.resolve(instance)
        number = scope.snapshot_number
        arguments = NO_ARGUMENTS
        if args or kwargs or prop.takes_arguments:
            arguments = declared.parameters.bind(args, kwargs)
        value: T = declared.read(scope, instance, prop, arguments)
        # otherwise the snapshot has ended, and the value is not in the request tier either
        if hit is not None and number == scope.snapshot_number:
            role = role_of(instance) if self.varies and self.vary is None else None
            scope.remember_hit(hit, instance, value, self.variant(instance), role)
        return value

    def resolve(self, instance: Any) -> tuple[RequestScope, CachedDescriptor[Any], Property]:
        """Return the scope in which the property of an instance is read, with its pending changes
        flushed; the descriptor that counts; and the property."""
        scope = scope_of(instance, self)
        scope.check_open()
        scope.flush()
        declared, owner = scope.cache.resolve(self, instance)
        prop = scope.cache.registry.property_of(declared, owner)
        return scope, cast('CachedDescriptor[Any]', declared), prop

    def read(
        self, scope: RequestScope, instance: Any, prop: Property, arguments: Arguments
    ) -> T:
        """Return the value in a scope whose pending changes are flushed."""
        raise NotImplementedError

    def variant(self, instance: Any) -> str:
        """Return the variant that the instance sees, as the end of the value's key.

        :return: ``''`` if the property has no variants.
        :raises VariantError: if ``vary`` returns a value that can't be part of a key.
        :raises PropertyError: if it varies by role, and the instance has no identity.
        """
        if not self.varies:
            return ''
        return variant_key(self.varies, instance, self.where)

    def covers(self, varies: Collection[Vary], instance: Any) -> bool:
        """Return whether its values may be made of one that varies by these functions."""
        return set(varies) <= set(self.varies)

    def checked(self, value: Any) -> Any:
        """Return a value that was decoded. Subclasses may refuse a damaged one."""
        return value

    def create(self, instance: Any, *args: Any, **kwargs: Any) -> T:
        """Run the creator and return its result; return all rows of a query as a tuple.

        :raises OutsideScopeError: outside of a request scope.
        """
        scope = scope_of(instance)
        return cast('T', fetched(scope, self.creator(instance, *args, **kwargs)))

    def create_many(self, instance: Any, items: list[Any]) -> Mapping[Any, Any]:
        """Compute the values of several items by :attr:`many`.

        :raises PropertyError: if it does not return a mapping.
        """
        raise NotImplementedError

    def for_app(self, app_class: type) -> CachedDescriptor[T]:
        """Return a new descriptor of the same property, to install on an app class."""
        raise NotImplementedError


class OrmCacheDescriptor(CachedDescriptor[T]):
    """An orm-cached property; made by :func:`orm_cached` or the directive.

    ORM objects can't be its values: they belong to one session.

    :param cache_policy: the changes that evict the property, see :func:`orm_cached`.
    :param creator: a function of the instance that computes the value. If it returns a
        ``Query`` or ``select()``, the value is a tuple of all rows.
    :param by_role: keep a value for each role of ``instance.identity``. A read on an instance
        that has no such attribute is a :class:`PropertyError`.
    :param name: the property's name, if it is not the creator's.
    :param vary: a function of the instance; keep a value for each key that it returns.
    :param frozen: make lists, dicts and sets in the value immutable, so that requests can
        share it.
    :param expires: the moment at which the value ends by itself, see :func:`orm_cached`.
    :param many: computes several values at once, see :func:`orm_cached`.
    :raises PropertyError: if the creator can't be called with the instance, takes arguments (then
        it is an :class:`.OrmCacheFunction`), or an option is wrong.
    :raises PolicyError: if the policy is of no known kind.
    """

    #: True if the creator may take arguments.
    is_function = False

    def __init__(
        self,
        cache_policy: CachePolicy,
        creator: Creator[T],
        by_role: bool = False,
        name: str | None = None,
        vary: Vary | None = None,
        frozen: bool = False,
        expires: Expires = None,
        many: Many | None = None,
    ) -> None:
        super().__init__(creator, name)
        self.frozen = frozen
        if vary is not None and not callable(vary):
            raise PropertyError(f'{self.where}: vary={vary!r} is no function')
        self.vary = vary
        self.varies = (*((role_of,) if by_role else ()), *((vary,) if vary else ()))
        check_expires(expires, self.where)
        self.expires = expires
        check_many(many, self.parameters, self.where)
        self.many = many
        if self.parameters and not self.is_function:
            raise PropertyError(
                f'{self.where}: the creator takes {self.parameters} beside the instance; declare '
                'it with orm_cached, or use OrmCacheFunction'
            )
        check_policy(cache_policy, self.where, self.parameters.names)
        self.cache_policy = cache_policy
        self.by_role = by_role
        self._used_keys: set[str] = set()

    @property
    def used_cache_keys(self) -> set[str]:
        """Full keys, with arguments and variants, that this process has used: the first
        :data:`REMEMBERED_KEYS`. A copy, because other threads may use new ones meanwhile."""
        return self._used_keys.copy()

    @property
    def cache_key_prefix(self) -> str:
        """The property's name, with which :meth:`cache_key` begins."""
        return self.name

    def cache_key(self, instance: Any) -> str:
        """Return the property's name with the variant that this instance sees.

        The full key, under which the value is kept, has release and class before the name.
        """
        return self.name + self.variant(instance)

    def variant(self, instance: Any) -> str:
        if self.by_role and not hasattr(instance, 'identity'):
            raise PropertyError(
                f'{self.where}: by_role needs the role of '
                f'{type(instance).__qualname__}.identity, and there is no such attribute: all '
                'users would share one value. Set it to the user, or to None for no user'
            )
        return super().variant(instance)

    def read(
        self, scope: RequestScope, instance: Any, prop: Property, arguments: Arguments
    ) -> T:
        return cast('T', read(scope, self.call(scope, prop, instance, arguments)))

    def call(
        self, scope: RequestScope, prop: Property, instance: Any, arguments: Arguments
    ) -> Call:
        """Return the call that a read on an instance makes.

        :raises ArgumentError: if an argument can't be part of a key.
        """
        variant = scope.cache.context_key(instance) + self.variant(instance)
        call = prop.call(instance, arguments, variant)
        if len(self._used_keys) < REMEMBERED_KEYS:
            self._used_keys.add(call.key)
        return call

    def create(self, instance: Any, *args: Any, **kwargs: Any) -> T:
        with scope_of(instance).cache.watching(instance):
            return super().create(instance, *args, **kwargs)

    def create_many(self, instance: Any, items: list[Any]) -> Mapping[Any, Any]:
        assert self.many is not None
        scope = scope_of(instance)
        with scope.cache.watching(instance):
            found = self.many(instance, items)
        if not isinstance(found, Mapping):
            raise PropertyError(
                f'{self.where}: many gave {type(found).__qualname__}; expected a mapping from '
                'items to their values'
            )
        return {item: fetched(scope, value) for item, value in found.items()}

    def assert_no_orm_objects(self, obj: object) -> None:
        """Raise :class:`ValueNotCacheable` if ``obj`` is or contains an ORM object.

        It is searched at any depth. Loading a property needs no call of this: the serializer
        checks the value too, and its message names the place of the ORM object.
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
        return type(self)(
            self.cache_policy, self.creator, self.by_role, self.name, self.vary, self.frozen,
            self.expires, self.many,
        )  # fmt: skip


class RequestCacheDescriptor(CachedDescriptor[T]):
    """A request-cached property; made by :func:`request_cached` or the directive.

    Its values live as long as the request scope and may contain ORM objects.

    :param creator: a function of the instance that computes the value.
    :param name: the property's name, if it is not the creator's.
    :param merge: return objects of the present session, see :func:`request_cached`.
    """

    is_request_cached = True

    def __init__(
        self, creator: Creator[T], name: str | None = None, merge: bool = False
    ) -> None:
        super().__init__(creator, name)
        if self.parameters:
            raise PropertyError(
                f'{self.where}: the creator takes {self.parameters} beside the instance; only '
                'orm-cached properties take arguments'
            )
        self.merge = merge
        self.is_remembered = not merge

    def read(
        self, scope: RequestScope, instance: Any, prop: Property, arguments: Arguments
    ) -> T:
        # the key has the instance's id, because one request can use two apps of a class that
        # is mounted twice, with different arguments
        call = Call(prop, instance, (prop.key, id(instance)), prop.tags)
        value = read_request_cached(scope, call)
        if self.merge:
            try:
                value = of_session(scope.session(), value)
            except GoneError:
                scope.tier.pop(call.key, None)
                value = read_request_cached(scope, call)
        return cast('T', value)

    def for_app(self, app_class: type) -> RequestCacheDescriptor[T]:
        return RequestCacheDescriptor(self.creator, self.name, self.merge)


def scope_of(instance: Any, descriptor: CachedDescriptor[Any] | None = None) -> RequestScope:
    """Return the innermost current scope of the cache that an object's properties belong to.

    :param descriptor: the property that is read, for the message.
    :raises OutsideScopeError: if there is none.
    """
    scope: RequestScope | None = current_scope.get()
    while scope is not None and not scope.cache.is_cache_of(instance):
        scope = scope.outer
    if scope is not None:
        return scope.present()
    scopes = scopes_of(instance)
    scope = scopes.present() if scopes is not None else None
    if scope is None:
        what = f'{descriptor.name} ({descriptor.location})' if descriptor else repr(instance)
        raise OutsideScopeError(
            f'{what} was read outside of a request scope; open one: '
            'with app.request_scope(schema): ..., or: with cache.scope(schema): ...; a host '
            'with sessions of its own calls enter_scope(schema)'
            + _hint(instance)
        )
    return scope


def _hint(instance: Any) -> str:
    """Return the end of a message about an object for which no open scope is found."""
    is_open = current_scope.get() is not None or is_any_open()
    if not is_open or inspect.getattr_static(instance, ATTRIBUTE, None):
        return ''
    return (
        f'\nA scope is open, but {type(instance).__qualname__} has no attribute {ATTRIBUTE!r}: '
        'set it to the OrmCache that its cached properties belong to'
    )


def cached_descriptors(owner: type) -> Iterator[tuple[CachedDescriptor[Any], type]]:
    """Yield the cached properties of a class, each with the class that declares it.

    A property that is overridden is left out.
    """
    seen: set[str] = set()
    for cls in owner.__mro__:
        for name, value in vars(cls).items():
            if isinstance(value, CachedDescriptor) and name not in seen:
                yield value, cls
            seen.add(name)
