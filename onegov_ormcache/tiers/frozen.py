"""Immutable forms of values, which all requests of a process can share.

This module does not know where the values are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence
from dataclasses import fields, is_dataclass
from typing import Any

from frozendict import frozendict
from sqlalchemy.engine import Row, RowMapping

from ..errors import ValueNotCacheable
from .encoding import LEAVES
from .ranges import psycopg_ranges


def freeze(value: Any, name: str) -> Any:
    """Return the value with its lists and multiranges as tuples, its dicts as frozendicts and
    its sets as frozensets.

    :param value: a value that the serializer has decoded, so that nothing in it is circular.
    :param name: the property's name, for messages.
    :raises ValueNotCacheable: if a part of another kind is mutable.
    """
    kind = type(value)
    if kind in LEAVES:
        return value
    if kind is dict or kind is frozendict:
        return frozendict({freeze(k, name): freeze(v, name) for k, v in value.items()})
    if kind is tuple or isinstance(value, MutableSequence):  # a list, or a multirange
        return tuple([freeze(item, name) for item in value])
    if kind is set or kind is frozenset:
        return frozenset({freeze(item, name) for item in value})
    if isinstance(value, Row):
        return _unchanged(value, tuple(value), name)
    if isinstance(value, RowMapping):
        return _unchanged(value, value.values(), name)
    if isinstance(value, psycopg_ranges()[0]):
        return _unchanged(value, [value.lower, value.upper], name)
    if isinstance(value, tuple):
        return kind(*[freeze(item, name) for item in value])
    if is_dataclass(kind):
        if not vars(kind)['__dataclass_params__'].frozen:
            raise ValueNotCacheable(
                f'{name}: frozen=True, but {kind.__qualname__} is a mutable dataclass: '
                'declare it with frozen=True as well'
            )
        return _unchanged(value, [getattr(value, field.name) for field in fields(value)], name)
    return value


def _unchanged(value: Any, parts: Any, name: str) -> Any:
    """Return a row, range or dataclass instance as it is, because its parts can't be replaced.

    :raises ValueNotCacheable: if one of the parts is or contains a list, dict or set.
    """
    for part in parts:
        freeze(part, name)  # raises if it contains a mutable dataclass
        for mutable in _mutable_parts(part):
            raise ValueNotCacheable(
                f'{name}: frozen=True, but a {type(value).__qualname__} holds a '
                f'{type(mutable).__name__}, and can not be given an immutable one'
            )
    return value


def _mutable_parts(value: Any) -> Iterator[Any]:
    """Yield the lists, multiranges, dicts and sets that a value is or contains."""
    kind = type(value)
    parts: Iterable[Any] = ()
    if kind in LEAVES:
        return
    if kind is dict or kind is set or isinstance(value, MutableSequence):
        yield value
    elif kind is frozendict:
        parts = (*value.keys(), *value.values())
    elif isinstance(value, (tuple, frozenset, Row)):
        parts = value
    elif is_dataclass(kind):
        parts = [getattr(value, field.name) for field in fields(value)]
    for part in parts:
        yield from _mutable_parts(part)
