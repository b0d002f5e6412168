"""Attributes with a default, which a host class may replace.

This module does not know which attributes these are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, cast, overload

T = TypeVar('T')


class HostAttribute(Generic[T]):
    """An attribute with a default that a subclass, or an instance, may replace.

    :param default: a function of the instance that returns the default value.
    """

    def __init__(self, default: Callable[[Any], T]) -> None:
        self._default = default
        self.__doc__ = default.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: Any, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Self | T:
        return self if instance is None else self._default(instance)

    def is_provided(self, app: object) -> bool:
        """Return whether the app, or its class, replaces the default."""
        return self._name in vars(app) or getattr(type(app), self._name) is not self


def host_attribute(default: Callable[[Any], T]) -> T:
    """Declare a :class:`HostAttribute`; for type checkers, an attribute like any other.

    So they allow a subclass to set it, on the class or on instances. They take a value that is a
    function for a method, which is why such an attribute is declared by the class itself.
    """
    return cast('T', HostAttribute(default))
