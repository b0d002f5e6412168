"""Compares two values as the serializer writes them.

Equal bytes are equal values. Equal values may have different bytes: a set has no order, and a dict
is equal to one of another order. Python's ``==`` does not serve, because it takes ``1`` for
``True`` and a ``NaN`` for different from itself. This module does not know what the values are of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from sqlalchemy.engine import Row

from .serializer import Serializer


class Likeness(Enum):
    """How alike two values are."""

    EQUAL = 'equal'
    #: They have the same items in another order, in a list, a tuple or a part of them.
    REORDERED = 'reordered'
    DIFFERENT = 'different'


def compare(serializer: Serializer, data: bytes, other: bytes) -> Likeness:
    """Compare two values that the serializer has encoded.

    :raises UndecodableValue: if bytes that differ can't be decoded.
    """
    if data == other:
        return Likeness.EQUAL
    values = serializer.decode(data), serializer.decode(other)
    for is_ordered, likeness in (True, Likeness.EQUAL), (False, Likeness.REORDERED):
        one, another = (_canonical(serializer, value, is_ordered) for value in values)
        if one == another:
            return likeness
    return Likeness.DIFFERENT


def _canonical(serializer: Serializer, value: Any, is_ordered: bool) -> bytes:
    """Return bytes that are the same for equal values.

    :param is_ordered: False if the order of lists and tuples does not count either.
    """

    def of(part: Any) -> bytes:
        return _canonical(serializer, part, is_ordered)

    kind = type(value)
    if isinstance(value, Mapping):
        parts = sorted(_joined([of(key), of(part)]) for key, part in value.items())
    elif isinstance(value, Set):
        parts = sorted(map(of, value))
    elif is_dataclass(value):
        parts = [of(getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, (tuple, Row)) or kind is list:
        parts = list(map(of, value))
        if hasattr(value, '_fields'):  # the order of these says which value is which
            parts.insert(0, of(list(value._fields)))
        elif not is_ordered:
            parts.sort()
    else:
        return serializer.encode(value).data
    return _joined([f'{kind.__module__}.{kind.__qualname__}'.encode(), *parts])


def _joined(parts: Iterable[bytes]) -> bytes:
    """Return parts as one, so that other parts give other bytes."""
    return b''.join(len(part).to_bytes(8) + part for part in parts)
