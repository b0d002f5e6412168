"""Messages that say why a value can't be cached, and what to do about it.

This module does not know the path to a value within a larger one: :mod:`.faults` does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator, MappingView
from dataclasses import is_dataclass
from inspect import getattr_static
from typing import Any

from sqlalchemy.engine import FilterResult, Result
from sqlalchemy.orm import Query
from sqlalchemy.sql import ClauseElement

#: The number of levels of containers that a value may have. ormsgpack writes up to 254
#: levels, but to read a level of tuples also takes frames of the interpreter's stack.
MAX_DEPTH = 100

TOO_DEEP = (
    f'is nested too deeply: a cached value has at most {MAX_DEPTH} levels. '
    'Make it flatter, for example a dict of nodes by id.'
)

CIRCULAR = (
    "contains itself, and a circular value can't be cached. "
    'Refer to the outer value by an id instead.'
)

ORM_OBJECT = (
    "and ORM objects can't be cached: they belong to the session that loaded them. "
    'Return plain values or rows instead, for example the columns that are needed, '
    'or use request_cached.'
)

#: Builtin types whose subclasses are refused; the message advises to convert the value.
_PLAIN = (dict, list, tuple, set, frozenset, str, bytes, int, float)


class Refused(Exception):
    """Raised if a value can't be cached. The text continues a sentence that begins with the
    value's path."""


def is_orm_object(value: object) -> bool:
    """Return whether a value is an ORM object, a mapped class or a relationship's collection."""
    return any(
        getattr_static(value, mark, None) is not None
        for mark in ('_sa_instance_state', '_sa_class_manager', '_sa_adapter')
    )


def reason(value: object) -> str:
    """Return a text that says what kind of value this is, and what to return instead.

    :param value: a value of a kind that the serializer does not support.
    :return: the rest of a sentence that begins with the value's path.
    """
    what = f'is {_described(value)}'
    if is_orm_object(value):
        return f'{what}, {ORM_OBJECT}'
    for kinds, advice in _ADVICE:
        if isinstance(value, kinds):
            return f'{what}, {advice}'
    if hasattr(type(value), '_fields') or is_dataclass(value):
        return (
            f'{what}, a class that is not registered. '
            'Add the class to the setting `types` of the section `orm_cache`.'
        )
    if callable(value):
        return f'{what}, which is code and no value. Call it and return its result.'
    for plain in _PLAIN:
        if isinstance(value, plain):
            return (
                f'{what}, a subclass of {plain.__name__}, whose type would be lost. '
                f'Convert it with {plain.__name__}(...).'
            )
    return f"{what}, a kind that can't be cached. Convert it to plain values."


def class_name(cls: type) -> str:
    """Return the name of a class in messages, with its module unless it is a builtin."""
    if cls.__module__ == 'builtins':
        return cls.__qualname__
    return f'{cls.__module__}.{cls.__qualname__}'


def _described(value: object) -> str:
    if isinstance(value, type):
        return f'the class {class_name(value)}'
    return f'of type {class_name(type(value))}'


_ADVICE: tuple[tuple[Any, str], ...] = (
    (type, "which is code and no value. Return an instance's plain values, or its name."),
    (
        (Query, ClauseElement),
        'a query that has not been run. Run it and return its rows, for example with .all().',
    ),
    (
        (Result, FilterResult),
        'a result that has not been fetched. Fetch its rows, for example with .all().',
    ),
    (Awaitable, 'which has not been awaited. Await it and return its result.'),
    (
        (Iterator, AsyncIterator, MappingView, range),
        'which can be read only by iterating over it. Make it a list or a tuple.',
    ),
    ((bytearray, memoryview), 'which is a buffer. Convert it with bytes(...).'),
)
