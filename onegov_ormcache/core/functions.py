"""Cached functions: orm-cached properties whose creators take arguments.

``app.book`` is the function of one app or request, and ``app.book(3)`` the value. This module
does not know how a value is found or computed.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from functools import partial, update_wrapper
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    overload,
)

from ..errors import ArgumentError
from .arguments import listed
from .descriptors import NOBODY, OrmCacheDescriptor, get_current_scope
from .many import read_many
from .many_types import ManyOf
from .properties import Call
from .variants import role_of

P = ParamSpec('P')
T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)
# the whole type of the function: of parameters alone, type checkers take those that all have
# defaults for none
F = TypeVar('F', bound=Callable[..., Any])

#: The types of which equal arguments have equal keys, so that a hit finds them.
REMEMBERED_TYPES = frozenset((int, str, bool, bytes, type(None), datetime.date))

#: The most functions that a scope remembers; each keeps its instance alive.
MAX_FUNCTIONS = 1000


class BoundFunction(Protocol[P, T_co]):
    """The cached function of one app, request or other object.

    A call returns the value for its arguments, from the nearest tier that has it; otherwise the
    creator computes it.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...

    if TYPE_CHECKING:
        # its type follows from the creator's parameters
        many: ClassVar[ManyOf]
    else:

        def many(self, items: Iterable[Any]) -> dict[Any, T_co]:
            """Return the values of several items, in one round trip to the shared tier for all
            that are missing.

            What the shared tier lacks is computed, by one call if the property has ``many``, else
            one by one. Of two callers, one computes a value.

            :param items: the argument of each value; for a creator with several parameters, also
                a tuple of arguments. Equal items are one.
            :return: the values by item, in the order of the items.
            :raises ArgumentError: if an item does not fit the creator, or can't be part of a key.
            :raises OutsideScopeError: outside of a request scope.
            """


class OrmCacheFunction(OrmCacheDescriptor[T], Generic[T, F]):
    """An orm-cached property whose creator takes arguments; made by :func:`orm_cached` or the
    directive.

    See :class:`.OrmCacheDescriptor` for what it is made with. Type checkers see all orm-cached
    properties as such ones, and tell by the creator's type whether there are arguments.
    """

    is_function = True

    #: The instance whose function was used last, and that function.
    last: tuple[Any, Any] = NOBODY, None

    @overload  # type: ignore[override]
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...

    @overload
    def __get__(
        self: OrmCacheFunction[T, Callable[[], T]], instance: Any, owner: type[Any]
    ) -> T: ...

    @overload
    def __get__(
        self: OrmCacheFunction[T, Callable[P, T]], instance: Any, owner: type[Any]
    ) -> BoundFunction[P, T]: ...

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        used_by, function = self.last
        if used_by is instance:
            return function
        return self if instance is None else self._bound(instance)

    def _bound(self, instance: Any) -> Any:
        """Return the function of an instance: in one scope always the same one."""
        scope = get_current_scope(None)
        if scope is None:
            return bound(self, instance)
        function = scope.functions.get((self, id(instance)))
        if function is None:
            function = bound(self, instance)
            if len(scope.functions) >= MAX_FUNCTIONS:
                return function
            scope.functions[self, id(instance)] = function
        # until the scope ends, see forget()
        self.last = instance, function
        return function

    def forget(self, function: Any) -> None:
        """Do not keep a function, and its instance, alive."""
        if self.last[1] is function:
            self.last = NOBODY, None

    def load(self, instance: Any, *args: Any, **kwargs: Any) -> T:
        """Return the value for these arguments; compute it if no tier has it.

        :raises ArgumentError: if they do not fit the creator, or can't be part of a key.
        :raises OutsideScopeError: outside of a request scope.
        :raises ScopeClosedError: if the current scope is closed.
        """
        return self.load_call(instance, None, args, kwargs)

    def load_many(self, instance: Any, items: Iterable[Any]) -> dict[Any, T]:
        """Return the values of several items; see :meth:`BoundFunction.many`."""
        # first: an iterator may read the database, and change it
        items = listed(items, self.where)
        scope, declared, prop = self.resolve(instance)
        if not isinstance(declared, OrmCacheFunction):
            raise ArgumentError(f'{declared.where} takes no arguments')
        calls: dict[Any, Call] = {}
        for item in items:
            # the call first: what can't be part of a key may not be hashed either
            call = declared.call(scope, prop, instance, declared.parameters.of_item(item))
            calls.setdefault(item, call)
        return read_many(scope, calls)


def bound(declared: OrmCacheFunction[T, Any], instance: Any) -> Any:
    """Return the function of an instance; see :class:`BoundFunction`."""

    # by which scopes remember its values; not by itself, or nothing but the garbage collector
    # would free it, and with it a request
    key = object()

    # a function, because Python calls those faster than other objects
    def function(*args: Any, **kwargs: Any) -> T:
        # every call comes through here, so this avoids all others that it can; the cost is
        # measured in tests/benchmarks
        try:
            scope = get_current_scope()
            value, variant, role, types = scope.hits[key][args]
            # 1 and True are equal, and other arguments
            if ((args and types is type(args[0])) or types == (*map(type, args),)) and (
                not variant
                or (declared.vary is None and role is role_of(instance))
                or variant == declared.variant(instance)
            ):
                modified, new, deleted = scope.pending
                if not (modified or new or deleted or kwargs):
                    return value  # type: ignore[no-any-return]
        except Exception:
            pass  # no scope, no hit, or an argument whose hash or comparison fails
        types = (*map(type, args),)
        is_remembered = not kwargs and REMEMBERED_TYPES.issuperset(types)
        hit = (key, args, types) if is_remembered else None
        return declared.load_call(instance, hit, args, kwargs)

    update_wrapper(function, declared.creator)
    function.many = partial(declared.load_many, instance)  # type: ignore[attr-defined]
    return function
