"""Attributes that a host class may provide in the place of a default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar('T')


class HostAttribute(Generic[T]):
    """An attribute with a default that a host class, or an instance, may replace."""

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
        """Return whether the app has an attribute of its own in the default's place."""
        return self._name in vars(app) or getattr(type(app), self._name) is not self
