"""Expiry: the moment at which a value ends, although none of its tags has changed.

This module turns what a property declares into seconds. It does not know how values are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

from ..errors import PropertyError

#: Seconds from the run of the creator, or a function of the value that returns the moment at which
#: it ends; None, also from the function: it does not expire by itself.
Expires: TypeAlias = 'float | Callable[[Any], datetime | None] | None'


def check_expires(expires: Expires, where: str) -> None:
    """Raise :class:`PropertyError` if a property can't expire like this.

    :param where: the property, with its file and line, for the message.
    """
    if expires is None or callable(expires):
        return
    is_number = isinstance(expires, (int, float)) and not isinstance(expires, bool)
    if not (is_number and 0 < expires <= sys.float_info.max):
        raise PropertyError(
            f'{where}: expires={expires!r}; expected seconds above 0, or a function of the value '
            'that returns the moment at which it ends, as an aware datetime'
        )


def seconds_left(expires: Expires, value: Any, where: str) -> float | None:
    """Return for how many seconds a value that was just computed may be used.

    :return: 0 or less if it has ended already; None if it does not expire.
    :raises PropertyError: if the function returns something else than an aware datetime or None.
    """
    if not callable(expires):
        return expires
    moment = expires(value)
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise PropertyError(
            f'{where}: expires gave {moment!r}; expected a datetime with a time zone '
            '(datetime.now(UTC) + ..., for example), or None'
        )
    return (moment - datetime.now(UTC)).total_seconds()


def earliest(*moments: float | None) -> float | None:
    """Return the earliest of some moments; None stands for never."""
    return min((moment for moment in moments if moment is not None), default=None)
