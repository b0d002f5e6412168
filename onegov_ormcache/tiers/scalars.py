"""Writes and reads values without parts for which MessagePack has no exact type.

Each is written as the payload of a MessagePack extension, whose code stands for the kind of
value. Times are written as ISO texts, because these keep microseconds and are validated when
they are read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from markupsafe import Markup
from sqlalchemy.dialects import postgresql

from onegov_ormcache.tiers.refusals import Refused, class_name

_MICROSECOND = timedelta(microseconds=1)
_TIMEDELTA = struct.Struct('>iii')


class Scalar(NamedTuple):
    """A kind of values: its type, its code, and the functions that write and read a value."""

    type: type
    code: int
    write: Callable[[Any], bytes]
    read: Callable[[bytes], Any]


def write_text(value: str) -> bytes:
    """Return a text as UTF-8; it may have lone surrogates."""
    return value.encode('utf-8', 'surrogatepass')


def read_text(data: bytes) -> str:
    """Return the text that :func:`write_text` wrote."""
    return data.decode('utf-8', 'surrogatepass')


def write_int(value: int) -> bytes:
    """Return an integer of any size as bytes in two's complement, big-endian."""
    return value.to_bytes(value.bit_length() // 8 + 1, 'big', signed=True)


def read_int(data: bytes) -> int:
    """Return the integer that :func:`write_int` wrote."""
    return int.from_bytes(data, 'big', signed=True)


def _write_zone(zone: tzinfo | None) -> str:
    """Return a text for a time zone: empty for None, else a letter for its kind, followed by
    its key, or by its offset in microseconds and its name.

    :raises Refused: if the time zone is of another kind.
    """
    if zone is None:
        return ''
    if zone is UTC:
        return 'u'
    if type(zone) is ZoneInfo and zone.key is not None:
        return f'z{zone.key}'
    if type(zone) is not timezone:
        raise Refused(
            f"has the time zone {zone!r} of type {class_name(type(zone))}, which can't be "
            'cached. Use zoneinfo.ZoneInfo(key) or datetime.timezone.'
        )
    offset = zone.utcoffset(None)
    name = zone.tzname(None)
    text = f'o{offset // _MICROSECOND}'
    return text if name == timezone(offset).tzname(None) else f'{text},{name}'


def _read_zone(text: str) -> tzinfo | None:
    kind, rest = text[:1], text[1:]
    if not kind:
        return None
    if text == 'u':
        return UTC
    if kind == 'z':
        return ZoneInfo(rest)
    if kind != 'o':
        raise ValueError(f'{text!r} is no time zone')
    offset, named, name = rest.partition(',')
    delta = int(offset) * _MICROSECOND
    return timezone(delta, name) if named else timezone(delta)


def _write_time(value: datetime | time) -> bytes:
    """Return the fold (one digit), the ISO text without time zone, a space and the text of
    the time zone."""
    zone = value.tzinfo
    if zone is None:
        return f'{value.fold}{value.isoformat()} '.encode()
    naive = value.replace(tzinfo=None)
    return write_text(f'{value.fold}{naive.isoformat()} {_write_zone(zone)}')


def _read_datetime(data: bytes) -> datetime:
    moment, _, zone = read_text(data).partition(' ')
    value = datetime.fromisoformat(moment[1:])
    if moment[0] == '0' and not zone:
        return value
    return value.replace(tzinfo=_read_zone(zone), fold=int(moment[0]))


def _read_time(data: bytes) -> time:
    moment, _, zone = read_text(data).partition(' ')
    value = time.fromisoformat(moment[1:])
    return value.replace(tzinfo=_read_zone(zone), fold=int(moment[0]))


def _write_timedelta(value: timedelta) -> bytes:
    return _TIMEDELTA.pack(value.days, value.seconds, value.microseconds)


def _by_text(cls: Any, code: int) -> Scalar:
    """Return the kind of a class whose values can be read from what ``str`` returns."""
    return Scalar(cls, code, lambda value: str(value).encode(), lambda data: cls(data.decode()))


def _bit_strings() -> tuple[Scalar, ...]:
    """Return the kind of SQLAlchemy's bit strings; before SQLAlchemy 2.1 there are none."""
    cls: Any = getattr(postgresql, 'BitString', None)
    return () if cls is None else (Scalar(cls, 33, _write_bits, lambda data: cls(data.decode())),)


def _write_bits(value: str) -> bytes:
    if set(value) - {'0', '1'} or vars(value):
        raise Refused(
            f'is a bit string of {str.__str__(value)!r} with the attributes {vars(value)}; '
            "one that can be cached has the digits '0' and '1', and no attributes."
        )
    return value.encode()


#: All kinds of scalars. A code must never be used for another kind, because stored values
#: have it.
SCALARS = (
    Scalar(datetime, 20, _write_time, _read_datetime),
    Scalar(
        date,
        21,
        lambda value: value.isoformat().encode(),
        lambda data: date.fromisoformat(data.decode()),
    ),
    Scalar(time, 22, _write_time, _read_time),
    Scalar(timedelta, 23, _write_timedelta, lambda data: timedelta(*_TIMEDELTA.unpack(data))),
    _by_text(Decimal, 24),
    Scalar(UUID, 25, lambda value: value.bytes, lambda data: UUID(bytes=data)),
    Scalar(Markup, 26, write_text, lambda data: Markup(read_text(data))),
    _by_text(IPv4Address, 27),
    _by_text(IPv4Interface, 28),
    _by_text(IPv4Network, 29),
    _by_text(IPv6Address, 30),
    _by_text(IPv6Interface, 31),
    _by_text(IPv6Network, 32),
    *_bit_strings(),
)
