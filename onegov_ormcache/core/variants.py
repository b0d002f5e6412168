"""Variants: values of one property that differ by role, language, host or the like.

This module makes the part of a key that tells variants apart. It does not know the rest.
"""

from __future__ import annotations

import datetime
import reprlib
import uuid
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any, TypeAlias

from ..errors import VariantError

#: A function that takes the app or request and returns the variant that it sees.
Vary: TypeAlias = Callable[[Any], Any]

#: The types that a part of a key may have, beside None, enum members and tuples: a value of these
#: has the same text in each process. A type stands before those that it is derived from.
PLAIN: tuple[type, ...] = (
    str, bool, int, bytes, float, Decimal, uuid.UUID,
    datetime.datetime, datetime.date, datetime.time, datetime.timedelta,
)  # fmt: skip


def role_of(instance: Any) -> Any:
    """Return the role of an app's or request's identity; None if the identity has none.

    It is the ``vary`` function of properties with ``by_role``.
    """
    return getattr(getattr(instance, 'identity', None), 'role', None)


def variant_key(functions: tuple[Vary, ...], instance: Any, where: str) -> str:
    """Return the variant that an instance sees, as the end of a value's key.

    It is the same text for the same variant in each process.

    :param functions: the functions that the property varies by.
    :param instance: the app or request.
    :param where: the property, with its file and line, for the message.
    :raises VariantError: if a function returns a value that can't be part of a key.
    """
    parts = [function(instance) for function in functions]
    return '-' + ','.join(
        key_text(part, f'{where}: vary gave {shown(part)}; a variant') for part in parts
    )


def key_text(part: Any, what: str) -> str:
    """Return the text of a value in a key, which is the same in each process, and another one for
    each value and type.

    :param part: None, an instance of :data:`PLAIN`, an enum member, or a tuple of these.
    :param what: what the value is and where it comes from, the begin of the message.
    :raises VariantError: if it is anything else, or NaN.
    """
    try:
        text = _text(part)
    except (ArithmeticError, RecursionError):
        text = None  # a signaling NaN can not be compared; a tuple may hold others without end
    if text is None:
        raise VariantError(
            f'{what} is None, a number, string, date, UUID, enum member, or a tuple of these'
        )
    return text


def shown(value: Any) -> str:
    """Return a value as a short text, for messages."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f'<{type(value).__qualname__}>'


def _text(part: Any) -> str | None:
    kind = type(part)
    if part is None:
        return repr(part)
    if kind in PLAIN:
        return _plain_text(kind, part)
    if isinstance(part, Enum):
        # a combination of flags may have no name
        name = part._value_ if part.name is None else part.name
        return f'{kind.__module__}.{kind.__qualname__}.{name}'
    if isinstance(part, tuple):
        texts = [_text(item) for item in part]
        if None in texts:
            return None
        named = '' if kind is tuple else f'{kind.__module__}.{kind.__qualname__}:'
        return f'{named}({",".join(map(str, texts))})'
    base: Any = next((each for each in PLAIN if isinstance(part, each)), None)
    text = None if base is None else _plain_text(base, part)
    return None if text is None else f'{kind.__module__}.{kind.__qualname__}:{text}'


def _plain_text(kind: Any, part: Any) -> str | None:
    """Return the text of an instance of one of the :data:`PLAIN` types, or of a derived one.

    :return: None if it equals nothing, or if it does not tell its time zone.
    """
    if not kind.__eq__(part, part):
        return None  # NaN equals nothing, not even itself
    zone: Any = type(getattr(part, 'tzinfo', None))
    if zone.__repr__ is object.__repr__:
        return None  # its text is its address
    if kind is int and not -(2**63) <= part < 2**63:
        return hex(part)  # Python writes no more than some thousand decimal digits
    text: str = kind.__repr__(part)
    return text
