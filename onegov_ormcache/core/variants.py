"""Variants: the same property with another value for another role, language or host."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeAlias

from ..errors import VariantError

#: A function of the app or request that tells which variant it sees.
Vary: TypeAlias = Callable[[Any], Any]

#: What a variant may be, beside tuples of these: what has the same text in each process.
PLAIN = (bool, int, float, str, bytes, datetime.date, datetime.timedelta, uuid.UUID)


def role_of(instance: Any) -> Any:
    """The role of the identity that an app or request has, if it has one: ``by_role``."""
    return getattr(getattr(instance, 'identity', None), 'role', None)


def variant_key(functions: tuple[Vary, ...], instance: Any, where: str) -> str:
    """The variant that an instance sees, as the end of a value's key: the same text for
    the same variant in each process.

    :raises VariantError: if one of the functions gives what is no key.
    """
    parts = [function(instance) for function in functions]
    for part in parts:
        _check(part, where)
    return '-' + ','.join(map(_text, parts))


def _check(part: Any, where: str) -> None:
    if part is None or isinstance(part, (*PLAIN, Enum)):
        return
    if isinstance(part, tuple):
        for item in part:
            _check(item, where)
        return
    raise VariantError(
        f'{where}: vary gave {part!r}; a variant is None, a number, string, date, UUID, enum '
        'member, or a tuple of these'
    )


def _text(part: Any) -> str:
    if isinstance(part, Enum):
        return f'{type(part).__module__}.{type(part).__qualname__}.{part.name}'
    if isinstance(part, tuple):
        return '(' + ','.join(map(_text, part)) + ')'
    return repr(part)
