"""Variants: values of one property that differ by role, language, host or the like.

This module makes the part of a key that tells variants apart. It does not know the rest.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeAlias

from ..errors import VariantError

#: A function that takes the app or request and returns the variant that it sees.
Vary: TypeAlias = Callable[[Any], Any]

#: The types that a variant may have, beside None, enum members and tuples: a value of these
#: has the same text in each process.
PLAIN = (bool, int, float, str, bytes, datetime.date, datetime.timedelta, uuid.UUID)


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
        key_text(part, f'{where}: vary gave {part!r}; a variant') for part in parts
    )


def key_text(part: Any, what: str) -> str:
    """Return the text of a value in a key, the same in each process.

    :param part: None, an instance of :data:`PLAIN`, an enum member, or a tuple of these.
    :param what: what the value is and where it comes from, the begin of the message.
    :raises VariantError: if it is anything else.
    """
    _check(part, what)
    return _text(part)


def _check(part: Any, what: str) -> None:
    if part is None or isinstance(part, (*PLAIN, Enum)):
        return
    if isinstance(part, tuple):
        for item in part:
            _check(item, what)
        return
    raise VariantError(
        f'{what} is None, a number, string, date, UUID, enum member, or a tuple of these'
    )


def _text(part: Any) -> str:
    if isinstance(part, Enum):
        return f'{type(part).__module__}.{type(part).__qualname__}.{part.name}'
    if isinstance(part, tuple):
        return '(' + ','.join(map(_text, part)) + ')'
    return repr(part)
