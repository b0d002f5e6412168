"""Changed objects as function policies see them: before a flush, and after it.

This module knows SQLAlchemy's objects. It does not know what a policy does with them.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

from sqlalchemy import ClauseElement, inspect
from sqlalchemy.orm import InstanceState
from sqlalchemy.orm.base import NO_VALUE, LoaderCallableStatus

from .row_kinds import UNKNOWN


class UnknownState(BaseException):
    """The value of an attribute, before or after the flush, is not known without a query.

    It is no ``Exception``, so that an ``except Exception`` in a policy does not hide it.
    """


def value_before(state: InstanceState[Any], key: str) -> Any:
    """Return the value that an attribute had before the flush; :data:`UNKNOWN` if that is not in
    memory."""
    values = state.committed_state if key in state.committed_state else state.dict
    return _known(values.get(key, UNKNOWN))


def value_after(state: InstanceState[Any], key: str) -> Any:
    """Return the value of an attribute after the flush; :data:`UNKNOWN` if only the database
    knows it."""
    return _known(state.dict.get(key, UNKNOWN))


def _known(value: Any) -> Any:
    return UNKNOWN if isinstance(value, (LoaderCallableStatus, ClauseElement)) else value


class ObjectState:
    """An object as it was before a flush, or as it is after it; the argument of a policy.

    Made each time that the function policies are asked about a changed object. It behaves
    like the object (``isinstance`` holds; methods, properties and hybrids work), but it can't
    be changed and never loads anything: an attribute whose value is not in memory raises
    :class:`UnknownState`.

    :param obj: a mapped object.
    :param before: True for its state before the flush, False for that after it.
    """

    def __init__(self, obj: object, before: bool) -> None:
        state: InstanceState[Any] = inspect(obj)
        object.__setattr__(self, '_state', state)
        object.__setattr__(self, '_before', before)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._state.class_  # type: ignore[no-any-return]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f'a policy must not change the object: {name}')

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._state.obj()

    def __hash__(self) -> int:
        return hash(self._state.obj())

    def __getattr__(self, name: str) -> Any:
        state: InstanceState[Any] = object.__getattribute__(self, '_state')
        if name in state.mapper.attrs:
            return self._mapped(state, name)
        attribute = getattr(state.class_, name, None)
        for cls in state.class_.__mro__:
            if name in vars(cls):
                attribute = vars(cls)[name]
                break
        if isinstance(attribute, FunctionType):
            return MethodType(attribute, self)
        getter = getattr(attribute, 'fget', None)
        if getter is not None:
            return getter(self)
        return getattr(state.obj(), name)

    def _mapped(self, state: InstanceState[Any], name: str) -> Any:
        if self._before and name in state.committed_state:
            value = state.committed_state[name]
            if value is NO_VALUE:
                raise UnknownState(name)
            return value
        if name not in state.dict:
            raise UnknownState(name)
        return state.dict[name]
