"""The decorators that declare cached properties in the body of a class.

This module tells a declaration from a mistaken one by the place where it stands. It does not
know how properties are read.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable
from types import FrameType
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    TypeVarTuple,
    overload,
)

from frozendict import frozendict
from sqlalchemy import Row, Select
from sqlalchemy.orm import Query

from ..errors import PropertyConflictError, PropertyError
from .arguments import Many, takes_more
from .descriptors import CachedDescriptor, OrmCacheDescriptor, RequestCacheDescriptor
from .expiry import Expires
from .functions import OrmCacheFunction
from .policies import CachePolicy
from .properties import location
from .variants import Vary

P = ParamSpec('P')
T = TypeVar('T')
Ts = TypeVarTuple('Ts')
J = TypeVar('J', bound=Hashable)
K = TypeVar('K', bound=Hashable)

#: The option ``frozen``. Type checkers take the first of these for a call without it.
Frozen = TypeVar('Frozen', Literal[False], Literal[True], bool)

#: A creator of an app, request or another instance, with further arguments or without.
Creator: TypeAlias = Callable[Concatenate[Any, P], T]

#: Its property: the type of its values, with that of its function.
Cached: TypeAlias = OrmCacheFunction[T, Callable[P, T]]


class OrmCachedDecorator(Generic[Frozen]):
    """The decorator that :func:`orm_cached` returns. Its arguments are those of the latter.

    For type checkers, frozen lists are tuples, dicts are frozendicts and sets are frozensets, at
    the top of a value and one level below. No type says this of all levels.
    """

    def __init__(
        self,
        policy: CachePolicy,
        by_role: bool,
        vary: Vary | None,
        frozen: Frozen,
        expires: Expires,
        many: Many | None,
    ) -> None:
        self._policy = policy
        self._by_role = by_role
        self._vary = vary
        self._frozen: bool = frozen
        self._expires = expires
        self._many = many
        self._has_decorated = False

    @overload
    def __call__(self, creator: Creator[P, Query[T]]) -> Cached[tuple[T, ...], P]: ...

    # rows of SQLAlchemy 2.0, and those of one column of 2.1
    @overload
    def __call__(self, creator: Creator[P, Select[T]]) -> Cached[tuple[Row[T], ...], P]: ...

    @overload
    def __call__(self, creator: Creator[P, Select[*Ts]]) -> Cached[tuple[Row[*Ts], ...], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, list[list[T]]]
    ) -> Cached[tuple[tuple[T, ...], ...], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, list[dict[K, T]]]
    ) -> Cached[tuple[frozendict[K, T], ...], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, list[set[T]]]
    ) -> Cached[tuple[frozenset[T], ...], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, list[T]]
    ) -> Cached[tuple[T, ...], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, dict[K, list[T]]]
    ) -> Cached[frozendict[K, tuple[T, ...]], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, dict[K, dict[J, T]]]
    ) -> Cached[frozendict[K, frozendict[J, T]], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, dict[K, set[T]]]
    ) -> Cached[frozendict[K, frozenset[T]], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, dict[K, T]]
    ) -> Cached[frozendict[K, T], P]: ...

    @overload
    def __call__(
        self: OrmCachedDecorator[Literal[True]], creator: Creator[P, set[T]]
    ) -> Cached[frozenset[T], P]: ...

    @overload
    def __call__(self, creator: Creator[P, T]) -> Cached[T, P]: ...

    def __call__(self, creator: Any) -> Any:
        descriptor = make_orm_cached(
            self._policy,
            creator,
            self._by_role,
            vary=self._vary,
            frozen=self._frozen,
            expires=self._expires,
            many=self._many,
        )
        refuse_second(descriptor, sys._getframe(1).f_locals)
        self._has_decorated = True
        return descriptor

    def __set_name__(self, owner: type, name: str) -> None:
        # a class body may keep a decorator, to use it for several creators
        if not self._has_decorated:
            raise without_creator(f'{owner.__qualname__}.{name}', self._policy)


def orm_cached(
    policy: CachePolicy,
    by_role: bool = False,
    vary: Vary | None = None,
    frozen: Frozen = False,  # type: ignore[assignment]
    expires: Expires = None,
    many: Many | None = None,
) -> OrmCachedDecorator[Frozen]:
    """Declare an orm-cached property in the body of a class: an app, a request, or another with
    the attribute ``orm_cache``.

    If the creator takes arguments beside the instance, the property is a function of them:
    ``app.book(3)``, ``app.book.many([1, 2, 3])``. Arguments are of the types that ``vary`` may
    return.

    :param policy: the changes that evict the property: ``'on-table-change:users'``, several
        tables (``'on-table-change:users,groups'``), a mapped class, a ``Table``, :func:`rows` (the
        rows that equal an argument), a function of the changed object, ``'auto'`` (changes of all
        tables that the creator reads), or a list of these.
    :param by_role: keep a value for each role of the instance's ``identity``; short for a ``vary``
        that returns the role. The instance must have this attribute, which may be None.
    :param vary: a function of the instance; keep a value for each key that it returns:
        None, a number, string, date, UUID, enum member, or a tuple of these.
    :param frozen: return the value with its lists as tuples, its dicts as frozendicts and its
        sets as frozensets. Requests then share it, so that a large value is not decoded for
        each.
    :param expires: seconds after which a value is computed anew although nothing has changed; or a
        function of the value that returns that moment as an aware datetime, or None. What is made
        of the value ends with it.
    :param many: a function of the instance and a list of items, which computes the values of
        several calls at once and returns them as a dict by item; for ``many([...])``. An item that
        it leaves out is computed by the creator.
    :raises PropertyError: if the creator can't be called with the instance or takes any number of
        arguments, an option is wrong, or the decorator is used without parentheses.
    :raises PolicyError: if the policy is of no known kind.
    :raises PropertyConflictError: if the class body has such a property already.
    """

    if is_decorator_of(policy, sys._getframe(1)):
        raise without_creator(getattr(policy, '__name__', ''), policy)
    return OrmCachedDecorator(policy, by_role, vary, frozen, expires, many)


def make_orm_cached(
    policy: CachePolicy, creator: Callable[..., Any], *arguments: Any, **options: Any
) -> OrmCacheDescriptor[Any]:
    """Return the descriptor of an orm-cached property: a function, if the creator takes arguments.

    Its arguments are those of :class:`.OrmCacheDescriptor`.
    """
    takes_arguments = callable(creator) and takes_more(creator)
    kind: Any = OrmCacheFunction if takes_arguments else OrmCacheDescriptor
    made: OrmCacheDescriptor[Any] = kind(policy, creator, *arguments, **options)
    return made


class RequestCachedDecorator:
    """The decorator that ``request_cached(merge=...)`` returns."""

    def __init__(self, merge: bool) -> None:
        self._merge = merge

    @overload
    def __call__(
        self, creator: Callable[[Any], Query[T]]
    ) -> RequestCacheDescriptor[tuple[T, ...]]: ...

    @overload
    def __call__(
        self, creator: Callable[[Any], Select[T]]
    ) -> RequestCacheDescriptor[tuple[Row[T], ...]]: ...

    @overload
    def __call__(  # type: ignore[overload-cannot-match]
        self, creator: Callable[[Any], Select[*Ts]]
    ) -> RequestCacheDescriptor[tuple[Row[*Ts], ...]]: ...

    @overload
    def __call__(self, creator: Callable[[Any], T]) -> RequestCacheDescriptor[T]: ...

    def __call__(self, creator: Any) -> Any:
        descriptor: RequestCacheDescriptor[Any] = RequestCacheDescriptor(
            creator, merge=self._merge
        )
        refuse_second(descriptor, sys._getframe(1).f_locals)
        return descriptor


@overload
def request_cached(
    creator: Callable[[Any], Query[T]], *, merge: bool = ...
) -> RequestCacheDescriptor[tuple[T, ...]]: ...


@overload
def request_cached(
    creator: Callable[[Any], Select[T]], *, merge: bool = ...
) -> RequestCacheDescriptor[tuple[Row[T], ...]]: ...


@overload
def request_cached(  # type: ignore[overload-cannot-match]
    creator: Callable[[Any], Select[*Ts]], *, merge: bool = ...
) -> RequestCacheDescriptor[tuple[Row[*Ts], ...]]: ...


@overload
def request_cached(
    creator: Callable[[Any], T], *, merge: bool = ...
) -> RequestCacheDescriptor[T]: ...


@overload
def request_cached(*, merge: bool = ...) -> RequestCachedDecorator: ...


def request_cached(
    creator: Callable[[Any], Any] | None = None, *, merge: bool = False
) -> RequestCacheDescriptor[Any] | RequestCachedDecorator:
    """Declare a request-cached property in the body of a class: an app, a request, or another
    with the attribute ``orm_cache``.

    Its value is computed once per request scope, and may contain ORM objects. It is used as
    ``@request_cached`` or as ``@request_cached(merge=True)``.

    :param creator: a function of the instance that computes the value.
    :param merge: return objects that belong to the session of the present moment. An application
        that closes its session within a request would get objects that are detached otherwise.
        An object of another session is looked up by its primary key; if it is gone, the value is
        computed again. Objects may be in lists, tuples, sets and dicts.
    :raises PropertyError: if the creator can't be called with just the instance.
    :raises PropertyConflictError: if the class body has such a property already.
    """
    if creator is None:
        return RequestCachedDecorator(merge)
    descriptor: RequestCacheDescriptor[Any] = RequestCacheDescriptor(creator, merge=merge)
    refuse_second(descriptor, sys._getframe(1).f_locals)
    return descriptor


def is_decorator_of(function: object, frame: FrameType) -> bool:
    """Return whether a frame calls a decorator that stands directly above a function.

    The frame has made the function itself, and is still within the function's lines.
    """
    code = getattr(inspect.unwrap(function) if callable(function) else None, '__code__', None)
    if code is None or code.co_name == '<lambda>':
        return False
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return (
        any(constant is code for constant in frame.f_code.co_consts)
        and code.co_firstlineno <= frame.f_lineno <= max(lines)
    )


def without_creator(name: str, policy: object) -> PropertyError:
    """Return the error of a declaration without a creator, which may have become the policy.

    :param name: the name of what was declared.
    """
    return PropertyError(
        f'{name} ({location(policy)}): orm_cached decorates no creator; write '
        '@orm_cached(policy=...), with a policy in parentheses, above the creator'
    )


def refuse_second(descriptor: CachedDescriptor[Any], namespace: Any) -> None:
    """Raise :class:`PropertyConflictError` if a class body has such a property already.

    :param namespace: the local variables at the place of the decorator; those of a class
        body have ``__qualname__``.
    """
    other = namespace.get(descriptor.name) if '__qualname__' in namespace else None
    if isinstance(other, CachedDescriptor):
        raise PropertyConflictError(
            f'{namespace["__qualname__"]} has two properties {descriptor.name!r}: '
            f'{other.location} and {descriptor.location}'
        )
