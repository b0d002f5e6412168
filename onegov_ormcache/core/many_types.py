"""The types of ``app.book.many(...)``, which follow from those of the arguments.

This module does nothing at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar, overload

A = TypeVar('A')
B = TypeVar('B')
C = TypeVar('C')
T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)
A_contra = TypeVar('A_contra', contravariant=True)
Tuple = TypeVar('Tuple', bound=tuple[Any, ...])


class ManyItems(Protocol[A, T]):
    """``many`` of a function of one argument; or of several, as tuples."""

    def __call__(self, items: Iterable[A]) -> dict[A, T]:
        """Return the values of several items, in one round trip to the shared tier."""


class ManyTuples(Protocol[T]):
    """``many`` of a function of any arguments."""

    def __call__(self, items: Iterable[Tuple]) -> dict[Tuple, T]:
        """Return the values of several tuples of arguments, in one round trip to the shared
        tier."""


class ManyItemsOrTuples(Protocol[A, T]):
    """``many`` of a function of which one argument is enough."""

    @overload
    def __call__(self, items: Iterable[A]) -> dict[A, T]:
        """Return the values of several items, in one round trip to the shared tier."""

    @overload
    def __call__(self, items: Iterable[Tuple]) -> dict[Tuple, T]:
        """Return the values of several tuples of arguments, in one round trip to the shared
        tier."""


class OneIsEnough(Protocol[A_contra, T_co]):
    """A function that takes one argument, or more."""

    @overload
    def __call__(self, first: A_contra, /) -> T_co: ...

    @overload
    def __call__(self, first: A_contra, second: Any, /) -> T_co: ...


class ManyOf(Protocol):
    """The attribute ``many`` of a function; it is of another type for other arguments."""

    @overload
    def __get__(
        self, instance: OneIsEnough[A, T], owner: type[Any]
    ) -> ManyItemsOrTuples[A, T]: ...

    @overload
    def __get__(self, instance: Callable[[A], T], owner: type[Any]) -> ManyItems[A, T]: ...

    @overload
    def __get__(
        self, instance: Callable[[A, B], T], owner: type[Any]
    ) -> ManyItems[tuple[A, B], T]: ...

    @overload
    def __get__(
        self, instance: Callable[[A, B, C], T], owner: type[Any]
    ) -> ManyItems[tuple[A, B, C], T]: ...

    @overload
    def __get__(self, instance: Callable[..., T], owner: type[Any]) -> ManyTuples[T]: ...
